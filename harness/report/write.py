"""Tables and pictures of a run, finished or not: ``python -m harness.report RUN_DIR``.

Data flows one way: stored records -> ``frame`` (a row per trial and cycle) -> long tables of numbers (a row per
cell: mean, std, n) -> text. CSV files hold the long tables, in the printed ones' units; the rest is for people. Where
trials kept the first images that they bought, these are drawn too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.results.records import FIGURES, CycleRecord
from harness.results.store import RunStore, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from harness.learning.queried import Queried
from harness.report.captions import is_finished, mixtures, progress, provenance, record_warnings, timing_note
from harness.report.formats import _file_name, _formatted, _wide_cost, _wide_figure, _wrapped, latex, plain, wide
from harness.report.tables import (
    Suite,
    _percent,
    aubc_table,
    class_table,
    cost_table,
    figure_keys,
    figure_table,
    frame,
    seconds_by_cycle_table,
    seconds_table,
)


@dataclass(frozen=True)
class Table:
    """A table in all its forms."""

    name: str
    """What follows the suite's name in the file names."""
    caption: str
    numbers: dict[str, pd.DataFrame]
    """Long tables by the ending of their file name ('' for the table itself)."""
    shown: pd.DataFrame
    """The wide table; all cells are text."""
    printed: bool = True
    figure: str = ""
    """The figure whose curves are drawn from the numbers, if any."""


def suite_tables(suite: Suite, records: Sequence[CycleRecord]) -> list[Table]:
    """Return the tables of a suite that has records."""
    table = frame(records, suite.methods)
    source = provenance(suite, records)
    timing = f"{timing_note(records)}. {source}"
    total = "total = train + auxiliary + score + select"
    which = "the cycles that bought images (the last buys none)" if table["bought"].any() else "all cycles"
    if not is_finished(suite, records):
        which += ", an unfinished trial's so far"
    tables = []
    for key in figure_keys(records):
        numbers, areas = figure_table(table, key), aubc_table(table, key)
        if numbers.empty:
            continue
        span = f"{numbers['labelled'].min()} to {numbers['labelled'].max()}"
        caption = (
            f"{_percent(key)} by labelled images: mean±std (sample, n-1) over n seeds. AUBC: area under the curve from "
            f"{span} labelled images, divided by that span, of the seeds that have all of it. {source}"
        )
        long = {"": numbers, "_aubc": areas}
        tables.append(Table(_file_name(key), caption, long, _wide_figure(numbers, areas), figure=FIGURES.get(key, key)))
    if len(by_class := class_table(records, suite.methods)):
        caption = (
            f"IoU (%) of each class at {by_class['labelled'][0]} labelled images, the last number that all trials here "
            f"have: mean±std (sample, n-1) over n seeds. {source}"
        )
        shown = wide(by_class, ["method"], "quantity")
        tables.append(Table("class_iou", caption, {"": by_class.rename(columns={"quantity": "class"})}, shown))
    seconds, by_cycle, cost = seconds_table(table), seconds_by_cycle_table(table), cost_table(table)
    tables.append(
        Table(
            "seconds",
            f"Wall-clock seconds per cycle: mean over cycles of each trial, namely {which}, then mean±std over n "
            f"seeds. {total}; {timing}",
            {"": seconds},
            wide(seconds, ["method"], "quantity"),
        )
    )
    tables.append(
        Table(
            "seconds_by_cycle",
            f"Wall-clock seconds of every cycle: mean±std over n seeds. {total}; {timing}",
            {"": by_cycle},
            wide(by_cycle, ["method", "labelled"], "quantity"),
            printed=False,
        )
    )
    tables.append(
        Table(
            "cost",
            "Cost of the first cycle: EP extra parameters (count, and MiB in float32), TT training time "
            "(train + auxiliary), ST sampling time (score + select), total = TT + ST; memory: the most that one of a "
            "trial's processes took in any cycle (of its GPU, else of the host); mean±std over n seeds; " + timing,
            {"": cost},
            _wide_cost(cost),
        )
    )
    return tables


def first_queried(records: Sequence[CycleRecord], store: RunStore) -> dict[str, tuple[int, Queried]]:
    """Return the seed and the first images bought of each method's first trial that kept them."""
    from harness.learning.queried import Queried

    found: dict[str, tuple[int, Queried]] = {}
    for r in sorted(records, key=lambda r: (r.seed, r.trial)):
        if r.cycle == 0 and r.method not in found and (kept := Queried.read(store.trial(r.trial).queried_path)):
            found[r.method] = r.seed, kept
    return found


def _write_suite(suite: Suite, records: Sequence[CycleRecord], store: RunStore) -> tuple[str, str]:
    """Write the files of a suite that has records; return what to print and its part of report.md."""
    from harness.report.plots import learning_curves, picture, queried_grid

    folder = store.folder / "report"
    tables = suite_tables(suite, records)
    notes = [f"{progress(suite, records)}.", *mixtures(records), *record_warnings(records)]
    printed = ["\n".join(_wrapped(note) for note in notes)]
    marked = ["\n".join(f"- {note}" for note in notes) + "\n"]
    for table in tables:
        stem = _file_name(f"{suite.name}_{table.name}")
        text = f"{_wrapped(table.caption)}\n\n{plain(table.shown)}\n"
        markdown = f"{table.caption}\n\n{_formatted(table.shown, 'github')}\n"
        write_atomically(folder / f"{stem}.txt", text.encode())
        write_atomically(folder / f"{stem}.md", markdown.encode())
        write_atomically(folder / f"{stem}.tex", latex(table.shown, table.caption, stem).encode())
        for ending, numbers in table.numbers.items():
            write_atomically(folder / f"{stem}{ending}.csv", numbers.to_csv(index=False).encode())
        if table.printed:
            printed.append(text.rstrip())
            marked.append(markdown)
        else:
            what = table.caption.partition(":")[0]
            printed.append(f"{what}: {folder / stem}.txt")
            marked.append(f"[{what}]({stem}.md)\n")
        if table.figure:
            caption = f"Mean (line) and ±std (band) over seeds. {provenance(suite, records)}"
            curves = learning_curves(table.numbers[""], suite.methods, suite.title, caption, f"{table.figure} (%)")
            for kind in ("png", "svg"):
                write_atomically(folder / f"{stem}.{kind}", picture(curves, kind))
            marked.append(f"![{table.figure} of {suite.title}]({stem}.png)\n")
    queried = first_queried(records, store)
    for place, method in enumerate(suite.methods):
        if method in queried:
            seed, kept = queried[method]
            stem = _file_name(f"{suite.name}_queried_{place}_{method}")
            what = f"{method}: the first images bought"
            caption = (
                f"Seed {seed}: bought after training on {suite.labelled[0]} labelled images, and predicted by the "
                "network of that moment."
            )
            grid = queried_grid(kept, what, caption)
            write_atomically(folder / f"{stem}.png", picture(grid, "png"))
            marked.append(f"![{what}]({stem}.png)\n")
    if queried:
        printed.append(f"The first images bought: {folder / _file_name(f'{suite.name}_queried')}_*.png")
    return "\n\n".join(printed), "\n".join(marked)


def read(run_dir: Path) -> tuple[str, list[tuple[Suite, list[CycleRecord]]]]:
    """Return the run's name and, for each suite, the records that are there; their methods are run.json's labels.

    Raises UserError if the folder is not a run's.
    """
    try:
        run = json.loads((run_dir / "run.json").read_text())
    except OSError as error:
        raise UserError(f"{run_dir}: not the folder of a run (no readable run.json in it)") from error
    except ValueError as error:
        raise UserError(f"{run_dir / 'run.json'}: not valid JSON: {error}") from error
    store = RunStore(run_dir)
    suites = []
    for suite in map(Suite.from_json, run["suites"]):
        records = [
            replace(record, method=facts["method"])
            for trial, facts in suite.trials.items()
            for record in store.trial(trial).records()
        ]
        suites.append((suite, records))
    return run["name"], suites


def write(run_dir: Path) -> str:
    """Write RUN_DIR/report/ from what is finished; return the text to print. Raises UserError like ``read``."""
    name, suites = read(run_dir)
    store = RunStore(run_dir)
    printed, marked = [f"Report of run {name}"], [f"# Report of run {name}"]
    for suite, records in suites:
        if suite.skipped:
            text = markdown = f"Not run: {suite.skipped}"
        elif not records:
            text = markdown = f"No cycle is finished yet: {progress(suite, records)}."
        else:
            text, markdown = _write_suite(suite, records, store)
        printed.append(f"{suite.title}\n{'=' * len(suite.title)}\n{text}")
        marked.append(f"## {suite.title}\n\n{markdown}")
    path = run_dir / "report" / "report.md"
    write_atomically(path, ("\n\n".join(marked) + "\n").encode())
    return "\n\n".join([*printed, f"All tables and pictures: {path}"])

"""Tables and pictures of a run, finished or not: ``python -m harness.report RUN_DIR``.

Data flows one way: stored records -> ``frame`` (a row per trial and cycle) -> long tables of numbers (a row per
cell: mean, std, n) -> text. CSV files hold the long tables, in the printed ones' units; the rest is for people. Where
trials kept the first images that they bought, these are drawn too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.records import COST_PHASES, FIGURES, PHASES, CycleRecord
from harness.store import RunStore, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from harness.queried import Queried

WIDTH = 120  # columns of the printed text
SECONDS = [*COST_PHASES, "total", "compile", "evaluate", "checkpoint"]
EXTRA = ["EP", "EP (MiB)"]
COST = [*EXTRA, "TT (s)", "ST (s)", "total (min)", "memory (GiB)"]
DECIMALS = {"EP": 0, "total (min)": 3}  # all others have 2
NOTHING = "\N{EN DASH}"
PLACES_SHOWN = 4  # of a warning that many cycles have


@dataclass(frozen=True)
class Suite:
    """One suite as run.json describes it: what was planned, whether or not it is there yet."""

    name: str
    title: str
    dataset: str
    model: str
    recipe: str
    methods: list[str]
    """Labels, in display order."""
    seeds: list[int]
    labelled: list[int]
    """The number of labelled images of each cycle."""
    trials: dict[str, dict[str, Any]]
    """Trial id -> its ``method`` (label) and ``seed``."""
    skipped: str | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Suite:
        """Read a suite; keys that a report does not need are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


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


# --- records -> numbers


def frame(records: Iterable[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return one row per record: figures in %, seconds by phase, and ``bought``: whether images were chosen.

    The order of the records does not matter. A figure that a record lacks, or has as None, is NaN.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda r: (r.trial, r.cycle))  # also the order in which floats are added up
    rows = [
        {
            "method": r.method,
            "trial": r.trial,
            "cycle": r.cycle,
            "labelled": r.labelled,
            "bought": bool(r.chosen),
            "EP": r.extra_parameters,
            "memory": r.peak_memory(),
            **{phase: r.seconds.get(phase) for phase in PHASES},
            **{_percent(key): None if value is None else 100 * value for key, value in r.figures.items()},
        }
        for r in ordered
    ]
    numbers = [*PHASES, *(_percent(key) for key in figure_keys(ordered))]
    table = pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    table["total"] = table[list(COST_PHASES)].sum(axis=1, skipna=False)
    return table


def figure_keys(records: Iterable[CycleRecord]) -> list[str]:
    """Return the names of all figures, sorted."""
    return sorted({key for r in records for key in r.figures})


def _percent(key: str) -> str:
    return f"{FIGURES.get(key, key)} (%)"


def summary(table: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Return a row per group and value column: ``by``, quantity, mean, std (sample; NaN for one value) and n.

    A group without any value of a column has no row for it.
    """
    import pandas as pd

    long = table.melt(id_vars=by, value_vars=values, var_name="quantity").dropna(subset=["value"])
    long["quantity"] = pd.Categorical(long["quantity"], categories=values, ordered=True)
    cells = long.groupby([*by, "quantity"], observed=True)["value"].agg(mean="mean", std="std", n="count")
    return cells.reset_index()


def figure_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return method, labelled, mean, std and n of a figure, in %, over the seeds."""
    return summary(table, ["method", "labelled"], [_percent(key)]).drop(columns="quantity")


def aubc_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return method, mean, std and n of the area under the budget curve (trapezoids) divided by the budget's span.

    Only trials that have the figure at every labelled count of the table enter: areas over different spans can't
    be compared. Empty if there is one labelled count only.
    """
    curves = table.pivot(index=["method", "trial"], columns="labelled", values=_percent(key))
    curves = curves.dropna(axis="columns", how="all").dropna()
    x, y = curves.columns.to_numpy(float), curves.to_numpy(float)
    areas = curves.index.to_frame(index=False)
    areas["AUBC"] = ((y[:, 1:] + y[:, :-1]) / 2 * (x[1:] - x[:-1])).sum(axis=1) / (x[-1] - x[0]) if len(x) > 1 else None
    return summary(areas.astype({"AUBC": float}), ["method"], ["AUBC"]).drop(columns="quantity")


def class_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return method, labelled, quantity (the class), mean, std and n over the seeds of the IoU of each class, in %.

    Of one labelled count: the last that all trials have. Empty if there is none, or pixels have no labels.
    """
    import pandas as pd

    counts = [{r.labelled for r in records if r.trial == trial and r.per_class} for trial in {r.trial for r in records}]
    common = set.intersection(*counts)
    of = sorted((r for r in records if common and r.labelled == max(common)), key=lambda r: r.trial)
    classes = list(dict.fromkeys(name for r in of for name in r.per_class))
    rows = [{"method": r.method, "labelled": r.labelled, **{k: 100 * v for k, v in r.per_class.items()}} for r in of]
    table = pd.DataFrame(rows, columns=["method", "labelled", *classes])
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    return summary(table, ["method", "labelled"], classes)


def seconds_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, quantity (SECONDS), mean, std and n over the seeds of each trial's mean over its cycles.

    The cycles that count are those that bought images, or all if none did: the last cycle has nothing to score.
    """
    counted = table[table["bought"]] if table["bought"].any() else table
    shown = _shown_seconds(table)
    trials = counted.groupby(["method", "trial"], observed=True)[shown].mean().reset_index()
    return summary(trials, ["method"], shown)


def seconds_by_cycle_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, labelled, quantity (SECONDS), mean, std and n over the seeds, of every cycle."""
    return summary(table, ["method", "labelled"], _shown_seconds(table))


def _shown_seconds(table: pd.DataFrame) -> list[str]:
    """Return SECONDS, without ``compile`` where nothing was compiled."""
    return [name for name in SECONDS if name != "compile" or table["compile"].any()]


def cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, quantity (COST), mean, std and n over the seeds, of the first cycle; memory: of any cycle."""
    first = table[table["cycle"] == 0]
    training = first["train"] + first["auxiliary"]
    sampling = first["score"] + first["select"]
    memory = first["trial"].map(table.groupby("trial")["memory"].max()) / 2**30
    costs = [first["EP"], first["EP"] * 4 / 2**20, training, sampling, (training + sampling) / 60, memory]
    return summary(first[["method"]].assign(**dict(zip(COST, costs, strict=True))), ["method"], COST)


# --- numbers -> text


def cell(mean: float, std: float, decimals: int = 2) -> str:
    """Return '81.20±0.31', without the ± if std is NaN (one seed)."""
    spread = "" if std != std else f"±{std:,.{decimals}f}"
    return f"{mean:,.{decimals}f}{spread}"


def wide(numbers: pd.DataFrame, rows: list[str], columns: str) -> pd.DataFrame:
    """Return a long table with a column of text for each value of ``columns``, and the rows' n (the most seeds).

    A cell with fewer seeds than its row says so. Where ``rows`` is the method alone, every method gets a row.
    """
    most = numbers.groupby(rows, observed=True)["n"].transform("max")
    names = numbers[columns].tolist()
    text = [
        cell(mean, std, DECIMALS.get(name, 2)) + (f" (n={n})" if n < row else "")
        for name, mean, std, n, row in zip(names, numbers["mean"], numbers["std"], numbers["n"], most, strict=True)
    ]
    shown = numbers.assign(text=text).pivot(index=rows, columns=columns, values="text")
    if columns == "quantity":
        shown = shown.reindex(columns=numbers[columns].cat.categories)
    shown.columns = shown.columns.astype(str)
    shown["n"] = numbers.groupby(rows, observed=True)["n"].max().astype(str)
    if rows == ["method"]:
        shown = shown.reindex(numbers["method"].cat.categories.rename("method")).fillna({"n": "0"})
    return shown.fillna(NOTHING).reset_index().astype(str)


def _wide_figure(numbers: pd.DataFrame, areas: pd.DataFrame) -> pd.DataFrame:
    shown = wide(numbers, ["method"], "labelled")
    by_method = areas.set_index("method")
    column = []
    for method, most in zip(shown["method"], shown["n"], strict=True):
        if method in by_method.index:
            mean, std, n = by_method.loc[method, ["mean", "std", "n"]]
            column.append(cell(mean, std) + (f" (n={n:.0f})" if n < int(most) else ""))
        else:
            column.append(NOTHING)
    return shown.assign(AUBC=column)


def _wide_cost(numbers: pd.DataFrame) -> pd.DataFrame:
    # Parameters are counted, not measured: a standard deviation of zero says nothing, and none at all are a dash.
    counted = numbers["quantity"].isin(EXTRA)
    numbers = numbers.assign(std=numbers["std"].where(~counted | (numbers["std"] > 0)))
    return wide(numbers[~counted | (numbers["mean"] != 0)], ["method"], "quantity")


def _formatted(shown: pd.DataFrame, form: str) -> str:
    from tabulate import tabulate

    sides = ["left" if c == "method" else "right" for c in shown.columns]
    return tabulate(
        shown.to_numpy().tolist(), list(shown.columns), tablefmt=form, disable_numparse=True, colalign=sides
    )


def plain(shown: pd.DataFrame, width: int = WIDTH) -> str:
    """Return the table as text; one too wide for ``width`` goes on below, with method and labelled repeated."""
    blocks: list[list[str]] = [[]]
    keys = [c for c in shown.columns if c in ("method", "labelled")]
    for column in shown.columns.drop(keys):
        line = _formatted(shown[[*keys, *blocks[-1], column]], "simple").splitlines()[1]
        if blocks[-1] and len(line) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_formatted(shown[[*keys, *block]], "simple") for block in blocks)


def latex(shown: pd.DataFrame, caption: str, label: str) -> str:
    """Return a LaTeX table, which needs the package booktabs."""
    from tabulate import LATEX_ESCAPE_RULES

    tabular = _formatted(shown, "latex_booktabs")  # which escapes the cells by the same rules
    escaped = "".join(LATEX_ESCAPE_RULES.get(c, c) for c in caption)
    text = f"\\begin{{table}}\n\\centering\n\\caption{{{escaped}}}\n\\label{{tab:{label}}}\n{tabular}\n\\end{{table}}\n"
    return text.replace("±", r"$\pm$").replace(NOTHING, "--")


# --- what the captions say


def counted(number: int, noun: str) -> str:
    """Return '1 seed' or '3 seeds'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def seen(values: Iterable[Any]) -> str:
    """Return the different values, sorted and joined with slashes."""
    return "/".join(sorted({str(v) for v in values}))


def provenance(suite: Suite, records: Sequence[CycleRecord]) -> str:
    """Return where numbers come from: title, recipe, seeds, data, devices, precision; and how much is missing."""
    data = seen(r.data_fingerprint[:12] or "unknown" for r in records)
    return (
        f"{suite.title}: {suite.recipe}; {counted(len(suite.seeds), 'seed')}; dataset {suite.dataset} "
        f"(data {data}); {seen(r.device for r in records)}, {seen(r.precision for r in records)}"
        + ("" if is_finished(suite, records) else f"; unfinished: {progress(suite, records)}")
        + "."
    )


def is_finished(suite: Suite, records: Sequence[CycleRecord]) -> bool:
    """Say whether every cycle of every trial is there."""
    return len(records) >= len(suite.trials) * len(suite.labelled)


def progress(suite: Suite, records: Sequence[CycleRecord]) -> str:
    """Return '3 of 15 trials finished; 40 cycles of 75'."""
    ended = sum(r.cycle == len(suite.labelled) - 1 for r in records)
    cycles = len(suite.trials) * len(suite.labelled)
    return f"{ended} of {counted(len(suite.trials), 'trial')} finished; {len(records)} cycles of {cycles}"


def timing_note(records: Sequence[CycleRecord]) -> str:
    """Return how far the seconds may be compared."""
    share = max(r.device_share for r in records)
    note = "one trial per device"
    if share > 1:
        most = max(r.threads for r in records)
        threads = (
            f"{counted(most, 'thread')} each" if len({r.threads for r in records}) == 1 else f"up to {most} threads"
        )
        devices = seen(r.device for r in records)
        note = f"up to {share} trials shared a device ({devices}, {threads}): compare within this table only"
    if any(r.shared_from for r in records):
        note += "; the first cycle's training was shared between methods and is counted for each"
    return note


def mixtures(records: Sequence[CycleRecord]) -> list[str]:
    """Return a WARNING for each thing that should be the same in all records of a suite and is not."""
    things: dict[str, set[str]] = {}
    for r in records:
        same = {
            "data": r.data_fingerprint,
            "device": r.device,
            "precision": r.precision,
            "threads": str(r.threads),
            "commit": r.commit,
            **{f"version of {name}": version for name, version in r.versions.items()},
        }
        for name, value in same.items():
            things.setdefault(name, set()).add(value)
    return [
        f"WARNING: these results mix different values of {name}: {', '.join(sorted(values))}"
        for name, values in things.items()
        if len(values) > 1
    ]


def record_warnings(records: Iterable[CycleRecord]) -> list[str]:
    """Return each different warning once, with the trials and cycles that have it."""
    places: dict[str, list[str]] = {}
    for r in sorted(records, key=lambda r: (r.trial, r.cycle)):
        for warning in dict.fromkeys(r.warnings):
            places.setdefault(warning, []).append(f"{r.trial} cycle {r.cycle}")
    return [
        f"warning: {warning} ({', '.join(where[:PLACES_SHOWN])}"
        + (f" and {len(where) - PLACES_SHOWN} more)" if len(where) > PLACES_SHOWN else ")")
        for warning, where in places.items()
    ]


# --- the report


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


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, break_on_hyphens=False)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def first_queried(records: Sequence[CycleRecord], store: RunStore) -> dict[str, tuple[int, Queried]]:
    """Return the seed and the first images bought of each method's first trial that kept them."""
    from harness.queried import Queried

    found: dict[str, tuple[int, Queried]] = {}
    for r in sorted(records, key=lambda r: (r.seed, r.trial)):
        if r.cycle == 0 and r.method not in found and (kept := Queried.read(store.trial(r.trial).queried_path)):
            found[r.method] = r.seed, kept
    return found


def _write_suite(suite: Suite, records: Sequence[CycleRecord], store: RunStore) -> tuple[str, str]:
    """Write the files of a suite that has records; return what to print and its part of report.md."""
    from harness.plots import learning_curves, picture, queried_grid

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the report of a run; return the exit code (2: the user can mend it)."""
    parser = argparse.ArgumentParser(prog="python -m harness.report", description="Report a run, finished or not.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's folder (where.output)")
    try:
        print(write(parser.parse_args(arguments).run_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes the report of a run, finished or not: tables, learning curves and pictures of the first selected images.

Stored records become a table with a row per trial and cycle (``frame``), then long tables with a row per cell (mean,
std, n), then text. CSV files hold the long tables, in the units of the printed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import StorageError, UserError
from harness.report import index, statistics, verdict
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS, CycleRecord
from harness.results.store import RunStore, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from harness.results.pictures import SelectedImages
from harness.report.captions import (
    COST_NOTE,
    PHASES_NOTE,
    curves_note,
    differing_seeds,
    is_finished,
    left_out,
    mixtures,
    progress,
    provenance,
    record_warnings,
    timing_note,
)
from harness.report.cautions import cautions
from harness.report.comparisons import (
    Comparison,
    claims,
    compared_metric,
    comparisons,
    not_compared,
    reference_of,
    significantly_best,
)
from harness.report.costs import cost_claims
from harness.report.curves import (
    Curves,
    differences_by_labelled,
    full_data_notes,
    full_data_table,
    full_records,
    with_full_data,
)
from harness.report.decomposition import decomposition_caption, decomposition_table
from harness.report.formats import (
    as_text,
    csv,
    file_name,
    formatted,
    latex,
    markdown,
    own_file_name,
    terminal_width,
    wide,
    wide_comparisons,
    wide_cost,
    wide_metric,
    wrapped,
)
from harness.report.over_suites import NAME, OverSuites, claims_over_suites, over_suites, over_suites_table
from harness.report.quality import class_quality_table, quality_table
from harness.report.reaching import reaching_caption, reaching_table, wide_reaching
from harness.report.selection import SELECTION_CAPTION, selection_table
from harness.report.sources import Sources, one
from harness.report.speed_up import speed_up_table
from harness.report.tables import (
    aubc_table,
    class_table,
    comparison_table,
    cost_table,
    difference_table,
    frame,
    metric_keys,
    metric_table,
    percent,
    seconds_by_cycle_table,
    seconds_table,
)
from harness.report.transfer import transfer, transfer_table, wide_transfer
from harness.report.wins import no_matrix, win_table


@dataclass(frozen=True)
class Table:
    """A table of the report: its caption, numbers and text."""

    name: str
    """The part of the file names after the suite's name."""
    caption: str
    numbers: dict[str, pd.DataFrame]
    """File name suffix -> long table; '' for the table itself."""
    shown: pd.DataFrame
    """The wide table, with text in all cells."""
    printed: bool = True
    """Whether the table is printed, or only written to a file."""
    curves: Curves | None = None
    """The learning curves that are drawn with the table."""
    bold: tuple[tuple[int, int], ...] = ()
    """(row, column) of the cells that are bold: the best of a column, and only if a claim says so."""


def suite_tables(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison] = (),
    full: Sequence[CycleRecord] = (),
    beside: Sequence[verdict.Beside] = (),
) -> list[Table]:
    """Return the tables of a suite that has records.

    ``compared``: its comparisons; ``full``: see ``full_records``; ``beside``: published values.
    """
    last = len(suite.labelled) - 1  # a cycle that selected later, or before the run was shortened, is still the last
    table = frame([replace(r, selected=[]) if r.selected and r.cycle == last else r for r in records], suite.methods)
    source = provenance(suite, records)
    timing = f"Timing: {timing_note(records)}. {source}"
    spread = "mean±std (sample) over n seeds, fewer where marked (n=...)"
    cycles = "all cycles except the last, which selects nothing" if table["selected"].any() else "all cycles"
    if not is_finished(suite, records):
        cycles += " (unfinished trials: the cycles so far)"
    tables = []
    for key in metric_keys(records):
        numbers, areas = metric_table(table, key), aubc_table(table, key)
        if numbers.empty:
            continue
        span = f"{numbers['labelled'].min()} to {numbers['labelled'].max()}"
        caption = (
            f"{percent(key)} on the test set by number of labelled images: {spread}. AUBC: area under this curve from "
            f"{span} labelled images, divided by that span; only seeds with results at all numbers count. {source}"
        )
        long = {"": numbers, "_aubc": areas}
        differences = differences_by_labelled(table, key, suite.methods, reference_of(suite))
        long |= {"_differences": differences} if len(differences) else {}
        everything = full_data_table(full, key, numbers)
        long[""] = numbers = with_full_data(numbers, everything)
        shown = wide_metric(numbers, areas)
        bold: tuple[tuple[int, int], ...] = ()
        means = dict(zip(areas["method"], areas["mean"], strict=True))
        if key == compared_metric(records) and (best := significantly_best(means, compared)):
            bold = (([*shown["method"]].index(best), [*shown.columns].index("AUBC")),)
            caption += " Bold: the highest AUBC, which is significantly above the reference's."
        curves = Curves(METRICS.get(key, key), differences, everything)
        tables.append(Table(file_name(key), caption, long, shown, curves=curves, bold=bold))
    if compared:
        caption = (
            f"Differences of AUBC in points of {compared[0].metric}, by seed, to {compared[0].reference}: mean±std "
            "(sample). p: exact, two-sided, by flipping the signs of the seeds; p (Holm): adjusted for all comparisons "
            "of the report but the primary ones; seeds needed: to find such a mean with a probability of "
            f"{100 * statistics.POWER:.0f} %. {source}"
        )
        long = {"": comparison_table(compared), "_by_seed": difference_table(compared)}
        tables.append(Table("comparisons", caption, long, wide_comparisons(compared)))
        for name, found in (("speed_up", speed_up_table(suite, records)), ("wins", win_table(suite, records))):
            if found:
                caption, long, shown = found
                tables.append(Table(name, f"{caption} {source}", long, shown, printed=False))
    if len(parts := decomposition_table(suite, records, next((k for k in METRICS if k in metric_keys(records)), ""))):
        caption = f"{decomposition_caption(suite)} {spread}. {source}"
        tables.append(Table("decomposition", caption, {"": parts}, wide(parts, ["method"], "quantity")))
    if beside:
        text = f"{verdict.caption(beside)} {source}"
        tables.append(Table("published", text, {"": verdict.numbers(beside)}, verdict.wide(beside)))
    if len(by_class := class_table(records, suite.methods)):
        caption = (
            f"IoU (%) of each class at {by_class['labelled'][0]} labelled images, the highest number that all trials "
            f"in this table have reached: {spread}. {source}"
        )
        shown = wide(by_class, ["method"], "quantity")
        tables.append(Table("class_iou", caption, {"": by_class.rename(columns={"quantity": "class"})}, shown))
    if len(quality := quality_table(records, suite.methods)):
        caption = (
            f"Other test metrics at {quality['labelled'][0]} labelled images, the highest number that all trials have "
            f"reached: {spread}. balanced accuracy and F1: means over classes; ECE: expected calibration error; NLL: "
            f"negative log-likelihood. {source}"
        )
        long = {"": quality, "_by_class": class_quality_table(records, suite.methods)}
        tables.append(Table("quality", caption, long, wide(quality, ["method"], "quantity"), printed=False))
    if len(selection := selection_table(records, suite.methods)):
        caption = f"{SELECTION_CAPTION} {spread}. {source}"
        shown = wide(selection, ["method"], "labelled")
        tables.append(Table("selection", caption, {"": selection}, shown, printed=False))
    seconds, by_cycle, cost = seconds_table(table), seconds_by_cycle_table(table), cost_table(table)
    tables.append(
        Table(
            "seconds",
            f"Wall-clock seconds per cycle by phase, averaged over {cycles}, for each trial: {spread}. {PHASES_NOTE}. "
            f"{timing}",
            {"": seconds},
            wide(seconds, ["method"], "quantity"),
        )
    )
    tables.append(
        Table(
            "seconds_by_cycle",
            f"Wall-clock seconds of every cycle by phase: {spread}. labelled: number of labelled images; "
            f"{PHASES_NOTE}. {timing}",
            {"": by_cycle},
            wide(by_cycle, ["method", "labelled"], "quantity"),
            printed=False,
        )
    )
    tables.append(
        Table(
            "cost",
            f"Cost of the first cycle: {spread}. {COST_NOTE}. {timing}",
            {"": cost},
            wide_cost(cost),
        )
    )
    for key in metric_keys(records):
        if len(reached := reaching_table(table, key, reference_of(suite))):
            caption = f"{reaching_caption(reached, key, reference_of(suite))} {timing}"
            tables.append(Table(f"{file_name(key)}_reached", caption, {"": reached}, wide_reaching(reached)))
    return tables


def first_selected(records: Sequence[CycleRecord], store: RunStore) -> dict[str, tuple[int, SelectedImages]]:
    """Return method -> (seed, first selected images), from the method's first trial that stored such images."""
    from harness.results.pictures import SelectedImages

    pictures: dict[str, tuple[int, SelectedImages]] = {}
    for r in sorted(records, key=lambda r: (r.seed, r.trial)):
        if r.cycle == 0 and r.method not in pictures:
            images = SelectedImages.read(store.trial(r.trial).pictures_path)
            if images is not None:
                pictures[r.method] = r.seed, images
    return pictures


class Files:
    """The files of a report, which are written up to the first that the file system refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()
        """The names of the files so far, so that no suite overwrites another's."""
        self.refused: StorageError | None = None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Raises LockLost, and UserError if a folder has its name, or the other way round."""
        if self.refused is None:
            try:
                write_atomically(self.folder / name, data)
            except StorageError as error:
                self.refused = error


def _write_table(table: Table, stem: str, files: Files, width: int) -> tuple[str, str]:
    """Write the files of a table; return (printed text, Markdown), both with a link if it is not printed."""
    page = f"{markdown(table.caption)}\n\n{formatted(table.shown, 'github', table.bold)}\n"
    files.write(f"{stem}.txt", f"{wrapped(table.caption)}\n\n{as_text(table.shown)}\n".encode())
    files.write(f"{stem}.md", page.encode())
    files.write(f"{stem}.tex", latex(table.shown, table.caption, stem, table.bold).encode())
    for ending, numbers in table.numbers.items():
        files.write(f"{stem}{ending}.csv", csv(numbers).encode())
    if table.printed:
        return f"{wrapped(table.caption, width)}\n\n{as_text(table.shown, width)}".rstrip(), page
    heading = table.caption.partition(":")[0]
    return f"{heading}: {files.folder / stem}.txt", f"[{markdown(heading)}]({stem}.md)\n"


def _write_over_suites(found: Sequence[OverSuites], files: Files) -> tuple[str, str]:
    """Write the files of the comparisons over suites; return (printed text, the part of report.md)."""
    width, notes = terminal_width(), [claim.text for claim in claims_over_suites(found)]
    table = Table(NAME, *over_suites_table(found))
    text, page = _write_table(table, own_file_name(NAME, files.used, table.numbers), files, width)
    lines = "\n".join(wrapped(note, width) for note in notes)
    return f"{lines}\n\n{text}", "\n".join(f"- {markdown(note)}" for note in notes) + f"\n\n{page}"


def _write_suite(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    store: RunStore,
    files: Files,
    origin: Sequence[str] = (),
) -> tuple[str, str]:
    """Write the files of a suite that has records; return (printed text, the suite's part of report.md)."""
    from harness.report.plots import learning_curves, picture, selected_grid

    folder, used = files.folder, files.used
    full = full_records(suite, store)
    beside = verdict.beside(suite, records)
    tables, damaged = suite_tables(suite, records, compared, full, beside), []
    try:
        if (gains := transfer(suite, records, store.folder)) is not None:
            table = Table("transfer", gains.caption(), {"": transfer_table(gains)}, wide_transfer(gains))
            tables.insert([table.name for table in tables].index("seconds"), table)
    except UserError as error:
        damaged.append(f"{error}.")
    notes = [
        f"{progress(suite, records)}.",
        *origin,
        *left_out(suite, records, store),
        *differing_seeds(suite, records),
        *full_data_notes(suite, full),
        *mixtures([*records, *full]),
        *index.left_out(records),
        *record_warnings(records),
        *not_compared(suite),
        *damaged,
        *cautions(suite, compared),
        *(claim.text for claim in (*claims(compared), *cost_claims(suite, records, compared))),
        *(no_matrix(suite, records) if compared else ()),
        *verdict.reasons(suite, records),
        *(claim.text for claim in verdict.verdicts(suite, records, beside)),
    ]
    width = terminal_width()
    printed = ["\n".join(wrapped(note, width) for note in notes)]
    marked = ["\n".join(f"- {markdown(note)}" for note in notes) + "\n"]
    for table in tables:
        stem = own_file_name(f"{suite.name}_{table.name}", used, table.numbers)
        text, page = _write_table(table, stem, files, width)
        printed.append(text)
        marked.append(page)
        if table.curves:
            seeds = "".join(f" {note}" for note in differing_seeds(suite, records))
            caption = f"{curves_note(suite, table.curves.differences)} {provenance(suite, records)}{seeds}"
            curves = learning_curves(
                table.numbers[""],
                suite.methods,
                suite.title,
                caption,
                f"{table.curves.metric} (%)",
                pool=suite.pool,
                differences=table.curves.differences,
                reference=reference_of(suite),
                full=table.curves.full,
            )
            for kind in ("png", "svg"):
                files.write(f"{stem}.{kind}", picture(curves, kind))
            marked.append(f"![{table.curves.metric} of {markdown(suite.title)}]({stem}.png)\n")
    pictures = first_selected(records, store)
    for number, method in enumerate(suite.methods):
        if method in pictures:
            seed, images = pictures[method]
            stem = own_file_name(f"{suite.name}_selected_{number}_{method}", used)
            heading = f"{method}: the first selected images"
            caption = (
                f"Seed {seed}: images selected after training on {suite.labelled[0]} labelled images, with the "
                "predictions of the network at that time."
            )
            if images.labels.ndim == 1:
                caption += " Above each image: its class and, in colour, a wrong prediction."
            grid = selected_grid(images, heading, caption)
            files.write(f"{stem}.png", picture(grid, "png"))
            marked.append(f"![{markdown(heading)}]({stem}.png)\n")
    if pictures:
        printed.append(f"The first selected images: {folder / file_name(f'{suite.name}_selected')}_*.png")
    return "\n\n".join(printed), "\n".join(marked)


def read(run_dir: Path) -> tuple[str, list[tuple[SuiteEntry, list[CycleRecord]]]]:
    """Return the run's name and, for each suite, its finished records: see harness.report.sources."""
    found = one(run_dir)
    return found.name, found.suites


def write(run_dir: Path, show: Callable[[str], object] | None = None) -> str:
    """Write RUN_DIR/report/ from the finished cycles; return the text to print.

    ``show`` gets the text too, also if its files can't be written. Raises UserError like ``read``, and StorageError.
    """
    return write_sources(one(run_dir, run_dir / "index"), run_dir / "report", show)


def write_sources(sources: Sources, folder: Path, show: Callable[[str], object] | None = None) -> str:
    """Write a report into a folder; return the text to print. See ``write``."""
    name, suites, store, files = sources.name, sources.suites, sources.store, Files(folder)
    compared = comparisons(suites)
    printed, marked = [f"Report of run {name}"], [f"# Report of run {markdown(name)}"]
    if sources.notes:
        printed.append("\n".join(wrapped(note, terminal_width()) for note in sources.notes))
        marked.append("\n".join(f"- {markdown(note)}" for note in sources.notes))
    for suite, records in suites:
        origin = sources.suite_notes.get(suite.name, [])
        if suite.skipped:
            text = f"Not run: {suite.skipped}"
            part = markdown(text)
        elif not records:
            notes = [f"No results yet: {progress(suite, records)}.", *origin, *left_out(suite, records, store)]
            text = "\n".join(wrapped(note, terminal_width()) for note in notes)
            part = "\n".join(f"- {markdown(note)}" for note in notes)
        else:
            of_suite = [comparison for comparison in compared if comparison.suite == suite.name]
            text, part = _write_suite(suite, records, of_suite, store, files, origin)
        printed.append(f"{suite.title}\n{'=' * len(suite.title)}\n{text}")
        marked.append(f"## {markdown(suite.title)}\n\n{part}")
    if found := over_suites([suite for suite, _ in suites], compared):
        text, part = _write_over_suites(found, files)
        printed.append(f"Over suites\n===========\n{text}")
        marked.append(f"## Over suites\n\n{part}")
    files.write("report.md", ("\n\n".join(marked) + "\n").encode())
    if files.refused is None:
        printed.append(f"All tables and pictures: {files.folder / 'report.md'}")
    text = "\n\n".join(printed)
    if show is not None:
        show(text)
    if files.refused is not None:
        raise files.refused
    return text

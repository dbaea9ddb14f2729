"""Writes the report of a run, finished or not: tables, learning curves and pictures of the first selected images.

Stored records become a table with a row per trial and cycle (``frame``), then long tables with a row per cell (mean,
std, n), then text. CSV files hold the long tables, in the units of the printed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import StorageError, readable
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.records import METRICS, CycleRecord
from harness.results.store import RunStore, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from harness.results.pictures import SelectedImages
from harness.report.captions import (
    COST_COLUMNS,
    CURVE,
    PHASE_COLUMNS,
    SPREAD,
    TEST_COLUMNS,
    differing_seeds,
    is_finished,
    left_out,
    mixtures,
    progress,
    provenance,
    reading,
    record_warnings,
    timing_note,
)
from harness.report.comparisons import Comparison, claims, comparisons, not_compared, reference_of
from harness.report.curves import differences_by_labelled
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
from harness.report.html import Picture, Section, page, readings
from harness.report.record_table import record_table
from harness.report.rows import kept_apart
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


@dataclass(frozen=True)
class Table:
    """A table of the report: its caption, numbers and text."""

    name: str
    """The part of the file names after the suite's name."""
    caption: str
    """At most two lines; what columns mean is in ``reading``, where numbers come from in ``provenance``."""
    numbers: dict[str, pd.DataFrame]
    """File name suffix -> long table; '' for the table itself."""
    shown: pd.DataFrame
    """The wide table, with text in all cells."""
    printed: bool = True
    """Whether the table is printed, or only written to a file."""
    metric: str = ""
    """Name of the metric whose learning curves are drawn from the numbers; '': none."""
    differences: pd.DataFrame | None = None
    """The curves as differences to the suite's reference."""
    reading: Mapping[str, str] = field(default_factory=dict)
    """Term -> its meaning, for columns that do not explain themselves; the report says each once."""


def suite_tables(suite: SuiteEntry, records: Sequence[CycleRecord], compared: Sequence[Comparison] = ()) -> list[Table]:
    """Return the tables of a suite that has records; ``compared``: its comparisons."""
    last = len(suite.labelled) - 1  # a cycle that selected later, or before the run was shortened, is still the last
    table = frame([replace(r, selected=[]) if r.cycle == last else r for r in records], suite.methods)
    cycles = "all cycles except the last, which selects nothing" if table["selected"].any() else "all cycles"
    if not is_finished(suite, records):
        cycles += " (unfinished trials: the cycles so far)"
    tables = []
    for key in metric_keys(records):
        numbers, areas = metric_table(table, key), aubc_table(table, key)
        if numbers.empty:
            continue
        caption = f"{percent(key)} on the test set by number of labelled images, and AUBC"
        if len(areas):
            caption += f" from {numbers['labelled'].min()} to {numbers['labelled'].max()} labelled images"
        differences = differences_by_labelled(table, key, suite.methods, reference_of(suite))
        long = {"": numbers, "_aubc": areas} | ({"_differences": differences} if len(differences) else {})
        tables.append(
            Table(
                file_name(key),
                f"{caption}.",
                long,
                wide_metric(numbers, areas),
                metric=METRICS.get(key, key),
                differences=differences,
                reading=SPREAD | CURVE,
            )
        )
    if compared:
        caption = f"Differences of AUBC to {compared[0].reference} by seed, in points of {compared[0].metric}."
        long = {"": comparison_table(compared), "_by_seed": difference_table(compared)}
        tables.append(
            Table("comparisons", caption, long, wide_comparisons(compared), reading=SPREAD | CURVE | TEST_COLUMNS)
        )
    if len(by_class := class_table(records, suite.methods)):
        caption = (
            f"IoU (%) of each class at {by_class['labelled'][0]} labelled images, the highest number that all trials "
            "in this table have reached."
        )
        shown, long = wide(by_class, ["method"], "quantity"), {"": by_class.rename(columns={"quantity": "class"})}
        tables.append(Table("class_iou", caption, long, shown, reading=SPREAD))
    seconds, by_cycle, cost = seconds_table(table), seconds_by_cycle_table(table), cost_table(table)
    tables.append(
        Table(
            "seconds",
            f"Wall-clock seconds per cycle by phase: mean of {cycles}.",
            {"": seconds},
            wide(seconds, ["method"], "quantity"),
            reading=SPREAD | PHASE_COLUMNS,
        )
    )
    tables.append(
        Table(
            "seconds_by_cycle",
            "Wall-clock seconds of every cycle by phase.",
            {"": by_cycle},
            wide(by_cycle, ["method", "labelled"], "quantity"),
            printed=False,
            reading=SPREAD | {"labelled": "number of labelled images"} | PHASE_COLUMNS,
        )
    )
    caption = "Cost of the first cycle."
    tables.append(Table("cost", caption, {"": cost}, wide_cost(cost), reading=SPREAD | COST_COLUMNS))
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


def _write_suite(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    store: RunStore,
    files: Files,
) -> tuple[str, str, Section]:
    """Write the files of a suite that has records; return (printed text, its part of report.md, of report.html)."""
    from harness.report.plots import learning_curves, picture, selected_grid

    folder, used = files.folder, files.used
    tables = suite_tables(suite, records, compared)
    state, source = f"{progress(suite, records)}.", f"{provenance(suite, records)} Timing: {timing_note(records)}."
    warnings = [
        *left_out(suite, records, store),
        *differing_seeds(suite, records),
        *mixtures(records),
        *record_warnings(records),
        *not_compared(suite),
    ]
    claimed = claims(compared)
    notes = [state, *warnings, *(claim.text for claim in claimed)]
    width = terminal_width()
    printed = ["\n".join(wrapped(note, width) for note in notes), wrapped(source, width)]
    marked = ["\n".join(f"- {markdown(note)}" for note in notes) + "\n", f"{markdown(source)}\n"]
    for table in tables:
        stem = own_file_name(f"{suite.name}_{table.name}", used, table.numbers)
        page = f"{markdown(table.caption)}\n\n{formatted(table.shown, 'github')}\n"
        notes = [source, *([reading(table.reading)] if table.reading else [])]  # a file is read without the others
        text = "\n\n".join([wrapped(table.caption), as_text(table.shown), *map(wrapped, notes)])
        files.write(f"{stem}.txt", f"{text}\n".encode())
        files.write(f"{stem}.md", "\n".join([page, *(f"{markdown(note)}\n" for note in notes)]).encode())
        comments = "".join(f"% {note}\n" for note in notes)
        files.write(f"{stem}.tex", (comments + latex(table.shown, table.caption, stem)).encode())
        for ending, numbers in table.numbers.items():
            files.write(f"{stem}{ending}.csv", csv(numbers).encode())
        if table.printed:
            printed.append(f"{wrapped(table.caption, width)}\n\n{as_text(table.shown, width)}".rstrip())
            marked.append(page)
        else:
            heading = table.caption.removesuffix(".")
            printed.append(f"{heading}: {folder / stem}.txt")
            marked.append(f"[{markdown(heading)}]({stem}.md)\n")
        if table.metric:
            seeds = "".join(f" {note}" for note in differing_seeds(suite, records))
            caption = f"Mean (line) and mean±std (band) over seeds. {provenance(suite, records)}{seeds}"
            curves = learning_curves(table.numbers[""], suite.methods, suite.title, caption, f"{table.metric} (%)")
            for kind in ("png", "svg"):
                files.write(f"{stem}.{kind}", picture(curves, kind))
            marked.append(f"![{table.metric} of {markdown(suite.title)}]({stem}.png)\n")
    pictures = first_selected(records, store)
    shown: list[Picture] = []
    for number, method in enumerate(suite.methods):
        if method in pictures:
            seed, images = pictures[method]
            stem = own_file_name(f"{suite.name}_selected_{number}_{method}", used)
            heading = f"{method}: the first selected images"
            caption = (
                f"Seed {seed}: images selected after training on {suite.labelled[0]} labelled images, with the "
                "predictions of the network at that time."
            )
            grid = selected_grid(images, heading, caption)
            drawn = picture(grid, "png")
            files.write(f"{stem}.png", drawn)
            shown.append(Picture(f"{stem}.png", heading, caption, drawn))
            marked.append(f"![{markdown(heading)}]({stem}.png)\n")
    if pictures:
        printed.append(f"The first selected images: {folder / file_name(f'{suite.name}_selected')}_*.png")
    section = Section(suite, records, state, source, tables, compared, claimed, warnings, shown)
    return "\n\n".join(printed), "\n".join(marked), section


def _shown(record: CycleRecord, method: str, trial: str) -> CycleRecord:
    """Return a record with the current name and id, and with warnings and classes that can be printed."""
    per_class = {readable(name): iou for name, iou in record.per_class.items()}
    return replace(record, method=method, trial=trial, warnings=[*map(readable, record.warnings)], per_class=per_class)


def read(run_dir: Path) -> tuple[str, list[tuple[SuiteEntry, list[CycleRecord]]]]:
    """Return the run's name and, for each suite, its finished records, with the methods' names from run.json.

    A method whose records must not be averaged has several names: see harness.report.rows. Raises UserError if RUN_DIR
    has no valid run.json.
    """
    manifest, store = Manifest.read(run_dir).readable(), RunStore(run_dir)
    suites = []
    for suite in manifest.suites:
        records = [
            _shown(record, entry.method, trial)
            for trial, entry in suite.trials.items()
            for record in store.trial(trial).records()[: len(suite.labelled)]
        ]
        suites.append(kept_apart(suite, records))
    return manifest.name, suites


def write(run_dir: Path, show: Callable[[str], object] | None = None) -> str:
    """Write RUN_DIR/report/ from the finished cycles; return the text to print.

    ``show`` gets the text too, also if its files can't be written. Raises UserError like ``read``, and StorageError.
    """
    name, suites = read(run_dir)
    store, files = RunStore(run_dir), Files(run_dir / "report")
    compared = comparisons(suites)
    sections: list[Section] = []
    printed, marked = [f"Report of run {name}"], [f"# Report of run {markdown(name)}"]
    for suite, records in suites:
        if suite.skipped:
            text = f"Not run: {suite.skipped}"
            part, section = markdown(text), Section(suite, records, text)
        elif not records:
            notes = [f"No results yet: {progress(suite, records)}.", *left_out(suite, records, store)]
            text = "\n".join(wrapped(note, terminal_width()) for note in notes)
            part = "\n".join(f"- {markdown(note)}" for note in notes)
            section = Section(suite, records, notes[0], warnings=notes[1:])
        else:
            of_suite = [comparison for comparison in compared if comparison.suite == suite.name]
            text, part, section = _write_suite(suite, records, of_suite, store, files)
        sections.append(section)
        printed.append(f"{suite.title}\n{'=' * len(suite.title)}\n{text}")
        marked.append(f"## {markdown(suite.title)}\n\n{part}")
    if terms := readings(sections):
        lines = [f"{term}: {meaning}" for term, meaning in terms.items()]
        printed.append("\n".join(["How to read", "===========", *(wrapped(line, terminal_width()) for line in lines)]))
        marked.append("\n".join(["## How to read\n", *(f"- {markdown(line)}" for line in lines)]))
    files.write("records.csv", csv(record_table(suites)).encode())
    files.write("report.html", page(name, sections).encode())
    files.write("report.md", ("\n\n".join(marked) + "\n").encode())
    if files.refused is None:
        printed.append(f"The same as a page: {files.folder / 'report.html'}")
        printed.append(f"All tables and pictures: {files.folder / 'report.md'}")
    text = "\n\n".join(printed)
    if show is not None:
        show(text)
    if files.refused is not None:
        raise files.refused
    return text

"""Writes the report of a run, finished or not: tables, learning curves and pictures of the first selected images.

Stored records become a table with a row per trial and cycle (``frame``), then long tables with a row per cell (mean,
std, n), then text. CSV files hold the long tables, in the units of the printed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import StorageError, readable
from harness.report import index, verdict
from harness.report.captions import (
    curves_note,
    differing_seeds,
    in_text,
    left_out,
    mixtures,
    progress,
    provenance,
    reading,
    record_warnings,
    timing_note,
)
from harness.report.cautions import cautions
from harness.report.claims import claims, not_compared
from harness.report.comparisons import Claim, Comparison, comparisons, reference_of
from harness.report.contents import Table, explained, suite_tables
from harness.report.costs import cost_claims
from harness.report.curves import full_data_notes, full_records
from harness.report.formats import (
    as_text,
    csv,
    file_name,
    formatted,
    latex,
    markdown,
    own_file_name,
    terminal_width,
    wrapped,
)
from harness.report.html import Picture, Section, first_selections, page, readings
from harness.report.over_suites import NAME, OverSuites, claims_over_suites, over_suites, over_suites_table
from harness.report.record_table import record_table
from harness.report.sources import Sources, one
from harness.report.transfer import transfer
from harness.report.wins import no_matrix
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord
from harness.results.source import SourceSuite
from harness.results.store import RunStore, write_atomically

if TYPE_CHECKING:
    from harness.results.pictures import SelectedImages


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


def _write_table(table: Table, stem: str, source: str, files: Files, width: int) -> tuple[str, str]:
    """Write the files of a table; return (printed text, Markdown), both with a link if it is not printed.

    ``source``: where its numbers come from.
    """
    part = f"{markdown(table.caption)}\n\n{formatted(table.shown, 'github', table.bold)}\n"
    notes = [note for note in (source, reading(table.reading)) if note]  # it is read alone
    plain = [note for note in (source, reading(in_text(table.reading))) if note]
    text = "\n\n".join([wrapped(table.caption), as_text(table.shown), *map(wrapped, plain)])
    files.write(f"{stem}.txt", f"{text}\n".encode())
    files.write(f"{stem}.md", "\n".join([part, *(f"{markdown(note)}\n" for note in notes)]).encode())
    comments = "".join(f"% {readable(note)}\n" for note in notes)
    files.write(f"{stem}.tex", (comments + latex(table.shown, table.caption, stem, table.bold)).encode())
    for ending, numbers in table.numbers.items():
        files.write(f"{stem}{ending}.csv", csv(numbers).encode())
    if table.printed:
        return f"{wrapped(table.caption, width)}\n\n{as_text(table.shown, width)}".rstrip(), part
    heading = table.caption.partition(":")[0].removesuffix(".")
    return f"{heading}: {files.folder / stem}.txt", f"[{markdown(heading)}]({stem}.md)\n"


def _write_over_suites(found: Sequence[OverSuites], files: Files) -> tuple[str, str, Table]:
    """Write the files of the comparisons over suites; return (printed text, the part of report.md, the table)."""
    width, notes = terminal_width(), [claim.text for claim in claims_over_suites(found)]
    caption, numbers, shown = over_suites_table(found)
    table = explained(NAME, "over suites", caption, numbers, shown)
    text, part = _write_table(table, own_file_name(NAME, files.used, table.numbers), "", files, width)
    lines = "\n".join(wrapped(note, width) for note in notes)
    return f"{lines}\n\n{text}", "\n".join(f"- {markdown(note)}" for note in notes) + f"\n\n{part}", table


def _write_suite(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    store: RunStore,
    files: Files,
    origin: Sequence[str] = (),
    source_suite: SourceSuite | None = None,
) -> tuple[str, str, Section]:
    """Write the files of a suite that has records; return (printed text, its part of report.md, of report.html)."""
    from harness.report.plots import learning_curves, picture, selected_grid

    folder, used = files.folder, files.used
    full, beside = full_records(suite, store), verdict.beside(suite, records)
    gains = transfer(suite, records, source_suite)
    tables = suite_tables(suite, records, compared, full, beside, gains)
    state, source = f"{progress(suite, records)}.", f"{provenance(suite, records)} Timing: {timing_note(records)}."
    warnings = [
        *origin,
        *left_out(suite, records, store),
        *differing_seeds(suite, records),
        *full_data_notes(suite, full),
        *mixtures([*records, *full]),
        *index.left_out(records),
        *record_warnings(records),
        *not_compared(suite, records, compared),
        *cautions(suite, compared),
    ]
    claimed = [
        *claims(compared),
        *cost_claims(suite, records, compared, lambda trial: store.trial(trial).folder.parents[1]),
        *(Claim("open", text) for text in (no_matrix(suite, records) if compared else ())),
        *(Claim("open", text) for text in verdict.reasons(suite, records)),
        *verdict.verdicts(suite, records, beside),
    ]
    notes = [state, *warnings, *(claim.text for claim in claimed)]
    width = terminal_width()
    printed = ["\n".join(wrapped(note, width) for note in notes), wrapped(source, width)]
    marked = ["\n".join(f"- {markdown(note)}" for note in notes) + "\n", f"{markdown(source)}\n"]
    apart = differing_seeds(suite, records)
    for table in tables:
        stem = own_file_name(f"{suite.name}_{table.name}", used, table.numbers)
        text, part = _write_table(table, stem, " ".join([*apart, source]), files, width)
        printed.append(text)
        marked.append(part)
        if table.curves:
            caption = " ".join([curves_note(suite, table.curves.differences), provenance(suite, records), *apart])
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
            if images.labels.ndim == 1:
                caption += " Above each image: its class and, in colour, a wrong prediction."
            drawn = picture(selected_grid(images, heading, caption), "png")
            files.write(f"{stem}.png", drawn)
            shown.append(Picture(f"{stem}.png", heading, caption, drawn))
            marked.append(f"![{markdown(heading)}]({stem}.png)\n")
    if pictures:
        printed.append(f"The first selected images: {folder / file_name(f'{suite.name}_selected')}_*.png")
    first = first_selections(suite, records, store)
    section = Section(suite, records, state, source, tables, compared, claimed, warnings, shown, first)
    return "\n\n".join(printed), "\n".join(marked), section


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
    compared, width = comparisons(suites), terminal_width()
    sections: list[Section] = []
    printed, marked = [f"Report of run {name}"], [f"# Report of run {markdown(name)}"]
    if sources.notes:
        printed.append("\n".join(wrapped(note, width) for note in sources.notes))
        marked.append("\n".join(f"- {markdown(note)}" for note in sources.notes))
    for suite, records in suites:
        origin = sources.suite_notes.get(suite.name, [])
        if suite.skipped:
            text = f"Not run: {suite.skipped}"
            part, section = markdown(text), Section(suite, records, text)
        elif not records:
            notes = [f"No results yet: {progress(suite, records)}.", *origin, *left_out(suite, records, store)]
            text = "\n".join(wrapped(note, width) for note in notes)
            part = "\n".join(f"- {markdown(note)}" for note in notes)
            section = Section(suite, records, notes[0], warnings=notes[1:])
        else:
            of_suite = [comparison for comparison in compared if comparison.suite == suite.name]
            source_suite = sources.selected_by.get(suite.name)
            text, part, section = _write_suite(suite, records, of_suite, store, files, origin, source_suite)
        sections.append(section)
        printed.append(f"{suite.title}\n{'=' * len(suite.title)}\n{text}")
        marked.append(f"## {markdown(suite.title)}\n\n{part}")
    terms = readings(sections)
    over: tuple[Table, list[str]] | None = None
    if found := over_suites([suite for suite, _ in suites], compared):
        text, part, table = _write_over_suites(found, files)
        terms = {**terms, **table.reading}
        over = table, [claim.text for claim in claims_over_suites(found)]
        printed.append(f"Over suites\n===========\n{text}")
        marked.append(f"## Over suites\n\n{part}")
    if terms:
        lines = [f"{term}: {meaning}" for term, meaning in terms.items()]
        seen = {term for section in sections for table in section.tables if table.printed for term in table.reading}
        seen |= {*over[0].reading} if over else set()
        shown = [wrapped(f"{term}: {meaning}", width) for term, meaning in in_text(terms).items() if term in seen]
        printed.append("\n".join(["How to read", "===========", *shown]))
        marked.append("\n".join(["## How to read\n", *(f"- {markdown(line)}" for line in lines)]))
    every = [(suite, [*records, *full_records(suite, store)]) for suite, records in suites]
    files.write("records.csv", csv(record_table(every)).encode())
    files.write("report.html", page(name, sections, sources.notes, over, terms).encode())
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

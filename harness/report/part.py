"""What a report says of one suite, and all its files.

A report is made in two steps, because the p-values of a suite's comparisons are adjusted for those of all others: first
each suite is looked at (``look``), then its part is written (``write``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.lazy import importing
from harness.report import index, verdict
from harness.report.captions import (
    curves_note,
    differing_seeds,
    left_out,
    mixtures,
    progress,
    provenance,
    record_warnings,
    timing_note,
    uncommitted,
)
from harness.report.cautions import cautions
from harness.report.claims import claims, not_compared
from harness.report.comparisons import Claim, Comparison, alone, reference_of
from harness.report.contents import Table, suite_tables
from harness.report.costs import cost_claims
from harness.report.curves import full_data_notes, full_records
from harness.report.files import Files, write_table
from harness.report.formats import csv, file_name, markdown, named, own_file_name, terminal_width, wrapped
from harness.report.html import Picture, Section, describe, first_selections, without_numbers
from harness.report.record_table import Columns, record_table, sorted_records
from harness.report.sources import Sources
from harness.report.transfer import transfer
from harness.report.wins import no_matrix
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord
from harness.results.source import SourceSuite
from harness.results.store import RunStore

if TYPE_CHECKING:
    from harness.results.pictures import SelectedImages


class Look(NamedTuple):
    """What the parts of other suites need of a suite."""

    suite: SuiteEntry
    """With its rows as methods."""
    compared: list[Comparison]
    """See comparisons.alone."""
    columns: Columns


@dataclass(frozen=True)
class Part:
    """What a report says of one suite."""

    title: str
    text: str
    """What is printed."""
    markdown: str
    described: dict[str, Any]
    """See html.describe."""
    tables: list[Table]
    """Without their numbers."""
    csv: str
    """Its lines of records.csv, the heading first."""


def look(suite: SuiteEntry, records: Sequence[CycleRecord], store: RunStore) -> Look:
    """Return what the parts of other suites need of a suite."""
    every = sorted_records([(suite, [*records, *full_records(suite, store)])])
    return Look(suite, alone(suite, records), Columns.of(every))


def write(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    columns: Columns,
    sources: Sources,
    files: Files,
) -> Part:
    """Write the files of a suite; return its part. ``compared``: of this suite; ``sources``: with this suite."""
    origin, store = sources.suite_notes.get(suite.name, []), sources.store
    if suite.skipped:
        text = f"Not run: {suite.skipped}"
        part, section = markdown(text), Section(suite, records, text)
    elif not records:
        notes = [f"No results yet: {progress(suite, records)}.", *origin, *left_out(suite, records, store)]
        text = "\n".join(wrapped(note, terminal_width()) for note in notes)
        part = "\n".join(f"- {markdown(note)}" for note in notes)
        section = Section(suite, records, notes[0], warnings=notes[1:])
    else:
        source_suite = sources.selected_by.get(suite.name)
        text, part, section = _with_records(suite, records, compared, store, files, origin, source_suite)
    lines = csv(record_table([(suite, [*records, *full_records(suite, store)])], columns))
    return Part(suite.title, text, part, describe(section), [*map(without_numbers, section.tables)], lines)


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


def _with_records(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    store: RunStore,
    files: Files,
    origin: Sequence[str] = (),
    source_suite: SourceSuite | None = None,
) -> tuple[str, str, Section]:
    """Write the files of a suite that has records; return (printed text, its part of report.md, of report.html)."""
    with importing():
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
        *uncommitted([*records, *full]),
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
        text, part = write_table(table, stem, " ".join([*apart, source]), files, width)
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
                "predictions of the network at that time; 'not' precedes a wrong one."
            )
            if images.labels.ndim == 1:
                caption += " Above each image: its class and, in colour, a wrong prediction."
            drawn = picture(selected_grid(images, heading, caption), "png")
            files.write(f"{stem}.png", drawn)
            shown.append(Picture(f"{stem}.png", heading, caption, drawn))
            marked.append(f"![{markdown(heading)}]({stem}.png)\n")
    if pictures:
        place = f"{folder / file_name(f'{suite.name}_selected')}_*.png"
        printed.append(named("The first selected images", place, terminal_width()))
    first = first_selections(suite, records, store)
    section = Section(suite, records, state, source, tables, compared, claimed, warnings, shown, first)
    return "\n\n".join(printed), "\n".join(marked), section

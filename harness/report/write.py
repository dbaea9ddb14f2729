"""Writes the report of a run, finished or not: tables, learning curves and pictures of the first selected images.

Stored records become a table with a row per trial and cycle (``frame``), then long tables with a row per cell (mean,
std, n), then text. CSV files hold the long tables, in the units of the printed tables. What it says of one suite is in
harness.report.part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from harness.report import part, processes
from harness.report.captions import in_text
from harness.report.comparisons import Claim, Comparison, together
from harness.report.contents import Table, explained
from harness.report.files import Files, write_table
from harness.report.formats import csv, markdown, named, own_file_name, terminal_width, wrapped
from harness.report.html import page
from harness.report.over_suites import NAME, OverSuites, claims_over_suites, over_suites, over_suites_table
from harness.report.part import Look, Part
from harness.report.record_table import Columns, record_table
from harness.report.sources import Sources, one
from harness.results.layout import check_places
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.progress import elapsed
from harness.results.records import CycleRecord


class Suites(Protocol):
    """The suites of a report, which this process holds, or others."""

    def look(self) -> list[Look]:
        """Return what the parts of other suites need of each suite."""

    def write(self, compared: Sequence[Comparison], columns: Columns, files: Files) -> list[Part]:
        """Write the files of all suites; return their parts. ``compared``: of all suites."""


class _Here:
    """The suites of a report that this process holds."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def look(self) -> list[Look]:
        return [part.look(suite, records, self.sources.store) for suite, records in self.sources.suites]

    def write(self, compared: Sequence[Comparison], columns: Columns, files: Files) -> list[Part]:
        return [
            part.write(suite, records, [c for c in compared if c.suite == suite.name], columns, self.sources, files)
            for suite, records in self.sources.suites
        ]


def _write_over_suites(found: Sequence[OverSuites], files: Files) -> tuple[str, str, Table]:
    """Write the files of the comparisons over suites; return (printed text, the part of report.md, the table)."""
    width, notes = terminal_width(), [claim.text for claim in claims_over_suites(found)]
    caption, numbers, shown = over_suites_table(found)
    table = explained(NAME, "over suites", caption, numbers, shown)
    text, part = write_table(table, own_file_name(NAME, files.used, table.numbers), "", files, width)
    lines = "\n".join(wrapped(note, width) for note in notes)
    return f"{lines}\n\n{text}", "\n".join(f"- {markdown(note)}" for note in notes) + f"\n\n{part}", table


def read(run_dir: Path) -> tuple[str, list[tuple[SuiteEntry, list[CycleRecord]]]]:
    """Return the run's name and, for each suite, its finished records: see harness.report.sources."""
    found = one(run_dir)
    return found.name, found.suites


def write(run_dir: Path, show: Callable[[str], object] | None = None) -> str:
    """Write RUN_DIR/report/ from the finished cycles; return the text to print.

    ``show`` gets the text too, also if its files can't be written. Raises UserError like ``read``, and StorageError.
    """
    index_folder, folder = run_dir / "index", run_dir / "report"
    manifest = Manifest.read(run_dir).readable()
    number = processes.number_of_processes(manifest)
    if number == 1:
        return write_sources(one(run_dir, index_folder), folder, show, elapsed(run_dir))
    check_places(run_dir, stores_only=True)
    with processes.started(manifest, run_dir, index_folder, folder, number) as suites:
        return _written(manifest.name, [], suites, folder, show, elapsed(run_dir))


def write_sources(
    sources: Sources, folder: Path, show: Callable[[str], object] | None = None, seconds: float | None = None
) -> str:
    """Write a report into a folder; return the text to print. ``seconds``: of the run, if known. See ``write``."""
    return _written(sources.name, sources.notes, _Here(sources), folder, show, seconds)


def _written(
    name: str,
    notes: Sequence[str],
    suites: Suites,
    folder: Path,
    show: Callable[[str], object] | None,
    seconds: float | None,
) -> str:
    """Write a report with these notes about it as a whole; return the text to print. ``seconds``: of the run."""
    files, width, looks = Files(folder), terminal_width(), suites.look()
    entries = [look.suite for look in looks]
    compared = together(entries, [comparison for look in looks for comparison in look.compared])
    columns = Columns.together([look.columns for look in looks])
    parts = suites.write(compared, columns, files)
    printed, marked = [f"Report of run {name}"], [f"# Report of run {markdown(name)}"]
    if notes:
        printed.append("\n".join(wrapped(note, width) for note in notes))
        marked.append("\n".join(f"- {markdown(note)}" for note in notes))
    for each in parts:
        printed.append(f"{each.title}\n{'=' * len(each.title)}\n{each.text}")
        marked.append(f"## {markdown(each.title)}\n\n{each.markdown}")
    tables = [table for each in parts for table in each.tables]
    over: tuple[Table, list[Claim]] | None = None
    if found := over_suites(entries, compared):
        text, marks, table = _write_over_suites(found, files)
        tables.append(table)
        over = table, claims_over_suites(found)
        printed.append(f"Over suites\n===========\n{text}")
        marked.append(f"## Over suites\n\n{marks}")
    terms = {term: meaning for table in tables for term, meaning in table.reading.items()}
    if terms:
        lines = [f"{term}: {meaning}" for term, meaning in terms.items()]
        seen = {term for table in tables if table.printed for term in table.reading}
        shown = [wrapped(f"{term}: {meaning}", width) for term, meaning in in_text(terms).items() if term in seen]
        printed.append("\n".join(["How to read", "===========", *shown]))
        marked.append("\n".join(["## How to read\n", *(f"- {markdown(line)}" for line in lines)]))
    rows = "".join(each.csv.partition("\n")[2] for each in parts)
    files.write("records.csv", (csv(record_table([], columns)) + rows).encode())
    files.write("report.html", page(name, [each.described for each in parts], notes, over, terms, seconds).encode())
    files.write("report.md", ("\n\n".join(marked) + "\n").encode())
    if files.refused is None:
        printed.append(named("The same as a page", str(files.folder / "report.html"), width))
        printed.append(named("All tables and pictures", str(files.folder / "report.md"), width))
    text = "\n\n".join(printed)
    if show is not None:
        show(text)
    if files.refused is not None:
        raise files.refused
    return text

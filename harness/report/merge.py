"""Merges the records of several runs into one report, such as the seeds of a suite that several machines have run.

Suites of one name are merged if everything that decides results is equal; else they stay apart. A trial that two runs
hold counts once if both agree in every common cycle. Runs are only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError, readable
from harness.report.merging import BOTH, Member, MergedStore, Merging, Origin, Run
from harness.report.rows import kept_apart
from harness.report.sources import Reading, Sources, one, replayed, with_matrices
from harness.results.manifest import Manifest, SuiteEntry, changes
from harness.results.store import RunStore


def sources(run_dirs: Sequence[Path], index_folder: Path | None = None) -> Sources:
    """Return what the report of one or several runs is made of; ``index_folder``: see Reading.

    Raises UserError for a folder that holds no run, and for one that is given twice.
    """
    if len(run_dirs) == 1:
        return one(run_dirs[0], index_folder)
    runs = _runs(run_dirs)
    store, reading = MergedStore(run_dirs[0]), Reading(index_folder)
    groups: list[list[Member]] = []
    for run in runs:
        for suite in run.manifest.suites:
            group = next((g for g in groups if all(_mergeable(member, Member(run, suite)) for member in g)), None)
            groups.append([Member(run, suite)]) if group is None else group.append(Member(run, suite))
    names = [group[0].suite.name for group in groups]
    found, suite_notes, selected_by = [], {}, {}
    origins = {run.label: Origin() for run in runs}
    for group in groups:
        merging = Merging(group, store, reading, origins)
        suite, notes = merging.suite(), merging.notes
        if names.count(suite.name) > 1:
            where = ", ".join(member.run.label for member in group)
            others = [g[0] for g in groups if g is not group and g[0].suite.name == suite.name]
            notes.append(f"{_differing(group[0], others)}: their results are kept apart.")
            suite = suite.model_copy(update={"name": f"{suite.name} ({where})", "title": f"{suite.title} ({where})"})
        suite_notes[suite.name] = notes
        if merging.selected_by:
            selected_by[suite.name] = merging.selected_by
        found.append(kept_apart(suite, with_matrices(merging.records(), store)))
    reading.end()
    notes = [origins[run.label].text(run) for run in runs]
    name = ", ".join(dict.fromkeys(run.manifest.name for run in runs))
    return Sources(name, found, store, notes, suite_notes, selected_by)


def _runs(run_dirs: Sequence[Path]) -> list[Run]:
    resolved: dict[Path, Path] = {}
    for folder in run_dirs:
        if (same := resolved.setdefault(folder.resolve(), folder)) is not folder:
            raise UserError(f"{folder}: is the same folder as {same}: name each run once")
    names = [folder.resolve().name for folder in run_dirs]
    labels = [readable(n if names.count(n) == 1 else str(f)) for n, f in zip(names, run_dirs, strict=True)]
    return [
        Run(folder, label, Manifest.read(folder).readable(), RunStore(folder), *replayed(folder))
        for folder, label in zip(run_dirs, labels, strict=True)
    ]


def _mergeable(a: Member, b: Member) -> bool:
    """Return whether two suites are one: equal in all that decides results, apart from methods, seeds and cycles."""
    return a.suite.name == b.suite.name and not _reasons(a, b)


def _reasons(first: Member, second: Member) -> list[str]:
    """Return what keeps two suites of one name apart."""
    a, b = first.suite, second.suite
    versions = first.run.manifest.schema_version, second.run.manifest.schema_version
    if versions[0] != versions[1]:
        return [f"schema_version is {versions[0]} and {versions[1]}"]  # their defaults may differ
    found = changes(_deciding(a), _deciding(b), BOTH)
    shorter = min(len(a.labelled), len(b.labelled))
    if not found and a.labelled[:shorter] != b.labelled[:shorter]:
        found.append("the numbers of labelled images differ")
    return found


def _deciding(suite: SuiteEntry) -> dict[str, Any]:
    return {"dataset": {"name": suite.dataset}, "model": {"name": suite.model}} | suite.settings


def _differing(member: Member, others: Iterable[Member]) -> str:
    name, parts = member.suite.name, []
    for other in others:
        reasons = readable("; ".join(_reasons(member, other)))
        parts.append(f"{member.run.label} and {other.run.label} differ in suite {name} ({reasons})")
    return "; ".join(parts)

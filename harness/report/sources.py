"""The records that a report is made of: those of one run, or of several (see harness.report.merge)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import UserError
from harness.report import index
from harness.report.quality import at_last_budget
from harness.report.rows import kept_apart
from harness.results.layout import check_places
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.records import CycleRecord
from harness.results.source import Source, SourceSuite
from harness.results.store import RunStore


@dataclass(frozen=True)
class Sources:
    """What a report is made of."""

    name: str
    """Of the run, or of the runs."""
    suites: list[tuple[SuiteEntry, list[CycleRecord]]]
    """The finished records of each suite, with the methods' names from run.json and the trials' current ids."""
    store: RunStore
    """Where the files of the trials are, by these ids."""
    notes: list[str] = field(default_factory=list)
    """Sentences about the report as a whole."""
    suite_notes: dict[str, list[str]] = field(default_factory=dict)
    """Name of a suite -> sentences about where its records are from."""
    selected_by: dict[str, SourceSuite] = field(default_factory=dict)
    """Name of a suite that replays another run -> the curves of that run."""


LEFT_OUT: list[dict[str, dict[str, int]]] = [{}]
"""The confusion of a record whose matrix is not kept: those of 1000 classes would fill the memory."""


class Reading:
    """Reads records, with LEFT_OUT for their matrices; ``folder``: of the index; None: without one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.used: set[str] = set()
        """The names of the index files that were read."""

    def records(self, store: RunStore, suite: SuiteEntry) -> list[CycleRecord]:
        """Return the finished records of a suite, with the methods' names and the ids of its entry."""
        if self.folder is None or len(suite.trials) * len(suite.labelled) < index.FEWEST:
            return [
                _shown(record, entry.method, trial)
                for trial, entry in suite.trials.items()
                for record in store.trial(trial).records()[: len(suite.labelled)]
            ]
        known = index.Index(self.folder, store.folder, suite.name)
        records: list[CycleRecord] = []
        with without_collector():
            for trial, entry in suite.trials.items():
                found = known.records(store.trial(trial), trial, entry.method)[: len(suite.labelled)]
                records += [_shown(record, entry.method, trial) for record in found]
        known.save()
        self.used.add(known.path.name)
        return records

    def end(self) -> None:
        """Remove what the index holds of suites that were not read."""
        if self.folder is not None:
            index.sweep(self.folder, self.used)


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's collector from looking through all records again and again while they are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _shown(record: CycleRecord, method: str, trial: str) -> CycleRecord:
    """Return a record with the current name and id, without its matrix."""
    if (record.method, record.trial) == (method, trial) and not record.confusion:
        return record
    return replace(record, method=method, trial=trial, confusion=LEFT_OUT if record.confusion else [])


def with_matrices(records: Sequence[CycleRecord], store: RunStore) -> list[CycleRecord]:
    """Return the records of a suite with the matrices that its tables need, which are read again."""
    needed = {(r.trial, r.cycle) for r in at_last_budget(records)}
    if not needed:
        return [*records]
    found = []
    for r in records:
        whole = store.trial(r.trial).record(r.cycle) if (r.trial, r.cycle) in needed else None
        found.append(replace(r, confusion=whole.confusion) if whole else r)
    return found


def replayed(run_dir: Path) -> tuple[dict[str, SourceSuite], list[str]]:
    """Return the suites of the run that a run replays, by name, and a sentence if they can't be read."""
    try:
        found = Source.read(run_dir)
    except UserError as error:
        return {}, [f"{error}."]
    return (found.suites if found else {}), []


def one(run_dir: Path, index_folder: Path | None = None) -> Sources:
    """Return what the report of a run is made of; ``index_folder``: see Reading.

    A method whose records must not be averaged has several names: see harness.report.rows. Raises UserError if RUN_DIR
    has no valid run.json.
    """
    manifest, reading = Manifest.read(run_dir).readable(), Reading(index_folder)
    check_places(run_dir, stores_only=True)
    found = of_manifest(manifest, run_dir, reading)
    reading.end()
    return found


def of_manifest(manifest: Manifest, run_dir: Path, reading: Reading) -> Sources:
    """Return what the report of a run with this manifest is made of: see ``one``."""
    store = RunStore(run_dir)
    suites = [kept_apart(suite, with_matrices(reading.records(store, suite), store)) for suite in manifest.suites]
    if any(len(records) >= index.FEWEST for _, records in suites):
        gc.freeze()  # Python's collector would look through all of them again and again
    selected_by, damaged = replayed(run_dir)
    return Sources(manifest.name, suites, store, [], {suite.name: damaged for suite, _ in suites}, selected_by)

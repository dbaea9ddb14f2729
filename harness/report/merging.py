"""Merges one suite of several runs, trial by trial: see harness.report.merge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import readable
from harness.report.captions import counted, distinct
from harness.report.sources import Reading
from harness.results.manifest import Manifest, SuiteEntry, TrialEntry, changes
from harness.results.records import UNKNOWN, CycleRecord
from harness.results.source import SourceSuite
from harness.results.store import RunStore, TrialStore


@dataclass(frozen=True)
class Run:
    """A run that is merged with others."""

    folder: Path
    label: str
    """How the report names it: its folder, or the path where folders have one name."""
    manifest: Manifest
    store: RunStore
    selected_by: dict[str, SourceSuite] = field(default_factory=dict)
    """See Sources."""
    damaged: list[str] = field(default_factory=list)
    """A sentence if that can't be read."""


BOTH = "is {} and {}"
"""The words for two values of a key."""


class Member(NamedTuple):
    """A suite as one of the runs has it."""

    run: Run
    suite: SuiteEntry


class MergedStore(RunStore):
    """The folders of the trials of several runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self.homes: dict[str, tuple[Run, str]] = {}
        """Id in the report -> (run, id there)."""
        self.uses: Counter[str] = Counter()
        """Id in the report -> number of suites that show it."""

    def trial(self, trial: str) -> TrialStore:
        """Return the store of a trial, in the folder of its run."""
        run, own = self.homes[trial]
        return run.store.trial(own)

    def add(self, run: Run, trial: str) -> str:
        """Return the id in the report of a run's trial: its own one, with the run's label if another run's has it."""
        name = trial
        while name in self.homes and self.homes[name] != (run, trial):
            name = f"{name} ({run.label})"
        self.homes[name] = run, trial
        self.uses[name] += 1
        return name

    def drop(self, name: str) -> None:
        """Forget a trial that a suite does not show any more."""
        self.uses[name] -= 1
        if not self.uses[name]:
            del self.homes[name]


class Origin:
    """Where a run's records are from."""

    def __init__(self) -> None:
        self.records = self.cycles = 0
        self.found: dict[str, set[str]] = {"device": set(), "precision": set(), "torch": set(), "commit": set()}

    def add(self, suite: SuiteEntry, records: Sequence[CycleRecord]) -> None:
        """Add the records of a suite of the run."""
        self.records += len(records)
        self.cycles += 0 if suite.skipped else len(suite.trials) * len(suite.labelled)
        for r in records:
            values = {"device": r.device, "precision": r.precision, "torch": r.versions.get("torch", UNKNOWN)}
            for name, value in (values | {"commit": r.commit}).items():
                self.found[name].add(value)

    def text(self, run: Run) -> str:
        """Return the run's origin as a sentence."""
        facts = [f"{name} {distinct(values)}" for name, values in self.found.items() if values]
        return readable(
            f"{run.label}: run {run.manifest.name} in {run.folder}, {self.records} of {counted(self.cycles, 'cycle')} "
            f"finished; {', '.join(facts) or 'no results yet'}."
        )


class Merging:
    """Merges a suite of several runs, run by run."""

    def __init__(self, group: list[Member], store: MergedStore, reading: Reading, origins: dict[str, Origin]) -> None:
        self.group, self.store = group, store
        self.notes: list[str] = []
        self.selected_by: SourceSuite | None = None
        """Whose selections the suite replays, with the names that methods have in the report."""
        self.methods: dict[str, str] = {}
        """Settings of a method's halves -> its name in the report."""
        self.halves: dict[str, dict[str, Any]] = {}
        self.trials: dict[str, TrialEntry] = {}
        self.found: dict[str, list[CycleRecord]] = {}
        """Id of a trial in the report -> its records."""
        self.homes: dict[str, list[tuple[Run, str]]] = {}
        """Id of a trial in its run -> the runs that it is shown of, with its id in the report."""
        self.full: dict[int, tuple[Run, str]] = {}
        """Seed -> the trial on all training images, and the run that it is shown of."""
        held = []
        for run, suite in group:
            records = reading.records(run.store, suite)
            origins[run.label].add(suite, records)
            if records:
                held.append(run.label)
            self._add(run, suite, records)
            self._add_full(run, suite)
        if len(held) > 1:
            self.notes.append(
                f"The records are from {', '.join(held)}: their machines and loads may differ, so compare times within "
                "one of them only."
            )

    def records(self) -> list[CycleRecord]:
        """Return the records of all trials."""
        return [r for found in self.found.values() for r in found]

    def suite(self) -> SuiteEntry:
        """Return the merged suite."""
        members = [member for member in self.group if not member.suite.skipped] or self.group
        suites = [member.suite for member in members]
        # a run of a part of a suite, by --only, may lack one of the methods of the primary comparison
        first = next((member for member in members if member.suite.primary), members[0])
        primaries = {tuple(suite.primary) for suite in suites if suite.primary}
        if len(primaries) > 1 or len({suite.equal_within for suite in suites}) > 1:
            self.notes.append(f"WARNING: the runs differ in primary or equal_within: those of {first.run.label} count.")
        return suites[0].model_copy(
            update={
                "primary": first.suite.primary,
                "equal_within": first.suite.equal_within,
                "pool": next((suite.pool for suite in suites if suite.pool is not None), None),
                "official_data": all(suite.official_data for suite in suites),
                "methods": [*self.halves] or suites[0].methods,
                "halves": self.halves,
                "seeds": sorted({seed for suite in suites for seed in suite.seeds}),
                "labelled": max((suite.labelled for suite in suites), key=len),
                "exclusive": all(suite.exclusive for suite in suites),
                "data_notes": [*dict.fromkeys(note for suite in suites for note in suite.data_notes)],
                "trials": self.trials,
                "full_data": {self.store.add(run, trial): seed for seed, (run, trial) in self.full.items()},
                "code": {name: code for suite in reversed(suites) for name, code in suite.code.items()},
            }
        )

    def _add(self, run: Run, suite: SuiteEntry, records: list[CycleRecord]) -> None:
        by_trial: dict[str, list[CycleRecord]] = {}
        for r in records:
            by_trial.setdefault(r.trial, []).append(r)
        names = self._names(run, suite)
        twice = {t: self._compared(run, t, len(by_trial.get(t, []))) for t in suite.trials if t in self.homes}
        apart = {suite.trials[trial].method for trial, (kind, _) in twice.items() if kind == "apart"}
        for method in sorted(apart):
            names[method] = self._own(names[method], run, suite.halves.get(method, {}))
        self._add_source(run, suite, names)
        for trial, entry in suite.trials.items():
            kind, home = twice.get(trial, ("", None))
            if kind == "same" and entry.method not in apart:
                continue
            if kind == "longer" and home and entry.method not in apart:  # this run went on where that one ended
                self.homes[trial].remove(home)
                del self.found[home[1]], self.trials[home[1]]
                self.store.drop(home[1])
            found, method, name = by_trial.get(trial, []), names[entry.method], self.store.add(run, trial)
            self.homes.setdefault(trial, []).append((run, name))
            self.trials[name] = TrialEntry(method=method, seed=entry.seed)
            self.found[name] = [
                r if (r.method, r.trial) == (method, name) else replace(r, method=method, trial=name) for r in found
            ]

    def _add_source(self, run: Run, suite: SuiteEntry, names: dict[str, str]) -> None:
        """Add the curves of the run that a run replays."""
        self.notes += run.damaged
        if (found := run.selected_by.get(suite.name)) is None:
            return
        curves = {names.get(row, row): by_seed for row, by_seed in found.curves.items()}
        reference = names.get(found.reference, found.reference)
        own = found.model_copy(update={"curves": curves, "reference": reference})
        first = self.selected_by or own
        if (first.network, first.metric) != (own.network, own.metric):
            self.notes.append(
                f"The table of transfer leaves out {run.label}, whose images {own.network} has selected, not "
                f"{first.network}."
            )
            return
        merged = {row: {**curves.get(row, {}), **first.curves.get(row, {})} for row in {**first.curves, **curves}}
        self.selected_by = first.model_copy(update={"curves": merged})

    def _add_full(self, run: Run, suite: SuiteEntry) -> None:
        """Add the trials on all training images: for each seed that of the first run that has its result."""
        for trial, seed in suite.full_data.items():
            home, other = self.full.setdefault(seed, (run, trial))
            if home is run:
                continue
            earlier, later = home.store.trial(other).records()[:1], run.store.trial(trial).records()[:1]
            if not earlier:
                self.full[seed] = run, trial
            elif different := _difference(zip(earlier, later, strict=False)):
                self.notes.append(
                    f"WARNING: {home.folder} and {run.folder} hold different results of {trial}, which trains on all "
                    f"images ({different}): that of {home.label} is shown."
                )

    def _names(self, run: Run, suite: SuiteEntry) -> dict[str, str]:
        """Return method of the run -> its name in the report, which stands for one pair of halves."""
        names = {}
        for method in suite.methods:
            halves = suite.halves.get(method, {})
            key = json.dumps(halves, sort_keys=True) if halves else method
            if key not in self.methods:
                name = method
                if method in self.halves:
                    others = ", ".join(other.label for other, _ in self.group if other is not run)
                    name = self._own(method, run, halves)
                    differing = readable("; ".join(changes(self.halves[method], halves, BOTH)))
                    self.notes.append(
                        f"{method} stands for different settings in {others} and {run.label} ({differing}): that of "
                        f"{run.label} is {name}."
                    )
                self.methods[key] = name
                self.halves[name] = halves
            elif self.methods[key] != method:
                self.notes.append(f"{method} of {run.label} is the method {self.methods[key]} under another name.")
            names[method] = self.methods[key]
        return names

    def _own(self, method: str, run: Run, halves: dict[str, Any]) -> str:
        """Return a name for a method's row that only one run has."""
        name = f"{method} [{run.label}]"
        self.halves[name] = halves
        return name

    def _compared(self, run: Run, trial: str, cycles: int) -> tuple[str, tuple[Run, str] | None]:
        """Return how a trial that earlier runs hold, too, is shown: once (same), or twice (conditions or apart).

        'longer': once, with more cycles than in the run that is returned, with its id there. 'conditions': in rows that
        harness.report.rows keeps apart anyway.
        """
        kinds = []
        for home, name in self.homes[trial]:
            pairs = [*zip(home.store.trial(trial).records(), run.store.trial(trial).records(), strict=False)]
            if (different := _difference(pairs)) is None:
                return ("longer", (home, name)) if cycles > len(self.found[name]) else ("same", None)
            conditions = any(old.all_conditions() != new.all_conditions() for old, new in pairs)
            kinds.append("conditions" if conditions else "apart")
            self.notes.append(
                f"WARNING: {home.folder} and {run.folder} hold different results of {trial} under "
                f"{'different' if conditions else 'equal'} conditions ({different}): both are shown, in rows of their "
                "own."
            )
        return min(kinds), None  # apart, if any is


def _difference(pairs: Iterable[tuple[CycleRecord, CycleRecord]]) -> str | None:
    """Return in what two trials differ first, as TrialStore.commit compares them, or None."""
    for earlier, later in pairs:
        old, new = earlier.outcome(), later.outcome()
        if not old["selected"] or not new["selected"]:  # one of the two was a last cycle, which selects nothing
            old["selected"] = new["selected"] = []
        if keys := [key for key in new if old[key] != new[key]]:
            return f"cycle {earlier.cycle}: {', '.join(keys)}"
    return None

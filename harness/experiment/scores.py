"""How far the trials of a run are, and which method leads: for displays, while no claim can be made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from pydantic import BaseModel

from harness.results.manifest import Manifest
from harness.results.records import CycleRecord
from harness.results.store import RunStore


class Leader(BaseModel):
    """The method of a suite with the highest mean of a metric at one number of labelled images."""

    suite: str
    method: str
    metric: str
    mean: float
    labelled: int
    seeds: int
    """Seeds of the mean: those with a finished cycle of so many labelled images."""
    methods: int
    """Methods that have such a cycle."""


class Scores:
    """The finished cycles of a run's trials, of which the manifest says which suite, method and seed they are."""

    def __init__(self, manifest: Manifest) -> None:
        self.suites = {suite.name: suite for suite in manifest.suites}
        self.cycles: dict[str, int] = {}
        """Trial -> number of its cycles, the highest of its suites."""
        for suite in manifest.suites:
            for trial, (_, cycles) in suite.every_trial().items():
                self.cycles[trial] = max(cycles, self.cycles.get(trial, 0))
        self.found: dict[str, dict[int, tuple[int, dict[str, float]]]] = defaultdict(dict)
        """Trial -> cycle -> (labelled images, metrics)."""
        self._leaders: list[Leader] | None = None
        """What ``leaders`` returns until the next cycle: displays ask every second."""

    def add(self, trial: str, cycle: int, labelled: int, metrics: dict[str, float]) -> None:
        """Add a finished cycle; a trial that is in no suite has none that counts."""
        self.found[trial][cycle] = (labelled, metrics)
        self._leaders = None

    def read(self, store: RunStore, trials: Iterable[str]) -> None:
        """Add the stored cycles of trials. Raises StorageError."""
        for trial in trials:
            records: list[CycleRecord] = store.trial(trial).records()
            for record in records:
                self.add(trial, record.cycle, record.labelled, record.metrics)

    def finished(self) -> set[str]:
        """Return the trials with all of their cycles."""
        return {trial for trial, cycles in self.cycles.items() if len(self.found.get(trial, ())) >= cycles}

    def leaders(self) -> list[Leader]:
        """Return the leader of each suite with several methods.

        It leads at the highest number of labelled images that at least two methods have reached, with any seed.
        """
        if self._leaders is None:
            self._leaders = [leader for name in self.suites if (leader := self._leader(name)) is not None]
        return self._leaders

    def _leader(self, name: str) -> Leader | None:
        values: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for trial, entry in self.suites[name].trials.items():
            for labelled, metrics in self.found.get(trial, {}).values():
                for metric, value in metrics.items():
                    values[labelled, metric][entry.method].append(value)
        compared = [key for key, methods in values.items() if len(methods) > 1]
        if not compared:
            return None
        labelled, metric = max(compared)
        methods = values[labelled, metric]
        best = max(methods, key=lambda method: fmean(methods[method]))
        counts = {"seeds": len(methods[best]), "methods": len(methods)}
        return Leader(suite=name, method=best, metric=metric, mean=fmean(methods[best]), labelled=labelled, **counts)

"""The state of a run as Ray's metrics, which Prometheus scrapes: docs/grafana.json shows them.

The driver publishes them for all trials. Ray drops a value that nobody has set for 20 to 30 seconds, so those of
running trials are set again every few seconds, however long their cycles take, and those of ended trials go by
themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from harness.experiment.beat import BEAT
from harness.experiment.grid import Unit
from harness.on_ray.beats import Watch
from harness.results.records import METRICS

STATES = ("waiting", "running", "finished", "failed")


class Metrics:
    """Publishes the trials of a run, from their events; a Listener. ``step`` is called all the time.

    ``earlier``: state -> number of trials that have ended before Ray was started, and are not among the units.
    """

    def __init__(self, units: list[Unit], folder: Path, earlier: Mapping[str, int]) -> None:
        self.units, self.earlier = units, earlier
        self.watch = Watch(folder / "ray" / "beats")
        self.states = {id(unit): "waiting" for unit in units if not unit.shared}
        self.cycles: dict[int, dict[str, Any]] = {}
        """Running trial -> the values of its last cycle."""
        self.gauges: dict[str, Gauge] = {}
        self.published = 0.0

    def __call__(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        """Take an event; a shared first cycle is one of the trials that reuse it."""
        if unit.shared:
            return
        if event in ("start", "retry"):
            self.states[id(unit)] = "running"
        elif event == "cycle":
            self.cycles[id(unit)] = values
        elif event in ("failed", "dead"):
            self.states[id(unit)] = "failed"
        elif event == "end" and self.states[id(unit)] != "failed":
            self.states[id(unit)] = "finished"
        if self.states[id(unit)] != "running":
            self.cycles.pop(id(unit), None)

    def step(self) -> None:
        """Publish every few seconds."""
        if time.monotonic() - self.published < BEAT:
            return
        self.published = time.monotonic()
        counts = Counter(self.states.values()) + Counter(self.earlier)
        for state in STATES:
            self._set("trials", counts[state], state=state)
        silent = {found.unit: found.seconds for found in self.watch.stalled(-1.0)}
        for number, unit in enumerate(self.units):
            if self.states.get(id(unit)) == "running":
                own = {"suite": unit.suite, "method": unit.method, "seed": str(unit.trial.seed), "trial": unit.trial.id}
                if number in silent:
                    self._set("seconds_without_progress", silent[number], **own)
                self._publish(self.cycles.get(id(unit), {}), own)

    def _publish(self, values: dict[str, Any], own: dict[str, str]) -> None:
        for name in (*METRICS, "labelled", "cycle"):
            if name in values:
                self._set(name, values[name], **own)
        for phase, seconds in values.get("seconds", {}).items():
            self._set("phase_seconds", seconds, **own, phase=phase)
        for kind, count in values.get("memory", {}).items():
            self._set("peak_memory_bytes", count, **own, kind=kind)

    def _set(self, name: str, value: float, **tags: str) -> None:
        if name not in self.gauges:
            self.gauges[name] = Gauge(f"al_{name}", tag_keys=tuple(tags))
        self.gauges[name].set(value, tags=tags)

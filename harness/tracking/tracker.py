"""What a tracker is, and what it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.results.manifest import Manifest
    from harness.results.records import CycleRecord


@dataclass(frozen=True)
class Trial:
    """A trial, as trackers name it."""

    id: str
    suite: str
    method: str
    seed: int
    cycles: int
    """Number of its cycles, finished or not."""
    config: dict[str, Any]
    """The settings that decide its results and differ from the defaults, with keys such as ``recipe.epochs``."""

    @property
    def name(self) -> str:
        """The name that users see: suite, method and seed."""
        return f"{self.suite} / {self.method} / seed {self.seed}"


class Tracker(Protocol):
    """Sends cycles to one tracker. Any method may raise anything: it is called again later."""

    def __init__(self, project: str, folder: Path) -> None:
        """``project`` is the name of the run; ``folder`` takes the files, unless an environment variable says where."""

    def begin(self, trial: Trial, key: str) -> str:
        """Start a trial, or continue the one that ``key`` stands for; return its key, which is not empty."""

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Send the values of a finished cycle; ``step`` is its number of labelled images."""

    def end(self, key: str, finished: bool) -> None:
        """End a trial that has begun; ``finished``: whether all of its cycles are."""


def trials(manifest: Manifest) -> dict[str, Trial]:
    """Return the trials of a run by id; a trial of two suites is that of the first."""
    found: dict[str, Trial] = {}
    for suite in manifest.suites:
        for trial, (entry, cycles) in suite.every_trial().items():
            settings = {**suite.settings, **suite.halves.get(entry.method, {})}
            if trial in suite.full_data:
                settings["protocol"] = {"initial": suite.pool, "cycles": 1}
            config = {"method": entry.method, "seed": entry.seed, **dict(_flat(settings))}
            found.setdefault(trial, Trial(trial, suite.name, entry.method, entry.seed, cycles, config))
    return found


def _flat(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def values(record: CycleRecord) -> dict[str, float]:
    """Return what trackers are sent of a cycle: metrics in percent, seconds, and peak memory in GiB."""
    return {
        **{f"{name}_percent": 100 * value for name, value in record.metrics.items()},
        "labelled": record.labelled,
        "cycle": record.cycle,
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        "seconds/cost": record.cost_seconds,
        "seconds/wall": record.wall_seconds,
        **{f"memory_gib/{kind}": count / 2**30 for kind, count in record.peak_memory_bytes.items()},
        **({} if record.final_loss is None else {"final_loss": record.final_loss}),
    }

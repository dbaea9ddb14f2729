"""Measures the seconds of each phase of a cycle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.lazy import torch
from harness.results.progress import Progress
from harness.results.records import PHASES

NOTED = 0.2
"""Seconds between two estimates of how long all steps take; a method may have tens of thousands of short ones."""


class Clock:
    """Seconds by phase. Phases may be nested: the time of an inner phase does not count for the outer one.

    A clock with a ``progress`` notes there which phase and step runs.
    """

    def __init__(self, device: torch.device, progress: Progress | None = None) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.progress = progress or Progress()
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Add the time since the last call to the innermost open phase, once all work on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a phase, one of ``harness.results.records.PHASES``."""
        assert name in self.seconds, f"{name!r} is not a phase"
        self._switch()
        self._open.append(name)
        self.progress.phase = name
        try:
            yield
        finally:
            self._switch()
            self._open.pop()
            self.progress.phase = self._open[-1] if self._open else ""

    def go_on(self, seconds: dict[str, float]) -> None:
        """Go on with the seconds by phase that an earlier process has measured, instead of those of this one."""
        self._switch()
        self.seconds.update(seconds)

    def steps(self, count: int, begin: int = 0, timed: bool = True) -> Iterator[int]:
        """Yield begin..count-1, the epochs or iterations of a training, and note the current one for displays.

        ``timed``: also how long all of them take.
        """
        progress, first, noted = self.progress, dict[str, float](), 0.0
        try:
            for number in range(begin, count):
                progress.step, progress.steps, done = number, count, number - begin
                if timed and done == 1:
                    first = self._so_far()
                elif timed and done > 1 and time.perf_counter() - noted > NOTED:
                    noted = time.perf_counter()
                    progress.expected = {**progress.expected, **_expected(first, self._so_far(), done, count)}
                yield number
            if timed and count - begin > 1:
                progress.expected = {**progress.expected, **_expected(first, self._so_far(), count - begin, count)}
        finally:  # a training may stop early
            progress.step = progress.steps = 0

    def _so_far(self) -> dict[str, float]:
        """Return the seconds by phase, with those of the open phase, without waiting for the device."""
        seconds = dict(self.seconds)
        if self._open:
            seconds[self._open[-1]] += time.perf_counter() - self._since
        return seconds


def _expected(first: dict[str, float], now: dict[str, float], done: int, count: int) -> dict[str, float]:
    """Return the seconds of all steps by phase, from those between the end of the first step and now."""
    return {
        phase: round((seconds - first[phase]) / (done - 1) * count, 3)
        for phase, seconds in now.items()
        if seconds > first[phase]
    }

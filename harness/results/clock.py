"""Measures the seconds of each phase of a cycle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.lazy import torch
from harness.results.records import PHASES


class Clock:
    """Seconds by phase. Phases may be nested: the time of an inner phase does not count for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
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
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

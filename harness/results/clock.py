"""Where the seconds of a cycle go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.results.records import PHASES


class Clock:
    """Seconds by phase. Phases may be nested: the inner one's time is not the outer one's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Book the time since the last switch on the phase that is open, after all device work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time of a ``with`` block on a phase of ``harness.records.PHASES``."""
        assert name in self.seconds, f"{name!r} is not a phase"
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

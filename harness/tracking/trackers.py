"""The trackers of a run, seen from its process, which passes events on and waits for no tracker before the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import died
from harness.tracking import FLUSH, LATE

if TYPE_CHECKING:
    from harness.experiment.grid import Unit

SLOW = 60.0
"""Seconds after which a tracker that has not taken a cycle is named."""


class _Process:
    """The process of one tracker."""

    def __init__(self, name: str, folder: Path, say: Callable[[str], None]) -> None:
        self.name, self.folder, self.say = name, folder, say
        self.said = False
        self.asked: float | None = None
        """When the first event was written that the tracker has not answered."""
        self.log = folder / "track" / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.log.parent.mkdir(exist_ok=True)
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "harness.tracking", str(folder), name, "--follow"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run alone
                )
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
        except OSError as error:
            self.warn(f"it could not be started: {error.strerror}")

    def warn(self, why: str) -> None:
        """Say once that the tracker fails, and what helps."""
        if not self.said:
            self.said = True
            self.say(f"where.track: {self.name} lacks cycles ({why}); the run goes on, and sends them again later")

    def tell(self, event: str, trial: str) -> None:
        """Write an event; if the pipe is full, the tracker has others to read, and then looks at all records."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with suppress(OSError):
            os.write(self.process.stdin.fileno(), f"{event} {trial}\n".encode())
            self.asked = self.asked or time.monotonic()
        self.look()
        if self.asked and time.monotonic() - self.asked > SLOW:
            self.warn(f"no answer for {SLOW:.0f} s")

    def look(self) -> None:
        """Read what the process has answered."""
        assert self.process is not None and self.process.stdout is not None
        with suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), 2**16):
                for line in data.decode(errors="replace").splitlines():
                    self.asked = None
                    if line:
                        self.warn(line)
        if code := self.process.poll():
            self.warn(f"its process ended with {died(code)}; see {self.log}")

    def end(self, deadline: float) -> None:
        """Let the tracker take what it still lacks, until a time."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)  # with what a tracker's library has started
            self.process.wait()
            self.warn(LATE)
        self.look()
        if self.said and self.process.returncode:
            self.say(f"where.track: `python -m harness.tracking {self.folder} {self.name}` sends what it lacks")


class Trackers:
    """Tells the trackers of a run its events; a Listener. They start with ``start``, and end with the block."""

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        self.names, self.folder = names, folder
        self.processes: list[_Process] = []

    def start(self, say: Callable[[str], None]) -> None:
        """Start the trackers; run.json is there. ``say`` shows a line."""
        self.processes = [_Process(name, self.folder, say) for name in self.names]

    def __call__(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        """Pass an event on; a shared first cycle is a cycle of each of the trials that take it over."""
        if event in ("cycle", "failed", "end") and not unit.shared:
            for process in self.processes:
                process.tell(event, unit.trial.id)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.process is not None and process.process.stdin is not None:
                process.process.stdin.close()
        deadline = time.monotonic() + FLUSH + 1.0
        for process in self.processes:
            process.end(deadline)

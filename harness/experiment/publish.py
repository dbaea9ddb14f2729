"""Lets the clock of a display tick, and publishes what it shows in a file of the run, for ``python -m harness.status``.

The file progress.json is written by the process that shows the run, and only while that holds the results folder. It
also says how long the run took; no result depends on it, and a disk that refuses it ends nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from harness.errors import StorageError, UserError
from harness.experiment.beat import in_debugger
from harness.experiment.display import Display
from harness.experiment.view import State
from harness.results import disk, lock, progress

TICK = 1.0
"""Seconds between two looks of a live view at its clock."""
PUBLISHED = 5.0
"""Seconds between two writes of the file."""

Outcome = Literal["running", "finished", "failed", "interrupted"]


class Published(BaseModel):
    """The content of progress.json."""

    token: str
    """That of the lock under which the run writes: it tells this run from an earlier one in the folder."""
    written: float
    """When, in seconds since 1970."""
    outcome: Outcome
    folder: str
    """The current folder of the command."""
    command: list[str]
    """The arguments of the command, or [] if it is not known."""
    state: State
    earlier: float = 0.0
    """Seconds that earlier starts of the run have taken."""


def read(folder: Path) -> Published | None:
    """Return what the last run in a folder has published, or None if there is nothing that can be read."""
    try:
        return Published.model_validate_json(disk.read(folder / progress.OF_RUN))
    except (OSError, ValueError):
        return None


def stalled(folder: Path, unit: str) -> None:
    """Say that a unit of a run makes no progress, in the place of its process, which can't."""
    if published := read(folder):
        state = published.state.later(time.time() - published.written).model_copy(update={"stalled": unit})
        with suppress(OSError):
            _write(folder / progress.OF_RUN, published.model_copy(update={"state": state, "written": time.time()}))


def _write(path: Path, values: Published) -> None:
    temporary = disk.temporary(path)
    try:
        temporary.write_bytes(values.model_dump_json().encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Ticker:
    """Refreshes a display every second, and publishes its state, until ``end``, also while the report is written."""

    def __init__(self, display: Display, folder: Path, command: Sequence[str] = ()) -> None:
        self.display, self.folder, self.command = display, folder, list(command)
        held = lock.held_here()
        self.token = held.token if held else ""
        self.earlier = 0.0
        if last := read(folder):  # maybe of a process of this very start, which began with it
            self.earlier = last.earlier + (last.state.elapsed if last.written < display.began else 0.0)
        self.ended = threading.Event()
        self.outcome: Outcome = "running"
        self.publish(self.outcome)
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def _tick(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(TICK):
            with self.display.lock:  # whoever forks holds it meanwhile
                if self.ended.is_set():
                    return
                with suppress(Exception):  # a display ends no run
                    if not in_debugger(threading.main_thread().ident or 0):  # which has the terminal
                        self.display.refresh()
                if time.monotonic() - last >= PUBLISHED:
                    last = time.monotonic()
                    self.publish(self.outcome)

    def publish(self, outcome: Outcome) -> None:
        """Write the file, as far as possible, now and from now on with this outcome."""
        self.outcome = outcome
        path = self.folder / progress.OF_RUN
        with suppress(OSError, StorageError, UserError, lock.LockLost), self.display.lock:
            lock.check(path)
            values = Published(
                token=self.token,
                written=time.time(),
                outcome=outcome,
                folder=os.getcwd(),  # noqa: PTH109 - one that was removed is no error of a path
                command=self.command,
                state=self.display.state(),
                earlier=self.earlier,
            )
            _write(path, values)

    def end(self, outcome: Outcome) -> None:
        """Publish how the run has ended, and let nothing tick any more."""
        self.ended.set()
        self.thread.join(TICK)
        self.publish(outcome)

"""Heartbeats: each process that runs a unit shows in a small file that it makes progress.

They go through files of the results folder, because Ray itself may be what hangs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.experiment import beat

if TYPE_CHECKING:
    from harness.experiment.grid import Unit

PROGRESS = "ray/progress"
"""Folder of the files in which units show phase and epoch, in the results folder: see harness.results.progress."""


@contextmanager
def beating(path: Path, node: str | None) -> Iterator[None]:
    """Write ``path`` as long as this thread makes progress in this block.

    A scoring worker, for which its trial waits, gives no ``node``: the file goes on naming the process of the trial.
    """
    ended = threading.Event()
    if node is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"node": node, "pid": os.getpid()}))

    def renew() -> None:
        with suppress(OSError):  # a run that can't write ends by itself
            os.utime(path)

    beat.beating(renew, ended)
    try:
        yield
    finally:
        ended.set()


def progress_name(unit: Unit) -> str:
    """Return the name of the file in which a unit shows its progress."""
    return f"shared.{unit.trial.sharing_key}" if unit.shared else f"trial.{unit.trial.id}"


class Stalled(NamedTuple):
    """A unit without progress."""

    unit: int
    """Its number in the list of units."""
    node: str
    pid: int
    seconds: float


class Watch:
    """Looks at the heartbeats of all units. Only changes count: clocks of hosts and file systems differ."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, tuple[int, float]] = {}
        """Name of a file -> its time when it last changed, and ours."""

    def clear(self) -> None:
        """Remove all heartbeats: of units that have ended, or of an earlier run."""
        self.seen.clear()
        for path in self._files():
            with suppress(OSError):
                path.unlink()

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except OSError:  # there is none yet, or a file system that fails, which ends the run elsewhere
            return []

    def end(self, unit: int) -> None:
        """Remove the heartbeat of a unit that has ended, or whose process has."""
        self.seen.pop(str(unit), None)
        with suppress(OSError):
            (self.folder / str(unit)).unlink(missing_ok=True)

    def silent(self, unit: int) -> float | None:
        """Return the seconds since the last heartbeat of a unit that ``stalled`` has seen, or None."""
        seen = self.seen.get(str(unit))
        return time.monotonic() - seen[1] if seen else None

    def stalled(self, longer_than: float) -> list[Stalled]:
        """Return the units without progress for more than so many seconds."""
        now, found = time.monotonic(), []
        for path in self._files():
            with suppress(OSError, ValueError, TypeError, RecursionError):  # e.g. half-written
                written = path.stat().st_mtime_ns
                before, since = self.seen.get(path.name, (0, now))
                if written != before:
                    since = now
                self.seen[path.name] = (written, since)
                if now - since > longer_than:
                    found.append(Stalled(int(path.name), **json.loads(path.read_text()), seconds=now - since))
        return found

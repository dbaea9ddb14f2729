"""Heartbeats: each process that runs a unit shows in a small file that it makes progress.

They go through files of the results folder, because Ray itself may be what hangs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from harness.experiment.grid import Unit

BEAT = 5.0
"""Seconds between two looks at a process, or at the files."""
PROGRESS = "ray/progress"
"""Folder of the files in which units show phase and epoch, in the results folder: see harness.results.progress."""
BUSY = 0.05
"""Share of one core above which a process counts as busy; Ray's own threads stay below it."""


@contextmanager
def beating(path: Path, node: str | None) -> Iterator[None]:
    """Write ``path`` as long as this thread makes progress in this block.

    It makes progress if it has moved to another place in the code, or if the process is busy: a thread that waits for a
    lock, or for a file system that does not answer, does neither, and a stopped process writes nothing at all. A
    scoring worker, for which its trial waits, gives no ``node``: the file goes on naming the process of the trial.
    """
    ended = threading.Event()
    if node is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"node": node, "pid": os.getpid()}))
    threading.Thread(target=_beat, args=(path, threading.get_ident(), ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _beat(path: Path, thread: int, ended: threading.Event) -> None:
    place, used = None, 0.0
    while not ended.wait(BEAT):
        now = _place(sys._current_frames().get(thread))
        busy = time.process_time() - used > BUSY * BEAT
        if now != place or busy:
            with suppress(OSError):  # a run that can't write ends by itself
                os.utime(path)
        place, used = now, time.process_time()


def _place(frame: FrameType | None) -> list[tuple[int, int]]:
    """Return where a thread is: the code and the instruction of each of its frames."""
    place = []
    while frame is not None:
        place.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return place


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
            with suppress(OSError, ValueError, TypeError):  # e.g. half-written
                written = path.stat().st_mtime_ns
                before, since = self.seen.get(path.name, (0, now))
                if written != before:
                    since = now
                self.seen[path.name] = (written, since)
                if now - since > longer_than:
                    found.append(Stalled(int(path.name), **json.loads(path.read_text()), seconds=now - since))
        return found

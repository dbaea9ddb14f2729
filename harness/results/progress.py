"""What the trial of this process does right now: a value that its clock keeps current, and a file with it.

The file is for the process that shows the run. It is small, written at most once a second, and no result depends on it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from harness.results import disk

OF_RUN = "progress.json"
"""What the whole run showed last."""
OF_RUN_BYTES = 2**26  # more is none
SHOWN = 1.0
"""Seconds between two looks at the value, which is written if it has changed."""
LINE = 512  # bytes of the file, so that a shorter value covers a longer one


@dataclass
class Progress:
    """What a trial does: its cycle, phase and step: an epoch, an iteration of a method or a scored batch."""

    cycle: int = 0
    phase: str = ""
    step: int = 0
    """Finished steps of this phase."""
    steps: int = 0
    """Number of steps of this phase, or 0 if it has none."""
    expected: dict[str, float] = field(default_factory=dict)
    """Phase -> seconds that all its steps of this cycle take, if they take as long as those since the first one, which
    a start-up slows down."""

    def begin(self, cycle: int) -> None:
        """Begin a cycle."""
        self.cycle, self.phase, self.step, self.steps, self.expected = cycle, "setup", 0, 0, {}


here = Progress()
"""The progress of the trial that this process runs."""


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Write the progress of this process to a file as it changes in this block, and remove the file at its end."""
    ended = threading.Event()
    thread = threading.Thread(target=_write, args=(path, ended), daemon=True)
    here.begin(0)
    with suppress(OSError):  # once: a folder that is moved away stays away
        path.parent.mkdir(parents=True, exist_ok=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SHOWN)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _write(path: Path, ended: threading.Event) -> None:
    last = b""
    while True:
        line = json.dumps(asdict(here)).encode().ljust(LINE - 1) + b"\n"
        if line != last:
            with suppress(OSError):  # a run that can't write ends by itself
                # in one call and in place: a reader sees the old line or the new one, also on NFS
                file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
                try:
                    os.write(file, line)
                finally:
                    os.close(file)
                last = line
        if ended.wait(SHOWN):
            return


def read(path: Path) -> Progress | None:
    """Return what a file says, or None if there is none, or nothing that can be read."""
    try:
        values: Any = json.loads(path.read_bytes().partition(b"\n")[0])
        found = Progress(**values)
        checked = (found.cycle, found.step, found.steps)
        if not all(isinstance(value, int) for value in checked) or not isinstance(found.phase, str):
            return None
        found.expected = {str(phase): float(seconds) for phase, seconds in found.expected.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found


def elapsed(folder: Path) -> float | None:
    """Return the seconds that the run in a folder has taken in all its starts, as it said last; None: not known."""
    try:
        values: Any = json.loads(disk.read(folder / OF_RUN, OF_RUN_BYTES))
        seconds = float(values["earlier"]) + float(values["state"]["elapsed"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return seconds if 0 <= seconds < inf else None


def clear(folder: Path) -> None:
    """Remove all files of progress in a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink()

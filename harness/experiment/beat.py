"""Whether a thread makes progress."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

BEAT = 5.0
"""Seconds between two looks at a process."""
LEAST = 2 * BEAT
"""The shortest time without progress, in seconds, after which a process counts as stalled."""
BUSY = 0.05
"""Share of one core above which a process counts as busy; Ray's own threads stay below it."""


def beating(beat: Callable[[], None], ended: threading.Event) -> None:
    """Start a thread that calls ``beat`` as long as the calling thread makes progress, until ``ended``.

    It makes progress if it has moved to another place in the code, or if the process is busy: a thread that waits for a
    lock, or for a file system that does not answer, does neither, and a stopped process calls nothing at all.
    """
    threading.Thread(target=_look, args=(beat, threading.get_ident(), ended), daemon=True).start()


def _look(beat: Callable[[], None], thread: int, ended: threading.Event) -> None:
    place, used = None, 0.0
    while not ended.wait(BEAT):
        now = _place(sys._current_frames().get(thread))
        busy = time.process_time() - used > BUSY * BEAT
        if now != place or busy or in_debugger(thread):
            beat()
        place, used = now, time.process_time()


def in_debugger(thread: int) -> bool:
    """Return whether a thread is in pdb, whose user thinks."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_globals.get("__name__") != "pdb":
        frame = frame.f_back
    return frame is not None


def _place(frame: FrameType | None) -> list[tuple[int, int]]:
    """Return where a thread is: the code and the instruction of each of its frames."""
    place = []
    while frame is not None:
        place.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return place

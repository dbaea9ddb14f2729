"""Processes that are forks of this one: they leave its signals to it, and end with it."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from multiprocessing import parent_process
from typing import Any

LEFT = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that only the process that started the fork heeds."""
ENDING = (*LEFT, signal.SIGTERM)
"""Signals with which schedulers and terminals end a run: all in the same way."""


def start(process: Any) -> None:
    """Start a process of multiprocessing. Raises OSError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads: none of ours hold locks
        process.start()


def begin() -> None:
    """Prepare the fork, in it: SIGTERM raises SystemExit, so that it cleans up; it dies as soon as its parent has."""
    for number in LEFT:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def leave(number: int, frame: Any) -> None:
    """Handle a signal: raise SystemExit, once."""
    signal.signal(number, signal.SIG_IGN)  # what cleans up is not interrupted
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)

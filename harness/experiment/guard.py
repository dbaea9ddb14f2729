"""Runs a grid without Ray in a child of the command: whatever ends the child, the command has the last word.

A crash of a library or a full memory ends a process at once, and a deadlock never does. So the command only watches: it
ends a child that hangs, and starts another one, which goes on as --resume does. It forks before anything is computed,
because neither threads nor GPUs outlive a fork.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from harness import forked
from harness.experiment import beat, crash
from harness.experiment.display import duration
from harness.results import lock

if TYPE_CHECKING:
    from harness.experiment.grid import Unit
    from harness.settings import Where

HEEDED = (*forked.LEFT, signal.SIGTERM)
"""Signals that the command passes on to its child."""
PATIENCE = 5.0
"""Seconds that a child has to obey Ctrl-C, before another one kills it."""
ENDING = 15.0
"""Seconds that a killed child has to end: one that waits for a file system may never do."""
LOOK = 0.1
"""Seconds between two looks at a child."""
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Here:
    """What this process has to do with the command, if it is its child."""

    def __init__(self) -> None:
        self.pipe: Connection | None = None
        self.lock = threading.Lock()
        self.given_up: dict[str, str] = {}
        """Log of a unit -> why the unit is not tried again."""

    def tell(self, *told: str) -> None:
        """Tell the command that this process makes progress, and with which unit (name, log), if that changes."""
        if self.pipe is not None:
            with self.lock, suppress(OSError):  # it dies with the command
                self.pipe.send(told)


here = Here()


@contextmanager
def running(unit: Unit, folder: Path) -> Iterator[str | None]:
    """Tell the command that a unit runs in this block; yield why it must not, or None."""
    log = str(crash.log_of(unit, folder))
    here.tell(unit.name, log)
    try:
        yield here.given_up.get(log)
    finally:
        here.tell("", "")


def guarded(work: Callable[[bool], int], where: Where, lost: Callable[[RuntimeError], None]) -> int:
    """Return the exit code of ``work``, which a child does; it gets whether an earlier child has begun it.

    In the child it returns, too. A unit whose process dies or stalls is tried again, ``where.retries`` times, and then
    fails. If a child dies while no unit runs, none follows, and ``lost`` gets the reason.
    """
    if sys.platform != "linux":  # elsewhere libraries may not survive a fork
        return work(False)
    deaths, given_up = Counter[str](), dict[str, str]()
    while True:
        child = _Child(where.stalled_after)
        if child.is_here:
            here.given_up = given_up
            return work(bool(deaths))
        code = child.watch()
        if code is not None:
            return code
        if child.code is None or not child.log:
            why = f"{child.why('')} " + ("and can't be ended" if child.code is None else "while no trial ran")
            print(f"stopped: {why}; add --resume to continue", file=sys.stderr)
            lost(RuntimeError(why))
            return 1
        deaths[child.log] += 1
        if deaths[child.log] > where.retries:
            given_up[child.log] = child.why(f" more often than where.retries ({where.retries}) allows")
        else:
            child.say(f"{child.why('')}; it goes on from its last checkpoint or finished cycle")


class _Child:
    """A child of the command, seen from both. ``limit``: seconds without progress after which it is ended."""

    def __init__(self, limit: float) -> None:
        self.limit, self.stalled = limit, False
        self.unit = self.log = ""
        self.asked: int | None = None
        """The first signal that it was passed on, at the time ``since``."""
        self.since = 0.0
        self.code: int | None = None
        self.pipe, its = Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        command = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # until each process knows what to do with them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads: none of ours hold locks
            self.pid = os.fork()
        self.is_here = not self.pid
        if self.is_here:
            self.pipe.close()
            ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != command:  # it has died before
                os._exit(1)
            here.pipe, lock.command = its, command
            beat.beating(here.tell, threading.Event())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        else:
            its.close()

    def watch(self) -> int | None:
        """Return its exit code, or None if it died or stalled."""
        before = {number: signal.getsignal(number) for number in HEEDED}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as nohup wants
                signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        try:
            self._wait()
        finally:
            self.pipe.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.code is not None and self.code >= 0:
            return self.code
        if sys.stdout.isatty():
            print("\x1b[?25h")  # its live view had hidden the cursor
        return 128 + self.asked if self.asked else None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.since = self.asked or number, self.since or time.monotonic()
        impatient = number == signal.SIGINT and time.monotonic() - self.since > PATIENCE
        self._send(signal.SIGKILL if impatient else number)

    def _send(self, number: int) -> None:
        if not self._ended():  # else another process may have its number
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _wait(self) -> None:
        """Wait for its end, and end it if a unit makes no progress. Time in which both are stopped does not count."""
        silent, looked, shown = 0.0, time.monotonic(), False
        while not self._ended():
            told = self._told(LOOK)
            now = time.monotonic()
            silent = 0.0 if told or not self.log else silent + min(now - looked, 10 * LOOK)
            looked, shown = now, shown and silent > 0
            if silent > self.limit:
                self.stalled = True
                self._send(signal.SIGABRT)  # its log then says where it was, unless it is stopped
                self._await(1.0)
                self._send(signal.SIGKILL)
                self._await(ENDING)
                return
            if silent > self.limit / 2 and not shown:
                shown = True
                self.say(
                    f"STALLED, without progress for {duration(silent)}; its process is ended after "
                    f"{duration(self.limit)}"
                )
        while self._told(0.0):  # what it has told last
            pass

    def _told(self, seconds: float) -> bool:
        """Heed what it tells within some seconds; return whether it told anything."""
        try:
            if not self.pipe.poll(seconds):
                return False
            told = self.pipe.recv()
        except (EOFError, OSError):  # it ends
            time.sleep(seconds)
            return False
        if told:
            self.unit, self.log = told
        return True

    def _ended(self) -> bool:
        with suppress(ChildProcessError):  # a signal's handler has just asked, or interrupts this
            if self.code is None:
                found, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code is not None

    def _await(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(LOOK)

    def say(self, line: str) -> None:
        """Print a line on its unit, like the others of a run."""
        print(f"{time.strftime('%H:%M:%S')} {self.unit}: {line}", flush=True)

    def why(self, often: str) -> str:
        """Return why it ended, with the user's own code at which it was and the log that says more."""
        log = Path(self.log)
        if self.stalled:
            ended = "" if self.code is None else ", and its process was ended"
            return f"it stalled for {self.limit:g} s{ended}{often}{crash.at(log)}"
        name = signal.Signals(-(self.code or 0)).name
        more = ", as by a full memory" if name == "SIGKILL" else ""
        return f"its process died of {name}{more}{often}{crash.at(log)}"

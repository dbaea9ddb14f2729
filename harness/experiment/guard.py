"""Runs a grid without Ray in a child of the command: whatever ends the child, the command has the last word.

A crash of a library or a full memory ends a process at once, and a deadlock never does. So the command only watches: it
ends a child whose trial hangs, and starts another one, which goes on as --resume does. It forks before plug-ins are
imported and anything is computed, because neither threads nor GPUs outlive a fork.
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
from harness.errors import Stopped, died, reason
from harness.experiment import beat, crash, publish
from harness.experiment.display import duration
from harness.results import lock

if TYPE_CHECKING:
    from harness.experiment.grid import Unit
    from harness.settings import Where

PATIENCE = 5.0
"""Seconds that a child has to obey Ctrl-C, before another one kills it; other signals leave it LONGER."""
LONGER = 60.0
ENDING = 15.0
"""Seconds that a killed child has to end: one that waits for a file system may never do."""
LOOK = 0.1
"""Seconds between two looks at a child."""
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Link:
    """The link of a child to its command. In all other processes it leads nowhere."""

    def __init__(self) -> None:
        self.pipe: Connection | None = None
        self.lock = threading.Lock()
        self.again = False
        """Whether this child goes on with what an earlier one has begun."""
        self.began: float | None = None
        """When the first child was started."""
        self.failed: dict[str, str] = {}
        """Log of a unit -> why it has failed in an earlier child, which is not tried again."""
        self.shown: set[str] = set()
        """Those of them whose failure an earlier child has shown."""

    def tell(self, *told: str) -> None:
        """Tell the command something: without any words, that this process makes progress."""
        if self.pipe is not None:
            with self.lock, suppress(OSError):  # it dies with the command
                self.pipe.send(told)


link = Link()


@contextmanager
def running(unit: Unit, folder: Path) -> Iterator[str | None]:
    """Tell the command that a unit runs in this block; yield why it has failed in an earlier child, or None."""
    log = str(crash.log_of(unit, folder))
    link.tell("unit", unit.name, log)
    try:
        yield link.failed.get(log)
    finally:
        link.tell("unit", "", "")


def failed(unit: Unit, folder: Path, why: str) -> bool:
    """Tell the command that a unit has failed; return whether an earlier child has shown it."""
    log = str(crash.log_of(unit, folder))
    link.tell("failed", log, why)
    return log in link.shown


def guarded(work: Callable[[], int], where: Where, lost: Callable[[BaseException], None]) -> int:
    """Return the exit code of ``work``, which a child does. In the child it returns, too.

    A unit whose process dies or stalls is tried again, ``where.retries`` times, and then fails. If a child dies while
    no unit runs, none follows, and ``lost`` gets the reason. Raises Stopped if the child dies after a signal to the
    command.
    """
    if sys.platform != "linux":  # elsewhere libraries may not survive a fork
        return work()
    deaths, began = Counter[str](), time.time()
    failures, shown = dict[str, str](), set[str]()
    while True:
        try:
            child = _Child(max(where.stalled_after, beat.LEAST), failures, shown)
        except OSError as error:
            return _give_up(f"no process can be started ({reason(error)})", lost)
        if child.is_here:
            link.failed, link.shown, link.again, link.began = failures, shown, bool(deaths), began
            try:
                return work()
            finally:
                link.tell("over")
        code = child.watch()
        if child.over or (child.asked and code >= 0):
            return code
        if child.asked:
            stop = Stopped(child.asked)
            lost(stop)
            raise stop
        if child.code is None:  # nothing may look into its folder, which may be what hangs
            return _give_up(f"{child.unit}: stalled for {duration(child.limit)}, and its process can't be ended", lost)
        if not child.log:
            return _give_up(f"{child.why('')} while no trial ran", lost)
        crash.tidy(Path(child.log))
        deaths[child.log] += 1
        if deaths[child.log] > where.retries:
            failures[child.log] = child.why(f" more often than where.retries ({where.retries}) allows")
        else:
            child.say(f"{child.why('')}; it goes on from its last checkpoint or finished cycle")


def _give_up(why: str, lost: Callable[[BaseException], None]) -> int:
    print(f"stopped: {why}; add --resume to continue", file=sys.stderr, flush=True)
    notice = threading.Thread(target=lost, args=(RuntimeError(why),), daemon=True)
    notice.start()
    notice.join(2 * ENDING)  # it may look into a folder that hangs
    return 1


class _Child:
    """A child of the command, seen from both. ``limit``: seconds without progress after which it is ended.

    It adds to the ``failures`` of units, and to those that are ``shown``; see Link. Raises OSError.
    """

    def __init__(self, limit: float, failures: dict[str, str], shown: set[str]) -> None:
        self.limit, self.stalled, self.failures, self.shown = limit, False, failures, shown
        self.unit = self.log = ""
        self.over = False
        """Whether its work has come to its end, well or not."""
        self.asked: int | None = None
        """The first signal that was passed on, at the time ``since``."""
        self.since = 0.0
        self.code: int | None = None
        self.pipe, its = Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        command = os.getpid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it can't wait for a child
        signal.pthread_sigmask(signal.SIG_BLOCK, forked.ENDING)  # until each process knows what to do with them
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, such as OpenBLAS's
                self.pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, forked.ENDING)
            raise
        self.is_here = not self.pid
        if self.is_here:
            self.pipe.close()
            ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != command:  # it has died before
                os._exit(1)
            link.pipe, lock.command = its, command
            beat.beating(link.tell, threading.Event())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, forked.ENDING)
        else:
            its.close()

    def watch(self) -> int:
        """Return its exit code, negative if it died of a signal or can't be ended."""
        before = {number: signal.getsignal(number) for number in forked.ENDING}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as nohup wants
                signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forked.ENDING)
        try:
            self._wait()
        finally:
            self.pipe.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if not self.over and sys.stdout.isatty():
            print("\x1b[?25h")  # its live view had hidden the cursor
        return -1 if self.code is None else self.code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.since = self.asked or number, self.since or time.monotonic()
        impatient = time.monotonic() - self.since > (PATIENCE if number == signal.SIGINT else LONGER)
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
                folder = Path(self.log).parents[1]  # which may be what hangs
                threading.Thread(target=publish.stalled, args=(folder, self.unit), daemon=True).start()
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
        match told:
            case "unit", unit, log:
                self.unit, self.log = unit, log
            case "failed", log, why:
                self.failures[log] = why
                self.shown.add(log)
            case ("over",):
                self.over = True
        return True

    def _ended(self) -> bool:
        with suppress(ChildProcessError):  # a signal's handler has just asked, or interrupts this
            if self.code is None:
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if found:
                    self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def _await(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(LOOK)

    def say(self, line: str) -> None:
        """Print a line on its unit, like the others of a run."""
        start = "\r\x1b[K" if sys.stdout.isatty() else ""  # in the place of a line of its live view
        print(f"{start}{time.strftime('%H:%M:%S')} {self.unit}: {line}", flush=True)

    def why(self, often: str) -> str:
        """Return why it ended, with the user's own code at which it was and the log that says more."""
        if self.stalled:
            return f"it stalled for {self.limit:g} s, and its process was ended{often}{crash.at(Path(self.log))}"
        if self.code is not None and self.code >= 0:
            return f"its process ended with {died(self.code)}{often}"
        name = signal.Signals(-(self.code or 0)).name
        more = ", as by a full memory" + ("," if often else "") if name == "SIGKILL" else ""
        return f"its process died of {name}{more}{often}{crash.at(Path(self.log))}"

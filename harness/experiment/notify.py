"""Runs the command of ``where.notify`` once a run has ended, whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from harness.errors import Stopped, StorageError, readable, reason
from harness.experiment import publish
from harness.experiment.publish import Outcome
from harness.results import lock
from harness.results.lock import LockLost

LIMIT = 20.0
"""Seconds that the command and what it starts may take: schedulers kill a run about 30 s after they have asked it to
end."""
LOOK = 0.05
"""Seconds between two looks at what the command has left in the background."""
LONGEST = 1000  # characters of a message


def outcome(ending: int | BaseException) -> Outcome:
    """Return how a run ended, from its exit code or from what it raises."""
    if isinstance(ending, BaseException):
        return "interrupted" if isinstance(ending, KeyboardInterrupt | LockLost) else "failed"
    return "failed" if ending else "finished"


class Notice:
    """Runs the command of a run, once; ``name`` and ``folder`` are the run's."""

    def __init__(self, command: str | None, name: str, folder: Path) -> None:
        self.command, self.name, self.folder = command, name, folder

    def send(self, ending: int | BaseException) -> None:
        """Run the command, if there is one and it has not run; ``ending``: the exit code, or what ended the run."""
        command, self.command = self.command, None
        if command:
            ending = _cause(ending)
            _notify(command, self.folder, outcome(ending), _message(self.name, self.folder, ending))


def announced(notice: Notice, work: Callable[[], int]) -> int:
    """Return the exit code of a run's work, or raise what it raises, after its notice was sent."""
    try:
        code = work()
    except BaseException as error:
        notice.send(error)
        raise
    notice.send(code)
    return code


def _cause(ending: int | BaseException) -> int | BaseException:
    """Return what ended a run: another run that has taken the folder over interrupts it, too."""
    if isinstance(ending, KeyboardInterrupt) and (held := lock.held_here()):
        try:
            held.check()
        except LockLost as lost:
            return lost
        except StorageError:
            pass
    return ending


def _message(name: str, folder: Path, ending: int | BaseException) -> str:
    """Return the sentence about a run's end."""
    found = publish.read(folder)
    state = found.state if found is not None and found.outcome == outcome(ending) else None
    trials = f": {state.done} of {state.total} trials are finished" if state else ""
    if ending == 0:
        return f"{name} has finished{trials}; the report is in {folder / 'report'}"
    if isinstance(ending, KeyboardInterrupt):
        number = ending.number if isinstance(ending, Stopped) else signal.SIGINT
        return f"{name} was stopped by {signal.Signals(number).name}{trials}; --resume continues it"
    if isinstance(ending, LockLost):
        return f"{name} has stopped{trials}: {reason(ending)}"
    if isinstance(ending, BaseException):
        return f"{name} has failed{trials}: {reason(ending) if isinstance(ending, Exception) else repr(ending)}"
    failed = ""
    if state is not None and state.failed:
        trial, cause = next(iter(state.failed.items()))
        more = f" and {len(state.failed) - 1} more" if len(state.failed) > 1 else ""
        failed = f"; FAILED: {trial}{more}: {cause}"
    return f"{name} has failed{trials}{failed}"


def _notify(command: str, folder: Path, how: Outcome, message: str) -> None:
    """Run the command with the message; say in one sentence what is wrong with it. Raises nothing."""
    message = readable(message)[:LONGEST]
    values = {
        "HARNESS_RUN": str(folder.resolve()),
        "HARNESS_OUTCOME": how,
        "HARNESS_MESSAGE": message,
        "HARNESS_REPORT": str(folder.resolve() / "report"),
    }
    said: IO[bytes] | None = None
    try:
        with suppress(OSError):  # a full disk, for example, which may be what the message is about
            said = TemporaryFile()  # noqa: SIM115
        problem = _run(command, {**os.environ, **values}, message, said)
    except (OSError, ValueError) as error:
        problem = f"can't be started: {reason(error)}"
    except KeyboardInterrupt:
        problem = "was interrupted"
    if problem and said is not None:
        said.seek(0)
        words = said.read(2000).decode(errors="replace").strip().splitlines()
        problem += f" ({words[-1][:200]})" if words else ""
    if said is not None:
        said.close()
    if problem:
        print(readable(f"warning: where.notify: the command {problem}"), file=sys.stderr)


def _run(command: str, environment: dict[str, str], message: str, said: IO[bytes] | None) -> str:
    """Run the command; return what is wrong with it, or ''. Values go to it only by environment and stdin."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said or subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # so that all its processes can be ended
    )
    deadline = time.monotonic() + LIMIT
    try:
        assert process.stdin is not None
        with suppress(OSError):  # it need not read
            process.stdin.write(f"{message}\n".encode())  # it fits into the pipe: nothing waits
            process.stdin.close()
        code = process.wait(LIMIT)
        while code == 0 and _works(process.pid):  # mail, for example, delivers in the background
            if time.monotonic() > deadline:
                return f"has processes in the background that took longer than {LIMIT:.0f} s and were ended"
            time.sleep(LOOK)
    except subprocess.TimeoutExpired:
        return f"took longer than {LIMIT:.0f} s and was ended"
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"failed with exit code {code}" if code > 0 else f"died of signal {-code}" if code else ""


def _works(group: int) -> bool:
    """Return whether any process of a group runs; one that only waits to be collected, as in containers, does not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # all are of another user
        pass
    found = [*Path("/proc").glob("[0-9]*/stat")]  # none on macOS
    return not found or any(_runs(path, group) for path in found)


def _runs(path: Path, group: int) -> bool:
    try:
        state, _, of = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):  # it has just ended
        return False
    return int(of) == group and state not in ("Z", "X")

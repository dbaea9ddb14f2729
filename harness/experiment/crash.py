"""What is left of a process that a signal ends, such as one that a library crashes: the signal, and where it was."""

from __future__ import annotations

import faulthandler
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiment.display import TRACEBACK_IN
from harness.registry import ROOT, is_installed

if TYPE_CHECKING:
    from harness.experiment.grid import Unit

SIGNALS = {
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
    "Segmentation fault": "SIGSEGV",
}
"""Python's words for a signal -> its name."""
FATAL = "Fatal Python error: "
AGAIN = "\nIt was started again.\n"
"""Line of a log between the stack of a process that a signal ended, and what the next one writes."""
FRAME = re.compile(r'^  File "([^"]+)", line (\d+),? in ', re.MULTILINE)


def log_of(unit: Unit, folder: Path) -> Path:
    """Return where the full text of a unit's failure is, in the folder of the run."""
    return folder / "logs" / f"{unit.trial.sharing_key if unit.shared else unit.trial.id}.log"


@contextmanager
def noted(log: Path) -> Iterator[None]:
    """Let Python write its stack into a log if a signal ends this process; without any, no empty log stays.

    Stacks of processes before it stay: messages have named the log.
    """
    before = faulthandler.is_enabled()
    with ExitStack() as opened:
        with suppress(OSError):  # what must be written says why it can't be
            log.parent.mkdir(parents=True, exist_ok=True)
            died = log.exists() and log.read_bytes().startswith(FATAL.encode())
            file = opened.enter_context(log.open("ab" if died else "wb", buffering=0))
            file.write(AGAIN.encode() if died else b"")
            faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before and sys.__stderr__ is not None:  # Ray enables it
                with suppress(OSError, ValueError, RuntimeError):
                    faulthandler.enable(sys.__stderr__)
    tidy(log)


def tidy(log: Path) -> None:
    """Remove a log that holds nothing."""
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()


def place_in(trace: str, deepest_last: bool = False) -> str:
    """Return the deepest file and line of a user's own code in a trace, such as 'own.py:11', or ''."""
    frames = FRAME.findall(trace)
    for path, line in reversed(frames) if deepest_last else frames:
        file = Path(path)
        if file.is_absolute() and not is_installed(file) and not file.is_relative_to(ROOT / "harness"):
            return f"{file.name}:{line}"
    return ""


def at(log: Path) -> str:
    """Return where a process was when a signal ended it, and the log that says more, or '' if there is none."""
    if not signal_in(log):
        return ""
    with suppress(OSError, UnicodeDecodeError):
        place = place_in(_last(log))
        return f"{place and f', at {place}'}{TRACEBACK_IN}{log}"
    return ""


def signal_in(log: Path) -> str:
    """Return the name of the signal that a log of a process says has ended it, or ''."""
    with suppress(OSError, UnicodeDecodeError):
        first = _last(log).partition("\n")[0]
        return SIGNALS.get(first.removeprefix(FATAL).strip(), "")
    return ""


def _last(log: Path) -> str:
    """Return what the last process wrote into a log."""
    return log.read_text().rpartition(AGAIN)[2]

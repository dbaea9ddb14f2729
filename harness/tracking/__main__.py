"""Sends the finished cycles of a run to one tracker.

python -m harness.tracking FOLDER TRACKER sends those that it lacks, and ends. With --follow, which is how a run starts
it, it goes on while its standard input is open: each line there names an event of a trial.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import Parser, UserError, answered, in_utf8, readable
from harness.results.manifest import Manifest
from harness.results.store import RunStore, write_atomically
from harness.tracking import FLUSH, LATE, PACKAGES, check
from harness.tracking.tracker import Tracker, Trial, trials, values

AGAIN = 30.0
"""Seconds after which a tracker that failed is tried again."""


class Sender:
    """Sends what a tracker lacks, and remembers in track/NAME.json what it has: for each trial its key and cycles."""

    def __init__(self, folder: Path, name: str, tracker: Tracker, trials: dict[str, Trial]) -> None:
        self.store, self.tracker, self.trials = RunStore(folder), tracker, trials
        self.path = folder / "track" / f"{name}.json"
        self.states: dict[str, dict[str, Any]] = _read(self.path)
        self.open: set[str] = set()

    def send(self, id_: str, over: bool) -> None:
        """Send the cycles of a trial that the tracker lacks; ``over``: no more will come."""
        trial, state = self.trials[id_], self.states.get(id_, {"key": "", "cycles": 0, "ended": True})
        missing = self.store.trial(id_).records()[state["cycles"] :]
        complete = state["cycles"] + len(missing) >= trial.cycles
        if id_ not in self.open and (missing or (complete and not state["ended"])):
            state |= {"key": self.tracker.begin(trial, state["key"]), "ended": False}
            self.states[id_] = state
            self.open.add(id_)
            self._save()  # else a process that dies now begins the trial once more
        for record in missing:
            self.tracker.log(state["key"], record.labelled, values(record))
            state["cycles"] += 1
            self._save()
        if id_ in self.open and (over or complete):
            self.tracker.end(state["key"], complete)
            state["ended"] = complete
            self.open.discard(id_)
            self._save()

    def _save(self) -> None:
        write_atomically(self.path, json.dumps(self.states, indent=1).encode())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was sent, or nothing if the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
        return {
            str(id_): {"key": str(state["key"]), "cycles": int(state["cycles"]), "ended": bool(state["ended"])}
            for id_, state in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def follow(sender: Sender, looks: Iterator[list[tuple[str, str]]], say: Callable[[str], None]) -> bool:
    """Send all that is there, and what ``looks`` names, until it ends; return whether the tracker has it all.

    ``looks`` yields the (event, trial) pairs of each look at the input, [] if there were none for a while. ``say`` gets
    the first failure, and an empty line each time that all is sent.
    """
    left, over = set(sender.trials), set[str]()
    said, more = False, True
    while True:
        for id_ in sorted(left):
            try:
                sender.send(id_, over=id_ in over or not more)
                left.discard(id_)
            except Exception as error:  # a tracker may raise anything
                print(_closed(traceback.format_exc()), file=sys.stderr, flush=True)
                if not said:
                    said = True
                    say(_reason(error))
        if not left:
            say("")
        if not more:
            return not left
        events = next(looks, None)
        more = events is not None
        for event, id_ in events or ():
            left.add(id_)
            (over.add if event in ("failed", "end") else over.discard)(id_)
        if not more:  # an event may have been lost
            left.update(sender.trials)
        left &= sender.trials.keys()


def _reason(error: Exception) -> str:
    """Return why a tracker failed, in one line without passwords."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return readable(f"{type(error).__name__}{': ' if lines else ''}{_closed(' '.join(lines)):.200}")


def _closed(text: str) -> str:
    """Return a text without the user and the password in its addresses."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _looks() -> Iterator[list[tuple[str, str]]]:
    """Yield what comes by standard input, until it ends; [] after a wait."""
    rest = b""
    while True:
        if not select.select([0], [], [], AGAIN)[0]:
            yield []
            continue
        data = os.read(0, 2**16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield [(event, id_) for event, _, id_ in (line.decode(errors="replace").partition(" ") for line in whole)]


@contextmanager
def _alone(folder: Path, name: str, wait: bool) -> Iterator[None]:
    """Let no other process send this run's cycles to this tracker: both would. Raises UserError, unless it waits."""
    path = folder / "track" / f"{name}.lock"
    with ExitStack() as opened:
        with suppress(OSError):  # a file system may know no locks
            path.parent.mkdir(exist_ok=True)
            file = opened.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(f"{folder}: its cycles are being sent to {name}, as by its run; wait") from None
        yield


def _made(folder: Path, name: str) -> Sender:
    manifest = Manifest.read(folder)
    module = importlib.import_module(f"harness.tracking.{name}")
    return Sender(folder, name, module.Tracker(manifest.name, folder / "track"), trials(manifest))


def _follow(folder: Path, name: str) -> int:
    """Follow a run; write a line for the first failure, and an empty one for each time that all is sent."""
    os.nice(10)  # the trials come first
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs into the log

    def say(line: str) -> None:
        print(line, file=parent, flush=True)

    def limited() -> Iterator[list[tuple[str, str]]]:
        yield from _looks()
        threading.Thread(target=_end_late, args=(say,), daemon=True).start()

    try:
        sender = _made(folder, name)
    except Exception as error:
        print(_closed(traceback.format_exc()), file=sys.stderr, flush=True)
        say(_reason(error))
        return 1
    return int(not follow(sender, limited(), say))


def _end_late(say: Callable[[str], None]) -> None:
    time.sleep(FLUSH)
    say(LATE)
    os._exit(1)  # a tracker may wait for its server also when Python ends


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser(prog="python -m harness.tracking", description="Send the finished cycles of a run to a tracker.")
    parser.add_argument("folder", type=Path, help="results folder of a run")
    parser.add_argument("tracker", choices=sorted(PACKAGES), help="the tracker")
    parser.add_argument("--follow", action="store_true", help="go on while standard input is open, as runs do")
    options = parser.parse_args(arguments)
    if options.follow:
        with _alone(options.folder, options.tracker, wait=True):  # for that of a process of this run that died
            return _follow(options.folder, options.tracker)
    check([options.tracker])
    Manifest.read(options.folder)
    with _alone(options.folder, options.tracker, wait=False):
        return _send(options.folder, options.tracker)


def _send(folder: Path, name: str) -> int:
    """Send what a tracker lacks; return the exit code."""
    reasons: list[str] = []
    sender = _made(folder, name)
    done = follow(sender, iter(()), reasons.append)
    sent = sum(state["cycles"] for state in sender.states.values())
    print(f"{name} has {sent} cycles" if done else f"{name} failed: {next(filter(None, reasons))}")
    return int(not done)


if __name__ == "__main__":
    in_utf8()
    sys.exit(answered(main))

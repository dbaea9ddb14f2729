"""Checkpoints within a cycle: a process that died costs minutes of a cycle, and not the whole of it.

A cycle goes through stages (drawing an initial set, training, preparing a selection, scoring, ranking), and stages
through loops of steps, which may be nested. A loop names what its steps change, and is entered again at the step after
the last checkpoint, with everything as it was then. What lies outside of loops is computed again. What a finished stage
has found is kept as it is. Only preparing has objects of the method as its result: there, loops that have ended are
kept, and passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any, NoReturn, Protocol

from harness.errors import NotReproduced, StorageError, UserError, readable
from harness.lazy import torch
from harness.learning.snapshot import Restorer, Taker, Unlike, Unstorable, copied, holds, versions
from harness.results.clock import Clock
from harness.results.lock import LockLost
from harness.seeds import global_states, restore

FIRST, TRAIN, SELECT, SCORE, RANK = "initial set", "training", "selection", "scoring", "ranking"
STAGES = ("", FIRST, TRAIN, SELECT, SCORE, RANK)
"""The stages of a cycle, in order. Only a cycle 0 whose acquisition draws the initial set has the first."""
STILL = (FIRST, SCORE, RANK)
"""The stages that move no global random stream."""


def named(error: Exception) -> str:
    """Return an error in one line."""
    return readable(f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": "))[:200]


class File(Protocol):
    """Where checkpoints are kept, one at a time."""

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return (content, ''), or None and why what is there can't be used."""
        ...

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content."""
        ...

    def remove(self) -> None:
        """Remove the content."""
        ...


class Measured(Protocol):
    """What measures a cycle, and goes on with the measurement of a process that died."""

    clock: Clock
    device: torch.device

    def measured(self) -> dict[str, Any]:
        """Return what has been measured of the cycle so far."""
        ...

    def go_on(self, measured: dict[str, Any]) -> None:
        """Go on with an earlier measurement instead of that of this process."""
        ...


class Checkpoints:
    """The checkpoints of one cycle. Without a file, loops only count their steps."""

    def __init__(self, file: File | None = None, minutes: float = 0.0, cycle: Measured | None = None) -> None:
        self.warnings: list[str] = []
        """For the record of the cycle."""
        self.finished: dict[str, Any] = {}
        """What finished stages have found, by name."""
        self.open: list[Steps] = []
        """The loops that run, outermost first. A loop that is left by ``break`` closes with its generator."""
        self.inner = 0
        """The number of outermost loops so far in this stage."""
        self.ended: dict[int, Any] = {}
        """What the last outermost loop that has ended in SELECT has left, by its number."""
        self._once: dict[str, list[int]] = {}
        """Name -> how often each tensor of what ``once`` has returned here was written; a method may write into it."""
        self._file, self._cycle = file, cycle
        self._seconds = 60 * minutes if file and cycle and minutes else inf
        self._began = time.monotonic()
        self._next = self._began + self._seconds
        self._stage = ""
        self._earlier: dict[str, Any] | None = None
        """The checkpoint of a process that died, until its loops run; until then no other is written."""
        self._in_use = False
        """Whether some of its loops run, but not all of them yet."""
        self._measured: dict[str, Any] | None = None
        if file is not None and self._seconds < inf:
            earlier, problem = file.read()
            if problem:
                self.warnings.append(f"{problem}: it is not used, and the cycle starts again")
            if earlier is not None:
                self.finished, self.warnings = earlier["finished"], earlier["warnings"]
                self._measured, self.ended = earlier["measured"], earlier["ended"]
                self._earlier = earlier if earlier["loops"] else None

    # --------------------------------------------------------------------------------------------------------- stages

    def begin(self, stage: str) -> None:
        """Begin a stage."""
        if self._earlier is not None and STAGES.index(self._earlier["stage"]) < STAGES.index(stage):
            self._drop()  # its loops have not come up
        self.open.clear()
        self._stage, self.inner = stage, 0

    def finish(self, name: str, found: Any) -> None:
        """Keep what a stage has found, and store it if the cycle has taken long so far."""
        self.finished[name] = found
        self.open.clear()
        self._next = min(self._next, self._began + self._seconds)
        self._look()

    def take(self, name: str) -> Any:
        """Return what a process that died has found in a stage, or None; its seconds count from now on."""
        if name not in self.finished or self._cycle is None or self._measured is None:
            return None
        self._cycle.go_on(self._measured)
        return self.finished[name]

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what ``compute()`` returns, or has returned in a process that died: tensors, numbers and texts.

        Tensors of a process that died are on the CPU. Within a loop it is computed in any case.
        """
        if self.open or name in self._once or self._seconds == inf:
            return compute()
        kept = self.take(name)
        died = kept is not None
        if kept is None:
            found = compute()
            kept = self.finished[name] = {"found": found, "loops": self.inner}
        self._once[name] = versions(kept)
        if not died:
            self._look()
        self.inner = kept["loops"]  # later loops have the same numbers in both cases
        return kept["found"]

    def remove(self) -> None:
        """Remove the checkpoint, once the cycle is stored."""
        if self._file is not None:
            self._file.remove()

    # ---------------------------------------------------------------------------------------------------------- loops

    def enter(self, loop: Steps) -> None:
        """Open a loop; if the checkpoint of a process that died is within it, go on from there."""
        parent = self.open[-1] if self.open else self
        loop.number, parent.inner = parent.inner, parent.inner + 1
        loop.shown = not self.open or self.open[-1].clock is not loop.clock
        self.open.append(loop)
        earlier, depth = self._earlier, len(self.open)
        if depth == 1 and self._stage == SELECT and loop.number in self.ended:
            self._pass_over(loop, self.ended[loop.number])
            return
        if earlier is None or earlier["stage"] != self._stage or not all(each.again for each in self.open[:-1]):
            return
        taken = earlier["loops"][depth - 1]
        if loop.number < taken["number"]:
            return
        try:
            restorer = self._restorer(earlier["loops"][:depth])
        except Exception:  # Unlike, or what a method's own code raises: nothing has been changed yet
            self._drop()
            return
        try:
            restorer.apply()
            loop.again = self._in_use = True
            loop.first = taken["next"]
            if depth == len(earlier["loops"]):
                self._used_up(earlier)
        except Exception as error:  # of an optimizer, a method or a full memory: half of the objects are changed
            self._refuse(f"the checkpoint within the cycle can't be restored ({named(error)})", error)

    def _pass_over(self, loop: Steps, taken: dict[str, Any]) -> None:
        """Give a loop what it has left in a process that died, and no step."""
        try:
            restorer = self._restorer([taken])
        except Exception:  # Unlike, or what a method's own code raises: nothing has been changed yet, and it runs again
            del self.ended[loop.number]
            return
        try:
            restorer.apply()
            self._put_streams(taken["streams"])
        except Exception as error:  # half of the objects are changed
            self._refuse(f"the checkpoint within the cycle can't be restored ({named(error)})", error)
        loop.first = loop.count

    def _restorer(self, loops: list[dict[str, Any]]) -> Restorer:
        """Return what gives the open loops what they had. Raises Unlike, and changes nothing."""
        assert self._cycle is not None
        restorer = Restorer(self._cycle.device)
        for loop, taken in zip(self.open, loops, strict=True):
            if [loop.number, loop.count, *loop.state] != [taken["number"], taken["count"], *taken["state"]]:
                raise Unlike
            for name, value in loop.state.items():
                if restorer.put(value, taken["state"][name]) is not value:
                    raise Unlike
        return restorer

    def _used_up(self, earlier: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose loops are all open again."""
        assert self._cycle is not None
        self._put_streams(earlier["streams"])
        self._cycle.go_on(earlier["measured"])
        self._earlier, self._in_use = None, False
        self._next = time.monotonic() + self._seconds

    def _drop(self) -> None:
        """Give an earlier checkpoint up. Raises NotReproduced if a part of it is in use."""
        if self._in_use:
            self._refuse(
                "the training does not go through the same steps when it starts again, so that the checkpoint within "
                "the cycle does not fit"
            )
        self._earlier = None
        self.warnings.append("the checkpoint within the cycle does not fit its steps, which start again")

    def _refuse(self, why: str, cause: Exception | None = None) -> NoReturn:
        """Remove a checkpoint that can't be used, although a part of it is in use. Raises NotReproduced."""
        with suppress(StorageError, UserError):
            self.remove()
        raise NotReproduced(f"{why}; it is removed, and --resume computes the cycle again") from cause

    def after(self, loop: Steps) -> None:
        """Store a checkpoint after a step of the innermost loop, if it is time."""
        if self._earlier is not None and loop.again:
            self._drop()  # the step has had no such loop as before
        if loop.next < loop.count:
            self._look()

    def close_within(self, loop: Steps) -> None:
        """Close the loops within a loop that a step has left open."""
        if loop in self.open:
            del self.open[self.open.index(loop) + 1 :]

    def times_steps(self, clock: Clock) -> bool:
        """Return whether steps take about as long as each other: batches on workers come in any order."""
        return self._stage not in (SCORE, RANK) or clock.progress.phase != "score"

    def leave(self, loop: Steps) -> None:
        """Close a loop, and those within it."""
        if loop in self.open:
            del self.open[self.open.index(loop) :]
            ended = self._stage == SELECT and not self.open and loop.next == loop.count  # not by break or an error
            if ended and self._seconds < inf and loop.number > max(self.ended, default=-1):
                taker = Taker()
                with suppress(Exception):  # as in a checkpoint, which says why; without it the loop runs again
                    taken = copied({**self._taken(taker, loop), "streams": self._streams()})
                    self.ended = {} if taker.left_out else {loop.number: taken}

    # -------------------------------------------------------------------------------------------------------- storing

    def _look(self) -> None:
        if time.monotonic() >= self._next and self._earlier is None and self._cycle is not None:
            self._next = inf
            with self._cycle.clock.phase("checkpoint"):
                self._store(self._cycle)

    def _store(self, cycle: Measured) -> None:
        assert self._file is not None
        taker = Taker()
        try:
            loops = [self._taken(taker, loop) for loop in self.open]
            if taker.left_out:
                self._warn("checkpoints within the cycle leave out ", ", ".join(taker.left_out))
            whole = {k: v for k, v in self.finished.items() if k not in self._once or self._once[k] == versions(v)}
            content = {"stage": self._stage, "finished": whole, "ended": self.ended, "loops": loops}
            content |= {"warnings": self.warnings}
            self._file.write({**content, "streams": self._streams(), "measured": cycle.measured()})
        except Unstorable as problem:
            self._warn("no checkpoint within the cycle is possible: ", str(problem))
            return  # nor later in these loops
        except (StorageError, UserError) as error:
            self._warn("a checkpoint within the cycle could not be stored: ", str(error).partition(";")[0])
        except LockLost:  # the record of the cycle will not be stored either, which ends the trial
            return
        except Exception as error:  # of a method's own state_dict, or a full memory: the training goes on
            self._warn("a checkpoint within the cycle could not be stored: ", named(error))
        self._next = time.monotonic() + self._seconds

    def _taken(self, taker: Taker, loop: Steps) -> dict[str, Any]:
        """Return where a loop is, and what its steps have changed. Raises Unstorable."""
        state = {name: taker.take(value, name) for name, value in loop.state.items()}
        return {"number": loop.number, "count": loop.count, "next": loop.next, "state": state}

    def _warn(self, what: str, why: str) -> None:
        """Add a warning, unless there is one of its kind."""
        if not any(warning.startswith(what) for warning in self.warnings):
            self.warnings.append(what + why)

    def _streams(self) -> Any:
        """Return the states of the global random streams; None in a stage that moves none."""
        if self._stage in STILL or self._cycle is None:
            return None
        states = global_states()
        if self._cycle.device.type == "cuda":
            states["torch.cuda"] = torch.cuda.get_rng_state(self._cycle.device)
        return Taker().take(states, "the global random streams")

    def _put_streams(self, taken: Any) -> None:
        if taken is None or self._cycle is None:
            return
        restorer = Restorer(torch.device("cpu"))
        states = restorer.put({}, taken)
        restorer.apply()
        restore(states)
        if "torch.cuda" in states:
            torch.cuda.set_rng_state(states["torch.cuda"], self._cycle.device)


class Steps:
    """The steps of a loop that are left: all of them, unless a process that died has made some.

    What the steps change has its state of the next step as soon as the object is made. A loop may end early.
    """

    def __init__(self, checkpoints: Checkpoints, clock: Clock, count: int, state: dict[str, Any]) -> None:
        if wrong := [name for name, value in state.items() if not holds(value)]:
            kind = type(state[wrong[0]]).__name__
            raise TypeError(f"steps: {wrong[0]} is a {kind}, which no step can change: put it into a list or a dict")
        self.clock, self.count, self.state = clock, count, state
        self.number = self.inner = 0
        """The number of this loop, and that of the loops so far in its current step, within the step around."""
        self.first = 0
        """The first step that is left."""
        self.again = self.shown = False
        """Whether the loop goes on from a checkpoint; whether displays show its steps."""
        checkpoints.enter(self)
        self.next = self.first
        """The step to go on with: the current one, or between two steps the later one."""
        self._checkpoints = checkpoints

    def __iter__(self) -> Iterator[int]:
        """Yield the steps. Nothing else refers to the generator, so that ``break`` closes it and thereby the loop."""
        timed = self._checkpoints.times_steps(self.clock)
        left = self.clock.steps(self.count, self.first, timed) if self.shown else iter(range(self.first, self.count))
        try:
            for number in left:
                self.next, self.inner = number, 0
                yield number
                self._checkpoints.close_within(self)
                self.next = number + 1
                self._checkpoints.after(self)
        finally:
            self._checkpoints.leave(self)

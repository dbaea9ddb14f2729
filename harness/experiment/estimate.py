"""Estimates when a run ends, from the seconds that its kinds of work took so far.

A cycle is image passes of training, of a method's additional training and of scoring, plus a rest: tests, files. Each
kind has its seconds per pass, from what this run has measured. The start-up of a process (imports, data, compilation,
the first step of a training) is measured apart, and expected again only of units that start a process of their own.
The units that are left are then played through in their order, on as many slots as the run uses.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil
from statistics import fmean, median

from harness.experiment.grid import Unit
from harness.results.progress import Progress

TRAIN, AUXILIARY, SCORE = KINDS = "train", "auxiliary", "score"
"""Kinds of work that image passes are counted of; score includes the selection."""
REST, TESTED = "rest", "tested"
"""What else a cycle takes, start-up excluded; and its tests and files alone, which are known also of a first cycle."""
STARTING = ("", "setup", "compile")
"""Phases before a unit works."""
RECENT = 20
"""Observations of a kind that count, the last ones: the load of a machine changes."""
UNKNOWN = 1 / 3
"""Share of the remaining seconds that may rest on the rate of another kind of work; above it there is no estimate."""
SCORED = 1 / 3
"""Seconds of a forward pass relative to those of a training pass, which also runs backward."""
FILLING = 60.0
"""Seconds without a start or an end after which fewer running units than slots mean that there are fewer slots."""

Key = tuple[str, ...]


def own_seconds(seconds: Mapping[str, float], warm: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds by phase of a cycle without what the first step of a training took longer than the others.

    ``warm``: see Progress.expected.
    """
    return {phase: min(value, warm.get(phase, value)) for phase, value in seconds.items()}


class Estimate:
    """Learns from the events of a run's units, which are numbered in their order.

    ``finished``: cycles of each unit that an earlier run finished: they are no work. ``fresh``: whether each unit
    starts a process of its own. ``slots``: how many units run at once, for suites that are not exclusive and that are.
    """

    def __init__(self, units: Sequence[Unit], finished: Sequence[int], fresh: bool = False) -> None:
        self.units, self.fresh = units, fresh
        self.reached = list(finished)
        self.slots: dict[bool, int] | None = None
        self.over: set[int] = set()
        self.running: dict[int, float] = {}
        """Number -> time of the unit's start, or of its last finished cycle in this process."""
        self.first: set[int] = set()
        """Running units without a finished cycle in their process."""
        self.cold: set[int] = set()
        """Running units that fill a slot for the first time: they start a process also where processes are reused."""
        self.idle: dict[int, float] = {}
        """Running unit -> when it was last seen to start up."""
        self.worked: dict[int, float] = {}
        """Running unit in its first cycle -> when it began to work."""
        self.changed = 0.0
        self.most = 0
        self.seen: dict[Key, list[tuple[float, float]]] = defaultdict(list)
        """Kind of work -> (seconds, passes) of finished cycles."""
        self.startups: dict[bool, list[float]] = {False: [], True: []}
        """Whether a process was started -> seconds from the start of a unit to its work."""
        self.passes = [self._passes(unit) for unit in units]
        self.later = [self._later(passes) for passes in self.passes]
        self.keys = [self._keys(unit) for unit in units]

    @staticmethod
    def _passes(unit: Unit) -> list[dict[str, float]]:
        """Return the passes of each cycle by kind. A training batch that is not full counts as a full one."""
        size, found = unit.trial.recipe.batch_size, []
        scoring = unit.scoring or [0] * unit.cycles
        for labelled, train, auxiliary, score in zip(
            unit.trial.protocol.labelled(), unit.training, unit.auxiliary, scoring, strict=False
        ):
            full = train * ceil(labelled / size) * size / labelled
            found.append({TRAIN: full, AUXILIARY: float(auxiliary), SCORE: float(score)})
        return found

    @staticmethod
    def _later(passes: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return the passes of all later cycles by kind, for each cycle."""
        sums = [dict.fromkeys(KINDS, 0.0)]
        for cycle in reversed(passes[1:]):
            sums.append({kind: sums[-1][kind] + cycle[kind] for kind in KINDS})
        return sums[::-1]

    @staticmethod
    def _keys(unit: Unit) -> dict[str, Key]:
        training, acquisition = (
            json.dumps(half.decisive(), sort_keys=True) for half in (unit.trial.training, unit.trial.acquisition)
        )
        return {
            TRAIN: (unit.suite, TRAIN, training),
            AUXILIARY: (unit.suite, AUXILIARY, training, acquisition),
            SCORE: (unit.suite, SCORE, acquisition),
        }

    # -------------------------------------------------------------------------------------------------------- events

    def start(self, number: int, now: float) -> None:
        """Note that a unit has started, perhaps again."""
        self._forget(number)
        self.running[number] = self.changed = now
        self.first.add(number)
        if self.fresh or len(self.running) > self.most:
            self.cold.add(number)
        self.most = max(self.most, len(self.running))

    def cycle(self, number: int, cycle: int, seconds: Mapping[str, float], now: float) -> None:
        """Learn from a unit's finished cycle, unless an earlier run finished it. ``seconds``: ``own_seconds``."""
        if cycle < self.reached[number] or number in self.over:
            return
        self.reached[number] = cycle + 1
        spent = 0.0
        for kind, passes in self.passes[number][cycle].items():
            if passes:
                took = seconds.get(kind, 0.0) + (seconds.get("select", 0.0) if kind == SCORE else 0.0)
                self._note(self.keys[number][kind], took, passes)
                spent += took
        suite = self.units[number].suite
        rest = max(0.0, now - self.running.get(number, now) - spent)
        tested = seconds.get("evaluate", 0.0) + seconds.get("checkpoint", 0.0)
        if number in self.first:
            if number not in self.worked:
                self.startups[number in self.cold].append(max(0.0, rest - tested))
            self.first.discard(number)
            self.worked.pop(number, None)
            self.idle.pop(number, None)
            self._note((suite, TESTED), tested, 1)
        else:
            self._note((suite, REST), rest, 1)
        if number in self.running:
            self.running[number] = now

    def end(self, number: int, now: float) -> None:
        """Note that a unit has ended or failed."""
        self.over.add(number)
        self._forget(number)
        self.changed = now

    def wait(self, number: int) -> None:
        """Note that a unit does not run, and starts again later."""
        self._forget(number)

    def restart(self) -> None:
        """Note that all running units have ended, and run again."""
        for number in [*self.running]:
            self._forget(number)
        self.most = 0

    def spent(self, number: int, now: float) -> float:
        """Return the seconds of a running unit's current cycle, or of its start-up."""
        return max(0.0, now - self.worked.get(number, self.running.get(number, now)))

    def _forget(self, number: int) -> None:
        for found in (self.running, self.idle, self.worked):
            found.pop(number, None)
        for some in (self.first, self.cold):
            some.discard(number)

    def _watch(self, number: int, found: Progress, now: float) -> None:
        """Note when a running unit began to work."""
        if number not in self.first or number in self.worked:
            return
        if found.phase in STARTING and not found.steps and not found.expected:
            self.idle[number] = now
        else:
            self.worked[number] = self.idle.get(number, self.running[number])
            self.startups[number in self.cold].append(self.worked[number] - self.running[number])

    def _note(self, key: Key, seconds: float, passes: float) -> None:
        self.seen[key] = [*self.seen[key], (seconds, passes)][-RECENT:]

    # ----------------------------------------------------------------------------------------------------- estimates

    def left(self, now: float, progress: Mapping[int, Progress]) -> float | None:
        """Return the expected seconds until the last unit ends, or None if too little is known.

        ``progress``: what running units do, from which a kind of work is known before its first cycle has finished.
        """
        for number, seen in progress.items():
            if number in self.running:
                self._watch(number, seen, now)
        waiting = [n for n in range(len(self.units)) if n not in self.over and n not in self.running]
        if not waiting and not self.running:
            return 0.0
        rates = self._rates(progress)
        if not any(key[1] == TRAIN for key in rates):
            return None
        total = unknown = 0.0
        left: dict[int, float] = {}
        known: dict[tuple[Key, ...], dict[str, tuple[float, float]]] = {}
        for number in (*self.running, *waiting):
            keys = tuple(self.keys[number].values())
            if keys not in known:
                known[keys] = self._known(number, rates)
            left[number], guessed = self._unit(number, known[keys], now)
            total, unknown = total + left[number], unknown + guessed
        return None if unknown > UNKNOWN * total else self._played(left, waiting, now)

    def _unit(self, number: int, rates: Mapping[str, tuple[float, float]], now: float) -> tuple[float, float]:
        """Return the remaining seconds of a unit, and those of them that rest on the rate of another kind of work."""
        done, last = self.reached[number], self.units[number].cycles
        if done >= last:
            return 0.0, 0.0
        current, later, guessed = rates[REST][0], (last - done - 1) * rates[REST][0], 0.0
        for kind in KINDS:
            rate, unknown = rates[kind]
            current += rate * self.passes[number][done][kind]
            later += rate * self.later[number][done][kind]
            guessed += unknown * (self.passes[number][done][kind] + self.later[number][done][kind])
        start = self.worked.get(number, self.running.get(number, now))
        if number in self.worked or (number in self.running and number not in self.first):
            current = max(0.0, current - (now - start))
        elif number in self.idle:
            current += max(0.0, self._startup(number) - (now - start))
        else:
            current = max(0.0, current + self._startup(number) - (now - start))
        return current + later, guessed

    def _rates(self, progress: Mapping[int, Progress]) -> dict[Key, float]:
        """Return seconds per pass of each kind of work that was observed, finished or at least begun."""
        seen = {key: list(found) for key, found in self.seen.items()}
        for number, found in progress.items():
            if number in self.running and found.cycle == self.reached[number] < self.units[number].cycles:
                for kind, passes in self.passes[number][found.cycle].items():
                    key = self.keys[number][kind]
                    if passes and kind in found.expected and not self.seen.get(key):
                        seen.setdefault(key, []).append((found.expected[kind], passes))
        return {
            key: sum(seconds for seconds, _ in found) / sum(passes for _, passes in found)
            for key, found in seen.items()
            if found
        }

    def _known(self, number: int, rates: Mapping[Key, float]) -> dict[str, tuple[float, float]]:
        """Return (seconds per pass, those of them that rest on another kind of work) of a unit, by kind of work.

        REST is per cycle.
        """
        suite, found = self.units[number].suite, {}
        training = [rate for key, rate in rates.items() if key[:2] == (suite, TRAIN)]
        elsewhere = fmean(training or [rate for key, rate in rates.items() if key[1] == TRAIN])
        for kind, key in self.keys[number].items():
            if key in rates:
                found[kind] = (rates[key], 0.0)
                continue
            alike = [rate for other, rate in rates.items() if other[:2] == (suite, kind)]
            rate = fmean(alike) if alike and kind != AUXILIARY else elsewhere * (SCORED if kind == SCORE else 1.0)
            found[kind] = (rate, 0.0 if training and kind != AUXILIARY else rate)
        found[REST] = (rates.get((suite, REST), rates.get((suite, TESTED), 0.0)), 0.0)
        return found

    def _startup(self, number: int) -> float:
        """Return the seconds that a unit takes to start."""
        own = self.startups[self.fresh or number in self.cold]
        return median(own[-RECENT:]) if own else 0.0

    def _played(self, left: Mapping[int, float], waiting: Sequence[int], now: float) -> float:
        """Return the seconds until the end, if waiting units start in their order as soon as there is room."""
        slots = self.slots or dict.fromkeys((False, True), max(1, self.most))
        size = {exclusive: 1 / max(1, count) for exclusive, count in slots.items()}
        queue, smallest = list(waiting), min(size.values())
        pending = {self.units[n].trial.sharing_key for n in left if self.units[n].shared}
        ends: list[tuple[float, int]] = [(left[number], number) for number in self.running]
        heapq.heapify(ends)
        room = 1.0
        used = sum(size[self.units[number].exclusive] for number in self.running)
        startable = any(self.units[number].after not in pending for number in queue)
        if self.running and startable and now - self.changed > FILLING:
            room = used  # others use the machine
        time = 0.0
        while queue or ends:
            place = 0
            while place < len(queue) and (used + smallest <= room + 1e-9 or not ends):
                unit = self.units[queue[place]]
                fits = used + size[unit.exclusive] <= room + 1e-9 or not ends
                if fits and unit.after not in pending:
                    heapq.heappush(ends, (time + left[queue[place]], queue.pop(place)))
                    used += size[unit.exclusive]
                else:
                    place += 1
            if not ends:
                break
            time, number = heapq.heappop(ends)
            used -= size[self.units[number].exclusive]
            if self.units[number].shared:
                pending.discard(self.units[number].trial.sharing_key)
        return time

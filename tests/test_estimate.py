"""The estimate of the time left, mostly on simulated runs with a clock of their own: what it says, what comes true."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from harness.config.load import load_config
from harness.experiment import display, grid, publish
from harness.experiment.estimate import own_seconds
from harness.experiment.grid import Unit
from harness.experiment.view import State
from harness.results.progress import Progress
from harness.run import main

CONFIG = """\
dataset: digits
model: {{name: resnet_small, width: 4}}
recipe: {{epochs: 10, batch_size: 50}}
protocol: {{initial: 200, budget: 200, cycles: {cycles}, candidates: 800, start: warm}}
methods: {{{methods}}}
seeds: {seeds}
where: {{trials: in_process}}
"""
CHEAP = "Ran: random, LC: least_confidence, Ran+: {acquisition: random, training: isda}"
COSTLY = "Ran: random, LC: least_confidence, VAAL: {acquisition: vaal}, QBC: {acquisition: qbc}"
ALONE = "Ran: random"
GRIDS = {
    "cheap": (CHEAP, "[0, 1, 2]", 5),
    "costly": (COSTLY, "[0, 1, 2, 3]", 4),
    "alone": (ALONE, "[0]", 6),
    "short": ("Ran: random, VAAL: {acquisition: vaal}", "[0, 1, 2, 3, 4, 5, 6, 7]", 2),
}
RATES = {"cross_entropy": 0.004, "isda": 0.0055, "vaal": 0.0007, "qbc": 0.004}  # seconds per pass
SCORED = {"random": 0.0, "least_confidence": 0.002, "vaal": 0.001, "qbc": 0.008}


class Simulated:
    """A run of units on slots: when each unit starts and each of its cycles ends, and what it then reports."""

    def __init__(self, units: list[Unit], slots: int, startup: float, fresh: bool, finished: list[int]) -> None:
        self.units, self.finished = units, finished
        self.random = Random(f"{len(units)} {slots} {startup} {fresh}")
        self.events: list[tuple[float, str, int, dict[str, Any]]] = []
        self.cycles: list[tuple[float, float, int, int, dict[str, float]]] = []
        """(start, end, unit, cycle, seconds by phase) of each cycle, start-up excluded."""
        free, ended, waiting, began = [0.0] * slots, dict[str, float](), [*range(len(units))], set[int]()
        while waiting:
            slot = min(range(slots), key=lambda slot: free[slot])
            keys = {units[n].trial.sharing_key for n in waiting if units[n].shared}
            ready = [n for n in waiting if units[n].after not in keys]
            number = min(ready, key=lambda n: (max(free[slot], ended.get(units[n].after or "", 0.0)), n))
            waiting.remove(number)
            time = max(free[slot], ended.get(units[number].after or "", 0.0))
            started = startup * self.random.uniform(0.9, 1.1) if fresh or slot not in began else 0.0
            began.add(slot)
            self.events.append((time, "start", number, {}))
            for cycle in range(units[number].cycles):
                report = {"cycle": cycle, "labelled": 200 * (cycle + 1), "cost": 1.0, "accuracy": 0.5}
                if cycle < finished[number]:
                    self.events.append((time + started, "cycle", number, report))
                    continue
                seconds = self._seconds(units[number], cycle)
                begins = time + (started if cycle == finished[number] else 0.0)
                time = begins + sum(seconds.values())
                self.cycles.append((begins, time, number, cycle, seconds))
                self.events.append((time, "cycle", number, {**report, "own_seconds": seconds}))
            self.events.append((time, "end", number, {}))
            free[slot] = time
            if units[number].shared:
                ended[units[number].trial.sharing_key] = time
        self.events.sort(key=lambda event: event[0])
        self.end = max(event[0] for event in self.events)

    def _seconds(self, unit: Unit, cycle: int) -> dict[str, float]:
        acquisition = unit.trial.acquisition.name
        seconds = {
            "train": unit.training[cycle] * RATES[unit.trial.training.name],
            "auxiliary": unit.auxiliary[cycle] * RATES.get(acquisition, 0.0),
            "score": unit.scoring[cycle] * SCORED[acquisition],
            "evaluate": 1.0,
            "checkpoint": 0.2,
        }
        return {phase: value * self.random.uniform(0.85, 1.15) for phase, value in seconds.items()}

    def done(self, time: float) -> float:
        """Return the seconds of work, start-up excluded, that are done at a time."""
        return sum(max(0.0, min(end, time) - start) for start, end, *_ in self.cycles)

    def when(self, share: float) -> float:
        """Return the time at which so much of the work is done."""
        low, high = 0.0, self.end
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self.done(middle) >= share * self.done(self.end) else (middle, high)
        return high

    def unknown(self, time: float) -> float:
        """Return the share of the work left that is a method's own training, of methods that have not begun one."""
        if not any(seconds["train"] and start + seconds["train"] / 5 <= time for start, *_, seconds in self.cycles):
            return 1.0
        own, begun, left = dict[str, float](), set[str](), 0.0
        for start, end, number, _, seconds in self.cycles:
            name = self.units[number].trial.acquisition.name
            left += max(0.0, end - max(time, start))
            if seconds["auxiliary"]:
                begins = start + seconds["train"]
                steps = 0.0 if name == "qbc" else seconds["auxiliary"] / 500  # a committee shows no steps
                if begins + (steps or end - begins) <= time:
                    begun.add(name)
                own[name] = own.get(name, 0.0) + max(0.0, end - max(time, begins))
        return sum(seconds for name, seconds in own.items() if name not in begun) / left

    def _steps(self, number: int) -> tuple[str, ...]:
        return ("train",) if self.units[number].trial.acquisition.name == "qbc" else ("train", "auxiliary")

    def progress(self, time: float, number: int) -> Progress | None:
        """Return what the clock of a running unit would show: all that is known before its first cycle ends."""
        for start, end, unit, cycle, seconds in self.cycles:
            if unit == number and start <= time < end:
                found, past = Progress(cycle=cycle), start
                for phase in self._steps(number):
                    steps = 10 if phase == "train" else 1000
                    step = min(steps, int((time - past) / (seconds[phase] / steps))) if seconds[phase] else 0
                    if step > 1:
                        found.expected[phase] = seconds[phase]
                    past += seconds[phase]
                found.phase = "train"
                return found
        return Progress(phase="setup")


class Clock:
    now = 0.0

    def time(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return "12:00:00"


def estimates(
    units: list[Unit], simulated: Simulated, slots: int | None, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[float, float | None, float]]:
    """Yield (share of the work, estimate, truth) of a display that sees a simulated run."""
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    show = display.Display(units, io.StringIO(), simulated.finished, fresh=fresh)
    show.estimate.slots = None if slots is None else {False: slots, True: 1}
    show.look = lambda unit: (simulated.progress(clock.now, units.index(unit)), None)
    events = iter([*simulated.events, (float("inf"), "", 0, {})])
    time, event, number, values = next(events)
    for share in (0.1, 0.25, 0.5, 0.75):
        until = simulated.when(share)
        while clock.now < until:  # a display looks every second
            clock.now = min(clock.now + simulated.end / 100, time, until)
            show.seconds_left()
            while time <= clock.now:
                show(event, units[number], values)
                time, event, number, values = next(events)
        yield share, show.seconds_left(), simulated.end - until


@pytest.fixture
def made(tmp_path: Path) -> Any:
    def made(name: str) -> list[Unit]:
        methods, seeds, cycles = GRIDS[name]
        path = tmp_path / "c.yaml"
        path.write_text(CONFIG.format(methods=methods, seeds=seeds, cycles=cycles))
        units = grid.expand(load_config(path)).units
        return [
            replace(unit, auxiliary=[40_000 if passes else 0 for passes in unit.auxiliary])
            if unit.trial.acquisition.name == "vaal"
            else unit
            for unit in units
        ]

    return made


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_after_a_tenth_of_the_work_it_is_within_a_factor_of_one_and_a_half(
    name: str, slots: int, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the start-up takes, and whether each trial or only the first one in each slot has one."""
    units, told = made(name), 0
    for startup, fresh in ((0.0, False), (20.0, True), (200.0, False)):
        for resumed in (False, True):
            finished = [0 if unit.shared else (number % 3) * resumed for number, unit in enumerate(units)]
            left = [n for n, unit in enumerate(units) if finished[n] < unit.cycles and not (unit.shared and resumed)]
            own = [replace(units[n], after=None) if resumed else units[n] for n in left]
            simulated = Simulated(own, slots, startup, fresh, [finished[n] for n in left])
            for share, said, truth in estimates(own, simulated, slots, fresh, monkeypatch):
                case = (
                    f"{startup} s, fresh {fresh}, resumed {resumed}, at {share:.0%}: {said} s, in truth {truth:.0f} s"
                )
                if said is None:  # only where nobody can know it
                    assert simulated.unknown(simulated.when(share)) >= 0.25, case
                else:
                    told += 1
                    assert truth / 1.5 <= said <= 1.5 * truth, case
    assert told >= {"cheap": 24, "alone": 24, "short": 16, "costly": 9}[name]


def test_start_up_alone_says_nothing(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    units = made("cheap")
    show = display.Display(units, io.StringIO())
    show.look = lambda unit: (Progress(phase="setup"), None)
    show("start", units[0], {})
    for clock.now in (1.0, 100.0, 10_000.0):
        assert show.seconds_left() is None


def test_work_of_an_unknown_kind_says_nothing(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first cycle shows what training costs, not what a method's own training does, which is most of this run."""
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    units = made("costly")
    show = display.Display(units, io.StringIO())
    show.look = lambda unit: (None, None)
    show("start", units[0], {})
    clock.now = 10.0
    seconds = {"train": 8.0, "evaluate": 1.0}
    show("cycle", units[0], {"cycle": 0, "labelled": 200, "cost": 8.0, "accuracy": 0.5, "own_seconds": seconds})
    assert show.seconds_left() is None


def test_fewer_running_trials_than_slots_count_after_a_while(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run on the cluster holds the other slots."""
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    units = [
        replace(unit, after=None, training=[2000, 4000])
        for unit in made("short")
        if not unit.shared and unit.method == "Ran"
    ]
    show = display.Display(units, io.StringIO())
    show.look = lambda unit: (None, None)
    show.estimate.slots = {False: 8, True: 8}
    show("start", units[0], {})
    clock.now = 20.0
    seconds = {"train": 20.0}
    show("cycle", units[0], {"cycle": 0, "labelled": 200, "cost": 20.0, "accuracy": 0.5, "own_seconds": seconds})
    early = show.seconds_left()
    clock.now = 65.0
    late = show.seconds_left()
    assert early is not None and late is not None and late > 4 * early


def test_the_first_step_of_a_training_is_start_up() -> None:
    assert own_seconds({"train": 9.0, "score": 1.0}, {"train": 4.0}) == {"train": 4.0, "score": 1.0}
    assert own_seconds({"train": 3.0}, {"train": 4.0}) == {"train": 3.0}


@pytest.mark.long
@pytest.mark.alone  # it compares seconds
def test_in_a_real_run_it_is_within_a_factor_of_one_and_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings, scoring and tests of a small run, by the clock of this machine."""
    monkeypatch.setattr(publish, "TICK", 0.2)
    monkeypatch.setattr(publish, "PUBLISHED", 0.2)
    looks: list[tuple[float, float | None, bool]] = []
    real = display.Display.state

    def state(self: display.Display) -> State:
        found = real(self)
        looks.append((time.time(), found.left, self.closed))
        return found

    monkeypatch.setattr(display.Display, "state", state)
    text = CONFIG.format(methods=CHEAP, seeds="[0, 1]", cycles=4).replace("epochs: 10", "epochs: 4")
    (tmp_path / "c.yaml").write_text(text)
    assert main([str(tmp_path / "c.yaml"), f"where.output={tmp_path / 'run'}"]) == 0
    began, end = looks[0][0], next(at for at, _, closed in looks if closed)
    told = []
    for share in (0.1, 0.25, 0.5, 0.75):
        at, said, _ = next(look for look in looks if look[0] >= began + share * (end - began))
        if said is not None:
            told.append((share, said, end - at))
    assert [share for share, _, _ in told][-3:] == [0.25, 0.5, 0.75]
    assert all(truth / 1.5 <= said <= 1.5 * truth for _, said, truth in told), told

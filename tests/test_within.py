"""A cycle that is stopped at any step goes on from its checkpoint, and comes out the same, bit for bit."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import threading
import time
import tracemalloc
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed, make_street_trial, make_trial, outcomes, run, same, share, spec, state_of
from PIL import Image
from test_methods import METHODS, plugged, set_global_streams  # noqa: F401 - a fixture
from test_store import flip_byte

from harness.config.suite import Trial
from harness.data import rows
from harness.data.dataset import LoadedData
from harness.data.files import Files
from harness.errors import Death, NotReproduced
from harness.learning import checkpoints
from harness.learning.checkpoints import Checkpoints, Steps
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.fit import fit
from harness.learning.process import Placement
from harness.learning.snapshot import Restorer, Taker, Unlike, Unstorable
from harness.results import disk, within
from harness.results.clock import Clock
from harness.results.records import CycleRecord
from harness.results.store import RunStore
from harness.results.within import Within
from harness.trial import ActiveLearner, run_shared

EVERY_STEP = Placement(checkpoint_minutes=1e-9)


class Killed(Death):
    """The process ends here."""


class Kills:
    """Lets processes die after some of their checkpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = self.dies_at = 0
        self.placement = EVERY_STEP
        self.contents: list[dict[str, Any]] = []
        """The last checkpoint of each process that died."""
        write = Within.write

        def counted(file: Within, content: dict[str, Any]) -> None:
            write(file, content)
            self.writes += 1
            if self.writes == self.dies_at:
                self.contents.append(content)
                raise Killed

        monkeypatch.setattr(Within, "write", counted)

    def run(self, trial: Trial, data: LoadedData, folder: Path, *lives: int) -> list[CycleRecord]:
        """Return the records of a trial, after a process for each of ``lives``, which has so many checkpoints."""
        for life in lives:
            set_global_streams(life)
            self.writes, self.dies_at = 0, life
            try:
                return run(trial, data, folder, placement=self.placement)
            except Killed:
                continue
        self.dies_at = 0
        return run(trial, data, folder, placement=self.placement)


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Kills:
    return Kills(monkeypatch)


def left(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a results folder."""
    return sorted(path.name for path in folder.rglob("within_*"))


def the_same(trial: Trial, records: list[CycleRecord], folder: Path, first: list[CycleRecord], other: Path) -> None:
    """Assert that two runs have come out the same, bit for bit, except clocks and processes."""
    assert outcomes(records) == outcomes(first) and left(folder) == []
    for one, two in zip(records, first, strict=True):
        assert (one.warnings, one.health, one.extra_parameters) == (two.warnings, two.health, two.extra_parameters)
    for part in ("network", "training", "acquisition"):
        assert same(state_of(trial, folder)[part], state_of(trial, other)[part]), part


Going = Callable[..., list[CycleRecord]]


@pytest.fixture
def goes_on(digits: LoadedData, folders: Callable[[], Path], kills: Kills) -> Going:
    """Run a trial undisturbed, and with a death after each of so many checkpoints; both come out the same."""

    def compare(trial: Trial, *lives: int) -> list[CycleRecord]:
        whole, folder = folders(), folders()
        first = run(trial, digits, whole)
        records = kills.run(trial, digits, folder, *lives)
        the_same(trial, records, folder, first, whole)
        return records

    return compare


LOOPS = ["isda-qbc-option6", "ads", "cross_entropy-vaal", "ll4al"]
"""Methods whose loops differ; the others train like one of these."""
LONG = pytest.mark.long


def kill_some(method: str, data: LoadedData, folders: Callable[[], Path], kills: Kills, seed: str) -> None:
    trial, whole, folder = make_trial(*METHODS[method]), folders(), folders()
    set_global_streams(1)
    first = run(trial, data, whole)
    run(trial, data, folders(), placement=EVERY_STEP)
    at = sorted(random.Random(method + seed).sample(range(1, kills.writes), 3))
    set_global_streams(1)
    records = kills.run(trial, data, folder, *(later - earlier for earlier, later in pairwise([0, *at])))
    assert len(kills.contents) == 3
    the_same(trial, records, folder, first, whole)
    assert sum(record.lost_seconds > 0 for record in records) >= 1


@pytest.mark.parametrize("method", LOOPS)
def test_a_cycle_that_dies_goes_on(method: str, digits: LoadedData, folders: Callable[[], Path], kills: Kills) -> None:
    kill_some(method, digits, folders, kills, "")


@LONG
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_from_any_step(
    method: str, seed: int, digits: LoadedData, folders: Callable[[], Path], kills: Kills
) -> None:
    kill_some(method, digits, folders, kills, str(seed))


@LONG
@pytest.mark.parametrize("method", ["isda-epmcm", "ads", "cross_entropy-sraal"])
def test_label_maps(method: str, streets: LoadedData, folders: Callable[[], Path], kills: Kills) -> None:
    trial, whole, folder = make_street_trial(*METHODS[method], cycles=2), folders(), folders()
    first = run(trial, streets, whole)
    the_same(trial, kills.run(trial, streets, folder, 1, 2), folder, first, whole)


def test_several_epochs_and_a_learning_rate_that_falls(kills: Kills, goes_on: Going) -> None:
    trial = make_trial("isda", "random", epochs=4, milestones=[2, 3], cycles=1, optimizer="adam")
    goes_on(trial, *([1] * 10))
    assert [[loop["next"] for loop in content["loops"]] for content in kills.contents] == [
        [0, 1], [0, 2], [1], [1, 1], [1, 2], [2], [2, 1], [2, 2], [3], [3, 1],
    ]  # fmt: skip


CROPS: dict[str, Any] = {
    "random_resized_crop": {}, "crop_size": (12, 10), "center_crop": (10, 10), "warmup_epochs": 2, "epochs": 3,
}  # fmt: skip


@pytest.mark.parametrize(("training", "acquisition"), [("isda", "entropy"), ("cross_entropy", "vaal")])
def test_streamed_files_crops_of_any_size_and_a_warm_up(
    training: str,
    acquisition: str,
    colours: LoadedData,
    folders: Callable[[], Path],
    kills: Kills,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(colours.train_images))]
    for path, image in zip(paths, colours.train_images, strict=True):
        Image.fromarray(image).save(path)
    monkeypatch.setattr(rows, "_held", lambda nbytes, device: rows.STREAMED)
    data = replace(colours, train_images=Files(paths, (16, 16)))
    trial, whole, folder = make_trial(training, acquisition, cycles=2, **CROPS), folders(), folders()
    assert isinstance(ActiveLearner(trial, data).images.pixels, rows.Streamed)
    first = run(trial, data, whole)
    the_same(trial, kills.run(trial, data, folder, 4, 3, 2), folder, first, whole)
    from_memory = outcomes(run(trial, colours, folders()))
    named = [
        {**one, "data_fingerprint": other["data_fingerprint"]}
        for one, other in zip(outcomes(first), from_memory, strict=True)
    ]
    assert named == from_memory, "only the fingerprint differs: that of files is taken from their index"


@LONG
def test_every_step_of_a_committee(kills: Kills, goes_on: Going) -> None:
    trial = make_trial("ll4al", spec("qbc", Acquisition, members=3), cycles=2)
    goes_on(trial, *([1] * 20))
    depths = [[loop["next"] for loop in content["loops"]] for content in kills.contents]
    assert [0, 0, 1] in depths and [1] in depths and [1, 0, 2] in depths, "within members and between them"


def test_what_is_trained_is_not_trained_again(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, folder, fits = make_trial("cross_entropy", "vaal", cycles=2), folders(), list[int]()
    real = Training.fit

    def counted(training: Training, cycle: Cycle) -> float:
        fits.append(cycle.number)
        return real(training, cycle)

    monkeypatch.setattr(Training, "fit", counted)
    kills.run(trial, digits, folder, 3, 1, 1)
    assert [content["stage"] for content in kills.contents] == ["training", "selection", "selection"]
    assert fits == [0, 1]


def test_an_initial_set_that_is_drawn_by_training(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills
) -> None:
    trial = make_trial("cross_entropy", spec("sraal", Acquisition, initial_set="k_center"), cycles=2)
    whole, folder = folders(), folders()
    first = run(trial, digits, whole)
    assert first[0].initial_set
    records = kills.run(trial, digits, folder, 2, 2, 3)
    stages = [content["stage"] for content in kills.contents]
    assert stages[0] == "initial set" and stages[-1] != "initial set"
    assert "initial set" in kills.contents[-1]["finished"]
    the_same(trial, records, folder, first, whole)


@LONG
def test_a_shared_first_cycle(digits: LoadedData, folders: Callable[[], Path], kills: Kills) -> None:
    trial, whole, folder = make_trial("isda", "epmcm", cycles=2), folders(), folders()
    share(trial, digits, whole)
    kills.dies_at = 2
    for life in range(2):
        store = RunStore(folder)
        learner = ActiveLearner(trial, digits, EVERY_STEP)
        if life == 0:
            with pytest.raises(Killed):
                run_shared(learner, store, "suite", "method", lambda record: None)
            assert left(folder) == ["within_cycle_000.pt"]
        else:
            run_shared(learner, store, "suite", "method", lambda record: None)
    one, two = (RunStore(place).shared(trial.sharing_key) for place in (whole, folder))
    assert outcomes(one.records()) == outcomes(two.records())
    assert same(one.resume_point()[1]["network"], two.resume_point()[1]["network"])  # type: ignore[index]
    first = run(trial, digits, whole)
    the_same(trial, kills.run(trial, digits, folder, 1), folder, first, whole)


def test_a_selection_that_is_made_later(digits: LoadedData, folders: Callable[[], Path], kills: Kills) -> None:
    whole, folder = folders(), folders()
    short, trial = (make_trial("cross_entropy", "vaal", cycles=cycles) for cycles in (2, 3))
    for place in (whole, folder):
        run(short, digits, place)
    first = run(trial, digits, whole)
    records = kills.run(trial, digits, folder, 2, 1)
    assert kills.contents[0]["stage"] == kills.contents[1]["stage"] == "selection"
    the_same(trial, records, folder, first, whole)
    assert records[1].lost_seconds > 0


def test_a_greedy_selection_goes_on(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, whole, folder = make_trial("cross_entropy", "core_set", cycles=2), folders(), folders()
    first = run(trial, digits, whole)
    monkeypatch.setattr(import_module("harness.methods._k_center"), "ROWS_AT_ONCE", 6)
    records = kills.run(trial, digits, folder, 8, 1, 1)
    found = [(content["stage"], [loop["next"] for loop in content["loops"]]) for content in kills.contents]
    assert found == [("ranking", [1]), ("ranking", [2]), ("ranking", [3])]
    assert [len(content["loops"][0]["state"]["rows"][3]) for content in kills.contents] == [6, 12, 18]
    the_same(trial, records, folder, first, whole)


@pytest.mark.parametrize("acquisition", ["core_set", "vaal", spec("qbc", Acquisition, members=2)])
def test_a_selection_is_scored_once(
    acquisition: Any, digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, whole, folder = make_trial("cross_entropy", acquisition, cycles=2), folders(), folders()
    made, steps = Steps.__iter__, list[str]()

    def counted(loop: Steps) -> Iterator[int]:
        for number in made(loop):
            if loop._checkpoints._stage != "training":
                steps.append(loop._checkpoints._stage)
            yield number

    monkeypatch.setattr(Steps, "__iter__", counted)
    first, undisturbed = run(trial, digits, whole), sorted(steps)
    steps.clear()
    records = kills.run(trial, digits, folder, 3, *[1] * (4 if acquisition == "core_set" else 6))
    stages = [content["stage"] for content in kills.contents]
    assert stages.count("scoring") == 3 and "scoring" in undisturbed
    if acquisition in ("core_set", "vaal"):  # in a committee, a step of the outer loop is entered again
        assert sorted(steps) == undisturbed
    assert len(records[0].scoring["shards"]) == 3, "one for each process that has scored a part"
    assert sum(shard["images"] for shard in records[0].scoring["shards"]) == trial.protocol.candidates
    the_same(trial, records, folder, first, whole)


class Trying(Acquisition):
    """Prepares in a loop that fails, and in another one."""

    def prepare(self, cycle: Cycle) -> dict[str, torch.Tensor]:
        tried = list[int]()
        for loop in range(2):
            try:
                for number in cycle.steps(3, tried=tried):
                    tried.append(number)
                    if loop == 0 and number == 1:
                        raise torch.OutOfMemoryError
            except torch.OutOfMemoryError:
                continue
        return {"tried": torch.tensor(tried)}

    def describe(self, network: Any, batch: Any, prepared: Any) -> dict[str, torch.Tensor]:
        return {"score": (batch.index * prepared["tried"].sum() % 7).float()}

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return columns["score"].argsort(stable=True)[:budget]


def test_a_loop_that_an_error_has_ended_is_not_passed_over(
    plugged: Callable[..., Any],  # noqa: F811
    kills: Kills,
    goes_on: Going,
) -> None:
    trial = make_trial("cross_entropy", plugged(Trying), cycles=2)
    goes_on(trial, 3, 2, 1, 1, 1)
    assert [[*content["ended"]] for content in kills.contents if content["stage"] == "scoring"] == [[1], [1]]


class InPlace(Acquisition):
    """Changes its columns in place."""

    def describe(self, network: Any, batch: Any, prepared: Any) -> dict[str, torch.Tensor]:
        return {"score": network(batch.images).logits.softmax(1).amax(1)}

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        score: torch.Tensor = columns["score"].neg_()
        labelled()
        return score.argsort(stable=True)[:budget]


class LeftOut(Acquisition):
    """Has an object with a tensor and a lock within its module, which no checkpoint can hold."""

    def make(self, cycle: Cycle) -> torch.nn.Module:
        return torch.nn.Linear(1, 1).to(cycle.device)

    def prepare(self, cycle: Cycle) -> dict[str, torch.Tensor]:
        module: Any = self.module
        module.held = Thing()
        module.held.values = [torch.zeros(2), threading.Lock()]
        for _ in cycle.steps(3, module=module):
            module.held.values[0] += 1
        return {"sum": module.held.values[0].sum()}

    def describe(self, network: Any, batch: Any, prepared: Any) -> dict[str, torch.Tensor]:
        return {"score": (batch.index * (1 + prepared["sum"]) % 13).float()}

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return columns["score"].argsort(stable=True)[:budget]

    def state(self) -> dict[str, torch.Tensor]:
        return {}


class Asking(InPlace):
    """Asks for the labelled images twice."""

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        labelled()
        time.sleep(0.3)
        labelled()
        return columns["score"].argsort(stable=True)[:budget]


@pytest.mark.parametrize("acquisition", [InPlace, LeftOut, Asking])
def test_a_method_of_ones_own_goes_on_while_it_selects(
    acquisition: type[Acquisition],
    plugged: Callable[..., Any],  # noqa: F811
    digits: LoadedData,
    folders: Callable[[], Path],
    kills: Kills,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = make_trial("cross_entropy", plugged(acquisition), cycles=2)
    first, look = run(trial, digits, folders()), Checkpoints._look

    def looked(its: Checkpoints) -> None:
        if its._stage in ("scoring", "ranking"):  # only these take long
            look(its)

    monkeypatch.setattr(Checkpoints, "_look", looked)
    kills.writes = 0
    run(trial, digits, folders(), placement=EVERY_STEP)
    assert kills.writes >= 3
    for life in range(1, kills.writes + 1):
        records = kills.run(trial, digits, folders(), life)
        assert outcomes(records) == outcomes(first), life
        assert acquisition is not Asking or records[0].seconds["select"] >= 0.3


# --------------------------------------------------------------------------------------------------- what a user writes


class Global(Training):
    """Draws from the global random streams, as a dropout layer does, and keeps attributes of many kinds."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self.average: dict[str, torch.Tensor] = {}
        self.recent: deque[float] = deque(maxlen=3)
        self.own, self.numpys, self.count = random.Random(3), np.random.default_rng(4), 0
        self.seen = np.zeros(3)

    def loss(self, outputs: Any, targets: Any, progress: float) -> torch.Tensor:
        noise = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
        noise = noise + self.own.random() + float(self.numpys.random()) + self.count + sum(self.recent)
        self.count += 1
        self.recent.append(float(noise) / 100)
        self.seen = self.seen + 1
        return super().loss(outputs, targets, progress) * (1 + noise / 100)


def test_global_streams_and_attributes(
    plugged: Callable[..., Any],  # noqa: F811
    goes_on: Going,
) -> None:
    trial = make_trial(plugged(Global), "random", cycles=2)
    goes_on(trial, 2, 2)


class Twice(Training):
    """Trains twice in a row, in a loop that has no checkpoints of its own."""

    def fit(self, cycle: Cycle) -> float:
        self.network = cycle.network
        return [fit(cycle, self) for _ in range(2)][-1]


@LONG
def test_a_training_that_calls_the_loop_twice(
    plugged: Callable[..., Any],  # noqa: F811
    kills: Kills,
    goes_on: Going,
) -> None:
    trial = make_trial(plugged(Twice), "random", cycles=1, epochs=2)
    goes_on(trial, 8)
    assert kills.contents[0]["loops"][0]["number"] == 1, "it died in the second"


class Early(Training):
    """Stops each epoch, a second loop in it, and the whole training before their last steps."""

    def fit(self, cycle: Cycle) -> float:
        network, draws, losses = cycle.network.train(), cycle.stream("early"), list[torch.Tensor]()
        optimiser = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        for epoch in cycle.steps(5, network=network, optimiser=optimiser, draws=draws, losses=losses):
            parts = [*torch.randperm(len(cycle.labelled), generator=draws).split(8)]
            for number in cycle.steps(len(parts), parts=parts):
                images, labels = next(cycle.pairs([parts[number]], cycle.stream(f"{epoch} {number}")))
                loss = torch.nn.functional.cross_entropy(network(images).logits, labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.detach())
                if number == 1 + epoch % 2:
                    break
            self._more(cycle, losses, draws)
            if epoch == 2:
                break
        network.eval()
        return float(torch.stack(losses).sum())

    def _more(self, cycle: Cycle, losses: list[torch.Tensor], draws: torch.Generator) -> None:
        for number in cycle.steps(3):
            losses.append(torch.rand((), generator=draws))
            if number == 1:
                return


def test_loops_may_end_early(
    plugged: Callable[..., Any],  # noqa: F811
    kills: Kills,
    goes_on: Going,
) -> None:
    trial = make_trial(plugged(Early), "vaal", cycles=2)
    goes_on(trial, *([1] * 11))
    loops = [[(loop["number"], loop["next"]) for loop in content["loops"]] for content in kills.contents]
    assert loops == [
        [(0, 0), (0, 1)], [(0, 0), (1, 1)], [(0, 1)],
        [(0, 1), (0, 1)], [(0, 1), (0, 2)], [(0, 1), (1, 1)], [(0, 2)],
        [(0, 2), (0, 1)], [(0, 2), (1, 1)],
        [], [(0, 1)],
    ]  # fmt: skip
    assert [content["stage"] for content in kills.contents[-3:]] == ["training", "training", "selection"]


def test_a_loop_that_nothing_closes_is_closed_with_the_step_or_stage_around() -> None:
    its, clock = Checkpoints(), Clock(torch.device("cpu"))
    outer, kept = Steps(its, clock, 3, {}), list[Iterator[int]]()
    for number in outer:
        assert its.open == [outer]
        kept.append(iter(Steps(its, clock, 3, {})))
        next(kept[-1])
        assert len(its.open) == 2 and its.open[1].number == 0, number
    assert its.open == []
    kept.append(iter(Steps(its, clock, 3, {})))
    next(kept[-1])
    its.begin("selection")
    assert its.open == [] and next(kept[-1]) == 1 and its.open == []


class Locked(Training):
    """Keeps what can't be stored."""

    def fit(self, cycle: Cycle) -> float:
        self.lock = threading.Lock()
        return super().fit(cycle)


class Stubborn:
    """Does not give its state."""

    def state_dict(self) -> Any:
        raise KeyError("a\nb")

    def load_state_dict(self, state: Any) -> None:
        pass


class Keeping(Training):
    """Keeps what does not give its state."""

    def fit(self, cycle: Cycle) -> float:
        self.it = Stubborn()
        return super().fit(cycle)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (Locked, "no checkpoint within the cycle is possible: training.lock is a lock"),
        (Keeping, "a checkpoint within the cycle could not be stored: KeyError: 'a\\nb'"),
    ],
)
def test_what_can_not_be_stored_is_said_once(
    training: type[Training],
    said: str,
    plugged: Callable[..., Any],  # noqa: F811
    digits: LoadedData,
    folders: Callable[[], Path],
) -> None:
    trial, whole, folder = make_trial(plugged(training), "vaal", cycles=2), folders(), folders()
    first, records = run(trial, digits, whole), run(trial, digits, folder, placement=EVERY_STEP)
    assert outcomes(records) == outcomes(first) and left(folder) == []
    added = [set(one.warnings) - set(two.warnings) for one, two in zip(records, first, strict=True)]
    assert added == [{said}] * 2


class Making(Training):
    """Keeps the class of its optimizer, and an object within its network."""

    def fit(self, cycle: Cycle) -> float:
        self.make_optimiser = torch.optim.SGD
        cycle.network.average = Thing()  # type: ignore[assignment]
        return super().fit(cycle)

    def loss(self, outputs: Any, targets: Any, progress: float) -> torch.Tensor:
        values: Any = self.network.average.values  # type: ignore[union-attr]
        values.append(outputs.logits.detach().mean())
        return super().loss(outputs, targets, progress) * (1 + sum(values))


def test_a_class_and_an_object_within_the_network(
    plugged: Callable[..., Any],  # noqa: F811
    goes_on: Going,
) -> None:
    trial = make_trial(plugged(Making), "random", cycles=1, epochs=2)
    goes_on(trial, 2, 2)


class Growing(Training):
    """Adds parameters to its optimizer within its loop."""

    def fit(self, cycle: Cycle) -> float:
        one, other, *_ = cycle.network.parameters()
        optimiser = torch.optim.SGD([one], 0.1)
        for step in cycle.steps(3, network=cycle.network, optimiser=optimiser):
            if step == 0:
                optimiser.add_param_group({"params": [other]})
        return 0.5


def test_a_state_that_can_not_be_restored_is_removed(
    plugged: Callable[..., Any],  # noqa: F811
    digits: LoadedData,
    folders: Callable[[], Path],
    kills: Kills,
) -> None:
    trial, folder = make_trial(plugged(Growing), "random", cycles=1), folders()
    kills.dies_at = 1
    with pytest.raises(Killed):
        run(trial, digits, folder, placement=EVERY_STEP)
    kills.dies_at = 0
    with pytest.raises(NotReproduced, match=r"can't be restored \(ValueError: .*\); it is removed, and --resume"):
        run(trial, digits, folder, placement=EVERY_STEP)
    assert left(folder) == []
    assert len(run(trial, digits, folder, placement=EVERY_STEP)) == 1


class Moody(Training):
    """Has other steps when it starts again."""

    loops = 1

    def fit(self, cycle: Cycle) -> float:
        for _ in cycle.steps(2):
            for _ in range(Moody.loops):
                for _ in cycle.steps(2 + Moody.loops):
                    pass
        return super().fit(cycle)


@pytest.mark.parametrize("loops", [pytest.param(0, marks=LONG), 2])
def test_a_training_with_other_steps_is_refused(
    loops: int,
    plugged: Callable[..., Any],  # noqa: F811
    digits: LoadedData,
    folders: Callable[[], Path],
    kills: Kills,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, folder = make_trial(plugged(Moody), "random", cycles=1), folders()
    kills.dies_at = 1
    with pytest.raises(Killed):
        run(trial, digits, folder, placement=EVERY_STEP)
    kills.dies_at = 0
    monkeypatch.setattr(Moody, "loops", loops)
    with pytest.raises(NotReproduced, match="does not go through the same steps when it starts again"):
        run(trial, digits, folder, placement=EVERY_STEP)
    assert left(folder) == []
    assert len(run(trial, digits, folder, placement=EVERY_STEP)) == 1


def test_steps_must_be_given_what_can_change() -> None:
    for wrong in (3, 1.5, "text", None, (1, 2), torch.zeros(2), np.zeros(2)):
        with pytest.raises(
            TypeError, match=r"steps: it is a .*, which no step can change: put it into a list or a dict"
        ):
            Steps(Checkpoints(), Clock(torch.device("cpu")), 2, {"it": wrong})


# ------------------------------------------------------------------------------------------------------------ the file


@pytest.fixture
def died(digits: LoadedData, folders: Callable[[], Path], kills: Kills) -> tuple[Trial, Path, list[CycleRecord]]:
    """Return a trial, a folder in which it died within cycle 1, and its undisturbed records."""
    trial, folder = make_trial("isda", "random", cycles=2), folders()
    kills.dies_at = 4
    with pytest.raises(Killed):
        run(trial, digits, folder, placement=EVERY_STEP)
    kills.dies_at = 0
    assert left(folder) == ["within_cycle_001.pt"]
    return trial, folder, run(trial, digits, folders())


Died = tuple[Trial, Path, list[CycleRecord]]
WAYS = ("payload", "truncate", "empty", "half", "folder")
OTHERS = ("data", "torch", "precision", "cycle")


@pytest.mark.parametrize("way", ["header", *(pytest.param(way, marks=LONG) for way in WAYS)])
def test_a_damaged_file_costs_only_time(way: str, died: Died, digits: LoadedData) -> None:
    trial, folder, first = died
    (path,) = folder.rglob("within_*")
    content = path.read_bytes()
    if way in ("header", "payload"):
        flip_byte(path, 0.001 if way == "header" else 0.6)
    elif way == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"truncate": content[:-7], "empty": b"", "half": content[: len(content) // 2]}[way])
    said = within.problems(path.parent)
    assert said == ([] if way == "folder" else [f"{path} is damaged: it is not used, and its cycle starts again"])
    if way == "folder":
        path.rmdir()
    records = run(trial, digits, folder, placement=EVERY_STEP)
    assert outcomes(records) == outcomes(first) and left(folder) == []
    assert records[1].lost_seconds == 0
    if way != "folder":
        assert records[1].warnings == [f"{path} is damaged: it is not used, and the cycle starts again"]


def test_a_file_that_is_no_state_runs_nothing(died: Died, digits: LoadedData, tmp_path: Path) -> None:
    trial, folder, first = died
    (path,) = folder.rglob("within_*")

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    conditions = json.loads(path.read_bytes()[64:].partition(b"\n")[0])
    name = {key: conditions.pop(key) for key in ("format", "kind", "cycle")}
    Within(path.parent, name["kind"], name["cycle"], conditions).write({"loops": Command()})
    assert within.problems(path.parent) == []
    records = run(trial, digits, folder, placement=EVERY_STEP)
    assert outcomes(records) == outcomes(first) and not (tmp_path / "ran").exists()
    assert records[1].warnings == [f"{path} is no state of a cycle: it is not used, and the cycle starts again"]


@pytest.mark.parametrize("what", ["code of training", "trial", *(pytest.param(other, marks=LONG) for other in OTHERS)])
def test_a_state_of_other_conditions_is_not_continued(
    what: str, died: Died, digits: LoadedData, folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, folder, first = died
    (path,) = folder.rglob("within_*")
    if what == "trial":
        trial = changed(trial, seed=9)
        target = RunStore(folder).trial(trial.id).folder / "within_cycle_000.pt"
        target.parent.mkdir(parents=True)
        path = path.rename(target)
        said = "another cycle, folder"
    elif what == "cycle":
        (path.parent / "cycle_000.json").unlink()
        path = path.rename(path.with_name("within_cycle_000.pt"))
        said = "another cycle"
    else:
        conditions, _, payload = path.read_bytes()[64:].partition(b"\n")
        rest = b" " + json.dumps({**json.loads(conditions), what: "another"}, sort_keys=True).encode() + b"\n" + payload
        path.write_bytes(hashlib.sha256(rest).hexdigest().encode() + rest)
        said = f"another {what}"
    first = run(trial, digits, folders())
    records = run(trial, digits, folder, placement=EVERY_STEP)
    assert outcomes(records) == outcomes(first) and left(folder) == []
    warning = f"{path} was written under {said}: it is not used, and the cycle starts again"
    assert [record.warnings for record in records] == ([[warning], []] if "000" in path.name else [[], [warning]])


def test_a_disk_that_is_full_ends_no_training(
    digits: LoadedData, folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, folder = make_trial("isda", "vaal", cycles=2), folders()
    first, write = run(trial, digits, folders()), disk.write

    def full(path: Path, data: Any, new: bool = False) -> None:
        if path.name.startswith("within"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, new)

    monkeypatch.setattr(disk, "write", full)
    records = run(trial, digits, folder, placement=EVERY_STEP)
    assert outcomes(records) == outcomes(first) and left(folder) == []
    for cycle, (one, two) in enumerate(zip(records, first, strict=True)):
        path = RunStore(folder).trial(trial.id).folder / f"within_cycle_{cycle:03d}.pt"
        (added,) = set(one.warnings) - set(two.warnings)
        assert added == f"a checkpoint within the cycle could not be stored: {path}: can't be written: {FULL}"


FULL = "No space left on device"


def test_files_that_no_cycle_uses_are_removed(digits: LoadedData, folders: Callable[[], Path]) -> None:
    folder, trial = folders(), make_trial("cross_entropy", "random", cycles=2)
    run(changed(trial, cycles=1), digits, folder)
    place = RunStore(folder).trial(trial.id).folder
    stale = ["within_cycle_000.pt", "within_cycle_002.pt", "within_selection_001.pt"]
    for name in (*stale, "within_cycle_001.pt", "within_selection_000.pt"):
        (place / name).write_bytes(b"x")
    within.sweep(place, 1, late=True)
    assert left(folder) == ["within_cycle_001.pt", "within_selection_000.pt"]
    for name in stale:
        (place / name).write_bytes(b"x")
    assert len(run(trial, digits, folder)) == 2 and left(folder) == []
    (place / "within_selection_001.pt").write_bytes(b"x")
    run(trial, digits, folder, placement=EVERY_STEP)
    within.sweep(place, 2)
    assert left(folder) == []


@pytest.mark.parametrize("rest", [b"no line", b" []\nx", b" {\nx", b"[" * 10**5 + b"\n", b" {}\n"])
def test_a_digest_alone_makes_no_state(rest: bytes, tmp_path: Path) -> None:
    file = Within(tmp_path, "cycle", 3, {})
    file.path.write_bytes(hashlib.sha256(rest).hexdigest().encode() + rest)
    content, problem = file.read()
    damaged = f"{file.path} is damaged"
    assert content is None
    assert problem == (damaged if rest != b" {}\n" else f"{file.path} was written under another cycle, format, kind")
    assert within.problems(tmp_path) == (
        [f"{damaged}: it is not used, and its cycle starts again"] if problem == damaged else []
    )


@pytest.mark.parametrize("content", [{}, {"loops": []}, [], torch.zeros(2)])
def test_a_content_that_lacks_parts_is_no_state(content: Any, tmp_path: Path) -> None:
    file = Within(tmp_path, "cycle", 3, {})
    file.write(content)
    assert file.read() == (None, f"{file.path} is no state of a cycle")


def test_a_state_is_read_without_a_copy_of_its_file(tmp_path: Path) -> None:
    file = Within(tmp_path, "cycle", 0, {})
    content = dict.fromkeys(within.PARTS, None) | {"stage": {"weights": torch.arange(2_000_000.0)}}
    file.write(content)
    tracemalloc.start()  # sees bytes, and no tensors
    try:
        found, said = file.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said == "" and found is not None and found["stage"]["weights"].equal(content["stage"]["weights"])
    assert peak < 1.2 * file.path.stat().st_size


def test_states_of_finished_cycles_are_swept(tmp_path: Path) -> None:
    kept = ["cycle_003.json", "within_cycle_004.pt", "within_selection_003.pt"]
    for name in ("within_cycle_003.pt", *kept):
        (tmp_path / "trials" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "trials" / "x" / name).write_bytes(b"x")
    disk.sweep(tmp_path)
    assert sorted(path.name for path in (tmp_path / "trials" / "x").iterdir()) == sorted(kept)


# ------------------------------------------------------------------------------------------------------------ the clock


def test_checkpoints_are_written_when_it_is_time(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints, "time", type("Time", (), {"monotonic": staticmethod(lambda: now[0])}))
    real = Training.loss

    def loss(*arguments: Any) -> torch.Tensor:
        now[0] += 60.0
        return real(*arguments)

    monkeypatch.setattr(Training, "loss", loss)
    trial = make_trial("cross_entropy", "entropy", cycles=1, epochs=3)  # nine steps, of a minute each
    run(trial, digits, folders(), placement=Placement(checkpoint_minutes=2))
    assert kills.writes == 4
    run(changed(trial, seed=4), digits, folders(), placement=Placement(checkpoint_minutes=100))
    run(changed(trial, seed=5), digits, folders(), placement=Placement(checkpoint_minutes=0))
    assert kills.writes == 4
    run(changed(trial, cycles=2, seed=6), digits, folders(), placement=Placement(checkpoint_minutes=9))
    assert kills.writes == 6, "a network whose training took long, and a step of the longer cycle after it"


def test_seconds_add_up_and_lost_ones_are_apart(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, at = Training.loss, [time.time]

    def loss(*arguments: Any) -> torch.Tensor:
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(Training, "loss", loss)
    trial, folder = make_trial("cross_entropy", "random", cycles=1, epochs=3), folders()  # nine steps
    kills.dies_at = 5
    with pytest.raises(Killed):
        run(trial, digits, folder, placement=EVERY_STEP)
    kills.dies_at = 0
    monkeypatch.setattr("harness.trial.time.time", lambda: at[0]() - 1000)  # a clock that is set back loses nothing
    kills.run(trial, digits, folder)
    (record,) = RunStore(folder).trial(trial.id).records()
    assert record.lost_seconds == 0
    assert 9 * 0.05 <= record.seconds["train"] < 9 * 0.05 + 2
    assert record.seconds["checkpoint"] > 0
    assert sum(record.seconds.values()) == pytest.approx(record.wall_seconds, rel=0.2)


def test_lost_seconds_are_those_since_the_checkpoint(
    digits: LoadedData, folders: Callable[[], Path], kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("harness.trial.time.time", lambda: now[0])
    trial, folder = make_trial("cross_entropy", "random", cycles=1, epochs=3), folders()
    for life, later in ((2, 3600.0), (2, 30.0), (0, 0.0)):
        kills.writes, kills.dies_at = 0, life
        if life:
            with pytest.raises(Killed):
                run(trial, digits, folder, placement=EVERY_STEP)
        now[0] += later
    (record,) = run(trial, digits, folder, placement=EVERY_STEP)
    assert record.lost_seconds == 3630.0


# ------------------------------------------------------------------------------------------------------------ snapshots


def through_a_file(taken: Any) -> Any:
    file = io.BytesIO()
    torch.save(taken, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


class Thing:
    """An object of a plug-in."""

    def __init__(self) -> None:
        self.values: Any = []


def test_references_to_one_object_stay_that() -> None:
    def made() -> dict[str, Any]:
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        return {"network": network, "optimiser": torch.optim.SGD(network.parameters(), 0.1, 0.9), "thing": Thing()}

    one, other, shared = made(), made(), torch.rand(3)
    one["network"](torch.rand(4, 2)).sum().backward()
    one["optimiser"].step()
    one["thing"].values = [shared, shared, one["network"][0], one["network"][0].weight, one["thing"]]
    one["thing"].more = {"a": OrderedDict(b=np.float32(0.1)), 3: {1, 2}, "none": None, "f": len}
    taker = Taker()
    taken = through_a_file({name: taker.take(value, name) for name, value in one.items()})
    other["thing"].more = {"f": len}
    restorer = Restorer(torch.device("cpu"))
    for name, value in other.items():
        assert restorer.put(value, taken[name]) is value
    assert other["thing"].values == [], "nothing is changed before apply"
    restorer.apply()
    values = other["thing"].values
    assert torch.equal(values[0], shared) and values[0] is values[1] and values[4] is other["thing"]
    assert values[2] is other["network"][0] and values[3] is other["network"][0].weight
    assert same(other["network"].state_dict(), one["network"].state_dict())
    states = [each["optimiser"].state_dict()["state"] for each in (one, other)]
    assert torch.equal(states[0][0]["momentum_buffer"], states[1][0]["momentum_buffer"])
    assert other["thing"].more == one["thing"].more and type(other["thing"].more["a"]["b"]) is np.float32


def test_a_module_keeps_its_mode_its_numbers_and_its_buffers() -> None:
    one, other = (torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)) for _ in range(2))
    for module in (one, other):
        module[1].register_buffer("hidden", torch.zeros(2), persistent=False)
        module[1].count, module[1].unknown = 0, threading.Lock()  # type: ignore[assignment]
    one.eval()
    one[1].count = 7  # type: ignore[assignment]
    one[1].hidden += 1  # type: ignore[operator]
    restorer = Restorer(torch.device("cpu"))
    restorer.put(other, through_a_file(Taker().take(one, "one")))
    restorer.apply()
    assert not other[0].training and other[1].count == 7 and torch.equal(other[1].hidden, torch.ones(2))  # type: ignore[arg-type]


def restored(live: Any, taken: Any) -> Any:
    """Return what stands in the place of an object, through a file."""
    restorer = Restorer(torch.device("cpu"))
    found = restorer.put(live, through_a_file(Taker().take(taken, "it")))
    restorer.apply()
    return found


class Mode(Enum):
    """An attribute that a training may change."""

    SLOW = "slow"
    FAST = "fast"


Pair = namedtuple("Pair", "a b")


class Guarded(Thing):
    """Has a lock that is no part of its state."""

    def __init__(self, *values: Any) -> None:
        self.values, self.lock = [*values], threading.Lock()

    def __getstate__(self) -> Any:
        return {"values": self.values}


def test_a_module_keeps_which_parameters_train() -> None:
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    one.weight.requires_grad_(False)
    other.bias.requires_grad_(False)
    restored(other, one)
    assert not other.weight.requires_grad and other.bias.requires_grad


def test_a_module_keeps_what_is_not_registered_in_it() -> None:
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for module in (one, other):
        module.teacher, module.average = [torch.nn.Linear(2, 2)], Thing()  # type: ignore[assignment]
    one.average.values, one.average.decay = [torch.ones(2)], 0.9  # type: ignore[union-attr, assignment]
    teacher, average = other.teacher[0], other.average  # type: ignore[index]
    restored(other, one)
    assert other.teacher[0] is teacher and same(teacher.state_dict(), one.teacher[0].state_dict())  # type: ignore[index]
    assert other.average is average and torch.equal(average.values[0], torch.ones(2)) and average.decay == 0.9  # type: ignore[union-attr]


def test_what_a_module_can_not_keep_is_named_if_it_has_tensors() -> None:
    module, taker = torch.nn.Linear(2, 2), Taker()
    module.plain, module.held = Thing(), Thing()  # type: ignore[assignment]
    module.plain.values, module.held.values = [threading.Lock()], [torch.ones(2), threading.Lock()]  # type: ignore[union-attr]
    taker.take(torch.nn.Sequential(module), "network")
    assert taker.left_out == ["network.0.held, a Thing"]


@pytest.mark.parametrize(
    ("live", "taken"),
    [
        (Mode.SLOW, Mode.FAST),
        (torch.Size([1]), torch.Size([2, 3])),
        (None, torch.Size([2, 3])),
        (frozenset(), frozenset({1, 2})),
        (None, range(3, 9, 2)),
        (Pair(0, 0), Pair(1, [2])),
        ([], [(1, 2), {3}, [4], {"a": 5}]),
        (len, len),
        (partial(int, base=3), partial(int, base=3)),
        (torch.float16, torch.float16),
        (Path("a"), Path("a")),
        (Thing, Thing),
    ],
)
def test_values_of_many_kinds_come_back(live: Any, taken: Any) -> None:
    one, other = Thing(), Thing()
    one.values, other.values = taken, live
    assert restored(other, one) is other
    if isinstance(taken, partial):
        assert other.values is live
    else:
        assert other.values == taken and type(other.values) is type(taken)


def test_what_an_object_leaves_out_of_its_state_stays() -> None:
    one, other = Guarded(1, 2), Guarded()
    lock = other.lock
    restored(other, one)
    assert other.values == [1, 2] and other.lock is lock


@pytest.mark.parametrize(
    ("live", "taken"),
    [
        (len, max),
        (None, len),
        (partial(int, base=3), partial(int, base=4)),
        (torch.float16, torch.float32),
        (Path("a"), Path("b")),
        (Thing, Guarded),
        ("slow", Mode.SLOW),
        ([], [Pair(1, 2)]),
        ([], [Mode.SLOW]),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)),
        (torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))),
        (None, torch.nn.Linear(2, 2)),
        (Thing(), deque([1])),
        ([], [Thing()]),
        ({}, {"a": len}),
    ],
)
def test_another_structure_is_unlike(live: Any, taken: Any) -> None:
    with pytest.raises(Unlike):
        Restorer(torch.device("cpu")).put(live, through_a_file(Taker().take(taken, "it")))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (iter([1]), "it.values is a list_iterator"),
        ((number for number in range(3)), "it.values is a generator"),
        ({(1, 2): 3}, "it.values has a key that is a tuple"),
        ([threading.Lock()], re.escape("it.values[0] is a lock")),
        (np.array(["text"]), "it.values is an array of type <U4"),
        (torch.eye(2).to_sparse(), "it.values is a tensor without a storage of its own"),
    ],
)
def test_what_is_unstorable_is_named(value: Any, said: str) -> None:
    thing = Thing()
    thing.values = value
    with pytest.raises(Unstorable, match=said):
        Taker().take(thing, "it")

"""What the Ray edge decides without a cluster: reservations, the order of units, and when workers pay."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import make_trial, opened, same
from local_ray import ROWS, WIDTH, remote, replace_ray

from harness import registry
from harness.data.dataset import LoadedData
from harness.errors import UserError
from harness.experiment import crash
from harness.experiment.display import cycle_values
from harness.experiment.grid import Unit
from harness.faults import PluginFault
from harness.learning.checkpoints import Checkpoints, Steps
from harness.learning.contract import Batch
from harness.learning.metrics import summary
from harness.learning.process import Placement
from harness.learning.scoring import Describing, Scored, Shard, cut
from harness.networks.network import Network
from harness.on_ray import scoring
from harness.on_ray.metrics import Metrics
from harness.on_ray.scoring import AutoScorer, RayData, Worker
from harness.on_ray.session import resources
from harness.on_ray.trials import Order, Searcher
from harness.results.clock import Clock
from harness.results.records import PHASES
from harness.settings import Recipe, Where

CPUS = [{"CPU": 2.0}]
GPUS = [{"CPU": 16.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("where", "exclusive", "nodes", "bundle", "concurrent", "share"),
    [
        ({}, False, CPUS, {"CPU": 1}, 2, 2),
        ({"cpus_per_trial": 2}, False, CPUS, {"CPU": 2}, 1, 1),
        ({"max_concurrent": 1}, False, CPUS, {"CPU": 1}, 1, 1),
        ({}, True, CPUS, {"CPU": 2}, 1, 1),  # a CPU is all of a node's processors
        ({}, False, CPUS * 3, {"CPU": 1}, 6, 2),
        ({}, True, CPUS * 3, {"CPU": 2}, 3, 1),
        ({}, False, GPUS, {"CPU": 1, "GPU": 1.0}, 2, 1),
        ({"gpus_per_trial": 0.25}, False, GPUS, {"CPU": 1, "GPU": 0.25}, 8, 4),
        ({"gpus_per_trial": 0.3}, False, GPUS, {"CPU": 1, "GPU": 0.3}, 6, 3),  # no trial lies across two GPUs
        ({"gpus_per_trial": 0.25}, True, GPUS, {"CPU": 1, "GPU": 1.0}, 2, 1),
        ({"gpus_per_trial": 0.25, "cpus_per_trial": 8}, False, GPUS, {"CPU": 8, "GPU": 0.25}, 2, 2),
        ({"gpus_per_trial": 0}, False, GPUS, {"CPU": 1}, 16, 16),
    ],
)
def test_reservations(
    where: dict[str, Any], exclusive: bool, nodes: Any, bundle: dict[str, float], concurrent: int, share: int
) -> None:
    found = resources(Where(**where), exclusive, nodes)
    assert found.bundle() == bundle
    assert (found.concurrent, found.device_share) == (concurrent, share)
    assert found.threads == where.get("cpus_per_trial", 1)
    assert found.processors == nodes[0]["CPU"]


@pytest.mark.parametrize(
    ("where", "nodes"),
    [
        ({"cpus_per_trial": 8}, [{"CPU": 4.0}, {"CPU": 4.0}]),  # enough together, too few on each
        ({"gpus_per_trial": 0.5}, CPUS),
        ({}, [{"CPU": 0.0, "GPU": 1.0}, {"CPU": 8.0}]),  # GPU and CPUs on different nodes
    ],
)
def test_what_no_node_can_hold_is_refused(where: dict[str, Any], nodes: Any) -> None:
    with pytest.raises(UserError, match=r"on one node \(where.cpus_per_trial, where.gpus_per_trial\)"):
        resources(Where(**where), False, nodes)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_every_metric_of_a_cycle_is_published_to_ray(
    per_pixel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: dict[str, float] = {}

    class Gauge:
        def __init__(self, name: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, set(tag_keys)

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags.keys() == self.tag_keys and tags.get("method", "Ran") == "Ran"
            published[self.name] = value

    monkeypatch.setattr("harness.on_ray.metrics.Gauge", Gauge)
    measured, _ = summary(torch.tensor([[[3, 1], [0, 4]]]), ("a", "b"), per_pixel)
    record: Any = SimpleNamespace(
        metrics=measured,
        labelled=40,
        cycle=2,
        seconds=dict.fromkeys(PHASES, 1.5),
        cost_seconds=6.0,
        peak_memory_bytes={"host": 7},
    )
    metrics = Metrics(units(), tmp_path, {})
    metrics("start", metrics.units[1], {})
    metrics("cycle", metrics.units[1], cycle_values(record))
    metrics.step()
    name, value = ("al_miou", (3 / 4 + 4 / 5) / 2) if per_pixel else ("al_accuracy", 7 / 8)
    of_cycle = {name: pytest.approx(value), "al_labelled": 40, "al_cycle": 2, "al_phase_seconds": 1.5}
    assert {key: found for key, found in published.items() if key != "al_trials"} == {
        **of_cycle,
        "al_peak_memory_bytes": 7,
    }


def units() -> list[Unit]:
    """Two methods that share a first cycle, and one alone."""
    random, entropy = make_trial("cross_entropy", "random"), make_trial("cross_entropy", "entropy")
    alone = make_trial("isda", "random")
    key = random.sharing_key
    return [
        Unit(random, "s", "first", False, True, None, [], []),
        Unit(random, "s", "Ran", False, False, key, [], []),
        Unit(entropy, "s", "Entropy", False, False, key, [], []),
        Unit(alone, "s", "Ran+", False, False, None, [], []),
    ]


def number(suggested: dict[str, Any]) -> int:
    """Return the number of the suggested unit, whose trial has the name of its log."""
    unit = units()[suggested["unit"]]
    assert f"{suggested['trial']}.log" == crash.log_of(unit, Path()).name
    return int(suggested["unit"])


@pytest.mark.parametrize("fails", [False, True])
def test_trials_wait_for_their_shared_first_cycle_and_others_do_not(fails: bool) -> None:
    order = Order(units())
    assert number(order.suggest("a")) == 0
    assert number(order.suggest("b")) == 3  # the first that waits for nothing
    assert order.suggest("c") is None
    order.on_trial_complete("b")
    assert order.suggest("c") is None
    order.on_trial_complete("a", error=fails)  # after a failure they train their first cycle themselves
    assert [number(order.suggest("c")), number(order.suggest("d"))] == [1, 2]
    assert order.suggest("e") == Searcher.FINISHED


class Workers:
    """Scoring workers that only count."""

    shards = 2

    def __init__(self) -> None:
        self.started = self.called = 0

    def start(self) -> None:
        self.started += 1

    def describe(self, *arguments: Any) -> Scored:
        self.called += 1
        return Scored({}, "ray_data", [Shard(1, 1, 1.0), Shard(2, 1, 1.0)])


@pytest.mark.parametrize(
    ("seconds", "cycles", "parallel", "worth_it"),
    [(0.1, 10, 2, False), (60.0, 10, 2, True), (60.0, 2, 2, False), (60.0, 10, 1, False)],
)
def test_scoring_goes_to_workers_when_the_measured_time_says_so(
    seconds: float, cycles: int, parallel: int, worth_it: bool, digits: LoadedData
) -> None:
    learner, cycle = opened(make_trial("cross_entropy", "entropy"), digits)
    workers: Any = Workers()
    scorer = AutoScorer(workers, cycles, parallel)
    spent = iter([seconds, 0.01])  # the many candidates, then the few labelled images

    def describe(*_: Any) -> Scored:
        return Scored({}, "in_process", [Shard(0, 1, next(spent, 0.01))])

    scorer.in_process.describe = describe  # type: ignore[method-assign]
    arguments = (learner.acquisition, {}, cycle.candidates, "describe")
    scorer.start()
    for _ in range(2):  # candidates, then labelled images: no worker is there before the next cycle starts them
        assert scorer.describe(cycle, *arguments).path == "in_process" and workers.started == 0
    scorer.start()
    later = scorer.describe(replace(cycle, number=1), *arguments)
    assert (later.path == "ray_data") == worth_it == bool(workers.started)


def test_a_worker_reports_its_peak_memory(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda held: held)
    learner, cycle = opened(make_trial("cross_entropy", "entropy"), digits)
    worker, task = Worker(None), [(registry.luggage(), digits, pickle.dumps(learner.trial), Placement())]
    numbers, indices = zip(*cut(cycle.candidates, cycle.recipe), strict=True)
    table = pa.table({"number": numbers, "indices": [some.tolist() for some in indices]})
    shard = SimpleNamespace(iter_batches=lambda **_: [table])
    weights = {name: value.numpy() for name, value in cycle.network.state_dict().items()}
    columns, done = worker.describe(shard, task, [(weights, {})], 0, 17)
    assert done.images == 150 and done.peak_memory_bytes["host"] > 2**20
    worker.leave()
    assert not hasattr(worker, "images") and not hasattr(worker, "network")
    again, _ = worker.describe(shard, task, [(weights, {})], 0, 17)  # as a process that Ray has restarted
    assert {name: column.tolist() for name, column in again.items()} == {k: v.tolist() for k, v in columns.items()}


@pytest.mark.parametrize(("at_once", "calls"), [(1, 3), (130, 2), (8192, 2)])
def test_workers_answer_in_parts(
    at_once: int, calls: int, digits: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, cycle = opened(make_trial("cross_entropy", "core_set"), digits)
    here = learner.scorer.describe(cycle, learner.acquisition, {}, cycle.candidates, "describe").columns
    replace_ray(monkeypatch)
    monkeypatch.setattr(scoring, "IMAGES_AT_ONCE", at_once)
    asked: list[int] = []

    def watched(worker: Worker) -> Any:
        def describe(*arguments: Any) -> Any:
            asked.append(arguments[-1])
            return worker.describe(*arguments)

        return remote(describe)

    beat = tmp_path / "7"
    beat.write_text("{}")
    os.utime(beat, (0, 0))
    there = RayData(learner.trial, digits, learner.placement, 2, beat=beat)
    there.workers = [watched(Worker(None)) for _ in range(2)]
    there.task = registry.luggage(), digits, pickle.dumps(learner.trial), learner.placement
    scored = there.describe(cycle, learner.acquisition, {}, cycle.candidates, "describe")
    assert same(scored.columns, here)
    assert [shard.images for shard in scored.shards] == [64, 86] and len(asked) == calls
    assert beat.stat().st_mtime > 0, "calls that are shorter than a heartbeat are progress too"


@pytest.mark.long
def test_a_million_rows_come_from_workers_in_constant_memory() -> None:
    script = Path(__file__).with_name("local_ray.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 128 * 2**20 < ROWS * WIDTH * 4 / 2


def test_a_worker_warms_up_before_it_is_timed(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda held: held)
    sizes: list[int] = []
    real = Network.forward

    def forward(self: Network, images: torch.Tensor, stages: bool = False) -> Any:
        sizes.append(len(images))
        return real(self, images, stages)

    monkeypatch.setattr(Network, "forward", forward)
    trial = make_trial("cross_entropy", "entropy")
    worker, task = Worker(None), [(registry.luggage(), digits, pickle.dumps(trial), Placement())]
    for _ in range(2):
        worker.take(task)
    assert sizes == [trial.recipe.inference_batch_size], "once per trial, when the worker starts"


def test_a_score_that_is_not_a_number_stops_the_trial(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, cycle = opened(make_trial("cross_entropy", "entropy"), digits)

    def broken(network: Network, batch: Batch, prepared: Any) -> dict[str, torch.Tensor]:
        return {"score": torch.full((len(batch.images),), float("nan"))}

    monkeypatch.setattr(learner.acquisition, "describe", broken)
    with pytest.raises(PluginFault, match=r"describe must return finite columns; 'score' is nan for 150 images"):
        learner.select(cycle)


def test_a_scoring_whose_batches_are_all_done_goes_on() -> None:
    """The process died after the step that the last part of another worker came in."""
    clock = Clock(torch.device("cpu"))

    def steps(count: int, columns: Any, found: Any) -> Steps:
        loop = Steps(Checkpoints(), clock, count, {"columns": columns, "found": found})
        found["done"][:], columns["index"] = True, torch.arange(1000)
        found["shards"] |= {0: vars(Shard(1, 400, 1.0)), 2: vars(Shard(2, 600, 1.0))}
        return loop

    recipe = Recipe(epochs=1, inference_batch_size=100)
    cycle: Any = SimpleNamespace(number=0, recipe=recipe, steps=steps, device=torch.device("cpu"), key=lambda _: 1)
    nothing: Any = None
    workers = RayData(nothing, nothing, nothing, 2)
    workers.shipped = 0
    scored = workers.describe(cycle, nothing, {}, torch.arange(1000), "describe")
    assert [shard.images for shard in scored.shards] == [400, 600] and len(scored.columns["index"]) == 1000
    it = Describing(cycle, torch.arange(1000))
    it.shard(Shard(3, 7, 1.0))
    assert [shard.images for shard in it.scored("").shards] == [400, 600, 7], "no entry replaces another one"

"""What methods keep for each class: computed in blocks, or refused in one sentence before anything starts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, make_trial, opened, spec
from test_cli import SUITES, write

from harness.config.load import load_config
from harness.data import host
from harness.data.dataset import DatasetInfo, LoadedData
from harness.errors import UserError
from harness.experiment import holding, room
from harness.experiment.grid import expand
from harness.learning import boundary, process
from harness.learning.contract import Acquisition, Ahead, Training
from harness.run import main
from harness.settings import Protocol, Where

statistics = import_module("harness.methods._class_statistics")
epmcm = import_module("harness.methods.epmcm")
FULL = {"training": {"name": "isda", "covariance": "full"}, "acquisition": "random"}


@pytest.fixture(autouse=True)
def asks_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge halves that keep little, too."""
    monkeypatch.setattr(boundary, "LITTLE", 0)


def foreseen(classes: int = 10, pool: int = 100, side: int = 8, **protocol: Any) -> Ahead:
    steps = {"initial": 20, "budget": 10, "cycles": 3, "start": "warm", **protocol}
    return Ahead("it", DatasetInfo(pool, 10, classes, 3, (side, side), ""), Protocol.model_validate(steps), (0,))


def half_of(name: str) -> Any:
    classes = {"isda": "ISDA", "epmcm": "EPMCM", "core_set": "CoreSet", "vaal": "VAAL", "sraal": "SRAAL"}
    return getattr(import_module(f"harness.methods.{name}"), classes[name])


def kept(name: str, contract: type[Any], classes: int, features: int, **settings: Any) -> int:
    half = spec(name, contract, **settings)
    return int(half_of(name).memory(half.settings, foreseen(classes), features))


def test_features_and_resized_images_of_the_pool_count() -> None:
    core_set = half_of("core_set")
    assert core_set.memory(None, foreseen(), 7) == 4 * 7 * 100, "all images are candidates or labelled"
    assert core_set.memory(None, foreseen(candidates=15), 7) == 4 * 7 * (30 + 15), "in the last cycle that selects"
    assert core_set.memory(None, foreseen(cycles=1), 7) == 0, "nothing is selected"
    for name in ("vaal", "sraal"):
        settings = half_of(name).Settings(side=16)
        assert half_of(name).memory(settings, foreseen(), 7) == 100 * 16 * 16 * 3
        assert half_of(name).memory(settings, foreseen(side=16), 7) == 0, "they have the size anyway"


@pytest.mark.parametrize(
    ("where", "exclusive", "share"),
    [
        ({"gpus_per_trial": 0.25}, False, 0.25),
        ({"gpus_per_trial": 0.25}, True, 1.0),
        ({"gpus_per_trial": 0}, False, 0.0),
        ({"gpus_per_trial": 0}, True, 0.0),
        ({}, False, 1.0),
        ({"device": "cpu"}, True, 0.0),
        ({"gpus_per_trial": 0.25, "trials": "in_process"}, False, 1.0),
    ],
)
def test_a_trial_is_judged_by_the_gpu_that_it_has(
    where: dict[str, Any], exclusive: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holding.gpus_per_trial(Where(**where), exclusive, True) == share
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(process, "chosen_device", lambda requested: "cpu" if requested == "cpu" else "cuda")
    monkeypatch.setattr(process, "available", lambda device, part: asked.append((device.type, part)) or 1)
    room.memory(Where(**where), exclusive, scores=False)
    assert asked.pop() == ("cuda" if share else "cpu", share)
    room.memory(Where(**where, shards=3), exclusive, scores=True)
    workers = 0 if where.get("trials") == "in_process" else 3  # each has an equal part of the share of its trial
    assert asked.pop() == ("cuda" if share else "cpu", share / (1 + workers))


def test_what_is_kept_is_what_the_tensors_take() -> None:
    found = statistics.ClassStatistics(7, "full")
    found.update(torch.randn(9, 5), torch.arange(9) % 7)
    assert kept("isda", Training, 7, 5, covariance="full") == found.covariance.nbytes == 4 * 7 * 25
    root = found.logit_covariance(torch.randn(7, 5))
    assert kept("epmcm", Acquisition, 7, 5, form="sampled") == root.nbytes == 4 * 7**3
    assert kept("isda", Training, 1000, 4096) == kept("epmcm", Acquisition, 1000, 4096, statistics="fresh") == 0
    assert round(kept("isda", Training, 1000, 4096, covariance="full") / 1e9, 1) == 67.1, "as docs/data.md says"
    assert round(kept("epmcm", Acquisition, 1000, 4096, form="sampled") / 1e9) == 4


def overridden(tmp_path: Path, method: str, *more: str) -> Any:
    return load_config(write(tmp_path, SUITES), [f"methods={{Ran: random, it: {method}}}", *more])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "{training: {name: isda, covariance: full}, acquisition: random}",
            "isda with covariance: full keeps 41.0 kB for 1442 training images, 10 classes and 32 features, but a "
            "trial has 30.0 kB of memory here; choose fewer classes or a network with fewer features or other settings "
            "of isda; --only suite=a method=Ran runs the others",
        ),
        (
            "{training: isda, acquisition: {name: epmcm, form: sampled}}",
            "epmcm with form: sampled keeps 4.0 kB for 1442 training images, 10 classes and 32 features, but a "
            "trial has 3.0 kB of memory here; choose fewer classes or other settings of epmcm; --only "
            "suite=a method=Ran runs the others",
        ),
        (
            "core_set",
            "core_set keeps 184.6 kB for 1442 training images, 10 classes and 32 features, but a trial has 3.0 kB of "
            "memory here; choose fewer candidates or fewer images or a network with fewer features; --only "
            "suite=a method=Ran runs the others",
        ),
    ],
)
def test_too_large_methods_are_refused_before_anything_starts(
    method: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = overridden(tmp_path, method)
    expand(benchmark)
    free = 30_000 if "full" in method else 3000
    monkeypatch.setattr(host, "free_memory", lambda: free)
    with pytest.raises(UserError) as caught:
        expand(benchmark)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    path = str(write(tmp_path, SUITES))
    output = tmp_path / "out"
    arguments = [path, f"methods={{Ran: random, it: {method}}}", f"where.output={output}"]
    assert main([*arguments, "--plan"]) == main(arguments) == 2
    assert words in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize(("name", "config"), [("resnet_small", "quickstart"), ("drn_small", "quickstart_scenes")])
def test_a_network_that_no_machine_holds_is_refused_before_anything_starts(
    name: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [config, f"where.output={tmp_path / 'out'}", f"model={{name: {name}, width: 10000}}"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"the weights of {name} and their gradients take " in said, said
    assert "of memory here; choose a smaller network" in said
    assert not list((tmp_path / "out").glob("**/*.json"))


def test_all_methods_without_room_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = "{Ran: random, A: core_set, B: {training: {name: isda, covariance: full}, acquisition: core_set}}"
    benchmark = load_config(write(tmp_path, SUITES), [f"methods={methods}"])
    monkeypatch.setattr(host, "free_memory", lambda: 3000)
    with pytest.raises(UserError, match=r"\(also B\): core_set keeps .*; --only suite=a method=Ran runs the others$"):
        expand(benchmark)
    alone = load_config(write(tmp_path, SUITES), ["methods={A: core_set}", "primary=null"])
    with pytest.raises(UserError, match=r"features$"):
        expand(alone)


def test_the_network_is_built_only_for_methods_that_keep_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = import_module("harness.networks.building")

    def build(*_: Any) -> Any:
        raise AssertionError("built")

    monkeypatch.setattr(building, "build", build)
    expand(overridden(tmp_path, "{training: isda, acquisition: epmcm}"))
    with pytest.raises(AssertionError, match="built"):
        expand(overridden(tmp_path, "{training: {name: isda, covariance: full}, acquisition: random}"))


def test_a_cluster_of_other_machines_is_not_judged_by_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_memory", lambda: 10)
    method = "{training: {name: isda, covariance: full}, acquisition: random}"
    expand(overridden(tmp_path, method, "where.trials=ray", "where.address=somewhere:6379"))


def test_a_trial_asks_for_itself(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial(spec("isda", Training, covariance="full"), spec("epmcm", Acquisition, form="sampled"))
    opened(trial, digits)
    monkeypatch.setattr(host, "free_memory", lambda: 3000)
    with pytest.raises(UserError, match=r"isda with covariance: full keeps 41\.0 kB .* a trial has 3\.0 kB"):
        opened(trial, digits)
    monkeypatch.setattr(host, "free_memory", lambda: None)
    opened(trial, digits)  # what is not known refuses nothing


def test_the_memory_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 1000}))
    assert process.available(torch.device("cuda:0"), 0.25) == 250
    monkeypatch.setattr(host, "free_memory", lambda: 4000)
    assert process.available(torch.device("cpu"), 0.25) == 4000


def test_a_wrong_number_of_bytes_is_a_fault(digits: LoadedData) -> None:
    class Wrong(Training):
        @classmethod
        def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
            return -1

    with pytest.raises(UserError, match="memory must return an int of at least 0; got"):
        boundary.too_large(Wrong, spec("cross_entropy", Training), foreseen(), lambda: 1, lambda: 1)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_blocks_of_classes_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, width = 7, 5
    draw = generator(3)
    batches = [(torch.randn(11, width, generator=draw), torch.randint(0, classes, (11,), generator=draw)) for _ in "ab"]
    weight = torch.randn(classes, width, generator=draw)
    logits = torch.randn(13, classes, generator=draw)
    results = []
    monkeypatch.setattr(statistics, "_may_loop", lambda tensor: False)
    for size in (2**26, 2 * width * 11, 1):  # all classes at once, two, and one
        monkeypatch.setattr(statistics, "LARGE_BLOCK", size)
        found = statistics.ClassStatistics(classes, kind)
        for batch in batches:
            found.update(*batch)
        covariance = found.logit_covariance(weight)
        score = epmcm.sampled(logits, epmcm.matrix_root(covariance), 70, generator(1))
        results.append((found.covariance, covariance, score))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_roots_are_computed_in_blocks(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("isda", spec("epmcm", Acquisition, form="sampled", samples=8))
    learner, cycle = opened(trial, digits)
    learner.train(cycle)
    learner.acquisition.ready(cycle)
    whole = learner.acquisition.prepare(cycle)["root"]
    sizes: list[int] = []
    real = epmcm.matrix_root

    def watched(covariance: torch.Tensor) -> torch.Tensor:
        sizes.append(len(covariance))
        return real(covariance)

    monkeypatch.setattr(epmcm, "matrix_root", watched)
    monkeypatch.setattr(statistics, "LARGE_BLOCK", 4 * 10 * 10)
    parts = learner.acquisition.prepare(cycle)["root"]
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(parts @ parts.mT, whole @ whole.mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("statistic", ["running", "fresh"])
def test_the_diagonal_and_fresh_statistics_hold_no_matrix_of_features(
    statistic: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VGG-16 has 4096 features: a matrix for each class would be 67 GB on ImageNet."""
    learner, cycle = opened(make_trial("isda", spec("epmcm", Acquisition, statistics=statistic)), digits)
    width = cycle.network.classifier.in_features
    assert width == 32
    shapes: set[tuple[int, ...]] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    shapes.add(tuple(tensor.shape))
            return out

    with Watch():
        learner.train(cycle)
        learner.acquisition.ready(cycle)
        learner.acquisition.prepare(cycle)
    assert not [shape for shape in shapes if shape[-2:] == (width, width)]
    assert (10, 10) in shapes, "the table"

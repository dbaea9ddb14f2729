"""Small problems, and runs of whole trials on them in this process."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell lets its background jobs, and their children, ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

from harness import registry
from harness.config.suite import PluginSpec, Trial
from harness.data.dataset import DataRoot, Dataset, DatasetSettings, LoadedData
from harness.learning.contract import Acquisition, Batch, Training
from harness.learning.cycle import Cycle
from harness.learning.process import Placement
from harness.networks.names import spec as net
from harness.results.records import PHASES, CycleRecord
from harness.results.store import RunStore
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner, Report, run_shared, run_trial

torch.set_num_threads(1)


@pytest.fixture
def never_hangs() -> Iterator[None]:
    """End the tests with a traceback if one waits for a pipe or walks in a circle."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


HALF = Recipe(epochs=1, precision="bfloat16")
"""How most runs have their networks run."""


Written = str | PluginSpec
"""A plug-in: its name alone stands for its default settings."""


CUT = {"iterations": 4, "width": 4, "batch_size": 16, "latent": 6, "members": 2, "passes": 3}
"""What makes a method long, and the size it has in tests of any method."""


def a_record(**fields: Any) -> CycleRecord:
    """Return the record of a finished cycle, with what a test gives."""
    values: dict[str, Any] = {
        "suite": "s",
        "dataset": "d",
        "model": "m",
        "method": "x",
        "trial": "trial",
        "seed": 0,
        "cycle": 0,
        "labelled": 10,
        "metrics": {"accuracy": 0.5},
        "selected": [1, 2],
        "seconds": dict.fromkeys(PHASES, 0.1),
        "wall_seconds": 0.7,
        "target_parameters": 1,
        "extra_parameters": 0,
        "peak_memory_bytes": {"host": 1},
        "training_images": 1,
        "final_loss": 0.25,
        "device": "cpu",
        "device_share": 1,
        "threads": 1,
        "precision": "float32",
        "scoring": {"path": "none", "shards": []},
    }
    return CycleRecord(**{**values, **fields})


def cut(plugin: Any) -> dict[str, Any]:
    """Return the settings that cut a plug-in down to seconds."""
    return {key: value for key, value in CUT.items() if key in plugin.Settings.model_fields}


def spec(written: Written, contract: type[Any], **settings: Any) -> PluginSpec:
    """Return a plug-in with its settings, as the config would, but cut down where they are not given."""
    if isinstance(written, PluginSpec):
        return written
    plugin: Any = registry.find("methods", written, contract)
    assert plugin is not None
    return PluginSpec(written, plugin.Settings(**(cut(plugin) | settings)))


def changed(trial: Trial, **keys: Any) -> Trial:
    """Return the trial with some keys of its model, recipe or protocol changed, or fields of its own."""
    settings = trial.model.settings
    new = {key: keys.pop(key) for key in list(keys) if key in type(settings).model_fields}
    trial = replace(trial, model=net(trial.model.name, **{**settings.model_dump(), **new}))
    for name in ("recipe", "protocol"):
        old = getattr(trial, name)
        new = {key: keys.pop(key) for key in list(keys) if key in type(old).model_fields}
        trial = replace(trial, **{name: type(old)(**{**old.model_dump(), **new})})
    return replace(trial, **keys)


def make_trial(training: Written = "cross_entropy", acquisition: Written = "random", **keys: Any) -> Trial:
    """Return a trial of three short cycles of a tiny network."""
    trial = Trial(
        dataset=PluginSpec("digits", DatasetSettings()),
        model=net("resnet_small", width=4),
        recipe=Recipe(epochs=1, batch_size=16, learning_rate=0.05, crop_padding=1, inference_batch_size=64),
        protocol=Protocol(initial=40, budget=20, cycles=3, candidates=150, start="warm"),
        training=spec(training, Training),
        acquisition=spec(acquisition, Acquisition),
        seed=3,
    )
    return changed(trial, **keys)


def make_street_trial(training: Any = "cross_entropy", acquisition: Any = "random", **keys: Any) -> Trial:
    """Return a trial of three short cycles of a tiny DRN on street scenes."""
    defaults = {"initial": 6, "budget": 4, "candidates": 16, "batch_size": 4, "inference_batch_size": 6}
    trial = make_trial(training, acquisition, crop_padding=0, **(defaults | keys))
    return changed(trial, dataset=PluginSpec("streets", DatasetSettings()), model=net("drn_small", width=4))


def nothing(record: CycleRecord) -> None:
    """Report to nobody."""


def run(
    trial: Trial, data: LoadedData, folder: Path, report: Report = nothing, placement: Placement | None = None
) -> list[CycleRecord]:
    """Run a trial to its end, or go on with it, and return its stored records."""
    store = RunStore(folder)
    run_trial(ActiveLearner(trial, data, placement), store, "suite", "method", report)
    return store.trial(trial.id).records()


class Stop(Exception):
    """The process ends here."""


def run_with_stops(trial: Trial, data: LoadedData, folder: Path) -> list[CycleRecord]:
    """Run a trial in as many processes' worth of learners as it has cycles."""
    for last in range(trial.protocol.cycles - 1):
        seen = []

        def stop(record: CycleRecord, last: int = last, seen: Any = seen) -> None:
            seen.append(record.cycle)
            if record.cycle == last:
                raise Stop

        with pytest.raises(Stop):
            run(trial, data, folder, stop)
        assert seen == list(range(last + 1)), "finished cycles are reported again, and are not run again"
    return run(trial, data, folder)


def share(trial: Trial, data: LoadedData, folder: Path, report: Report = nothing) -> None:
    """Run the first cycle that a trial shares with others."""
    run_shared(ActiveLearner(trial, data), RunStore(folder), "suite", "method", report)


def opened(trial: Trial, data: LoadedData) -> tuple[ActiveLearner, Cycle]:
    """Return a learner and its first cycle, not yet trained."""
    learner = ActiveLearner(trial, data)
    return learner, learner.open_cycle(0)


def trained(trial: Trial, data: LoadedData) -> tuple[ActiveLearner, Cycle]:
    """Return a learner and its first cycle, trained; the acquisition can prepare."""
    learner, cycle = opened(trial, data)
    learner.train(cycle)
    learner.acquisition.ready(cycle)
    return learner, cycle


def outcomes(records: list[CycleRecord]) -> list[dict[str, Any]]:
    """Return what must come out the same, and the loss, which is finer than the accuracy."""
    return [{**record.outcome(), "loss": record.final_loss} for record in records]


def state_of(trial: Trial, folder: Path) -> dict[str, Any]:
    """Return the weights and carried state after the last finished cycle."""
    state = RunStore(folder).trial(trial.id).resume_point()[1]
    assert state is not None
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two dictionaries of tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's weights."""
    return {k: v.clone() for k, v in network.state_dict().items()}


def generator(seed: int = 5) -> torch.Generator:
    """Return a random stream."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    """Return normally distributed numbers."""
    return torch.randn(shape, generator=generator(seed))


def batch_of(images: torch.Tensor, seed: int = 5) -> Batch:
    """Return the images as a batch of a pool that has no others."""
    return Batch(images, torch.arange(len(images)), generator(seed))


def flat(text: str) -> str:
    """Return the text in one line."""
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plug-ins of the user that a test adds."""
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(registry, "_used", set())
    monkeypatch.setattr(registry, "_carried", None)
    yield
    registry._import.cache_clear()
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("own_package", "own_file") or name.startswith("harness_plugins_"):
            del sys.modules[name]


@pytest.fixture
def at_once() -> Iterator[None]:
    """Fail a test that waits for a pipe."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="session")
def own_memory_of_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remember what was found out about files in a folder of the tests, also in the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    """Give a new run's folder at each call."""
    names = iter(range(1000))
    return lambda: tmp_path / f"run{next(names)}"


@pytest.fixture(scope="session")
def digits() -> LoadedData:
    """A part of the handwritten digits."""
    plugin = registry.find("datasets", "digits", Dataset)
    assert plugin is not None
    return plugin(plugin.Settings(limit=300, test_limit=100), DataRoot(Path(), False)).load()


@pytest.fixture(scope="session")
def streets() -> LoadedData:
    """Thirty small street scenes, and eight to test on; 28 x 40 pixels, so that the network has to fill them up."""
    plugin: Any = registry.find("datasets", "scenes", Dataset)
    found = plugin(plugin.Settings(size=[32, 40], train=30, test=8), DataRoot(Path(), False)).load()
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return replace(found, **{name: np.ascontiguousarray(getattr(found, name)[:, 4:]) for name in names})


@pytest.fixture(scope="session")
def colours() -> LoadedData:
    """Small colour images of five classes that differ in tint and in a stripe, under much noise."""
    random = np.random.Generator(np.random.PCG64(5))
    tints = random.uniform(80, 176, (5, 1, 1, 3))

    def split(count: int) -> tuple[Any, Any]:
        labels = random.permutation(np.arange(count) % 5).astype(np.int64)
        images = tints[labels] + random.normal(0, 40, (count, 16, 16, 3))
        for image, label in zip(images, labels, strict=True):
            image[3 * label : 3 * label + 3] += 50
        return images.clip(0, 255).astype(np.uint8), labels

    train, test = split(240), split(60)
    return LoadedData(*train, *test, tuple("abcde"), (0.5, 0.51, 0.52), (0.2, 0.21, 0.22))

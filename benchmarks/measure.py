"""What the benchmarks share: noise and a learner on it, and seconds and peak memory of a piece of work."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness import registry
from harness.config.load import load_config
from harness.config.suite import PluginSpec, Trial
from harness.data.dataset import DatasetSettings, LoadedData
from harness.errors import UserError
from harness.learning import boundary
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.process import Placement
from harness.learning.scoring import seconds_since
from harness.networks.names import spec as net
from harness.results.store import RunStore
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner


def parser(doc: str | None, threads: int | None = 2, **numbers: int) -> argparse.ArgumentParser:
    """Return a parser of ``--device``, ``--threads`` and one option for each of ``numbers``, with its default."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in numbers.items():
        options.add_argument(f"--{name}", type=int, default=number)
    options.add_argument("--threads", type=int, default=threads)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def add_precision(options: argparse.ArgumentParser) -> None:
    """Add ``--precision``: a processor that only emulates bfloat16 takes minutes where float32 takes seconds."""
    options.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])


def machine(asked: argparse.Namespace) -> str:
    """Return what a table says of the device."""
    return torch.cuda.get_device_name() if asked.device == "cuda" else f"{asked.threads} threads"


def noise(images: int, classes: int = 10) -> LoadedData:
    """Return images of CIFAR's size that are noise, as many of each class: training on them takes as long."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    labels = draw.permutation(images) % classes
    names = tuple(map(str, range(classes)))
    return LoadedData(pixels, labels, pixels[:100], labels[:100], names, (0.5,) * 3, (0.25,) * 3)


def plugin(folder: str, name: str, contract: type[Any], **settings: Any) -> PluginSpec:
    """Return a plug-in with its settings, as the config would."""
    found: Any = registry.find(folder, name, contract)
    return PluginSpec(name, found.Settings(**settings))


def noise_trial(
    recipe: Recipe, protocol: Protocol, model: str, training: PluginSpec | str, acquisition: PluginSpec | str = "random"
) -> Trial:
    """Return a trial on noise; a method's name alone stands for its default settings."""
    if isinstance(training, str):
        training = plugin("methods", training, Training)
    if isinstance(acquisition, str):
        acquisition = plugin("methods", acquisition, Acquisition)
    dataset = PluginSpec("noise", DatasetSettings())
    return Trial(dataset, net(model), recipe, protocol, training, acquisition, 0)


def opened(
    trial: Trial, data: LoadedData, asked: argparse.Namespace, share: float = 1.0
) -> tuple[ActiveLearner, Cycle]:
    """Return a learner and its first cycle, not yet trained."""
    learner = ActiveLearner(trial, data, Placement(device=asked.device, threads=asked.threads, gpu_share=share))
    return learner, learner.open_cycle(0)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes, with all it has started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was started before is no part of it
    began = time.perf_counter()
    work()
    return seconds_since(began, device)


def in_turns(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each work in each round, after one that warms up: a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: took[1:] for name, took in times.items()}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, the smallest and the largest value."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that tensors made by ``work`` hold at once.

    By the allocator's own count, with what each operation makes inside.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


class Waits(TorchDispatchMode):
    """Counts the operations of a ``with`` block whose result the host would wait for, if it came from a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "_to_copy", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(function) for name in self.NAMES)
        return function(*args, **(kwargs or {}))


def of_config(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """Return a parser of a config, its overrides, a method, a seed and one option for each of ``numbers``."""
    options = parser(doc, **numbers)
    options.add_argument("config", help="a config, or its name")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m harness.run")
    options.add_argument("--method", default="DAST-AL", help="name in the config: ISDA's training with epmcm")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--suite", help="name in the config; default: the first one with such a trial")
    return options


def trained(asked: argparse.Namespace) -> tuple[ActiveLearner, Cycle]:
    """Return the learner of a trial and its last finished cycle, from the results folder; else train cycle 0 here.

    Nothing is written. Raises UserError.
    """
    benchmark = load_config(asked.config, asked.overrides)
    found = [
        (suite, trial)
        for suite in benchmark.suites
        for method, trial in suite.trials()
        if (method, trial.seed) == (asked.method, asked.seed) and asked.suite in (None, suite.name)
    ]
    if not found:
        of_suite = f" --suite {asked.suite}" if asked.suite else ""
        raise UserError(f"--method {asked.method} --seed {asked.seed}{of_suite}: {asked.config} has no such trial")
    suite, trial = found[0]
    data = suite.open_dataset(benchmark.where).load()
    learner = ActiveLearner(trial, data, Placement(asked.device, asked.threads))
    store = RunStore(benchmark.output).trial(trial.id)
    finished, state = store.resume_point()
    if state is None:
        cycle = learner.open_cycle(0)
        print(f"{trial.id}: cycle 0 trained here, {learner.train(cycle).metrics}")
        return learner, cycle
    for record in store.records()[: finished - 1]:
        learner.label(record.selected)
    cycle = learner.open_cycle(finished - 1)
    learner.load_state(state)
    cycle.learned = boundary.state(learner.training)
    print(f"{trial.id}: cycle {cycle.number} of {benchmark.output}, {store.records()[finished - 1].metrics}")
    return learner, cycle

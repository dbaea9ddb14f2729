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

from harness import registry
from harness.config.suite import PluginSpec, Trial
from harness.data.dataset import DatasetSettings, LoadedData
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.process import Placement
from harness.learning.scoring import seconds_since
from harness.networks.names import spec as net
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

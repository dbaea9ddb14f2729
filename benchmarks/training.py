"""How near a training epoch is to its arithmetic, and what ISDA adds to it.

    python benchmarks/training.py [--model resnet18_cifar] [--classes 10 100] [--rounds 5]

Bare: forward, backward and optimiser on one constant batch, in the same network, precision and memory format. Usual:
torchvision's transforms of PIL images in a DataLoader with a worker for each thread, float32. The original form of ISDA
(N x C x A tensors, its covariances N x A x A) is that of its public code. All run in turns, so that a busy machine
slows all; each share or overhead is the median over rounds. Needs no data set: the images are noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import add_precision, in_turns, machine, noise, noise_trial, opened, parser, plugin, spread
from tabulate import tabulate

from harness.learning.contract import Training
from harness.learning.cycle import Cycle
from harness.learning.fit import fit, optimizer
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner

RATE = 1e-6  # trained for long on one batch, a network's gradients become subnormal numbers, which are slow
PROGRESS = 0.5  # of a training: at 0 ISDA has no effect
Epoch = Callable[[], object]


def begin(
    asked: argparse.Namespace, classes: int = 10, covariance: str = "diagonal", share: float = 1.0
) -> tuple[ActiveLearner, Cycle]:
    """Return a learner with ISDA on noise, on a share of the device's memory, and its first cycle."""
    count = asked.batch * asked.steps
    trial = noise_trial(
        Recipe(
            epochs=1,
            batch_size=asked.batch,
            learning_rate=RATE,
            precision=asked.precision,
            compile=asked.compile,
            deterministic=not asked.autotune,
        ),
        Protocol(initial=count, budget=10, cycles=2, start="warm"),
        asked.model,
        plugin("methods", "isda", Training, covariance=covariance),
    )
    return opened(trial, noise(count + 10, classes), asked, share)


def cross_entropy(classes: int = 10) -> Training:
    """Return the training of the harness that does nothing besides the recipe."""
    return Training(Training.Settings(), classes)


def ours(asked: argparse.Namespace, cycle: Cycle) -> Epoch:
    """Return one epoch of the harness."""
    training = cross_entropy()
    return lambda: fit(cycle, training)


def constant_step(asked: argparse.Namespace, cycle: Cycle) -> Epoch:
    """Return one step on a constant batch: forward, backward and optimiser, and nothing else."""
    network, positions = cycle.network, torch.arange(asked.batch, device=cycle.device)
    images = cycle.images.unaugmented(cycle.labelled[positions]).contiguous(memory_format=torch.channels_last)
    labels = cycle.labels[positions]
    optimiser = optimizer(network.parameters(), cycle.recipe)

    def step() -> None:
        loss = F.cross_entropy(network(images).logits, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def bare(asked: argparse.Namespace, cycle: Cycle) -> Epoch:
    """Return the bare steps of one epoch."""
    step = constant_step(asked, cycle)

    def epoch() -> None:
        cycle.network.train()
        for _ in range(asked.steps):
            step()

    return epoch


def graphed(asked: argparse.Namespace, cycle: Cycle) -> Epoch:
    """Return the bare steps of one epoch as replays of one CUDA graph of a whole step."""
    step = constant_step(asked, cycle)
    cycle.network.train()
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):  # a graph can't be captured on the stream that has the first steps' allocations
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def epoch() -> None:
        for _ in range(asked.steps):
            graph.replay()

    return epoch


def usual(asked: argparse.Namespace, cycle: Cycle) -> Epoch:
    """Return one epoch as most code has it."""
    from PIL import Image
    from torchvision import transforms as T

    means, deviations = (0.5,) * 3, (0.25,) * 3
    change = T.Compose(
        [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(means, deviations)]
    )
    pixels, labels = cycle.images.pixels[cycle.labelled].cpu().numpy(), cycle.labels[:].cpu()
    pictures = [Image.fromarray(image) for image in pixels]

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Any:
            return change(pictures[index]), labels[index]

    loader: Any = torch.utils.data.DataLoader(
        Pictures(), asked.batch, shuffle=True, num_workers=asked.threads, persistent_workers=True, drop_last=True
    )
    network = cycle.new_network(0).to(cycle.device)
    optimiser = optimizer(network.parameters(), cycle.recipe)

    def epoch() -> None:
        network.train()
        for images, expected in loader:
            loss = F.cross_entropy(network(images.to(cycle.device)).logits, expected.to(cycle.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            loss.item()  # as most code does, for its progress bar

    return epoch


EPOCHS = {"harness": ours, "bare": bare, "bare, CUDA graph": graphed, "usual": usual}


def epochs(asked: argparse.Namespace, names: list[str]) -> dict[str, list[float]]:
    """Return the seconds of each round of the epochs so named."""
    _, cycle = begin(asked)
    return in_turns({name: EPOCHS[name](asked, cycle) for name in names}, asked.rounds, cycle.device)


class OriginalISDA(Training):
    """The loss and the statistics of the public code, in the tensors that it makes."""

    def __init__(self, classes: int, full: bool, weight: torch.Tensor) -> None:
        super().__init__(Training.Settings(), classes)
        self.full, self.weight, width = full, weight, weight.shape[1]
        shape = (classes, width, width) if full else (classes, width)
        self.covariance, self.mean = weight.new_zeros(shape), weight.new_zeros(classes, width)
        self.count = weight.new_zeros(classes)

    def update(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch to the statistics."""
        number, width = features.shape
        classes = len(self.count)
        member = F.one_hot(labels, classes).to(features.dtype)
        each = member[:, :, None].expand(number, classes, width)
        by_class = features[:, None, :].expand(number, classes, width) * each
        count = each.sum(0).clamp(min=1)
        mean = by_class.sum(0) / count
        centred = by_class - mean * each
        if self.full:
            batch = centred.permute(1, 2, 0) @ centred.permute(1, 0, 2) / count[:, :, None]
        else:
            batch = centred.square().sum(0) / count
        weight = (member.sum(0) / (member.sum(0) + self.count).clamp(min=1))[:, None]
        shift = self.mean - mean
        if self.full:
            wide = weight[:, :, None]
            between = wide * (1 - wide) * (shift[:, :, None] @ shift[:, None, :])
            self.covariance = self.covariance * (1 - wide) + batch * wide + between
        else:
            self.covariance = self.covariance * (1 - weight) + batch * weight + weight * (1 - weight) * shift.square()
        self.mean = self.mean * (1 - weight) + mean * weight
        self.count = self.count + member.sum(0)

    def loss(self, outputs: Any, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the batch's loss."""
        features, labels = outputs.features, targets
        self.update(features.detach(), labels)
        number, (classes, width) = len(features), self.weight.shape
        differences = self.weight.expand(number, classes, width) - self.weight[labels][:, None, :]
        own = self.covariance[labels]
        if self.full:
            sigma = differences @ own @ differences.permute(0, 2, 1)
            added = (sigma * torch.eye(classes, device=sigma.device).expand_as(sigma)).sum(2)
        else:
            added = (differences.square() * own[:, None, :]).sum(2)
        return F.cross_entropy(outputs.logits + 0.5 * progress * added, labels)


class InTheMiddle(Training):
    """Another training's loss, as in the middle of a cycle."""

    def __init__(self, training: Training) -> None:
        super().__init__(training.settings, training.num_classes)
        self.training = training

    def loss(self, outputs: Any, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the batch's loss at PROGRESS."""
        return self.training.loss(outputs, targets, PROGRESS)


def isda(asked: argparse.Namespace, classes: int, covariance: str) -> dict[str, list[float]]:
    """Return the seconds of each round of an epoch without ISDA, with ours and with its original form."""
    learner, cycle = begin(asked, classes, covariance)
    learner.training.network = cycle.network
    original = OriginalISDA(classes, covariance == "full", cycle.network.classifier.weight)
    trainings = {"cross_entropy": cross_entropy(classes), "ours": learner.training, "original": original}
    works = {name: partial(fit, cycle, InTheMiddle(training)) for name, training in trainings.items()}
    return in_turns(works, asked.rounds, cycle.device)


def added(times: dict[str, list[float]], name: str, to: str = "cross_entropy") -> list[float]:
    """Return how many percent more each round of ``name`` took than that of ``to``."""
    return [100 * (more / less - 1) for less, more in zip(times[to], times[name], strict=True)]


def shared_arguments(doc: str | None, threads: int | None = 2) -> argparse.ArgumentParser:
    """Return a parser of how to train."""
    options = parser(doc, threads, batch=128)
    options.add_argument("--steps", type=int, default=4, help="of an epoch")
    options.add_argument("--model", default="resnet18_cifar")
    add_precision(options)
    options.add_argument("--compile", action="store_true", help="recipe.compile, for harness and bare alike")
    options.add_argument("--autotune", action="store_true", help="recipe.deterministic: false, for all")
    return options


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = shared_arguments(__doc__)
    options.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    options.add_argument("--rounds", type=int, default=5)
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print two tables."""
    asked = arguments().parse_args(words)
    images = asked.batch * asked.steps
    what = machine(asked) + ", compiled" * asked.compile + ", autotuned" * asked.autotune
    print(f"{asked.model}, batch {asked.batch}, {asked.precision}, {what}, {asked.rounds} rounds of {images} images\n")
    times = epochs(asked, ["harness", "bare", "usual"])
    rows = [
        [
            name,
            images / statistics.median(took),
            spread([t / o for t, o in zip(took, times["harness"], strict=True)], 3),
        ]
        for name, took in times.items()
    ]
    print(tabulate(rows, ["epoch", "images/s", "its seconds / the harness's"], floatfmt=".1f"), "\n")
    rows = []
    for classes in asked.classes:
        for covariance in ("diagonal", "full"):
            times = isda(asked, classes, covariance)
            step = 1000 * statistics.median(times["cross_entropy"]) / asked.steps
            rows.append([classes, covariance, step, *(spread(added(times, name)) for name in ("ours", "original"))])
    heads = ["classes", "covariance", "plain step, ms", "ISDA adds, %", "its original form adds, %"]
    print(tabulate(rows, heads, floatfmt=".1f"))


if __name__ == "__main__":
    main()

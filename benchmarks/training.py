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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import seconds
from tabulate import tabulate

from harness.config.suite import Part, Trial
from harness.data.dataset import Problem
from harness.learning.fit import fit, optimizer
from harness.results.store import RunStore
from harness.settings import Model, Protocol, Recipe
from harness.trial import Runner, Surroundings

RATE = 1e-6  # trained for long on one batch, a network's gradients become subnormal numbers, which are slow
PROGRESS = 0.5  # of a training: at 0 ISDA has no effect


def begin(asked: argparse.Namespace, classes: int, covariance: str, folder: str) -> tuple[Runner, Any]:
    """Return a runner of ISDA on noise, and its first cycle."""
    draw = np.random.default_rng(0)
    count = asked.batch * asked.steps
    images = draw.integers(0, 256, (count + 10, 32, 32, 3), dtype=np.uint8)
    labels = draw.permutation(len(images)) % classes
    names = tuple(map(str, range(classes)))
    problem = Problem(images, labels, images[:10], labels[:10], names, (0.5,) * 3, (0.25,) * 3)
    trial = Trial(
        Part("noise", {}),
        Model(name=asked.model),
        Recipe(
            epochs=1,
            batch_size=asked.batch,
            learning_rate=RATE,
            precision=asked.precision,
            compile=asked.compile,
            deterministic=not asked.autotune,
        ),
        Protocol(initial=count, budget=10, cycles=2, start="warm"),
        Part("isda", {"covariance": covariance, "lambda_0": 1.0}),
        Part("random", {}),
        0,
    )
    runner = Runner(trial, problem, RunStore(Path(folder)), Surroundings(device=asked.device, threads=asked.threads))
    return runner, runner._begin(0)


def bare(asked: argparse.Namespace, cycle: Any) -> Callable[[], Any]:
    """Return the steps of one epoch on a constant batch."""
    network, positions = cycle.network, torch.arange(asked.batch, device=cycle.device)
    images = cycle.images.plain(cycle.labelled[positions]).contiguous(memory_format=torch.channels_last)
    labels = cycle.labels[positions]
    optimiser = optimizer(network.parameters(), cycle.recipe)

    def epoch() -> None:
        network.train()
        for _ in range(asked.steps):
            loss = F.cross_entropy(network(images).logits, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return epoch


def usual(asked: argparse.Namespace, cycle: Any) -> Callable[[], Any]:
    """Return one epoch as most code has it."""
    from PIL import Image
    from torchvision import transforms as T

    means, deviations = (0.5,) * 3, (0.25,) * 3
    change = T.Compose(
        [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(means, deviations)]
    )
    pixels, labels = cycle.images.pixels.cpu().numpy(), cycle.labels.cpu()
    pictures = [Image.fromarray(pixels[i]) for i in cycle.labelled.tolist()]

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Any:
            return change(pictures[index]), labels[index]

    loader: Any = torch.utils.data.DataLoader(
        Pictures(), asked.batch, shuffle=True, num_workers=asked.threads, persistent_workers=True, drop_last=True
    )
    network = cycle.build(0).to(cycle.device)
    network.precision = "float32"
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


class OriginalISDA:
    """The loss and the statistics of the public code, in the tensors that it makes."""

    def __init__(self, classes: int, width: int, full: bool, weight: torch.Tensor) -> None:
        self.full, self.weight = full, weight
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

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the batch's loss."""
        features = outputs.features
        self.update(features.detach(), labels)
        number, (classes, width) = len(features), self.weight.shape
        differences = self.weight.expand(number, classes, width) - self.weight[labels][:, None, :]
        chosen = self.covariance[labels]
        if self.full:
            sigma = differences @ chosen @ differences.permute(0, 2, 1)
            added = (sigma * torch.eye(classes, device=sigma.device).expand_as(sigma)).sum(2)
        else:
            added = (differences.square() * chosen[:, None, :]).sum(2)
        return F.cross_entropy(outputs.logits + 0.5 * PROGRESS * added, labels)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", action="store_true", help="recipe.compile, for harness and bare alike")
    parser.add_argument("--autotune", action="store_true", help="recipe.deterministic: false, for all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()

    device = torch.device(asked.device)

    def in_turns(works: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        for work in works.values():
            work()
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(asked.rounds):
            for name, work in works.items():
                times[name].append(seconds(work, device))
        return times

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    images = asked.batch * asked.steps
    what = torch.cuda.get_device_name() if asked.device == "cuda" else f"{asked.threads} threads"
    what += ", compiled" * asked.compile + ", autotuned" * asked.autotune
    print(f"{asked.model}, batch {asked.batch}, {asked.precision}, {what}, {asked.rounds} rounds of {images} images\n")
    with tempfile.TemporaryDirectory() as folder:
        _, cycle = begin(asked, asked.classes[0], "diagonal", folder)
        works = {
            "harness": lambda: fit(cycle, lambda outputs, labels, _: F.cross_entropy(outputs.logits, labels)),
            "bare": bare(asked, cycle),
            "usual": usual(asked, cycle),
        }
        times = in_turns(works)
    ours = times["harness"]
    rows = [
        [name, images / statistics.median(found), spread([f / o for f, o in zip(found, ours, strict=True)])]
        for name, found in times.items()
    ]
    print(tabulate(rows, ["epoch", "images/s", "its seconds / the harness's"], floatfmt=".1f"), "\n")

    def added_by_isda(classes: int, covariance: str) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            runner, cycle = begin(asked, classes, covariance, folder)
            training: Any = runner.training
            training._classifier = cycle.network.classifier
            weight = cycle.network.classifier.weight
            original = OriginalISDA(classes, weight.shape[1], covariance == "full", weight)
            times = in_turns(
                {
                    "plain": lambda: fit(cycle, lambda o, y, _: F.cross_entropy(o.logits, y)),
                    "ours": lambda: fit(cycle, lambda o, y, _: training.loss(o, y, PROGRESS)),
                    "original": lambda: fit(cycle, lambda o, y, _: original.loss(o, y)),
                }
            )
        overheads = [
            spread([100 * (b / a - 1) for a, b in zip(times["plain"], times[name], strict=True)])
            for name in ("ours", "original")
        ]
        return [classes, covariance, 1000 * statistics.median(times["plain"]) / asked.steps, *overheads]

    rows = [added_by_isda(classes, covariance) for classes in asked.classes for covariance in ("diagonal", "full")]
    heads = ["classes", "covariance", "plain step, ms", "ISDA adds, %", "its original form adds, %"]
    print(tabulate(rows, heads, floatfmt=".1f"))


if __name__ == "__main__":
    main()

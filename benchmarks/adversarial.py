"""How near the loops of VAAL and ADS are to the bare forward and backward passes they are made of.

    python benchmarks/adversarial.py [--model resnet18_cifar] [--width 32] [--batch 128] [--rounds 5]

The bare loop runs the same networks, losses and optimisers on constant batches: no drawing, augmentation, noise or
checks. Both run in turns, so that a busy machine slows both. Needs no data set: the images are noise.
"""

from __future__ import annotations

import argparse
import importlib
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

from harness import registry
from harness.config.suite import Part, Trial
from harness.data.dataset import Problem
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.fit import optimizer
from harness.results.store import RunStore
from harness.settings import Model, Protocol, Recipe
from harness.trial import Runner, Surroundings

registry.load("methods", "vaal")  # so that the methods' own parts can be imported
Game = importlib.import_module("harness.methods._adversarial").Game
step = importlib.import_module("harness.methods._modules").step
LABELLED = 1000
BARE_RATE = 1e-6  # trained for long on one batch, a network's gradients become subnormal numbers, which are slow


def cycle_of(name: str, settings: dict[str, Any], asked: argparse.Namespace, folder: str) -> tuple[Runner, Cycle]:
    """Return a runner of one method on noise, and its first cycle."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (LABELLED + asked.batch * 8, 32, 32, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, len(images))
    classes = tuple(map(str, range(10)))
    problem = Problem(images, labels, images[:100], labels[:100], classes, (0.5,) * 3, (0.25,) * 3)
    plugin: Any = registry.find("methods", name, Acquisition)
    method = Part(name, plugin.Settings(**settings).model_dump())
    trial = Trial(
        Part("noise", {}),
        Model(name=asked.model),
        Recipe(epochs=1, batch_size=asked.batch, precision="bfloat16"),
        Protocol(initial=LABELLED, budget=10, cycles=2, candidates=asked.batch * 8, start="warm"),
        method if name == "ads" else Part("plain", {}),
        method,
        0,
    )
    runner = Runner(trial, problem, RunStore(Path(folder)), Surroundings(device=asked.device, threads=asked.threads))
    return runner, runner._begin(0)


def vaal(asked: argparse.Namespace, folder: str) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """Return (iterations in a call, the loop, the bare loop) of VAAL."""
    its = 8
    settings = {"width": asked.width, "batch_size": asked.batch, "iterations": its}
    runner, cycle = cycle_of("vaal", settings, asked, folder)
    game = Game(runner.acquisition, cycle, "benchmark")
    labelled, unlabelled = (
        game.seen(indices[: asked.batch]).contiguous(memory_format=torch.channels_last)
        for indices in (cycle.labelled, cycle.unlabelled)
    )
    networks, ones = game.networks, torch.ones(asked.batch, device=cycle.device)
    generator = torch.optim.Adam(networks["autoencoder"].parameters(), BARE_RATE)
    discriminator = torch.optim.Adam(networks["discriminator"].parameters(), BARE_RATE)

    def judged(mean: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(networks["discriminator"](mean)[:, 0], ones)

    def autoencoded(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(cycle.device.type, torch.bfloat16):
            mean, log_variance = networks["autoencoder"].encode(images)
            decoded = networks["autoencoder"].decode(mean)
        return F.mse_loss(decoded, images) + (mean.square() + log_variance.exp()).mean() + judged(mean)

    def bare() -> None:
        for _ in range(its):
            for _ in range(2):
                step(generator, autoencoded(labelled) + autoencoded(unlabelled))
            with torch.no_grad(), torch.autocast(cycle.device.type, torch.bfloat16):
                means = [networks["autoencoder"].encode(images)[0] for images in (labelled, unlabelled)]
            step(discriminator, judged(means[0]) + judged(means[1]))

    def loop() -> None:
        networks.train()
        game.play()

    return its, loop, bare


def ads(asked: argparse.Namespace, folder: str) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """Return (steps in a call, the loop, the bare loop) of one epoch of ADS."""
    runner, cycle = cycle_of("ads", {}, asked, folder)
    training: Any = runner.training
    network, module = cycle.network, training.ready(cycle)
    images, labels = cycle.images.plain(cycle.candidates[: asked.batch]), cycle.labels[: asked.batch]
    rest = LABELLED % asked.batch
    sizes = [asked.batch] * (LABELLED // asked.batch) + ([rest] if rest else [])
    steps = len(cycle.candidates) // asked.batch
    heads = list(module.parameters())
    left_out = {id(p) for p in network.classifier.parameters()}  # the heads replace it
    backbone = [p for p in network.parameters() if id(p) not in left_out]
    main = optimizer([*backbone, *heads], cycle.recipe.model_copy(update={"learning_rate": BARE_RATE}))
    agree, differ = torch.optim.SGD(backbone, BARE_RATE), torch.optim.SGD(heads, BARE_RATE)

    def bare() -> None:
        network.train()
        for _ in range(2):  # the first epoch trains on the labelled images before and after
            for size in sizes:
                step(main, training.loss(network(images[:size]), labels[:size], 0.0))
        for _ in range(steps):
            one, other = training.scores(network(images))
            step(agree, (one - other).abs().mean())
        for _ in range(steps):
            with torch.no_grad():
                outputs = network(images), network(images)
            one, other = training.scores(outputs[1])
            step(differ, (one - other).abs().mean() + training.loss(outputs[0], labels, 0.0))

    return 2 * steps + 2 * len(sizes), lambda: training.fit(cycle), bare


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--width", type=int, default=32, help="of VAAL's autoencoder; the authors' is 128")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()

    device = torch.device(asked.device)
    rows = []
    for name, make in {"VAAL": vaal, "ADS": ads}.items():
        with tempfile.TemporaryDirectory() as folder:
            count, loop, bare = make(asked, folder)
            times = [(seconds(loop, device), seconds(bare, device)) for _ in range(asked.rounds + 1)][
                1:
            ]  # the first warms up
        shares = [bare_s / loop_s for loop_s, bare_s in times]
        medians = [statistics.median(column) / count for column in zip(*times, strict=True)]
        rows.append([name, 1 / medians[0], 1 / medians[1], *(100 * f(shares) for f in (statistics.median, min, max))])
    what = torch.cuda.get_device_name() if asked.device == "cuda" else f"{asked.threads} threads"
    print(
        f"{asked.model}, autoencoder width {asked.width}, batch {asked.batch}, bfloat16, {what}, {asked.rounds} rounds"
    )
    print(tabulate(rows, ["loop", "steps/s", "bare steps/s", "share % (median)", "min", "max"], floatfmt=".2f"))


if __name__ == "__main__":
    main()

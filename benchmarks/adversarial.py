"""How near the loops of VAAL and ADS are to the bare forward and backward passes they are made of.

    python benchmarks/adversarial.py [--model resnet18_cifar] [--width 32] [--batch 128] [--rounds 5]

The bare loop runs the same networks, losses and optimisers on constant batches: no drawing, augmentation, noise or
checks. Both run in turns, so that a busy machine slows both. Needs no data set: the images are noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import add_precision, in_turns, machine, noise, noise_trial, opened, parser, plugin
from tabulate import tabulate

from harness import registry
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.fit import built, optimizer, step
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner

LABELLED = 1000
BARE_RATE = 1e-6  # trained for long on one batch, a network's gradients become subnormal numbers, which are slow
Loops = tuple[int, Callable[[], object], Callable[[], object]]
"""(steps or iterations in a call, the loop, the bare loop)"""


def begin(asked: argparse.Namespace, training: str, name: str, **settings: object) -> tuple[ActiveLearner, Cycle]:
    """Return a learner of one method on noise, and its first cycle."""
    candidates = asked.batch * 8
    trial = noise_trial(
        Recipe(epochs=1, batch_size=asked.batch, precision=asked.precision),
        Protocol(initial=LABELLED, budget=10, cycles=2, candidates=candidates, start="warm"),
        asked.model,
        training,
        plugin("methods", name, Acquisition, **settings),
    )
    return opened(trial, noise(LABELLED + candidates), asked)


def vaal(asked: argparse.Namespace) -> Loops:
    """Return the loops of VAAL."""
    its = 8
    learner, cycle = begin(asked, "cross_entropy", "vaal", width=asked.width, batch_size=asked.batch, iterations=its)
    acquisition, game_of = learner.acquisition, registry.load("methods", "vaal").Game
    networks = built(lambda: acquisition.networks(3), 0, cycle.device)
    game = game_of(cycle, acquisition.settings, networks, "benchmark")
    targets = torch.zeros(len(cycle.unlabelled), device=cycle.device)
    labelled, unlabelled = (
        game.inputs(indices[: asked.batch]).contiguous(memory_format=torch.channels_last)
        for indices in (cycle.labelled, cycle.unlabelled)
    )
    ones = torch.ones(asked.batch, device=cycle.device)
    generator = torch.optim.Adam(networks["autoencoder"].parameters(), BARE_RATE)
    discriminator = torch.optim.Adam(networks["discriminator"].parameters(), BARE_RATE)

    def classified(mean: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(networks["discriminator"](mean)[:, 0], ones)

    def autoencoded(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(cycle.device.type, torch.bfloat16, enabled=asked.precision == "bfloat16"):
            mean, log_variance = networks["autoencoder"].encode(images)
            decoded = networks["autoencoder"].decode(mean)
        return F.mse_loss(decoded, images) + (mean.square() + log_variance.exp()).mean() + classified(mean)

    def bare() -> None:
        for _ in range(its):
            for _ in range(2):
                step(generator, autoencoded(labelled) + autoencoded(unlabelled))
            with (
                torch.no_grad(),
                torch.autocast(cycle.device.type, torch.bfloat16, enabled=asked.precision == "bfloat16"),
            ):
                means = [networks["autoencoder"].encode(images)[0] for images in (labelled, unlabelled)]
            step(discriminator, classified(means[0]) + classified(means[1]))

    def loop() -> None:
        networks.train()
        game.play(targets)

    return its, loop, bare


def ads(asked: argparse.Namespace) -> Loops:
    """Return the loops of one epoch of ADS."""
    learner, cycle = begin(asked, "ads", "ads")
    training, network = learner.training, cycle.network
    images, labels = cycle.images.unaugmented(cycle.candidates[: asked.batch]), cycle.labels[: asked.batch]
    rest = LABELLED % asked.batch
    sizes = [asked.batch] * (LABELLED // asked.batch) + ([rest] if rest else [])
    steps = len(cycle.candidates) // asked.batch
    heads = list(training.module.parameters())
    left_out = {id(p) for p in training.replaced(network)}
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


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, batch=128, rounds=5)
    options.add_argument("--model", default="resnet18_cifar")
    add_precision(options)
    options.add_argument("--width", type=int, default=32, help="of VAAL's autoencoder; the authors' is 128")
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    rows = []
    for name, make in {"VAAL": vaal, "ADS": ads}.items():
        count, loop, bare = make(asked)
        times = in_turns({"loop": loop, "bare": bare}, asked.rounds, torch.device(asked.device))
        shares = [100 * least / took for took, least in zip(times["loop"], times["bare"], strict=True)]
        rates = [count / statistics.median(took) for took in times.values()]
        rows.append([name, *rates, *(f(shares) for f in (statistics.median, min, max))])
    print(
        f"{asked.model}, autoencoder width {asked.width}, batch {asked.batch}, {asked.precision}, {machine(asked)}, "
        f"{asked.rounds} rounds"
    )
    print(tabulate(rows, ["loop", "steps/s", "bare steps/s", "share % (median)", "min", "max"], floatfmt=".2f"))


if __name__ == "__main__":
    main()

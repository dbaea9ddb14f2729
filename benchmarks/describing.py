"""What describing images for a choice costs over the bare forward pass.

    python benchmarks/describing.py [--size 1024 2048] [--classes 19] [--model drn_d_22] [--batch 1] [--rounds 5]
    python benchmarks/describing.py --size 32 32 --classes 10 --model resnet18_cifar --batch 500

Both run in turns, so that a busy machine slows both. The added memory is the difference of the highest points of the
two: 0 where scoring stays below the forward pass. For images with one label EPMCM's original form is measured too: the
public code's, with tensors N x C x A for each batch. Needs no data set: the images are noise, which takes as long.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from measure import add_precision, in_turns, machine, parser, peak
from tabulate import tabulate

from harness import registry
from harness.data.dataset import MAPS, DatasetInfo
from harness.learning.contract import Acquisition, Batch
from harness.learning.inference import evaluating
from harness.networks import names
from harness.networks.building import build
from harness.networks.names import spec as net
from harness.networks.network import Network, Outputs
from harness.settings import Recipe

WORKS = {
    "epmcm, map": ("epmcm", {}),
    "epmcm, image": ("epmcm", {"resolution": "image"}),
    "epmcm, sampled": ("epmcm", {"form": "sampled", "statistics": "fresh"}),
    "entropy": ("entropy", {}),
    "core_set": ("core_set", {}),
    "mc_dropout": ("mc_dropout", {}),
}
MIB = 2**20


@dataclass
class Costs:
    """What one acquisition takes, and the forward pass in turns with it."""

    acquisition: str
    forward: list[float]
    describe: list[float]
    forward_bytes: int
    more_bytes: int

    def ratios(self) -> list[float]:
        """Return how many times as long as the forward pass each round took."""
        return [whole / bare for bare, whole in zip(self.forward, self.describe, strict=True)]


def original(outputs: Outputs, weight: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Return Eq. 7 [N] as the public code computes it, with covariances [C, A]."""
    predicted = outputs.logits.argmax(1)
    shape = len(predicted), *weight.shape
    differences = weight.expand(shape) - weight[predicted][:, None, :]
    added = (differences.square() * covariance[predicted][:, None, :].expand(shape)).sum(2)
    own = outputs.logits.gather(1, predicted[:, None])
    return (outputs.logits - own + added / 2).exp().sum(1) - 1


def described(acquisition: Acquisition, network: Network, batch: Batch, prepared: dict[str, torch.Tensor]) -> object:
    """Describe a batch as the harness does: a map of scores is reduced to one for each image."""
    columns = acquisition.describe(network, batch, prepared)
    if "score" in columns and columns["score"].ndim > 1:
        columns["score"] = acquisition.over_positions(columns["score"].flatten(1))
    return columns


def measured(asked: argparse.Namespace) -> Iterator[Costs]:
    """Yield the costs of each acquisition that is asked for, where the network has maps or has none."""
    torch.set_num_threads(asked.threads)
    device, (height, width), classes = torch.device(asked.device), asked.size, asked.classes
    dense = MAPS in names.of(net(asked.model)).labels
    info = DatasetInfo(1, 1, classes, 3, (height, width), "", per_pixel=dense)
    network = build(net(asked.model), info, 0).to_device(device, Recipe(epochs=1, precision=asked.precision))
    images = torch.randn(asked.batch, 3, height, width, device=device)
    batch = Batch(images, torch.arange(asked.batch, device=device), torch.Generator(device))
    prepared = {
        "table": torch.rand(classes, classes, device=device),
        "root": torch.rand(classes, classes, classes, device=device) / 10,
        "dropout": torch.tensor(0.25, device=device),
    }
    works: dict[str, Callable[[], object]] = {}
    for label, (name, settings) in WORKS.items():
        if (dense and "sampled" in label) or (not dense and "image" in label):
            continue  # millions of positions to sample; no pixels
        plugin = registry.find("methods", name, Acquisition)
        assert plugin is not None
        works[label] = partial(described, plugin(plugin.Settings(**settings), classes), network, batch, prepared)
    if not dense:
        weight = network.classifier.weight
        covariance = torch.rand_like(weight)
        works["epmcm, original form"] = lambda: original(network(images), weight, covariance)
    with evaluating(network):

        def bare() -> object:
            return network(images)

        for label, work in works.items():
            if label in (asked.acquisitions or works):
                times = in_turns({"forward": bare, "describe": work}, asked.rounds, device)
                forward, whole = peak(bare, device), peak(work, device)
                yield Costs(label, times["forward"], times["describe"], forward, whole - forward)


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, classes=19, batch=1, rounds=5)
    options.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--model", default="drn_d_22")
    add_precision(options)
    options.add_argument("--acquisitions", nargs="+", choices=[*WORKS, "epmcm, original form"], help="default: all")
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    rows = []
    for costs in measured(asked):
        medians = [statistics.median(costs.forward), statistics.median(costs.describe)]
        shares = [f(costs.ratios()) for f in (statistics.median, min, max)]
        rows.append([costs.acquisition, *medians, *shares, costs.forward_bytes / MIB, costs.more_bytes / MIB])
    print(
        f"{asked.model}, {asked.batch} x {asked.size[0]} x {asked.size[1]}, {asked.classes} classes, "
        f"{asked.precision}, {machine(asked)}, {asked.rounds} rounds"
    )
    heads = ["acquisition", "forward s", "describe s", "ratio (median)", "min", "max", "forward MiB", "added MiB"]
    print(tabulate(rows, heads, floatfmt=("g", ".3f", ".3f", ".3f", ".3f", ".3f", ".0f", ".0f")))


if __name__ == "__main__":
    main()

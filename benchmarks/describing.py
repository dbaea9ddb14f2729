"""What describing images for a choice costs over the bare forward pass.

    python benchmarks/describing.py [--size 1024 2048] [--classes 19] [--model drn_d_22] [--batch 1] [--rounds 5]
    python benchmarks/describing.py --size 32 32 --classes 10 --model resnet18_cifar --batch 500

Both run in turns, so that a busy machine slows both. The added memory is the difference of the highest points of the
two: 0 where scoring stays below the forward pass. For images with one label EPMCM's original form is beside ours: the
public code's, with tensors N x C x A for each batch. Needs no data set: the images are noise, which takes as long.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import peak, seconds
from tabulate import tabulate

from harness import registry
from harness.data.dataset import Facts
from harness.learning.contract import Acquisition
from harness.learning.inference import evaluating
from harness.networks import names as network_names
from harness.networks.network import Outputs
from harness.networks.zoo import build
from harness.settings import Model, Recipe

ASKED = {
    "epmcm, map": ("epmcm", {}),
    "epmcm, image": ("epmcm", {"resolution": "image"}),
    "epmcm, sampled": ("epmcm", {"form": "sampled", "statistics": "fresh"}),
    "entropy": ("entropy", {}),
    "core_set": ("core_set", {}),
    "mc_dropout": ("mc_dropout", {}),
}
MIB = 2**20


def original(outputs: Outputs, weight: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Return Eq. 7 [N] as the public code computes it, with covariances [C, A]."""
    predicted = outputs.logits.argmax(1)
    shape = len(predicted), *weight.shape
    differences = weight.expand(shape) - weight[predicted][:, None, :]
    added = (differences.square() * covariance[predicted][:, None, :].expand(shape)).sum(2)
    own = outputs.logits.gather(1, predicted[:, None])
    return (outputs.logits - own + added / 2).exp().sum(1) - 1


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--model", default="drn_d_22")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device, (height, width) = torch.device(asked.device), asked.size
    dense = network_names.misfit(Model(name=asked.model), per_pixel=True) is None
    facts = Facts(1, 1, asked.classes, 3, (height, width), "", per_pixel=dense)
    network = build(Model(name=asked.model), facts, 0).to_place(device, Recipe(epochs=1, precision="bfloat16"))
    images = torch.randn(asked.batch, 3, height, width, device=device)
    prepared = {
        "table": torch.rand(asked.classes, asked.classes, device=device),
        "root": torch.rand(asked.classes, asked.classes, asked.classes, device=device) / 10,
        "dropout": torch.tensor(0.25, device=device),
    }
    generator = torch.Generator(device)
    rows = []
    with evaluating(network):

        def bare() -> object:
            return network(images)

        works: dict[str, Callable[[], object]] = {}
        for label, (name, settings) in ASKED.items():
            if (dense and "sampled" in label) or (not dense and "image" in label):
                continue  # millions of places to sample; no pixels
            plugin: Any = registry.find("methods", name, Acquisition)
            acquisition = plugin(plugin.Settings(**settings), asked.classes)
            works[label] = partial(acquisition.describe, network, images, prepared, generator)
        if not dense:
            weight = network.classifier.weight
            covariance = torch.rand_like(weight)
            works["epmcm, original form"] = lambda: original(network(images), weight, covariance)
        for label, describe in works.items():
            times = [(seconds(bare, device), seconds(describe, device)) for _ in range(asked.rounds + 1)][1:]  # warm
            ratios = [all_s / bare_s for bare_s, all_s in times]
            forward, whole = peak(bare, device), peak(describe, device)
            medians = [statistics.median(column) for column in zip(*times, strict=True)]
            shares = [statistics.median(ratios), min(ratios), max(ratios)]
            rows.append([label, *medians, *shares, forward / MIB, (whole - forward) / MIB])
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{asked.threads} threads"
    print(
        f"{asked.model}, {asked.batch} x {height} x {width}, {asked.classes} classes, bfloat16, {what}, "
        f"{asked.rounds} rounds"
    )
    heads = ["acquisition", "forward s", "describe s", "ratio (median)", "min", "max", "forward MiB", "added MiB"]
    print(tabulate(rows, heads, floatfmt=("g", ".3f", ".3f", ".3f", ".3f", ".3f", ".0f", ".0f")))


if __name__ == "__main__":
    main()

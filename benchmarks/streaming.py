"""What reading images from disk costs an epoch of training, with the next batches decoded ahead and without.

    python benchmarks/streaming.py [--images 24] [--scale 0.5] [--batch 4] [--crop 256] [--model drn_small] [--rounds 3]

The images are a generated Cityscapes tree of PNGs, 2048 x 1024 before ``--scale``: drawn scenes, which decode faster
than photographs. All kinds run in turns, so that a busy machine slows all of them; a ratio is of one round.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import in_turns, opened, parser, plugin
from tabulate import tabulate

from harness.config.suite import PluginSpec, Trial, open_dataset
from harness.data.dataset import Dataset
from harness.data.files import Files
from harness.data.images import Images
from harness.data.rows import Streamed, on_device, take
from harness.learning.contract import Acquisition, Training
from harness.learning.fit import batches
from harness.networks.names import spec as net
from harness.settings import Protocol, Recipe, Where


class WhenAsked:
    """Streamed rows without looking ahead: decoded when they are taken."""

    def __init__(self, rows: Streamed) -> None:
        self.rows, self.device, self.shape = rows, rows.device, rows.shape

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self.rows[indices]


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, 1, images=24, batch=4, crop=256, rounds=3)
    options.add_argument("--scale", type=float, default=0.5)
    options.add_argument("--model", default="drn_small")
    return options


def trial_of(asked: argparse.Namespace, dataset: PluginSpec) -> Trial:
    """Return a trial that trains on all images."""
    return Trial(
        dataset,
        net(asked.model),
        Recipe(epochs=1, batch_size=asked.batch, crop_padding=0, crop_size=(asked.crop, asked.crop)),
        Protocol(initial=asked.images, budget=1, cycles=1, start="warm"),
        plugin("methods", "cross_entropy", Training),
        plugin("methods", "random", Acquisition),
        0,
    )


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        dataset = plugin("datasets", "cityscapes", Dataset, scale=asked.scale)
        importlib.import_module("harness.datasets.cityscapes").write_cityscapes(Path(folder), asked.images, 2)
        data = open_dataset(dataset, Where(data=folder)).load()
        assert isinstance(data.train_images, Files)
        learner, cycle = opened(trial_of(asked, dataset), data, asked)
        recipe, device = cycle.recipe, cycle.device
        streamed = Streamed(data.train_images, device), Streamed(data.train_labels, device, learner.labelled)

        def decode() -> None:
            parts = batches(asked.images, recipe, cycle.stream("order"), device)
            for _ in zip(*(take(rows, parts) for rows in streamed), strict=True):
                pass

        def epoch(pixels: Any, labels: Any) -> Callable[[], object]:
            images = Images(pixels, data, recipe)
            return lambda: learner.training.fit(replace(cycle, images=images, labels=labels))

        kinds = {
            "decoding alone": decode,
            "epoch, decoded when asked for": epoch(*map(WhenAsked, streamed)),
            "epoch, decoded ahead": epoch(*streamed),
            "epoch, held in memory": epoch(on_device(data.train_images, device), cycle.labels),
        }
        times = in_turns(kinds, asked.rounds, device)
    rows = []
    for kind, took in times.items():
        rates = [asked.images / one for one in took]
        ratios = [held / one for one, held in zip(took, times["epoch, held in memory"], strict=True)]
        rows.append([kind, statistics.median(rates), min(rates), max(rates), statistics.median(ratios)])
    height, width = data.train_images.size
    print(f"{asked.images} images of {width} x {height}, {asked.model} on {asked.device}, {asked.rounds} rounds")
    print(tabulate(rows, ["", "images/s (median)", "min", "max", "of that in memory"], floatfmt=".2f"))


if __name__ == "__main__":
    main()

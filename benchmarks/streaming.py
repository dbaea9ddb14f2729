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
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from harness import registry
from harness.config.suite import Part, Trial
from harness.data.dataset import DataPlace, Dataset
from harness.data.images import Images
from harness.data.rows import Streamed, on_device, taken
from harness.learning.fit import batches
from harness.learning.scoring import seconds_since
from harness.results.store import RunStore
from harness.settings import Model, Protocol, Recipe
from harness.trial import Runner, Surroundings

plugin: Any = registry.find("datasets", "cityscapes", Dataset)
write_cityscapes = importlib.import_module("harness.datasets.cityscapes").write_cityscapes


class WhenAsked:
    """Streamed rows without looking ahead: decoded when they are taken."""

    def __init__(self, rows: Streamed) -> None:
        self.rows, self.device, self.shape = rows, rows.device, rows.shape

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self.rows[indices]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--model", default="drn_small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_cityscapes(Path(folder), asked.images, 2)
        problem = plugin(plugin.Settings(scale=asked.scale), DataPlace(Path(folder), False)).load()
        trial = Trial(
            Part("cityscapes", {}),
            Model(name=asked.model),
            Recipe(epochs=1, batch_size=asked.batch, crop_padding=0, crop_size=(asked.crop, asked.crop)),
            Protocol(initial=asked.images, budget=1, cycles=1, start="warm"),
            Part("plain", {}),
            Part("random", {}),
            0,
        )
        here = Surroundings(device=asked.device, threads=asked.threads)
        runner = Runner(trial, problem, RunStore(Path(folder) / "run"), here)
        cycle, device = runner._begin(0), runner.device
        streamed = Streamed(problem.train_images, device), Streamed(problem.train_labels, device, runner.labelled)

        def decode() -> None:
            parts = batches(asked.images, trial.recipe, cycle.stream("order"), device)
            for _ in zip(*(taken(rows, parts) for rows in streamed), strict=True):
                pass

        def epoch(pixels: Any, labels: Any) -> Callable[[], Any]:
            images = Images(pixels, problem, trial.recipe)
            return lambda: runner.training.fit(replace(cycle, images=images, labels=labels))

        kinds = {
            "decoding alone": decode,
            "epoch, decoded when asked for": epoch(*map(WhenAsked, streamed)),
            "epoch, decoded ahead": epoch(*streamed),
            "epoch, held in memory": epoch(on_device(problem.train_images, device), cycle.labels),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(asked.rounds + 1):  # the first warms up
            for kind, work in kinds.items():
                began = time.perf_counter()
                work()
                seconds[kind].append(seconds_since(began, device))
    rows = []
    for kind, found in seconds.items():
        rates = [asked.images / one for one in found[1:]]
        ratios = [held / one for one, held in zip(found[1:], seconds["epoch, held in memory"][1:], strict=True)]
        rows.append([kind, statistics.median(rates), min(rates), max(rates), statistics.median(ratios)])
    height, width = problem.train_images.size
    print(f"{asked.images} images of {width} x {height}, {asked.model} on {asked.device}, {asked.rounds} rounds")
    print(tabulate(rows, ["", "images/s (median)", "min", "max", "of that in memory"], floatfmt=".2f"))


if __name__ == "__main__":
    main()

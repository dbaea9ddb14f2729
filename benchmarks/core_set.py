"""What Core-set costs, compared with reading the features once.

    python benchmarks/core_set.py [--rows 10000] [--width 512] [--labelled 5000] [--budget 1000] [--memory-gb 0.25]
                                  [--device cpu] [--threads 2] [--runs 3]

The features are those of a network's last ReLU in kind: twenty clusters of unequal width, half of each row zero. Their
reading is a sum over them, after each run. The seconds of a selected image are those after the distances to the
labelled images. The waits are those of the host for a GPU, counted in one more run.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch
from measure import Waits, machine, parser, seconds
from tabulate import tabulate

from harness import registry
from harness.learning.process import peak_memory, reset_peak_memory

GENERATED_AT_ONCE = 10_000


@dataclass
class Costs:
    """Seconds of each run, and the memory of the most costly."""

    distances: list[float]
    """One selected image: the distances to the labelled images, and nothing more."""
    whole: list[float]
    reading: list[float]
    more_bytes: int
    waits: int


def features(rows: int, width: int, device: torch.device) -> torch.Tensor:
    """Return features [rows, width]: the ReLU of clusters around twenty centers."""
    drawn = torch.Generator().manual_seed(rows)
    around = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    made = torch.empty(rows, width, device=device)
    for part in made.split(GENERATED_AT_ONCE):
        noise = torch.randn(part.shape, generator=drawn) * torch.rand(len(part), 1, generator=drawn)
        part.copy_((around[torch.randint(20, (len(part),), generator=drawn)] + noise).relu())
    return made


def measured(asked: argparse.Namespace) -> Costs:
    """Return the costs of the runs."""
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    core_set = registry.load("methods", "core_set")
    points, labelled = (features(rows, asked.width, device) for rows in (asked.rows, asked.labelled))
    core_set.k_center(points[:2000], labelled[:100], 10)  # warms up
    held = "device" if device.type == "cuda" else "host"
    reset_peak_memory(device)
    before = peak_memory(device)[held]
    costs = Costs([], [], [], 0, 0)
    for _ in range(asked.runs):
        costs.distances.append(seconds(lambda: core_set.k_center(points, labelled, 1, asked.memory_gb), device))
        costs.whole.append(seconds(lambda: core_set.k_center(points, labelled, asked.budget, asked.memory_gb), device))
        costs.reading.append(seconds(points.sum, device))
    costs.more_bytes = peak_memory(device)[held] - before
    with Waits() as waits:
        core_set.k_center(points, labelled, asked.budget, asked.memory_gb)
    costs.waits = waits.count
    return costs


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, rows=10_000, width=512, labelled=5000, budget=1000, runs=3)
    options.add_argument("--memory-gb", type=float, default=0.25)
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    costs = measured(asked)
    later = [
        (whole - first) / max(1, asked.budget - 1) for whole, first in zip(costs.whole, costs.distances, strict=True)
    ]
    initial, each, read = map(statistics.median, (costs.distances, later, costs.reading))
    whole = initial + each * (asked.budget - 1)
    held = 4 * asked.width * (asked.rows + asked.labelled)
    row = [asked.rows, initial, whole, each * 1e3, read * 1e3, each / read, costs.waits / asked.budget]
    row += [held / 1e9, costs.more_bytes / 1e9]
    heads = ["rows", "distances s", "in all s", "ms per image", "ms to read", "reads per image", "waits per image"]
    heads += ["features GB", "more memory GB"]
    print(f"{asked.width} features, {asked.labelled} labelled, {asked.budget} selected, median of {asked.runs} runs")
    print(f"{asked.device}, {machine(asked)}")
    print(tabulate([row], heads, floatfmt=".3f"))


if __name__ == "__main__":
    main()

"""What Core-set's choice costs, beside what the machine needs to read the features once.

    python benchmarks/core_set.py [--rows 10000] [--width 512] [--labelled 5000] [--picks 1000] [--memory-gb 0.25]
                                  [--device cpu] [--threads 2] [--runs 3]

The features are those of a network's last ReLU in kind: twenty clusters of unequal width, half of each row zero. Their
reading is a sum over them, after each run. A pick's seconds are those after the distances to the labelled images.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from tabulate import tabulate

from harness import registry
from harness.learning.scoring import seconds_since
from harness.trial import peak_memory, reset_peak_memory

GENERATED_AT_ONCE = 10_000


def features(rows: int, width: int, device: torch.device) -> torch.Tensor:
    """Return features [rows, width]: the ReLU of clusters around twenty centers."""
    drawn = torch.Generator().manual_seed(rows)
    around = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    found = torch.empty(rows, width, device=device)
    for part in found.split(GENERATED_AT_ONCE):
        noise = torch.randn(part.shape, generator=drawn) * torch.rand(len(part), 1, generator=drawn)
        part.copy_((around[torch.randint(20, (len(part),), generator=drawn)] + noise).relu())
    return found


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {
        "rows": 10_000,
        "width": 512,
        "labelled": 5000,
        "picks": 1000,
        "threads": 2,
        "runs": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--memory-gb", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    core_set = registry.load("methods", "core_set")
    points, labelled = (features(rows, asked.width, device) for rows in (asked.rows, asked.labelled))
    core_set.k_center(points[:2000], labelled[:100], 10)  # warms up

    def timed(work) -> float:
        began = time.perf_counter()
        work()
        return seconds_since(began, device)

    held = "device" if device.type == "cuda" else "host"
    reset_peak_memory(device)
    before = peak_memory(device)[held]
    first, picking, reading = [], [], []
    for _ in range(asked.runs):  # one pick needs the distances, and nothing more
        first.append(timed(lambda: core_set.k_center(points, labelled, 1, asked.memory_gb)))
        whole = timed(lambda: core_set.k_center(points, labelled, asked.picks, asked.memory_gb))
        picking.append((whole - first[-1]) / (asked.picks - 1))
        reading.append(timed(points.sum))
    more = peak_memory(device)[held] - before
    initial, pick, read = map(statistics.median, (first, picking, reading))
    row = [asked.rows, initial, initial + pick * (asked.picks - 1), pick * 1e3, read * 1e3, pick / read, more / 1e9]
    heads = ["rows", "distances s", "in all s", "ms per pick", "ms to read", "reads per pick", "more memory GB"]
    print(f"{asked.width} features, {asked.labelled} labelled, {asked.picks} picks, median of {asked.runs} runs")
    print(f"{asked.device}, {asked.threads} threads")
    print(tabulate([row], heads, floatfmt=".3f"))


if __name__ == "__main__":
    main()

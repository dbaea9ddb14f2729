"""What the Ray Data path costs over the forward passes it does, for 10 000 images of CIFAR's size, warm.

    python benchmarks/scoring.py [--images 10000] [--model resnet18_cifar] [--runs 7] [--shards 1 2]

The overhead is the wall time of one scoring less the slowest shard's own seconds. The memory is that of the columns,
and how far the process of the trial rises above what it held before. Needs no data set: the images are noise, which
takes as long.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import

# ruff: isort: split
import ray
from measure import add_precision, noise, noise_trial, opened, parser
from tabulate import tabulate

from harness.learning.process import peak_memory, reset_peak_memory
from harness.on_ray.scoring import RayData
from harness.settings import Protocol, Recipe

LABELLED = 1000


@dataclass
class Costs:
    """Seconds of each warm run."""

    acquisition: str
    path: str
    walls: list[float]
    overheads: list[float]
    started: float = 0.0
    """Seconds that the workers took to start."""
    column_bytes: int = 0
    more_bytes: int = 0


def measured(asked: argparse.Namespace) -> Iterator[Costs]:
    """Yield the costs of each acquisition in process and on each number of shards."""
    data = noise(asked.images + LABELLED)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=True)
    try:
        put = ray.put(data)
        for acquisition in asked.acquisitions:
            trial = noise_trial(
                Recipe(epochs=1, precision=asked.precision),
                Protocol(
                    initial=LABELLED,
                    budget=min(1000, asked.images),
                    cycles=2,
                    candidates=asked.images,
                    start="warm",
                ),
                asked.model,
                "isda",
                acquisition,
            )
            learner, cycle = opened(trial, data, asked)
            learner.train(cycle)
            prepared = learner.acquisition.prepare(cycle)

            def costs(
                path: str, scorer, started=0.0, acquisition=acquisition, learner=learner, cycle=cycle, prepared=prepared
            ):
                walls, overheads, more = [], [], 0
                for run in range(asked.runs + 1):  # the first warms up
                    scored = None
                    reset_peak_memory(learner.device)
                    before = peak_memory(learner.device)["host"]
                    new = replace(cycle, number=run)  # a cycle of its own: its weights are shipped
                    began = time.perf_counter()
                    scored = scorer.describe(new, learner.acquisition, prepared, cycle.candidates, "describe")
                    walls.append(time.perf_counter() - began)
                    overheads.append(walls[-1] - max(shard.seconds for shard in scored.shards))
                    more = peak_memory(learner.device)["host"] - before
                held = sum(column.nbytes for column in scored.columns.values())
                return Costs(acquisition, path, walls[1:], overheads[1:], started, held, more)

            yield costs("in process", learner.scorer)
            for shards in asked.shards:
                scorer = RayData(trial, put, learner.placement, shards)
                began = time.perf_counter()
                scorer.start()
                started = time.perf_counter() - began
                yield costs(f"Ray Data, {shards} shards", scorer, started)
                scorer.close()
    finally:
        ray.shutdown()


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, 1, images=10_000, runs=7)
    options.add_argument("--model", default="resnet_small")
    add_precision(options)
    options.add_argument("--shards", type=int, nargs="+", default=[1, 2])
    options.add_argument("--acquisitions", nargs="+", default=["epmcm", "core_set"])
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    rows = []
    for costs in measured(asked):
        over = costs.overheads
        rows.append(
            [
                costs.acquisition,
                costs.path + (f" (started in {costs.started:.1f} s)" if costs.started else ""),
                statistics.median(costs.walls),
                statistics.median(over),
                min(over),
                max(over),
                costs.column_bytes / 1e6,
                costs.more_bytes / 1e6,
            ]
        )
    heads = ["acquisition", "path", "wall s (median)", "overhead s (median)", "min", "max", "columns MB", "peak MB"]
    print(f"{asked.images} images, {asked.model}, {asked.precision}, {asked.runs} warm runs")
    print(tabulate(rows, heads, floatfmt=".3f"))


if __name__ == "__main__":
    main()

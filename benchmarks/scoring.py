"""What the Ray Data path costs over the forward passes it does, for 10 000 images of CIFAR's size, warm.

    python benchmarks/scoring.py [--images 10000] [--model resnet18_cifar] [--runs 7]

The overhead is the wall time of one scoring less the slowest shard's own seconds. Needs no data set: the images are
noise, which takes as long.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import

# ruff: isort: split
import numpy as np
import ray
from tabulate import tabulate

from harness.config.suite import Part, Trial
from harness.data.dataset import Problem
from harness.on_ray.scoring import RayData
from harness.results.store import RunStore
from harness.settings import Model, Protocol, Recipe
from harness.trial import Runner, Surroundings


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="resnet_small")
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (asked.images + 1000, 32, 32, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, len(images))
    classes = tuple(map(str, range(10)))
    problem = Problem(images, labels, images[:100], labels[:100], classes, (0.5,) * 3, (0.25,) * 3)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=True)
        put = ray.put(problem)
        for acquisition in ("epmcm", "core_set"):
            trial = Trial(
                Part("noise", {}),
                Model(name=asked.model),
                Recipe(epochs=1, precision="bfloat16"),
                Protocol(initial=1000, budget=1000, cycles=2, candidates=asked.images, start="warm"),
                Part("isda", {"covariance": "diagonal", "lambda_0": 1.0}),
                Part(acquisition, {}),
                0,
            )
            here = Surroundings()
            runner = Runner(trial, problem, RunStore(Path(folder)), here)
            cycle = runner._begin(0)
            runner.training.fit(cycle)
            arguments = (
                cycle,
                runner.acquisition,
                runner.acquisition.prepare(cycle),
                cycle.candidates,
                "describe",
            )

            def measure(name: str, scorer, arguments=arguments, acquisition=acquisition) -> None:
                walls, overheads = [], []
                for run in range(asked.runs + 1):  # the first warms up
                    new = replace(arguments[0], number=run)  # a cycle of its own: its weights are shipped
                    began = time.perf_counter()
                    scored = scorer.describe(new, *arguments[1:])
                    walls.append(time.perf_counter() - began)
                    overheads.append(walls[-1] - max(shard.seconds for shard in scored.shards))
                rows.append(
                    [
                        acquisition,
                        name,
                        statistics.median(walls[1:]),
                        statistics.median(overheads[1:]),
                        min(overheads[1:]),
                        max(overheads[1:]),
                    ]
                )

            measure("in process", runner.scorer)
            for shards in (1, 2):
                scorer = RayData(trial, put, here, shards)
                began = time.perf_counter()
                scorer.start()
                started = time.perf_counter() - began
                measure(f"Ray Data, {shards} shards (started in {started:.1f} s)", scorer)
                scorer.close()
    heads = ["acquisition", "path", "wall s (median)", "overhead s (median)", "min", "max"]
    print(f"{asked.images} images, {asked.model}, bfloat16, {asked.runs} warm runs")
    print(tabulate(rows, heads, floatfmt=".3f"))


if __name__ == "__main__":
    main()

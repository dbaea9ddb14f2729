"""What checkpoints within a cycle cost: seconds to write one, its bytes, and the share of the time at ten minutes.

    python benchmarks/within.py [--model resnet18_cifar] [--writes 5] [--minutes 10] [--folder FOLDER]
                                [--acquisitions random vaal qbc core_set] [--device cpu] [--threads 2]

A trial on noise stores a checkpoint after every step until there are so many: while it trains, then while its
acquisition trains or, if it doesn't, while images are scored. A checkpoint is written on the disk of FOLDER (default: a
temporary folder) and synced.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine, noise, noise_trial, parser, spread
from tabulate import tabulate

from harness.errors import Death
from harness.learning.checkpoints import SCORE, SELECT, TRAIN
from harness.learning.process import Placement
from harness.results.store import RunStore
from harness.results.within import Within
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner, run_trial


class Enough(Death):
    """There are as many checkpoints as asked for."""


class Timed(Within):
    """Measures the writes of checkpoints."""

    seconds: dict[str, list[float]]
    """Stage of the cycle -> seconds of each write."""
    sizes: dict[str, int]
    most: int
    last: set[str]
    """The stages that end the trial once there are enough of their checkpoints."""

    def write(self, content: dict[str, Any]) -> None:
        """Write a checkpoint, unless there are enough of its stage; end the trial when there are enough of the last."""
        stage, began = content["stage"], time.perf_counter()
        took = self.seconds.setdefault(stage, [])
        if len(took) < self.most:
            super().write(content)
            took.append(time.perf_counter() - began)
            self.sizes[stage] = self.path.stat().st_size
        if stage in self.last and len(took) == self.most:
            raise Enough


def measured(asked: argparse.Namespace, acquisition: str, folder: Path) -> list[list[Any]]:
    """Return a row for each stage of a cycle."""
    from harness import trial as module

    Timed.seconds, Timed.sizes, Timed.most = {}, {}, asked.writes
    Timed.last = {TRAIN} if acquisition == "random" else {SELECT, SCORE}
    module.Within = Timed  # type: ignore[misc]
    recipe = Recipe(epochs=1, batch_size=16, precision="bfloat16" if asked.device == "cuda" else "float32")
    protocol = Protocol(initial=16 * (asked.writes + 2), budget=10, cycles=2, candidates=100, start="warm")
    trial = noise_trial(recipe, protocol, asked.model, "isda", acquisition)
    placement = Placement(asked.device, asked.threads, checkpoint_minutes=1e-9)
    data = noise(protocol.initial + 200)
    try:
        run_trial(ActiveLearner(trial, data, placement), RunStore(folder), "s", "m", lambda record: None)
    except Enough:
        pass
    finally:
        module.Within = Within  # type: ignore[misc]
    return [
        [acquisition, stage, spread(took), Timed.sizes[stage] / 1e6, f"{share(took, asked.minutes):.4%}"]
        for stage, took in Timed.seconds.items()
    ]


def share(took: list[float], minutes: float) -> float:
    """Return the share of the time that writes take if there is one in so many minutes."""
    return statistics.median(took) / (60 * minutes)


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, writes=5)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--model", default="resnet18_cifar")
    options.add_argument("--folder", default=None)
    options.add_argument("--acquisitions", nargs="+", default=["random", "vaal", "qbc", "core_set"])
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    rows = []
    for acquisition in asked.acquisitions:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            rows += measured(asked, acquisition, Path(folder))
    print(f"{asked.model}, isda, {asked.writes} checkpoints each, {asked.device}, {machine(asked)}")
    heads = ["acquisition", "stage", "seconds (median, min to max)", "MB", f"share at {asked.minutes:g} minutes"]
    print(tabulate(rows, heads, floatfmt=".0f"))


if __name__ == "__main__":
    main()

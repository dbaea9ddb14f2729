"""How well a grid of trials fills its workers, from the command's start to its end.

    python benchmarks/grid.py [--trials 16] [--seconds 5 30 120] [--workers 1 2 4 8]

Each trial is one cycle whose training sleeps, so that any machine can run eight at once. The whole command is timed:
start of Ray and of the workers, the report, the end. Efficiency is trials x seconds / (workers x wall seconds). Ray is
told of as many processors as there are workers; what the workers' own start costs is this machine's processors' work.
The last columns: the size of Ray Tune's state at the end, for each trial, and the highest memory of Ray's driver.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
METHOD = '''"""Sleeps instead of training."""

from __future__ import annotations

import time
from typing import Any

from pydantic import PositiveFloat

from harness.learning.contract import Training
from harness.settings import Strict


class Sleep(Training):
    """Sleeps."""

    class Settings(Strict):
        """How long."""

        seconds: PositiveFloat

    def fit(self, cycle: Any) -> float:
        """Sleep."""
        with cycle.clock.phase("train"):
            time.sleep(self.settings.seconds)
        return 0.0
'''
CONFIG = """
dataset: {{name: digits, limit: 100, test_limit: 20}}
model: {{name: resnet_small, width: 4}}
recipe: {{epochs: 1, batch_size: 16}}
protocol: {{initial: 16, budget: 1, cycles: 1, start: warm}}
methods: {{Sleep: {{acquisition: random, training: {{name: sleep, seconds: {seconds}}}}}}}
seeds: {seeds}
where: {{scoring: in_process, dashboard: false, warm_workers: {warm}}}
"""


def measured(checkout: Path, trials: int, seconds: float, workers: int, warm: bool) -> tuple[float, float, float]:
    """Run the command on so many workers; return wall seconds, kB of Tune's state a trial, MB of Ray's driver."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "sleep.yaml"
        config.write_text(CONFIG.format(seconds=seconds, seeds=list(range(trials)), warm=str(warm).lower()))
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": workers}),
        }
        command = [sys.executable, "-m", "harness.run", str(config), f"where.output={folder}/out"]
        began = time.perf_counter()
        memory = 0
        with (Path(folder) / "said").open("w+") as said:
            run = subprocess.Popen(command, cwd=checkout, env=environment, stdout=said, stderr=said)
            while run.poll() is None:
                memory = max(memory, _driver_memory(run.pid))
                time.sleep(0.1)
            took = time.perf_counter() - began
            said.seek(0)
            text = said.read()
        if run.returncode or f"{trials} of {trials} trials and" not in text:
            raise SystemExit(f"the run failed:\n{text}")
        state = sum(path.stat().st_size for path in Path(folder).glob("out/ray/*/experiment_state-*.json"))
        return took, state / 1000 / trials, memory / 1000


def _driver_memory(command: int) -> int:
    """Return the kB of memory of the child of the command that is Ray's driver, or 0."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == command and b"harness.run" in (process / "cmdline").read_bytes():
                return int((process / "status").read_text().split("VmRSS:")[1].split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return 0


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 30, 120], help="of a trial")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cold", action="store_true", help="a process for each trial (where.warm_workers: false)")
    asked = parser.parse_args(words)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for part in ("harness", "methods", "datasets", "published"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        (checkout / "methods" / "sleep.py").write_text(METHOD)
        for seconds in asked.seconds:
            for workers in asked.workers:
                wall, state, memory = measured(checkout, asked.trials, seconds, workers, not asked.cold)
                rows.append([seconds, workers, wall, 100 * asked.trials * seconds / (workers * wall), state, memory])
                print(f"{seconds:g} s on {workers}: {wall:.1f} s", file=sys.stderr, flush=True)
    kind = "a process for each trial" if asked.cold else "warm workers"
    print(f"{asked.trials} sleeping trials, {kind}, {os.cpu_count()} processors")
    print(
        tabulate(
            rows, ["trial, s", "workers", "wall s", "efficiency %", "state, kB a trial", "driver, MB"], floatfmt=".1f"
        )
    )


if __name__ == "__main__":
    main()

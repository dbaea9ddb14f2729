"""Where the seconds of a command go: --help, --plan, and a run's way to its first metric and to its end.

    python benchmarks/start.py [--config configs/quickstart.yaml] [--runs 5]

The run is timed from outside, by when its lines appear; what its trials did between the first metric and the last comes
from their records. Medians over the runs, with smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from harness.results.records import PHASES, TRAINING_PHASES
from harness.results.store import RunStore

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "Ray: ": "configuration checked, data loaded, Ray started",
    " labelled: ": "first worker started, first cycle trained: the first metric",
    "Report of run ": "all other cycles, end of Ray, report",
}
"""What a line of the run holds, the first time, and what has been done by then."""


def seconds(*arguments: str) -> float:
    """Return how long a command takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "harness.run", *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - began


def timed(config: str, output: str) -> dict[str, float]:
    """Run a config; return the seconds after its start at which each stage was over."""
    command = [sys.executable, "-u", "-m", "harness.run", config, f"where.output={output}"]
    began, found = time.perf_counter(), {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for part, stage in STAGES.items():
                if part in line:
                    found.setdefault(stage, time.perf_counter() - began)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {**found, "tables printed, end of the process": time.perf_counter() - began}


def by_phase(output: str) -> dict[str, float]:
    """Return the seconds of all trials' processes by phase; a shared training is counted once."""
    store, found = RunStore(Path(output)), defaultdict(float)
    kept = [store.shared(folder.name) for folder in Path(output, "shared").iterdir()]
    kept += [store.trial(folder.name) for folder in Path(output, "trials").iterdir()]
    for record in (record for one in kept for record in one.records()):
        for phase in PHASES:
            if not (record.shared_from and phase in TRAINING_PHASES):
                found[phase] += record.seconds[phase]
    return found


def spread(values: list[float]) -> str:
    """Return the median, the smallest and the largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(words: list[str] | None = None) -> None:
    """Measure and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args(words)
    print(f"{asked.config}, {asked.runs} runs, {os.cpu_count()} processors\n")
    commands = {"--help": ["--help"], "full_benchmark.yaml --plan": ["configs/full_benchmark.yaml", "--plan"]}
    rows = [[name, spread([seconds(*words) for _ in range(asked.runs)])] for name, words in commands.items()]
    print(tabulate(rows, ["command", "s"], disable_numparse=True), "\n")
    stages, phases = defaultdict(list), defaultdict(list)
    for _ in range(asked.runs):
        with tempfile.TemporaryDirectory() as folder:
            for stage, reached in timed(asked.config, f"{folder}/run").items():
                stages[stage].append(reached)
            for phase, spent in by_phase(f"{folder}/run").items():
                phases[phase].append(spent)
    print(
        tabulate([[k, spread(v)] for k, v in stages.items()], ["done", "s since the start"], disable_numparse=True),
        "\n",
    )
    print(tabulate([[k, spread(v)] for k, v in phases.items()], ["phase", "s of all processes"], disable_numparse=True))


if __name__ == "__main__":
    main()

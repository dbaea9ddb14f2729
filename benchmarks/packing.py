"""How many trials a device should run at once: 1, 2, 4, 8 processes that train side by side on it.

    python benchmarks/packing.py [--model resnet18_cifar] [--trials 1 2 4 8] [--seconds 20]

Each process runs the harness's own epochs on noise; they start together and are counted until the time is up. On a CPU
its threads are shared out (where.cpus_per_trial), on a GPU its memory is (where.gpus_per_trial). One row says what all
processes reach together, relative to the first row, and what memory each took.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import torch
from measure import machine
from tabulate import tabulate
from training import begin, cross_entropy, shared_arguments
from workers import context, processes

from harness.learning.fit import fit
from harness.learning.process import peak_memory
from harness.learning.scoring import seconds_since

STARTING = 300  # seconds that one process waits for the others: compiling may take minutes


def train(asked: argparse.Namespace, together: Any) -> tuple[float, dict[str, int]]:
    """Train in this process until the time is up; return images per second and peak memory."""
    try:
        os.environ.update(asked.environment)  # before CUDA starts, which reads it
        device = torch.device(asked.device)
        _, cycle = begin(asked, share=1 / asked.processes)
        training = cross_entropy()
        fit(cycle, training)
        together.wait(STARTING)
        began, took, images = time.perf_counter(), 0.0, 0
        while True:
            fit(cycle, training)
            now = seconds_since(began, device)
            if now > asked.seconds and images:
                break  # this epoch does not count: others may have ended meanwhile
            took, images = now, images + asked.batch * asked.steps
        return images / took, peak_memory(device)
    except BaseException:
        together.abort()
        raise


def side_by_side(
    asked: argparse.Namespace, count: int, environment: dict[str, str] | None = None
) -> list[tuple[float, dict[str, int]]]:
    """Return what each of so many processes reached: images per second and peak memory."""
    threads = max(1, asked.threads // count)
    share = {**vars(asked), "processes": count, "threads": threads, "environment": environment or {}}
    with context().Manager() as manager, processes(count) as pool:
        together = manager.Barrier(count)
        started = [pool.submit(train, argparse.Namespace(**share), together) for _ in range(count)]
        failed = [error for one in started if (error := one.exception())]
        # a broken barrier tells of another's failure only
        for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [one.result() for one in started]


def mebibytes(peaks: list[tuple[float, dict[str, int]]]) -> float:
    """Return the most memory that one process took: of the device's, or of the host's where there is none."""
    return max(memory.get("reserved", memory["host"]) for _, memory in peaks) / 2**20


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = shared_arguments(__doc__, os.cpu_count())
    options.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--seconds", type=float, default=20)
    return options


def main(words: list[str] | None = None) -> None:
    """Measure and print one table."""
    asked = arguments().parse_args(words)
    what = machine(asked) + ", compiled" * asked.compile + ", autotuned" * asked.autotune
    print(f"{asked.model}, batch {asked.batch}, {asked.precision}, {what}; {asked.seconds:g} s each\n")
    rows, alone = [], 0.0
    for count in asked.trials:
        reached = side_by_side(asked, count)
        together = sum(rate for rate, _ in reached)
        alone = alone or together
        rows.append([count, together / count, together, together / alone, mebibytes(reached)])
    heads = ["trials at once", "images/s of each", "of all", f"relative to {asked.trials[0]}", "peak MiB of each"]
    print(tabulate(rows, heads, floatfmt=("d", ".1f", ".1f", ".2f", ".0f")))


if __name__ == "__main__":
    main()

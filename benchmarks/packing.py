"""How many trials a device should run at once: 1, 2, 4, 8 processes that train side by side on it.

    python benchmarks/packing.py [--model resnet18_cifar] [--trials 1 2 4 8] [--seconds 20]

Each process runs the harness's own epochs on noise; they start together and are counted until the time is up. On a CPU
its threads are shared out (where.cpus_per_trial), on a GPU its memory is (where.gpus_per_trial). One row says what all
processes reach together, beside what the first row's do, and what memory each took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from training import begin

from harness.learning.fit import fit
from harness.learning.scoring import seconds_since
from harness.trial import limit_memory, peak_memory

STARTING = 300  # seconds that one process waits for the others: compiling may take minutes


def train(asked: argparse.Namespace, together: Any) -> tuple[float, dict[str, int]]:
    """Train in this process until the time is up; return images per second and peak memory."""
    device = torch.device(asked.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, cycle = begin(asked, 10, "diagonal", folder)
            limit_memory(device, 1 / asked.processes)

            def epoch() -> float:
                return fit(cycle, lambda outputs, labels, _: F.cross_entropy(outputs.logits, labels))

            epoch()
            together.wait(STARTING)
            began, took, images = time.perf_counter(), 0.0, 0
            while True:
                epoch()
                now = seconds_since(began, device)
                if now > asked.seconds and images:
                    break  # this epoch does not count: others may have ended beside it
                took, images = now, images + asked.batch * asked.steps
            return images / took, peak_memory(device)
    except BaseException:
        together.abort()
        raise


def side_by_side(asked: argparse.Namespace, processes: int) -> list[tuple[float, dict[str, int]]]:
    """Return what each of so many processes reached."""
    share = argparse.Namespace(**{**vars(asked), "processes": processes, "threads": max(1, asked.threads // processes)})
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        together = manager.Barrier(processes)
        started = [pool.submit(train, share, together) for _ in range(processes)]
        failed = [error for one in started if (error := one.exception())]
        for error in failed:
            if not isinstance(error, threading.BrokenBarrierError):  # that one tells of another's failure only
                raise error
        return [one.result() for one in started]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18_cifar")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", action="store_true", help="recipe.compile")
    parser.add_argument("--autotune", action="store_true", help="recipe.deterministic: false")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    what = torch.cuda.get_device_name() if asked.device == "cuda" else f"{asked.threads} threads"
    what += ", compiled" * asked.compile + ", autotuned" * asked.autotune
    print(f"{asked.model}, batch {asked.batch}, {asked.precision}, {what}; {asked.seconds:g} s each\n")
    rows, alone = [], 0.0
    for processes in asked.trials:
        found = side_by_side(asked, processes)
        together = sum(rate for rate, _ in found)
        alone = alone or together
        memory = max((m.get("reserved", m["host"]) for _, m in found)) / 2**20
        rows.append([processes, together / processes, together, together / alone, memory])
    heads = ["trials at once", "images/s of each", "of all", f"beside {asked.trials[0]}", "peak MiB of each"]
    print(tabulate(rows, heads, floatfmt=("d", ".1f", ".1f", ".2f", ".0f")))


if __name__ == "__main__":
    main()

"""Runs a grid on Ray, from starting or joining it to leaving it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.on_ray import before

if TYPE_CHECKING:
    from harness.config.suite import Benchmark
    from harness.data.dataset import LoadedData
    from harness.experiment.display import Display, Failure
    from harness.experiment.grid import Grid


def run(benchmark: Benchmark, grid: Grid, data: dict[str, LoadedData], begin: Callable[[], Display]) -> list[Failure]:
    """Run the units on Ray; return those that failed. ``begin`` is called once Ray has started."""
    if line := before.announcement(benchmark.where):
        print(line, flush=True)
    before.prepare(benchmark.where)
    from harness.on_ray import session, trials

    ended_by = signal.getsignal(signal.SIGTERM)
    print(session.start(benchmark.where), flush=True)
    try:
        signal.signal(signal.SIGTERM, ended_by)  # Ray's own handler aborts
        notes = session.check(benchmark.where, grid.units, benchmark.output, data)
        print(*notes, sep="\n", end="\n" if notes else "")
        display = begin()
        try:
            return trials.run(grid.units, data, benchmark.where, benchmark.output, display)
        finally:
            display.close()
    finally:
        session.stop()

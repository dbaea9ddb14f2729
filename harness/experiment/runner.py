"""Runs a benchmark: its checks, the data, the units of work, the report."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from harness import registry
from harness.config.suite import Benchmark
from harness.data import dataset
from harness.errors import UserError
from harness.experiment.display import Display, cycle_values
from harness.experiment.grid import Grid, Unit, manifest
from harness.experiment.upgrade import open_run
from harness.faults import PluginFault
from harness.networks import names
from harness.report.captions import counted
from harness.report.write import write
from harness.results.store import RunStore, write_atomically

if TYPE_CHECKING:
    from harness.data.dataset import LoadedData
    from harness.learning.process import Placement
    from harness.results.records import CycleRecord

    RunOnRay = Callable[[Benchmark, Grid, dict[str, LoadedData], Callable[[], Display]], list[str]]
    """Runs the units of a grid on Ray: see harness.on_ray.launch.run."""


def _load(benchmark: Benchmark, grid: Grid) -> dict[str, LoadedData]:
    """Return the loaded data by suite, for suites with units; suites with the same dataset share one copy."""
    loaded: dict[str, LoadedData] = {}
    by_suite = {}
    for suite in benchmark.suites:
        if all(unit.suite != suite.name for unit in grid.units):
            continue
        key = json.dumps(suite.dataset.written(), sort_keys=True)
        if key not in loaded:
            loaded[key] = dataset.loaded(suite.open_dataset(benchmark.where), grid.info[suite.name])
            _ = loaded[key].fingerprint  # computed once, here, and then pickled with the data
        by_suite[suite.name] = loaded[key]
    return by_suite


def _run_in_process(
    placement: Placement, grid: Grid, data: dict[str, LoadedData], run: RunStore, display: Display
) -> list[str]:
    """Run the units one after another in this process; return one sentence for each failed unit."""
    from harness.experiment.executor import execute

    failures = []
    for unit in grid.units:

        def report(record: CycleRecord, unit: Unit = unit) -> None:
            display("cycle", unit, cycle_values(record))

        display("start", unit, {})
        try:
            failure = execute(unit, data[unit.suite], run, placement, report)
        except Exception as error:  # nothing that ends one trial may end the others
            traceback.print_exc(file=(output := StringIO()))
            path = run.folder / "failure.txt"
            write_atomically(path, output.getvalue().encode())
            first = next(iter(str(error).strip().splitlines()), "")
            failure = f"{type(error).__name__}: {first:.200}; the traceback is in {path}"
        if failure is not None:
            failures.append(f"{unit.name}: {failure}")
            display("failed", unit, {"failure": failure})
        display("end", unit, {})
    return failures


def left_to_run(grid: Grid, run: RunStore) -> Grid:
    """Return the grid without the units that are finished or no longer needed."""
    needed_keys = {unit.after for unit in grid.units if unit.after and not run.trial(unit.trial.id).records()}
    units = []
    for unit in grid.units:
        if unit.shared:
            unfinished = unit.trial.sharing_key in needed_keys and not run.shared(unit.trial.sharing_key).records()
        else:
            unfinished = len(run.trial(unit.trial.id).records()) < unit.cycles
        if unfinished:
            units.append(unit)
    return replace(grid, units=units)


def check_output(output: Path, resume: bool) -> None:
    """Raise UserError if the results folder holds results but --resume is not given, or if it can't be written to."""
    try:
        has_results = (output / "run.json").is_file()
        if not has_results or resume:
            output.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=output):
                pass
    except OSError as error:
        raise UserError(f"where.output: {output} can't be written to: {error.strerror}") from None
    if has_results and not resume:
        raise UserError(
            f"where.output: {output} already holds results; add --resume to continue that run, or "
            "where.output=OTHER_FOLDER"
        )


def run(whole: Benchmark, benchmark: Benchmark, grid: Grid, run_on_ray: RunOnRay) -> int:
    """Run ``benchmark``, the part of the config ``whole`` that --only selects, and print its report.

    Return the exit code: 0, or 1 if a trial failed or is unfinished. Raises UserError.
    """
    output = benchmark.output
    for name, reason in grid.skipped.items():
        print(f"suite {name} is SKIPPED: {reason}")
    if not grid.info:
        raise UserError("nothing to run: the data of every suite is missing")
    check_networks(benchmark, grid)
    earlier, store = open_run(output)
    left = left_to_run(grid, store)
    data = _load(benchmark, left)
    finished = [0 if unit.shared else len(store.trial(unit.trial.id).records()) for unit in left.units]

    def begin() -> Display:
        """Write config.yaml and run.json, and return the display; called after all checks for user errors."""
        entries = manifest(benchmark, grid)
        if earlier is not None:
            entries = entries.with_earlier(earlier)
        write_atomically(output / "config.yaml", whole.written().encode())
        write_atomically(output / "run.json", entries.packed())
        done = f" ({len(grid.units) - len(left.units)} already finished)" if len(grid.units) != len(left.units) else ""
        print(f"To run: {_counts(left)}{done}; results go to {output}", flush=True)
        return Display(left.units, sys.stdout, finished)

    if left.units and benchmark.where.trials == "ray":
        failures = run_on_ray(benchmark, left, data, begin)
    else:
        from harness.learning.process import Placement, chosen_device

        placement = Placement(chosen_device(benchmark.where.device), benchmark.where.cpus_per_trial)
        display = begin()
        try:
            failures = _run_in_process(placement, left, data, store, display)
        finally:
            display.close()
    print()
    print(write(output))
    left = left_to_run(grid, store)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if left.units:
        print(f"Not finished: {_counts(left)}; add --resume to continue.", file=sys.stderr)
    return 1 if left.units or failures else 0


def _counts(grid: Grid) -> str:
    """Return, for example, '1 trial' or '15 trials and 6 shared first cycles'."""
    shared = sum(unit.shared for unit in grid.units)
    trials = counted(len(grid.units) - shared, "trial")
    return f"{trials} and {counted(shared, 'shared first cycle')}" if shared else trials


def check_networks(benchmark: Benchmark, grid: Grid) -> None:
    """Raise UserError if a suite's network fails on its dataset.

    Networks of the zoo are tried only with pretrained weights: without, they take any images.
    """
    for suite in benchmark.suites:
        zoo = suite.model.name in registry.names("networks") and names.shipped(suite.model.name)
        if suite.name in grid.info and (not zoo or suite.model.settings.weights):
            from harness.networks.building import check

            try:
                check(suite.model, grid.info[suite.name])
            except PluginFault:
                raise
            except UserError as error:
                key, problem = str(error).split(": ", 1)
                raise UserError(f"{suite.at(key)}: {problem}") from None

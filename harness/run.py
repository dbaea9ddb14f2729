"""The command line: config -> trials -> cycles -> records -> report.

python -m harness.run CONFIG.yaml [key.path=value ...] [--plan] [--only dataset=... method=... seed=...] [--resume]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NoReturn

from harness.config.load import load
from harness.config.only import only
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config.suite import Benchmark
    from harness.data.dataset import Problem
    from harness.experiment.display import Display
    from harness.experiment.grid import Grid


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the one sentence that every mistake gets."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m harness.run", description="Run an active-learning benchmark and print its tables.")
    parser.add_argument("config", type=Path, nargs="?", help="a YAML file, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace a value, e.g. recipe.epochs=2")
    parser.add_argument("--plan", action="store_true", help="print what would be run, and start nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="run a part: suite=..., dataset=..., method=..., seed=...; commas separate alternatives",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the results that are in the output folder")
    parser.add_argument("--schema", action="store_true", help="print a JSON schema of configs, for editors")
    found = parser.parse_intermixed_args(arguments)  # overrides may also stand after options
    if found.config is None and not found.schema:
        parser.error("a config is needed, e.g. configs/quickstart.yaml")
    return found


def _load(benchmark: Benchmark, grid: Grid) -> dict[str, Problem]:
    """Return the data of each suite that has units; suites with the same dataset share it."""
    loaded: dict[str, Problem] = {}
    by_suite = {}
    for suite in benchmark.suites:
        if all(unit.suite != suite.name for unit in grid.units):
            continue
        key = json.dumps(suite.dataset.written(), sort_keys=True)
        if key not in loaded:
            loaded[key] = suite.open_dataset(benchmark.where).load()
            _ = loaded[key].fingerprint  # computed here once, and pickled with the data
        by_suite[suite.name] = loaded[key]
    return by_suite


def _run_in_process(benchmark: Benchmark, grid: Grid, problems: dict[str, Problem], display: Display) -> list[str]:
    """Run the units one after another, here."""
    import torch

    from harness.errors import NonFiniteLoss, NotReproduced
    from harness.results.records import CycleRecord
    from harness.results.store import RunStore
    from harness.trial import Runner, Surroundings

    failures = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    store = RunStore(benchmark.output)
    for unit in grid.units:
        here = Surroundings(device, benchmark.where.cpus_per_trial, 1, unit.suite, unit.label)

        def report(record: CycleRecord, unit: Any = unit) -> None:
            values = {"cycle": record.cycle, "labelled": record.labelled, "cost": record.cost_seconds}
            display("cycle", unit, {**values, **record.figures})

        display("start", unit, {})
        try:
            runner = Runner(unit.trial, problems[unit.suite], store, here)
            if unit.shared:
                runner.run_shared(report)
            else:
                runner.run(report)
        except (NonFiniteLoss, NotReproduced, UserError) as error:
            failures.append(f"{unit.name}: {error}")
            display("failed", unit, {"failure": str(error)})
        display("end", unit, {})
    return failures


def _left_to_run(benchmark: Benchmark, grid: Grid) -> Grid:
    """Return the grid without what the store already holds in full."""
    from harness.experiment.grid import Grid
    from harness.results.store import RunStore

    store = RunStore(benchmark.output)
    open_keys = {u.after for u in grid.units if u.after and not store.trial(u.trial.id).records()}
    units = []
    for unit in grid.units:
        if unit.shared:
            missing = unit.trial.sharing_key in open_keys and not store.shared(unit.trial.sharing_key).records()
        else:
            missing = len(store.trial(unit.trial.id).records()) < unit.cycles
        if missing:
            units.append(unit)
    return Grid(units, grid.facts, grid.skipped)


def _check_output(output: Path, resume: bool) -> None:
    """Raise UserError if the results folder holds results that are not to be resumed, or can't be written to."""
    try:
        held = (output / "run.json").is_file()
        if not held or resume:
            output.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=output):
                pass
    except OSError as error:
        raise UserError(f"where.output: {output} can't be written to: {error.strerror}") from None
    if held and not resume:
        raise UserError(
            f"where.output: {output} holds results already; add --resume to run what is missing, or "
            "where.output=OTHER_FOLDER"
        )


def _run(asked: Benchmark, benchmark: Benchmark, grid: Grid) -> int:
    """Run ``benchmark``, the part of ``asked`` that --only names."""
    from harness.experiment.grid import manifest, with_earlier
    from harness.results.store import RunStore, write_atomically

    output = benchmark.output
    for name, reason in grid.skipped.items():
        print(f"suite {name} is SKIPPED: {reason}")
    if not grid.facts:
        raise UserError("nothing can run: the data of every suite is missing")
    _check_networks(benchmark, grid)
    left = _left_to_run(benchmark, grid)
    problems = _load(benchmark, left)
    store = RunStore(output)
    finished = [0 if unit.shared else len(store.trial(unit.trial.id).records()) for unit in left.units]

    def begin() -> Display:
        """Write what the run is, now that nothing the user can mend stands in its way."""
        from harness.experiment.display import Display

        listed = manifest(benchmark, grid)
        with contextlib.suppress(OSError, ValueError, KeyError):
            listed = with_earlier(json.loads((output / "run.json").read_text()), listed)
        write_atomically(output / "config.yaml", asked.written().encode())
        write_atomically(output / "run.json", json.dumps(listed, indent=2).encode())
        done = f" ({len(grid.units) - len(left.units)} done before)" if len(grid.units) != len(left.units) else ""
        print(f"{len(left.units)} units of work{done}; results go to {output}", flush=True)
        return Display(left.units, sys.stdout, finished)

    if left.units and benchmark.where.trials == "ray":
        failures = _run_on_ray(benchmark, left, problems, begin)
    else:
        display = begin()
        try:
            failures = _run_in_process(benchmark, left, problems, display)
        finally:
            display.close()
    print()
    from harness.report.write import write

    print(write(output))
    left = _left_to_run(benchmark, grid)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if left.units:
        print(f"{len(left.units)} units of work are not finished; --resume goes on with them.", file=sys.stderr)
    return 1 if left.units or failures else 0


def _check_networks(benchmark: Benchmark, grid: Grid) -> None:
    """Try the networks that are not ours, or come with weights, before anything starts."""
    from harness.networks.names import OURS

    for suite in benchmark.suites:
        if suite.name in grid.facts and (suite.model.name not in OURS or suite.model.weights):
            from harness.networks.zoo import check

            try:
                check(suite.model, grid.facts[suite.name])
            except UserError as error:
                key, problem = str(error).split(": ", 1)
                raise UserError(f"{suite.at(key)}: {problem}") from None


def _run_on_ray(
    benchmark: Benchmark, grid: Grid, problems: dict[str, Problem], begin: Callable[[], Display]
) -> list[str]:
    from harness import on_ray

    on_ray.prepare(joining=bool(benchmark.where.address or os.environ.get("RAY_ADDRESS")))
    from harness.on_ray import trials

    print(trials.start(benchmark.where), flush=True)
    try:
        trials.check(benchmark.where, grid.units, benchmark.output)
        display = begin()
        try:
            return trials.run(grid.units, problems, benchmark.where, benchmark.output, display)
        finally:
            display.close()
    finally:
        trials.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if a trial failed, 2 for what the user can mend."""
    try:
        found = _arguments(arguments)
        if found.schema:
            from harness.config.schema import json_schema

            print(json.dumps(json_schema(), indent=2))
            return 0
        asked = load(found.config, found.overrides)
        benchmark = only(asked, found.only)
        from harness.experiment.grid import expand

        if found.plan:
            from harness.experiment import plan

            print(plan.text(benchmark, expand(benchmark, planning=True)))
            return 0
        expand(benchmark)  # all that is cheap to check comes before the folder and the downloads
        _check_output(benchmark.output, found.resume)
        return _run(asked, benchmark, expand(benchmark, fetch=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished cycles are kept: --resume goes on with the rest", file=sys.stderr)
        return 130


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if code == 130 else sys.exit(code)

"""The command line: runs the trials of a config, stores a record of each cycle, and prints the report.

python -m harness.run CONFIG.yaml [key.path=value ...] [--plan] [--check-data] [--only dataset=... seed=...] [--resume]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a traceback out of an import would say nothing

# ruff: isort: split
from harness.config.load import load_config, load_where
from harness.config.only import is_override, only
from harness.errors import Parser, Stopped, answered, in_utf8, readable
from harness.forked import ENDING
from harness.results import lock

PATIENCE = 1.0
"""Seconds after the first signal in which another one changes nothing: some tools send it twice."""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    parser = Parser(prog="python -m harness.run", description="Run an active-learning benchmark and print its tables.")
    parser.add_argument(
        "config", nargs="?", help="YAML file of the benchmark, or the name of a config of the harness, e.g. quickstart"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="set a value of the config, e.g. recipe.epochs=2"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the trials, their cost and missing data; start nothing"
    )
    parser.add_argument(
        "--check-data",
        action="store_true",
        help="read and decode all data, say what it is and what is bad; run nothing",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="run only a part: suite=..., dataset=..., method=... or seed=...; all filters must match, and commas "
        "separate alternatives, e.g. seed=0,1",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the results folder (where.output); finished cycles are kept",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: continue although the code, the data, a library or the device changed since cycles "
        "finished; the tables keep such rows apart",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="take the results folder over from a run that still uses it; that run stops",
    )
    parser.add_argument(
        "--schema",
        nargs="?",
        const="config",
        choices=["config", "run", "record"],
        help="print a JSON schema and exit: of config files (the default), of run.json, or of the record of a cycle",
    )
    options = parser.parse_intermixed_args(arguments)  # overrides may also follow options
    # --only takes all words that follow it: overrides and the config may be among them
    options.overrides += [text for text in options.only if is_override(text)]
    options.only = [text for text in options.only if not is_override(text)]
    if options.config is None and (words := [text for text in options.only if "=" not in text]):
        options.config = words[0]
        options.only.remove(words[0])
    if options.config is None and not options.schema:
        parser.error("a config is needed, e.g. quickstart")
    if options.accept_changes and not options.resume:
        parser.error("--accept-changes needs --resume")
    if options.plan and options.check_data:
        parser.error("choose --plan or --check-data")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if a trial failed or is unfinished, 2 for a user error."""
    words = sys.argv[1:] if arguments is None else arguments
    return answered(lambda: ended(lambda: _run(_arguments(arguments), words, guarded=arguments is None)))


def ended(work: Callable[[], int]) -> int:
    """Return the exit code of the work of a run, or say what ended it and return its code."""
    try:
        return work()
    except lock.LockLost as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        name = signal.Signals(number).name
        print(f"stopped by {name}; {getattr(stop, 'kept', 'nothing was computed')}", file=sys.stderr)
        return 128 + number


@contextmanager
def stoppable(output: Path) -> Iterator[None]:
    """Let the KeyboardInterrupt that ends this block say what is kept, if there is a run in the results folder."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not hasattr(stop, "kept") and (output / "run.json").exists():
            stop.kept = "finished cycles are kept, add --resume to continue"  # type: ignore[attr-defined]
        raise


def _stop(number: int, frame: Any) -> None:
    """End the run; a second Ctrl-C, after a while, ends it at once."""
    began = time.monotonic()

    def at_once(number: int, frame: Any) -> None:
        if time.monotonic() - began > PATIENCE:
            os._exit(128 + number)

    for each in ENDING:
        signal.signal(each, at_once if each == signal.SIGINT else signal.SIG_IGN)
    raise Stopped(number)


def _run(options: argparse.Namespace, words: list[str], guarded: bool) -> int:
    """Do what the command line, of these words, asks for; return the exit code. Raises UserError.

    ``guarded``: this process is that of the command, which must have the last word.
    """
    if options.schema:
        from harness.config.schema import SCHEMAS

        print(json.dumps(SCHEMAS[options.schema](), indent=2))
        return 0
    work = partial(_work, options, words)
    if guarded and not options.plan and not options.check_data:
        known = load_where(options.config, options.overrides)
        if known.where.trials == "in_process":  # on Ray, harness.on_ray.launch guards
            from harness.experiment import guard
            from harness.experiment.notify import Notice

            with stoppable(known.output):
                return guard.guarded(work, known.where, Notice(known.where.notify, known.name, known.output).send)
    return work()


def _work(options: argparse.Namespace, words: list[str]) -> int:
    """Plan, check the data or run; return the exit code. Raises UserError."""
    whole = load_config(options.config, options.overrides)
    benchmark = only(whole, options.only)
    from harness.experiment.grid import expand, full_trials

    if options.plan:
        from harness.experiment import plan, runner

        runner.check_plan(benchmark.output)
        finished = runner.finished_suites(benchmark)
        grid = expand(benchmark, planning=True, finished=finished)
        if options.resume:
            notes = runner.lost(benchmark, full_trials(benchmark, grid))
            notes += [] if options.accept_changes else runner.refused(benchmark, grid)
            print(*(f"{readable(note)}\n" for note in notes), sep="", end="")
        print(plan.text(benchmark, grid))
        return 0
    if options.check_data:
        from harness.experiment import data_check

        return data_check.check(benchmark)
    from harness import tracking
    from harness.experiment import guard, runner
    from harness.experiment.notify import Notice, announced
    from harness.on_ray import launch

    tracking.check(benchmark.where.track)
    resume, force = options.resume or guard.link.again, options.force and not guard.link.again
    finished = runner.finished_suites(benchmark) if resume else set()
    expand(benchmark, finished=finished)  # cheap checks come before creating the folder and downloading
    if force:  # before anything is taken from another run
        runner.check_output(benchmark.output, resume)
    with stoppable(benchmark.output), lock.held(benchmark.output, force):
        runner.check_output(benchmark.output, resume)
        grid = expand(benchmark, fetch=True, finished=finished)
        notice = Notice(benchmark.where.notify, benchmark.name, benchmark.output)
        work = partial(runner.run, whole, benchmark, grid, launch, options.accept_changes, words, notice.send)
        return announced(notice, work)


def command(main: Callable[[], int]) -> NoReturn:
    """Run the command line of a run in this process, which signals end, and exit."""
    in_utf8()
    process = os.getpid()
    for number in ENDING:  # schedulers and terminals send them: all end a run in the same way
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants
            signal.signal(number, _stop)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code > 128 or os.getpid() != process:  # a child's end must not look like a crash, should a library's be one
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command(main)

"""The command line that trains a network on the images that a run has selected, or on published index sets.

python -m harness.replay RUN [--model NAME] [key.path=value ...] [--export FOLDER]
python -m harness.replay CONFIG --indices FILE ... [--model NAME] [key.path=value ...]
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.load import load_config
from harness.config.only import is_override, only
from harness.errors import Parser, UserError, answered, expanded, readable
from harness.results import lock
from harness.results.manifest import Manifest
from harness.run import command, ended, stoppable

if TYPE_CHECKING:
    from harness.experiment import replaying

PLUGIN = "replay"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    parser = Parser(
        prog="python -m harness.replay",
        description="Train a network on the images that a run has selected, or on published index sets.",
    )
    parser.add_argument("source", nargs="?", metavar="RUN", help="results folder of a run; with --indices: a config")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="set a value of the config, e.g. recipe.epochs=2"
    )
    parser.add_argument("--model", metavar="NAME", help="the network to train; default: that of the run or config")
    parser.add_argument(
        "--indices",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="index sets: a .json of the harness's own format, or the labelled set of each cycle as .npy, .npz, .json, "
        ".csv or .txt; they become one more method of the config",
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="key=value", help="as in harness.run")
    parser.add_argument(
        "--export", metavar="FOLDER", help="write the run's index sets there, a .json for each method; train nothing"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the results folder (where.output)")
    parser.add_argument("--accept-changes", action="store_true", help="as in harness.run")
    parser.add_argument("--force", action="store_true", help="as in harness.run")
    options = parser.parse_intermixed_args(arguments)
    # --only and --indices take all words that follow them: overrides and the config may be among them
    for taken in (options.only, options.indices):
        options.overrides += [text for text in taken if is_override(text)]
        taken[:] = [text for text in taken if not is_override(text)]
    if options.source is not None and is_override(options.source):
        options.overrides.insert(0, options.source)
        options.source = None
    if options.source is None and len(options.indices) > 1:
        options.source = options.indices.pop()
    if options.source is None:
        parser.error(
            "a config is needed, e.g. quickstart" if options.indices else "the results folder of a run is needed"
        )
    if options.accept_changes and not options.resume:
        parser.error("--accept-changes needs --resume")
    if options.export and options.indices:
        parser.error("choose --export or --indices")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if a trial failed or is unfinished, 2 for a user error."""
    return answered(lambda: ended(lambda: _replay(_arguments(arguments))))


def _replay(options: argparse.Namespace) -> int:
    """Do what the command line asks for; return the exit code. Raises UserError."""
    from harness.experiment import replaying

    overrides = [*([f"model={options.model}"] if options.model else []), *options.overrides]
    if options.indices:
        config = options.source
    else:
        run = expanded(options.source)
        Manifest.read(run)  # which says what is wrong with the folder
        config = str(run / "config.yaml")
    whole = load_config(config, overrides)
    benchmark = only(whole, options.only)
    source = whole.name if options.indices else run.resolve().name
    if any(text.startswith("where.output=") for text in overrides):
        output = benchmark.output
    else:
        networks = "-".join(dict.fromkeys(suite.model.name for suite in benchmark.suites)).replace("/", "_")
        output = Path("runs") / f"{source}_replayed_{networks}"
    if not options.indices and output.resolve() == run.resolve():
        raise UserError(f"where.output: {output} is the run whose selections are replayed; set another one")
    where = benchmark.where.model_copy(update={"output": str(output)})
    benchmark = replace(benchmark, name=output.resolve().name, where=where)
    if options.indices:
        replayed = replaying.of_files([expanded(path) for path in options.indices], benchmark, output, PLUGIN)
    else:
        replayed = replaying.of_run(run, benchmark, output, PLUGIN)
    for note in replayed.notes:
        print(readable(note))
    if options.export:
        return _export(replayed, expanded(options.export))
    return _run(replayed, output, options)


def _export(replayed: replaying.Replayed, folder: Path) -> int:
    """Write the index sets of a run into a folder, and say so."""
    from harness.results.source import NAME
    from harness.results.store import write_atomically

    for name, data in replayed.files.items():
        if Path(name).name != NAME:
            write_atomically(folder / Path(name).name, data)
            print(folder / Path(name).name)
    return 0


def _run(replayed: replaying.Replayed, output: Path, options: argparse.Namespace) -> int:
    from harness import tracking
    from harness.experiment import replaying, runner
    from harness.experiment.grid import expand
    from harness.experiment.notify import Notice, announced
    from harness.on_ray import launch
    from harness.results.source import FOLDER

    benchmark = replayed.benchmark
    tracking.check(benchmark.where.track)
    if options.force:  # before anything is taken from another run
        runner.check_output(output, options.resume)
    with stoppable(output), lock.held(output, options.force):
        runner.check_output(output, options.resume)
        new = replaying.write(replayed, output)
        try:
            finished = runner.finished_suites(benchmark) if options.resume else set()
            grid = expand(benchmark, fetch=True, finished=finished)
            words = [str(output / "config.yaml")]  # continues it like any run
            notice = Notice(benchmark.where.notify, benchmark.name, output)
            work = partial(runner.run, benchmark, benchmark, grid, launch, options.accept_changes, words, notice.send)
            return announced(notice, work)
        except (UserError, KeyboardInterrupt):
            if not (output / "run.json").exists():  # a run that never began leaves nothing
                with suppress(OSError):  # a folder that was there before may hold more
                    for path in new:
                        path.unlink()
                    (output / FOLDER).rmdir()
            raise


if __name__ == "__main__":
    command(main)

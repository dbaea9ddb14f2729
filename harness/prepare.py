"""The command line that decodes the images of a config once and keeps them as they are used, before any run.

python -m harness.prepare CONFIG.yaml [key.path=value ...]
python -m harness.prepare --list | --remove NAME ... [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from harness.config.load import load_config
from harness.config.suite import Suite, with_same_data
from harness.data import dataset, prepared
from harness.data.host import in_units
from harness.data.prepared import Place
from harness.errors import DataMissing, Parser, UserError, answered, did_you_mean, in_utf8, readable, reason
from harness.settings import Where

ALL = "all"
SHOWN = 12
"""Characters of a name that are shown; they suffice."""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    parser = Parser(
        prog="python -m harness.prepare",
        description="Decode the images of a config once and keep them as they are used, for all runs of this machine. "
        "A run does the same when it starts; both go on where an earlier one stopped.",
    )
    parser.add_argument("config", nargs="?", help="YAML file of the benchmark, or the name of a config of the harness")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="set a value of the config, e.g. where.prepared=/scratch"
    )
    parser.add_argument("--list", action="store_true", help="print what is kept, the least recently used first")
    parser.add_argument(
        "--remove", nargs="+", metavar="NAME", help=f"remove what --list shows under these names, or {ALL}"
    )
    parser.add_argument("--folder", help="the folder of --list and --remove; default: that of where.prepared: true")
    options = parser.parse_intermixed_args(arguments)
    if sum(map(bool, (options.config, options.list, options.remove))) != 1:
        parser.error("choose a config, --list or --remove")
    if options.config and options.folder:
        parser.error("--folder is for --list and --remove; with a config, write where.prepared=FOLDER")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if not all could be kept, 2 for a user error."""
    try:
        return answered(lambda: _run(_arguments(arguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.config:
        return _prepare(options.config, options.overrides)
    kept = prepared.place(options.folder or True)
    if kept is None:
        raise UserError("there is no home folder: write --folder FOLDER")
    if options.folder and not kept.folder.is_dir():
        raise UserError(f"--folder: {kept.folder} is not there; write the folder of where.prepared")
    return _remove(kept.folder, options.remove) if options.remove else _list(kept.folder)


def _prepare(config: str, overrides: list[str]) -> int:
    """Prepare the images of all suites; print a line for each, and return the exit code."""
    benchmark = load_config(config, overrides)
    kept = prepared.place(benchmark.where.prepared)
    if kept is None:
        raise UserError("where.prepared: false keeps nothing; write true, or a folder")
    code = 0
    for suite, same in with_same_data(benchmark.suites):
        if same:
            print(f"{suite.name}: the same images as {same}", flush=True)
            continue
        try:
            code = max(code, _prepare_suite(suite, benchmark.where, kept))
        except DataMissing as missing:
            word = "is SKIPPED" if suite.optional else "can't be prepared"
            print(readable(f"{suite.name} {word}: {missing}"), flush=True)
            code = code if suite.optional else 2
    return code


def _prepare_suite(suite: Suite, where: Where, kept: Place) -> int:
    began = time.monotonic()
    opened = suite.open_dataset(where)
    info = dataset.facts(opened)
    if not info.from_files:
        print(f"{suite.name}: nothing to do, its images are held in memory", flush=True)
        return 0
    dataset.fetch(opened)
    data = prepared.applied(dataset.loaded(opened, info), kept)
    wanted = [files for files in data.decoded if prepared.wanted(files)]
    ready = [files.prepared for files in wanted if files.prepared is not None]
    if not wanted:
        print(f"{suite.name}: nothing to do, its images are used at their own size", flush=True)
        return 0
    complete = len(ready) == len(wanted) and not any(shards.missing() for shards in ready)
    what = "all" if complete else "NOT all"
    size = in_units(sum(shards.nbytes({*range(len(shards))} - {*shards.missing()}) for shards in ready))
    print(
        readable(f"{suite.name}: {what} images are prepared in {kept.folder} ({size}), {_seconds(began)}"), flush=True
    )
    return 0 if complete else 1


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _list(folder: Path) -> int:
    from tabulate import tabulate

    rows = [
        [path.name[:SHOWN], _what(about), in_units(size), _day(used), _such_as(about)]
        for path, about, size, used in prepared.sets(folder)
    ]
    if not rows:
        print(readable(f"nothing is prepared in {folder}"))
        return 0
    print(readable(f"{folder}:"))
    heads = ["name", "rows", "size", "last used", "such as"]
    others = sum(max(len(str(row[column])) for row in [heads, *rows]) + 2 for column in range(4))
    widths = [None] * 4 + [max(16, shutil.get_terminal_size().columns - others - 2)]
    sides = ["left", "left", "right", "left", "left"]
    print(tabulate(rows, heads, "simple", disable_numparse=True, colalign=sides, maxcolwidths=widths))
    return 0


def _what(about: dict[str, Any]) -> str:
    kind = "label maps" if about["maps"] else "images"
    return f"{about['rows']} {kind} of {about['height']} x {about['width']}"


def _such_as(about: dict[str, Any]) -> str:
    """Return the first file of a set, after a word if this installation does not use the set."""
    return readable(f"{'' if prepared.usable(about) else '(not used here) '}{about['like']}")


def _day(used: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(used))


def _remove(folder: Path, names: list[str]) -> int:
    kept = {path.name: (path, size) for path, _, size, _ in prepared.sets(folder)}
    shown = [name[:SHOWN] for name in kept]
    for name in names:
        if name != ALL and name not in shown and name not in kept:
            raise UserError(f"{folder} has nothing of the name {name!r}{did_you_mean(name, shown)}")
    freed = 0
    for name, (path, size) in kept.items():
        if {ALL, name, name[:SHOWN]} & {*names}:
            try:
                prepared.remove(path)
            except OSError as error:
                raise UserError(f"{path} can't be removed: {reason(error)}") from None
            freed += size
    print(f"removed {in_units(freed)}")
    return 0


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

"""The command line that says what a run does, from another terminal or a machine that shares its folder.

python -m harness.status RUN_DIR [--watch] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time

from harness.errors import Parser, answered, expanded, in_utf8
from harness.experiment.seen import Reader

EVERY = 2.0
"""Seconds between two looks of --watch."""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    parser = Parser(
        prog="python -m harness.status",
        description="Say what a run does: whether it goes on, its running trials, the time that is left. It writes "
        "nothing.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="results folder of the run (where.output)")
    parser.add_argument("--watch", action="store_true", help="show it until the run ends, or until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.watch and options.json:
        parser.error("choose --watch or --json")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if a file can't be read, 2 for a folder without a run."""
    try:
        return answered(lambda: _status(_arguments(arguments)))
    except KeyboardInterrupt:
        return 130


def _status(options: argparse.Namespace) -> int:
    reader = Reader(expanded(options.run_dir))
    if options.watch:
        _watch(reader)
    elif options.json:
        print(json.dumps(reader.look().to_json(), indent=2))
    else:
        print("\n".join(reader.look().lines(shutil.get_terminal_size().columns)))
    return 0


def _watch(reader: Reader) -> None:
    """Show the run until it ends: in place on a terminal, else again whenever something but the clock has changed."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, last = Console(file=sys.stdout), ""
    on_terminal = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, transient=True) if on_terminal else None
    if live is not None:
        live.start()
    try:
        while True:
            seen = reader.look()
            going = seen.condition in ("running", "starting")
            size = console.size
            if live is not None and going:
                text = "\n".join(seen.lines(size.width - 1, size.height - 1))
                live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)
            else:
                changed = f"{seen.condition} {seen.state.done} {[(row.method, row.cycle) for row in seen.state.rows]}"
                if changed != last or not going:
                    if live is not None:
                        live.stop()
                    print("\n".join(seen.lines(size.width)), flush=True)
                last = changed
            if not going:
                return
            time.sleep(EVERY)
    finally:
        if live is not None:
            live.stop()


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

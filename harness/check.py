"""The command line of the conformance suite: says in sentences what is wrong with a method, a dataset or a network.

python -m harness.check NAME [KEY=VALUE ...] [--kind method|dataset|network] [--data FOLDER] [--plugins PATH]
"""

from __future__ import annotations

import argparse
import sys

from harness.checking import run
from harness.errors import Parser, answered, in_utf8


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    parser = Parser(prog="python -m harness.check", description="Check a method, a dataset or a network.")
    parser.add_argument("name", nargs="?", help="the plug-in, as a config names it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="set a setting, e.g. iterations=3")
    parser.add_argument("--kind", choices=[*run.SUITES], help="needed only if plug-ins of two kinds have this name")
    parser.add_argument(
        "--data", metavar="FOLDER", help="folder with all datasets; default: $HARNESS_DATA, else ./data"
    )
    parser.add_argument(
        "--plugins", action="append", default=[], metavar="PATH", help="a file or folder with plug-ins; may be repeated"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.name is None:
        parser.error("the name of a plug-in is needed, e.g. epmcm")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 if a check failed, 2 for a user error."""
    try:
        return answered(lambda: _check(_arguments(arguments)))
    except KeyboardInterrupt:
        return 130


def _check(options: argparse.Namespace) -> int:
    run.add_plugins(options.plugins)
    return run.check(options.name, options.settings, options.kind, options.data, options.plugins)


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

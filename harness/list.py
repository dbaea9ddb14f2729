"""The command line that lists methods, datasets and networks with their settings, one line of purpose each.

python -m harness.list [methods] [datasets] [networks] [--plugins PATH]
"""

from __future__ import annotations

import argparse
import sys

from harness.checking import listing, run
from harness.errors import Parser, UserError, answered, did_you_mean, in_utf8


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line. Raises UserError."""
    kinds = [folder for folder, _ in run.SUITES.values()]
    parser = Parser(prog="python -m harness.list", description="List plug-ins and their settings.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(kinds)}; default: all")
    parser.add_argument(
        "--plugins", action="append", default=[], metavar="PATH", help="a file or folder with plug-ins; may be repeated"
    )
    options = parser.parse_intermixed_args(arguments)
    for kind in options.kinds:
        if kind not in kinds:
            raise UserError(f"unknown kind {kind!r}{did_you_mean(kind, kinds)}")
    options.kinds = options.kinds or kinds
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 for a user error."""
    return answered(lambda: _list(_arguments(arguments)))


def _list(options: argparse.Namespace) -> int:
    run.add_plugins(options.plugins)
    print(listing.text(options.kinds))
    return 0


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

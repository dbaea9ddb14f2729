"""The command line of the report: ``python -m harness.report RUN_DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.errors import Parser, answered, expanded, in_utf8
from harness.report.write import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the report of a run; return the exit code: 0, 1 if its files can't be written, or 2."""
    return answered(lambda: _report(arguments))


def _report(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m harness.report",
        description="Write the report of a run, finished or not, to RUN_DIR/report/, and print it.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="results folder of the run (where.output)")
    write(expanded(parser.parse_args(arguments).run_dir), print)
    return 0


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

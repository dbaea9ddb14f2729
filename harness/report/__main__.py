"""The command line of the report: ``python -m harness.report RUN_DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from harness.report.write import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the report of a run; return the exit code: 0, or 2 for a user error."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description="Write the report of a run, finished or not, to RUN_DIR/report/, and print it.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="results folder of the run (where.output)")
    try:
        print(write(parser.parse_args(arguments).run_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

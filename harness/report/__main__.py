"""The command line of the report: ``python -m harness.report RUN_DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from harness.errors import Parser, UserError, answered, expanded, in_utf8, reason
from harness.report.merge import sources
from harness.report.write import write, write_sources

MERGED = "merged_report"
"""The folder of a report of several runs, in the current one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the report of a run; return the exit code: 0, 1 if its files can't be written, or 2."""
    return answered(lambda: _report(arguments))


def _report(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m harness.report",
        description="Write the report of a run, finished or not, to RUN_DIR/report/, and print it. Several runs are "
        f"merged into one report, in {MERGED}/.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", nargs="+", help="results folder of a run (where.output)")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the report")
    options = parser.parse_args(arguments)
    runs = [expanded(run_dir) for run_dir in options.run_dir]
    if len(runs) == 1 and options.output is None:
        write(runs[0], print)
        return 0
    output = expanded(MERGED if options.output is None else options.output)
    _check(output, runs)
    write_sources(sources(runs, output / "index"), output, print)
    return 0


def _check(output: Path, runs: Sequence[Path]) -> None:
    """Raise UserError for a report that would be written into the folder of a run, or where nothing can be written."""
    remedy = "set --output to a folder outside of all runs"
    for run in runs:
        if run.resolve() in (output.resolve(), *output.resolve().parents):
            raise UserError(f"{output}: is in the run {run}, which is only read; {remedy}")
    try:
        nearest = next(part for part in (output, *output.parents) if part.exists())
        if (output / "run.json").exists():
            raise UserError(f"{output}: is the results folder of a run; {remedy}")
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"--output: {output!s:.200} can't be written to: {reason(error)}; set --output to another folder"
        ) from None


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

"""Makes the records and tables of a config of the harness again.

    python results/make.py NAME [arguments of python -m harness.run]

Runs the config in runs/results/NAME, or goes on with the run that lies there, and writes results/SUITE/ for each of its
suites: records.jsonl (every cycle of every trial, as docs/records.md describes it, without the names of files), the
tables and the pictures of the metric, and made.json (commit, commands without where.data, machine, devices, versions,
hours that the trials took). Selections and metrics are the same on the same kind of machine; times are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from harness.config.load import config_path
from harness.errors import Parser, answered, in_utf8
from harness.results.manifest import Manifest
from harness.results.provenance import commit, versions
from harness.results.store import RunStore
from harness.run import main as run

HERE = Path(__file__).resolve().parent
KEPT = (
    "_comparisons.csv",
    "_comparisons.txt",
    "_accuracy.csv",
    "_class_accuracy.csv",
    "_class_accuracy.txt",
    "_accuracy.txt",
    "_accuracy.png",
    "_miou.csv",
    "_miou.txt",
    "_miou.png",
)
TIMES = ("_seconds.txt", "_cost.txt")


def _processor() -> str:
    """Return the name of the machine's processor: numbers differ in their last digits between kinds."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _earlier(folder: Path, resumed: bool) -> list[str]:
    """Return the commands that made the run so far, if this one goes on with it."""
    made = folder / "made.json"
    return list(json.loads(made.read_text())["commands"]) if resumed and made.exists() else []


def make(name: str, arguments: list[str], results: Path, output: Path) -> int:
    """Run a config in ``output``, keep each suite's records and tables in ``results``; return the run's exit code."""
    ran = commit()  # before its own files change the checkout
    resumed = (output / "run.json").exists()
    if code := run([str(config_path(name)), *(["--resume"] if resumed else []), *arguments, f"where.output={output}"]):
        return code
    if not (output / "run.json").exists():  # after --plan, for example
        return 0
    store, manifest = RunStore(output), Manifest.read(output)
    for suite in manifest.suites:
        folder = results / suite.name
        records = [record for trial in suite.trials for record in store.trial(trial).records()]
        keys = sorted({r.shared_from for r in records} - {None})
        shared = [record for key in keys for record in store.shared(key).records()]
        folder.mkdir(parents=True, exist_ok=True)
        kept = [{key: value for key, value in r.to_json().items() if key != "selected_files"} for r in records]
        (folder / "records.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        for path in (output / "report").iterdir():
            if path.name in {f"{suite.name}{end}" for end in (*KEPT, *TIMES)}:
                shutil.copy(path, folder / path.name)
        told = [each for each in arguments if not each.startswith("where.data=")]  # a path of this machine
        command = " ".join(["python results/make.py", name, *told])
        made = {
            "commit": ran,
            "commands": [*_earlier(folder, resumed), command],
            "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()}",
            "devices": sorted({record.device for record in records}),
            "versions": versions(),
            "trial_hours": round(sum(record.wall_seconds for record in [*records, *shared]) / 3600, 2),
        }
        (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


def _made(arguments: list[str] | None) -> int:
    """Do what the command line asks for; return the exit code. Raises UserError."""
    parser = Parser(prog="python results/make.py", description="Make the records and tables of a config again.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a config of the harness, e.g. quickstart")
    parser.add_argument("arguments", nargs="*", metavar="key.path=value", help="arguments of python -m harness.run")
    options, others = parser.parse_known_intermixed_args(arguments)
    if options.name is None:
        parser.error("the name of a config is needed, e.g. quickstart")
    stem = config_path(options.name).stem
    given = [*options.arguments, *others]
    return make(options.name, given, HERE, HERE.parent / "runs" / "results" / stem)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: that of the run, or 2 for a user error."""
    return answered(lambda: _made(arguments))


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())

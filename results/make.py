"""Makes the records and tables of a config of the harness again.

    python results/make.py quickstart [key.path=value ...]

Runs the config and writes results/NAME/: records.jsonl (every cycle of every trial, as docs/records.md describes it),
the tables and the picture of the accuracy, and made.json (commit, command, machine, versions, seconds). Selections and
metrics are the same on the same kind of machine; times are not.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness.config.load import config_path
from harness.results.manifest import Manifest
from harness.results.provenance import commit, versions
from harness.results.store import RunStore
from harness.run import main as run

HERE = Path(__file__).resolve().parent
KEPT = ("_accuracy.csv", "_accuracy.txt", "_accuracy.png", "_miou.csv", "_miou.txt", "_miou.png")
TIMES = ("_seconds.txt", "_cost.txt")


def make(name: str, overrides: list[str], folder: Path) -> int:
    """Run a config and keep its records and tables in ``folder``; return the exit code of the run."""
    with tempfile.TemporaryDirectory() as temporary:
        output, began = Path(temporary) / "run", time.time()
        if code := run([str(config_path(name)), *overrides, f"where.output={output}"]):
            return code
        seconds, store = round(time.time() - began), RunStore(output)
        folder.mkdir(parents=True, exist_ok=True)
        trials = [trial for suite in Manifest.read(output).suites for trial in suite.trials]
        lines = [json.dumps(record.to_json()) for trial in trials for record in store.trial(trial).records()]
        (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))
        for path in (output / "report").iterdir():
            if path.name.endswith((*KEPT, *TIMES)):
                shutil.copy(path, folder / path.name)
    made = {
        "commit": commit(),
        "command": " ".join(["python results/make.py", name, *overrides]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": versions(),
        "seconds": seconds,
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(make(sys.argv[1], sys.argv[2:], HERE / sys.argv[1]))

"""Make the stored run of the current schema version: python tests/stored/make.py

It is made once, when a schema version is new. tests/test_stored.py shows that later code still reports and resumes it.
One trial is finished, one has not begun, and six stopped after two of their three cycles.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness import run
from harness.results.records import SCHEMA_VERSION

HERE = Path(__file__).resolve().parent
FINISHED, NOT_BEGUN = "cross_entropy-random", "cross_entropy-least_confidence"
KEPT = 2  # cycles of the others


def main() -> None:
    """Run the config and remove what a run that was stopped would not have."""
    os.chdir(HERE)  # so that the stored config holds no path of this machine
    folder = Path(f"version{SCHEMA_VERSION}")
    assert not folder.exists(), f"{folder} is there: it must stay as it is"
    assert run.main(["stored.yaml", f"where.output={folder}"]) == 0
    shutil.rmtree(folder / "report")
    for readable in folder.rglob("records.jsonl"):
        readable.unlink()
    for trial in (folder / "trials").iterdir():
        if NOT_BEGUN in trial.name:
            shutil.rmtree(trial)
        elif FINISHED not in trial.name:
            for kind in ("cycle", "state"):
                for file in trial.glob(f"{kind}_*"):
                    if int(file.stem.split("_")[1]) >= KEPT:
                        file.unlink()


if __name__ == "__main__":
    main()

"""W&B: a run for each trial, in a project with the name of the config, grouped by method.

W&B's own variables and ``wandb login`` say where they go; with WANDB_MODE=offline, that is track/wandb of the results
folder, or WANDB_DIR, for ``wandb sync``.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import wandb

from harness.tracking.tracker import Trial


class Tracker:
    """Sends a run for each trial; one that is continued has the same id."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        self.folder = os.environ.get("WANDB_DIR") or str(folder)
        self.runs: dict[str, Any] = {}
        self.ids: dict[str, str] = {}
        """Id of a trial -> the id that its run got, also if it could not be started."""

    def begin(self, trial: Trial, key: str) -> str:
        """Start a run, or continue the one with this id."""
        key = key or self.ids.setdefault(trial.id, uuid.uuid4().hex)
        if key not in self.runs:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            self.runs[key] = wandb.init(
                project=self.project,
                name=trial.name,
                group=trial.method,
                id=key,
                resume="allow",
                config=trial.config,
                dir=self.folder,
                reinit="create_new",  # the trials of a run go on at the same time
                settings=wandb.Settings(console="off", silent=True),
            )
        return key

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Send the values of a step."""
        self.runs[key].log(values, step=step)

    def end(self, key: str, finished: bool) -> None:
        """Finish the run, with an exit code."""
        self.runs[key].finish(exit_code=int(not finished))
        del self.runs[key]

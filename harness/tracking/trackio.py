"""Trackio: a run for each trial, in a project with the name of the config, grouped by method.

They go where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say; without them, to track/trackio of the results
folder.
"""

from __future__ import annotations

import os
import re
import uuid
from contextvars import copy_context
from pathlib import Path
from typing import Any

from harness.tracking.tracker import Trial

ELSEWHERE = ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Tracker:
    """Sends a run for each trial; one that is continued has the same name."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = re.sub(r"[^\w-]", "_", project)
        self.with_others = any(os.environ.get(name) for name in ELSEWHERE)
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
        self.runs: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        """Id of a trial -> the name that its run got, also if it could not be started."""

    def begin(self, trial: Trial, key: str) -> str:
        """Start a run, or continue the one with this name."""
        import trackio

        # other runs of the config have trials of the same name
        own = f" ({uuid.uuid4().hex[:6]})" if self.with_others else ""
        key = key or self.names.setdefault(trial.id, f"{trial.name}{own}")
        if key not in self.runs:
            # trackio ends the earlier run of a context, and the trials of a run go on at the same time
            self.runs[key] = copy_context().run(
                trackio.init,
                project=self.project,
                name=key,
                group=trial.method,
                config=trial.config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return key

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Send the values of a step."""
        self.runs[key].log(values, step=step)

    def end(self, key: str, finished: bool) -> None:
        """Finish the run, after its last values are written."""
        self.runs[key].finish()
        del self.runs[key]

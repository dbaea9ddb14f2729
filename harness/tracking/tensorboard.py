"""TensorBoard: event files in track/tensorboard/SUITE/METHOD/seed N of the results folder."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from harness.tracking.tracker import Trial

LONGEST = 60  # characters of a folder's name, of at most 4 bytes each


class Tracker:
    """Writes a folder for each trial; a trial that is continued gets one more file in it."""

    def __init__(self, project: str, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.writers: dict[str, Any] = {}

    def begin(self, trial: Trial, key: str) -> str:
        """Start an event file; the trial's settings are its text."""
        if not (self.folder / key).resolve().is_relative_to(self.folder.resolve()):
            key = ""  # a results folder may come from anywhere
        if not key:
            key = "/".join(map(_folder_name, (trial.suite, trial.method, f"seed {trial.seed}")))
            if (self.folder / key).exists():  # two names may become one
                key += f" {trial.id[-8:]}"
        if key not in self.writers:
            own = f".{os.getpid()}.{time.time_ns()}"  # else a file of the same second is overwritten
            writer = self.writers[key] = SummaryWriter(str(self.folder / key), filename_suffix=own)
            text = json.dumps(trial.config, indent=2, sort_keys=True)
            writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
        return key

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Write a scalar for each value."""
        for name, value in values.items():
            self.writers[key].add_scalar(name, value, step)
        self.writers[key].flush()

    def end(self, key: str, finished: bool) -> None:
        """Close the file."""
        self.writers[key].close()
        del self.writers[key]


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w .+()-]|^\.", "_", name)[:LONGEST]

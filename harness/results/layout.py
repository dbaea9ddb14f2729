"""What in a run's folder is a folder, and what a file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from harness.errors import UserError

PLACES = {
    "folder": ("trials", "shared", "report", "logs", "ray", "track"),
    "file": ("run.json", "config.yaml", "logs/ray.log", "track.csv"),
}


STORES = ("trials", "shared")
"""Where records are."""


def check_places(run_dir: Path, key: str = "", stores_only: bool = False) -> None:
    """Raise UserError, which starts with ``key``, if a folder of a run is a file, or the other way round."""
    for expected, parts in PLACES.items():
        for path in (run_dir / part for part in parts if not stores_only or part in STORES):
            with suppress(FileNotFoundError, NotADirectoryError):
                _check(path, path.stat().st_mode, expected, key)  # once: another run may remove it


def check_trials(run_dir: Path, key: str = "") -> None:
    """Raise UserError, which starts with ``key``, if a trial's folder is a file, or holds another folder."""
    for part in STORES:
        with suppress(FileNotFoundError), os.scandir(run_dir / part) as trials:
            for trial in trials:
                _check(Path(trial.path), trial.stat().st_mode, "folder", key)
                with os.scandir(trial.path) as files:
                    for file in files:
                        if file.is_dir():
                            _check(Path(file.path), file.stat().st_mode, "file", key)


def _check(path: Path, mode: int, expected: str, key: str) -> None:
    kind = "folder" if S_ISDIR(mode) else "file" if S_ISREG(mode) else "pipe or a device"
    if kind != expected:
        raise UserError(f"{key}{path} is a {kind}, where a run has a {expected}; move it away")

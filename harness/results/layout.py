"""What in a run's folder is a folder, and what a file."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from harness.errors import UserError

PLACES = {
    "folder": ("trials", "shared", "report", "logs", "ray", "track"),
    "file": ("run.json", "config.yaml", "logs/ray.log", "track.csv"),
}


OWN_FILES = re.compile(r"trial\.json|records\.jsonl|[a-z_]+_[0-9]{3,9}\.(json|pt|npz)")
"""The files of a trial."""
STORES = ("trials", "shared")
"""Where records are."""


def check_places(run_dir: Path, key: str = "", stores_only: bool = False) -> None:
    """Raise UserError, which starts with ``key``, if a folder of a run is a file, or the other way round."""
    for expected, parts in PLACES.items():
        for path in (run_dir / part for part in parts if not stores_only or part in STORES):
            with suppress(FileNotFoundError, NotADirectoryError):
                _check(path, path.stat().st_mode, expected, key)  # once: another run may remove it


def check_trials(run_dir: Path, key: str = "") -> None:
    """Raise UserError, which starts with ``key``, if a folder has the name of a file of a trial.

    Nor may a link lead to another trial, whose files would be written over. What file managers and disk stations add to
    folders, such as .DS_Store and @eaDir, is nobody's business.
    """
    for part in STORES:
        with suppress(FileNotFoundError), os.scandir(run_dir / part) as trials:
            for trial in (trial for trial in trials if trial.is_dir()):
                if trial.is_symlink() and (other := Path(trial.path).resolve()).parent == (run_dir / part).resolve():
                    raise UserError(f"{key}{trial.path} is a link to another trial, {other.name}; remove the link")
                with os.scandir(trial.path) as files:
                    for file in files:
                        if OWN_FILES.fullmatch(file.name) and file.is_dir():
                            _check(Path(file.path), file.stat().st_mode, "file", key)


def _check(path: Path, mode: int, expected: str, key: str) -> None:
    kind = "folder" if S_ISDIR(mode) else "file" if S_ISREG(mode) else "pipe or a device"
    if kind != expected:
        raise UserError(f"{key}{path} is a {kind}, where a run has a {expected}; move it away")

"""The software that computes a record: versions of libraries, and the git commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from harness import __version__
from harness.errors import UserError
from harness.lazy import torch
from harness.registry import ROOT
from harness.results.records import CHANGED

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "ray")


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect results, of Python and of the harness.

    Raises UserError for one that is not installed.
    """
    packages = {name: _version(name) for name in PACKAGES}
    cuda = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {**packages, **cuda, "python": platform.python_version(), "harness": __version__}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise UserError(f"{name}, which the harness needs, is not installed here: pip install {name}") from None


@cache
def commit() -> str:
    """Return the git commit of the harness, with '+changes' if tracked files differ from it, else 'unknown'."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changes = CHANGED if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.SubprocessError):
        return "unknown"

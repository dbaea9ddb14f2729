"""The software that computes a record: versions of libraries, and the git commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version

from harness import __version__
from harness.lazy import torch
from harness.registry import ROOT


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect results, of Python and of the harness."""
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow", "ray")}
    cuda = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {**packages, **cuda, "python": platform.python_version(), "harness": __version__}


@cache
def commit() -> str:
    """Return the git commit of the harness, with '+changes' if tracked files differ from it, else 'unknown'."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changes = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.SubprocessError):
        return "unknown"

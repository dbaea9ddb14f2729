"""Plug-ins by file name: methods/<name>.py and datasets/<name>.py, imported as harness.methods and harness.datasets."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from harness.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent
Plugin = TypeVar("Plugin")


def names(folder: str) -> list[str]:
    """Return the names of a folder's plug-ins; a file with a leading underscore is a part, not a plug-in."""
    return sorted(p.stem for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("_"))


@cache
def load(folder: str, name: str) -> ModuleType:
    """Import one plug-in file. Raises UserError, with the nearest name, if there is none."""
    if name not in names(folder):
        kind = {"methods": "method", "datasets": "dataset"}[folder]
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, names(folder))}")
    return importlib.import_module(f"harness.{folder}.{name}")


def find(folder: str, name: str, contract: type[Plugin]) -> type[Plugin] | None:
    """Return the class of a plug-in file that fulfils the contract, or None if the file has none."""
    module = load(folder, name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    assert len(found) <= 1, f"{folder}/{name}.py defines {len(found)} classes of {contract.__name__}; one is allowed"
    return found[0] if found else None

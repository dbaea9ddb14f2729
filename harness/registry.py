"""Finds plug-ins by file name: methods/<name>.py is imported as harness.methods.<name>, datasets/ likewise."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from harness.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent
Plugin = TypeVar("Plugin")

FOLDERS = {"networks": "harness/networks/zoo"}
"""Folder of the plug-ins of a kind, where it is not the kind's own name."""


def names(folder: str) -> list[str]:
    """Return the names of a folder's plug-ins. Files with a leading underscore hold shared code."""
    return sorted(p.stem for p in (ROOT / FOLDERS.get(folder, folder)).glob("*.py") if not p.stem.startswith("_"))


@cache
def load(folder: str, name: str) -> ModuleType:
    """Import one plug-in file. Raises UserError, with the most similar name, if the file does not exist."""
    if folder == "networks" and "." in name:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"network {name!r} can't be imported: {error}") from error
    if name not in names(folder):
        kind = {"methods": "method", "datasets": "dataset", "networks": "network"}[folder]
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, names(folder))}")
    package = FOLDERS.get(folder, f"harness/{folder}").replace("/", ".")
    return importlib.import_module(f"{package}.{name}")


def find(folder: str, name: str, contract: type[Plugin]) -> type[Plugin] | None:
    """Return the subclass of ``contract`` that a plug-in file defines, or None if it defines none."""
    module = load(folder, name)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    assert len(classes) <= 1, f"{folder}/{name}.py defines {len(classes)} classes of {contract.__name__}; allowed: one"
    return classes[0] if classes else None


def unknown(folder: str, name: str, contract: type[Any]) -> str:
    """Return a message that says why ``name`` is no plug-in with this contract, and which names are allowed."""
    kind = contract.__name__.lower()
    article = "an" if kind[0] in "aeiou" else "a"
    allowed = [other for other in names(folder) if find(folder, other, contract)]
    if name in names(folder):
        return f"{name!r} is not {article} {kind}; allowed: {', '.join(allowed)}"
    if renamed := now_called(folder, name):
        return f"{name!r} is now called {renamed!r}" + (
            "" if renamed in allowed else f", which is not {article} {kind}"
        )
    return f"unknown {kind} {name!r}{did_you_mean(name, allowed)}"


def now_called(folder: str, earlier: str) -> str | None:
    """Return the current name of the plug-in that was called ``earlier``, if there is one."""
    for name in names(folder):
        if any(
            isinstance(c, type) and getattr(c, "formerly", "") == earlier for c in vars(load(folder, name)).values()
        ):
            return name
    return None

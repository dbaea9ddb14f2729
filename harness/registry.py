"""Plug-ins by file name: methods/<name>.py and datasets/<name>.py.

The folders are loaded by their place beside ``harness`` and under a name of our own, so that a foreign package called
``datasets`` (Hugging Face's) can be installed, and even imported first, without harm, here and in every Ray worker.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
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


def _package(folder: str) -> str:
    alias = f"harness_{folder}"
    if alias not in sys.modules:
        place = ROOT / folder
        spec = importlib.util.spec_from_file_location(
            alias, place / "__init__.py", submodule_search_locations=[str(place)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        spec.loader.exec_module(module)
    return alias


@cache
def load(folder: str, name: str) -> ModuleType:
    """Import one plug-in file. Raises UserError, with the nearest name, if there is none."""
    if name not in names(folder):
        kind = {"methods": "method", "datasets": "dataset"}[folder]
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, names(folder))}")
    return importlib.import_module(f"{_package(folder)}.{name}")


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

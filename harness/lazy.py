"""Imports that cost seconds: torch for files that must be read in milliseconds is imported when it is first used.

Methods and datasets are read while a config is checked, and a wrong key must be answered at once, so their files
write ``from harness.lazy import F, torch`` where others write ``import torch``.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:

    class _Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")


@contextmanager
def importing() -> Iterator[None]:
    """Make the large imports of a ``with`` block fast: a quarter of their seconds is the search for garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


__all__ = ["F", "importing", "torch"]

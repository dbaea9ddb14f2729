"""Named random streams, independent of each other and of the order of their use.

A stream is keyed by (seed, purpose, cycle, ...) and never carried over to the next cycle. A resumed run therefore needs
no generator state, and the order of trials does not affect results.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit seed derived from the parts; equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new generator on the device, seeded with the key of the parts."""
    import torch

    return torch.Generator(device=device).manual_seed(key(*parts))


def global_states() -> dict[str, Any]:
    """Return the states of the global random streams on the CPU, by library; torch's only if torch is imported."""
    states = {"random": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state()
    return states


def moved(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return the first library whose global stream has another state, or None."""
    return next((library for library, state in before.items() if not _same(state, after[library])), None)


def restore(states: dict[str, Any]) -> None:
    """Set the global random streams to these ``global_states``."""
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if "torch" in states:
        sys.modules["torch"].set_rng_state(states["torch"])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(value, other[key]) for key, value in one.items())
    return bool((one == other).all()) if hasattr(one, "shape") else bool(one == other)

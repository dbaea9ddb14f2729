"""Named random streams, independent of each other and of the order of their use.

A stream is keyed by (seed, purpose, cycle, ...) and never carried over to the next cycle. A resumed run therefore needs
no generator state, and the order of trials does not affect results.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

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

"""Named random streams, each independent of all others and of when it is used.

A stream is keyed by what it is for (seed, purpose, cycle, ...), never carried from one cycle to the next, so a resumed
run needs no generator state and the order in which trials run cannot matter.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit seed from the parts; equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator on the device for the stream with this key."""
    import torch

    return torch.Generator(device=device).manual_seed(key(*parts))

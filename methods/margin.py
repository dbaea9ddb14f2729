"""Margin between the two most probable classes, smallest first (Scheffer et al. 2001)."""

from __future__ import annotations

from harness.lazy import torch

from ._uncertainty import Uncertainty


class Margin(Uncertainty):
    """Buys the images whose two highest class probabilities are closest."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return minus the margin, -1..0."""
        top = logits.softmax(1).topk(2, dim=1).values
        return top[:, 1] - top[:, 0]

"""Entropy of the predicted class probabilities, highest first (Shannon; Settles 2009, Sec. 3.1)."""

from __future__ import annotations

from harness.lazy import torch

from ._uncertainty import Uncertainty


class Entropy(Uncertainty):
    """Buys the images with the highest predictive entropy, in nats."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the entropy in nats."""
        log_p = logits.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)

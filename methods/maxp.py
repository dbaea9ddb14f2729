"""Maxp: the highest maximum class probability first, as in the ablation of DAST-AL's Table 1.

The paper says "selects by its max prediction probability"; its released code buys the MOST confident images, which is
why Maxp lies far below random in the table. For the usual baseline see least_confidence.py.
"""

from __future__ import annotations

from harness.lazy import torch

from .least_confidence import LeastConfidence as _LeastConfidence


class Maxp(_LeastConfidence):
    """Buys the images whose predicted class has the highest probability."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return minus the log-probability that the predicted class is wrong."""
        return -super().score(logits)

    def over_places(self, scores: torch.Tensor) -> torch.Tensor:
        """Return minus the logarithm of the mean of 1 - max p."""
        return -super().over_places(-scores)

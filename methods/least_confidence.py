"""Least confidence: the lowest maximum class probability first (Lewis & Gale 1994).

This is the usual uncertainty baseline and the opposite of DAST-AL's "Maxp"; DAST-AL's Table 1 lacks it. If pixels have
labels, an image's score is the logarithm of the mean of 1 - max p over positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.learning.contract import Acquisition, Batch
from harness.learning.labels import per_position

from ._uncertainty import log_error, log_mean_exp

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network


class LeastConfidence(Acquisition):
    """Selects the images whose predicted class has the lowest probability."""

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: log(1 - max p)."""
        return {"score": per_position(log_error, network(batch.images).logits)}

    def over_positions(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the logarithm [B] of the mean of 1 - max p."""
        return log_mean_exp(scores)

"""Margin between the two most probable classes, smallest first (Scheffer et al. 2001).

If pixels have labels, an image's score is the mean over the positions of the network's map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.learning.contract import Acquisition, Batch
from harness.learning.labels import per_position

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network


class Margin(Acquisition):
    """Selects the images whose two highest class probabilities are closest."""

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``, minus the margin, in -1..0."""
        return {"score": per_position(negative_margin, network(batch.images).logits)}


def negative_margin(logits: torch.Tensor) -> torch.Tensor:
    """Return minus the difference [N] between the two highest probabilities, for logits [N, C]."""
    top = logits.softmax(1).topk(2, dim=1).values
    return top[:, 1] - top[:, 0]

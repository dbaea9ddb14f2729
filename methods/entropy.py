"""Entropy of the predicted class probabilities, highest first (Shannon; Settles 2009, Sec. 3.1).

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


class Entropy(Acquisition):
    """Selects the images with the highest predictive entropy, in nats."""

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``, the entropy in nats."""
        return {"score": per_position(entropy, network(batch.images).logits)}


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy [N], in nats, of the softmax of logits [N, C]."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)

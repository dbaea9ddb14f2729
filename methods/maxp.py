"""Maxp: the highest maximum class probability first, as in the ablation of DAST-AL's Table 1.

The paper says "selects by its max prediction probability". Its released code selects the MOST confident images, which
explains why Maxp is far below random selection in the table. The usual baseline is least_confidence.py. If pixels have
labels, the order is exactly the opposite of that of least confidence.
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


class Maxp(Acquisition):
    """Selects the images whose predicted class has the highest probability."""

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: -log(1 - max p)."""
        return {"score": -per_position(log_error, network(batch.images).logits)}

    def over_positions(self, scores: torch.Tensor) -> torch.Tensor:
        """Return minus the logarithm [B] of the mean of 1 - max p."""
        return -log_mean_exp(-scores)

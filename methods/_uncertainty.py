"""What the uncertainty scores share: a score from the class probabilities of one forward pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.lazy import torch

from ._places import ByPlace

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network


class Uncertainty(ByPlace):
    """Ranks by a score of the logits alone."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return [N], highest bought first, for logits [N, C] in float32, one row for each image or place."""
        raise NotImplementedError

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the score of each place [B, *s]."""
        from harness.learning.labels import as_rows

        logits = network(images).logits
        return self.score(as_rows(logits)).view(len(images), *logits.shape[2:])


def log_mean_exp(values: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean [B] of exp(values) [B, P], without overflow."""
    return values.logsumexp(1) - math.log(values.shape[1])

"""What the uncertainty scores share: a score from the class probabilities of one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.method import Acquisition

if TYPE_CHECKING:
    from harness.method import Columns
    from harness.networks import Network


class Uncertainty(Acquisition):
    """Ranks by a score of the logits alone."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return [B], highest bought first, for logits [B, C] in float32."""
        raise NotImplementedError

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``."""
        return {"score": self.score(network(images).logits)}

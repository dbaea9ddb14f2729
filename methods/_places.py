"""What acquisitions share that score each place of an image by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.learning.contract import Acquisition

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network


class ByPlace(Acquisition):
    """Ranks an image by the mean of its places' scores; an image with one label has one place."""

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the score of each place [B, *s], highest bought first."""
        raise NotImplementedError

    def over_places(self, scores: torch.Tensor) -> torch.Tensor:
        """Return an image's score [B] for the scores of its places [B, P]: their mean."""
        return scores.mean(1)

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``."""
        return {"score": self.over_places(self.heat(network, images, prepared, generator).view(len(images), -1))}

"""Dropout on the penultimate features: the training that MC-Dropout and BALD need (Srivastava et al. 2014).

The paper's target networks have no dropout, and dropping features of a network that never learned without them would
measure something else; so the target is trained with it, and its first cycle is not the plain network's. It is tested
plain, with all features.

Known differences from Gal & Ghahramani (2016), who put dropout before every layer: here it is before the last one only,
so that any target network can have it. Of a map each entry is dropped by itself, not a channel at all places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from harness.lazy import torch
from harness.learning.contract import Training
from harness.settings import Strict

if TYPE_CHECKING:
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs


class Dropout(Training):
    """Cross-entropy of the classifier on dropped features."""

    class Settings(Strict):
        """0.25 is what ViewAL's public code has for MC-Dropout in segmentation."""

        dropout: float = Field(0.25, gt=0, lt=1, description="probability that an entry of the features is dropped")

    _network: Network
    _masks: torch.Generator

    def fit(self, cycle: Cycle) -> float:
        """Train by the recipe, with masks from a stream of the cycle."""
        self._network, self._masks = cycle.network, cycle.stream("dropout", on_device=True)
        return super().fit(cycle)

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy of the dropped features' logits."""
        features = dropped(outputs.features, self.settings.dropout, self._masks)
        return super().loss(outputs._replace(logits=self._network.classified(features)), labels, progress)


def dropped(features: torch.Tensor, dropout: float | torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return features of any shape with entries set to 0 by chance, and the others scaled so that the mean stays.

    A probability [] on the device stays there: reading it would wait for the device.
    """
    kept = torch.rand(features.shape, generator=generator, device=features.device) >= dropout
    return features * kept / (1 - dropout)

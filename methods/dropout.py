"""Training with dropout on the penultimate features, which MC-Dropout and BALD need (Srivastava et al. 2014).

DAST-AL's target networks have no dropout. Dropout only at scoring would measure something else, because the network
has not learned with it. The target is therefore trained with dropout, so its first cycle differs from that of
cross_entropy. It is tested without dropout.

Known differences from Gal & Ghahramani (2016), who apply dropout before every layer:
- Dropout is applied before the last layer only, so that any target network supports it.
- In a map, each entry is dropped independently, not a channel at all positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import torch
from harness.learning.contract import Training
from harness.settings import Strict

from ._committee import dropped

if TYPE_CHECKING:
    from harness.learning.cycle import Cycle
    from harness.networks.network import Outputs


class Dropout(Training):
    """Trains with the cross-entropy of the classifier on features after dropout."""

    class Settings(Strict):
        """0.25 is the value of ViewAL's public code for MC-Dropout in segmentation."""

        dropout: float = Field(0.25, gt=0, lt=1, description="probability that an entry of the features is set to 0")

    settings: Settings

    gives = Training.gives | {"dropout"}

    _masks: torch.Generator

    def fit(self, cycle: Cycle) -> float:
        """Train by the recipe; dropout masks have their own random stream."""
        self._masks = cycle.stream("dropout", on_device=True)
        return super().fit(cycle)

    def loss(self, outputs: Outputs, targets: Any, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy of the logits of features after dropout."""
        features = dropped(outputs.features, self.settings.dropout, self._masks)
        return super().loss(outputs._replace(logits=self.network.classified(features)), targets, progress)

    def state(self) -> dict[str, torch.Tensor]:
        """Return ``dropout`` [], the probability, for the acquisition."""
        return {"dropout": torch.tensor(self.settings.dropout)}

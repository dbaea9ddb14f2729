"""MC-Dropout: entropy of the mean prediction over dropout passes, highest first.

The method is from Gal & Ghahramani, ICML 2016, and Gal, Islam & Ghahramani, ICML 2017 ("Max Entropy"). Only dropout is
random; batch norm stays in evaluation mode.

Known differences from the papers: see dropout.py. The number of passes is that of ViewAL's public code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from harness.learning.contract import Acquisition, Batch
from harness.settings import Rounds, Strict

from ._committee import dropout_entropies

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class MCDropout(Acquisition):
    """Selects the images with the highest entropy of the mean prediction."""

    class Settings(Strict):
        """The probability of dropout is a setting of the training."""

        passes: Rounds = Field(20, ge=2, description="predictions per image, T")

    settings: Settings

    needs = frozenset({"dropout"})

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the probability of dropout."""
        return {"dropout": cycle.learned["dropout"]}

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: the entropy of the mean prediction."""
        return {"score": dropout_entropies(network, batch, prepared, self.settings.passes)[0]}

"""BALD: mutual information of prediction and weights, by dropout, highest first (Houlsby et al. 2011; Gal et al. 2017).

The score is the entropy of the mean prediction minus the mean entropy of the predictions. It is high if each pass is
confident and the passes disagree.

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


class BALD(Acquisition):
    """Selects the images on which the dropout passes disagree most."""

    class Settings(Strict):
        """The probability of dropout is a setting of the training."""

        passes: Rounds = Field(20, ge=2, description="predictions per image, T")

    settings: Settings

    needs = frozenset({"dropout"})

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the probability of dropout."""
        return {"dropout": cycle.learned["dropout"]}

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: the mutual information."""
        entropy_of_mean, mean_entropy = dropout_entropies(network, batch, prepared, self.settings.passes)
        return {"score": entropy_of_mean - mean_entropy}

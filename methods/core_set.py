"""Core-set: greedy k-center on penultimate features (Sener & Savarese 2018, Alg. 1, the greedy 2-approximation).

Known differences from the paper and its authors' code:
- The selection is only greedy. The authors' code also runs the robust mixed-integer program (with outliers switched
  off), and offers greedy alone as a shortcut; published comparisons use the shortcut.
- The candidates may be a random subset of the unlabelled images.
- If pixels have labels, an image's features are the mean over positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveFloat

from harness.lazy import torch
from harness.learning.contract import Acquisition, Batch
from harness.settings import Strict, Why, inert

from ._k_center import k_center, straight

if TYPE_CHECKING:
    from harness.learning.contract import Ahead, Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class CoreSet(Acquisition):
    """Selects, one after another, the candidate farthest from all labelled and selected images."""

    class Settings(Strict):
        """A memory limit. It does not affect which images are selected."""

        memory_gb: Annotated[PositiveFloat, Field(le=10**5), Why("no machine has more")] = inert(
            0.25, description="working memory, in addition to features and distances, GB"
        )

    settings: Settings
    needs = frozenset()

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self.steps: Any = straight

    def prepare(self, cycle: Cycle) -> Columns:
        """Prepare nothing; keep the steps of the cycle, with which the selection has checkpoints."""
        self.steps = cycle.steps
        return {}

    @classmethod
    def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
        """Return the bytes of the features of candidates and labelled images, float32, which are held once."""
        pool, most = ahead.info.num_train, ahead.protocol.candidates or ahead.info.num_train
        selecting = ahead.protocol.labelled()[:-1]
        return 4 * features * max((labelled + min(most, pool - labelled) for labelled in selecting), default=0)

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``features`` [B, D], the mean over positions."""
        features = network(batch.images).features
        return {"features": features.reshape(*features.shape[:2], -1).mean(2)}

    def select(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the rows that greedy k-center selects, in order."""
        return k_center(columns["features"], labelled()["features"], budget, self.settings.memory_gb, self.steps)

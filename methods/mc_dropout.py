"""MC-Dropout: entropy of the mean prediction over passes with dropout, highest first.

Gal & Ghahramani, ICML 2016, and Gal, Islam & Ghahramani, ICML 2017 ("Max Entropy"). Nothing but dropout is random:
batch norm stays in evaluation mode. Dropout comes right before the last layer, so the features are computed once and
only the classifier is applied in each pass: exactly what whole passes would give.

Known differences from the papers: see dropout.py. The number of passes is that of ViewAL's public code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from harness.lazy import torch
from harness.learning.contract import Training
from harness.settings import Strict

from ._committee import Committee
from .dropout import Dropout as _Dropout
from .dropout import dropped

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class MCDropout(Committee):
    """Buys the images with the highest entropy of the mean prediction."""

    class Settings(Strict):
        """The probability of dropout is the training's."""

        passes: int = Field(20, ge=2, description="predictions of each image, T")

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Refuse a network that was not trained with dropout."""
        if not issubclass(training, _Dropout):
            name = cls.__module__.rpartition(".")[2]
            raise ValueError(f"{name} needs a network that was trained with dropout: training: dropout")

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the training's probability of dropout."""
        return {"dropout": torch.tensor(cast("_Dropout", cycle.training).settings.dropout)}

    def predictions(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Yield the logits of each pass."""
        features = network(images).features
        for _ in range(self.settings.passes):
            yield network.classified(dropped(features, prepared["dropout"], generator))

    def score(self, of_mean: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return the entropy of the mean prediction."""
        return of_mean

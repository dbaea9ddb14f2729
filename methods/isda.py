"""ISDA: implicit semantic data augmentation (Wang et al., NeurIPS 2019), the training of DAST-AL (Sec. 3.1).

Cross-entropy of z + (lambda / 2) Q[y], with Q[y, j] = (w_j - w_y)^T Sigma_y (w_j - w_y): an upper bound of the
expected cross-entropy under features drawn from N(a, lambda Sigma_y).

Known differences: the diagonal of Sigma is the default, as in DAST-AL's released code (its paper writes the full
matrix: ``covariance: full``); a C x C table in place of per-sample tensors gives the same loss and gradients.

Where pixels have labels, Q is added at the network's own stride and the sum is brought to the labels' size, as in the
public code for Cityscapes; a place has the label of the pixel in its middle (the public code takes a corner), and
lambda grows by epochs (by steps there). IGNORED pixels are in neither the loss nor the statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat

from harness.lazy import torch
from harness.learning.contract import Training
from harness.settings import Strict

from ._class_statistics import ClassStatistics, Covariance

if TYPE_CHECKING:
    from harness.networks.network import Outputs


class ISDA(Training):
    """Training with implicit feature augmentation; keeps the class statistics that EPMCM scores with.

    Statistics are never reset under warm start (as released) and are new in each cycle with fresh weights.
    """

    class Settings(Strict):
        """lambda_0: DAST-AL's released code uses 1 on CIFAR-10 and 5 on CIFAR-100, with the diagonal."""

        covariance: Covariance = "diagonal"
        lambda_0: NonNegativeFloat = Field(
            1.0, description="strength at the end of a cycle; 0: the plain loss, only collecting the statistics"
        )

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self.statistics = ClassStatistics(num_classes, settings.covariance)
        self._classifier: torch.nn.Linear | None = None

    def fit(self, cycle: Any) -> float:
        """Train by the recipe with ISDA's loss."""
        self._classifier = cycle.network.classifier
        return super().fit(cycle)

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean ISDA loss; lambda = lambda_0 x progress, restarted in each cycle.

        The statistics are updated first, with this batch's features, and carry no gradient; the classifier's weight
        does (Wang et al. 2019, Alg. 1).
        """
        from harness.learning.labels import as_rows, at_places, cross_entropy

        assert self._classifier is not None
        places = at_places(labels, outputs.logits)
        self.statistics.update(as_rows(outputs.features), places.flatten())
        strength = self.settings.lambda_0 * progress
        if strength == 0:
            return cross_entropy(outputs.logits, labels)
        known = places < self.num_classes
        present = places[known].unique() if labels.device.type == "cpu" else None
        table = self.statistics.table(self._classifier.weight, present)
        added = table[places.where(known, 0)] * known[..., None]
        return cross_entropy(outputs.logits + (strength / 2) * added.movedim(-1, 1), labels)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the class statistics."""
        return self.statistics.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the class statistics."""
        self.statistics.load_state(state)

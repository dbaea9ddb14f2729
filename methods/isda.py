"""ISDA: implicit semantic data augmentation (Wang et al., NeurIPS 2019), the training of DAST-AL (Sec. 3.1).

The loss is the cross-entropy of z + (lambda / 2) Q[y], with Q[y, j] = (w_j - w_y)^T Sigma_y (w_j - w_y). It is an
upper bound of the expected cross-entropy for features drawn from N(a, lambda Sigma_y).

If pixels have labels, Q is added at the stride of the network and the sum is upsampled to the size of the labels, as in
the public code for Cityscapes. IGNORED pixels are in neither the loss nor the statistics.

Known differences:
- The default is the diagonal of Sigma, as in DAST-AL's released code; its paper writes the full matrix
  (``covariance: full``).
- A C x C table replaces per-sample tensors. The loss and the gradients are the same.
- In label maps, a position has the label of the pixel at its centre (in the public code, at a corner), and lambda
  grows per epoch (in the public code, per step).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import torch
from harness.learning.contract import Training
from harness.learning.labels import as_rows, at_positions, cross_entropy
from harness.settings import Strict, Weight

from ._class_statistics import ClassStatistics, Covariance

if TYPE_CHECKING:
    from harness.learning.contract import Ahead


class ISDA(Training):
    """Trains with implicit feature augmentation, and keeps the class statistics that EPMCM uses for scoring.

    Under warm start the statistics are never reset (as released). Under ``start: fresh`` each cycle has new ones.
    """

    class Settings(Strict):
        """DAST-AL's released code uses lambda_0 = 1 on CIFAR-10 and 5 on CIFAR-100, with the diagonal.

        With lambda_0 = 0 the loss is the cross-entropy, but the statistics are still collected.
        """

        covariance: Covariance = Field("diagonal", description="the class covariances that are kept and used")
        lambda_0: Weight = Field(1.0, description="augmentation strength at the end of a cycle; 0: none")

    settings: Settings

    gives = Training.gives | {"covariance"}

    @classmethod
    def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
        """Return the bytes of full covariances; those of the diagonal are fewer than the classifier's."""
        return 4 * ahead.info.num_classes * features**2 if settings.covariance == "full" else 0

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self.statistics = ClassStatistics(num_classes, settings.covariance)

    def loss(self, outputs: Any, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean ISDA loss; lambda = lambda_0 x progress, restarted in each cycle.

        The statistics are updated with the features of this batch before the loss is computed. The statistics carry no
        gradient, but the classifier's weight does (Wang et al. 2019, Alg. 1).
        """
        positions = at_positions(targets, outputs.logits)
        self.statistics.update(as_rows(outputs.features), positions.flatten())
        strength = self.settings.lambda_0 * progress
        if strength == 0:
            return cross_entropy(outputs.logits, targets)
        known = positions < self.num_classes
        present = positions[known].unique() if targets.device.type == "cpu" else None
        table = self.statistics.table(self.network.classifier.weight, present)
        added = table[positions.where(known, 0)] * known[..., None]
        return cross_entropy(outputs.logits + (strength / 2) * added.movedim(-1, 1), targets)

    def state(self) -> dict[str, torch.Tensor]:
        """Return ``count`` [C], ``mean`` [C, A], ``covariance`` [C, A] or [C, A, A]; empty before the first step."""
        return self.statistics.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the class statistics."""
        self.statistics.load_state(state)

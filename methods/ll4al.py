"""LL4AL: learning loss for active learning (Yoo & Kweon, CVPR 2019).

A small module on the outputs of the target's stages learns to predict the target's loss, by ranking pairs of a batch;
images with the highest predicted loss are bought. Trained jointly with the target, so its first cycle is not the plain
network's.

Known differences: the paper pairs the images of even batches; here the middle image of an odd batch is left out of the
pairs. On VGG-16, which the paper does not use, the taps are the last ReLUs of stages 2 to 5. Where pixels have labels,
the module predicts the mean loss of an image's known pixels (0 for an image that has none), and the target is trained
on the mean over all known pixels of the batch, as by every training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.lazy import F, torch
from harness.settings import Strict

from ._joint import Joint

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs

CHANCE = 0.55  # ranking accuracy up to which the module counts as guessing


class LL4AL(Joint):
    """Trains the loss module beside the target and buys by its prediction."""

    class Settings(Strict):
        """The paper's values for classification."""

        margin: NonNegativeFloat = Field(1.0, description="xi of the ranking loss")
        weight: PositiveFloat = Field(1.0, description="lambda: weight of the ranking loss")
        width: PositiveInt = Field(128, description="channels of each stage's branch")
        detach_after: float = Field(
            0.6, ge=0, le=1, description="part of the epochs after which the target gets no gradient of the module"
        )

    purpose = "loss module"

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._right: list[torch.Tensor] = []

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return a loss module for the stages of the cycle's network."""
        from harness.learning.inference import evaluating

        from ._modules import LossModule

        with evaluating(cycle.network):
            taps = cycle.network(cycle.images.plain(cycle.labelled[:1]), stages=True).stages
        return LossModule([tap.shape[1] for tap in taps], self.settings.width)

    def fit(self, cycle: Cycle) -> float:
        """Train target and module by the recipe, with one optimiser for both."""
        from harness.learning.fit import fit

        module = self.ready(cycle)
        self._right = []
        loss = fit(cycle, self.loss, module.parameters(), stages=True)
        accuracy = float(torch.stack(self._right).mean()) if self._right else 0.0
        cycle.health["ranking_accuracy"] = accuracy
        if accuracy <= CHANCE:
            cycle.warnings.append(f"ll4al: the loss module guesses, it ranks {accuracy:.0%} of pairs rightly")
        return loss

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy plus the weighted ranking loss."""
        from harness.learning.labels import cross_entropy

        target = cross_entropy(outputs.logits, labels)
        losses = cross_entropy(outputs.logits.detach(), labels, per_image=True)
        stages = [s.detach() for s in outputs.stages] if progress > self.settings.detach_after else outputs.stages
        ranking, right = ranking_loss(self.module(stages), losses, self.settings.margin)
        self._right = [*self._right[-99:], right]  # of the last hundred steps: the trained module's
        return target + self.settings.weight * ranking

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``: the predicted loss."""
        from ._modules import LossModule

        stages = network(images, stages=True).stages
        channels = [stage.shape[1] for stage in stages]
        return {"score": self.restored(lambda: LossModule(channels, self.settings.width), prepared)(stages)}


def ranking_loss(predicted: torch.Tensor, losses: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean loss over pairs, fraction of pairs ranked rightly) for predicted and true losses [B].

    Image i is paired with image B - 1 - i: max(0, -s (l^_i - l^_j) + margin), s = +1 if l_i > l_j, else -1.
    A batch of one has no pair and loss 0.
    """
    pairs = len(predicted) // 2
    if pairs == 0:
        return predicted.sum() * 0, predicted.new_ones(())
    difference = (predicted - predicted.flip(0))[:pairs]
    sign = torch.where((losses - losses.flip(0))[:pairs] > 0, 1.0, -1.0)
    return F.relu(margin - sign * difference).mean(), (sign * difference > 0).float().mean().detach()

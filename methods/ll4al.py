"""LL4AL: learning loss for active learning (Yoo & Kweon, CVPR 2019).

Training: a small module on the stage outputs of the target learns to predict the target's loss, by ranking pairs of
images in a batch. Selection: the images with the highest predicted loss. The module is trained jointly with the target,
so the first cycle differs from that of cross_entropy.

As in the reference code, the scheduler steps before an epoch, so the learning rate falls one epoch before a milestone,
and the module keeps PyTorch's initialisation.

Known differences:
- The target starts from the network of all methods; the reference code leaves it at PyTorch's initialisation, which
  ``model.initialisation: pytorch`` gives to all methods.
- The paper pairs the images of even batches. Here the middle image of an odd batch is in no pair.
- On VGG-16, which the paper does not use, the module reads the last ReLUs of stages 2 to 5.
- If pixels have labels, the module predicts an image's mean loss over its labelled pixels (0 if there are none). As in
  every training, the target is trained on the mean over all labelled pixels of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import F, torch
from harness.learning.contract import Acquisition, Batch, Training
from harness.learning.fit import built, fit
from harness.learning.inference import evaluating
from harness.learning.labels import cross_entropy
from harness.settings import Channels, Strict, Weight

from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs

CHANCE = 0.55  # ranking accuracy up to which the module is considered to guess


class LL4AL(Training):
    """Trains the loss prediction module alongside the target."""

    class Settings(Strict):
        """The defaults are the paper's values for classification."""

        margin: Weight = Field(1.0, description="xi of the ranking loss")
        weight: Weight = Field(1.0, gt=0, description="lambda: weight of the ranking loss")
        width: Channels = Field(128, description="channels of each stage's branch")
        detach_after: float = Field(
            0.6, ge=0, le=1, description="fraction of the epochs after which the module's gradient stops at the target"
        )

    settings: Settings

    gives = Training.gives | {"loss module"}

    _ranked: list[torch.Tensor]

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return a new loss prediction module for the stages of the cycle's network."""
        from ._modules import LossModule

        with evaluating(cycle.network):
            stages = cycle.network(cycle.images.unaugmented(cycle.labelled[:1]), stages=True).stages
        channels = [stage.shape[1] for stage in stages]
        return built(lambda: LossModule(channels, self.settings.width), cycle.key("loss module"), cycle.device)

    def fit(self, cycle: Cycle) -> float:
        """Train the target and the module by the recipe, with one optimizer for both."""
        self._ranked = []
        loss = fit(cycle, self, stages=True, ahead=1)
        accuracy = float(torch.stack(self._ranked).mean()) if self._ranked else 0.0
        cycle.health["ranking_accuracy"] = accuracy
        if accuracy <= CHANCE:
            cycle.warnings.append(f"ll4al: the loss module guesses; it ranks {accuracy:.0%} of the pairs correctly")
        return loss

    def loss(self, outputs: Outputs, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy plus the weighted ranking loss."""
        losses = cross_entropy(outputs.logits.detach(), targets, per_image=True)
        stages = [s.detach() for s in outputs.stages] if progress > self.settings.detach_after else outputs.stages
        ranking, accuracy = ranking_loss(self.module(stages), losses, self.settings.margin)
        self._ranked = [*self._ranked[-99:], accuracy]  # of the last hundred steps, when the module is trained
        return cross_entropy(outputs.logits, targets) + self.settings.weight * ranking


class PredictedLoss(Acquisition):
    """Selects the images with the highest predicted loss."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()

    needs = frozenset({"loss module"})

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the weights of the loss prediction module."""
        return dict(cycle.learned)

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``, the predicted loss."""
        from ._modules import LossModule

        stages = network(batch.images, stages=True).stages
        channels, width = [stage.shape[1] for stage in stages], len(prepared["stages.0.weight"])
        return {"score": self._restored(lambda: LossModule(channels, width), prepared)(stages)}


def ranking_loss(predicted: torch.Tensor, losses: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean loss over pairs, fraction of pairs ranked correctly) for predicted and true losses [B].

    Image i is paired with image j = B - 1 - i; the loss of a pair is max(0, -s (l^_i - l^_j) + margin), with s = +1 if
    l_i > l_j, else -1. A batch of one image has no pair and loss 0.
    """
    pairs = len(predicted) // 2
    if pairs == 0:
        return predicted.sum() * 0, predicted.new_ones(())
    difference = (predicted - predicted.flip(0))[:pairs]
    sign = torch.where((losses - losses.flip(0))[:pairs] > 0, 1.0, -1.0)
    return F.relu(margin - sign * difference).mean(), (sign * difference > 0).float().mean().detach()

"""LL4AL: learning loss for active learning (Yoo & Kweon, CVPR 2019).

A small module on the outputs of the target's stages learns to predict the target's loss, by ranking pairs of a batch;
images with the highest predicted loss are bought. Trained jointly with the target, so its first cycle is not the plain
network's.

Known differences: the paper pairs the images of even batches; here the middle image of an odd batch is left out of the
pairs. On VGG-16, which the paper does not use, the taps are the last ReLUs of stages 2 to 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.lazy import F, torch
from harness.method import Acquisition, Training
from harness.settings import Strict

if TYPE_CHECKING:
    from harness.cycle import Cycle
    from harness.method import Columns
    from harness.networks import Network, Outputs

    from ._modules import LossModule

CHANCE = 0.55  # ranking accuracy up to which the module counts as guessing


class LL4AL(Training, Acquisition):
    """Trains the loss module beside the target and buys by its prediction."""

    class Settings(Strict):
        """The paper's values for classification."""

        margin: NonNegativeFloat = Field(1.0, description="xi of the ranking loss")
        weight: PositiveFloat = Field(1.0, description="lambda: weight of the ranking loss")
        width: PositiveInt = Field(128, description="channels of each stage's branch")
        detach_after: float = Field(
            0.6, ge=0, le=1, description="part of the epochs after which the target gets no gradient of the module"
        )

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Refuse another training: the score is what this one learns."""
        if not issubclass(training, cls) or settings != training_settings:
            raise ValueError("ll4al ranks by what its own training learns: write just ll4al, without another training")

    def __init__(self, settings: Any, num_classes: int) -> None:
        Training.__init__(self, settings, num_classes)
        self._module: LossModule | None = None
        self._carried: dict[str, torch.Tensor] = {}
        self._right: list[torch.Tensor] = []

    def fit(self, cycle: Cycle) -> float:
        """Train target and module by the recipe, with one optimiser each of the same schedule."""
        from harness.learning import fit

        from ._modules import LossModule, build

        if self._module is None:
            with torch.no_grad():
                was_training = cycle.network.training
                taps = cycle.network.eval()(cycle.images.plain(cycle.labelled[:1]), stages=True).stages
                cycle.network.train(was_training)
            channels = [tap.shape[1] for tap in taps]
            self._module = build(
                lambda: LossModule(channels, self.settings.width), cycle.key("loss module"), cycle.device
            )
            if self._carried:
                self._module.load_state_dict(self._carried)
        self._right = []
        loss = fit(cycle, self.loss, self._module.parameters(), stages=True)
        accuracy = float(torch.stack(self._right).mean()) if self._right else 0.0
        cycle.health["ranking_accuracy"] = accuracy
        if accuracy <= CHANCE:
            cycle.warnings.append(f"ll4al: the loss module guesses, it ranks {accuracy:.0%} of pairs rightly")
        return loss

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy plus the weighted ranking loss."""
        assert self._module is not None
        losses = F.cross_entropy(outputs.logits, labels, reduction="none")
        stages = [s.detach() for s in outputs.stages] if progress > self.settings.detach_after else outputs.stages
        ranking, right = ranking_loss(self._module(stages), losses.detach(), self.settings.margin)
        self._right = [*self._right[-99:], right]  # of the last hundred steps: the trained module's
        return losses.mean() + self.settings.weight * ranking

    def state(self) -> dict[str, torch.Tensor]:
        """Return the module's weights."""
        return self._carried if self._module is None else self._module.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the module's weights, once it is built."""
        self._carried = state

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the module's weights."""
        return self.state()

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``: the predicted loss."""
        stages = network(images, stages=True).stages
        pooled = [
            F.relu(F.linear(stage.mean((2, 3)), prepared[f"stages.{i}.weight"], prepared[f"stages.{i}.bias"]))
            for i, stage in enumerate(stages)
        ]
        return {"score": F.linear(torch.cat(pooled, 1), prepared["head.weight"], prepared["head.bias"])[:, 0]}

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the module's parameters."""
        return sum(v.numel() for v in self.state().values())


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

"""ADS: agreement-discrepancy selection (Fu et al., AAAI 2021).

Training: two heads replace the classifier. In each epoch the backbone learns to make the heads agree on unlabelled
images, then the heads learn to differ on them (and to classify labelled images correctly), then all parts learn from
labelled images. Selection: the images with the highest entropy, averaged over the heads. Accuracy is the mean of the
heads' accuracies.

The paper leaves many details open; this file follows the authors' code: heads (1x1 convolution, sigmoid, cosine to
three prototypes per class, /0.05, sigmoid; PyTorch's initialisation), binary cross-entropy summed over classes, one
more labelled pass before the first epoch, agreement and discrepancy by SGD without momentum at the initial learning
rate in all epochs, all steps in training mode. The scheduler steps before an epoch, so the learning rate falls one
epoch before a milestone. The unlabelled images are the cycle's candidates, which are then ranked. Where the network
projects its pooled features, the heads replace the projection too, as in the authors' network.

Known differences from the paper, as in the authors' code: entropies are those of normalised scores, in bits (Eq. 3 uses
unnormalised scores); the weights are divided by the batch size, and the weighted losses are averaged over the batch as
well (the paper divides only once).

Known differences from the authors' code:
- Each step freezes the part that it does not train before its first batch; in the code, the freeze takes effect only
  after the first forward pass.
- If pixels have labels, which the paper does not consider, heads and losses are per position of the network's map, and
  an image's entropy is the mean over positions.
- Images are scored without augmentation, in evaluation mode; in the code, with the training augmentation.
- The formulas use the actual number of classes and batch size; the code hard-codes both.
- Each epoch visits the unlabelled images in a new order, and the discrepancy step augments its labelled batches anew.
  The code keeps one order of the unlabelled images, and repeats one epoch's augmented batches. The paper asks for
  neither, and the repetition would hold an epoch's images in memory.
- The target starts from the network of all methods; the code leaves it at PyTorch's initialisation, which
  ``model.initialisation: pytorch`` gives to all methods.
- Another acquisition that follows this training reads features through the network's projection, which is not trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle as endlessly
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import F, torch
from harness.learning.contract import Acquisition, Batch, Training
from harness.learning.fit import batches, built, check_finite, final_loss, learning_rate, optimizer, set_rate, step
from harness.learning.inference import evaluating
from harness.learning.labels import as_rows, at_positions, per_position
from harness.settings import Parts, Rate, Recipe, Strict

from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs


class ADS(Training):
    """Trains two heads that agree and disagree in turn."""

    class Settings(Strict):
        """The defaults are the paper's values, and those of the authors' code for the heads."""

        prototypes: Parts = Field(3, description="prototypes per class in each head")
        temperature: Rate = Field(0.05, description="divisor of the similarities")
        tau: float = Field(
            0.1, ge=0, le=100, description="entropy, in bits, at which an image has weight 1/2 in either step"
        )
        adversarial_learning_rate: Rate = Field(0.1, description="for agreement and discrepancy, all epochs")

    settings: Settings

    gives = frozenset({"two heads"})  # the heads replace the classifier, which is not trained

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return two new heads for the cycle's network."""
        with evaluating(cycle.network):
            outputs = cycle.network(cycle.images.unaugmented(cycle.labelled[:1]))
        s, width = self.settings, outputs.body_features.shape[1]
        shape = width, self.num_classes, s.prototypes, s.temperature
        return built(lambda: heads(*shape), cycle.key("ads heads"), cycle.device)

    def replaced(self, network: Network) -> Iterable[torch.nn.Parameter]:
        """Return the parameters that the heads replace and that are not trained: of the projection and classifier."""
        return [*network.projection.parameters(), *network.classifier.parameters()]

    @classmethod
    def extra_passes(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return the images of the first pass, of agreement, and of discrepancy with its labelled images."""
        return labelled + 3 * candidates * recipe.epochs

    def fit(self, cycle: Cycle) -> float:
        """Run the three steps in each epoch; return the last epoch's mean labelled loss."""
        network, recipe = cycle.network, cycle.recipe
        replaced = {id(p) for p in self.replaced(network)}
        backbone = [p for p in network.parameters() if id(p) not in replaced]
        head_parameters = list(self.module.parameters())
        main = optimizer([*backbone, *head_parameters], recipe)
        rate, decay = self.settings.adversarial_learning_rate, recipe.weight_decay
        agree = torch.optim.SGD(backbone, rate, weight_decay=decay)
        differ = torch.optim.SGD(head_parameters, rate, weight_decay=decay)
        order, draws = cycle.stream("order"), cycle.stream("augmentation", on_device=True)
        unlabelled_order = cycle.stream("unlabelled order")
        network.train()
        self.module.train()

        kept: dict[str, torch.Tensor] = {}  # the losses of the last labelled pass

        def labelled() -> list[torch.Tensor]:
            return batches(len(cycle.labelled), recipe, order, cycle.device)

        def unlabelled() -> list[torch.Tensor]:
            parts = batches(len(cycle.candidates), recipe, unlabelled_order, cycle.device)
            return [cycle.candidates[part] for part in parts]

        def supervised_pass(epoch: int) -> None:
            parts, losses = labelled(), list[torch.Tensor]()
            with cycle.clock.phase("train"):
                steps = cycle.steps(len(parts), parts=parts, losses=losses)
                for number, (images, labels) in zip(steps, cycle.pairs(parts[steps.first :], draws), strict=True):
                    # the scheduler steps before an epoch
                    set_rate(main, learning_rate(recipe, epoch, (number + 1) / len(parts), ahead=1))
                    losses.append(step(main, self.loss(network(images), labels, 0.0)))
                kept["losses"] = torch.stack(losses)
                check_finite(kept["losses"], cycle, f"epoch {epoch}, labelled")

        def agreement_pass(epoch: int) -> None:
            parts, losses = unlabelled(), list[torch.Tensor]()
            with cycle.clock.phase("auxiliary"):
                steps = cycle.steps(len(parts), parts=parts, losses=losses)
                inputs = cycle.images.augmented_batches(parts[steps.first :], draws)
                for _, images in zip(steps, inputs, strict=True):
                    losses.append(self.agreement_step(network, images, agree))
                check_finite(torch.stack(losses), cycle, f"epoch {epoch}, agreement")

        def discrepancy_pass(epoch: int) -> None:
            parts, losses = unlabelled(), list[torch.Tensor]()
            paired = [*islice(endlessly(labelled()), len(parts))]
            with cycle.clock.phase("auxiliary"):
                steps = cycle.steps(len(parts), parts=parts, paired=paired, losses=losses)
                inputs = cycle.images.augmented_batches(parts[steps.first :], draws)
                pairs = cycle.pairs(paired[steps.first :], draws)
                for _, images, pair in zip(steps, inputs, pairs, strict=True):
                    losses.append(self.discrepancy_step(network, images, differ, *pair))
                check_finite(torch.stack(losses), cycle, f"epoch {epoch}, discrepancy")

        adversarial = len(cycle.candidates) > 1  # batch norm can't normalise a single image
        if not adversarial:
            cycle.warnings.append("ads: too few candidates are left for agreement and discrepancy: labelled steps only")
        changed: dict[str, Any] = {"network": network, "training": self, "optimisers": [main, agree, differ]}
        for epoch in cycle.steps(recipe.epochs, **changed, streams=[order, draws, unlabelled_order], kept=kept):
            passes = [supervised_pass] if epoch == 0 else []
            passes += [agreement_pass, discrepancy_pass] if adversarial else []
            passes += [supervised_pass]
            for number in cycle.steps(len(passes)):
                passes[number](epoch)
        network.eval()
        self.module.eval()
        return final_loss(kept["losses"], 2 * self.num_classes * math.log(2), cycle)  # what guessing costs both heads

    def agreement_step(self, network: Network, images: torch.Tensor, optimiser: torch.optim.Optimizer) -> torch.Tensor:
        """Update only the backbone, so that the heads agree; return the loss."""
        return step(optimiser, agreement(self.scores(network(images)), self.settings.tau, len(images)))

    def discrepancy_step(
        self,
        network: Network,
        images: torch.Tensor,
        optimiser: torch.optim.Optimizer,
        labelled_images: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Update only the heads, so that they disagree on ``images`` and classify the labelled images correctly.

        Return the loss.
        """
        with torch.no_grad():
            labelled, unlabelled = network(labelled_images), network(images)
        supervised = self.loss(labelled, labels, 0.0)
        return step(optimiser, discrepancy(self.scores(unlabelled), self.settings.tau, len(images)) + supervised)

    def logits(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return each head's logits [N, C], a row for each image or position."""
        return [head(as_rows(outputs.body_features)) for head in self.module]

    def scores(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return each head's class scores [N, C] in 0..1."""
        return [logits.sigmoid() for logits in self.logits(outputs)]

    def loss(self, outputs: Outputs, targets: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the heads' binary cross-entropy, summed over heads and classes, averaged over positions."""
        positions = at_positions(targets, outputs.logits).flatten()
        known = positions < self.num_classes
        one_hot = F.one_hot(positions.where(known, 0), self.num_classes).float()
        losses = [F.binary_cross_entropy_with_logits(z, one_hot, reduction="none") for z in self.logits(outputs)]
        return (sum(losses[1:], losses[0]).sum(1) * known).sum() / known.sum().clamp(min=1)

    def predict(self, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the scores [B, C, *s] of each head; both are tested."""
        outputs = network(images)
        batch, classes, *size = outputs.logits.shape
        return [head.view(batch, *size, classes).movedim(-1, 1) for head in self.scores(outputs)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights of the heads and their ``temperature`` []."""
        return {**super().state(), "temperature": torch.tensor(self.settings.temperature)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the weights of the heads."""
        super().load_state({key: value for key, value in state.items() if key != "temperature"})


class HeadEntropy(Acquisition):
    """Selects the images with the highest mean entropy of the heads."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()

    needs = frozenset({"two heads"})

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the weights of the heads and their temperature."""
        return dict(cycle.learned)

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: the heads' mean entropy."""
        features = network(batch.images).body_features

        def make() -> torch.nn.Module:
            prototypes = len(prepared["0.prototypes"]) // self.num_classes
            return heads(features.shape[1], self.num_classes, prototypes, float(prepared["temperature"]))

        two_heads = self._restored(make, prepared)
        return {"score": per_position(lambda rows: entropy([head(rows).sigmoid() for head in two_heads]), features)}


def heads(width: int, num_classes: int, prototypes: int, temperature: float) -> torch.nn.ModuleList:
    """Return two heads for features [B, width]."""
    from ._modules import PrototypeHead

    return torch.nn.ModuleList(PrototypeHead(width, num_classes, prototypes, temperature) for _ in range(2))


def entropy(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the entropy [N], in bits, of scores [N, C] normalised over classes, averaged over the heads."""
    total = torch.zeros_like(scores[0][:, 0])
    for head in scores:
        p = head / head.sum(1, keepdim=True)
        total = total - torch.xlogy(p, p).sum(1)
    return total / (len(scores) * math.log(2))


def agreement(scores: list[torch.Tensor], tau: float, images: int) -> torch.Tensor:
    """Return the agreement loss of a batch of ``images`` images; confident images have higher weights."""
    weight = (1 - (entropy(scores) - tau).sigmoid()).detach() / images
    return (weight * difference(scores)).mean()


def discrepancy(scores: list[torch.Tensor], tau: float, images: int) -> torch.Tensor:
    """Return the discrepancy loss of a batch of ``images`` images; uncertain images have higher weights."""
    weight = (entropy(scores) - tau).sigmoid().detach() / images
    return (weight * (1 - difference(scores))).mean()


def difference(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the absolute difference of the heads' scores, averaged over classes [N]."""
    return (scores[0] - scores[1]).abs().mean(1)

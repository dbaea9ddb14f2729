"""ADS: agreement-discrepancy selection (Fu et al., AAAI 2021).

The classifier is replaced by two heads. In each epoch the backbone learns to make the heads agree on unlabelled images,
then the heads learn to differ on them (and to be right on labelled ones), then everything learns from labelled images.
Images on which the heads' mean entropy is highest are bought; accuracy is the mean of the heads' accuracies.

The paper leaves much open; here its authors' code decides: heads (1x1 convolution, sigmoid, cosine to three prototypes
a class, /0.05, sigmoid), binary cross-entropy summed over classes, one more labelled pass before the first epoch,
agreement and discrepancy by plain SGD at the initial learning rate in all epochs, all steps in training mode. The
unlabelled images are the candidate subset of the cycle, which is then ranked.

Known differences from the paper, as in the authors' code: entropies are those of normalised scores, in bits (Eq. 3 has
the scores as they are); weights are both divided by the batch size and averaged over the batch (there: once).

Known differences from the authors' code:
- What is frozen in a step gets no gradient from its first batch on; theirs is frozen after the first forward pass.
- Where pixels have labels, which the paper does not treat, heads and losses are those of each place of the network's
  map, and an image's entropy is the mean over them.
- Images are scored plain, in evaluation mode; theirs with the training augmentation.
- The number of classes and the batch size are not written into the formulas.
"""

from __future__ import annotations

import math
from itertools import cycle as endlessly
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from harness.lazy import F, torch
from harness.settings import Recipe, Strict

from ._joint import Joint
from ._places import ByPlace

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs


class ADS(Joint, ByPlace):
    """Two heads that agree and differ in turn; buys where they are uncertain."""

    class Settings(Strict):
        """The paper's values, and those of the heads from the authors' code."""

        prototypes: PositiveInt = Field(3, description="of each class, in each head")
        temperature: PositiveFloat = Field(0.05, description="by which similarities are divided")
        tau: float = Field(0.1, description="entropy, in bits, at which an image counts half for either step")
        adversarial_learning_rate: PositiveFloat = Field(0.1, description="of agreement and discrepancy, all epochs")

    purpose = "ads heads"

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return the heads for the cycle's network."""
        return self._heads(cycle.network.classifier.in_features)

    def _heads(self, width: int) -> torch.nn.Module:
        from ._modules import PrototypeHead

        shape = self.num_classes, self.settings.prototypes, self.settings.temperature
        return torch.nn.ModuleList(PrototypeHead(width, *shape) for _ in range(2))

    def fit(self, cycle: Cycle) -> float:
        """Run the three steps in each epoch; return the last epoch's mean labelled loss."""
        from harness.learning.fit import batches, check_finite, learning_rate, optimizer

        from ._modules import step

        network, recipe = cycle.network, cycle.recipe
        module = self.ready(cycle)
        classifier = {id(p) for p in network.classifier.parameters()}  # replaced by the heads: not trained
        backbone = [p for p in network.parameters() if id(p) not in classifier]
        heads = list(module.parameters())
        main = optimizer([*backbone, *heads], recipe)
        rate, decay = self.settings.adversarial_learning_rate, recipe.weight_decay
        agree = torch.optim.SGD(backbone, rate, weight_decay=decay)
        differ = torch.optim.SGD(heads, rate, weight_decay=decay)
        order, draws = cycle.stream("order"), cycle.stream("augmentation", on_device=True)
        unlabelled_order = cycle.stream("unlabelled order")
        network.train()
        module.train()

        def labelled() -> list[torch.Tensor]:
            return batches(len(cycle.labelled), recipe, order, cycle.device)

        def unlabelled() -> list[torch.Tensor]:
            parts = batches(len(cycle.candidates), recipe, unlabelled_order, cycle.device)
            return [cycle.candidates[part] for part in parts]

        def supervised_epoch(epoch: int) -> torch.Tensor:
            losses = []
            with cycle.clock.phase("train"):
                for group in main.param_groups:
                    group["lr"] = learning_rate(recipe, epoch)
                for images, labels in cycle.pairs(labelled(), draws):
                    losses.append(step(main, self.loss(network(images), labels, 0.0)))
                check_finite(torch.stack(losses), cycle, f"epoch {epoch}, labelled")
            return torch.stack(losses)

        def unlabelled_epoch(epoch: int) -> None:
            with cycle.clock.phase("auxiliary"):
                seen = cycle.images.augmented_batches(unlabelled(), draws)
                losses = [self.agreement_step(network, images, agree) for images in seen]
                check_finite(torch.stack(losses), cycle, f"epoch {epoch}, agreement")
                parts = unlabelled()
                seen = cycle.images.augmented_batches(parts, draws)
                pairs = cycle.pairs([*islice(endlessly(labelled()), len(parts))], draws)
                losses = [
                    self.discrepancy_step(network, images, differ, *pair)
                    for images, pair in zip(seen, pairs, strict=True)
                ]
                check_finite(torch.stack(losses), cycle, f"epoch {epoch}, discrepancy")

        playing = len(cycle.candidates) > 1  # batch norm can't normalise a single image
        if not playing:
            cycle.warnings.append("ads: too few candidates are left for agreement and discrepancy: labelled steps only")
        losses = torch.zeros(0)
        for epoch in range(recipe.epochs):
            if epoch == 0:
                supervised_epoch(epoch)
            if playing:
                unlabelled_epoch(epoch)
            losses = supervised_epoch(epoch)
        network.eval()
        module.eval()
        return float(losses.mean())

    @classmethod
    def auxiliary_images(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return the images of agreement and of discrepancy, which takes a labelled one with each, and of the start."""
        return labelled + 3 * candidates * recipe.epochs

    def agreement_step(self, network: Network, images: torch.Tensor, optimiser: torch.optim.Optimizer) -> torch.Tensor:
        """Change the backbone, and nothing else, so that the heads agree; return the loss."""
        from ._modules import step

        return step(optimiser, agreement(self.scores(network(images)), self.settings.tau, len(images)))

    def discrepancy_step(
        self,
        network: Network,
        images: torch.Tensor,
        optimiser: torch.optim.Optimizer,
        labelled_images: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Change the heads, and nothing else, so that they differ on ``images`` and are right on the labelled ones.

        Return the loss.
        """
        from ._modules import step

        with torch.no_grad():
            labelled, unlabelled = network(labelled_images), network(images)
        supervised = self.loss(labelled, labels, 0.0)
        return step(optimiser, discrepancy(self.scores(unlabelled), self.settings.tau, len(images)) + supervised)

    def logits(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return each head's logits [N, C], a row for each image or place."""
        from harness.learning.labels import as_rows

        return [head(as_rows(outputs.features)) for head in self.module]

    def scores(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return each head's class scores [N, C] in 0..1."""
        return [logits.sigmoid() for logits in self.logits(outputs)]

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return both heads' binary cross-entropy, summed over classes, averaged over the batch or its places."""
        from harness.learning.labels import at_places

        places = at_places(labels, outputs.logits).flatten()
        known = places < self.num_classes
        targets = F.one_hot(places.where(known, 0), self.num_classes).float()
        losses = [F.binary_cross_entropy_with_logits(z, targets, reduction="none") for z in self.logits(outputs)]
        return (sum(losses[1:], losses[0]).sum(1) * known).sum() / known.sum().clamp(min=1)

    def predict(self, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        """Return both heads' scores: each is tested."""
        outputs = network(images)
        batch, classes, *places = outputs.logits.shape
        return [head.view(batch, *places, classes).movedim(-1, 1) for head in self.scores(outputs)]

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the heads' mean entropy at each place [B, *s]."""
        from harness.learning.labels import as_rows

        features = network(images).features
        heads = self.restored(lambda: self._heads(features.shape[1]), prepared)
        scores = [head(as_rows(features)).sigmoid() for head in heads]
        return entropy(scores).view(len(images), *features.shape[2:])

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the heads' parameters less those of the classifier that they replace."""
        replaced = sum(p.numel() for p in cycle.network.classifier.parameters())
        return super().extra_parameters(cycle) - replaced


def entropy(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over heads of the entropy [N], in bits, of scores [N, C] normalised over classes."""
    total = torch.zeros_like(scores[0][:, 0])
    for head in scores:
        p = head / head.sum(1, keepdim=True)
        total = total - torch.xlogy(p, p).sum(1)
    return total / (len(scores) * math.log(2))


def agreement(scores: list[torch.Tensor], tau: float, images: int) -> torch.Tensor:
    """Return the loss of a batch of ``images`` whose heads are to agree, where they are sure above all."""
    weight = (1 - (entropy(scores) - tau).sigmoid()).detach() / images
    return (weight * difference(scores)).mean()


def discrepancy(scores: list[torch.Tensor], tau: float, images: int) -> torch.Tensor:
    """Return the loss of a batch of ``images`` whose heads are to differ, where they are unsure above all."""
    weight = (entropy(scores) - tau).sigmoid().detach() / images
    return (weight * (1 - difference(scores))).mean()


def difference(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over classes of the heads' absolute difference [N]."""
    return (scores[0] - scores[1]).abs().mean(1)

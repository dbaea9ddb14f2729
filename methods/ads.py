"""ADS: agreement-discrepancy selection (Fu et al., AAAI 2021).

The classifier is replaced by two heads. In each epoch the backbone learns to make the heads agree on unlabelled images,
then the heads learn to differ on them (and to be right on labelled ones), then everything learns from labelled images.
Images on which the heads' mean entropy is highest are bought; accuracy is the mean of the heads' accuracies.

Following the authors' code: heads (1x1 convolution, sigmoid, cosine to three prototypes a class, /0.05, sigmoid),
binary cross-entropy summed over classes, entropies of normalised scores in bits, tau = 0.1, weights both divided by the
batch size and averaged over the batch, agreement and discrepancy by plain SGD at the initial learning rate in all
epochs, all steps in training mode. The unlabelled images are the candidate subset of the cycle, which is then ranked.

Known differences from the authors' code:
- What is frozen in a step gets no gradient from its first batch on; theirs is frozen after the first forward pass.
- Images are scored plain, in evaluation mode; theirs with the training augmentation.
- The number of classes and the batch size are not written into the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle as endlessly
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat

from harness.lazy import F, torch
from harness.method import Acquisition, Training
from harness.settings import Strict

if TYPE_CHECKING:
    from harness.cycle import Cycle
    from harness.method import Columns
    from harness.networks import Network, Outputs


class ADS(Training, Acquisition):
    """Two heads that agree and differ in turn; buys where they are uncertain."""

    class Settings(Strict):
        """The paper's values."""

        tau: float = Field(0.1, description="entropy, in bits, at which an image counts half for either step")
        adversarial_learning_rate: PositiveFloat = Field(0.1, description="of agreement and discrepancy, all epochs")

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Refuse another training: the score is what this one learns."""
        if not issubclass(training, cls) or settings != training_settings:
            raise ValueError("ads ranks by what its own training learns: write just ads, without another training")

    def __init__(self, settings: Any, num_classes: int) -> None:
        Training.__init__(self, settings, num_classes)
        self._heads: Any = None
        self._carried: dict[str, torch.Tensor] = {}

    def _make_heads(self, width: int, seed: int, device: torch.device) -> Any:
        from ._modules import PrototypeHead, build

        return build(
            lambda: torch.nn.ModuleList(PrototypeHead(width, self.num_classes) for _ in range(2)), seed, device
        )

    def fit(self, cycle: Cycle) -> float:
        """Run the three steps in each epoch; return the last epoch's mean labelled loss."""
        from harness.learning import check_finite, optimizer

        network, recipe = cycle.network, cycle.recipe
        if self._heads is None:
            width = network.classifier.in_features
            self._heads = self._make_heads(width, cycle.key("ads heads"), cycle.device)
            if self._carried:
                self._heads.load_state_dict(self._carried)
        classifier = {id(p) for p in network.classifier.parameters()}  # replaced by the heads: not trained
        backbone = [p for p in network.parameters() if id(p) not in classifier]
        heads = list(self._heads.parameters())
        main = optimizer([*backbone, *heads], recipe)
        rate, decay = self.settings.adversarial_learning_rate, recipe.weight_decay
        agree = torch.optim.SGD(backbone, rate, weight_decay=decay)
        differ = torch.optim.SGD(heads, rate, weight_decay=decay)
        order, draws = cycle.stream("order"), cycle.stream("augmentation", on_device=True)
        positions_of = _shuffled(len(cycle.labelled), recipe, order)
        unlabelled_order = cycle.stream("unlabelled order")
        network.train()
        self._heads.train()

        def labelled_loss(positions: torch.Tensor) -> torch.Tensor:
            images = cycle.images.augmented(cycle.labelled[positions], draws)
            return self.loss(network(images), cycle.labels[positions], 0.0)

        def unlabelled() -> Iterator[torch.Tensor]:
            parts = torch.randperm(len(cycle.candidates), generator=unlabelled_order).split(recipe.batch_size)
            for part in parts:
                yield cycle.images.augmented(cycle.candidates[part.to(cycle.device)], draws)

        losses: list[torch.Tensor] = []
        for epoch in range(recipe.epochs):
            if epoch == 0:
                with cycle.clock.phase("train"):
                    self._supervised_epoch(cycle, main, epoch, next(positions_of), labelled_loss)
            with cycle.clock.phase("auxiliary"):
                for images in unlabelled():
                    self.agreement_step(network, images, agree)
                labelled = endlessly(next(positions_of))
                for images in unlabelled():
                    self.discrepancy_step(network, images, differ, labelled_loss(next(labelled).to(cycle.device)))
            with cycle.clock.phase("train"):
                losses = self._supervised_epoch(cycle, main, epoch, next(positions_of), labelled_loss)
                check_finite(torch.stack(losses), cycle, epoch)
        network.eval()
        self._heads.eval()
        return float(torch.stack(losses).mean())

    def _supervised_epoch(
        self, cycle: Cycle, optimiser: Any, epoch: int, batches: list[torch.Tensor], labelled_loss: Any
    ) -> list[torch.Tensor]:
        from harness.learning import learning_rate

        for group in optimiser.param_groups:
            group["lr"] = learning_rate(cycle.recipe, epoch)
        losses = []
        for positions in batches:
            loss = labelled_loss(positions.to(cycle.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return losses

    def agreement_step(self, network: Network, images: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Change the backbone, and nothing else, so that the heads agree; sure images count more."""
        scores = self.scores(network(images))
        weight = (1 - (entropy(scores) - self.settings.tau).sigmoid()).detach() / len(images)
        _step(optimiser, (weight * difference(scores)).mean())

    def discrepancy_step(
        self, network: Network, images: torch.Tensor, optimiser: torch.optim.Optimizer, labelled: torch.Tensor
    ) -> None:
        """Change the heads, and nothing else, so that they differ; unsure images count more."""
        features = network(images).features.detach()
        scores = [head(features) for head in self._heads]
        weight = (entropy(scores) - self.settings.tau).sigmoid().detach() / len(images)
        _step(optimiser, (weight * (1 - difference(scores))).mean() + labelled)

    def scores(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return each head's class scores [B, C] in 0..1."""
        return [head(outputs.features) for head in self._heads]

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return both heads' binary cross-entropy, summed over classes, averaged over the batch."""
        targets = F.one_hot(labels, self.num_classes).float()
        losses = [F.binary_cross_entropy(scores, targets, reduction="none") for scores in self.scores(outputs)]
        return sum(losses[1:], losses[0]).sum(1).mean()

    def predict(self, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        """Return both heads' scores: each is tested."""
        return self.scores(network(images))

    def state(self) -> dict[str, torch.Tensor]:
        """Return the heads' weights."""
        return self._carried if self._heads is None else self._heads.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the heads' weights, once they are built."""
        self._carried = state

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the heads' weights."""
        return self.state()

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``: the heads' mean entropy."""
        features = network(images).features
        if self._heads is None:  # on a scoring worker
            self._heads = self._make_heads(features.shape[1], 0, features.device).eval()
        self._heads.load_state_dict(prepared)
        return {"score": entropy([head(features) for head in self._heads])}

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the heads' parameters less those of the classifier that they replace."""
        replaced = sum(p.numel() for p in cycle.network.classifier.parameters())
        return sum(v.numel() for v in self.state().values()) - replaced


def _shuffled(count: int, recipe: Any, generator: torch.Generator) -> Iterator[list[torch.Tensor]]:
    from harness.learning import batches

    while True:
        yield batches(count, recipe, generator)


def _step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    active = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=active)
    optimiser.step()


def entropy(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over heads of the entropy [B], in bits, of scores normalised over classes (Eq. 3)."""
    total = torch.zeros_like(scores[0][:, 0])
    for head in scores:
        p = head / head.sum(1, keepdim=True)
        total = total - torch.xlogy(p, p).sum(1)
    return total / (len(scores) * torch.log(torch.tensor(2.0)))


def difference(scores: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over classes of the heads' absolute difference [B]."""
    return (scores[0] - scores[1]).abs().mean(1)

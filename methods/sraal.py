"""SRAAL: state-relabelling adversarial active learning (Zhang et al., CVPR 2020).

SRAAL changes VAAL in two ways. Half of the latent also learns the labels. The discriminator's target for an unlabelled
image is "relabelled" by the target network's uncertainty U about it (the online uncertainty indicator): an image about
which the target is confident counts as nearly labelled.

Known differences from the paper and its authors' code:
- Signs: the authors' discriminator learns labelled = 0 and unlabelled = U, but their generator pushes all images to 1,
  which makes labelled images look unlabelled. Here the signs agree: labelled is 1, unlabelled is 1 - U, the generator
  pushes towards 1, and the lowest output is selected. A cross-entropy with soft targets, which is always defined,
  replaces the paper's log of a difference.
- Var(V) of the indicator is the population variance, like MinVar; the code divides one by C - 1 and the other by C.
- The paper's label loss is a cross-entropy plus a KL term; in the code, and here, it is only the cross-entropy.
- Training images are flipped but not cropped; images are scored without augmentation, with batch norm in evaluation
  mode. The code crops and flips both, and scores in training mode. The discriminator's step draws new flips.
- In the decoder, batch norm always comes before the ReLU; in the code, the two are swapped once.
- Images of other sizes are resized to ``side`` x ``side`` pixels.
- All methods start from one random set, as in DAST-AL's comparison; SRAAL's paper uses ``initial_set: k_center``.
- As in the code, U is computed once per cycle; here it is computed without augmentation, in evaluation mode.
- U is that of the target. In the code it is that of another ResNet-18, which is trained anew in each cycle, for 200
  epochs at a constant rate of 0.1: the paper computes U from the target, and a second target would double the training.
- The discriminator's cross-entropy is computed from logits; in the code from sigmoids, with logarithms clamped at -100.
- A last batch of one unlabelled image is left out; in the code it is trained on.
- Each generator step uses the labels of its own batch; in the code, the second step uses the labels of the first.
- On CIFAR-10, z is 32 and the batch size 128, as in DAST-AL's Table 4 (the code's defaults, for CIFAR-100, are 200 and
  250).
- If pixels have labels, U is the mean over positions, and the label head learns which classes an image contains. No
  public code shows what it learned in the paper.
- Only the candidates are ranked (the protocol of the comparison); the networks are trained on all images, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.data.rows import take
from harness.lazy import F, torch
from harness.learning.contract import Acquisition, Batch
from harness.learning.fit import built
from harness.learning.inference import inferred
from harness.learning.labels import per_position
from harness.settings import Channels, Parts, Rate, Recipe, Steps, Weight

from ._adversarial import Game, GameSettings, game_bytes, game_passes, unlabelled_score
from ._k_center import k_center
from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Ahead, Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network

FIRST_CENTERS = 10  # images from which the k-center initial set grows (public re-implementation)
DECAYS = 30  # steps of the learning rate per cycle (authors' code)


class SRAAL(Acquisition):
    """Selects the images that the discriminator, trained with relabelling, classifies as unlabelled."""

    class Settings(GameSettings):
        """Defaults: the authors' code, but latent and batch size are those of DAST-AL's Table 4."""

        latent: Channels = Field(32, ge=2, description="entries of the latent, z; each half has its own use")
        discriminator_layers: Parts = Field(5, ge=2, description="linear layers")
        iterations: Steps = Field(20000, description="discriminator steps in each cycle")
        reconstruction: Weight = Field(5.0, description="weight of the mean squared error")
        supervision: Weight = Field(5.0, description="weight of the label loss")
        decay: Rate = Field(0.85, description="factor of the learning rate after each 1/30 of the iterations")
        initial_set: Literal["shared", "k_center"] = Field(
            "shared", description="labelled images of cycle 0: the set of all methods, or k-center on latents"
        )

    settings: Settings

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()

    @classmethod
    def draws_first(cls, settings: Any) -> bool:
        """Return True for ``k_center``, as in SRAAL's paper; DAST-AL compares all methods from one random set."""
        return settings.initial_set == "k_center"

    def first(self, cycle: Cycle) -> torch.Tensor:
        """Return the k-center selection on the latents of an autoencoder that is trained on all images, without a game.

        Only the decoded half of the latent is used, because nothing trains the other half. The first centers are the
        first ten images of the shared set, as in the public re-implementation.
        """
        with cycle.clock.phase("auxiliary"):
            latents = self._game(cycle, "sraal initial set").latents()
            self.module = None
            first = cycle.labelled[:FIRST_CENTERS]
            is_center = torch.zeros(len(latents), dtype=torch.bool, device=cycle.device)
            is_center[first] = True
            others = (~is_center).nonzero()[:, 0]
            rows = k_center(latents[others], latents[first], len(cycle.labelled) - len(first))
        return torch.cat([first, others[rows]])

    def networks(self, channels: int) -> torch.nn.ModuleDict:
        """Return new networks: the autoencoder decodes the first half of the latent, ``labels`` reads the second."""
        from ._modules import Autoencoder, discriminator, label_head

        s, half = self.settings, self.settings.latent // 2
        return torch.nn.ModuleDict(
            {
                "autoencoder": Autoencoder(channels, s.width, s.latent, half, s.side),
                "labels": label_head(s.latent - half, self.num_classes),
                "discriminator": discriminator(s.latent, s.discriminator_layers),
            }
        )

    @classmethod
    def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
        """Return the bytes of the pool's resized images, which the game reads on the device."""
        return game_bytes(settings, ahead)

    @classmethod
    def extra_passes(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return the number of labelled and unlabelled images in all steps of both networks."""
        return game_passes(settings)

    def _game(self, cycle: Cycle, purpose: str) -> Game:
        channels = cycle.images.pixels.shape[3]
        self.module = built(lambda: self.networks(channels), cycle.key(f"{purpose} weights"), cycle.device)
        return Game(cycle, self.settings, self.module, purpose)

    def prepare(self, cycle: Cycle) -> Columns:
        """Train new networks; return their weights."""
        with cycle.clock.phase("auxiliary"):
            game = self._game(cycle, "sraal")
            label_targets = targets(cycle, self.num_classes)
            by_index = label_targets.new_zeros(len(cycle.images.pixels), *label_targets.shape[1:])
            by_index[cycle.labelled] = label_targets
            game.play(certainty(cycle), self.decay, lambda latent, index: self.label_loss(latent, by_index[index]))
        return dict(self.module.state_dict())

    def label_loss(self, latent: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Return the weighted label loss of the second half of latents [B, z]; ``expected`` are their ``targets``."""
        logits = self.module["labels"](latent[:, self.settings.latent // 2 :])
        loss = F.cross_entropy if expected.ndim == 1 else F.binary_cross_entropy_with_logits
        return self.settings.supervision * loss(logits, expected)

    def decay(self, iteration: int) -> float:
        """Return the factor of the learning rate in an iteration: one decay per 1/30 of the iterations."""
        passed = iteration // max(1, self.settings.iterations // DECAYS)
        return float(self.settings.decay ** min(passed, DECAYS))

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: the discriminator's logit for "labelled", negated."""
        networks = self._restored(lambda: self.networks(batch.images.shape[1]), prepared)
        return {"score": unlabelled_score(networks, batch.images, network.precision)}

    def state(self) -> dict[str, torch.Tensor]:
        """Return nothing: the networks are new in each cycle."""
        return {}


def certainty(cycle: Cycle) -> torch.Tensor:
    """Return 1 - U of each unlabelled image, averaged over positions."""

    def mean_certainty(images: torch.Tensor) -> torch.Tensor:
        maps = per_position(lambda logits: uncertainty(logits.softmax(1)), cycle.network(images).logits)
        return 1 - maps.view(len(images), -1).mean(1)

    return inferred(cycle, cycle.unlabelled, mean_certainty, "sraal's pass over the unlabelled images")


def targets(cycle: Cycle, num_classes: int) -> torch.Tensor:
    """Return the labels [L] of the labelled images; for label maps, which classes each contains [L, C], 0 or 1."""
    positions = torch.arange(len(cycle.labels), device=cycle.device)
    if cycle.labels.ndim == 1:
        return cycle.labels[positions]
    classes = torch.arange(num_classes, device=cycle.device)
    maps = take(cycle.labels, positions.split(cycle.recipe.inference_batch_size))
    return torch.cat([torch.stack([(m.flatten(1) == c).any(1) for c in classes], 1) for m in maps]).float()


def uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Return U = 1 - max V x MinVar(V) / Var(V) of class probabilities [B, C], in 0..1.

    MinVar is the smallest variance of a vector with the maximum m, where all other entries are equal:
    (m - 1/C)^2 / (C - 1). For a uniform vector, 0/0, U is 1, because no vector is more uncertain.
    """
    classes = probabilities.shape[1]
    highest = probabilities.amax(1)
    variance = probabilities.var(1, correction=0)
    smallest = (highest - 1 / classes).square() / (classes - 1)
    ratio = torch.where(variance > 0, smallest / variance.clamp(min=torch.finfo(variance.dtype).tiny), 0.0)
    return (1 - highest * ratio.clamp(max=1)).clamp(0, 1)

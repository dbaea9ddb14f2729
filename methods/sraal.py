"""SRAAL: state-relabelling adversarial active learning (Zhang et al., CVPR 2020).

VAAL with two changes. Half of the latent also learns the labels; and the discriminator's target for an unlabelled image
is "relabelled" by the target network's uncertainty U about it (the online uncertainty indicator): an image that the
target is sure of counts as nearly labelled.

Known differences from the paper and its authors' code:
- Signs. The authors' discriminator learns labelled = 0 and unlabelled = U, while their generator pushes both pools to
  1, which makes labelled images look unlabelled. Here they agree: labelled 1, unlabelled 1 - U, generator towards 1,
  lowest answer bought. The paper's log of a difference becomes a cross-entropy with soft targets: always defined.
- Var(V) of the indicator is the population variance, as MinVar is; the code divides one by C - 1 and the other by C.
- The paper's label loss is a cross-entropy and a KL term; the code's, and this one, the cross-entropy alone.
- Training images are flipped, not cropped as well; those that are scored are plain, with batch norm in evaluation mode.
  The code crops and flips both, and scores in training mode. The discriminator's step draws its flips anew.
- In the decoder batch norm comes before the ReLU everywhere; in the code the two are out of order once.
- Images of other sizes are resized to ``side`` x ``side`` pixels.
- All methods start from one random set, as DAST-AL compares them; the paper's own is ``initial_set: k_center``.
- U is computed once per cycle, as in the code, from plain images in evaluation mode.
- Each generator step uses the labels of its own batch; in the code the second step has the first one's.
- z = 32 and batch 128 on CIFAR-10: the size that DAST-AL's Table 4 gives (the code's default, for CIFAR-100, is z = 200
  and batch 250).
- Where pixels have labels, U is the mean over places and the label head learns which classes an image has: no code says
  what it learned there.
- The candidate subset is ranked (the comparison's protocol); the networks are trained on all images, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.lazy import F, torch

from .vaal import VAAL as _VAAL

if TYPE_CHECKING:
    from harness.learning.cycle import Cycle

FIRST_CENTERS = 10  # from which the k-center initial set grows (public re-implementation)
DECAYS = 30  # of the learning rate in a cycle (authors' code)


class SRAAL(_VAAL):
    """Buys the images that the discriminator holds least for labelled, after relabelling by uncertainty."""

    class Settings(_VAAL.Settings):
        """The values of the authors' code, at the size that DAST-AL compared."""

        latent: int = Field(32, ge=2, description="entries of the latent, z; each half has a use of its own")
        discriminator_layers: int = Field(5, ge=2, description="linear layers")
        iterations: PositiveInt = 20000
        reconstruction: NonNegativeFloat = Field(5.0, description="weight of the mean squared error")
        supervision: NonNegativeFloat = Field(5.0, description="weight of the label loss")
        decay: PositiveFloat = Field(0.85, description="the learning rate falls by it with each 1/30 of the iterations")
        initial_set: Literal["shared", "k_center"] = Field(
            "shared", description="labelled images of cycle 0: those of all methods, or k-center in latent space"
        )

    name = "sraal"

    @classmethod
    def own_initial_set(cls, settings: Any) -> bool:
        """Return True for ``k_center``, the paper's; DAST-AL compares all methods from one random set."""
        return settings.initial_set == "k_center"

    def initial_set(self, cycle: Cycle) -> torch.Tensor:
        """Return the k-center picks among the latents of an autoencoder trained alone on all images.

        Only the half of the latent that is decoded counts: nothing shapes the other one. The first centers are the
        first ten images of the shared set, as in the public re-implementation.
        """
        from ._adversarial import Game
        from .core_set import k_center

        with cycle.clock.phase("auxiliary"):
            latents = Game(self, cycle, "sraal initial set").latents()
            first = cycle.labelled[:FIRST_CENTERS]
            is_center = torch.zeros(len(latents), dtype=torch.bool, device=cycle.device)
            is_center[first] = True
            others = (~is_center).nonzero()[:, 0]
            picks = k_center(latents[others], latents[first], len(cycle.labelled) - len(first))
        return torch.cat([first, others[picks]])

    def networks(self, channels: int) -> torch.nn.ModuleDict:
        """Return new networks: the autoencoder decodes the first half of the latent, ``labels`` reads the second."""
        from ._modules import Autoencoder, discriminator, label_head

        latent, half = self.settings.latent, self.settings.latent // 2
        return torch.nn.ModuleDict(
            {
                "autoencoder": Autoencoder(channels, self.settings.width, latent, half, self.settings.side),
                "labels": label_head(latent - half, self.num_classes),
                "discriminator": discriminator(latent, self.settings.discriminator_layers),
            }
        )

    def unlabelled_targets(self, cycle: Cycle) -> torch.Tensor:
        """Return 1 - U of each unlabelled image."""
        from harness.learning.inference import inferred
        from harness.learning.labels import as_rows

        def certainty(images: torch.Tensor) -> torch.Tensor:
            probabilities = as_rows(cycle.network(images).logits).softmax(1)
            return 1 - uncertainty(probabilities).view(len(images), -1).mean(1)

        return inferred(cycle, cycle.unlabelled, certainty, "sraal's pass over the unlabelled images")

    def supervision(self, cycle: Cycle) -> torch.Tensor:
        """Return the labels [L], or of maps which classes each has [L, C], 0 or 1."""
        from harness.data.rows import taken

        if cycle.labels.ndim == 1:
            return cycle.labels[torch.arange(len(cycle.labels), device=cycle.device)]
        classes = torch.arange(self.num_classes, device=cycle.device)
        positions = torch.arange(len(cycle.labels), device=cycle.device).split(cycle.recipe.inference_batch_size)
        maps = taken(cycle.labels, positions)
        return torch.cat([torch.stack([(m.flatten(1) == c).any(1) for c in classes], 1) for m in maps]).float()

    def supervised(self, networks: torch.nn.ModuleDict, latent: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the weighted label loss of the latent's second half."""
        logits = networks["labels"](latent[:, self.settings.latent // 2 :])
        loss = F.cross_entropy if known.ndim == 1 else F.binary_cross_entropy_with_logits
        return self.settings.supervision * loss(logits, known)

    def decay(self, iteration: int) -> float:
        """Return the factor of the learning rate in an iteration."""
        passed = iteration // max(1, self.settings.iterations // DECAYS)
        return float(self.settings.decay ** min(passed, DECAYS))


def uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Return U = 1 - max V x MinVar(V) / Var(V) of class probabilities [B, C], in 0..1.

    MinVar is the smallest variance that a vector with this maximum can have, the rest spread evenly:
    (m - 1/C)^2 / (C - 1). A uniform vector, 0/0, counts as 1: nothing is more uncertain.
    """
    classes = probabilities.shape[1]
    highest = probabilities.amax(1)
    variance = probabilities.var(1, correction=0)
    smallest = (highest - 1 / classes).square() / (classes - 1)
    ratio = torch.where(variance > 0, smallest / variance.clamp(min=torch.finfo(variance.dtype).tiny), 0.0)
    return (1 - highest * ratio.clamp(max=1)).clamp(0, 1)

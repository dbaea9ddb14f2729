"""VAAL: variational adversarial active learning (Sinha et al., ICCV 2019).

A variational autoencoder and a discriminator of labelled and unlabelled latents are trained on all images. VAAL selects
the candidates that the discriminator classifies as unlabelled with the highest confidence. It does not change the
target network, so it shares the first cycle with all methods that have the same training.

Known differences from the paper and its public code:
- The target is trained by the recipe of all methods; the public code leaves the target in evaluation mode after its
  first validation.
- The KL term is averaged over the batch (``kl: per_image``); the public code sums it (``batch_sum``), so its weight
  grows with the batch size. ``per_dimension`` also averages over the latent's entries, which prevents the autoencoder
  from collapsing.
- The discriminator has 3 linear layers, as in the public code; the paper describes 5.
- Images are normalised by the dataset's mean and std, and scored without augmentation, with batch norm in evaluation
  mode; the public code scores flipped images in training mode.
- Images of other sizes are resized to 32 x 32, as the author states for ImageNet. The setting ``side``, which the code
  lacks, allows larger images, so that street scenes lose less detail.
- The public code holds 5000 images out of the pool, and tests the target that is best on them. Here, as for all
  methods, every image is in the pool, and the target is tested after its last epoch.
- The discriminator's cross-entropy is computed from logits; in the public code from sigmoids, with logarithms clamped
  at -100. The values are the same unless the discriminator is certain and wrong.
- A last batch of one unlabelled image is left out; in the public code it is trained on.
- The discriminator's step draws new flips; in the public code it uses those of the last autoencoder step.
- Only the candidates are ranked (the protocol of the comparison); the networks are trained on all images, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.lazy import torch
from harness.learning.contract import Acquisition, Batch
from harness.learning.fit import built
from harness.settings import Recipe

from ._adversarial import Game, GameSettings, game_bytes, game_passes, unlabelled_score
from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Ahead, Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class VAAL(Acquisition):
    """Selects the images that the discriminator classifies as unlabelled."""

    class Settings(GameSettings):
        """The defaults are the values of the public code."""

    settings: Settings
    needs = frozenset()  # the target is not used

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()

    def networks(self, channels: int) -> torch.nn.ModuleDict:
        """Return new networks: ``autoencoder`` and ``discriminator``."""
        from ._modules import Autoencoder, discriminator

        s = self.settings
        return torch.nn.ModuleDict(
            {
                "autoencoder": Autoencoder(channels, s.width, s.latent, s.latent, s.side),
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

    def prepare(self, cycle: Cycle) -> Columns:
        """Train new networks; return their weights."""
        channels = cycle.images.pixels.shape[3]
        with cycle.clock.phase("auxiliary"):
            self.module = built(lambda: self.networks(channels), cycle.key("vaal weights"), cycle.device)
            game = Game(cycle, self.settings, self.module, "vaal")
            game.play(torch.zeros(len(cycle.unlabelled), device=cycle.device))
        return dict(self.module.state_dict())

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``: the discriminator's logit for "labelled", negated."""
        networks = self._restored(lambda: self.networks(batch.images.shape[1]), prepared)
        return {"score": unlabelled_score(networks, batch.images, network.precision)}

    def state(self) -> dict[str, torch.Tensor]:
        """Return nothing: the networks are new in each cycle."""
        return {}

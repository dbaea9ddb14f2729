"""VAAL: variational adversarial active learning (Sinha et al., ICCV 2019).

A variational autoencoder and a discriminator of labelled against unlabelled latents are trained on all images; the
candidates whose latent mean looks least labelled are bought. The target network is trained by the suite's recipe and
never touched, so the first cycle is the plain network's.

Known differences from the paper and its public code:
- The target is trained by the recipe of all methods; the public code's loop leaves it in evaluation mode after its
  first validation.
- The KL term is averaged over the batch (``per_image``); the public code sums it (``batch_sum``), and its weight then
  grows with the batch. ``per_dimension`` averages over the latent's entries too, which keeps the autoencoder from
  collapsing.
- The public code's discriminator with 3 linear layers is used; the paper speaks of 5.
- Images are normalised by the dataset's mean and std and, at scoring, plain, with batch norm in evaluation mode; the
  public code scores flipped images in training mode.
- Images of other sizes are resized to 32 x 32, as the author says was done for ImageNet; ``side`` may be larger, which
  the code does not have: street scenes lose less.
- The discriminator's step draws its flips anew; in the public code it sees the last autoencoder step's.
- The candidate subset is ranked (the comparison's protocol); the networks are trained on all images, as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.lazy import torch
from harness.learning.contract import Acquisition
from harness.settings import Recipe, Strict

from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class VAAL(Acquisition):
    """Buys the images that the discriminator holds least for labelled."""

    class Settings(Strict):
        """The values of the public code."""

        latent: PositiveInt = Field(32, description="entries of the latent, z")
        width: PositiveInt = Field(128, description="channels of the autoencoder's first layer")
        side: int = Field(32, ge=16, multiple_of=16, description="images are resized to this height and width, pixels")
        discriminator_layers: int = Field(3, ge=2, description="linear layers; the paper speaks of 5")
        iterations: PositiveInt = Field(39062, description="50 000 x 100 / 128")
        generator_steps: PositiveInt = Field(2, description="steps of the autoencoder for each of the discriminator")
        batch_size: PositiveInt = 128
        learning_rate: PositiveFloat = Field(5e-4, description="Adam, autoencoder and discriminator")
        reconstruction: NonNegativeFloat = Field(1.0, description="weight of the mean squared error")
        beta: NonNegativeFloat = Field(1.0, description="weight of the KL term")
        adversary: NonNegativeFloat = Field(1.0, description="weight of the adversarial term, lambda_2")
        kl: Literal["per_image", "batch_sum", "per_dimension"] = "per_image"

    name = "vaal"

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()

    def networks(self, channels: int) -> torch.nn.ModuleDict:
        """Return new networks: ``autoencoder`` and ``discriminator``."""
        from ._modules import Autoencoder, discriminator

        settings, latent = self.settings, self.settings.latent
        return torch.nn.ModuleDict(
            {
                "autoencoder": Autoencoder(channels, settings.width, latent, latent, settings.side),
                "discriminator": discriminator(latent, settings.discriminator_layers),
            }
        )

    def unlabelled_targets(self, cycle: Cycle) -> torch.Tensor:
        """Return what the discriminator should answer for each of ``cycle.unlabelled`` (1: labelled)."""
        return torch.zeros(len(cycle.unlabelled), device=cycle.device)

    def supervision(self, cycle: Cycle) -> torch.Tensor | None:
        """Return what else the autoencoder learns of each of ``cycle.labelled``: nothing."""
        return None

    def supervised(self, networks: torch.nn.ModuleDict, latent: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the loss of learning it, for rows of ``supervision``."""
        raise NotImplementedError

    def decay(self, iteration: int) -> float:
        """Return the factor of the learning rate in an iteration."""
        return 1.0

    @classmethod
    def preparation_images(cls, settings: Any, recipe: Recipe, labelled: int) -> int:
        """Return the labelled and unlabelled images of all steps of both networks."""
        return int(settings.iterations * (settings.generator_steps + 1) * 2 * settings.batch_size)

    def prepare(self, cycle: Cycle) -> Columns:
        """Train autoencoder and discriminator anew; return their weights."""
        from ._adversarial import Game

        with cycle.clock.phase("auxiliary"):
            game = Game(self, cycle, self.name)
            game.check(game.play())
        return dict(game.networks.state_dict())

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``: minus the logit that the image is labelled."""
        from harness.data.images import resized

        from ._adversarial import autocast

        networks = self._restored(lambda: self.networks(images.shape[1]), prepared)
        with autocast(network.precision, images.device):
            mean, _ = networks["autoencoder"].encode(resized(images, self.settings.side))
        return {"score": -networks["discriminator"](mean)[:, 0]}

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the parameters of autoencoder and discriminator."""
        from ._modules import num_parameters

        with torch.device("meta"):
            return num_parameters(self.networks(cycle.images.pixels.shape[3]))

"""The adversarial game of VAAL and SRAAL: an autoencoder against a discriminator of labelled and unlabelled latents.

The methods pass in the networks, the discriminator's targets, a learning rate schedule and a supervision loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.data.images import resized
from harness.lazy import F, torch
from harness.learning.fit import check_finite, shuffled, step
from harness.settings import BatchSize, Channels, Parts, Rate, Rounds, Side, Steps, Strict, Weight

if TYPE_CHECKING:
    from harness.learning.contract import Ahead
    from harness.learning.cycle import Cycle

CHECKED_EVERY = 500  # iterations between two checks of the losses: a check synchronises
NEAR = 0.03  # fraction of the difference of chance and lowest loss: a discriminator this close to either is stuck
COLLAPSED = 0.1  # KL, in nats, below which the latent hardly depends on the image
HEALTH_SAMPLE = 1000  # images on which health is measured


class GameSettings(Strict):
    """The settings of the game; the defaults are those of VAAL's public code."""

    latent: Channels = Field(32, description="entries of the latent, z")
    width: Channels = Field(128, description="channels of the autoencoder's first layer")
    side: Side = Field(32, ge=16, multiple_of=16, description="images are resized to this height and width, pixels")
    discriminator_layers: Parts = Field(3, ge=2, description="linear layers; the paper describes 5")
    iterations: Steps = Field(39062, description="discriminator steps in each cycle; default: 50 000 x 100 / 128")
    generator_steps: Rounds = Field(2, description="autoencoder steps per discriminator step")
    batch_size: BatchSize = Field(128, description="labelled images in each step, and as many unlabelled ones")
    learning_rate: Rate = Field(5e-4, description="Adam, autoencoder and discriminator")
    reconstruction: Weight = Field(1.0, description="weight of the mean squared error")
    beta: Weight = Field(1.0, description="weight of the KL term")
    adversary: Weight = Field(1.0, description="weight of the adversarial term, lambda_2")
    kl: Literal["per_image", "batch_sum", "per_dimension"] = Field(
        "per_image",
        description="the KL term is averaged over images, summed, or also averaged over the latent's entries",
    )


def game_passes(settings: GameSettings) -> int:
    """Return the number of labelled and unlabelled images in all steps of both networks, if all batches are full."""
    return settings.iterations * (settings.generator_steps + 1) * 2 * settings.batch_size


def game_bytes(settings: GameSettings, ahead: Ahead) -> int:
    """Return the bytes of all training images at ``side`` x ``side`` pixels; 0 if they have that size anyway."""
    side, info = settings.side, ahead.info
    return 0 if info.size == (side, side) else info.num_train * side * side * info.channels


class Endless:
    """Shuffled batches of indices forever; the incomplete last batch of each pass only with ``keep_last``.

    A last batch of one image is left out, because batch norm can't normalise a single image.
    """

    def __init__(self, indices: torch.Tensor, batch: int, generator: torch.Generator, keep_last: bool = False) -> None:
        self.indices, self.generator = indices, generator
        self.size = min(batch, len(indices))
        self.smallest = min(2, self.size) if keep_last else self.size
        self.left = indices[:0]
        """What this pass has not given yet."""

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> torch.Tensor:
        if len(self.left) < self.smallest or not len(self.left):
            self.left = self.indices[shuffled(len(self.indices), self.generator, self.indices.device)]
        part, self.left = self.left[: self.size], self.left[self.size :]
        return part


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of the autoencoder, in the target network's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return KL(q || N(0, 1)) of each image [B], in nats, summed over latent entries."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def unlabelled_score(networks: torch.nn.ModuleDict, images: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the negated logit [B] for "labelled" of images [B, channels, H, W]; higher = more likely unlabelled."""
    autoencoder: Any = networks["autoencoder"]
    with autocast(precision, images.device):
        mean, _ = autoencoder.encode(resized(images, autoencoder.side))
    return -networks["discriminator"](mean)[:, 0]


class Game:
    """An autoencoder, a discriminator, and the steps that train them.

    ``networks`` holds ``autoencoder``, ``discriminator`` and any other networks that the generator's steps train.
    Images are flipped but not cropped (as in VAAL's public code), and run in the target network's precision.
    ``purpose`` names the random streams, and the method in warnings.
    """

    def __init__(self, cycle: Cycle, settings: GameSettings, networks: torch.nn.ModuleDict, purpose: str) -> None:
        self.cycle, self.settings, self.networks, self.purpose = cycle, settings, networks.train(), purpose
        if cycle.recipe.precision == "bfloat16":
            self.networks.to(memory_format=torch.channels_last)
        self.autoencoder: Any = networks["autoencoder"]
        self.discriminator: Any = networks["discriminator"]
        generator = [p for name, part in networks.items() if name != "discriminator" for p in part.parameters()]
        self.generator_optimiser = torch.optim.Adam(generator, settings.learning_rate)
        self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), settings.learning_rate)
        self.draws = cycle.stream(f"{purpose} draws", on_device=True)
        self.images = cycle.images.resized(settings.side)

    def kl_weight(self, batch: int) -> float:
        """Return the weight of a batch's mean KL per image."""
        divisor = {"per_image": 1, "batch_sum": 1 / batch, "per_dimension": self.settings.latent}
        return float(self.settings.beta / divisor[self.settings.kl])

    def inputs(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the autoencoder's augmented inputs [B, channels, side, side] for images with these indices."""
        return self.images.augmented(indices, self.draws, crop=False)

    def encoded(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (autoencoder loss, latent means [B, z], sampled latents [B, z]) of a batch."""
        images = self.inputs(indices)
        with autocast(self.cycle.recipe.precision, self.cycle.device):
            mean, log_variance = self.autoencoder.encode(images)
            noise = torch.randn(mean.shape, generator=self.draws, device=mean.device)
            latent = mean + noise * (log_variance / 2).exp()
            decoded = self.autoencoder.decode(latent)
        kl = kl_divergence(mean, log_variance).mean()
        error = F.mse_loss(decoded, images)
        return self.settings.reconstruction * error + self.kl_weight(len(images)) * kl, mean, latent

    def classified(self, means: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's cross-entropy on latent means [B, z] with targets [B] in 0..1 (1: labelled)."""
        return F.binary_cross_entropy_with_logits(self.discriminator(means)[:, 0], targets)

    def generator_step(
        self,
        labelled: torch.Tensor,
        unlabelled: torch.Tensor,
        supervision: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Update all networks except the discriminator so that all images look labelled; return the loss."""
        loss_l, mean_l, latent_l = self.encoded(labelled)
        loss_u, mean_u, _ = self.encoded(unlabelled)
        fooled = sum(self.classified(mean, torch.ones_like(mean[:, 0])) for mean in (mean_l, mean_u))
        loss = loss_l + loss_u + self.settings.adversary * fooled
        if supervision is not None:
            loss = loss + supervision(latent_l, labelled)
        return step(self.generator_optimiser, loss)

    def discriminator_step(
        self, labelled: torch.Tensor, unlabelled: torch.Tensor, target_of: torch.Tensor
    ) -> torch.Tensor:
        """Update the discriminator towards the targets ``target_of[index]``; return its mean loss."""
        with torch.no_grad(), autocast(self.cycle.recipe.precision, self.cycle.device):
            means = [self.autoencoder.encode(self.inputs(indices))[0] for indices in (labelled, unlabelled)]
        loss = self.classified(means[0], target_of[labelled]) + self.classified(means[1], target_of[unlabelled])
        return step(self.discriminator_optimiser, loss) / 2

    def play(
        self,
        unlabelled_targets: torch.Tensor,
        decay: Callable[[int], float] = lambda iteration: 1.0,
        supervision: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Train all networks and record their health.

        ``unlabelled_targets`` [U]: the discriminator's target for each unlabelled image; 1 means labelled.
        ``decay``: iteration -> factor of the learning rate. ``supervision``: (sampled latents [B, z], indices [B]) of
        labelled images -> a loss that the generator also minimises.

        An iteration runs ``generator_steps`` steps, each on a new pair of batches, then one discriminator step on the
        last pair (as in the public code of both methods). Losses stay on the device. Raises NonFiniteLoss.
        """
        cycle, iterations, size = self.cycle, self.settings.iterations, self.settings.batch_size
        target_of = torch.ones(len(cycle.images.pixels), device=cycle.device)
        target_of[cycle.unlabelled] = unlabelled_targets
        order = cycle.stream("adversarial order")
        labelled = Endless(cycle.labelled, size, order)
        unlabelled = Endless(cycle.unlabelled, size, order, keep_last=True)  # as in the public code of both methods
        pending: list[torch.Tensor] = []
        last: list[torch.Tensor] = []
        batches = {"labelled": labelled, "unlabelled": unlabelled}
        for iteration in cycle.steps(iterations, game=self, **batches, pending=pending, last=last):
            rate = self.settings.learning_rate * decay(iteration)
            for optimiser in (self.generator_optimiser, self.discriminator_optimiser):
                optimiser.param_groups[0]["lr"] = rate
            for _ in range(self.settings.generator_steps):
                pair = next(labelled), next(unlabelled)
                generator_loss = self.generator_step(*pair, supervision)
            discriminator_loss = self.discriminator_step(*pair, target_of)
            pending.append(generator_loss + discriminator_loss)
            if iteration >= iterations - max(1, iterations // 10):
                last.append(discriminator_loss)
            if len(pending) == CHECKED_EVERY or iteration == iterations - 1:
                self._check(pending, "adversarial", iteration)
                pending.clear()
        self.networks.eval()
        self.networks.zero_grad(set_to_none=True)  # the networks are kept until the next cycle
        targets = torch.cat([torch.ones_like(unlabelled_targets), unlabelled_targets])
        check_discriminator(cycle, self.purpose, torch.stack(last).tolist(), targets)
        self.check_autoencoder(self.purpose)

    def _check(self, losses: list[torch.Tensor], kind: str, iteration: int) -> None:
        first = iteration + 1 - len(losses)
        check_finite(torch.stack(losses), self.cycle, f"{self.purpose.split()[0]}, {kind}", first)

    def latents(self) -> torch.Tensor:
        """Train only the autoencoder, on all images; return the decoded part of their latent means [N, decoded]."""
        cycle = self.cycle
        everything = torch.arange(len(cycle.images.pixels), device=cycle.device)
        batches = Endless(everything, self.settings.batch_size, cycle.stream("autoencoder order"))
        losses: list[torch.Tensor] = []
        for iteration in cycle.steps(self.settings.iterations, game=self, batches=batches, losses=losses):
            losses.append(step(self.generator_optimiser, self.encoded(next(batches))[0]))
            if len(losses) == CHECKED_EVERY or iteration == self.settings.iterations - 1:
                self._check(losses, "autoencoder", iteration)
                losses.clear()
        self.check_autoencoder(self.purpose)
        means = []
        with torch.no_grad(), autocast(cycle.recipe.precision, cycle.device):
            for indices in everything.split(cycle.recipe.inference_batch_size):
                means.append(self.autoencoder.encode(self.images.unaugmented(indices))[0])
        return torch.cat(means)[:, : self.autoencoder.decoded]

    def check_autoencoder(self, name: str) -> None:
        """Record explained variance (1 - MSE / Var) and KL in nats on unaugmented images, and warn of a collapse."""
        cycle = self.cycle
        indices = torch.cat([cycle.labelled, cycle.unlabelled])
        order = torch.randperm(len(indices), generator=cycle.stream("health"))[:HEALTH_SAMPLE]
        self.autoencoder.eval()
        errors, kls, pixels = [], [], []
        for part in indices[order.to(indices.device)].split(cycle.recipe.inference_batch_size):
            images = self.images.unaugmented(part)
            with torch.no_grad(), autocast(cycle.recipe.precision, cycle.device):
                mean, log_variance = self.autoencoder.encode(images)
                decoded = self.autoencoder.decode(mean)
            errors.append((decoded - images).square().mean((1, 2, 3)))
            kls.append(kl_divergence(mean, log_variance))
            pixels.append(images)
        variance = torch.cat(pixels).var(0, correction=0).mean()
        explained, kl = float(1 - torch.cat(errors).mean() / variance), float(torch.cat(kls).mean())
        cycle.health.update(explained_variance=explained, kl_nats=kl)
        if kl < COLLAPSED:
            cycle.warnings.append(f"{name}: the autoencoder has collapsed: its KL is below {COLLAPSED} nats")
        elif explained <= 0:  # only the adversary shapes the latent
            cycle.warnings.append(f"{name}: the autoencoder reconstructs no better than the mean image")


def check_discriminator(cycle: Cycle, name: str, losses: list[float], targets: torch.Tensor) -> None:
    """Record the discriminator's mean loss, and warn if it is at chance or perfect.

    ``targets`` are those of labelled and unlabelled images. The loss of a constant prediction is the entropy of their
    mean (ln 2 for hard targets); the loss of a perfect prediction is the mean of their entropies (0 for hard targets).
    """

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))

    loss = sum(losses) / len(losses)
    chance, floor = float(entropy(targets.mean())), float(entropy(targets).mean())
    cycle.health["discriminator_loss"] = loss
    near = NEAR * (chance - floor)
    if loss > chance - near:
        cycle.warnings.append(f"{name}: discriminator at chance: its loss equals that of a constant prediction")
    elif loss < floor + near:
        cycle.warnings.append(f"{name}: discriminator perfect: its loss is at the lowest possible value")

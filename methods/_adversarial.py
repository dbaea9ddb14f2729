"""The adversarial game of VAAL and SRAAL: an autoencoder against a discriminator of labelled and unlabelled latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from harness.learning.fit import check_finite, shuffled

from ._modules import Autoencoder, build, step

if TYPE_CHECKING:
    from harness.data.images import Images
    from harness.learning.cycle import Cycle

    from .vaal import VAAL

CHECKED_EVERY = 500  # iterations between two looks at the losses: a look waits for the device
NEAR = 0.03  # part of the span between chance and floor from either at which a discriminator counts as stuck
COLLAPSED = 0.1  # nats of KL below which the latent says nothing of the image


def endless(indices: torch.Tensor, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield shuffled batches of indices for ever, without the incomplete last one of each pass."""
    size = min(batch, len(indices))
    while True:
        order = shuffled(len(indices), generator, indices.device)
        yield from (part for part in indices[order].split(size) if len(part) == size)


def autocast(cycle_precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which the autoencoder runs: the target network's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=cycle_precision == "bfloat16")


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return KL(q || N(0, 1)) of each image [B], in nats: the sum over latent entries."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class Game:
    """An autoencoder and a discriminator, new, and the steps that train them.

    Images are drawn on the device, flipped but not cropped (VAAL's public code) and run in the target network's
    precision. ``purpose`` names the random streams.
    """

    def __init__(self, method: VAAL, cycle: Cycle, purpose: str) -> None:
        self.method, self.cycle, self.settings = method, cycle, method.settings
        device, rate = cycle.device, method.settings.learning_rate
        channels = cycle.images.pixels.shape[3]
        self.networks = build(lambda: method.networks(channels), cycle.key(f"{purpose} weights"), device).train()
        if cycle.recipe.precision == "bfloat16":
            self.networks.to(memory_format=torch.channels_last)
        self.autoencoder, self.discriminator = self.networks["autoencoder"], self.networks["discriminator"]
        generating = [p for name, part in self.networks.items() if name != "discriminator" for p in part.parameters()]
        self.generator_optimiser = torch.optim.Adam(generating, rate)
        self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), rate)
        self.draws = cycle.stream(f"{purpose} draws", on_device=True)
        self.images = cycle.images.resized(self.autoencoder.side)
        # by image index, so that a batch of indices finds its targets; filled where the game is played
        self.target_of = torch.ones(len(cycle.images.pixels), device=device)
        self.supervision_of: torch.Tensor | None = None

    def kl_weight(self, batch: int) -> float:
        """Return the factor of a batch's mean KL per image."""
        divisor = {"per_image": 1, "batch_sum": 1 / batch, "per_dimension": self.settings.latent}
        return float(self.settings.beta / divisor[self.settings.kl])

    def seen(self, indices: torch.Tensor) -> torch.Tensor:
        """Return a batch as the autoencoder sees it."""
        return self.images.augmented(indices, self.draws, crop=False)

    def encoded(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (loss of the autoencoder, latent means, latents drawn) of a batch."""
        images = self.seen(indices)
        with autocast(self.cycle.recipe.precision, self.cycle.device):
            mean, log_variance = self.autoencoder.encode(images)
            noise = torch.randn(mean.shape, generator=self.draws, device=mean.device)
            latent = mean + noise * (log_variance / 2).exp()
            decoded = self.autoencoder.decode(latent)
        kl = kl_divergence(mean, log_variance).mean()
        error = F.mse_loss(decoded, images)
        return self.settings.reconstruction * error + self.kl_weight(len(images)) * kl, mean, latent

    def judged(self, means: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's cross-entropy on latents [B, z] with targets [B] in 0..1 (1: labelled)."""
        return F.binary_cross_entropy_with_logits(self.discriminator(means)[:, 0], targets)

    def generator_step(self, labelled: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
        """Move all but the discriminator so that both pools look labelled; return the loss."""
        loss_l, mean_l, latent_l = self.encoded(labelled)
        loss_u, mean_u, _ = self.encoded(unlabelled)
        fooled = sum(self.judged(mean, torch.ones_like(mean[:, 0])) for mean in (mean_l, mean_u))
        loss = loss_l + loss_u + self.settings.adversary * fooled
        if self.supervision_of is not None:
            loss = loss + self.method.supervised(self.networks, latent_l, self.supervision_of[labelled])
        return step(self.generator_optimiser, loss)

    def discriminator_step(self, labelled: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
        """Move the discriminator towards the pools' targets; return its mean loss over both."""
        with torch.no_grad(), autocast(self.cycle.recipe.precision, self.cycle.device):
            means = [self.autoencoder.encode(self.seen(indices))[0] for indices in (labelled, unlabelled)]
        loss = self.judged(means[0], self.target_of[labelled]) + self.judged(means[1], self.target_of[unlabelled])
        return step(self.discriminator_optimiser, loss) / 2

    def play(self) -> torch.Tensor:
        """Play all iterations; return the discriminator's losses in the last tenth of them.

        Each iteration: ``generator_steps`` steps, each on a new pair of batches, then one discriminator step on the
        last pair (the public code of both methods). Losses stay on the device; raises NonFiniteLoss.
        """
        cycle, iterations, size = self.cycle, self.settings.iterations, self.settings.batch_size
        self.target_of[cycle.unlabelled] = self.method.unlabelled_targets(cycle)
        known = self.method.supervision(cycle)
        if known is not None:
            self.supervision_of = known.new_zeros(len(self.target_of), *known.shape[1:])
            self.supervision_of[cycle.labelled] = known
        order = cycle.stream("adversarial order")
        labelled, unlabelled = endless(cycle.labelled, size, order), endless(cycle.unlabelled, size, order)
        pending: list[torch.Tensor] = []
        tail: list[torch.Tensor] = []
        for iteration in range(iterations):
            rate = self.settings.learning_rate * self.method.decay(iteration)
            for optimiser in (self.generator_optimiser, self.discriminator_optimiser):
                optimiser.param_groups[0]["lr"] = rate
            for _ in range(self.settings.generator_steps):
                pair = next(labelled), next(unlabelled)
                generated = self.generator_step(*pair)
            judged = self.discriminator_step(*pair)
            pending.append(generated + judged)
            if iteration >= iterations - max(1, iterations // 10):
                tail.append(judged)
            if len(pending) == CHECKED_EVERY or iteration == iterations - 1:
                check_finite(
                    torch.stack(pending), cycle, f"{self.method.name}, adversarial", iteration + 1 - len(pending)
                )
                pending = []
        return torch.stack(tail)

    def check(self, losses: torch.Tensor) -> None:
        """Record the networks' health after ``play``, and warn of what is wrong with it."""
        self.networks.eval()
        unlabelled = self.target_of[self.cycle.unlabelled]
        both = torch.cat([torch.ones_like(unlabelled), unlabelled])
        check_discriminator(self.cycle, self.method.name, losses.tolist(), both)
        check_autoencoder(self.cycle, self.images, self.method.name, self.autoencoder)

    def latents(self) -> torch.Tensor:
        """Train the autoencoder alone, on all images; return the part of their latent means [N, z] that is decoded."""
        cycle = self.cycle
        everything = torch.arange(len(cycle.images.pixels), device=cycle.device)
        batches = endless(everything, self.settings.batch_size, cycle.stream("autoencoder order"))
        losses = []
        for iteration, indices in zip(range(self.settings.iterations), batches, strict=False):
            losses.append(step(self.generator_optimiser, self.encoded(indices)[0]))
            if len(losses) == CHECKED_EVERY or iteration == self.settings.iterations - 1:
                check_finite(
                    torch.stack(losses), cycle, f"{self.method.name}, autoencoder", iteration + 1 - len(losses)
                )
                losses = []
        check_autoencoder(cycle, self.images, f"{self.method.name}'s initial set", self.autoencoder)
        found = []
        with torch.no_grad(), autocast(cycle.recipe.precision, cycle.device):
            for indices in everything.split(cycle.recipe.inference_batch_size):
                found.append(self.autoencoder.encode(self.images.plain(indices))[0])
        return torch.cat(found)[:, : self.autoencoder.decoded]


def check_discriminator(cycle: Cycle, name: str, losses: list[float], targets: torch.Tensor) -> None:
    """Record the discriminator's mean loss, and warn if it learned nothing or everything.

    ``targets`` are those of both pools: a constant answer has the entropy of their mean as its loss (ln 2 for hard
    ones), a perfect one the mean of their entropies (0 for hard ones).
    """

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))

    loss = sum(losses) / len(losses)
    chance, floor = float(entropy(targets.mean())), float(entropy(targets).mean())
    cycle.health["discriminator_loss"] = loss
    near = NEAR * (chance - floor)
    if loss > chance - near:
        cycle.warnings.append(f"{name}: the discriminator tells nothing, its loss is that of a constant answer")
    elif loss < floor + near:
        cycle.warnings.append(f"{name}: the discriminator tells everything, its loss is as low as can be")


@torch.no_grad()
def check_autoencoder(cycle: Cycle, images: Images, name: str, autoencoder: Autoencoder, sample: int = 1000) -> None:
    """Record explained variance (1 - MSE / Var) and KL in nats on plain images, and warn of a collapse."""
    indices = torch.cat([cycle.labelled, cycle.unlabelled])
    indices = indices[torch.randperm(len(indices), generator=cycle.stream("health"))[:sample].to(indices.device)]
    autoencoder.eval()
    errors, kls, every = [], [], []
    for part in indices.split(cycle.recipe.inference_batch_size):
        seen = images.plain(part)
        with autocast(cycle.recipe.precision, cycle.device):
            mean, log_variance = autoencoder.encode(seen)
            decoded = autoencoder.decode(mean)
        errors.append((decoded - seen).square().mean((1, 2, 3)))
        kls.append(kl_divergence(mean, log_variance))
        every.append(seen)
    variance = torch.cat(every).var(0, correction=0).mean()
    cycle.health["explained_variance"] = float(1 - torch.cat(errors).mean() / variance)
    cycle.health["kl_nats"] = float(torch.cat(kls).mean())
    if cycle.health["kl_nats"] < COLLAPSED:
        cycle.warnings.append(f"{name}: the autoencoder has collapsed, its KL is below {COLLAPSED} nats")
    elif cycle.health["explained_variance"] <= 0:  # the adversary alone shapes the latent
        cycle.warnings.append(f"{name}: the autoencoder is no better than the mean image")

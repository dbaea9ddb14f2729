"""The adversarial game of VAAL and SRAAL: an autoencoder against a discriminator of labelled and unlabelled latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from harness.errors import NonFiniteLoss

from ._modules import SIDE, Autoencoder

if TYPE_CHECKING:
    from harness.cycle import Cycle

CHECKED_EVERY = 500  # iterations between two looks at the losses: a look waits for the device
NEAR = 0.02  # nats from a level at which a discriminator counts as stuck
COLLAPSED = 0.1  # nats of KL below which the latent says nothing of the image


def endless(indices: torch.Tensor, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield shuffled batches of indices for ever, without the incomplete last one of each pass."""
    size = min(batch, len(indices))
    while True:
        shuffled = indices[torch.randperm(len(indices), generator=generator).to(indices.device)]
        yield from (part for part in shuffled.split(size) if len(part) == size)


def resized(images: torch.Tensor) -> torch.Tensor:
    """Return the images at the autoencoder's size."""
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def autocast(cycle_precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which the autoencoder runs: the target network's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=cycle_precision == "bfloat16")


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return KL(q || N(0, 1)) of each image [B], in nats: the sum over latent entries."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(labelled indices, unlabelled indices) -> loss, after one step of an optimiser"""


def play(cycle: Cycle, iterations: int, batch: int, generator_step: Step, discriminator_step: Step) -> list[float]:
    """Play the game; return the discriminator's losses of the last tenth.

    Each iteration: two generator steps, each on a new pair of batches, then one discriminator step on the last pair
    (the public code of both methods). Losses stay on the device; raises NonFiniteLoss.
    """
    order = cycle.stream("adversarial order")
    labelled, unlabelled = endless(cycle.labelled, batch, order), endless(cycle.unlabelled, batch, order)
    pending: list[torch.Tensor] = []
    tail: list[torch.Tensor] = []
    for iteration in range(iterations):
        for _ in range(2):
            pair = next(labelled), next(unlabelled)
            generated = generator_step(*pair)
        judged = discriminator_step(*pair)
        pending.append(generated + judged)
        if iteration >= iterations - max(1, iterations // 10):
            tail.append(judged)
        if len(pending) == CHECKED_EVERY or iteration == iterations - 1:
            finite = torch.stack(pending).isfinite()
            if not bool(finite.all()):
                step = iteration + 1 - len(pending) + int((~finite).nonzero()[0])
                raise NonFiniteLoss(f"cycle {cycle.number}, adversarial step {step}: the loss is not finite")
            pending = []
    return torch.stack(tail).tolist()


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
    if loss > chance - NEAR:
        cycle.warnings.append(f"{name}: the discriminator tells nothing (loss {loss:.3f}, chance {chance:.3f})")
    elif loss < floor + NEAR:
        cycle.warnings.append(f"{name}: the discriminator tells everything (loss {loss:.3f}, floor {floor:.3f})")


@torch.no_grad()
def check_autoencoder(cycle: Cycle, name: str, autoencoder: Autoencoder, sample: int = 1000) -> None:
    """Record explained variance (1 - MSE / Var) and KL in nats on plain images, and warn of a collapse."""
    indices = torch.cat([cycle.labelled, cycle.unlabelled])
    indices = indices[torch.randperm(len(indices), generator=cycle.stream("health"))[:sample].to(indices.device)]
    autoencoder.eval()
    errors, kls, images = [], [], []
    for part in indices.split(cycle.recipe.inference_batch_size):
        seen = resized(cycle.images.plain(part))
        with autocast(cycle.recipe.precision, cycle.device):
            mean, log_variance = autoencoder.encode(seen)
            decoded = autoencoder.decode(mean)
        errors.append((decoded - seen).square().mean((1, 2, 3)))
        kls.append(kl_divergence(mean, log_variance))
        images.append(seen)
    variance = torch.cat(images).var(0, correction=0).mean()
    cycle.health["explained_variance"] = float(1 - torch.cat(errors).mean() / variance)
    cycle.health["kl_nats"] = float(torch.cat(kls).mean())
    kl, explained = cycle.health["kl_nats"], cycle.health["explained_variance"]
    if kl < COLLAPSED:
        cycle.warnings.append(f"{name}: the autoencoder has collapsed (KL {kl:.3f} nats)")
    elif explained <= 0:  # the adversary alone shapes the latent
        cycle.warnings.append(f"{name}: the autoencoder is no better than the mean image (explained {explained:.3f})")

"""Networks that methods add to the target. Imported inside functions, because importing this file loads torch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F


class LossModule(nn.Module):
    """LL4AL's loss prediction module (Yoo & Kweon 2019): stage outputs -> predicted loss [B].

    Each stage has global average pooling, Linear(c -> width) and ReLU; Linear(stages x width -> 1) follows. For
    ResNet-18's stages (64, 128, 256, 512) and width 128 the module has 123 905 parameters.
    """

    def __init__(self, channels: Iterable[int], width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.head = nn.Linear(len(self.stages) * width, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        pooled = [F.relu(layer(stage.mean((2, 3)))) for layer, stage in zip(self.stages, stages, strict=True)]
        return self.head(torch.cat(pooled, 1))[:, 0]


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Autoencoder(nn.Module):
    """The variational autoencoder of VAAL and SRAAL (Sinha et al. 2019, public code, where ``side`` is 32).

    ``side`` is the height and width of the images, a multiple of 16; ``latent`` is z, the size of the latent. The
    decoder gets the first ``decoded`` entries: all of them in VAAL (22 835 139 parameters for z = 32, width 128, side
    32), half of them in SRAAL. ``mean`` and ``log_variance`` keep PyTorch's initialisation, as in both public codes:
    their ``weight_init`` reaches only layers inside of a Sequential.
    """

    def __init__(self, channels: int, width: int, latent: int, decoded: int, side: int = 32) -> None:
        super().__init__()
        self.decoded, self.side = decoded, side
        w, coarse = width, side // 16
        self.spread_shape = (8 * w, 2 * coarse, 2 * coarse)
        self.encoder = nn.Sequential(
            *_down(channels, w), *_down(w, 2 * w), *_down(2 * w, 4 * w), *_down(4 * w, 8 * w), nn.Flatten()
        )
        self.mean = nn.Linear(8 * w * coarse**2, latent)
        self.log_variance = nn.Linear(8 * w * coarse**2, latent)
        self.spread = nn.Linear(decoded, 8 * w * 4 * coarse**2)
        self.decoder = nn.Sequential(
            *_up(8 * w, 4 * w), *_up(4 * w, 2 * w), *_up(2 * w, w), nn.ConvTranspose2d(w, channels, 1)
        )
        for part in (self.encoder, self.spread, self.decoder):
            part.apply(kaiming)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance [B, z], float32."""
        features = self.encoder(images)
        return self.mean(features).float(), self.log_variance(features).float()

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return images [B, channels, side, side] for latents [B, z]."""
        spread = self.spread(latent[:, : self.decoded]).view(-1, *self.spread_shape)
        return self.decoder(spread).float()


def discriminator(latent: int, layers: int) -> nn.Sequential:
    """Return a discriminator of ``layers`` linear layers: latent [B, z] -> logit [B, 1] that the image is labelled.

    VAAL's public code has 3 layers (280 065 parameters for z = 32), SRAAL's 5.
    """
    sizes = [latent] + [512] * (layers - 1)
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(512, 1)).apply(kaiming)


def label_head(latent: int, num_classes: int) -> nn.Sequential:
    """Return SRAAL's supervised target learner: the second half of the latent -> class logits."""
    return nn.Sequential(
        nn.Linear(latent, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 256), nn.ReLU(inplace=True),
        nn.Linear(256, num_classes),
    ).apply(kaiming)  # fmt: skip


def kaiming(module: nn.Module) -> None:
    """Initialise convolutions and linear layers as in the public code; transposed convolutions keep the default."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PrototypeHead(nn.Module):
    """One of ADS's two classifiers (Fu et al. 2021, author code): features [B, D] -> logits [B, C] of class scores.

    A 1x1 convolution without bias and a sigmoid precede the cosine similarity to each class's closest prototype, which
    is divided by the temperature. The sigmoid of a logit is the class's score; the scores of an image do not sum to 1.
    """

    def __init__(self, width: int, num_classes: int, prototypes: int, temperature: float) -> None:
        super().__init__()
        self.per_class, self.num_classes, self.temperature = prototypes, num_classes, temperature
        self.conv = nn.Conv2d(width, width, 1, bias=False)
        self.prototypes = nn.Parameter(torch.randn(prototypes * num_classes, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embedded = self.conv(features[:, :, None, None]).flatten(1).sigmoid()
        similarity = F.normalize(embedded, dim=1) @ F.normalize(self.prototypes, dim=1).T
        return similarity.view(-1, self.per_class, self.num_classes).amax(1) / self.temperature

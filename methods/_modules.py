"""Networks that methods add to the target. Imported where they are used, because they need torch at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F


class LossModule(nn.Module):
    """LL4AL's loss prediction module (Yoo & Kweon 2019): stage outputs -> predicted loss [B].

    Each stage: global average pooling, Linear(c -> width), ReLU; then Linear(stages x width -> 1). For ResNet-18's
    stages (64, 128, 256, 512) and width 128 it has 123 905 parameters.
    """

    def __init__(self, channels: Iterable[int], width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.head = nn.Linear(len(self.stages) * width, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        pooled = [F.relu(layer(stage.mean((2, 3)))) for layer, stage in zip(self.stages, stages, strict=True)]
        return self.head(torch.cat(pooled, 1))[:, 0]


class PrototypeHead(nn.Module):
    """One of ADS's two classifiers (Fu et al. 2021, author code): features [B, D] -> class scores [B, C] in 0..1.

    1x1 convolution without bias, sigmoid, cosine similarity to three prototypes of each class, the closest of them,
    divided by the temperature, sigmoid. The scores of an image do not sum to 1.
    """

    PROTOTYPES, TEMPERATURE = 3, 0.05

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(width, width, 1, bias=False)
        self.prototypes = nn.Parameter(torch.randn(self.PROTOTYPES * num_classes, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embedded = self.conv(features[:, :, None, None]).flatten(1).sigmoid()
        similarity = F.normalize(embedded, dim=1) @ F.normalize(self.prototypes, dim=1).T
        closest = similarity.view(-1, self.PROTOTYPES, self.num_classes).amax(1)
        return (closest / self.TEMPERATURE).sigmoid()


def build(module: Any, seed: int, device: torch.device) -> Any:
    """Return ``module()`` with weights that depend on the seed alone, on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module().to(device)

"""A linear projection of pooled features."""

from __future__ import annotations

import torch
import torch.nn as nn


class Projection(nn.Module):
    """A 1x1 convolution on pooled features [B, D]: no bias, normalisation or activation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the projected features [B, D]."""
        return self.conv(features[:, :, None, None]).flatten(1)

"""A way around a kernel of oneDNN that writes past its memory: 1x1 convolutions with a stride and few channels."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

BLOCK = 16
"""Channels that the kernel takes at once with AVX-512; 8 with AVX2."""


def protect(network: nn.Module) -> None:
    """Make the gradients of the network's 1x1 convolutions with a stride and fewer than BLOCK channels safe on a CPU.

    For images in channels_last memory, oneDNN's kernel for the gradient of the weights has too small a workspace
    (https://github.com/uxlfoundation/oneDNN/issues/6035): it kills the process, or corrupts what lies behind. Zeros as
    further channels fill its block; outputs and gradients keep their bits. A module that overrides Conv2d's forward is
    not reached.
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels < BLOCK
            and module.groups == 1
        ):
            module._conv_forward = partial(_conv_forward, module)  # type: ignore[method-assign]


def _conv_forward(
    module: nn.Conv2d, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return what Conv2d's ``_conv_forward`` returns; where the kernel would be used, from BLOCK channels."""
    channels_last = images.stride(-3) == 1 or weight.stride(-1) != 1
    divides = all(side % step == 0 for side, step in zip(images.shape[-2:], module.stride, strict=True))
    if images.device.type == "cpu" and channels_last and divides:
        further = (0, 0, 0, 0, 0, BLOCK - module.in_channels)
        images, weight = F.pad(images, further), F.pad(weight, further)
    return nn.Conv2d._conv_forward(module, images, weight, bias)

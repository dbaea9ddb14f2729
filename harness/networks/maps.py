"""Feature maps and images: stride, and bilinear upsampling to the image size."""

from __future__ import annotations

from collections.abc import Iterator

import torch

STRIDES = (1, 8, 16, 32, 64, 128)  # 1: of what is upsampled already; the last two: labels larger than the images


def upsampled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps [B, K, h, w] of images of ``size`` (H, W) as [B, K, H, W]: bilinear, align_corners=False.

    It is the DRN authors' frozen transposed convolution, but for the outermost half stride, where theirs fades to 0.
    Two small matrix products, because the deterministic backward pass of F.interpolate on a GPU is a scatter.
    """
    return next(upsampled_bands(maps, size, size[0]))


def upsampled_bands(maps: torch.Tensor, size: tuple[int, int], height: int) -> Iterator[torch.Tensor]:
    """Yield ``upsampled(maps, size)`` from top to bottom in bands [B, K, <= height, W]: it is never all in memory."""
    stride = stride_of(maps, size)
    rows, columns = (_bilinear(side, stride, maps.device).to(maps.dtype) for side in size)
    for band in rows.split(height):
        yield band @ maps @ columns.T


def stride_of(maps: torch.Tensor, size: tuple[int, int]) -> int:
    """Return the pixels per place of maps [B, K, h, w] of images of ``size``. Raises ValueError if they can't be."""
    for stride in STRIDES:
        if maps.shape[2:] == tuple(-(-side // stride) for side in size):
            return stride
    raise ValueError(f"maps of {tuple(maps.shape[2:])} places can't be those of images of {size} pixels")


def _bilinear(side: int, stride: int, device: torch.device) -> torch.Tensor:
    """Return the weights [side, ceil(side / stride)] that places have in each pixel."""
    places = torch.arange(-(-side // stride), device=device)
    centres = ((torch.arange(side, device=device) + 0.5) / stride - 0.5).clamp(0, len(places) - 1)
    return (1 - (centres[:, None] - places).abs()).clamp(min=0)

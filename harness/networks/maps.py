"""Feature maps and images: stride, and bilinear upsampling to the image size."""

from __future__ import annotations

from collections.abc import Iterator

from harness.lazy import torch

STRIDES = (1, 2, 4, 8, 16, 32)
"""Pixels per position that the map of a network may have."""
_KNOWN = (*STRIDES, 64, 128)  # the last two: labels larger than the images


def upsampled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps [B, K, h, w] upsampled to ``size`` (H, W), as [B, K, H, W]: bilinear, align_corners=False.

    The result equals that of the DRN authors' frozen transposed convolution, except in the outermost half stride, where
    theirs fades to 0. It is computed as two small matrix products, because the deterministic backward pass of
    F.interpolate on a GPU is a scatter.
    """
    return next(upsampled_bands(maps, size, size[0]))


def upsampled_bands(maps: torch.Tensor, size: tuple[int, int], height: int) -> Iterator[torch.Tensor]:
    """Yield ``upsampled(maps, size)`` in bands [B, K, <= height, W] from top to bottom, to save memory."""
    stride = stride_of(maps, size)
    rows, columns = (_bilinear(side, stride, maps.device).to(maps.dtype) for side in size)
    for band in rows.split(height):
        yield band @ maps @ columns.T


def stride_of(maps: torch.Tensor, size: tuple[int, int]) -> int:
    """Return the stride, in pixels, of maps [B, K, h, w] of images of ``size``. Raises ValueError if none fits."""
    for stride in _KNOWN:
        if maps.shape[2:] == tuple(-(-side // stride) for side in size):
            return stride
    raise ValueError(f"maps of {tuple(maps.shape[2:])} positions do not fit images of {size} pixels")


def _bilinear(side: int, stride: int, device: torch.device) -> torch.Tensor:
    """Return the weight of each position in each pixel [side, ceil(side / stride)]."""
    positions = torch.arange(-(-side // stride), device=device)
    centres = ((torch.arange(side, device=device) + 0.5) / stride - 0.5).clamp(0, len(positions) - 1)
    return (1 - (centres[:, None] - positions).abs()).clamp(min=0)

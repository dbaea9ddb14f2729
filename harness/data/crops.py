"""Random resized crops of a batch of images, drawn and computed on the images' device.

The distribution is that of torchvision's RandomResizedCrop, the pixels are those of its antialiased bilinear resizing.
"""

from __future__ import annotations

from math import log

from harness.lazy import torch
from harness.settings import RandomResizedCrop

ATTEMPTS = 10
"""Draws of a part until one fits into the image; if none does, it is the largest central part, as in torchvision."""


def random_resized(
    pixels: torch.Tensor, crop: RandomResizedCrop, size: tuple[int, int], flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Return a random part of each image [B, H, W, channels], resized to ``size``: [B, h, w, channels] float32.

    ``flip``: mirror a random half of them. The generator is on the images' device.
    """
    batch, height, width, channels = pixels.shape
    top, left, tall, wide = parts(batch, (height, width), crop, generator)
    rows, columns = weights(top, tall, size[0], height), weights(left, wide, size[1], width)
    if flip:
        mirrored = torch.randint(0, 2, (batch, 1, 1), generator=generator, device=pixels.device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    narrow = columns @ pixels.float().transpose(1, 2).reshape(batch, width, height * channels)
    narrow = narrow.view(batch, size[1], height, channels).transpose(1, 2)
    return (rows @ narrow.reshape(batch, height, size[1] * channels)).view(batch, *size, channels)


def parts(
    batch: int, size: tuple[int, int], crop: RandomResizedCrop, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return top, left, height and width [B] of random parts of images of a size, in whole pixels, as float32."""
    height, width = size
    draws = torch.rand(2 * ATTEMPTS + 2, batch, generator=generator, device=generator.device, dtype=torch.float32)
    areas, aspects, (down, right) = draws[:ATTEMPTS], draws[ATTEMPTS:-2], draws[-2:]
    (smallest, largest), (narrowest, widest) = crop.scale, map(log, crop.ratio)
    area = (smallest + (largest - smallest) * areas) * (height * width)
    aspect = (narrowest + (widest - narrowest) * aspects).exp()
    # the last row is the part for images in which no attempt fits
    shown = min(max(width / height, crop.ratio[0]), crop.ratio[1])
    tallest, broadest = min(height, round(width / shown)), min(width, round(height * shown))
    tall = torch.cat([(area / aspect).sqrt().round(), area.new_full((1, batch), tallest)])
    wide = torch.cat([(area * aspect).sqrt().round(), area.new_full((1, batch), broadest)])
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = fits.int().argmax(0, keepdim=True)  # of equal values the first one
    tall, wide = tall.gather(0, first)[0], wide.gather(0, first)[0]
    central = first[0] == ATTEMPTS
    room = height - tall, width - wide
    places = [
        # float32 rounds the highest draw up to a whole number
        torch.where(central, (space / 2).floor(), torch.minimum((draw * (space + 1)).floor(), space))
        for draw, space in zip((down, right), room, strict=True)
    ]
    return places[0], places[1], tall, wide


def weights(start: torch.Tensor, length: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """Return [B, size, side]: how much each pixel of a side counts in each pixel of a resized part of that side.

    A part begins at ``start`` [B] and has ``length`` [B] pixels. The filter is a triangle, as wide as a pixel of the
    result, or of the part if that is larger: the same as bilinear interpolation with antialiasing of the part alone.
    """
    start, length = start[:, None, None], length[:, None, None]
    centre = (torch.arange(size, device=start.device) + 0.5)[None, :, None] * (length / size)
    place = (torch.arange(side, device=start.device) + 0.5) - start  # [B, 1, side], in the part
    weight = (1 - (place - centre).abs() / (length / size).clamp(min=1)).clamp(min=0)
    weight = weight * ((place > 0) & (place < length))
    return weight / weight.sum(2, keepdim=True)

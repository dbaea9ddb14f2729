"""Images on a trial's device: uint8, from which batches are cut, augmented and normalised there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import torch
import torch.nn.functional as F

from harness.data.dataset import Problem
from harness.data.files import IGNORED
from harness.data.rows import Rows, taken
from harness.settings import Recipe

RESIZED_AT_ONCE = 16  # images: bounds the memory of resizing a whole dataset


class Images:
    """The images of one split, without their labels.

    A batch is float32 [B, channels, H, W], normalised, in channels_last memory (a batch of rows of NHWC pixels).
    """

    def __init__(self, pixels: Rows, problem: Problem, recipe: Recipe) -> None:
        self.pixels = pixels
        """[N, H, W, channels] uint8"""
        self.padding, self.crop_size, self.flip = recipe.crop_padding, recipe.crop_size, recipe.flip
        std = torch.tensor(problem.std, device=pixels.device)
        self._scale = 1 / (255 * std)
        self._shift = -torch.tensor(problem.mean, device=pixels.device) / std
        self._resized: dict[int, Images] = {}

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.pixels.device

    def resized(self, side: int) -> Images:
        """Return the same images at ``side`` x ``side`` pixels: themselves if they have that size, else a copy.

        The copy is made once: a trial's later cycles want it too, and making it reads every image.
        """
        if self.pixels.shape[1:3] == (side, side):
            return self
        if side in self._resized:
            return self._resized[side]
        found = copy(self)
        parts = []
        for pixels in taken(self.pixels, torch.arange(len(self.pixels), device=self.device).split(RESIZED_AT_ONCE)):
            images = resized(pixels.permute(0, 3, 1, 2).float(), side)
            parts.append(images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())
        found.pixels = torch.cat(parts)
        self._resized[side] = found  # only now that it is whole
        return found

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self._shift, pixels.float(), self._scale).permute(0, 3, 1, 2)

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the images as they are: what is scored and tested."""
        return self._normalised(self.pixels[indices])

    def plain_batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``plain`` of each batch of indices; files are decoded ahead."""
        return map(self._normalised, taken(self.pixels, batches))

    def augmented(self, indices: torch.Tensor, generator: torch.Generator, crop: bool = True) -> torch.Tensor:
        """Return the images after a random crop (zero padding) and flip, or the flip alone: what is trained on."""
        return self._augmented(self.pixels[indices], generator, crop)

    def _augmented(self, pixels: torch.Tensor, generator: torch.Generator, crop: bool = True) -> torch.Tensor:
        return self._normalised(_moved(pixels, *self._window(pixels.shape, generator, crop), fill=0))

    def augmented_batches(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield ``augmented`` of each batch of indices; files are decoded ahead."""
        return (self._augmented(pixels, generator) for pixels in taken(self.pixels, batches))

    def pairs(
        self, batches: Sequence[torch.Tensor], labels: Iterable[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the augmented images of each batch of indices, decoded ahead, and their labels [B, *S].

        A map moves with its image; it is IGNORED at the padding.
        """
        for pixels, known in zip(taken(self.pixels, batches), labels, strict=True):
            window = self._window(pixels.shape, generator, crop=True)
            moved = _moved(known, *window, fill=IGNORED) if known.ndim == 3 else known
            yield self._normalised(_moved(pixels, *window, fill=0)), moved

    def _window(
        self, shape: torch.Size, generator: torch.Generator, crop: bool
    ) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
        """Return (padding, rows [B, h], columns [B, w]) to take of the padded images; None: all as they are."""
        batch, height, width = shape[:3]
        device, pad = self.device, self.padding if crop else 0
        size = self.crop_size if crop and self.crop_size else (height, width)

        def draw(values: int) -> torch.Tensor:
            return torch.randint(0, values, (batch, 1), generator=generator, device=device)

        room = height + 2 * pad - size[0], width + 2 * pad - size[1]
        if not (self.flip or any(room)):
            return 0, None, None
        rows = torch.arange(size[0], device=device).expand(batch, size[0])
        columns = torch.arange(size[1], device=device).expand(batch, size[1])
        if self.flip:
            columns = torch.where(draw(2).bool(), size[1] - 1 - columns, columns)
        if any(room):
            rows = rows + draw(room[0] + 1)
            columns = columns + draw(room[1] + 1)
        return pad, rows, columns


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return images [B, channels, H, W] at ``side`` x ``side`` pixels, bilinear and antialiased."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _moved(
    values: torch.Tensor, pad: int, rows: torch.Tensor | None, columns: torch.Tensor | None, fill: int
) -> torch.Tensor:
    """Return the window of values [B, H, W, ...] that is taken after padding with ``fill``."""
    if rows is None or columns is None:
        return values
    if pad:
        values = F.pad(values, (0, 0) * (values.ndim - 3) + (pad, pad, pad, pad), value=fill)
    image = torch.arange(len(values), device=values.device)[:, None, None]
    return values[image, rows[:, :, None], columns[:, None, :]]

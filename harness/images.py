"""Images on a trial's device: one uint8 tensor, from which batches are cut, flipped and normalised there."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from harness.data import Problem
from harness.settings import Recipe


class Images:
    """The images of one split, without their labels.

    A batch is float32 [B, channels, H, W], normalised, in channels_last memory (a batch of rows of NHWC pixels).
    """

    def __init__(self, pixels: torch.Tensor, problem: Problem, recipe: Recipe) -> None:
        self.pixels = pixels
        """[N, H, W, channels] uint8"""
        self.padding, self.flip = recipe.crop_padding, recipe.flip
        std = torch.tensor(problem.std, device=pixels.device)
        self._scale = 1 / (255 * std)
        self._shift = -torch.tensor(problem.mean, device=pixels.device) / std

    @property
    def device(self) -> torch.device:
        """Where the pixels, and so the batches, are."""
        return self.pixels.device

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self._shift, pixels.float(), self._scale).permute(0, 3, 1, 2)

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the images as they are: what is scored and tested."""
        return self._normalised(self.pixels[indices])

    def augmented(self, indices: torch.Tensor, generator: torch.Generator, crop: bool = True) -> torch.Tensor:
        """Return the images after a random crop (zero padding) and flip, or the flip alone: what is trained on."""
        pixels = self.pixels[indices]
        batch, height, width, _ = pixels.shape
        device, pad = pixels.device, self.padding if crop else 0

        def draw(values: int) -> torch.Tensor:
            return torch.randint(0, values, (batch, 1), generator=generator, device=device)

        if pad:
            pixels = F.pad(pixels, (0, 0, pad, pad, pad, pad))
        rows = torch.arange(height, device=device).expand(batch, height)
        columns = torch.arange(width, device=device).expand(batch, width)
        if self.flip:
            flipped = draw(2).bool()
            columns = torch.where(flipped, width - 1 - columns, columns)
        if pad:
            rows = rows + draw(2 * pad + 1)
            columns = columns + draw(2 * pad + 1)
        if pad or self.flip:
            image = torch.arange(batch, device=device)[:, None, None]
            pixels = pixels[image, rows[:, :, None], columns[:, None, :]]
        return self._normalised(pixels)

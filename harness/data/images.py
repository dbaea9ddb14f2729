"""Images on a trial's device: stored as uint8, with batches that are augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING

from harness.data.crops import random_resized
from harness.data.files import IGNORED
from harness.data.rows import take
from harness.lazy import F, torch
from harness.settings import Recipe

if TYPE_CHECKING:
    from harness.data.dataset import LoadedData
    from harness.data.rows import Rows

RESIZED_AT_ONCE = 16  # images; limits the memory for resizing a whole dataset


class Images:
    """The images of one split, without their labels.

    A batch is float32 [B, channels, H, W], normalised, in channels_last memory (because pixels are NHWC).
    ``normalisation``: (mean, std) of each channel, of pixels scaled to 0..1; None: the dataset's.
    """

    def __init__(
        self,
        pixels: Rows,
        data: LoadedData,
        recipe: Recipe,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.pixels = pixels
        """[N, H, W, channels] uint8"""
        self.padding, self.crop_size, self.flip = recipe.crop_padding, recipe.crop_size, recipe.flip
        self.random_resized_crop, self.center_crop = recipe.random_resized_crop, recipe.center_crop
        # torch's type, not that of the numbers: numpy's float64 would make all batches float64, which no network takes
        dtype, device = torch.get_default_dtype(), pixels.device
        mean, std = (torch.tensor(v, dtype=dtype, device=device) for v in normalisation or (data.mean, data.std))
        self._scale = 1 / (255 * std)
        self._shift = -mean / std
        self._resized: dict[int, Images] = {}

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.pixels.device

    def resized(self, side: int) -> Images:
        """Return what tests see of these images at ``side`` x ``side`` pixels.

        It is this object if they have that size and are not cropped, else a resized copy, which is kept for later
        cycles, because resizing reads every image.
        """
        if self.pixels.shape[1:3] == (side, side) and self.center_crop is None:
            return self
        if side in self._resized:
            return self._resized[side]
        images_at_side = copy(self)
        # taken at once: parts that are joined take it twice
        all_pixels = torch.empty(
            (len(self.pixels), side, side, self.pixels.shape[3]), dtype=torch.uint8, device=self.device
        )
        batches = torch.arange(len(self.pixels), device=self.device).split(RESIZED_AT_ONCE)
        for part, pixels in zip(all_pixels.split(RESIZED_AT_ONCE), take(self.pixels, batches), strict=True):
            images = resized(self._central(pixels).permute(0, 3, 1, 2).float(), side)
            part.copy_(images.round().to(torch.uint8).permute(0, 2, 3, 1))
        images_at_side.pixels, images_at_side.center_crop = all_pixels, None
        self._resized[side] = images_at_side  # only now, when it is complete
        return images_at_side

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self._shift, pixels.float(), self._scale).permute(0, 3, 1, 2)

    def _central(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the centres of images [B, H, W, channels], as a view, or the whole images."""
        if self.center_crop is None:
            return pixels
        (height, width), (tall, wide) = pixels.shape[1:3], self.center_crop
        top, left = (height - tall) // 2, (width - wide) // 2
        return pixels[:, top : top + tall, left : left + wide]

    def _unaugmented(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._normalised(self._central(pixels))

    def unaugmented(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images, or their centres, [B, channels, H, W] without augmentation, for scoring and testing."""
        return self._unaugmented(self.pixels[indices])

    def unaugmented_batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``unaugmented`` of each batch of indices; files are decoded ahead."""
        return map(self._unaugmented, take(self.pixels, batches))

    def augmented(self, indices: torch.Tensor, generator: torch.Generator, crop: bool = True) -> torch.Tensor:
        """Return images [B, channels, h, w] after the recipe's random crop and flip, or only the flip."""
        return self._augmented(self.pixels[indices], generator, crop)

    def _augmented(self, pixels: torch.Tensor, generator: torch.Generator, crop: bool = True) -> torch.Tensor:
        if crop and self.random_resized_crop:
            height, width = pixels.shape[1:3]
            size = self.crop_size or (height, width)
            return self._normalised(random_resized(pixels, self.random_resized_crop, size, self.flip, generator))
        return self._normalised(_cropped(pixels, *self._window(pixels.shape, generator, crop), fill=0))

    def augmented_batches(self, batches: Sequence[torch.Tensor], generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield ``augmented`` of each batch of indices; files are decoded ahead."""
        return (self._augmented(pixels, generator) for pixels in take(self.pixels, batches))

    def pairs(
        self, batches: Sequence[torch.Tensor], labels: Iterable[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the augmented images of each batch of indices, decoded ahead, and their labels [B, *S].

        A label map is cropped and flipped with its image; the padding is IGNORED.
        """
        for pixels, label in zip(take(self.pixels, batches), labels, strict=True):
            if label.ndim == 1:
                yield self._augmented(pixels, generator), label
                continue
            window = self._window(pixels.shape, generator, crop=True)
            yield self._normalised(_cropped(pixels, *window, fill=0)), _cropped(label, *window, fill=IGNORED)

    def _window(
        self, shape: torch.Size, generator: torch.Generator, crop: bool
    ) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
        """Return (padding, rows [B, h], columns [B, w]) that index the padded images; rows are None for no change."""
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


def _cropped(
    values: torch.Tensor, pad: int, rows: torch.Tensor | None, columns: torch.Tensor | None, fill: int
) -> torch.Tensor:
    """Return rows and columns of values [B, H, W, ...] after padding them with ``fill``."""
    if rows is None or columns is None:
        return values
    if pad:
        values = F.pad(values, (0, 0) * (values.ndim - 3) + (pad, pad, pad, pad), value=fill)
    image = torch.arange(len(values), device=values.device)[:, None, None]
    return values[image, rows[:, :, None], columns[:, None, :]]

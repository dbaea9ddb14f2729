"""Images on a trial's device: uint8, from which batches are cut, moved and normalised there."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness.data import IGNORED, Problem
from harness.settings import Recipe

HELD_SHARE = 0.25  # of the free memory: data that takes no more is held on the device, else read batch by batch


DECODED_AT_ONCE = 32  # images: bounds the host's memory of bringing a whole dataset to a device

RESIZED_AT_ONCE = 16  # images: bounds the memory of resizing a whole dataset

AHEAD = 2  # batches of files that are decoded while another is in use: bounds the memory of looking ahead


class Streamed:
    """Rows of files, decoded each time they are taken: what a tensor on the device is for data that fits there.

    ``rows`` (int64, on the CPU) makes it a selection: position i is file ``rows[i]``.
    """

    def __init__(self, files: Any, device: torch.device, rows: np.ndarray[Any, Any] | None = None) -> None:
        self.files, self.device, self.rows = files, device, rows
        self.shape: tuple[int, ...] = (len(files if rows is None else rows), *files.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self._decoded(indices.cpu()).to(self.device, non_blocking=True)

    def _decoded(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows on the CPU, in memory from which a GPU copies without anybody waiting."""
        places = indices.numpy()
        rows = torch.from_numpy(self.files[places if self.rows is None else self.rows[places]])
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def ahead(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``self[indices]`` for each batch of indices, while threads decode the next ones.

        What can't be decoded raises at its own turn. The threads end with the iterator, wherever it is left.
        """
        # on the CPU at once: one by one, each would wait for the device
        parts = iter(torch.cat([*batches]).cpu().split([len(indices) for indices in batches]))
        pool = ThreadPoolExecutor(AHEAD)
        try:
            waiting = deque(pool.submit(self._decoded, part) for part in islice(parts, AHEAD))
            while waiting:
                due = waiting.popleft()
                waiting.extend(pool.submit(self._decoded, part) for part in islice(parts, 1))
                yield due.result().to(self.device, non_blocking=True)
        finally:
            pool.shutdown(cancel_futures=True)


Rows = torch.Tensor | Streamed
"""Data whose rows are taken by a tensor of indices, and arrive on the device."""


def taken(rows: Rows, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield ``rows[indices]`` for each batch of indices; files are decoded ahead."""
    return rows.ahead(batches) if isinstance(rows, Streamed) else (rows[indices] for indices in batches)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def on_device(array: Any, device: torch.device) -> Rows:
    """Return an array's rows on the device; files that would not fit there stay files.

    On the CPU an array is not copied, and must not be written to.
    """
    if not isinstance(array, np.ndarray):
        if array.nbytes > HELD_SHARE * _free_memory(device):
            return Streamed(array, device)
        held = torch.empty(array.shape, dtype=torch.uint8, device=device)
        rows = torch.arange(len(array)).split(DECODED_AT_ONCE)
        for some, decoded in zip(held.split(DECODED_AT_ONCE), Streamed(array, device).ahead(rows), strict=True):
            some.copy_(decoded)
        return held
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def selected(array: Any, rows: np.ndarray[Any, Any], device: torch.device) -> Rows:
    """Return some rows of an array, in the order of ``rows``."""
    if isinstance(array, np.ndarray):
        return on_device(array[rows], device)
    chosen = Streamed(array, device, rows)
    small = array.nbytes * len(rows) / len(array) <= HELD_SHARE * _free_memory(device)
    return chosen[torch.arange(len(rows))] if small else chosen


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

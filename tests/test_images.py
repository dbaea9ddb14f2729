from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.data.dataset import Problem
from harness.data.images import Images
from harness.settings import Recipe

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.1)


def problem(count: int, height: int, width: int, channels: int = 3) -> Problem:
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    labels = np.zeros(count, dtype=np.int64)
    return Problem(images, labels, images[:1], labels[:1], ("it",), MEAN[:channels], STD[:channels])


def images(of: Problem, **keys: Any) -> Images:
    return Images(torch.from_numpy(of.train_images), of, Recipe(epochs=1, **keys))


def normalised(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[H, W, channels] uint8 -> [channels, H, W]"""
    channels = pixels.shape[2]
    return ((pixels / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])).transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_images_are_normalised(channels: int) -> None:
    of = problem(9, 5, 7, channels)
    rows = torch.tensor([8, 0, 3, 3])
    found = images(of, crop_padding=2).plain(rows)
    assert found.shape == (4, channels, 5, 7)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = np.stack([normalised(of.train_images[row]) for row in rows])
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-6)


def reference(pixels: np.ndarray[Any, Any], pad: int, flip: bool, down: int, right: int) -> np.ndarray[Any, Any]:
    """One image, pixel by pixel: black around it, cropped at (down, right), then mirrored."""
    height, width, _ = pixels.shape
    out = np.zeros_like(pixels)
    for row in range(height):
        for column in range(width):
            source_row = row + down - pad
            source_column = (width - 1 - column if flip else column) + right - pad
            if 0 <= source_row < height and 0 <= source_column < width:
                out[row, column] = pixels[source_row, source_column]
    return normalised(out)


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True)])
def test_augmented_images_are_crops_and_flips(pad: int, flip: bool) -> None:
    of = problem(200, 4, 6)
    found = images(of, crop_padding=pad, flip=flip).augmented(torch.arange(200), torch.Generator().manual_seed(1))
    assert found.is_contiguous(memory_format=torch.channels_last)
    ways = [(f, d, r) for f in {False, flip} for d in range(2 * pad + 1) for r in range(2 * pad + 1)]
    used = []
    for pixels, image in zip(of.train_images, found.numpy(), strict=True):
        fits = [way for way in ways if np.allclose(reference(pixels, pad, *way), image, atol=2e-6)]
        assert len(fits) == 1, "each image is one crop and flip of itself, padded with black"
        used.append(fits[0])
    for values in zip(*used, strict=True):  # flips, rows, columns: each drawn for itself, uniformly
        kinds, counts = np.unique(values, return_counts=True)
        expected = 200 / len(kinds)
        assert (abs(counts - expected) < 5 * expected**0.5).all()
    assert len(set(used)) > 0.9 * len(ways), "and drawn apart from each other"


def test_without_augmentation_images_are_plain() -> None:
    of = images(problem(5, 4, 4), crop_padding=0, flip=False)
    rows = torch.tensor([4, 1])
    assert torch.equal(of.augmented(rows, torch.Generator()), of.plain(rows))


def test_augmentation_is_drawn_from_the_stream_alone() -> None:
    of, rows = images(problem(50, 8, 8)), torch.arange(50)
    torch.manual_seed(1)
    one = of.augmented(rows, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    assert torch.equal(one, of.augmented(rows, torch.Generator().manual_seed(7)))
    assert not torch.equal(one, of.augmented(rows, torch.Generator().manual_seed(8)))
    stream = torch.Generator().manual_seed(7)
    assert torch.equal(one, of.augmented(rows, stream))
    assert not torch.equal(one, of.augmented(rows, stream)), "the next epoch draws anew"


def test_pixels_are_not_written_to() -> None:
    of = problem(20, 6, 6)
    before = of.train_images.copy()
    images(of).augmented(torch.arange(20), torch.Generator())
    assert np.array_equal(of.train_images, before)

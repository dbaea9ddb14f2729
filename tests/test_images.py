from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.data.dataset import LoadedData
from harness.data.images import Images
from harness.settings import Recipe

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.1)


def loaded(count: int, height: int, width: int, channels: int = 3) -> LoadedData:
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    labels = np.zeros(count, dtype=np.int64)
    return LoadedData(images, labels, images[:1], labels[:1], ("it",), MEAN[:channels], STD[:channels])


def images(data: LoadedData, **keys: Any) -> Images:
    return Images(torch.from_numpy(data.train_images), data, Recipe(epochs=1, **keys))


def normalised(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[H, W, channels] uint8 -> [channels, H, W]"""
    channels = pixels.shape[2]
    return ((pixels / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])).transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_unaugmented_images_are_normalised(channels: int) -> None:
    data = loaded(9, 5, 7, channels)
    rows = torch.tensor([8, 0, 3, 3])
    batch = images(data, crop_padding=2).unaugmented(rows)
    assert batch.shape == (4, channels, 5, 7)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([normalised(data.train_images[row]) for row in rows])
    np.testing.assert_allclose(batch.numpy(), expected, atol=2e-6)


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
    data = loaded(200, 4, 6)
    batch = images(data, crop_padding=pad, flip=flip).augmented(torch.arange(200), torch.Generator().manual_seed(1))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    ways = [(f, d, r) for f in {False, flip} for d in range(2 * pad + 1) for r in range(2 * pad + 1)]
    used = []
    for pixels, image in zip(data.train_images, batch.numpy(), strict=True):
        fits = [way for way in ways if np.allclose(reference(pixels, pad, *way), image, atol=2e-6)]
        assert len(fits) == 1, "each image is one crop and flip of itself, padded with black"
        used.append(fits[0])
    for values in zip(*used, strict=True):  # flips, rows, columns: drawn independently and uniformly
        kinds, counts = np.unique(values, return_counts=True)
        expected = 200 / len(kinds)
        assert (abs(counts - expected) < 5 * expected**0.5).all()
    assert len(set(used)) > 0.9 * len(ways), "and drawn independently of each other"


def test_without_crop_and_flip_augmented_images_are_unaugmented() -> None:
    split = images(loaded(5, 4, 4), crop_padding=0, flip=False)
    rows = torch.tensor([4, 1])
    assert torch.equal(split.augmented(rows, torch.Generator()), split.unaugmented(rows))


def test_augmentation_is_drawn_from_the_stream_alone() -> None:
    split, rows = images(loaded(50, 8, 8)), torch.arange(50)
    torch.manual_seed(1)
    one = split.augmented(rows, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    assert torch.equal(one, split.augmented(rows, torch.Generator().manual_seed(7)))
    assert not torch.equal(one, split.augmented(rows, torch.Generator().manual_seed(8)))
    stream = torch.Generator().manual_seed(7)
    assert torch.equal(one, split.augmented(rows, stream))
    assert not torch.equal(one, split.augmented(rows, stream)), "the next epoch draws others"


def test_pixels_are_not_written_to() -> None:
    data = loaded(20, 6, 6)
    before = data.train_images.copy()
    images(data).augmented(torch.arange(20), torch.Generator())
    assert np.array_equal(data.train_images, before)

"""Pairs of image and label map files: checks of their headers, and arrays that decode them on access."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from harness.data.files import THREADS, Files
from harness.errors import DataMissing

SCALES = (1.0, 0.5, 0.25)
"""Scales of images at which every pixel of a full-size test label has a position in the network's map."""


def _supported(scale: float) -> float:
    if scale not in SCALES:
        raise ValueError(f"must be 1, 0.5 or 0.25, got {scale:g}")
    return scale


Scale = Annotated[float, AfterValidator(_supported)]


@dataclass(frozen=True)
class Pairs:
    """The images of a split that are used, and the label map of each."""

    images: Sequence[Path]
    labels: Sequence[Path]

    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each image, read from headers: no image is decoded.

        Raises DataMissing if a label map is missing or differs in size from its image.
        """

        def of_pair(image: Path, label: Path) -> tuple[int, int]:
            if not label.is_file():
                raise DataMissing(f"{label} is missing: it must hold the labels of {image}")
            size, label_size = _size(image), _size(label)
            if size != label_size:
                raise DataMissing(
                    f"{label} is {label_size[1]} x {label_size[0]} pixels, "
                    f"but its image {image.name} is {size[1]} x {size[0]}"
                )
            return size

        with ThreadPoolExecutor(THREADS) as pool:  # reading waits for a disk, which may be on a network
            return list(pool.map(of_pair, self.images, self.labels))


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as file:  # reads only the header
            return file.height, file.width
    except Exception as problem:  # PIL's readers raise many kinds of errors for a broken file
        raise DataMissing(f"{path} can't be read: replace or remove it ({problem})") from problem


def as_files(
    train: Pairs,
    test: Pairs,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    scale: float,
    table: NDArray[np.uint8],
) -> tuple[Files, Files, Files, Files]:
    """Return the images and labels of the pool, then those of the test set, whose labels keep their own size.

    ``sizes`` are the common (height, width) of the scaled images of the pool and of the test set.
    """
    pool, test_size = sizes
    label_size = round(test_size[0] / scale), round(test_size[1] / scale)
    return (
        Files(train.images, pool, scale),
        Files(train.labels, pool, scale, table),
        Files(test.images, test_size, scale),
        Files(test.labels, label_size, 1, table),
    )

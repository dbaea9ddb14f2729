"""Images and label maps in files of their own: checking their headers, and reading them as they are needed."""

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
"""Of images: those at which a test label's pixel has its place in the network's map."""


def _known(scale: float) -> float:
    if scale not in SCALES:
        raise ValueError(f"must be 1, 0.5 or 0.25, got {scale:g}")
    return scale


Scale = Annotated[float, AfterValidator(_known)]


@dataclass(frozen=True)
class Pairs:
    """The images of a split that are in use, and the label map of each."""

    images: Sequence[Path]
    labels: Sequence[Path]

    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each image, from headers: no image is decoded.

        Raises DataMissing for a label map that is absent or of another size than its image.
        """

        def of_pair(image: Path, label: Path) -> tuple[int, int]:
            if not label.is_file():
                raise DataMissing(f"{label} is missing: it must hold the labels of {image}")
            size, found = _size(image), _size(label)
            if size != found:
                raise DataMissing(
                    f"{label} is {found[1]} x {found[0]} pixels where its image {image.name} is {size[1]} x {size[0]}"
                )
            return size

        with ThreadPoolExecutor(THREADS) as pool:  # they wait for a disk, perhaps one on a network
            return list(pool.map(of_pair, self.images, self.labels))


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as file:  # reads the header alone
            return file.height, file.width
    except Exception as problem:  # PIL's readers raise nearly anything for a broken file
        raise DataMissing(f"{path} can't be read: replace or remove it ({problem})") from problem


def as_files(
    train: Pairs,
    test: Pairs,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    scale: float,
    table: NDArray[np.uint8],
) -> tuple[Files, Files, Files, Files]:
    """Return images and labels of the pool, then of the test set, whose labels keep their own size.

    ``sizes`` are the common sizes of the images once scaled, of the pool and of the test set.
    """
    pool, tested = sizes
    own = round(tested[0] / scale), round(tested[1] / scale)
    return (
        Files(train.images, pool, scale),
        Files(train.labels, pool, scale, table),
        Files(test.images, tested, scale),
        Files(test.labels, own, 1, table),
    )

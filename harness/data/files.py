"""Image files that are indexed like an array and decoded when they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import DataMissing

if TYPE_CHECKING:
    from numpy.typing import NDArray


IGNORED = 255
"""In a label map: a pixel without a class, which counts in no loss and no figure."""


UNKNOWN = 254
"""In a table of ids: an id that must not occur."""


MOST_CLASSES = 254
"""Of label maps, whose bytes also hold the two values above."""


MULTIPLE = 8
"""Files are filled up to a multiple of it: the output of a segmentation network is that much coarser."""


THREADS = 4
"""Decoders of one indexing, and readers of one fingerprint: PIL and hashlib let go of the interpreter meanwhile."""


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return height, width


def common_size(sizes: Iterable[tuple[int, int]], scale: float = 1) -> tuple[int, int]:
    """Return the height and width that hold each image of these (height, width) once scaled: multiples of 8."""
    heights, widths = zip(*set(sizes), strict=True)
    height, width = (math.ceil(max(sides) * scale / MULTIPLE) * MULTIPLE for sides in (heights, widths))
    return height, width


@dataclass(frozen=True, eq=False)
class Files:
    """Image files that read like a uint8 array: RGB [N, H, W, 3], or label maps [N, H, W] if there is a ``table``.

    ``files[indices]`` decodes the rows of an integer array, and only those; ``files[np.arange(len(files))]`` is the
    whole array (``nbytes``). An image that is smaller than ``size`` lies in the upper left corner, beside zeros (a
    label map: beside IGNORED). Raises DataMissing, with one sentence that names the file.
    """

    paths: Sequence[Path]
    size: tuple[int, int]
    """(H, W), of all images alike: see ``common_size``."""
    scale: float = 1
    """Images are resized to this part of their height and width: bilinear and antialiased, label maps nearest."""
    table: NDArray[np.uint8] | None = None
    """[256]: the class of each id in a label map, or IGNORED, or UNKNOWN."""

    dtype = np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """Return 4 for images, 3 for label maps."""
        return len(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, H, W, 3) or (N, H, W)."""
        return (len(self.paths), *self.size, *(() if self.table is not None else (3,)))

    @property
    def nbytes(self) -> int:
        """Return the bytes of the whole array, were it held in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        indices_only = isinstance(indices, np.ndarray) and indices.ndim == 1 and indices.dtype.kind in "iu"
        assert indices_only, "rows are chosen by an array of indices"
        rows = np.full((len(indices), *self.shape[1:]), 0 if self.table is None else IGNORED, dtype=np.uint8)

        def decode(place: int) -> None:
            pixels = self.row(int(indices[place]))
            height, width = pixels.shape[:2]
            if height > self.size[0] or width > self.size[1]:
                path = self.paths[indices[place]]
                raise DataMissing(f"{path} was changed: it is larger than {self.size[1]} x {self.size[0]} pixels")
            rows[place, :height, :width] = pixels

        with ThreadPoolExecutor(THREADS) as pool:  # a new one each time: it can't be pickled, and starts in no time
            list(pool.map(decode, range(len(indices))))
        return rows

    def row(self, index: int) -> NDArray[np.uint8]:
        """Return one image [h, w, 3] or label map [h, w], not filled up."""
        from PIL import Image

        path, table = self.paths[index], self.table
        try:
            with Image.open(path) as file:
                mode, image = file.mode, file.convert("RGB") if table is None else file
                if self.scale != 1:
                    height, width = _scaled((file.height, file.width), self.scale)
                    way = Image.Resampling.BILINEAR if table is None else Image.Resampling.NEAREST
                    # a side that does not divide loses its last pixels: stretched, it would not lie under its labels
                    image = image.resize((width, height), way, box=(0, 0, width / self.scale, height / self.scale))
                pixels = np.asarray(image)
        except Exception as problem:  # PIL's decoders raise nearly anything for a broken file
            raise DataMissing(f"{path} can't be decoded: replace or remove it ({problem})") from problem
        if table is None:
            return pixels
        if mode not in ("L", "P"):
            raise DataMissing(f"{path} must hold 8-bit class ids in one channel, its mode is {mode}")
        labels = table[pixels]
        if (labels == UNKNOWN).any():
            wrong, known = pixels[labels == UNKNOWN].min(), np.flatnonzero(table != UNKNOWN)
            ignored = "".join(f" ({i} is ignored)" for i in np.flatnonzero(table == IGNORED))
            raise DataMissing(f"{path} holds the id {wrong}; allowed: {_ranges(known)}{ignored}")
        return labels

    def digest(self) -> bytes:
        """Return a hash of the files' bytes and of how they are read, but not of where they lie."""

        def of_file(path: Path) -> bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        total = hashlib.sha256(repr((self.shape, self.scale)).encode())
        total.update(b"" if self.table is None else self.table.tobytes())
        with ThreadPoolExecutor(THREADS) as pool:
            for one in pool.map(of_file, self.paths):
                total.update(one)
        return total.digest()


def _ranges(numbers: NDArray[np.int64]) -> str:
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

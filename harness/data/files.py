"""Image files that are indexed like an array and decoded on access."""

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
"""The value of a label map's pixel without a class, which losses and metrics ignore."""


UNKNOWN = 254
"""The value, in a table of class ids, of an id that must not occur."""


MOST_CLASSES = 254
"""The largest number of classes of a label map: its bytes also hold the two values above."""


MULTIPLE = 8
"""Images are padded to a multiple of this number, the stride of segmentation networks."""


THREADS = 4
"""Threads that decode the files of one access or hash those of a fingerprint; PIL and hashlib release the GIL."""


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return height, width


def common_size(sizes: Iterable[tuple[int, int]], scale: float = 1) -> tuple[int, int]:
    """Return the smallest (height, width), multiples of 8, that contains images of these sizes after scaling."""
    heights, widths = zip(*set(sizes), strict=True)
    height, width = (math.ceil(max(sides) * scale / MULTIPLE) * MULTIPLE for sides in (heights, widths))
    return height, width


@dataclass(frozen=True, eq=False)
class Files:
    """Image files that read like a uint8 array: RGB [N, H, W, 3], or label maps [N, H, W] if there is a ``table``.

    ``files[indices]`` decodes only the rows of an integer array; ``files[np.arange(len(files))]`` decodes all of
    them, which takes ``nbytes`` of memory. An image that is smaller than ``size`` is in the upper left corner, padded
    with zeros (a label map with IGNORED). Raises DataMissing, which names the file, for a file that can't be decoded.
    """

    paths: Sequence[Path]
    size: tuple[int, int]
    """(H, W), the same for all images: see ``common_size``."""
    scale: float = 1
    """Factor of height and width: images are resized bilinearly with antialiasing, label maps to the nearest pixel."""
    table: NDArray[np.uint8] | None = None
    """[256] uint8: the class of each id in a label map, or IGNORED, or UNKNOWN; None for images."""

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
        """Return the number of bytes of the whole array in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        is_index_array = isinstance(indices, np.ndarray) and indices.ndim == 1 and indices.dtype.kind in "iu"
        assert is_index_array, "rows are indexed by an array of indices"
        rows = np.full((len(indices), *self.shape[1:]), 0 if self.table is None else IGNORED, dtype=np.uint8)

        def decode(position: int) -> None:
            pixels = self.row(int(indices[position]))
            height, width = pixels.shape[:2]
            if height > self.size[0] or width > self.size[1]:
                path = self.paths[indices[position]]
                raise DataMissing(f"{path} has changed: it is larger than {self.size[1]} x {self.size[0]} pixels")
            rows[position, :height, :width] = pixels

        with ThreadPoolExecutor(THREADS) as pool:  # a new pool each time: a pool can't be pickled, and starts instantly
            list(pool.map(decode, range(len(indices))))
        return rows

    def row(self, index: int) -> NDArray[np.uint8]:
        """Return one image [h, w, 3] or label map [h, w], without padding."""
        from PIL import Image

        path, table = self.paths[index], self.table
        try:
            with Image.open(path) as file:
                mode, image = file.mode, file.convert("RGB") if table is None else file
                if self.scale != 1:
                    height, width = _scaled((file.height, file.width), self.scale)
                    resampling = Image.Resampling.BILINEAR if table is None else Image.Resampling.NEAREST
                    # cropped to a multiple of 1 / scale: a stretched image would not match its labels
                    image = image.resize(
                        (width, height), resampling, box=(0, 0, width / self.scale, height / self.scale)
                    )
                pixels = np.asarray(image)
        except Exception as problem:  # PIL's decoders raise many kinds of errors for a broken file
            raise DataMissing(f"{path} can't be decoded: replace or remove it ({problem})") from problem
        if table is None:
            return pixels
        if mode not in ("L", "P"):
            raise DataMissing(f"{path} must hold 8-bit class ids in one channel, its mode is {mode}")
        labels = table[pixels]
        if (labels == UNKNOWN).any():
            wrong, allowed = pixels[labels == UNKNOWN].min(), np.flatnonzero(table != UNKNOWN)
            ignored = "".join(f" ({i} is ignored)" for i in np.flatnonzero(table == IGNORED))
            raise DataMissing(f"{path} holds the id {wrong}; allowed: {_ranges(allowed)}{ignored}")
        return labels

    def digest(self) -> bytes:
        """Return a hash of the files' bytes, the shape, the scale and the table, but not of the paths."""

        def of_file(path: Path) -> bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        total = hashlib.sha256(repr((self.shape, self.scale)).encode())
        total.update(b"" if self.table is None else self.table.tobytes())
        with ThreadPoolExecutor(THREADS) as pool:
            for digest in pool.map(of_file, self.paths):
                total.update(digest)
        return total.digest()


def _ranges(numbers: NDArray[np.int64]) -> str:
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

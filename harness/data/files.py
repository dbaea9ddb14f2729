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

from harness.data import pixels, remembered
from harness.errors import BadFile, DataMissing

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
"""Threads that decode the files of one access; PIL releases the GIL."""


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
    """Relative paths are made absolute, because workers may run in another folder."""
    size: tuple[int, int]
    """(H, W), the same for all images: see ``common_size``."""
    scale: float = 1
    """Factor of height and width: images are resized bilinearly with antialiasing, label maps to the nearest pixel."""
    table: NDArray[np.uint8] | None = None
    """[256] uint8: the class of each id in a label map, or IGNORED, or UNKNOWN; None for images."""
    cover: tuple[int, int] | None = None
    """(h, w) that files of any size are brought to instead of ``scale``: resized to cover it, cropped to the centre."""
    whole: bool = False
    """Whether an image has one label as a whole: its EXIF orientation is applied. An image with a label map must have
    none."""

    dtype = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        if not all(path.is_absolute() for path in self.paths):
            object.__setattr__(self, "paths", [path.absolute() for path in self.paths])

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
        from PIL import Image, ImageOps

        path, table = self.paths[index], self.table
        image = pixels.rgb(path, turn=self.whole) if table is None else pixels.ids(path)
        resampling = Image.Resampling.BILINEAR if table is None else Image.Resampling.NEAREST
        if self.cover is not None:
            image = ImageOps.fit(image, self.cover[::-1], resampling)
        elif self.scale != 1:
            height, width = _scaled((image.height, image.width), self.scale)
            # cropped to a multiple of 1 / scale: a stretched image would not match its labels
            image = image.resize((width, height), resampling, box=(0, 0, width / self.scale, height / self.scale))
        values = np.asarray(image)
        if table is None:
            return values
        labels = table[values]
        if (labels == UNKNOWN).any():
            raise BadFile(unknown_id(path, int(values[labels == UNKNOWN].min()), table))
        return labels

    def digests(self) -> list[str]:
        """Return a hash of each file's bytes. Raises DataMissing for files that can't be read."""
        found = remembered.known(self.paths, "sha256", _sha256)
        if bad := [digest for digest in found if isinstance(digest, BadFile)]:
            raise pixels.refused(bad, len(found))
        return found

    def digest(self) -> bytes:
        """Return a hash of the files' bytes, the shape, the scale and the table, but not of the paths."""
        settings = (self.shape, self.scale, *((self.cover,) if self.cover else ()), *(("whole",) if self.whole else ()))
        total = hashlib.sha256(repr(settings).encode())
        total.update(b"" if self.table is None else self.table.tobytes())
        for digest in self.digests():
            total.update(bytes.fromhex(digest))
        return total.digest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFile(f"{path} can't be read ({error.strerror})") from None


def unknown_id(path: Path, wrong: int, table: NDArray[np.uint8]) -> str:
    """Return the sentence about a label map with an id that is UNKNOWN in the table."""
    allowed, ignored = np.flatnonzero(table != UNKNOWN), np.flatnonzero(table == IGNORED)
    runs = np.split(allowed, np.flatnonzero(np.diff(allowed) > 1) + 1)
    ranges = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{path} holds the id {wrong}; allowed: {ranges}" + (
        f" ({ignored[0]} is ignored)" if len(ignored) == 1 else ""
    )

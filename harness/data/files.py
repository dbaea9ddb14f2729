"""Image files that are indexed like an array and decoded on access."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.data import pixels, remembered
from harness.data.paths import Paths
from harness.data.shards import Shards
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
    """Kept as absolute ``Paths``, because workers may run in another folder."""
    size: tuple[int, int]
    """(H, W), the same for all images: see ``common_size``."""
    scale: float = 1
    """Factor of height and width: images are resized bilinearly with antialiasing, label maps to the nearest pixel."""
    table: NDArray[np.uint8] | None = None
    """[256] uint8: the class of each id in a label map, or IGNORED, or UNKNOWN; None for images."""
    cover: tuple[int, int] | None = None
    """(h, w) that files of any size are brought to instead of ``scale``: resized to cover it, cropped to the centre."""
    whole: bool = False
    """Whether an image has one label as a whole: its EXIF orientation is applied, and a JPEG with sides of at least
    twice ``cover`` is decoded at 1/2, 1/4 or 1/8 of its size. An image with a label map must have no orientation."""
    prepared: Shards | None = None
    """Where rows lie decoded; a row that is missing there is decoded from its file."""
    digested: bytes | None = None
    """The digest, where it is known: that of files that ``prepared.looked_over`` has returned."""

    dtype = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        paths = self.paths if isinstance(self.paths, Paths) else Paths.of(self.paths)
        object.__setattr__(self, "paths", paths.absolute())

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
        rows = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        self.read(indices, rows)
        return rows

    def read(self, indices: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write the rows with these indices into ``rows`` [len(indices), H, W, ...]."""
        for index, row in zip(indices.tolist(), rows, strict=True):
            if self.prepared is None or not self.prepared.read(range(len(self))[index], row):
                self.decode(index, row)

    def decode(self, index: int, row: NDArray[np.uint8]) -> None:
        """Write one decoded and padded row into ``row`` [H, W, ...]."""
        values = self.row(index, row)
        if values is row:
            return
        height, width = values.shape[:2]
        if height > self.size[0] or width > self.size[1]:
            raise DataMissing(
                f"{self.paths[index]} has changed: it is larger than {self.size[1]} x {self.size[0]} pixels"
            )
        if (height, width) != self.size:
            row[:] = 0 if self.table is None else IGNORED
        row[:height, :width] = values

    def row(self, index: int, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return one image [h, w, 3] or label map [h, w], without padding; ``into`` itself if it was decoded there."""
        path, table = self.paths[index], self.table
        if table is None:
            return self._resized(pixels.array(path, self.whole, self.cover if self.whole else None, into))
        values = self._resized(np.asarray(pixels.ids(path)))
        labels = table[values]
        if (labels == UNKNOWN).any():
            raise BadFile(path, unknown_id(int(values[labels == UNKNOWN].min()), table))
        return labels

    def _resized(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return decoded values at the size that ``scale`` or ``cover`` asks for."""
        from PIL import Image, ImageOps

        wanted = self.cover or _scaled((values.shape[0], values.shape[1]), self.scale)
        if values.shape[:2] == wanted:
            return values
        image = Image.fromarray(values)
        resampling = Image.Resampling.BILINEAR if self.table is None else Image.Resampling.NEAREST
        height, width = wanted
        if self.cover is not None:
            return np.asarray(ImageOps.fit(image, (width, height), resampling))
        # cropped to a multiple of 1 / scale: a stretched image would not match its labels
        box = (0, 0, width / self.scale, height / self.scale)
        return np.asarray(image.resize((width, height), resampling, box=box))

    def hashes(self, remedy: str = pixels.REPLACE) -> NDArray[np.uint8]:
        """Return a hash [N, 32] of each file's bytes. Raises DataMissing for files that can't be read."""
        found, bad = np.empty((len(self), 32), dtype=np.uint8), list[BadFile]()
        for row, digest in zip(found, remembered.each(self.paths, "sha256", _sha256), strict=True):
            if isinstance(digest, BadFile):
                bad.append(digest)
            else:
                row[:] = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
        if bad:
            raise pixels.refused(bad, len(found), remedy)
        return found

    def digest(self, hashes: NDArray[np.uint8] | None = None) -> bytes:
        """Return a hash of the files' bytes (their ``hashes``) and of how they are decoded, but not of the paths."""
        if self.digested is not None:
            return self.digested
        settings = (self.shape, self.scale, *((self.cover,) if self.cover else ()), *(("whole",) if self.whole else ()))
        total = hashlib.sha256(repr(settings).encode())
        total.update(b"" if self.table is None else self.table.tobytes())
        total.update((self.hashes() if hashes is None else hashes).data)
        return total.digest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFile(path, f"can't be read ({error.strerror})") from None


def unknown_id(wrong: int, table: NDArray[np.uint8]) -> str:
    """Return the problem of a label map with an id that is UNKNOWN in the table."""
    allowed, ignored = np.flatnonzero(table != UNKNOWN), np.flatnonzero(table == IGNORED)
    runs = np.split(allowed, np.flatnonzero(np.diff(allowed) > 1) + 1)
    ranges = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"holds the id {wrong}; allowed: {ranges}" + (f" ({ignored[0]} is ignored)" if len(ignored) == 1 else "")

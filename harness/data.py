"""What a dataset is: facts that can be checked before a run, and images and labels once it starts.

An image's index is its place in the training set, whose order is deterministic; there is no other kind of index.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from harness.errors import DataMissing
from harness.settings import Strict

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


@dataclass(frozen=True)
class DataPlace:
    """Where data lies on this machine: never part of what is measured.

    ``root`` is the folder that holds every dataset (``where.data``, else $HARNESS_DATA, else ./data); ``download``
    says whether an archive that may be downloaded is.
    """

    root: Path
    download: bool

    @classmethod
    def of(cls, data: str | None, download: bool) -> DataPlace:
        """Return the place for the config's ``where.data`` and ``where.download``."""
        return cls(Path(data or os.environ.get("HARNESS_DATA") or "data").expanduser(), download)


@dataclass(frozen=True)
class Facts:
    """What a plan needs to know of a dataset without loading it; counts are after ``limit`` and ``test_limit``."""

    num_train: int
    num_test: int
    num_classes: int
    channels: int
    size: tuple[int, int]
    source: str
    """One phrase for the user: which files are read."""
    per_pixel: bool = False
    """Labels are maps: a class for each pixel, not for each image."""


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


@dataclass(frozen=True)
class Problem:
    """A loaded dataset: arrays ready for a device (or for an object store, without a copy), or files to decode.

    Shapes: images [N, H, W, channels] uint8. Labels [N] int64 with values 0..len(classes)-1, or maps [N, H, W] uint8
    with these values or IGNORED; test maps may be a multiple of that size: where images are scaled down, the test is at
    the labels' own size. Mean and std per channel for pixels scaled to 0..1.
    """

    train_images: NDArray[np.uint8] | Files
    train_labels: NDArray[np.int64] | NDArray[np.uint8] | Files
    test_images: NDArray[np.uint8] | Files
    test_labels: NDArray[np.int64] | NDArray[np.uint8] | Files
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.classes)
        assert self.train_labels.ndim == self.test_labels.ndim, "both splits have labels of one kind"
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            assert images.dtype == np.uint8 and images.ndim == 4, "images are [N, H, W, channels] uint8"
            if self.per_pixel:
                number, height, width = images.shape[:3]
                factor = labels.shape[1] // height if labels is self.test_labels else 1
                shape = (number, factor * height, factor * width)
                assert labels.dtype == np.uint8 and labels.shape == shape, "maps are [N, H, W] uint8"
                assert count <= MOST_CLASSES, f"label maps have at most {MOST_CLASSES} classes"
            else:
                assert labels.dtype == np.int64 and labels.shape == images.shape[:1], "one int64 label for each image"
            if not isinstance(labels, Files):  # those are looked at when they are decoded
                known = (labels >= 0) & (labels < count)
                assert (known | (labels == IGNORED) if self.per_pixel else known).all(), "labels are 0..classes-1"

    @property
    def per_pixel(self) -> bool:
        """Return whether labels are maps."""
        return self.train_labels.ndim == 3

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of all pixels and labels: equal if and only if two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(array.digest() if isinstance(array, Files) else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


class DatasetSettings(Strict):
    """Settings that every dataset has; a dataset's own Settings inherit from these."""

    limit: PositiveInt | None = Field(
        None, description="use only this many training images, class-balanced (evenly spaced where labels are maps)"
    )
    test_limit: PositiveInt | None = Field(
        None, description="use only this many test images, class-balanced (evenly spaced where labels are maps)"
    )


class Dataset:
    """Contract of datasets/<name>.py: one subclass, with its Settings nested.

    ``facts`` must be cheap (no decoding, no torch); it and then ``fetch`` are called before anything starts, and
    ``load`` reads everything. Each raises DataMissing with one sentence that says what to get and where to put it.
    """

    Settings: ClassVar[type[DatasetSettings]] = DatasetSettings

    def __init__(self, settings: Any, place: DataPlace) -> None:
        self.settings = settings
        self.place = place

    def facts(self) -> Facts:
        """Return counts and shapes, and check that the data is there and whole."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Download what is absent and may be downloaded; nothing to do for most datasets."""

    def load(self) -> Problem:
        """Return the images and labels, in an order that is the same on every machine."""
        raise NotImplementedError


def balanced(labels: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """Return the ascending indices of a class-balanced part: the first images of each class, in turn of class.

    With C classes each gets limit // C images and the first limit % C classes one more; a class that has fewer
    gives all of its images and the rest of the limit goes to the others. ``None`` keeps everything.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    rank_in_class = np.arange(len(labels)) - first[inverse]
    return np.sort(order[np.lexsort((labels[order], rank_in_class))][:limit])


def spaced(count: int, limit: int | None) -> NDArray[np.int64]:
    """Return the ascending indices of ``limit`` of ``count`` images, evenly spaced: neighbours in a drive are alike."""
    kept = count if limit is None else min(limit, count)
    return np.arange(kept) * count // kept

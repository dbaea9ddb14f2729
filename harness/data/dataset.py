"""The contract of a dataset: properties that are checked before a run, and images and labels that the run loads.

An image's index is its position in the training set, whose order is deterministic. There is no other kind of index.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from harness.data.files import IGNORED, MOST_CLASSES, Files
from harness.settings import Strict

if TYPE_CHECKING:
    from numpy.typing import NDArray


IMAGES, MAPS = "images", "label maps"
"""The kinds of labels: one class per image, or one class per pixel."""


@dataclass(frozen=True)
class DataRoot:
    """Where the datasets are on this machine. It does not affect results.

    ``root`` is the folder that holds every dataset (``where.data``, else $HARNESS_DATA, else ./data). ``download`` says
    whether archives may be downloaded.
    """

    root: Path
    download: bool

    @classmethod
    def of(cls, data: str | None, download: bool) -> DataRoot:
        """Return the root for the config's ``where.data`` and ``where.download``."""
        return cls(Path(data or os.environ.get("HARNESS_DATA") or "data").expanduser(), download)


@dataclass(frozen=True)
class DatasetInfo:
    """The properties of a dataset that are known without loading it; counts are after ``limit`` and ``test_limit``."""

    num_train: int
    num_test: int
    num_classes: int
    channels: int
    size: tuple[int, int]
    """Height and width of the images, in pixels."""
    source: str
    """The files that are read, in one phrase, for --plan."""
    per_pixel: bool = False
    """Whether labels are maps: one class per pixel instead of one per image."""

    @property
    def labels(self) -> str:
        """The kind of labels: IMAGES or MAPS."""
        return MAPS if self.per_pixel else IMAGES


@dataclass(frozen=True)
class LoadedData:
    """A loaded dataset: arrays, which an object store holds without a copy, or files that are decoded on access.

    Images are [N, H, W, channels] uint8. Labels are [N] int64 with values 0..len(classes)-1, or maps [N, H, W] uint8
    with these values or IGNORED. The sides of test maps may be a multiple of their images' sides, because tests on
    scaled-down images use the labels' own size. Mean and std are per channel, of pixels scaled to 0..1.
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
            if not isinstance(labels, Files):  # files are checked when they are decoded
                valid = (labels >= 0) & (labels < count)
                assert (valid | (labels == IGNORED) if self.per_pixel else valid).all(), "labels are 0..classes-1"

    @property
    def per_pixel(self) -> bool:
        """Whether labels are maps."""
        return self.train_labels.ndim == 3

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of a hash of all pixels and labels: equal for two runs on the same data."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(array.digest() if isinstance(array, Files) else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


class DatasetSettings(Strict):
    """Settings that all datasets have; the Settings of a dataset inherit from this class."""

    limit: PositiveInt | None = Field(
        None, description="use only this many training images, class-balanced (evenly spaced if labels are maps)"
    )
    test_limit: PositiveInt | None = Field(
        None, description="use only this many test images, class-balanced (evenly spaced if labels are maps)"
    )


class Dataset:
    """The contract of datasets/<name>.py, which defines one subclass, with its Settings nested.

    ``info`` must be cheap (no decoding, no torch). ``info`` and then ``fetch`` are called before a run starts; ``load``
    reads everything. Each raises DataMissing, which states which files to get and where to put them.
    """

    Settings: ClassVar[type[DatasetSettings]] = DatasetSettings

    def __init__(self, settings: Any, data_root: DataRoot) -> None:
        self.settings = settings
        self.data_root = data_root

    def info(self) -> DatasetInfo:
        """Return counts and shapes, and check that the data is there and complete."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Download missing files, if downloads are allowed; by default do nothing."""

    def load(self) -> LoadedData:
        """Return the images and labels, in an order that is the same on every machine."""
        raise NotImplementedError


def balanced(labels: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """Return the ascending indices of a class-balanced subset: the first images of each class.

    With C classes, each gets limit // C images, and the first limit % C classes get one more. A class with fewer images
    keeps all of them, and the other classes fill the limit. A limit of None keeps all images.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    rank_in_class = np.arange(len(labels)) - first[inverse]
    return np.sort(order[np.lexsort((labels[order], rank_in_class))][:limit])


def spaced(count: int, limit: int | None) -> NDArray[np.int64]:
    """Return the ascending indices of ``limit`` of ``count`` images, evenly spaced.

    Even spacing avoids consecutive frames of a recording, which are similar.
    """
    kept = count if limit is None else min(limit, count)
    return np.arange(kept) * count // kept

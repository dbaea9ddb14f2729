"""What a dataset is: facts that can be checked before a run, and images and labels once it starts.

An image's index is its position in the training set, whose order is deterministic; there is no other kind of index.
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

from harness.settings import Strict

if TYPE_CHECKING:
    from numpy.typing import NDArray
from harness.data.files import IGNORED, MOST_CLASSES, Files


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

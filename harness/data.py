"""What a dataset is: facts that can be checked before a run, and images and labels once it starts.

An image's index is its place in the training set, whose order is deterministic; there is no other kind of index.
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
    """Whether each pixel has a label, or the image as a whole."""


@dataclass(frozen=True)
class Problem:
    """A loaded dataset: all images as uint8, ready for a device (or for an object store, without a copy).

    Shapes: images [N, H, W, channels] uint8, labels [N] int64 with values 0..len(classes)-1; mean and std per
    channel for pixels scaled to 0..1.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            assert images.dtype == np.uint8 and images.ndim == 4, "images are [N, H, W, channels] uint8"
            assert labels.dtype == np.int64 and len(labels) == len(images), "one int64 label for each image"
            assert labels.min() >= 0 and labels.max() < len(self.classes), "labels are 0..classes-1"

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of all pixels and labels: equal if and only if two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


class DatasetSettings(Strict):
    """Settings that every dataset has; a dataset's own Settings inherit from these."""

    limit: PositiveInt | None = Field(None, description="use only this many training images, class-balanced")
    test_limit: PositiveInt | None = Field(None, description="use only this many test images, class-balanced")


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

"""The contract of a dataset: properties that are checked before a run, and images and labels that the run loads.

An image's index is its position in the training set, whose order is deterministic. There is no other kind of index.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from harness import seeds
from harness.data import pixels, remembered
from harness.data.files import IGNORED, MOST_CLASSES, UNKNOWN, Files
from harness.data.paths import Names
from harness.data.prepared import Place, place
from harness.errors import DataMissing, UserError, expanded, kind_of, readable, reason
from harness.faults import PluginFault, WrongData, call, check_signature, described, fault, make, name_of
from harness.settings import ImageCount, Strict

if TYPE_CHECKING:
    from numpy.typing import NDArray


IMAGES, MAPS = "images", "label maps"
"""The kinds of labels: one class per image, or one class per pixel."""


SMALLER = ("image_size", "scale", "size")
"""The settings of datasets that make images smaller."""


@dataclass(frozen=True)
class DataRoot:
    """Where the datasets are on this machine. It does not affect results.

    ``root`` is the folder that holds every dataset (``where.data``, else $HARNESS_DATA, else ./data). ``download`` says
    whether archives may be downloaded. ``prepared`` is where images of files are kept as they are used; None: nowhere.
    """

    root: Path
    download: bool
    prepared: Place | None = None

    @classmethod
    def of(cls, data: str | None, download: bool, prepared: bool | str = False) -> DataRoot:
        """Return the root for the config's ``where.data``, ``download``, ``prepared``. Raises UserError for a file."""
        written = data or os.environ.get("HARNESS_DATA") or "data"
        root = expanded(written)
        try:
            if (kind := kind_of(root)) not in ("", "a folder"):
                raise UserError(f"where.data: {written} is {kind}; it must be the folder that holds all datasets")
        except OSError as error:
            raise UserError(f"where.data: {written:.200}: {reason(error)}") from None
        return cls(root, download, place(prepared))


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
    notes: tuple[str, ...] = ()
    """What a user must know of the files, such as which were left out: a sentence each, for --plan and run.json."""
    from_files: bool = False
    """Whether ``load`` returns ``Files``, which are decoded on access and need not fit into memory."""
    official: bool = False
    """Whether the files are the published ones, by their published checksums; only then does the report give a verdict
    beside published values."""
    resized: int = 0
    """Bytes of the images and label maps that are resized as they are decoded, which a run keeps prepared."""

    @property
    def labels(self) -> str:
        """The kind of labels: IMAGES or MAPS."""
        return MAPS if self.per_pixel else IMAGES

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images and label maps."""
        height, width = self.size
        return (self.num_train + self.num_test) * height * width * (self.channels + self.per_pixel)

    @property
    def in_memory(self) -> int:
        """Bytes that the loaded data takes."""
        return 0 if self.from_files else self.nbytes


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
    names: Sequence[str] = ()
    """The file of each training image, for records: a tuple, or Names; empty if there are no files."""
    notes: tuple[str, ...] = ()
    """What a user must know and only loading tells, a sentence each."""

    def __post_init__(self) -> None:
        """Raise WrongData if the arrays don't fit together."""
        count, channels = len(self.classes), self.train_images.shape[-1]
        for name, times in Counter(self.classes).items():
            if times > 1:  # reports tell classes apart by their names
                raise WrongData(f"classes must differ; {name!r} occurs {times} times")
        if self.train_labels.ndim != self.test_labels.ndim:
            dimensions = f"{self.train_labels.ndim} and {self.test_labels.ndim} dimensions"
            raise WrongData(f"train_labels and test_labels must be of one kind; they have {dimensions}")
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
                expected = (
                    f"uint8 [N, H, W, {channels}]" if self.train_images.ndim == 4 else "uint8 [N, H, W, channels]"
                )
                raise WrongData(f"{split}_images must be {expected}; got {described(images)}")
            self._check_labels(split, images, labels, count)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != channels or not np.isfinite(values).all():
                raise WrongData(f"{name} must be {channels} finite numbers, one per channel; got {list(values)}")
        if min(self.std) <= 0:
            raise WrongData(f"std must be positive; got {list(self.std)}")
        for name in ("names", "notes"):
            texts = getattr(self, name)
            is_text = isinstance(texts, tuple) and all(isinstance(text, str) for text in texts)
            if not is_text and not (name == "names" and isinstance(texts, Names)):
                raise WrongData(f"{name} must be a tuple of texts; got {described(texts)}")
        if self.names and len(self.names) != len(self.train_images):
            raise WrongData(f"names must be one for each training image, or none; got {len(self.names)}")

    def _check_labels(self, split: str, images: Any, labels: Any, count: int) -> None:
        """Raise WrongData if labels have a wrong shape, a wrong type or values that are no class."""
        dtype, shape, kind = "int64", images.shape[:1], "[N]"
        if self.per_pixel:
            number, height, width = images.shape[:3]
            factor = max(1, labels.shape[1] // height) if split == "test" else 1
            dtype, shape, kind = "uint8", (number, factor * height, factor * width), "[N, H, W]"
            if count > MOST_CLASSES:
                raise WrongData(f"classes must be at most {MOST_CLASSES} for label maps; got {count}")
        if labels.dtype != dtype or labels.shape != shape:
            raise WrongData(f"{split}_labels must be {kind}, {dtype} {list(shape)}; got {described(labels)}")
        # files are checked by their table, from which every label comes
        values: Any = np.setdiff1d(np.asarray(labels.table), [UNKNOWN]) if isinstance(labels, Files) else labels
        wrong = values[((values < 0) | (values >= count)) & ~(self.per_pixel & (values == IGNORED))]
        if len(wrong):
            ignored = f" or {IGNORED}, which is ignored" if self.per_pixel else ""
            raise WrongData(f"{split}_labels must be 0..{count - 1}{ignored}; got {int(wrong[0])}")

    @property
    def per_pixel(self) -> bool:
        """Whether labels are maps."""
        return self.train_labels.ndim == 3

    def _files(self) -> dict[str, Files]:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return {name: array for name in names if isinstance(array := getattr(self, name), Files)}

    @property
    def decoded(self) -> list[Files]:
        """The images and label maps that are decoded on access; none for data in memory."""
        return [*self._files().values()]

    def with_files(self, change: Callable[[Files], Files]) -> LoadedData:
        """Return the data with ``change(files)`` in the place of images and label maps that are decoded on access."""
        changed: dict[str, Any] = {name: change(files) for name, files in self._files().items()}
        return replace(self, **changed) if changed else self

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of a hash of all pixels and labels: equal for two runs on the same data."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(array.digest() if isinstance(array, Files) else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @cached_property
    def copies(self) -> int:
        """The number of test images that are also training images: equal files, or equal pixels of arrays."""
        if isinstance(train := self.train_images, Files) and isinstance(test := self.test_images, Files):
            key = hashlib.sha256(b"copies" + train.digest() + test.digest()).hexdigest()[:32]
            count: int = remembered.of_content(key, self._counted_copies, lambda value: type(value) is int)
            return count
        return self._counted_copies()

    @cached_property
    def altered(self) -> list[str]:
        """Sentences on the images of files that are not read as they are, such as those of 16 bits; none of arrays."""
        parts = [images for images in (self.train_images, self.test_images) if isinstance(images, Files)]
        if not parts:
            return []
        digests = b"".join(images.digest() for images in parts)
        key = hashlib.sha256(b"altered" + digests + pixels.reader().encode()).hexdigest()[:32]
        find = partial(pixels.altered, [images.paths for images in parts])
        sentences: list[str] = remembered.of_content(key, find, _are_texts)
        return sentences

    def _counted_copies(self) -> int:
        train, test = (
            (images.hashes() if isinstance(images, Files) else _hashes(images)).view("S32").ravel()
            for images in (self.train_images, self.test_images)
        )
        return int(np.isin(test, train).sum())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _hashes(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a hash [N, 32] of each image's pixels."""
    found = np.empty((len(images), 32), dtype=np.uint8)
    for row, image in zip(found, images, strict=True):
        row[:] = np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).data).digest(), dtype=np.uint8)
    return found


class DatasetSettings(Strict):
    """Settings that all datasets have; the Settings of a dataset inherit from this class."""

    limit: ImageCount | None = Field(
        None, description="use only this many training images, class-balanced (evenly spaced if labels are maps)"
    )
    test_limit: ImageCount | None = Field(
        None, description="use only this many test images, class-balanced (evenly spaced if labels are maps)"
    )
    top5: bool = Field(
        False,
        description="also report top-5 accuracy: how often the label is among the five highest class scores; for image "
        "labels of more than 5 classes",
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

    def examine(self) -> list[str]:
        """Decode every file and return what was found, in sentences, for --check-data; by default there is nothing.

        Raises DataMissing, which names all files that can't be used.
        """
        return []


def check_dataset(plugin: type[Any], name: str) -> None:
    """Raise PluginFault if the class of a dataset, written ``name`` in the config, breaks its contract."""
    if not (isinstance(plugin.Settings, type) and issubclass(plugin.Settings, DatasetSettings)):
        raise fault(plugin, "Settings", "must be a subclass of DatasetSettings", name)
    for hook in ("__init__", "info", "fetch", "load", "examine"):
        check_signature(plugin, Dataset, hook, name)


def opened(plugin: type[Dataset], name: str, settings: Any, data_root: DataRoot) -> Dataset:
    """Return a dataset, written ``name`` in the config, not yet loaded. Raises PluginFault."""
    check_dataset(plugin, name)
    dataset: Dataset = make(plugin, name, settings, data_root)
    if not hasattr(dataset, "data_root"):
        raise fault(plugin, "__init__", "must call super().__init__(settings, data_root)", name)
    return dataset


def _asked(dataset: Dataset, hook: str) -> Any:
    """Return what a hook returns. What the system says of a file, or a lack of memory, becomes a DataMissing."""
    try:
        with same_streams(dataset, hook):
            return call(dataset, hook)
    except DataMissing as missing:
        raise DataMissing(readable(str(missing))) from missing
    except PluginFault as wrong:
        error = wrong.__cause__
        # a file that is not there is the plug-in's own to explain
        if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
            raise DataMissing(f"{readable(str(error.filename))} can't be read ({error.strerror})") from error
        raise
    except MemoryError:
        raise DataMissing(f"{name_of(dataset)} does not fit into memory: {less(dataset.settings)}") from None


def less(settings: Any) -> str:
    """Return what helps against data that does not fit into memory, with the keys that a dataset has."""
    smaller = " or ".join(f"dataset.{key}" for key in SMALLER if key in type(settings).model_fields)
    return f"{f'lower {smaller}, or ' if smaller else ''}set dataset.limit and dataset.test_limit"


@contextmanager
def same_streams(dataset: Dataset, hook: str) -> Iterator[None]:
    """Raise PluginFault if the hook, which runs in the ``with`` block, moves a global random stream.

    All streams are restored, also if nothing is wrong.
    """
    before, modules = seeds.global_states(), len(sys.modules)
    yield
    after = seeds.global_states()
    seeds.restore(before)
    if len(sys.modules) > modules:  # importing scikit-learn draws from random
        del before["random"]
    if library := seeds.moved(before, after):
        problem = f"must not draw from the global random stream of {library}, or seed it"
        raise fault(dataset, hook, f"{problem}; draw from numpy.random.default_rng(SEED)")


def facts(dataset: Dataset) -> DatasetInfo:
    """Return a dataset's ``info``. Raises PluginFault if it is wrong."""
    info = _asked(dataset, "info")
    if not isinstance(info, DatasetInfo):
        raise fault(dataset, "info", f"must return a DatasetInfo; got {described(info)}")
    for name in ("num_train", "num_test", "num_classes", "channels"):
        value, least = getattr(info, name), 2 if name == "num_classes" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise fault(dataset, "info", f"must return {name} as an int of at least {least}; got {described(value)}")
    for name, count in (("limit", info.num_train), ("test_limit", info.num_test)):
        limit = getattr(dataset.settings, name)
        if limit is not None and count > limit:
            problem = f"must apply {name}: with {name}={limit} at most {limit} images are left"
            raise fault(dataset, "info", f"{problem}; got {count}")
    sides = info.size
    if not (isinstance(sides, tuple) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
        raise fault(dataset, "info", f"must return size as (height, width) in pixels; got {sides!r:.60}")
    if not isinstance(info.per_pixel, bool):
        raise fault(dataset, "info", f"must return per_pixel as a bool; got {described(info.per_pixel)}")
    if not isinstance(info.official, bool):
        raise fault(dataset, "info", f"must return official as a bool; got {described(info.official)}")
    if type(info.resized) is not int or info.resized < 0:
        raise fault(dataset, "info", f"must return resized as an int of at least 0; got {described(info.resized)}")
    if not isinstance(info.source, str):
        raise fault(dataset, "info", f"must return source as a text; got {described(info.source)}")
    if not (isinstance(info.notes, tuple) and all(isinstance(note, str) for note in info.notes)):
        raise fault(dataset, "info", f"must return notes as a tuple of texts; got {described(info.notes)}")
    return replace(info, source=readable(info.source), notes=tuple(map(readable, info.notes)))


def fetch(dataset: Dataset) -> None:
    """Let a dataset download missing files."""
    _asked(dataset, "fetch")


def read(dataset: Dataset) -> LoadedData:
    """Return a dataset's images and labels. Raises PluginFault if they are no LoadedData."""
    data = _asked(dataset, "load")
    if not isinstance(data, LoadedData):
        raise fault(dataset, "load", f"must return LoadedData; got {described(data)}")
    return data


def loaded(dataset: Dataset, info: DatasetInfo) -> LoadedData:
    """Return a dataset's images and labels. Raises PluginFault if they are not as ``info`` states."""
    data = read(dataset)
    (height, width), (test_height, test_width) = data.train_images.shape[1:3], data.test_images.shape[1:3]
    found = {
        "num_train": len(data.train_images),
        "num_test": len(data.test_images),
        "num_classes": len(data.classes),
        "channels": data.train_images.shape[3],
        "size": (height, width),
        "per_pixel": data.per_pixel,
    }
    wrong = [(name, getattr(info, name), value) for name, value in found.items() if getattr(info, name) != value]
    if (test_height, test_width) != info.size and not info.per_pixel:  # networks take maps of any size
        wrong.append(("size", info.size, f"{(test_height, test_width)} in the test set"))
    if wrong:
        name, stated, value = wrong[0]
        raise fault(dataset, "load", f"must return what info states; {name} is {stated} in info, {value} loaded")
    if isinstance(data.train_labels, np.ndarray):
        counts = np.bincount(data.train_labels.ravel(), minlength=IGNORED + 1)
        present = np.flatnonzero(counts[:IGNORED] if data.per_pixel else counts)
        if len(present) < 2:
            which = f"only the class {data.classes[present[0]]!r} occurs" if len(present) else "no class occurs"
            raise DataMissing(f"{which} in the labels of the pool: a classifier needs at least two (is limit too low?)")
    given = {key: value for key in ("names", "notes") if isinstance(value := getattr(data, key), tuple)}
    texts: dict[str, Any] = {key: tuple(map(readable, value)) for key, value in given.items()}
    if texts != given:
        data = replace(data, **texts)
    return data


def examined(dataset: Dataset) -> list[str]:
    """Return what a dataset found in its files, in sentences. Raises PluginFault if that is wrong."""
    found = _asked(dataset, "examine")
    if not (isinstance(found, list) and all(isinstance(line, str) for line in found)):
        raise fault(dataset, "examine", f"must return a list of texts; got {described(found)}")
    return [readable(line) for line in found]


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

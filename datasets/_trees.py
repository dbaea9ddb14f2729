"""Image trees, train/<class>/<image> and test/<class>/<image>: listing, decoding and measuring."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import DataMissing

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WebP"}


@dataclass(frozen=True)
class Tree:
    """The images of a tree: classes sorted by name, and in each class the files sorted by name."""

    classes: tuple[str, ...]
    train_paths: list[Path]
    train_labels: NDArray[np.int64]
    test_paths: list[Path]
    test_labels: NDArray[np.int64]

    @property
    def formats(self) -> str:
        """Return the image formats that occur, such as 'JPEG, PNG'."""
        suffixes = {path.suffix for path in self.train_paths + self.test_paths}
        return ", ".join(sorted({FORMATS[suffix.lower()] for suffix in suffixes}))


def class_names(part: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in train/ or test/, leaving out hidden ones."""
    if not part.is_dir():
        return ()
    return tuple(sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")))


def read_tree(folder: Path, suffixes: Collection[str], classes: tuple[str, ...] | None = None) -> Tree:
    """List a tree, without opening an image. ``None`` takes the classes from train/; test/ must have the same."""
    layout = "expected are train/<class>/<image> and test/<class>/<image>"
    if not folder.is_dir():
        raise DataMissing(f"there is no folder {folder}; {layout} in it")
    for part in (folder / "train", folder / "test"):
        if not class_names(part):
            raise DataMissing(f"{folder} has no folder {part.name}/ with one folder for each class; {layout}")
    classes = classes or class_names(folder / "train")
    listed: dict[str, tuple[list[Path], NDArray[np.int64]]] = {}
    for part in (folder / "train", folder / "test"):
        there = class_names(part)
        if unknown := sorted(set(there) - set(classes)):
            raise DataMissing(f"{part} has the unknown class {unknown[0]!r}; the classes are {_some(classes)}")
        if lacking := sorted(set(classes) - set(there)):
            raise DataMissing(f"{part} lacks the class {lacking[0]!r}; put its images in {part / lacking[0]}")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = _images(part / name, suffixes)
            if not images:
                wanted = ", ".join(suffix.removeprefix(".") for suffix in suffixes)
                raise DataMissing(f"{part / name} has no image; put at least one there ({wanted})")
            paths += images
            labels += [label] * len(images)
        listed[part.name] = paths, np.array(labels, dtype=np.int64)
    return Tree(classes, *listed["train"], *listed["test"])


def _images(folder: Path, suffixes: Collection[str]) -> list[Path]:
    # hidden files are other programs' (macOS writes ._name.jpg beside name.jpg)
    wanted = tuple(suffixes)
    there = (p for p in folder.iterdir() if p.name.lower().endswith(wanted) and not p.name.startswith("."))
    return sorted(there, key=lambda path: path.name)


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def decode(paths: Sequence[Path], size: int, resize: bool) -> NDArray[np.uint8]:
    """Return images as [N, size, size, 3], RGB, whatever their mode was.

    With ``resize`` the shorter side becomes ``size`` (bilinear, antialiased) and the longer one is cropped to its
    middle; without, an image of another size is an error.
    """
    from PIL import Image, ImageOps

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)

    def decode_part(part: range) -> None:
        for index in part:
            path = paths[index]
            try:
                with Image.open(path) as file:
                    found, image = file.size, file.convert("RGB")
            except Exception as problem:  # PIL's decoders raise nearly anything for a broken file
                raise DataMissing(f"{path} can't be decoded: replace or remove it ({problem})") from problem
            if resize:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            elif found != (size, size):
                raise DataMissing(f"{path} is {found[0]} x {found[1]} pixels where {size} x {size} are needed")
            images[index] = np.asarray(image)

    # images that need no resizing are tiny, and threads would spend more time waiting for each other than decoding
    with ThreadPoolExecutor(os.cpu_count() if resize else 1) as pool:
        step = 64
        list(pool.map(decode_part, (range(i, min(i + step, len(paths))) for i in range(0, len(paths), step))))
    return images


def mean_and_std(images: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of [H, W, channels] pixels scaled to 0..1, equal on any machine.

    They are taken from the counts of the 256 values, since a sum of all pixels would depend on its order.
    """
    values = np.arange(256) / 255
    shares: Any = 0
    for image in images:  # one at a time, since bincount needs eight bytes for each pixel
        channels = np.moveaxis(image, -1, 0)
        shares = shares + np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    means = [float(np.average(values, weights=share)) for share in shares]
    deviations = [
        float(np.average((values - mean) ** 2, weights=share)) ** 0.5 for mean, share in zip(means, shares, strict=True)
    ]
    # a channel that is the same everywhere must not be divided by zero
    return tuple(means), tuple(max(deviation, 1 / 255) for deviation in deviations)


def last_of_every(labels: NDArray[np.int64], period: int) -> NDArray[np.bool_]:
    """Mark, within each class and in the given order, the last image of every ``period``."""
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        marked[np.flatnonzero(labels == label)[period - 1 :: period]] = True
    return marked

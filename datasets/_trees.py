"""Image trees, train/<class>/<image> and test/<class>/<image>: listing, decoding, mean and standard deviation."""

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
        """Return the image formats of the files, such as 'JPEG, PNG'."""
        suffixes = {path.suffix for path in self.train_paths + self.test_paths}
        return ", ".join(sorted({FORMATS[suffix.lower()] for suffix in suffixes}))


def class_names(part: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in train/ or test/, except hidden folders."""
    if not part.is_dir():
        return ()
    return tuple(sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")))


def read_tree(folder: Path, suffixes: Collection[str], classes: tuple[str, ...] | None = None) -> Tree:
    """List a tree without opening an image. Without ``classes``, they are those of train/; test/ must have the same."""
    layout = "expected: train/<class>/<image> and test/<class>/<image>"
    if not folder.is_dir():
        raise DataMissing(f"there is no folder {folder}; {layout} in it")
    for part in (folder / "train", folder / "test"):
        if not class_names(part):
            raise DataMissing(f"{folder} has no folder {part.name}/ with one folder for each class; {layout}")
    classes = classes or class_names(folder / "train")
    listed: dict[str, tuple[list[Path], NDArray[np.int64]]] = {}
    for part in (folder / "train", folder / "test"):
        present = class_names(part)
        if unknown := sorted(set(present) - set(classes)):
            raise DataMissing(f"{part} has the unknown class {unknown[0]!r}; the classes are {_some(classes)}")
        if lacking := sorted(set(classes) - set(present)):
            raise DataMissing(f"{part} lacks the class {lacking[0]!r}; put its images in {part / lacking[0]}")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = _images(part / name, suffixes)
            if not images:
                allowed = ", ".join(suffix.removeprefix(".") for suffix in suffixes)
                raise DataMissing(f"{part / name} has no image; put at least one there ({allowed})")
            paths += images
            labels += [label] * len(images)
        listed[part.name] = paths, np.array(labels, dtype=np.int64)
    return Tree(classes, *listed["train"], *listed["test"])


def _images(folder: Path, suffixes: Collection[str]) -> list[Path]:
    # hidden files belong to other programs (macOS writes ._name.jpg next to name.jpg)
    endings = tuple(suffixes)
    images = (p for p in folder.iterdir() if p.name.lower().endswith(endings) and not p.name.startswith("."))
    return sorted(images, key=lambda path: path.name)


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def decode(paths: Sequence[Path], size: int, resize: bool) -> NDArray[np.uint8]:
    """Return images of any mode as RGB [N, size, size, 3] uint8.

    With ``resize``, the shorter side is resized to ``size`` (bilinear, antialiased), and the longer side is cropped to
    its centre. Otherwise, an image of another size raises DataMissing.
    """
    from PIL import Image, ImageOps

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)

    def decode_part(part: range) -> None:
        for index in part:
            path = paths[index]
            try:
                with Image.open(path) as file:
                    actual, image = file.size, file.convert("RGB")
            except Exception as problem:  # PIL's decoders raise many kinds of errors for a broken file
                raise DataMissing(f"{path} can't be decoded: replace or remove it ({problem})") from problem
            if resize:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            elif actual != (size, size):
                raise DataMissing(f"{path} is {actual[0]} x {actual[1]} pixels, but must be {size} x {size}")
            images[index] = np.asarray(image)

    # images without resizing are tiny: threads would wait for each other longer than they decode
    with ThreadPoolExecutor(os.cpu_count() if resize else 1) as pool:
        step = 64
        list(pool.map(decode_part, (range(i, min(i + step, len(paths))) for i in range(0, len(paths), step))))
    return images


def mean_and_std(images: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of [H, W, channels] pixels scaled to 0..1, equal on any machine.

    They are computed from the counts of the 256 values, because a sum of all pixels would depend on its order.
    """
    values = np.arange(256) / 255
    counts: Any = 0
    for image in images:  # one at a time, because bincount needs eight bytes per pixel
        channels = np.moveaxis(image, -1, 0)
        counts = counts + np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    means = [float(np.average(values, weights=count)) for count in counts]
    deviations = [
        float(np.average((values - mean) ** 2, weights=count)) ** 0.5 for mean, count in zip(means, counts, strict=True)
    ]
    # avoids a division by zero for a constant channel
    return tuple(means), tuple(max(deviation, 1 / 255) for deviation in deviations)


def last_of_every(labels: NDArray[np.int64], period: int) -> NDArray[np.bool_]:
    """Return a mask of the last of every ``period`` images of each class, in the given order."""
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        marked[np.flatnonzero(labels == label)[period - 1 :: period]] = True
    return marked

"""Pairs of image and label map files: checks of their headers and contents, and arrays that decode them on access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, WithJsonSchema

from harness.data import pixels
from harness.data.dataset import spaced
from harness.data.files import IGNORED, UNKNOWN, Files, unknown_id
from harness.errors import BadFile, DataMissing

from ._listing import counted

SCALES = (1.0, 0.5, 0.25)
"""Scales of images at which every pixel of a full-size test label has a position in the network's map."""
LOOKED_AT = 4
"""Label maps of each split that ``info`` decodes; ``load`` decodes all, once."""
FEW = 0.5
"""Share of pixels with a class below which a note says so: the ids may be those of another table."""


def _supported(scale: float) -> float:
    if scale not in SCALES:
        raise ValueError(f"must be 1, 0.5 or 0.25, got {scale:g}")
    return scale


Scale = Annotated[float, AfterValidator(_supported), WithJsonSchema({"enum": [*SCALES]})]


@dataclass(frozen=True)
class Pairs:
    """The images of a split that are used, and the label map of each."""

    images: Sequence[Path]
    labels: Sequence[Path]

    def at(self, indices: Collection[int]) -> Pairs:
        """Return the pairs with these indices."""
        return Pairs([self.images[i] for i in indices], [self.labels[i] for i in indices])

    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each image, read from headers: no image is decoded.

        Raises DataMissing, which names all label maps that are missing, or differ in size from their images.
        """
        absent = [
            BadFile(f"{label} is {'no file' if label.exists() else 'missing'}: it must hold the labels of {image}")
            for image, label in zip(self.images, self.labels, strict=True)
            if not label.is_file()
        ]
        if absent:
            raise pixels.refused(absent, len(self.labels), None)
        images, labels = (_good(paths, "size", pixels.size) for paths in (self.images, self.labels))
        differ = [
            BadFile(
                f"{label} is {label_size[1]} x {label_size[0]} pixels, "
                f"but its image {image.name} is {size[1]} x {size[0]}"
            )
            for image, label, size, label_size in zip(self.images, self.labels, images, labels, strict=True)
            if size != label_size
        ]
        if differ:
            raise pixels.refused(differ, len(self.labels), None)
        return [(height, width) for height, width in images]

    def counted(
        self, table: NDArray[np.uint8], few: bool = False, hint: Callable[[Collection[int]], str] = lambda ids: ""
    ) -> Counter[int]:
        """Return id -> number of pixels in the label maps, which are decoded once: all, or a few of them.

        Raises DataMissing, which names all that can't be decoded or hold ids that are UNKNOWN in the table. ``hint``
        says, of all ids, what may be the reason.
        """
        labels = [self.labels[i] for i in spaced(len(self.labels), LOOKED_AT if few else None)]
        counts = [dict(found) for found in _good(labels, "ids", pixels.counted_ids)]
        unknown = {*np.flatnonzero(table == UNKNOWN).tolist()}
        wrong = [
            BadFile(unknown_id(path, min(ids.keys() & unknown), table))
            for path, ids in zip(labels, counts, strict=True)
            if ids.keys() & unknown
        ]
        total: Counter[int] = Counter()
        for ids in counts:
            total.update(ids)
        if wrong:
            raise DataMissing(f"{pixels.refused(wrong, len(labels), None)}{hint(total.keys())}")
        return total

    def looked_at(self) -> list[dict[str, Any]]:
        """Return what decoding each image tells. Raises DataMissing, which names all that can't be decoded."""
        return _good(self.images, "image of a map", _looked_at)

    def unreadable(self) -> list[str]:
        """Return for each pair why its image or its label map can't be decoded, or ""."""
        images = pixels.known(self.images, "image of a map", _looked_at)
        labels = pixels.known(self.labels, "ids", pixels.counted_ids)
        return [
            next((str(found) for found in pair if isinstance(found, BadFile)), "")
            for pair in zip(images, labels, strict=True)
        ]


def _looked_at(path: Path) -> Any:
    return pixels.looked_at(path, turn=False)


def _good(paths: Sequence[Path], what: str, find: Callable[[Path], Any]) -> list[Any]:
    """Return ``pixels.known``. Raises DataMissing, which names all bad files."""
    found = pixels.known(paths, what, find)
    if bad := [value for value in found if isinstance(value, BadFile)]:
        raise pixels.refused(bad, len(paths))
    return found


def share_note(ids: Counter[int], table: NDArray[np.uint8]) -> tuple[str, ...]:
    """Return a sentence if few pixels of label maps, id -> number of pixels, have a class."""
    with_class = sum(count for i, count in ids.items() if table[i] != IGNORED)
    share = with_class / max(1, ids.total())
    return (f"only {share:.0%} of the pixels of the label maps have a class",) if share < FEW else ()


def classes_occur(ids: Counter[int], table: NDArray[np.uint8], names: Sequence[str]) -> None:
    """Raise DataMissing if label maps, id -> number of pixels, hold fewer than two classes."""
    present = {int(table[i]) for i in ids} - {IGNORED}
    if len(present) < 2:
        which = f"only the class {names[min(present)]!r}" if present else "no class"
        raise DataMissing(f"the label maps of the pool hold {which}: a classifier needs at least two")


def in_words(pairs: Sequence[Pairs], ids: Counter[int], table: NDArray[np.uint8], names: Sequence[str]) -> list[str]:
    """Return sentences on the images, which are decoded, and on the shares of the classes."""
    shares: Counter[str] = Counter()
    for i, count in ids.items():
        shares["no class" if table[i] == IGNORED else names[table[i]]] += count
    total = max(1, ids.total())
    listed = ", ".join(f"{name} {shares[name] / total:.1%}" for name in (*names, "no class"))
    found = [image for part in pairs for image in part.looked_at()]
    return [*pixels.in_words(found), f"pixels of {counted(len(found), 'label map')}: {listed}"]


def as_files(
    train: Pairs,
    test: Pairs,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    scale: float,
    table: NDArray[np.uint8],
    cover: tuple[int, int] | None = None,
) -> tuple[Files, Files, Files, Files]:
    """Return the images and labels of the pool, then those of the test set, whose labels keep their own size.

    ``sizes`` are the common (height, width) of the scaled images of the pool and of the test set. ``cover``: the size
    that the files of the pool are brought to instead of scaling them.
    """
    pool, test_size = sizes
    label_size = round(test_size[0] / scale), round(test_size[1] / scale)
    pool_scale = 1 if cover else scale
    return (
        Files(train.images, pool, pool_scale, cover=cover),
        Files(train.labels, pool, pool_scale, table, cover),
        Files(test.images, test_size, scale),
        Files(test.labels, label_size, 1, table),
    )

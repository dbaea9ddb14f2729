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
from harness.data.paths import Paths
from harness.data.prepared import wanted
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

    images: Paths
    labels: Paths

    def at(self, indices: NDArray[np.int64]) -> Pairs:
        """Return the pairs with these indices."""
        return Pairs(self.images[indices], self.labels[indices])

    def sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each image of checked pairs, read from headers."""
        return [(height, width) for height, width in pixels.known(self.images, "size", pixels.size)]

    def check(
        self, table: NDArray[np.uint8], few: bool, size: tuple[int, int] | None, alike: bool
    ) -> tuple[Counter[int], list[BadFile], dict[Path, BadFile]]:
        """Return (id -> number of pixels, files that can't be decoded, files that don't fit): see ``checked``.

        ``alike``: images must have the size of the first one.
        """
        bad: dict[Path, BadFile] = {}
        wrong = {
            label: BadFile(
                label, f"is {'no file' if label.exists() else 'missing'}: it must hold the labels of its image"
            )
            for image, label in zip(self.images, self.labels, strict=True)
            if not label.is_file()
        }

        def known(paths: Sequence[Path], what: str, find: Callable[[Path], Any]) -> dict[Path, Any]:
            """Return what is found out of those that are still good, and keep what is bad."""
            good = [path for path in paths if path not in bad and path not in wrong]
            found = dict(zip(good, pixels.known(good, what, find), strict=True))
            bad.update({path: value for path, value in found.items() if isinstance(value, BadFile)})
            return {path: value for path, value in found.items() if path not in bad}

        sizes = known([*self.images, *self.labels], "size", pixels.size)
        first = next((image for image in self.images if image in sizes), None) if alike else None
        for image, label in zip(self.images, self.labels, strict=True):
            its, maps = sizes.get(image), sizes.get(label)
            if first and its and its != sizes[first]:
                found = f"is {its[1]} x {its[0]} pixels, but {first.name} is {sizes[first][1]} x {sizes[first][0]}"
                wrong[image] = BadFile(image, found)
            if size and its and tuple(its) != size:
                found = f"is {its[1]} x {its[0]} pixels, but must be {size[1]} x {size[0]}"
                wrong[image] = BadFile(image, found)
            if its and maps and its != maps:
                found = f"is {maps[1]} x {maps[0]} pixels, but its image is {its[1]} x {its[0]}"
                wrong[label] = BadFile(label, found)
        looked_at = self.labels[spaced(len(self.labels), LOOKED_AT if few else None)]
        unknown, total = {*np.flatnonzero(table == UNKNOWN).tolist()}, Counter[int]()
        for label, counts in known(looked_at, "ids", pixels.counted_ids).items():
            ids = dict(counts)
            total.update(ids)
            if ids.keys() & unknown:
                wrong[label] = BadFile(label, unknown_id(min(ids.keys() & unknown), table))
        if not few:
            known(self.images, "image of a map", _looked_at)
        return total, [*bad.values()], wrong

    def looked_at(self) -> list[dict[str, Any]]:
        """Return what decoding each image of checked pairs tells."""
        return pixels.known(self.images, "image of a map", _looked_at)

    def unreadable(self) -> list[BadFile | None]:
        """Return for each pair its image or its label map if that can't be decoded, or None."""
        images = pixels.known(self.images, "image of a map", _looked_at)
        labels = pixels.known(self.labels, "ids", pixels.counted_ids)
        return [
            next((found for found in pair if isinstance(found, BadFile)), None)
            for pair in zip(images, labels, strict=True)
        ]


def _looked_at(path: Path) -> Any:
    return pixels.looked_at(path, turn=False)


def checked(
    splits: Sequence[Pairs],
    table: NDArray[np.uint8],
    few: bool = False,
    size: tuple[int, int] | None = None,
    hint: Callable[[Collection[int]], str] = lambda ids: "",
    alike: str = "",
) -> list[Counter[int]]:
    """Return id -> number of pixels in the label maps of each split; all files are decoded, once.

    ``few``: a few label maps of each split are decoded, and all files only if there is something wrong. ``size``: the
    (height, width) that all images must have. Raises DataMissing, which names all files of all splits that are missing,
    can't be decoded, differ in size from their image, or hold ids that are UNKNOWN in the table. ``hint`` says, of all
    ids, what may be the reason and what helps. ``alike``: what to say if images of the first split, the pool, differ in
    size; "": they may.
    """
    found = [pairs.check(table, few, size, bool(alike) and pairs is splits[0]) for pairs in splits]
    if few and any(bad or wrong for _, bad, wrong in found):
        return checked(splits, table, False, size, hint, alike)
    bad = [problem for _, problems, _ in found for problem in problems]
    wrong = {path: problem for _, _, problems in found for path, problem in problems.items()}
    if bad or wrong:
        files = sum(len(pairs.images) + len(pairs.labels) for pairs in splits)
        ids = {i for counts, _, _ in found for i in counts}
        remedies = hint(ids) if wrong else pixels.REPLACE, alike if wrong.keys() & {*splits[0].images} else ""
        raise pixels.refused([*bad, *wrong.values()], files, "; ".join(filter(None, remedies)))
    return [counts for counts, _, _ in found]


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


def resized(files: Sequence[Files]) -> int:
    """Return the bytes of those of the files that are resized; see DatasetInfo."""
    return sum(part.nbytes for part in files if wanted(part))

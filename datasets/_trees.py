"""Image trees, train/<class>/<image> and test/<class>/<image>: listing, examining, mean and standard deviation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import pixels
from harness.data.dataset import balanced
from harness.data.paths import Names, Paths
from harness.data.pixels import FORMATS
from harness.errors import BadFile, DataMissing, expanded, gathered, most_similar_first, readable

from ._listing import Listing, counted, entries, extra_folders, folders, is_folder, kind, listed, loose, no_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

SKIP = f"{pixels.REPLACE}, or set skip_unreadable: true"
"""What helps against bad files."""


@dataclass(frozen=True)
class Tree:
    """The images of a tree: classes sorted by name, and in each class the files of a split after those of another."""

    folder: Path
    classes: tuple[str, ...]
    train_paths: Paths
    train_labels: NDArray[np.int64]
    test_paths: Paths
    test_labels: NDArray[np.int64]
    notes: tuple[str, ...]
    """Sentences on what was left out."""

    @property
    def formats(self) -> str:
        """Return the image formats of the files, such as 'JPEG, PNG'."""
        names = chain(self.train_paths.names(), self.test_paths.names())
        suffixes = {name.rpartition(".")[2].lower() for name in names}
        return ", ".join(sorted({FORMATS[f".{suffix}"] for suffix in suffixes}))

    def limited(self, limit: int | None, test_limit: int | None) -> Tree:
        """Return the tree with class-balanced subsets of its images."""
        train, test = balanced(self.train_labels, limit), balanced(self.test_labels, test_limit)
        return replace(
            self,
            train_paths=self.train_paths[train],
            train_labels=self.train_labels[train],
            test_paths=self.test_paths[test],
            test_labels=self.test_labels[test],
        )

    def names(self) -> Names:
        """Return how the training images are called in the folder."""
        return Names(self.train_paths)

    def without_unreadable(self) -> Tree:
        """Return the tree without the images that can't be decoded, with a note that names them."""
        kept, notes = list[Any](), []
        for name, paths, labels in (
            ("training", self.train_paths, self.train_labels),
            ("test", self.test_paths, self.test_labels),
        ):
            good, bad = np.ones(len(paths), dtype=bool), list[BadFile]()
            for index, found in enumerate(_examined(paths)):
                if isinstance(found, BadFile):
                    good[index] = False
                    bad.append(found)
            for label, class_name in enumerate(self.classes):
                if not good[labels == label].any():
                    raise DataMissing(
                        f"{self.folder} has no readable {name} image of the class {class_name!r}: {pixels.some(bad)}"
                    )
            if bad:
                notes.append(f"left out as unreadable: {counted(len(bad), f'{name} image')}: {pixels.some(bad)}")
            kept += [paths[good], labels[good]]
        train_paths, train_labels, test_paths, test_labels = kept
        return replace(
            self,
            train_paths=train_paths,
            train_labels=train_labels,
            test_paths=test_paths,
            test_labels=test_labels,
            notes=(*self.notes, *notes),
        )


def _examined(paths: Paths) -> Iterator[Any]:
    """Yield for each image what decoding it tells, or its BadFile."""
    return pixels.each(paths, "image", _looked_at)


def described(tree: Tree, remedy: str = SKIP, size: int | None = None) -> list[str]:
    """Decode all images of a tree and return what they are, in sentences. Raises DataMissing, which names bad ones.

    ``remedy``: see ``pixels.refused``. ``size``: the side that all images must have; one of another size is a bad one.
    """
    bad = list[BadFile]()

    def good() -> Iterator[dict[str, Any]]:
        for paths in (tree.train_paths, tree.test_paths):
            for index, found in enumerate(_examined(paths)):
                if isinstance(found, BadFile):
                    bad.append(found)
                elif size and found["size"] != [size, size]:
                    bad.append(_of_other_size(paths[index], found["size"][::-1], size))
                else:
                    yield found

    words = pixels.in_words(good())
    if bad:
        raise pixels.refused(bad, len(tree.train_paths) + len(tree.test_paths), remedy)
    return words


def _of_other_size(path: Path, found: Sequence[int], size: int | None) -> BadFile:
    return BadFile(path, f"is {found[0]} x {found[1]} pixels, but must be {size} x {size}")


def _looked_at(path: Path) -> Any:
    return pixels.looked_at(path, turn=True)


def class_names(part: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in train/ or test/, without hidden and system folders."""
    return tuple(folders(part)) if is_folder(part) else ()


def read_tree(
    folder: Path,
    suffixes: Collection[str],
    classes: tuple[str, ...] | None = None,
    train: Sequence[str] = ("train",),
    test: Sequence[str] = ("test",),
) -> Tree:
    """List a tree without opening an image. ``train``, ``test``: the names of the folders that form the two splits.

    Without ``classes``, they are those of the first folder of ``train``; the other folders must have the same.
    """
    train, test = ([str(expanded(name)) for name in names] for names in (train, test))
    layout = "expected: train/<class>/<image> and test/<class>/<image>"
    if not is_folder(folder):
        raise DataMissing(f"{no_folder(folder)}; {layout} in it")
    for key, names in (("train", train), ("test", test)):
        for name in names:
            if not class_names(folder / name):
                raise DataMissing(
                    f"{folder} has no folder {name}/ with one folder for each class; {layout}"
                    f"{_other_names(folder, key, name, {*train, *test}, suffixes)}"
                )
    classes = classes or class_names(folder / train[0])
    if len(classes) < 2:
        raise DataMissing(
            f"{folder / train[0]} has one class only, {classes[0]!r}: a classifier needs at least two; put the images "
            "of each class into a folder of its own"
        )
    found = gathered(partial(_of_classes, folder, name, suffixes, classes) for name in (*train, *test))
    splits: list[Any] = []
    notes = []
    for names in (train, test):
        by_class: list[list[Paths]] = [[] for _ in classes]
        for name in names:
            every, left_out = found.pop(0)
            for paths, listed_paths in zip(by_class, every, strict=True):
                paths.append(listed_paths)
            notes.append(
                Listing(Paths.joined(folder, every), left_out + loose(folder / name, suffixes)).note(f"{name}/")
            )
        splits.append(Paths.joined(folder, [paths for each in by_class for paths in each]))
        numbers = [sum(map(len, each)) for each in by_class]
        splits.append(np.repeat(np.arange(len(classes), dtype=np.int64), numbers))
    notes.append(extra_folders(folder, [*train, *test]))
    train_paths, train_labels, test_paths, test_labels = splits
    said = tuple(filter(None, notes))
    return Tree(folder, tuple(map(readable, classes)), train_paths, train_labels, test_paths, test_labels, said)


def _of_classes(
    folder: Path, split: str, suffixes: Collection[str], classes: tuple[str, ...]
) -> tuple[list[Paths], Counter[str]]:
    """Return the images of each class of a split, and what was left out: see Listing.

    Raises DataMissing if it has other classes, or one without images.
    """
    part = folder / split
    present = class_names(part)
    problems = []
    if unknown := sorted(set(present) - set(classes)):
        what = "class" if len(unknown) == 1 else "classes"
        problems.append(f"{part} has the unknown {what} {_some(unknown)}; the classes are {_some(classes)}")
    if lacking := sorted(set(classes) - set(present)):
        what = "class" if len(lacking) == 1 else "classes"
        problems.append(f"{part} lacks the {what} {_some(lacking)}; put images of each in a folder of its name there")
    found, left_out = list[Paths](), Counter[str]()
    empty, there = list[str](), Counter[str]()
    for name in classes:
        listing = listed(part / name, suffixes) if name in present else Listing()
        found.append(Paths.of(listing.paths, folder))  # now: of a million images, no list is made
        left_out += listing.left_out
        if name in present and not listing.paths:
            empty.append(name)
            there += listing.left_out
    if empty:
        allowed = ", ".join(suffix.removeprefix(".") for suffix in suffixes)
        none = f"{part / empty[0]} has no image" if len(empty) == 1 else f"{part} has no image of {_some(empty)}"
        unread = f"; what is there is not read: {Listing(left_out=there).kinds}" if there else ""
        problems.append(f"{none}; put at least one there ({allowed}){unread}")
    if problems:
        raise DataMissing("; ".join(problems))
    return found, left_out


def _other_names(folder: Path, key: str, missing: str, known: set[str], suffixes: Collection[str]) -> str:
    """Return a hint at folders that may be the split that is missing, or ""."""
    others = [name for name in folders(folder) if name not in known and _has_images(folder / name, tuple(suffixes))]
    others = most_similar_first(missing, others)
    there = ", ".join(f"{name}/" for name in others[:5])
    return f"; it has {there}: set {key}: [{others[0]}]" if others else ""


def _has_images(part: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a folder holds a folder with an image: /dev has folders in folders, too."""
    try:
        return any(kind(entry, suffixes) == "image" for name in class_names(part) for entry in entries(part / name))
    except DataMissing:  # it may not be listed
        return False


def _some(classes: Sequence[str]) -> str:
    return ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")


def decode(splits: Sequence[Sequence[Path]], size: int) -> list[NDArray[np.uint8]]:
    """Return for each split its images, of any mode, as RGB [N, size, size, 3] uint8, upright as EXIF says.

    An image of another size is a bad one. Raises DataMissing, which names all bad images of all splits.
    """
    arrays, bad = [np.empty((len(paths), size, size, 3), dtype=np.uint8) for paths in splits], list[BadFile]()
    for paths, images in zip(splits, arrays, strict=True):
        for path, row in zip(paths, images, strict=True):  # they are tiny: threads would wait for each other
            try:
                image = pixels.array(path, turn=True)
                if image.shape[:2] != (size, size):
                    raise _of_other_size(path, image.shape[1::-1], size)
                row[:] = image
            except BadFile as problem:
                bad.append(problem)
    if bad:
        raise pixels.refused(bad, sum(map(len, splits)))
    return arrays


def mean_and_std(images: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images [H, W, channels], whose pixels are scaled to 0..1."""
    counts: Any = 0
    for image in images:  # one at a time, because bincount needs eight bytes per pixel
        channels = np.moveaxis(image, -1, 0)
        counts = counts + np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    return mean_and_std_of(counts)


def mean_and_std_of(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ``mean_and_std`` of images with these numbers of pixels [channel, value].

    They are equal on any machine; a sum of all pixels would depend on its order.
    """
    values = np.arange(256) / 255
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

"""ImageNet (ILSVRC2012): 1 281 167 training and 50 000 validation images in 1000 classes. Never downloaded.

The pool is the training set, the test set the validation set; the official test set has no public labels. An image is
stored as the central square of ``image_size``: what is outside of it is never seen, also not by random crops.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, balanced
from harness.data.files import Files
from harness.data.paths import Names, Paths
from harness.data.prepared import looked_over
from harness.errors import DataMissing, gathered, no_pipe, reason
from harness.settings import Side

from ._listing import Listing, counted, entries, extra_folders, folders, is_folder, kind, loose, no_folder
from ._trees import Tree, described

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CLASSES, NUM_TRAIN, NUM_TEST = 1000, 1_281_167, 50_000
FEWEST, MOST = 732, 1300
"""Training images of a class."""
TESTED = 50
"""Validation images of each class."""
TRAIN = ("train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train")
TEST = ("val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
DEVKIT = ("ILSVRC2012_devkit_t12/data", ".")
"""Where the files META and TRUTH may be."""
META, TRUTH, SOLUTION = "meta.mat", "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
TEST_NAME = r"ILSVRC2012_val_\d{8}\.JPEG"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in the code of VAAL
UNCHECKED = (
    "the names and numbers of the files fit ImageNet's: without the devkit, 732 to 1300 training images in a class; "
    "there are no published checksums of their content"
)
UNPACK = "unpack ILSVRC2012_img_train.tar, or ILSVRC2012_img_val.tar, there again"
"""What helps against bad files: without them, the numbers were wrong."""
SHOWN = 5
"""Classes or files that a message names; it counts the others."""


@cache
def wnids() -> tuple[str, ...]:
    """Return the names of the classes, sorted, from a list that timm has; timm itself is not imported."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    return tuple(Path(spec.origin).with_name("data").joinpath("_info", "imagenet_synsets.txt").read_text().split())


@dataclass(frozen=True)
class Split:
    """The images of a split that are used, class after class."""

    paths: Paths
    """Their names are those in the folder of ImageNet."""
    labels: NDArray[np.int64]
    note: str
    """What was left out, or ""."""

    @classmethod
    def of(cls, folder: Path, images: Sequence[Paths], note: str, limit: int | None) -> Split:
        """Return the same number of images of each class."""
        labels = np.repeat(np.arange(len(images), dtype=np.int64), [len(of_class) for of_class in images])
        kept = balanced(labels, limit)
        return cls(Paths.joined(folder, images)[kept], labels[kept], note)


class ImageNet(Dataset):
    """Classes are sorted by WordNet id, training images by class and name; test images by class and number."""

    class Settings(DatasetSettings):
        """Settings of imagenet."""

        image_size: Side = Field(
            256,
            description="height and width of the stored images: the shorter side is resized to it, the longer side "
            "cropped to its centre",
        )
        classes: Any = Field(
            None,
            description="a number: so many classes, the first by WordNet id; a list: these classes, such as "
            f"[n01440764, n01443537]; null: all {NUM_CLASSES}",
        )
        top5: bool = Field(True, description="also report top-5 accuracy; set it to false for 5 classes or fewer")

        @field_validator("classes")
        @classmethod
        def _classes_exist(cls, classes: Any) -> int | list[str] | None:
            if classes is None:
                return None
            if type(classes) not in (int, list):
                raise ValueError(f"must be a number of classes or a list of them, got {classes!r:.60}")
            count = len(classes) if isinstance(classes, list) else classes
            if not 2 <= count <= NUM_CLASSES:
                raise ValueError(f"must be 2 to {NUM_CLASSES} classes, got {count}")
            if not isinstance(classes, list):
                return int(classes)
            if unknown := [name for name in classes if name not in wnids()]:
                problem = "is no class of ImageNet; allowed: its WordNet ids"
                raise ValueError(f"{unknown[0]!r:.60} {problem}: {wnids()[0]}, ...")
            if twice := [name for name, times in Counter(classes).items() if times > 1]:
                raise ValueError(f"{twice[0]!r} occurs twice")
            return sorted(classes)

    def info(self) -> DatasetInfo:
        """Return counts from a listing of the files, whose numbers and names must be the official ones."""
        (train, test), side = self._splits, self.settings.image_size
        return DatasetInfo(
            len(train.paths),
            len(test.paths),
            len(self._classes),
            channels=3,
            size=(side, side),
            source=f"ImageNet (ILSVRC2012) in {self._folder}, labels of the test set from {self._labels_from}",
            notes=(*filter(None, (train.note, test.note)), UNCHECKED),
            from_files=True,
            resized=(len(train.paths) + len(test.paths)) * side * side * 3,
        )

    def load(self) -> LoadedData:
        """Return the images as files, which are decoded on access; where there is a place, their squares are kept."""
        (train, test), side = self._splits, self.settings.image_size
        parts = [Files(split.paths, (side, side), cover=(side, side), whole=True) for split in (train, test)]
        (images, test_images), _ = looked_over(parts, self.data_root.prepared, UNPACK, counted=False)
        arrays = images, train.labels, test_images, test.labels
        return LoadedData(*arrays, self._classes, MEAN, STD, Names(train.paths))

    def examine(self) -> list[str]:
        """Return formats, modes and sizes of the images, which are all decoded."""
        train, test = self._splits
        both = train.paths, train.labels, test.paths, test.labels
        return described(Tree(self._folder, self._classes, *both, notes=()), UNPACK)

    @property
    def _folder(self) -> Path:
        return self.data_root.root / "imagenet"

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        chosen = self.settings.classes
        if isinstance(chosen, list):
            return tuple(chosen)
        return wnids()[:chosen]

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        self._labels_from = "its folders"
        if not is_folder(self._folder):
            raise DataMissing(
                f"{no_folder(self._folder)}: ImageNet's licence requires a registration on its home page; get "
                "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz there and unpack "
                "them into it, the first two into train/ and val/"
            )
        train, test = gathered((self._train, self._test))
        folder, settings = self._folder, self.settings
        return Split.of(folder, *train, settings.limit), Split.of(folder, *test, settings.test_limit)

    def _found(self, names: Sequence[str], archive: str) -> str:
        """Return the name of the folder of a split. Raises DataMissing."""
        for name in names:
            if is_folder(self._folder / name):
                return name
        raise DataMissing(
            f"{self._folder} has no folder {names[0]}/: get {archive} from ImageNet's home page and unpack it there"
        )

    def _train(self) -> tuple[list[Paths], str]:
        """Return the training images of each class, and a note on what was left out."""
        name = self._found(TRAIN, "ILSVRC2012_img_train.tar")
        part, expected, total = self._folder / name, dict(self._meta.values()), len(self._classes)
        present, left_out = {*folders(part)}, loose(part, (".jpeg",))
        images: list[Paths] = []
        absent, numbers = [], []
        for wnid in self._classes:
            own = _images(part, name, wnid, rf"{wnid}_\d+\.JPEG", left_out) if wnid in present else []
            images.append(Paths.named(own, self._folder))  # now: of a million images, no list is made
            least, most = (expected[wnid],) * 2 if wnid in expected else (FEWEST, MOST)
            if wnid not in present:
                absent.append(wnid)
            elif not least <= len(images[-1]) <= most:
                allowed = f"{least}" if least == most else f"{least} to {most}"
                numbers.append(f"{wnid} has {len(images[-1])}, not {allowed}")
        problems = [
            f"{_of(len(wrong), total, 'class')} {what}: {_some(wrong)}"
            for wrong, what in ((absent, "missing"), (numbers, "of another size"))
            if wrong
        ]
        found = sum(map(len, images))
        if not problems and total == NUM_CLASSES and found != NUM_TRAIN:
            problems.append(f"{found} images, not {NUM_TRAIN}")
        if problems:
            packed = len([*part.glob("n*.tar")])
            hint = f", and each of the {packed} n*.tar in it into a folder of its name" if packed else ""
            raise DataMissing(
                f"{part} is not ImageNet's: {'; '.join(problems)}{_not_read(left_out)}; unpack "
                f"ILSVRC2012_img_train.tar there again{hint}"
            )
        return images, _note(part, found, left_out, extra_folders(part, wnids()))

    def _test(self) -> tuple[list[Paths], str]:
        """Return the validation images of each class, and a note on what was left out."""
        name = self._found(TEST, "ILSVRC2012_img_val.tar")
        part = self._folder / name
        present, wrong = {*folders(part)} & {*wnids()}, list[str]()
        if present:
            left_out = loose(part, (".jpeg",))
            images = [
                _images(part, name, wnid, TEST_NAME, left_out) if wnid in present else [] for wnid in self._classes
            ]
            for wnid, own in zip(self._classes, images, strict=True):
                if len(own) != TESTED:
                    wrong.append(f"{wnid} has {len(own)}" if wnid in present else f"{wnid} is missing")
            problem = f"{_of(len(wrong), len(images), 'class')} without {TESTED} images: {_some(wrong)}"
        else:
            truth, left_out = self._truth(), Counter[str]()
            numbered = {int(path[-13:-5]): path for path in _images(part, name, "", TEST_NAME, left_out)}
            of_class: dict[str, list[str]] = {wnid: [] for wnid in self._classes}
            for number, wnid in enumerate(truth, 1):
                path = numbered.pop(number, None)
                if wnid in of_class and path:
                    of_class[wnid].append(path)
                elif wnid in of_class:
                    wrong.append(f"ILSVRC2012_val_{number:08}.JPEG")
            left_out.update({"of no number": len(numbered)} if numbered else {})
            images = [*of_class.values()]
            problem = f"{_of(len(wrong), TESTED * len(images), 'image')} missing: {_some(wrong)}"
        if wrong:
            raise DataMissing(
                f"{part} is not ImageNet's: {problem}{_not_read(left_out)}; unpack ILSVRC2012_img_val.tar there again"
            )
        note = _note(part, sum(map(len, images)), left_out, extra_folders(part, wnids()))
        return [Paths.named(own, self._folder) for own in images], note

    def _truth(self) -> list[str]:
        """Return the class of each validation image, by number, from the devkit or from Kaggle's solution."""
        for folder in DEVKIT:
            if (path := self._folder / folder / TRUTH).exists():
                self._labels_from = f"{folder}/{TRUTH}".removeprefix("./")
                return _checked(path, _numbered(path, self._meta))
        if (path := self._folder / SOLUTION).exists():
            self._labels_from = SOLUTION
            return _checked(path, _solution(path))
        raise DataMissing(
            f"{self._folder} has no labels of its validation images: unpack ILSVRC2012_devkit_t12.tar.gz there, or put "
            f"Kaggle's {SOLUTION} there, or sort the images into folders val/<class>/"
        )

    @cached_property
    def _meta(self) -> dict[int, tuple[str, int]]:
        """Return number -> (class, training images) from the devkit's META; empty without one. Raises DataMissing."""
        for folder in DEVKIT:
            if (path := self._folder / folder / META).exists():
                return _read_meta(path)
        return {}


def _images(part: Path, name: str, wnid: str, pattern: str, left_out: Counter[str]) -> list[str]:
    """Return the names of the images of a class, or of a whole split, in the folder of ImageNet, sorted.

    ``part`` is the folder of the split, and ``name`` its name. What is no image of the pattern is counted.
    """
    folder, start = (part / wnid, f"{name}/{wnid}/") if wnid else (part, f"{name}/")
    own, official = [], re.compile(pattern, re.IGNORECASE)
    for entry in entries(folder):
        what = kind(entry, (".jpeg",))
        if what == "image" and official.fullmatch(entry.name):
            own.append(start + entry.name)
        elif what and (wnid or what != "folder"):  # folders of a split have a note of their own
            left_out[{"image": "of another name"}.get(what, what)] += 1
    return own


def _read_meta(path: Path) -> dict[int, tuple[str, int]]:
    """Return number -> (class, training images) of the classes in a Matlab file, which holds numbers and texts only."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(no_pipe(path), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = zip(
            *(synsets[key] for key in ("ILSVRC2012_ID", "WNID", "num_children", "num_train_images")), strict=True
        )
        found = {int(number): (str(name), int(images)) for number, name, children, images in rows if not int(children)}
    except Exception as error:  # scipy raises many kinds of errors for a file that is another
        raise DataMissing(f"{path} can't be read as the devkit's {META} ({reason(error)}): {AGAIN}") from None
    if sorted(name for name, _ in found.values()) != [*wnids()]:
        raise DataMissing(f"{path} does not hold the {NUM_CLASSES} classes of ILSVRC2012: {AGAIN}")
    return found


AGAIN = "unpack ILSVRC2012_devkit_t12.tar.gz again"


def _numbered(path: Path, meta: dict[int, tuple[str, int]]) -> list[str]:
    """Return the class of each line of the devkit's ground truth, which holds numbers of classes."""
    if not meta:
        raise DataMissing(f"{path} holds numbers of classes, and there is no {META} beside it: {AGAIN}")
    try:
        return [meta[int(line)][0] for line in no_pipe(path).read_text(encoding="ascii").split()]
    except (OSError, ValueError, KeyError) as error:
        raise DataMissing(f"{path} can't be read as a list of numbers of classes ({reason(error)}): {AGAIN}") from None


def _solution(path: Path) -> list[str]:
    """Return the class of each validation image from Kaggle's table: ImageId, PredictionString (class and boxes)."""
    try:
        with no_pipe(path).open(newline="", encoding="utf-8-sig") as file:
            rows = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        return [rows[f"ILSVRC2012_val_{number:08}"] for number in range(1, len(rows) + 1)]
    except (OSError, ValueError, KeyError, AttributeError, IndexError, csv.Error) as error:
        raise DataMissing(f"{path} can't be read as Kaggle's table of labels ({reason(error)}): get it again") from None


def _checked(path: Path, truth: list[str]) -> list[str]:
    """Return the class of each validation image. Raises DataMissing if they are not 50 of each class."""
    of_class = Counter(truth)
    if len(truth) != NUM_TEST or any(of_class[name] != TESTED for name in wnids()):
        raise DataMissing(
            f"{path} does not give each of the {NUM_CLASSES} classes {TESTED} of {NUM_TEST} images: get it again"
        )
    return truth


def _not_read(left_out: Counter[str]) -> str:
    return f"; what is there is not read: {Listing([], left_out).kinds}" if left_out else ""


def _note(part: Path, images: int, left_out: Counter[str], extra: str) -> str:
    """Return what was read and what was not, or "" if nothing was left out."""
    files = f"left out: {counted(left_out.total(), 'file')} ({Listing([], left_out).kinds})" if left_out else ""
    more = "; ".join(filter(None, (files, extra)))
    return f"{part.name}/: {counted(images, 'image')}; {more}" if more else ""


def _of(number: int, total: int, noun: str) -> str:
    """Return, for example, '2 of 1000 classes are' or '1 of 1000 classes is'."""
    plural = "classes" if noun == "class" else f"{noun}s"
    return f"{number} of {total} {plural} {'is' if number == 1 else 'are'}"


def _some(names: Sequence[str]) -> str:
    """Return the first names of many, and a count of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

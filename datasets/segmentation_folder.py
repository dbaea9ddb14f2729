"""Any images with label maps: images/<split>/<name>.png, .jpg, ..., and labels/<split>/<name>.png."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from harness.data import pixels
from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, spaced
from harness.data.files import IGNORED, MOST_CLASSES, MULTIPLE, UNKNOWN, Files, common_size
from harness.data.paths import Names, Paths
from harness.data.pixels import FORMATS
from harness.errors import BadFile, DataMissing, expanded, gathered, most_similar_first, reason
from harness.settings import LONGEST_LIST, LONGEST_NAME, Pixel, Side, Spread

from ._listing import Listing, counted, entries, is_folder, is_system, listed, no_folder, once, splits_differ
from ._maps import Pairs, Scale, as_files, checked, classes_occur, in_words, resized, share_note
from ._trees import mean_and_std

MEASURED = 100
"""Number of images on which mean and standard deviation are measured if the settings do not give them."""
LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm")
SPLIT = "{split}"


class SegmentationFolder(Dataset):
    """Files are sorted by name in each split; label maps are 8-bit PNGs of class ids, grey or with a palette.

    All images of the pool must have the same size, or be brought to one by ``size``; test images may have other sizes.
    """

    class Settings(DatasetSettings):
        """Settings of segmentation_folder."""

        folder: str = Field(description="the folder with images/ and labels/; a relative path is below where.data")
        lists: str | None = Field(
            None,
            description="text file with the names of a split's images, one a line, in the folder: such as "
            "ImageSets/Segmentation/{split}.txt; null: all images of the split's own folder",
        )
        images: str = Field(f"images/{SPLIT}", description="where the images of a split are, in the folder")
        labels: str = Field(f"labels/{SPLIT}", description="where the label maps of a split are, in the folder")
        label_suffix: str = Field(
            ".png", description="what follows an image's name without its suffix in that of its label map: _mask.png"
        )
        classes: list[Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]] = Field(
            min_length=2,
            max_length=MOST_CLASSES,
            description="names of the ids 0, 1, ... in a label map, without the ignored id",
        )
        ignore: int | None = Field(None, ge=0, le=255, description="id of pixels that losses and metrics ignore")
        train: list[str] = Field(
            ["train"], min_length=1, max_length=LONGEST_LIST, description="splits that form the pool"
        )
        test: list[str] = Field(
            ["test"],
            min_length=1,
            max_length=LONGEST_LIST,
            validate_default=True,
            description="splits that form the test set",
        )
        scale: Scale = Field(1.0, description="resize images by this factor; test labels keep their own size")
        size: list[Side] | None = Field(
            None,
            min_length=2,
            max_length=2,
            description="height and width, multiples of 8: images of the pool are resized to cover it and cropped to "
            "its centre, instead of scale; test images and labels are not",
        )
        skip_unreadable: bool = Field(
            False,
            description="leave out images that can't be decoded, or whose label map can't, and note which, instead of "
            "refusing to run",
        )
        mean: list[Pixel] | None = Field(
            None,
            min_length=3,
            max_length=3,
            description=f"mean of red, green and blue, in 0..1; null: measured on {MEASURED} images of the pool",
        )
        std: list[Spread] | None = Field(None, min_length=3, max_length=3, description="standard deviation, like mean")

        @field_validator("classes")
        @classmethod
        def _classes_differ(cls, classes: list[str]) -> list[str]:
            if twice := {name for name in classes if classes.count(name) > 1}:
                raise ValueError(f"{min(twice)!r} occurs twice")
            return classes

        @field_validator("lists")
        @classmethod
        def _lists_differ(cls, lists: str | None) -> str | None:
            if lists is not None and SPLIT not in lists:
                raise ValueError(f"must contain {SPLIT}, which stands for the name of a split, got {lists!r}")
            return lists

        @field_validator("images")
        @classmethod
        def _folders_differ(cls, images: str, before: ValidationInfo) -> str:
            if SPLIT not in images and not before.data.get("lists"):
                raise ValueError(f"must contain {SPLIT}, unless lists says which images a split has, got {images!r}")
            return images

        @field_validator("label_suffix")
        @classmethod
        def _labels_are_lossless(cls, suffix: str) -> str:
            if not suffix.lower().endswith(LOSSLESS):
                raise ValueError(f"must end in {', '.join(LOSSLESS[:-1])} or {LOSSLESS[-1]}, got {suffix!r}")
            return suffix

        @field_validator("train")
        @classmethod
        def _occurs_once(cls, train: list[str]) -> list[str]:
            return once(train)

        @field_validator("test")
        @classmethod
        def _splits_differ(cls, test: list[str], before: ValidationInfo) -> list[str]:
            return splits_differ(test, before)

        @field_validator("size")
        @classmethod
        def _size_is_possible(cls, size: list[int] | None) -> list[int] | None:
            if size and any(side < MULTIPLE or side % MULTIPLE for side in size):
                raise ValueError(f"must be two multiples of {MULTIPLE}, got {size}")
            return size

    def info(self) -> DatasetInfo:
        """Return counts and shapes from headers. Decode a few label maps, to detect wrong ``classes`` before a run."""
        self._checked(few=True)
        _, train_labels, _, test_labels = self._files
        return DatasetInfo(
            len(train_labels),
            len(test_labels),
            len(self.settings.classes),
            channels=3,
            size=train_labels.size,
            source=f"images and label maps in {self._folder}",
            per_pixel=True,
            notes=tuple(self._notes),
            from_files=True,
            resized=resized(self._files),
        )

    def load(self) -> LoadedData:
        """Return the images and label maps as files, split after split, which are decoded on access.

        All of them are decoded once before, as far as that is not remembered.
        """
        ids = self._ids()
        images, labels, test_images, test_labels = self._files
        mean, std = self.settings.mean, self.settings.std
        if mean is None or std is None:
            measured = mean_and_std(images.row(int(i)) for i in spaced(len(images), MEASURED))
            mean, std = mean or measured[0], std or measured[1]
        return LoadedData(
            images,
            labels,
            test_images,
            test_labels,
            tuple(self.settings.classes),
            tuple(mean),
            tuple(std),
            names=Names(self._splits[0].images),
            notes=share_note(ids, self._table),
        )

    def examine(self) -> list[str]:
        """Return formats, sizes and shares of classes of all files, which are decoded."""
        return in_words(self._splits, self._ids(), self._table, self.settings.classes)

    def _ids(self) -> Counter[int]:
        train, test = self._checked()
        classes_occur(train, self._table, self.settings.classes)
        return train + test

    def _checked(self, few: bool = False) -> list[Counter[int]]:
        # padding would affect an image's score
        alike = "set size: [height, width], because images of the pool must have the same size"
        return checked(self._splits, self._table, few, hint=self._hint, alike="" if self.settings.size else alike)

    def _hint(self, ids: Collection[int]) -> str:
        """Return what helps against ids without a class."""
        settings, wrong = self.settings, [i for i in ids if self._table[i] == UNKNOWN]
        if not wrong:
            return ""
        # another ignored id among those of the classes would move their ids
        free = settings.ignore is None or (settings.ignore not in ids and settings.ignore >= len(settings.classes))
        if len(wrong) == 1 and free:
            now = "" if settings.ignore is None else f" instead of {settings.ignore}"
            return f"set ignore: {wrong[0]}{now} if its pixels do not count, or name its class in classes"
        one = "one id, which does not count" if settings.ignore is None else f"one id, now {settings.ignore}"
        return f"name all classes in classes (ignore takes {one}), or change the label maps"

    @property
    def _folder(self) -> Path:
        return self.data_root.root / expanded(self.settings.folder)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        settings = self.settings
        table = np.full(256, UNKNOWN, dtype=np.uint8)
        ids = [i for i in range(256) if i != settings.ignore][: len(settings.classes)]
        table[ids] = np.arange(len(ids))
        if settings.ignore is not None:
            table[settings.ignore] = IGNORED
        return table

    @cached_property
    def _files(self) -> tuple[Files, Files, Files, Files]:
        """The used images and labels of the pool, then those of the test set, with checked headers."""
        settings = self.settings
        train, test = self._splits
        train_sizes, test_sizes = train.sizes(), test.sizes()
        cover = (settings.size[0], settings.size[1]) if settings.size else None
        sizes = cover or common_size(train_sizes, settings.scale), common_size(test_sizes, settings.scale)
        return as_files(train, test, sizes, settings.scale, self._table, cover)

    @cached_property
    def _splits(self) -> tuple[Pairs, Pairs]:
        settings = self.settings
        self._notes: list[str] = []
        parts = (settings.train, settings.limit), (settings.test, settings.test_limit)
        train, test = gathered(partial(self._pairs, *part) for part in parts)
        return train, test

    def _pairs(self, splits: Sequence[str], limit: int | None) -> Pairs:
        """List the images of the splits that are used, and their label maps. Notes what is left out.

        None is opened, except to find unreadable ones, if they are to be left out.
        """
        parts = gathered(partial(self._of_split, split) for split in splits)
        pairs = Pairs(
            Paths.joined(self._folder, [part.images for part in parts]),
            Paths.joined(self._folder, [part.labels for part in parts]),
        )
        if twice := [path for path, count in Counter(pairs.images).items() if count > 1]:
            raise DataMissing(f"in more than one of the splits {', '.join(splits)}: {pixels.some([*map(str, twice)])}")
        if self.settings.skip_unreadable:
            reasons = pairs.unreadable()
            if bad := [reason for reason in reasons if reason]:
                self._notes.append(f"left out as unreadable: {counted(len(bad), 'image')}: {pixels.some(bad)}")
            if len(bad) == len(reasons):
                raise DataMissing(f"no image of {', '.join(splits)} can be read: {pixels.some(bad)}")
            pairs = pairs.at(np.flatnonzero([not reason for reason in reasons]))
        return pairs.at(spaced(len(pairs.images), limit))

    def _of_split(self, split: str) -> Pairs:
        """List all images of a split, and where their label maps are or should be."""
        settings, suffix = self.settings, self.settings.label_suffix.lower()
        folder, labels = (
            self._folder / expanded(key.replace(SPLIT, split)) for key in (settings.images, settings.labels)
        )
        if not is_folder(folder):
            raise DataMissing(
                f"{no_folder(folder)}; expected: {settings.images.replace(SPLIT, '<split>')}/<name>.png or "
                f".jpg and {settings.labels.replace(SPLIT, '<split>')}/<name>{settings.label_suffix} in {self._folder}"
                f"{self._other_splits(settings.images, split)}"
            )
        found = listed(folder, tuple(FORMATS))
        maps = listed(labels, (suffix,)) if is_folder(labels) else Listing()
        if folder == labels:  # the label maps lie among the images
            found.paths = [path for path in found.paths if not path.name.lower().endswith(suffix)]
            maps.left_out.clear()
        if not found.paths:
            there = f"; what is there is not read: {found.kinds}" if found.left_out else ""
            raise DataMissing(f"{folder} has no image; put at least one there ({allowed()}){there}")
        first: dict[Path, Path] = {}
        exact = {str(path.relative_to(labels)): path for path in maps.paths}
        any_case = {name.lower(): path for name, path in exact.items()}
        images = found.paths if settings.lists is None else self._from_list(split, folder, found)
        names = [str(path.relative_to(folder).with_suffix("")) + settings.label_suffix for path in images]
        used = [exact.get(name) or any_case.get(name.lower()) or labels / name for name in names]
        if not {*used} & {*maps.paths}:
            self._check_suffix(images[0], maps.paths)
        if shared := [
            f"{other} and {image.name} have the same label map, {label}: remove one of the images"
            for image, label in zip(images, used, strict=True)
            if (other := first.setdefault(label, image)) is not image
        ]:
            raise DataMissing(pixels.some(shared))
        if settings.lists is None:
            self._note(found, settings.images.replace(SPLIT, split))
            maps.left_out.update({"without an image": len({*maps.paths} - {*used})})
        maps.left_out = +maps.left_out
        if maps.left_out:
            files = counted(maps.left_out.total(), "file")
            self._notes.append(f"{settings.labels.replace(SPLIT, split)}: left out: {files} ({maps.kinds})")
        return Pairs(Paths.of(images, self._folder), Paths.of(used, self._folder))

    def _check_suffix(self, image: Path, maps: Sequence[Path]) -> None:
        """Raise DataMissing if a label map has an image's name and another suffix than ``label_suffix``."""
        if fitting := [path for path in maps if path.name.startswith(image.stem)]:
            found = min(fitting, key=lambda path: len(path.name))
            raise DataMissing(
                f"{image} has no label map {image.stem}{self.settings.label_suffix}, but there is {found}: set "
                f"label_suffix: {found.name[len(image.stem) :]}"
            )

    def _other_splits(self, pattern: str, split: str) -> str:
        """Return a hint at what may be the split that is missing, or ""."""
        path, settings = expanded(pattern), self.settings
        depth = next(index for index, part in enumerate(path.parts) if SPLIT in part)
        folder, (before, after) = self._folder.joinpath(*path.parts[:depth]), path.parts[depth].split(SPLIT, 1)
        names = [entry.name for entry in entries(folder)] if is_folder(folder) else []
        fitting = [n[len(before) : len(n) - len(after)] for n in names if n.startswith(before) and n.endswith(after)]
        others = [
            name for name in fitting if name and not is_system(name) and name not in settings.train + settings.test
        ]
        others = most_similar_first(split, others)
        key = "train" if split in settings.train else "test"
        return f"; there is {', '.join(others[:5])}: set {key}: [{others[0]}]" if others else ""

    def _note(self, listing: Listing, where: str) -> None:
        self._notes += [note] if (note := listing.note(where)) else []

    def _from_list(self, split: str, folder: Path, found: Listing) -> list[Path]:
        """Return the images that the list of a split names, in its order. Raises DataMissing."""
        assert self.settings.lists is not None
        path = self._folder / expanded(self.settings.lists.replace(SPLIT, split))
        try:
            if path.exists() and not path.is_file():
                raise DataMissing(f"{path} is no file: it must name one image a line")
            if not path.exists():
                others = self._other_splits(self.settings.lists, split)
                raise DataMissing(f"there is no file {path}: it must name one image a line{others}")
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataMissing(f"{path} can't be read ({reason(error)}): it must name one image a line") from None
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise DataMissing(f"{path} is empty: it must name one image a line")
        whole = {str(image.relative_to(folder)): [image] for image in found.paths}
        short: dict[str, list[Path]] = defaultdict(list)
        for name, (image,) in whole.items():
            short[str(Path(name).with_suffix(""))].append(image)
        fitting = [whole.get(name) or short.get(name, []) for name in names]
        if absent := [
            BadFile(repr(name), f"is not in {folder}") for name, fits in zip(names, fitting, strict=True) if not fits
        ]:
            raise DataMissing(f"{path} names images that are not there: {pixels.some(absent)}")
        named: dict[Path, str] = {}
        problems = []
        for name, fits in zip(names, fitting, strict=True):
            if len(fits) > 1:
                problems.append(f"names {name!r}, which is {' or '.join(p.name for p in fits)}: add the suffix")
            elif (before := named.get(fits[0])) is not None:
                problems.append(f"names {name!r} twice{'' if before == name else f', before as {before!r}'}")
            else:
                named[fits[0]] = name
        if problems:
            raise DataMissing(f"{path} {pixels.some(problems)}")
        self._notes.append(f"{path.name}: {len(names)} of the {counted(len(found.paths), 'image')} in {folder.name}/")
        return list(named)


def allowed() -> str:
    """Return the suffixes of images, for messages."""
    return ", ".join(suffix.removeprefix(".") for suffix in FORMATS)

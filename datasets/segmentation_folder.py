"""One's own images with label maps: images/<split>/<name>.png or .jpg, and labels/<split>/<name>.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from harness.data.dataset import Dataset, DatasetSettings, Facts, Problem, spaced
from harness.data.files import IGNORED, MOST_CLASSES, UNKNOWN, Files, common_size
from harness.errors import DataMissing

from ._maps import Pairs, Scale, as_files
from ._trees import mean_and_std

SUFFIXES = (".png", ".jpg", ".jpeg")
MEASURED = 100
"""Images that mean and deviation are measured on, where they are not given."""
LOOKED_AT = 4
"""Label maps of each split that are decoded before a run starts."""


class SegmentationFolder(Dataset):
    """Files are sorted by name in each split; label maps are 8-bit PNGs of class ids, grey or with a palette.

    Images of the pool must have one size; test images may have others.
    """

    class Settings(DatasetSettings):
        """Settings of segmentation_folder."""

        folder: str = Field(description="the folder with images/ and labels/; a relative path lies below where.data")
        classes: list[str] = Field(
            min_length=2,
            max_length=MOST_CLASSES,
            description="names of the ids 0, 1, ... in a label map; the id that is ignored has none and is left out",
        )
        ignore: int | None = Field(None, ge=0, le=255, description="id of the pixels that count nowhere")
        train: list[str] = Field(["train"], min_length=1, description="splits that make up the pool")
        test: list[str] = Field(["test"], min_length=1, description="splits that are tested on")
        scale: Scale = Field(1.0, description="resize images to this part of their size; test labels keep their own")
        mean: list[float] | None = Field(
            None,
            min_length=3,
            max_length=3,
            description=f"of red, green and blue in 0..1; null: measured on {MEASURED} images of the pool",
        )
        std: list[float] | None = Field(None, min_length=3, max_length=3, description="as mean")

        @field_validator("classes")
        @classmethod
        def _classes_differ(cls, classes: list[str]) -> list[str]:
            if twice := {name for name in classes if classes.count(name) > 1}:
                raise ValueError(f"{min(twice)!r} is there twice")
            return classes

        @field_validator("test")
        @classmethod
        def _splits_differ(cls, test: list[str], before: ValidationInfo) -> list[str]:
            splits = [*before.data.get("train", []), *test]
            if twice := {split for split in splits if splits.count(split) > 1}:
                raise ValueError(f"the split {min(twice)!r} is there twice in train and test")
            return test

        @field_validator("std")
        @classmethod
        def _std_is_positive(cls, std: list[float] | None) -> list[float] | None:
            if std and min(std) <= 0:
                raise ValueError(f"must be above 0, got {std}")
            return std

    def facts(self) -> Facts:
        """Return counts and shapes from headers; a few label maps are decoded, to find a wrong ``classes`` now."""
        _, train_labels, _, test_labels = self._files()
        for labels in (train_labels, test_labels):
            for index in spaced(len(labels), LOOKED_AT):
                labels.row(int(index))
        return Facts(
            len(train_labels),
            len(test_labels),
            len(self.settings.classes),
            channels=3,
            size=train_labels.size,
            source=f"images and label maps in {self._folder}",
            per_pixel=True,
        )

    def load(self) -> Problem:
        """Return the images and label maps as files, split after split, which are decoded when they are used."""
        images, labels, test_images, test_labels = self._files()
        mean, std = self.settings.mean, self.settings.std
        if mean is None or std is None:
            measured = mean_and_std(images.row(int(i)) for i in spaced(len(images), MEASURED))
            mean, std = mean or measured[0], std or measured[1]
        return Problem(images, labels, test_images, test_labels, tuple(self.settings.classes), tuple(mean), tuple(std))

    @property
    def _folder(self) -> Path:
        return self.place.root / Path(self.settings.folder).expanduser()

    def _files(self) -> tuple[Files, Files, Files, Files]:
        """Return images and labels of the pool, then of the test set: those in use, their headers checked."""
        settings = self.settings
        table = np.full(256, UNKNOWN, dtype=np.uint8)
        ids = [i for i in range(256) if i != settings.ignore][: len(settings.classes)]
        table[ids] = np.arange(len(ids))
        if settings.ignore is not None:
            table[settings.ignore] = IGNORED
        train, test = self._pairs(settings.train, settings.limit), self._pairs(settings.test, settings.test_limit)
        of_train, of_test = train.sizes(), test.sizes()
        for path, found in zip(train.images, of_train, strict=True):
            if found != of_train[0]:  # what fills it up would be part of its score
                raise DataMissing(
                    f"{path} is {found[1]} x {found[0]} pixels where {train.images[0].name} is {of_train[0][1]} x "
                    f"{of_train[0][0]}: images that are ranked must have one size; resize or cut them"
                )
        sizes = common_size(of_train, settings.scale), common_size(of_test, settings.scale)
        return as_files(train, test, sizes, settings.scale, table)

    def _pairs(self, splits: Sequence[str], limit: int | None) -> Pairs:
        """List the images of the splits that are in use, and their label maps, without opening them."""
        images: list[Path] = []
        for split in splits:
            folder = self._folder / "images" / split
            if not folder.is_dir():
                raise DataMissing(
                    f"there is no folder {folder}; expected are images/<split>/<name>.png or .jpg and "
                    f"labels/<split>/<name>.png in {self._folder}"
                )
            there = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            if not there:
                raise DataMissing(f"{folder} has no image; put at least one there (png, jpg, jpeg)")
            images += sorted(there, key=lambda path: path.name)
        images = [images[i] for i in spaced(len(images), limit)]
        labels = [self._folder / "labels" / p.parent.name / f"{p.stem}.png" for p in images]
        return Pairs(images, labels)

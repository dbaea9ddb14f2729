"""Any images with label maps: images/<split>/<name>.png or .jpg, and labels/<split>/<name>.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, spaced
from harness.data.files import IGNORED, MOST_CLASSES, UNKNOWN, Files, common_size
from harness.errors import DataMissing

from ._maps import Pairs, Scale, as_files
from ._trees import mean_and_std

SUFFIXES = (".png", ".jpg", ".jpeg")
MEASURED = 100
"""Number of images on which mean and standard deviation are measured if the settings do not give them."""
LOOKED_AT = 4
"""Number of label maps of each split that are decoded before a run starts."""


class SegmentationFolder(Dataset):
    """Files are sorted by name in each split; label maps are 8-bit PNGs of class ids, grey or with a palette.

    All images of the pool must have the same size; test images may have other sizes.
    """

    class Settings(DatasetSettings):
        """Settings of segmentation_folder."""

        folder: str = Field(description="the folder with images/ and labels/; a relative path is below where.data")
        classes: list[str] = Field(
            min_length=2,
            max_length=MOST_CLASSES,
            description="names of the ids 0, 1, ... in a label map, without the ignored id",
        )
        ignore: int | None = Field(None, ge=0, le=255, description="id of pixels that losses and metrics ignore")
        train: list[str] = Field(["train"], min_length=1, description="splits that form the pool")
        test: list[str] = Field(["test"], min_length=1, description="splits that form the test set")
        scale: Scale = Field(1.0, description="resize images by this factor; test labels keep their own size")
        mean: list[float] | None = Field(
            None,
            min_length=3,
            max_length=3,
            description=f"mean of red, green and blue, in 0..1; null: measured on {MEASURED} images of the pool",
        )
        std: list[float] | None = Field(None, min_length=3, max_length=3, description="standard deviation, like mean")

        @field_validator("classes")
        @classmethod
        def _classes_differ(cls, classes: list[str]) -> list[str]:
            if twice := {name for name in classes if classes.count(name) > 1}:
                raise ValueError(f"{min(twice)!r} occurs twice")
            return classes

        @field_validator("test")
        @classmethod
        def _splits_differ(cls, test: list[str], before: ValidationInfo) -> list[str]:
            splits = [*before.data.get("train", []), *test]
            if twice := {split for split in splits if splits.count(split) > 1}:
                raise ValueError(f"the split {min(twice)!r} occurs twice in train and test")
            return test

        @field_validator("std")
        @classmethod
        def _std_is_positive(cls, std: list[float] | None) -> list[float] | None:
            if std and min(std) <= 0:
                raise ValueError(f"must be above 0, got {std}")
            return std

    def info(self) -> DatasetInfo:
        """Return counts and shapes from headers. Decode a few label maps, to detect wrong ``classes`` before a run."""
        _, train_labels, _, test_labels = self._files()
        for labels in (train_labels, test_labels):
            for index in spaced(len(labels), LOOKED_AT):
                labels.row(int(index))
        return DatasetInfo(
            len(train_labels),
            len(test_labels),
            len(self.settings.classes),
            channels=3,
            size=train_labels.size,
            source=f"images and label maps in {self._folder}",
            per_pixel=True,
        )

    def load(self) -> LoadedData:
        """Return the images and label maps as files, split after split, which are decoded on access."""
        images, labels, test_images, test_labels = self._files()
        mean, std = self.settings.mean, self.settings.std
        if mean is None or std is None:
            measured = mean_and_std(images.row(int(i)) for i in spaced(len(images), MEASURED))
            mean, std = mean or measured[0], std or measured[1]
        return LoadedData(
            images, labels, test_images, test_labels, tuple(self.settings.classes), tuple(mean), tuple(std)
        )

    @property
    def _folder(self) -> Path:
        return self.data_root.root / Path(self.settings.folder).expanduser()

    def _files(self) -> tuple[Files, Files, Files, Files]:
        """Return the used images and labels of the pool, then those of the test set, after checking their headers."""
        settings = self.settings
        table = np.full(256, UNKNOWN, dtype=np.uint8)
        ids = [i for i in range(256) if i != settings.ignore][: len(settings.classes)]
        table[ids] = np.arange(len(ids))
        if settings.ignore is not None:
            table[settings.ignore] = IGNORED
        train, test = self._pairs(settings.train, settings.limit), self._pairs(settings.test, settings.test_limit)
        train_sizes, test_sizes = train.sizes(), test.sizes()
        for path, size in zip(train.images, train_sizes, strict=True):
            if size != train_sizes[0]:  # the padding would affect the image's score
                raise DataMissing(
                    f"{path} is {size[1]} x {size[0]} pixels, but {train.images[0].name} is {train_sizes[0][1]} x "
                    f"{train_sizes[0][0]}: images of the pool must have the same size; resize or crop them"
                )
        sizes = common_size(train_sizes, settings.scale), common_size(test_sizes, settings.scale)
        return as_files(train, test, sizes, settings.scale, table)

    def _pairs(self, splits: Sequence[str], limit: int | None) -> Pairs:
        """List the images of the splits that are used, and their label maps, without opening them."""
        images: list[Path] = []
        for split in splits:
            folder = self._folder / "images" / split
            if not folder.is_dir():
                raise DataMissing(
                    f"there is no folder {folder}; expected: images/<split>/<name>.png or .jpg and "
                    f"labels/<split>/<name>.png in {self._folder}"
                )
            paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            if not paths:
                raise DataMissing(f"{folder} has no image; put at least one there (png, jpg, jpeg)")
            images += sorted(paths, key=lambda path: path.name)
        images = [images[i] for i in spaced(len(images), limit)]
        labels = [self._folder / "labels" / p.parent.name / f"{p.stem}.png" for p in images]
        return Pairs(images, labels)

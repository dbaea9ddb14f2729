"""Any image tree: train/<class>/<image> and test/<class>/<image>, with the same classes in both."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData
from harness.data.files import Files
from harness.data.pixels import FORMATS
from harness.data.prepared import looked_over
from harness.errors import expanded
from harness.settings import LONGEST_LIST, Side

from ._listing import once, splits_differ
from ._trees import SKIP, Tree, described, mean_and_std_of, read_tree


class ImageFolder(Dataset):
    """Classes and files are sorted by name; mean and standard deviation are those of the training images."""

    class Settings(DatasetSettings):
        """Settings of image_folder."""

        folder: str = Field(description="the folder with train/ and test/; a relative path is below where.data")
        image_size: Side = Field(
            description="height and width: the shorter side is resized to it, the longer side cropped to its centre"
        )
        train: list[str] = Field(
            ["train"], min_length=1, max_length=LONGEST_LIST, description="folders that form the pool"
        )
        test: list[str] = Field(
            ["test"],
            min_length=1,
            max_length=LONGEST_LIST,
            validate_default=True,
            description="folders that form the test set, such as [val]",
        )
        skip_unreadable: bool = Field(
            False, description="leave out images that can't be decoded, and note which, instead of refusing to run"
        )

        @field_validator("train")
        @classmethod
        def _occurs_once(cls, train: list[str]) -> list[str]:
            return once(train)

        @field_validator("test")
        @classmethod
        def _splits_differ(cls, test: list[str], before: ValidationInfo) -> list[str]:
            return splits_differ(test, before)

    def info(self) -> DatasetInfo:
        """Return counts from a listing of the files; no image is opened, except to find those to leave out."""
        tree, side = self._tree, self.settings.image_size
        number = len(tree.train_paths) + len(tree.test_paths)
        return DatasetInfo(
            len(tree.train_paths),
            len(tree.test_paths),
            len(tree.classes),
            channels=3,
            size=(side, side),
            source=f"image tree in {self._folder} ({tree.formats})",
            notes=tree.notes,
            from_files=True,
            resized=number * side * side * 3,
        )

    def load(self) -> LoadedData:
        """Return the images as RGB squares, sorted by class and file name, which are decoded on access.

        All of them are decoded once before, as far as that is not remembered.
        """
        tree, side = self._tree, self.settings.image_size
        parts = [
            Files(paths, (side, side), cover=(side, side), whole=True) for paths in (tree.train_paths, tree.test_paths)
        ]
        (images, test_images), (counts, _) = looked_over(parts, self.data_root.prepared, SKIP)
        arrays = images, tree.train_labels, test_images, tree.test_labels
        return LoadedData(*arrays, tree.classes, *mean_and_std_of(counts), tree.names())

    def examine(self) -> list[str]:
        """Return formats, modes and sizes of the images, which are decoded."""
        return described(self._tree)

    @property
    def _folder(self) -> Path:
        return self.data_root.root / expanded(self.settings.folder)

    @cached_property
    def _tree(self) -> Tree:
        tree = read_tree(self._folder, tuple(FORMATS), train=self.settings.train, test=self.settings.test)
        tree = tree.without_unreadable() if self.settings.skip_unreadable else tree
        return tree.limited(self.settings.limit, self.settings.test_limit)

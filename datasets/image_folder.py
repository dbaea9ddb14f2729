"""A tree of one's own images: train/<class>/<image> and test/<class>/<image>, with the same classes in both."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from harness.data.dataset import Dataset, DatasetSettings, Facts, Problem, balanced

from ._trees import FORMATS, Tree, decode, mean_and_std, read_tree


class ImageFolder(Dataset):
    """Classes and files are sorted by name; mean and deviation are measured on the training images in use."""

    class Settings(DatasetSettings):
        """Settings of image_folder."""

        folder: str = Field(description="the folder with train/ and test/; a relative path lies below where.data")
        image_size: PositiveInt = Field(
            description="height and width: the shorter side is resized to it, the longer one cropped to its middle"
        )

    def facts(self) -> Facts:
        """Return counts from a listing: no image is opened."""
        tree, settings = self._tree(), self.settings
        return Facts(
            min(len(tree.train_paths), settings.limit or len(tree.train_paths)),
            min(len(tree.test_paths), settings.test_limit or len(tree.test_paths)),
            len(tree.classes),
            channels=3,
            size=(settings.image_size, settings.image_size),
            source=f"image tree in {self._folder} ({tree.formats})",
        )

    def load(self) -> Problem:
        """Return the images as RGB squares, sorted by class and file name."""
        tree, size = self._tree(), self.settings.image_size
        train = balanced(tree.train_labels, self.settings.limit)
        test = balanced(tree.test_labels, self.settings.test_limit)
        images = decode([tree.train_paths[i] for i in train], size, resize=True)
        test_images = decode([tree.test_paths[i] for i in test], size, resize=True)
        mean, std = mean_and_std(images)
        return Problem(images, tree.train_labels[train], test_images, tree.test_labels[test], tree.classes, mean, std)

    @property
    def _folder(self) -> Path:
        return self.place.root / Path(self.settings.folder).expanduser()

    def _tree(self) -> Tree:
        return read_tree(self._folder, tuple(FORMATS))

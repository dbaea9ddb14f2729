"""Any image tree: train/<class>/<image> and test/<class>/<image>, with the same classes in both."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, balanced

from ._trees import FORMATS, Tree, decode, mean_and_std, read_tree


class ImageFolder(Dataset):
    """Classes and files are sorted by name; mean and standard deviation are those of the training images."""

    class Settings(DatasetSettings):
        """Settings of image_folder."""

        folder: str = Field(description="the folder with train/ and test/; a relative path is below where.data")
        image_size: PositiveInt = Field(
            description="height and width: the shorter side is resized to it, the longer side cropped to its centre"
        )

    def info(self) -> DatasetInfo:
        """Return counts from a listing of the files; no image is opened."""
        tree, settings = self._tree(), self.settings
        return DatasetInfo(
            min(len(tree.train_paths), settings.limit or len(tree.train_paths)),
            min(len(tree.test_paths), settings.test_limit or len(tree.test_paths)),
            len(tree.classes),
            channels=3,
            size=(settings.image_size, settings.image_size),
            source=f"image tree in {self._folder} ({tree.formats})",
        )

    def load(self) -> LoadedData:
        """Return the images as RGB squares, sorted by class and file name."""
        tree, size = self._tree(), self.settings.image_size
        train = balanced(tree.train_labels, self.settings.limit)
        test = balanced(tree.test_labels, self.settings.test_limit)
        images = decode([tree.train_paths[i] for i in train], size, resize=True)
        test_images = decode([tree.test_paths[i] for i in test], size, resize=True)
        mean, std = mean_and_std(images)
        return LoadedData(
            images, tree.train_labels[train], test_images, tree.test_labels[test], tree.classes, mean, std
        )

    @property
    def _folder(self) -> Path:
        return self.data_root.root / Path(self.settings.folder).expanduser()

    def _tree(self) -> Tree:
        return read_tree(self._folder, tuple(FORMATS))

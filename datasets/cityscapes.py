"""Cityscapes: street scenes of 50 cities, 2048 x 1024 RGB, with fine label maps of 19 classes. Never downloaded.

The pool is the 2975 images of train/, the test set the 500 images of val/. The images of test/ have no public labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, spaced
from harness.data.files import IGNORED, UNKNOWN, Files, common_size
from harness.data.paths import Names, Paths
from harness.errors import DataMissing

from ._listing import Listing, is_folder, listed
from ._maps import Pairs, Scale, as_files, checked, classes_occur, in_words, resized, share_note
from ._street import CLASSES, draw

HEIGHT, WIDTH = 1024, 2048
NUM_TRAIN, NUM_TEST = 2975, 500
MARKER = "GENERATED"
IDS = {  # in the order of the official trainIds 0..18 (cityscapesscripts, helpers/labels.py)
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
UNLABELLED_TRAIN_ID = 255
IMAGE = "_leftimg8bit.png"
TABLE = np.full(256, IGNORED, dtype=np.uint8)
TABLE[list(IDS.values())] = np.arange(len(IDS))
KNOWN = TABLE.copy()
KNOWN[34:] = UNKNOWN
"""The same, without the ids that no official label map holds. (TABLE enters fingerprints, so it stays as it was.)"""
MEAN = (0.290101, 0.328081, 0.286964)  # as in the code of DRN (info.json of its Cityscapes lists)
STD = (0.182954, 0.186566, 0.184475)


TRAIN_IDS = (
    "so these look like trainIds, to which the official scripts convert them: put the *_gtFine_labelIds.png of "
    "gtFine_trainvaltest there again"
)


class Cityscapes(Dataset):
    """Reads the official folders leftImg8bit/ and gtFine/ in where.data/cityscapes, sorted by city and file name."""

    class Settings(DatasetSettings):
        """Settings of cityscapes."""

        scale: Scale = Field(1.0, description="resize images by this factor; test labels keep their own size")

    def info(self) -> DatasetInfo:
        """Return counts and shapes. Every label map must exist, and every header must state 2048 x 1024 pixels.

        A few label maps are decoded, to detect wrong ids before a run.
        """
        checked(self._splits, KNOWN, True, (HEIGHT, WIDTH), _hint)
        train, test = self._splits
        what = "generated tree (not real images)" if self._is_generated else "official tree"
        return DatasetInfo(
            len(train.images),
            len(test.images),
            len(IDS),
            channels=3,
            size=self._size,
            source=f"{what} in {self._folder}",
            per_pixel=True,
            notes=tuple(filter(None, (found.note(f"leftImg8bit/{split}") for split, found in self._listings.items()))),
            from_files=True,
            resized=resized(self._files),
        )

    def load(self) -> LoadedData:
        """Return the images and label maps as files, sorted by city and name, which are decoded on access.

        All of them are decoded once before, as far as that is not remembered.
        """
        ids = self._ids()
        names = Names(self._splits[0].images)
        return LoadedData(*self._files, tuple(IDS), MEAN, STD, names, share_note(ids, TABLE))

    def examine(self) -> list[str]:
        """Return sizes and shares of classes of all files, which are decoded."""
        return in_words(self._splits, self._ids(), TABLE, tuple(IDS))

    def _ids(self) -> Counter[int]:
        train, test = checked(self._splits, KNOWN, False, (HEIGHT, WIDTH), _hint)
        classes_occur(train, TABLE, tuple(IDS))
        for split, ids in (("train", train), ("val", test)):
            if max(ids) <= len(IDS):  # a table may give one more id to what has no class
                raise DataMissing(
                    f"{self._folder / 'gtFine' / split}: no label map holds an id above {len(IDS)}, such as 23 of the "
                    f"sky, {TRAIN_IDS}"
                )
        return train + test

    @property
    def _folder(self) -> Path:
        return self.data_root.root / "cityscapes"

    @property
    def _is_generated(self) -> bool:
        return (self._folder / MARKER).is_file()

    @property
    def _files(self) -> tuple[Files, Files, Files, Files]:
        """The images and labels of the pool, then those of the test set."""
        return as_files(*self._splits, (self._size, self._size), self.settings.scale, TABLE)

    @property
    def _size(self) -> tuple[int, int]:
        return common_size([(HEIGHT, WIDTH)], self.settings.scale)

    @cached_property
    def _splits(self) -> tuple[Pairs, Pairs]:
        self._listings: dict[str, Listing] = {}
        return self._pairs("train"), self._pairs("val")

    def _pairs(self, split: str) -> Pairs:
        """List the images of train/ or val/ that are used, and their label maps, without opening them."""
        images, labels = self._folder / "leftImg8bit" / split, self._folder / "gtFine" / split
        for part in (images, labels):
            if not is_folder(part):
                raise DataMissing(
                    f"Cityscapes has no {part}: its licence requires a registration on its home page; get "
                    f"leftImg8bit_trainvaltest and gtFine_trainvaltest there and unpack both into {self._folder}"
                )
        self._listings[split] = listed(images, (IMAGE,))
        paths = sorted(self._listings[split].paths)
        expected, limit = (NUM_TRAIN, self.settings.limit) if split == "train" else (NUM_TEST, self.settings.test_limit)
        if len(paths) != expected and not (paths and self._is_generated):
            raise DataMissing(
                f"{images} has {len(paths)} images, but Cityscapes has {expected}: unpack leftImg8bit_trainvaltest "
                f"into {self._folder} again"
            )
        paths = [paths[i] for i in spaced(len(paths), limit)]
        names = (p.name.replace("_leftImg8bit", "_gtFine_labelIds") for p in paths)
        maps = (labels / p.parent.name / name for p, name in zip(paths, names, strict=True))
        return Pairs(Paths.of(paths, self._folder), Paths.of(maps, self._folder))


def _hint(ids: Collection[int]) -> str:
    """Return what wrong ids may come from."""
    if UNLABELLED_TRAIN_ID not in ids:
        return ""
    return f"no official labelIds hold 255, {TRAIN_IDS}"


def write_cityscapes(root: Path, train: int, test: int) -> None:
    """Write synthetic scenes with the layout, names and image size of the official tree, and a marker file.

    Each split has two cities, so it needs at least two images. Raises FileExistsError if the tree exists.
    """
    from PIL import Image

    folder = root / "cityscapes"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("drawn scenes, not real images\n")
    official = {"pavement": "sidewalk", "sign": "traffic sign"}
    ids = np.ones(256, dtype=np.uint8)  # 1: ego vehicle
    ids[: len(CLASSES)] = [IDS[official.get(name, name)] for name in CLASSES]
    coarse = 16
    for number, (split, cities, count) in enumerate(
        (("train", ("aachen", "zurich"), train), ("val", ("frankfurt", "munster"), test))
    ):
        for index in range(count):
            city = cities[index % len(cities)]
            image, labels = draw(number, index, HEIGHT // coarse, WIDTH // coarse)
            stem = f"{city}_{index:06}_000019"
            for part, suffix, pixels in (("leftImg8bit", "", image), ("gtFine", "_labelIds", ids[labels])):
                path = folder / part / split / city / f"{stem}_{part}{suffix}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                large = pixels.repeat(coarse, axis=0).repeat(coarse, axis=1)
                Image.fromarray(large).save(path, compress_level=1)

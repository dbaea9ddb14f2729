"""Datasets that are wrong in one way each. A module of its own: a check loads them in a new process, too."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, balanced
from harness.data.files import IGNORED, Files
from harness.errors import DataMissing
from harness.settings import Strict


class Fine(Dataset):
    """Forty and sixteen small images in two classes; a file in the data folder says that they may be made."""

    def info(self) -> DatasetInfo:
        file = self.data_root.root / "here.txt"
        if not file.exists():
            raise DataMissing(f"{file} is missing: make it")
        train, test = self.settings.limit or 40, self.settings.test_limit or 16
        return DatasetInfo(train, test, 2, 3, (8, 8), "numbers")

    def load(self) -> LoadedData:
        self.info()
        images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (56, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(56, dtype=np.int64) % 2
        train = balanced(labels[:40], self.settings.limit)
        test = 40 + balanced(labels[40:], self.settings.test_limit)
        mean_std = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
        return LoadedData(images[train], labels[train], images[test], labels[test], ("cat", "dog"), *mean_std)


class OtherSettings(Fine):
    class Settings(Strict):  # type: ignore[assignment]
        limit: int | None = None
        test_limit: int | None = None


class Broken(Fine):
    def load(self) -> LoadedData:
        return {}["images"]  # type: ignore[no-any-return]


class OtherFacts(Fine):
    def info(self) -> DatasetInfo:
        return replace(super().info(), num_classes=3)


class OtherChannels(Fine):
    def load(self) -> LoadedData:
        data = super().load()
        return replace(data, test_images=data.test_images[..., :1])


class TooHigh(Fine):
    """Label maps in files, which are checked when they are decoded; the table has a class too many."""

    def info(self) -> DatasetInfo:
        return replace(super().info(), per_pixel=True)

    def load(self) -> LoadedData:
        data, paths = super().load(), []
        for number in range(56):
            paths.append(Path(tempfile.mkdtemp()) / f"{number}.png")
            Image.fromarray(np.full((8, 8), number % 2, np.uint8)).save(paths[-1])
        table = np.full(256, IGNORED, np.uint8)
        table[:2] = 0, 2
        train, test = paths[: len(data.train_images)], paths[40 : 40 + len(data.test_images)]
        maps = [Files(some, (8, 8), table=table) for some in (train, test)]
        return replace(data, train_labels=maps[0], test_labels=maps[1])


class SameClasses(Fine):
    def load(self) -> LoadedData:
        return replace(super().load(), classes=("cat", "cat"))


class Unscaled(Fine):
    def load(self) -> LoadedData:
        return replace(super().load(), mean=(127.5, 127.5, 127.5))


class Vanishing(Fine):
    """Has a std that is 0 in float32."""

    def load(self) -> LoadedData:
        return replace(super().load(), std=(1e-50, 1e-50, 1e-50))


class Shuffled(Fine):
    loads = itertools.count()

    def load(self) -> LoadedData:
        data = super().load()
        return replace(data, train_images=np.roll(data.train_images, next(self.loads), 0))


class Hashed(Fine):
    def load(self) -> LoadedData:
        data = super().load()
        order = sorted(range(len(data.train_images)), key=lambda i: hash(f"image {i}"))
        return replace(data, train_images=data.train_images[order])


class Crashing(Fine):
    def load(self) -> LoadedData:
        if os.environ.get("PYTHONHASHSEED") == "7":  # in the new process of the check
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().load()


class OneSplit(Fine):
    def info(self) -> DatasetInfo:
        return replace(super().info(), num_test=self.settings.test_limit or 40)

    def load(self) -> LoadedData:
        data, limit = super().load(), self.settings.test_limit
        test = data.train_images[:limit] if limit else data.train_images
        return replace(data, test_images=test, test_labels=data.train_labels[: len(test)])


class SameNames(Fine):
    def load(self) -> LoadedData:
        data = super().load()
        return replace(data, names=("0.png",) * len(data.train_images))


class Unlimited(Fine):
    def load(self) -> LoadedData:
        return Fine(DatasetSettings(), self.data_root).load()


class NotSaid(Fine):
    def info(self) -> DatasetInfo:
        (self.data_root.root / "here.txt").read_text()
        return super().info()

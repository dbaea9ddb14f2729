"""Drawn stripes in four directions: a dataset without files."""

import numpy as np

from harness import Dataset, DatasetInfo, DatasetSettings, LoadedData

CLASSES = ("horizontal", "vertical", "falling", "rising")
SIDE = 16


class Stripes(Dataset):
    """Stripes of random width and offset under noise; the class is their direction."""

    class Settings(DatasetSettings):
        """Settings of the drawing."""

        train: int = 400
        test: int = 200
        noise: float = 40.0

    def info(self) -> DatasetInfo:
        """Return the counts after the limits, and the shape of the images."""
        s = self.settings
        train, test = min(s.train, s.limit or s.train), min(s.test, s.test_limit or s.test)
        return DatasetInfo(train, test, len(CLASSES), channels=1, size=(SIDE, SIDE), source="drawn stripes")

    def load(self) -> LoadedData:
        """Draw the images, with the same random numbers on every machine."""
        info, random = self.info(), np.random.default_rng(0)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        directions = (rows, columns, rows - columns, rows + columns)

        def draw(count: int):
            labels = np.arange(count) % len(CLASSES)
            images = np.empty((count, SIDE, SIDE, 1), np.uint8)
            for image, label in zip(images, labels, strict=True):
                wave = np.sin(directions[label] * random.uniform(0.6, 1.5) + random.uniform(0, 6))
                noisy = 128 + 60 * wave + random.normal(0, self.settings.noise, wave.shape)
                image[:, :, 0] = noisy.clip(0, 255)
            return images, labels.astype(np.int64)

        return LoadedData(*draw(info.num_train), *draw(info.num_test), CLASSES, mean=(0.5,), std=(0.25,))

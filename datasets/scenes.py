"""Drawn street scenes with a class for each pixel: a segmentation problem that needs no files and trains on a CPU."""

from __future__ import annotations

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from harness.data.dataset import Dataset, DatasetSettings, Facts, Problem, spaced
from harness.data.files import MULTIPLE

from ._street import CLASSES, draw

# measured once, on the scenes of the default settings; a test compares
MEAN, STD = (0.4284, 0.4221, 0.4049), (0.2226, 0.2227, 0.2518)
SMALLEST = 32  # below that, persons are a pixel wide


class Scenes(Dataset):
    """Towns, avenues, country roads and nights; a scene depends on its split, index and size alone.

    Persons and signs are rare (about 1 % of the pixels each), and so are nights and country roads. The bonnet at the
    bottom of each image has no class.
    """

    class Settings(DatasetSettings):
        """Settings of scenes."""

        size: list[int] = Field([64, 96], min_length=2, max_length=2, description="height and width, multiples of 8")
        train: PositiveInt = Field(240, description="scenes of the pool")
        test: PositiveInt = Field(60, description="scenes of the test set")

        @field_validator("size")
        @classmethod
        def _size_is_possible(cls, size: list[int]) -> list[int]:
            if any(side < SMALLEST or side % MULTIPLE for side in size):
                raise ValueError(f"must be two multiples of {MULTIPLE} from {SMALLEST} up, got {size}")
            return size

    def facts(self) -> Facts:
        """Return the settings: nothing is read."""
        train, test = self._indices()
        height, width = self.settings.size
        return Facts(len(train), len(test), len(CLASSES), 3, (height, width), "drawn street scenes", per_pixel=True)

    def load(self) -> Problem:
        """Draw the scenes, in order of their index."""
        train, test = (
            [draw(split, int(index), *self.settings.size) for index in indices]
            for split, indices in enumerate(self._indices())
        )
        images, labels, test_images, test_labels = (
            np.stack(part) for scenes in (train, test) for part in zip(*scenes, strict=True)
        )
        return Problem(images, labels, test_images, test_labels, CLASSES, MEAN, STD)

    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        settings = self.settings
        return spaced(settings.train, settings.limit), spaced(settings.test, settings.test_limit)

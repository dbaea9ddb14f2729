"""Synthetic street scenes with a class per pixel: a segmentation task that needs no files and trains on a CPU."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, spaced
from harness.data.files import MULTIPLE
from harness.settings import Side, Why

from ._street import CLASSES, draw

# of the scenes with the default settings; a test compares them
MEAN, STD = (0.4284, 0.4221, 0.4049), (0.2226, 0.2227, 0.2518)
SMALLEST = 32  # pixels; in smaller images, persons are one pixel wide
Scenery = Annotated[PositiveInt, Field(le=10**6), Why("drawing more would take days")]


class Scenes(Dataset):
    """Towns, avenues, country roads and towns at night. A scene depends only on its split, index and size.

    Persons and signs are rare (about 1 % of the pixels each), and so are night scenes and country roads. The bonnet of
    the camera's car, at the bottom of each image, has no class.
    """

    class Settings(DatasetSettings):
        """Settings of scenes."""

        size: list[Side] = Field([64, 96], min_length=2, max_length=2, description="height and width, multiples of 8")
        train: Scenery = Field(240, description="scenes of the pool")
        test: Scenery = Field(60, description="scenes of the test set")

        @field_validator("size")
        @classmethod
        def _size_is_possible(cls, size: list[int]) -> list[int]:
            if any(side < SMALLEST or side % MULTIPLE for side in size):
                raise ValueError(f"must be two multiples of {MULTIPLE} from {SMALLEST} up, got {size}")
            return size

    def info(self) -> DatasetInfo:
        """Return counts and size from the settings; no file is read."""
        train, test = self._indices()
        height, width = self.settings.size
        return DatasetInfo(
            len(train), len(test), len(CLASSES), 3, (height, width), "synthetic street scenes", per_pixel=True
        )

    def load(self) -> LoadedData:
        """Draw the scenes in order of their index."""
        train, test = (
            [draw(split, int(index), *self.settings.size) for index in indices]
            for split, indices in enumerate(self._indices())
        )
        images, labels, test_images, test_labels = (
            np.stack(part) for scenes in (train, test) for part in zip(*scenes, strict=True)
        )
        return LoadedData(images, labels, test_images, test_labels, CLASSES, MEAN, STD)

    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        settings = self.settings
        return spaced(settings.train, settings.limit), spaced(settings.test, settings.test_limit)

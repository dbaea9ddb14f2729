"""The 1797 handwritten digits of scikit-learn, 8 x 8 grey: small enough for quick tests on a CPU."""

from __future__ import annotations

import numpy as np

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData, balanced
from harness.lazy import importing

from ._trees import last_of_every

# constants, so that info does not import scikit-learn, which takes seconds; a test compares them
NUM_TRAIN, NUM_TEST = 1442, 355
MEAN, STD = (0.3052,), (0.3760,)


class Digits(Dataset):
    """Every fifth image of each class (the 5th, 10th, ...) is a test image; both splits keep the original order."""

    class Settings(DatasetSettings):
        """digits has only the common settings."""

    def info(self) -> DatasetInfo:
        """Return constants: the images come with scikit-learn."""
        return DatasetInfo(
            min(NUM_TRAIN, self.settings.limit or NUM_TRAIN),
            min(NUM_TEST, self.settings.test_limit or NUM_TEST),
            num_classes=10,
            channels=1,
            size=(8, 8),
            source="digits of scikit-learn",
        )

    def load(self) -> LoadedData:
        """Return the images in scikit-learn's order, with their 17 grey values scaled to 0..255."""
        with importing():
            from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        labels = digits.target.astype(np.int64)
        is_test = last_of_every(labels, 5)
        train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
        assert (len(train), len(test)) == (NUM_TRAIN, NUM_TEST), "scikit-learn's digits have changed"
        train = train[balanced(labels[train], self.settings.limit)]
        test = test[balanced(labels[test], self.settings.test_limit)]
        classes = tuple(str(digit) for digit in range(10))
        return LoadedData(images[train], labels[train], images[test], labels[test], classes, MEAN, STD)

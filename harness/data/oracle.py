"""The oracle: a trial's only source of training labels. A trial requests labels of labelled images only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.data.rows import rows_on_device

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from harness.data.dataset import LoadedData
    from harness.data.rows import Rows


class Oracle(Protocol):
    """Provides the labels of labelled images."""

    def labels(self, indices: NDArray[np.int64], device: torch.device) -> Rows:
        """Return the labels [L, *S] of training images, in the order of ``indices`` [L]: int64, or uint8 maps."""
        ...


class TrueLabels:
    """Provides the dataset's own labels."""

    def __init__(self, data: LoadedData) -> None:
        self._labels = data.train_labels

    def labels(self, indices: NDArray[np.int64], device: torch.device) -> Rows:
        """Return the labels of training images; see Oracle."""
        return rows_on_device(self._labels, indices, device)

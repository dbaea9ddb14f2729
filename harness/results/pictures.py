"""The first images that a trial selects, stored for the report with labels, predictions and score maps."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from harness.results import disk

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SelectedImages:
    """Images selected in one cycle, best first, with the predictions of that cycle's network."""

    indices: NDArray[np.int64]
    """[n], in the training set."""
    images: NDArray[np.uint8]
    """[n, h, w, channels]"""
    labels: NDArray[Any]
    """[n, h, w] uint8, with IGNORED pixels; for image labels [n] int32."""
    predictions: NDArray[Any]
    """Like ``labels``; of the first head if the method has several."""
    classes: tuple[str, ...]
    """Names of the classes."""
    score_map: NDArray[np.float16] | None = None
    """[n, h, w]: for each pixel, the score of its position in the feature map; None if scores have no positions."""
    scores: NDArray[np.float32] | None = None
    """Image labels only, [n]: the score that the image was selected by; None if the method has no such number."""
    files: tuple[str, ...] = ()
    """The names of the images' files; empty if the data has none."""

    def packed(self) -> bytes:
        """Return the bytes of an npz file that ``read`` reads."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: values for name, values in vars(self).items() if values is not None}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> SelectedImages | None:
        """Return the images that a trial stored, or None if the file is missing or damaged."""
        try:
            with np.load(io.BytesIO(disk.read(path)), allow_pickle=False) as arrays:
                renamed = {{"heat": "score_map"}.get(name, name): array for name, array in arrays.items()}
                texts = {name: tuple(renamed[name].tolist()) for name in ("classes", "files") if name in renamed}
                return cls(**{**renamed, **texts})
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error):
            return None

"""The first images that a trial buys, with labels, prediction and score map: what the report draws.

A trial keeps them once, where pixels have labels. Only the report reads them: no cycle depends on the file.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.data.dataset import Problem
    from harness.learning.contract import Acquisition, Columns, Training
    from harness.learning.cycle import Cycle

COUNT = 4  # images
LONGEST = 512  # pixels of the longer side: larger images are made smaller


@dataclass(frozen=True)
class Queried:
    """Images that were bought together, preferred first, as the network saw them that chose them."""

    indices: NDArray[np.int64]
    """[n], of the training set."""
    images: NDArray[np.uint8]
    """[n, h, w, channels]"""
    labels: NDArray[np.uint8]
    """[n, h, w] with IGNORED pixels; known only because the images have been bought."""
    predictions: NDArray[np.uint8]
    """[n, h, w], of the first head of a method that has several."""
    classes: tuple[str, ...]
    heat: NDArray[np.float16] | None = None
    """[n, h, w]: the acquisition's score of the place that each pixel lies in, where it has one."""

    def packed(self) -> bytes:
        """Return the bytes of an npz file, for ``read``."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: values for name, values in vars(self).items() if values is not None}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Queried | None:
        """Return what a trial kept, or None if the file is absent or damaged."""
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls(**{**found, "classes": tuple(found["classes"].tolist())})
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error):
            return None


def look(
    cycle: Cycle, problem: Problem, training: Training, acquisition: Acquisition, prepared: Columns, chosen: list[int]
) -> Queried:
    """Return the first of the images ``chosen`` as the cycle's network sees them; changes nothing."""
    import torch
    from torch.nn.functional import interpolate

    from harness.learning.inference import evaluating
    from harness.learning.labels import at_labels
    from harness.networks.maps import stride_of

    indices = np.array(chosen[:COUNT], dtype=np.int64)
    images, labels = problem.train_images[indices], problem.train_labels[indices].astype(np.uint8)
    predicted, scored, draws = [], [], cycle.stream("queried", on_device=True)
    with evaluating(cycle.network):
        for part in torch.from_numpy(indices).to(cycle.device).split(1):
            batch = cycle.images.plain(part)
            logits = training.predict(cycle.network, batch)[0]
            predicted.append(at_labels(logits, batch[:, 0]).argmax(1).to("cpu", torch.uint8))
            heat = acquisition.heat(cycle.network, batch, prepared, draws)
            if heat is not None:
                scored.append(heat.float().cpu())
    full = labels.shape[1], labels.shape[2]
    size = shrunk(full)
    if size != full:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        pixels = interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)
        images = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    # the pixel in the middle of what each pixel stands for
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(size, full, strict=True))
    taken = np.s_[:, rows[:, None], columns]
    heat_map = None
    if scored:
        places = torch.cat(scored)
        stride = stride_of(places[:, None], full)
        heat_map = places.numpy()[:, rows[:, None] // stride, columns // stride].astype(np.float16)
    return Queried(indices, images, labels[taken], torch.cat(predicted).numpy()[taken], problem.classes, heat_map)


def shrunk(size: tuple[int, int]) -> tuple[int, int]:
    """Return a height and width in the same proportion whose longer is at most LONGEST."""
    scale = min(1, LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

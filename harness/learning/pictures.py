"""Pictures of the first images that a trial selects, for the report. No cycle depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.faults import call
from harness.lazy import F, torch
from harness.learning import boundary
from harness.learning.contract import Batch
from harness.learning.inference import evaluating
from harness.learning.labels import at_labels
from harness.networks.maps import stride_of
from harness.results.pictures import SelectedImages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.data.dataset import LoadedData
    from harness.data.oracle import Oracle
    from harness.learning.contract import Acquisition, Columns, Training
    from harness.learning.cycle import Cycle

COUNT = 4  # images of a trial
LONGEST = 512  # longest side in pixels; larger images are scaled down
GALLERY = 16  # images of a trial if images have labels: at most 200 KB
LONGEST_IN_GALLERY = 64


def look(
    cycle: Cycle,
    data: LoadedData,
    oracle: Oracle,
    training: Training,
    acquisition: Acquisition,
    prepared: Columns,
    selected: list[int],
) -> SelectedImages:
    """Return the first ``selected`` images with the labels, the predictions and the score maps. Has no side effects."""
    indices = np.array(selected[:COUNT], dtype=np.int64)
    images = data.train_images[indices]
    size = images.shape[1], images.shape[2]
    label_rows = oracle.labels(indices, torch.device("cpu"))
    labels = label_rows[torch.arange(len(indices))].numpy().astype(np.uint8)
    predicted, maps, draws = [], [], cycle.stream("pictures", on_device=True)
    with evaluating(cycle.network):
        for index in torch.from_numpy(indices).to(cycle.device).split(1):
            batch = Batch(cycle.images.unaugmented(index), index, draws)
            logits = boundary.predict(training, cycle.network, batch.images)[0]
            predicted.append(at_labels(logits, batch.images[:, 0]).argmax(1).to("cpu", torch.uint8))
            if acquisition.scores_images:
                score = call(acquisition, "describe", cycle.network, batch, prepared).get("score")
                if score is not None and score.ndim > 1:
                    maps.append(score.float().cpu())
    shown = shrunk(size)
    images = resized(images, shown)
    # a pixel of the picture is the central pixel of the block that it represents
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(shown, size, strict=True))
    shown_pixels = np.s_[:, rows[:, None], columns]
    score_map = None
    if maps:
        scores = torch.cat(maps)
        stride = stride_of(scores[:, None], size)
        score_map = scores.numpy()[:, rows[:, None] // stride, columns // stride].astype(np.float16)
    predictions = torch.cat(predicted).numpy()[shown_pixels]
    return SelectedImages(indices, images, labels[shown_pixels], predictions, data.classes, score_map)


def look_at_images(
    cycle: Cycle, data: LoadedData, oracle: Oracle, training: Training, columns: Columns, selected: list[int]
) -> SelectedImages:
    """Return the first ``selected`` images of a dataset with image labels: labels, predictions, scores, names of files.

    ``columns``: those of the candidates, which hold the scores. Has no side effects.
    """
    indices = np.array(selected[:GALLERY], dtype=np.int64)
    index = torch.from_numpy(indices)
    labels = oracle.labels(indices, torch.device("cpu"))[torch.arange(len(indices))].numpy().astype(np.int32)
    with evaluating(cycle.network):
        logits = boundary.predict(training, cycle.network, cycle.images.unaugmented(index.to(cycle.device)))[0]
    scores = columns.get("score")
    if scores is not None:
        rows = torch.searchsorted(columns["index"], index.to(columns["index"].device))
        scores = scores[rows].float().cpu() if scores.ndim == 1 else None
    images = data.train_images[indices]
    return SelectedImages(
        indices,
        resized(images, shrunk((images.shape[1], images.shape[2]), LONGEST_IN_GALLERY)),
        labels,
        logits.argmax(1).cpu().numpy().astype(np.int32),
        data.classes,
        scores=None if scores is None else scores.numpy(),
        files=tuple(data.names[i] for i in indices) if data.names else (),
    )


def resized(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return images [N, H, W, channels] of another height and width, smoothed; as they are if they have that size."""
    if size == images.shape[1:3]:
        return images
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)
    smaller: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return smaller


def shrunk(size: tuple[int, int], longest: int = LONGEST) -> tuple[int, int]:
    """Return a height and width with the same aspect ratio, the longer side at most ``longest``."""
    scale = min(1, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

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
    from harness.data.dataset import LoadedData
    from harness.data.oracle import Oracle
    from harness.learning.contract import Acquisition, Columns, Training
    from harness.learning.cycle import Cycle

COUNT = 4  # images of a trial
LONGEST = 512  # longest side in pixels; larger images are scaled down


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
    if shown != size:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, shown, mode="bilinear", antialias=True).round().clamp(0, 255)
        images = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
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


def shrunk(size: tuple[int, int]) -> tuple[int, int]:
    """Return a height and width with the same aspect ratio, the longer side at most LONGEST."""
    scale = min(1, LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

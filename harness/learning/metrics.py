"""Test metrics, computed from what the whole test set counts."""

from __future__ import annotations

import torch

from harness.errors import UserError
from harness.learning.inference import CONFIDENCE, Tally


def summary(
    confusion: torch.Tensor, classes: tuple[str, ...], per_pixel: bool, in_top: int | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (metrics, metrics by class) of matrices [heads, C, C] int64, entry [h, i, j]: label i predicted as j.

    For image labels, the metric is the accuracy, and top-5 accuracy if ``in_top`` (see Tally) is given, and there are
    no metrics by class. For label maps, it is the mean intersection over union (IoU) of the classes in the test set,
    and the metrics by class are their IoUs. All are means over heads.
    """
    if not per_pixel:
        correct, total = int(confusion.diagonal(dim1=1, dim2=2).sum()), int(confusion.sum())
        return {"accuracy": correct / total, **({} if in_top is None else {"top5": in_top / total})}, {}
    values = iou(confusion).tolist()
    # a class that is absent from the test set is NaN, which does not equal itself
    by_class = {name: value for name, value in zip(classes, values, strict=True) if value == value}
    if not by_class:
        raise UserError("no pixel of the test set has a class: check the dataset's label maps and its ignored id")
    return {"miou": sum(by_class.values()) / len(by_class)}, by_class


def iou(confusion: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union [C] of each class, TP / (TP + FP + FN), averaged over heads.

    It is NaN for a class that no label has.
    """
    confusion = confusion.double()
    correct = confusion.diagonal(dim1=1, dim2=2)
    labelled, predicted = confusion.sum(2), confusion.sum(1)
    values = correct / (labelled + predicted - correct)
    return torch.where(labelled > 0, values, float("nan")).mean(0)


def calibration(counted: Tally) -> dict[str, float]:
    """Return the mean negative log-likelihood ``nll``, in nats, and the expected calibration error ``ece``, 0 to 1.

    The calibration error is the mean over labels of the distance between accuracy and confidence in a label's bin (Guo
    et al. 2017, equation 3). Both are absent if the heads are not logits.
    """
    counts, correct, confidence = counted.bins.double()
    if not int(counts.sum()):
        return {}
    gaps = (correct - confidence / CONFIDENCE).abs().sum()
    return {"nll": counted.loss / int(counts.sum()), "ece": float(gaps / counts.sum())}


def by_name(confusion: torch.Tensor, classes: tuple[str, ...]) -> list[dict[str, dict[str, int]]]:
    """Return matrices [heads, C, C] for a record: for each head, class -> predicted class -> count, without zeros."""
    return [
        {
            name: {classes[predicted]: count for predicted, count in enumerate(row) if count}
            for name, row in zip(classes, head, strict=True)
        }
        for head in confusion.tolist()
    ]

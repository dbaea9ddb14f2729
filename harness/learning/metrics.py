"""What a test is summed up in: figures of one confusion matrix over the whole test set."""

from __future__ import annotations

import torch

from harness.errors import UserError


def summary(
    confusion: torch.Tensor, classes: tuple[str, ...], per_pixel: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (figures, figures by class) of confusion [heads, C, C] int64, entry [h, i, j]: label i predicted as j.

    Images: the accuracy. Pixels: the mean intersection over union, and that of each class that the test set has.
    """
    if not per_pixel:
        right = int(confusion.diagonal(dim1=1, dim2=2).sum())
        return {"accuracy": right / int(confusion.sum())}, {}
    found = iou(confusion).tolist()
    by_class = {name: value for name, value in zip(classes, found, strict=True) if value == value}  # without NaN
    if not by_class:
        raise UserError("no pixel of the test set has a class: look at the dataset's label maps and its ignored id")
    return {"miou": sum(by_class.values()) / len(by_class)}, by_class


def iou(confusion: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union [C] of each class, TP / (TP + FP + FN), the mean over heads.

    NaN for a class that no label has.
    """
    confusion = confusion.double()
    right = confusion.diagonal(dim1=1, dim2=2)
    labelled, predicted = confusion.sum(2), confusion.sum(1)
    found = right / (labelled + predicted - right)
    return torch.where(labelled > 0, found, float("nan")).mean(0)

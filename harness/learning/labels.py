"""Labels and logits of images and of maps, and the cross-entropy between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from harness.data.files import IGNORED
from harness.networks.maps import stride_of, upsampled


def at_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return logits [B, C, *s] at the size of labels [B, *S]."""
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    return upsampled(logits, (labels.shape[1], labels.shape[2]))


def at_places(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return labels [B, *s] int64 for logits [B, C, *s]: of a map of labels, the pixel in the middle of each place."""
    if labels.shape[1:] == logits.shape[2:]:
        return labels.long()
    height, width = labels.shape[1:]
    stride = stride_of(logits, (height, width))
    rows, columns = (
        (torch.arange(places, device=labels.device) * stride + stride // 2).clamp(max=side - 1)
        for places, side in zip(logits.shape[2:], (height, width), strict=True)
    )
    return labels[:, rows[:, None], columns].long()


def as_rows(maps: torch.Tensor) -> torch.Tensor:
    """Return features or logits [B, K, *s] as rows [N, K], one for each image or place."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, per_image: bool = False) -> torch.Tensor:
    """Return the mean cross-entropy of logits [B, C, *s] against labels [B, *S], or each image's [B].

    Maps are compared at the labels' size; IGNORED pixels are left out, and an image of nothing else has loss 0.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none" if per_image else "mean")
    losses = F.cross_entropy(at_labels(logits, labels), labels.long(), ignore_index=IGNORED, reduction="none")
    known = labels != IGNORED
    if per_image:
        return losses.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
    return losses.sum() / known.sum().clamp(min=1)

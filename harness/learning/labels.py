"""Labels and class scores of images and label maps: matching sizes and positions, and the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

from harness.data.files import IGNORED
from harness.lazy import F, torch
from harness.networks.maps import stride_of, upsampled


def at_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return logits [B, C, *s] upsampled to the size of labels [B, *S]: [B, C, *S]."""
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    return upsampled(logits, (labels.shape[1], labels.shape[2]))


def at_positions(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the labels [B, *s] int64 of logits [B, C, *s]; a map's position has the label of its central pixel."""
    if labels.shape[1:] == logits.shape[2:]:
        return labels.long()
    height, width = labels.shape[1:]
    stride = stride_of(logits, (height, width))
    rows, columns = (
        (torch.arange(positions, device=labels.device) * stride + stride // 2).clamp(max=side - 1)
        for positions, side in zip(logits.shape[2:], (height, width), strict=True)
    )
    return labels[:, rows[:, None], columns].long()


def as_rows(maps: torch.Tensor) -> torch.Tensor:
    """Return features or logits [B, K, *s] as rows [N, K], one for each image or position."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def per_position(score: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """Return the scores [B, *s] of maps [B, K, *s], for a function from rows [N, K] to scores [N]."""
    return score(as_rows(maps)).view(len(maps), *maps.shape[2:])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, per_image: bool = False) -> torch.Tensor:
    """Return the mean cross-entropy of logits [B, C, *s] with labels [B, *S], or with ``per_image`` each image's [B].

    Maps are compared at the labels' size, without IGNORED pixels. An image that has only IGNORED pixels has loss 0.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none" if per_image else "mean")
    losses = F.cross_entropy(at_labels(logits, labels), labels.long(), ignore_index=IGNORED, reduction="none")
    known = labels != IGNORED
    if per_image:
        return losses.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
    return losses.sum() / known.sum().clamp(min=1)

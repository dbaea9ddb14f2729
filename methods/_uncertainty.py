"""Functions that uncertainty scores share."""

from __future__ import annotations

import math

from harness.lazy import torch


def log_error(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-probability [N] that the predicted class is wrong, for logits [N, C].

    log(1 - max p) is computed from the logits of the other classes. It orders images like 1 - max p, but without ties
    between very confident images, where 1 - max p rounds to 0.
    """
    others = logits.scatter(1, logits.argmax(1, keepdim=True), float("-inf"))
    return others.logsumexp(1) - logits.logsumexp(1)


def log_mean_exp(values: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean [B] of exp(values) [B, P], without overflow."""
    return values.logsumexp(1) - math.log(values.shape[1])

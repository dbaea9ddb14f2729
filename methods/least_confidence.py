"""Least confidence: the lowest highest class probability first (Lewis & Gale 1994).

The usual uncertainty baseline and the opposite of the paper's "Maxp", which the paper's Table 1 lacks.
"""

from __future__ import annotations

from harness.lazy import torch

from ._uncertainty import Uncertainty, log_mean_exp


class LeastConfidence(Uncertainty):
    """Buys the images whose predicted class has the lowest probability."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-probability that the predicted class is wrong.

        log(1 - max p), from the other classes' logits: the same order as 1 - max p, but without ties between very
        confident images, where 1 - p rounds to 0.
        """
        others = logits.scatter(1, logits.argmax(1, keepdim=True), float("-inf"))
        return others.logsumexp(1) - logits.logsumexp(1)

    def over_places(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean of 1 - max p."""
        return log_mean_exp(scores)

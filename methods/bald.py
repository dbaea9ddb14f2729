"""BALD: mutual information of prediction and weights, by dropout, highest first (Houlsby et al. 2011; Gal et al. 2017).

The entropy of the mean prediction less the mean entropy of the predictions: high where each pass is sure and they
disagree. Passes, and known differences from the papers: those of mc_dropout.py.
"""

from __future__ import annotations

from harness.lazy import torch

from .mc_dropout import MCDropout as _MCDropout


class BALD(_MCDropout):
    """Buys the images on whose labels the passes disagree most."""

    def score(self, of_mean: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return the mutual information."""
        return of_mean - mean

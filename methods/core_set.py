"""Core-set: greedy k-center on penultimate features (Sener & Savarese 2018, Alg. 1, the greedy 2-approximation).

Differences from the paper: greedy only, without the robust mixed-integer refinement (which the authors' released code
does not run either, and which the comparisons of the field leave out); candidates may be a random subset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.method import Acquisition

if TYPE_CHECKING:
    from harness.method import Columns
    from harness.networks import Network

CHUNK = 4096  # rows of a block of distances: bounds the memory beyond the features


class CoreSet(Acquisition):
    """Buys, one after another, the candidate farthest from all labelled and bought images."""

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``features`` [B, D]."""
        return {"features": network(images).features}

    def choose(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the greedy k-center picks, in order."""
        return k_center(columns["features"], labelled()["features"], budget)


def k_center(points: torch.Tensor, centers: torch.Tensor, budget: int) -> torch.Tensor:
    """Return ``budget`` rows of ``points`` [N, D], each the farthest from ``centers`` [L, D] and the picks before.

    Squared Euclidean distances. Only running minima are kept: O(N) memory beyond the features, O(N D) time per pick,
    never an N x N matrix. Ties go to the lowest row.
    """
    # centred: |x|^2 - 2 x.c + |c|^2 cancels least when the points lie around the origin
    mean = points.mean(0)
    points, centers = points - mean, centers - mean
    norms, center_norms = points.square().sum(1), centers.square().sum(1)
    nearest = torch.full_like(norms, float("inf"))
    for rows, row_norms, minimum in zip(points.split(CHUNK), norms.split(CHUNK), nearest.split(CHUNK), strict=True):
        for some, some_norms in zip(centers.split(CHUNK), center_norms.split(CHUNK), strict=True):
            block = torch.addmm(some_norms[None], rows, some.T, alpha=-2).amin(1)
            torch.minimum(minimum, block + row_norms, out=minimum)
    picks = torch.empty(budget, dtype=torch.int64, device=points.device)
    for pick in range(budget):
        farthest = nearest.argmax()
        picks[pick] = farthest
        distances = torch.addmv(norms + norms[farthest], points, points[farthest], alpha=-2)
        nearest = torch.minimum(nearest, distances)
        nearest[farthest] = float("-inf")  # never twice, even when all distances are 0
    return picks

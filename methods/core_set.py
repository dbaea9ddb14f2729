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
        """Return the column ``features`` [B, D], the mean over places where there are any."""
        features = network(images).features
        return {"features": features.reshape(*features.shape[:2], -1).mean(2)}

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
    # |x|^2 - 2 x.c + |c|^2 only says which center is nearest: it cancels, least when the points lie around the origin.
    # Distances come from differences, so equal rows have equal distances and a copy of a center has distance 0
    mean = points.mean(0)
    points, centers = points - mean, centers - mean
    center_norms = centers.square().sum(1)
    nearest = torch.full_like(points[:, 0], float("inf"))
    for rows, minimum in zip(points.split(CHUNK), nearest.split(CHUNK), strict=True):
        for some, some_norms in zip(centers.split(CHUNK), center_norms.split(CHUNK), strict=True):
            closest = torch.addmm(some_norms[None], rows, some.T, alpha=-2).argmin(1)
            torch.minimum(minimum, (rows - some[closest]).square_().sum(1), out=minimum)
    picks = torch.empty(budget, dtype=torch.int64, device=points.device)
    for pick in range(budget):
        farthest = nearest.argmax()
        picks[pick] = farthest
        center = points.index_select(0, farthest[None])  # indexing by a tensor would wait for the device
        distances = [(rows - center).square_().sum(1) for rows in points.split(CHUNK)]
        nearest = torch.minimum(nearest, torch.cat(distances))
        nearest.index_fill_(0, farthest[None], float("-inf"))  # never twice, even when all distances are 0
    return picks

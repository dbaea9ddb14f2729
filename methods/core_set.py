"""Core-set: greedy k-center on penultimate features (Sener & Savarese 2018, Alg. 1, the greedy 2-approximation).

Differences from the paper: greedy only, without the robust mixed-integer refinement (which the authors' released code
does not run either, and which the comparisons of the field leave out); candidates may be a random subset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat

from harness.lazy import torch
from harness.learning.contract import Acquisition
from harness.settings import Strict

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network

CENTERS_AT_ONCE = 1024  # of a block of bounds
AHEAD = 256  # rows that are followed from pick to pick; the others are looked at when it may be their turn


class CoreSet(Acquisition):
    """Buys, one after another, the candidate farthest from all labelled and bought images."""

    class Settings(Strict):
        """What the choice may take; it buys the same images with less."""

        memory_gb: PositiveFloat = Field(0.25, description="memory of the choice beyond features and distances, GB")

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
        return k_center(columns["features"], labelled()["features"], budget, self.settings.memory_gb)


def k_center(points: torch.Tensor, centers: torch.Tensor, budget: int, memory_gb: float = 0.25) -> torch.Tensor:
    """Return ``budget`` rows of ``points`` [N, D], each the farthest from ``centers`` [L, D] and the picks before.

    Squared Euclidean distances. O(N D) time per pick, ``memory_gb`` and O(N) numbers beyond the features, never an
    N x N matrix. Ties go to the lowest row.
    """
    mean, memory = points.mean(0), int(memory_gb * 1e9)
    nearest = points.new_full((len(points),), float("inf"))
    approach(nearest, points, centers, mean, memory)
    picks: list[int] = []
    while len(picks) < budget:
        # Distances only fall: while the farthest of the leading rows is farther than all others were when last looked
        # at, it is the farthest of all
        floor = nearest.topk(min(AHEAD + 1, len(nearest))).values[-1]
        leading = (nearest > floor).nonzero()[:, 0]
        if not len(leading):
            leading = nearest.argmax()[None]  # more than AHEAD tie
        rows, distances, picked = points[leading], nearest[leading], list[int]()
        while len(picks) + len(picked) < budget:
            farthest, row = distances.max(0)
            if picked and farthest <= floor:
                break
            picked.append(int(row))
            torch.minimum(distances, squared(rows - rows[picked[-1]]), out=distances)
            distances[picked[-1]] = float("-inf")  # never twice, even when all distances are 0
        bought = leading[picked]
        approach(nearest, points, points[bought], mean, memory)
        nearest[bought] = float("-inf")
        picks += bought.tolist()
    return torch.tensor(picks, device=points.device)


def approach(
    nearest: torch.Tensor, points: torch.Tensor, centers: torch.Tensor, mean: torch.Tensor, memory: int
) -> None:
    """Lower ``nearest`` [N], in place, to the squared distance of each of ``points`` [N, D] to ``centers`` [L, D].

    |x|^2 - 2 x.c + |c|^2 is fast but cancels (least around the ``mean`` [D]). Less its largest possible error it says
    which pairs can matter; their distances come from differences. So equal rows have equal distances, a copy of a
    center has distance 0, and how the rows are cut changes nothing.
    """
    width, size = points.shape[1], points.element_size()
    # a row has its centred copy and three pieces of pairs; a bound for each center, and were all to matter, their pairs
    row_bytes = 4 * width * size + CENTERS_AT_ONCE * (size + 1 + 2 * 8)
    at_once = max(1, (memory - 2 * CENTERS_AT_ONCE * width * size) // row_bytes)
    slack = (2 * width + 16) * torch.finfo(points.dtype).eps  # of |x|^2 + |c|^2, for any order of summation
    for some, minimum in zip(points.split(at_once), nearest.split(at_once), strict=True):
        rows = some - mean
        row_norms = squared(rows)
        for few in centers.split(CENTERS_AT_ONCE):
            others = few - mean
            norms = squared(others)
            bounds = torch.addmm(norms * (1 - slack), rows, others.T, alpha=-2)  # + row_norms: below the distance
            least, closest = bounds.min(1)
            highest = least + 2 * slack * (row_norms + norms[closest])  # + row_norms: above that distance
            torch.minimum(highest, minimum - row_norms * (1 - slack), out=highest)
            row, center = (bounds <= highest[:, None]).nonzero(as_tuple=True)
            for r, c in zip(row.split(at_once), center.split(at_once), strict=True):
                minimum.scatter_reduce_(0, r, squared(some[r] - few[c]), "amin")


def squared(rows: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths [N] of rows [N, D]."""
    return rows.square().sum(1)

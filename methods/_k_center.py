"""Greedy k-center (Sener & Savarese 2018, Alg. 1): exact, with little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.lazy import torch

CENTERS_AT_ONCE = 1024  # centers in a block of bounds
AHEAD = 256  # farthest rows whose distances stay up to date; the others are updated when one may be the farthest
ROWS_AT_ONCE = 1000  # rows that are selected in a step, after which a process that died goes on
UNSEEN = 16  # rows that are selected before the host looks at them: each look waits for the device


def straight(count: int, **state: Any) -> Iterable[int]:
    """Return the steps of a loop that has no checkpoints."""
    return range(count)


def k_center(
    points: torch.Tensor,
    centers: torch.Tensor,
    budget: int,
    memory_gb: float = 0.25,
    steps: Callable[..., Iterable[int]] = straight,
) -> torch.Tensor:
    """Return ``budget`` rows of ``points`` [N, D], each the farthest from ``centers`` [L, D] and all previous rows.

    Distances are squared Euclidean. A selected row takes O(N D) time. Beyond the features, the function uses
    ``memory_gb`` of memory and O(N) numbers, but no N x N matrix. Ties go to the lowest row. ``steps`` is that of the
    cycle: after each ``ROWS_AT_ONCE`` rows, a process that died goes on.
    """
    mean, memory, count = points.mean(0), int(memory_gb * 1e9), -(-budget // ROWS_AT_ONCE)
    rows_so_far, kept = list[int](), dict[str, torch.Tensor]()
    loop = (steps if count > 1 else straight)(count, rows=rows_so_far, kept=kept)
    if not kept:
        kept["nearest"] = points.new_full((len(points),), float("inf"))
        approach(kept["nearest"], points, centers, mean, memory)
    nearest = kept["nearest"]
    for number in loop:
        end = min(budget, (number + 1) * ROWS_AT_ONCE)
        while len(rows_so_far) < end:
            # Distances only fall: a leading row that is farther than the last known distance of all other rows is the
            # farthest of all rows
            floor = nearest.topk(min(AHEAD + 1, len(nearest))).values[-1]
            leading = (nearest > floor).nonzero()[:, 0]
            if not len(leading):
                leading = nearest.argmax()[None]  # more than AHEAD rows tie
            selected = farthest_of(points[leading], nearest[leading], floor, end - len(rows_so_far))
            new = leading[selected]
            approach(nearest, points, points[new], mean, memory)
            nearest[new] = float("-inf")
            rows_so_far += new.tolist()
    return torch.tensor(rows_so_far, dtype=torch.int64, device=points.device)


def farthest_of(rows: torch.Tensor, distances: torch.Tensor, floor: torch.Tensor, most: int) -> torch.Tensor:
    """Return up to ``most`` of ``rows`` [M, D], each the farthest and farther than ``floor``, but at least the first.

    ``distances`` [M] of the rows to all centers are changed. A row that is not far enough is followed by no other that
    is, so that the host need not look at each.
    """
    most, count = min(most, len(rows)), 0
    picks, farthest = list[torch.Tensor](), list[torch.Tensor]()
    while count == len(picks) < most:
        for _ in range(min(UNSEEN, most - count)):
            distance, row = distances.max(0, keepdim=True)
            torch.minimum(distances, squared(rows - rows[row]), out=distances)
            distances.index_fill_(0, row, float("-inf"))  # not selected twice, even if all distances are 0
            picks.append(row)
            farthest.append(distance)
        count = int((torch.cat(farthest) > floor).sum())
    return torch.cat(picks)[: max(count, 1)]


def approach(
    nearest: torch.Tensor, points: torch.Tensor, centers: torch.Tensor, mean: torch.Tensor, memory: int
) -> None:
    """Lower ``nearest`` [N], in place, to the squared distance of each of ``points`` [N, D] to ``centers`` [L, D].

    |x|^2 - 2 x.c + |c|^2 is fast, but loses digits by cancellation (fewest when centred on the ``mean`` [D]). Minus its
    largest possible error, it is a lower bound that shows which pairs can matter. Only for these pairs, the distances
    are computed from differences. Equal rows thus have equal distances, a copy of a center has distance 0, and the
    block size does not affect the result.
    """
    width, size = points.shape[1], points.element_size()
    # a row needs its centred copy and three rows for pairs; per center it needs a bound, a mask and two pair indices
    row_bytes = 4 * width * size + CENTERS_AT_ONCE * (size + 1 + 2 * 8)
    at_once = max(1, (memory - 2 * CENTERS_AT_ONCE * width * size) // row_bytes)
    slack = (2 * width + 16) * torch.finfo(points.dtype).eps  # error relative to |x|^2 + |c|^2, in any summation order
    for rows, minimum in zip(points.split(at_once), nearest.split(at_once), strict=True):
        centred = rows - mean
        row_norms = squared(centred)
        for block in centers.split(CENTERS_AT_ONCE):
            others = block - mean
            norms = squared(others)
            bounds = torch.addmm(norms * (1 - slack), centred, others.T, alpha=-2)  # + row_norms: at most the distance
            least, closest = bounds.min(1)
            highest = least + 2 * slack * (row_norms + norms[closest])  # + row_norms: at least the distance
            torch.minimum(highest, minimum - row_norms * (1 - slack), out=highest)
            row, center = (bounds <= highest[:, None]).nonzero(as_tuple=True)
            for r, c in zip(row.split(at_once), center.split(at_once), strict=True):
                minimum.scatter_reduce_(0, r, squared(rows[r] - block[c]), "amin")


def squared(rows: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths [N] of rows [N, D]."""
    return rows.square().sum(1)

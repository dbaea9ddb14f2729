"""Random selection: candidates are drawn uniformly without replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.learning.contract import Acquisition

if TYPE_CHECKING:
    from harness.learning.contract import Columns


class Random(Acquisition):
    """Selects random images and scores none."""

    scores_images = False
    needs = frozenset()

    def select(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return random rows."""
        return torch.randperm(len(columns["index"]), generator=generator)[:budget]

"""A module that scores: its weights are prepared once per cycle, and it is rebuilt on whichever worker scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.lazy import torch

if TYPE_CHECKING:
    from harness.learning.contract import Columns


class Restored:
    """Rebuilds a module from its weights, once for all batches that are scored with them."""

    def __init__(self) -> None:
        self._weights: Columns | None = None
        self._module: Any = None

    def __call__(self, make: Callable[[], Any], weights: Columns) -> Any:
        """Return ``make()`` in evaluation mode, with these weights."""
        if weights is not self._weights:
            with torch.device("meta"):  # only the shape is wanted
                self._module = make().eval()
            self._module.load_state_dict(weights, assign=True)
            self._weights = weights
        return self._module

"""Rebuilds a scoring module on the workers, from weights that are prepared once per cycle."""

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
        """Return ``make()`` in evaluation mode, with these weights; keys that the module lacks are ignored."""
        if weights is not self._weights:
            with torch.device("meta"):  # only the shapes are needed
                self._module = make().eval()
            self._module.load_state_dict({key: weights[key] for key in self._module.state_dict()}, assign=True)
            self._weights = weights
        return self._module

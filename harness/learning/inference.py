"""The one inference path: testing and scoring run the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from harness.data.images import Images
from harness.data.rows import Rows, taken
from harness.errors import OutOfMemory
from harness.learning.cycle import Cycle
from harness.learning.labels import at_labels
from harness.networks.network import Network
from harness.settings import Recipe

Found = TypeVar("Found")


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Put the network into evaluation mode, without gradients, for a ``with`` block."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


@contextmanager
def in_any_order() -> Iterator[None]:
    """Allow sums in any order for a ``with`` block: of integers they are the same, and many times faster on a GPU."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def within_memory(what: str, settings: str) -> Iterator[None]:
    """Say in one sentence what to change if the work of a ``with`` block does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemory(
            f"{what}: the device's memory is full; lower {settings}, or give each trial more of it "
            "(where.gpus_per_trial)"
        ) from None


INFERENCE = "recipe.inference_batch_size or the size of the images"
"""What takes the memory of inference."""


class Divider:
    """Runs batches of inference whole, and from the first on that does not fit into memory in halves, or less."""

    def __init__(self, at_once: int, smallest: int = 1) -> None:
        self.asked, self.at_once, self.smallest = at_once, at_once, smallest

    def run(self, batch: tuple[torch.Tensor, ...], work: Callable[[list[tuple[torch.Tensor, ...]]], Found]) -> Found:
        """Return ``work``'s result for a batch (tensors [B, ...]), which it is given in parts; it may be called again.

        Raises torch.OutOfMemoryError if not even the smallest part fits.
        """
        while True:
            try:
                return work(list(zip(*(rows.split(self.at_once) for rows in batch), strict=True)))
            except torch.OutOfMemoryError:
                if self.at_once == self.smallest:
                    raise
            # only here: what did not fit is held until the error is
            if batch[0].device.type == "cuda":
                torch.cuda.empty_cache()
            self.at_once = max(self.smallest, (min(self.at_once, len(batch[0])) + 1) // 2)

    def warnings(self, what: str) -> list[str]:
        """Return what the record should say of ``what``: nothing, if all batches fitted."""
        if self.at_once == self.asked:
            return []
        return [f"{what}: {self.asked} images at once did not fit into the device's memory, {self.at_once} did"]


def inferred(
    cycle: Cycle, indices: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor], what: str
) -> torch.Tensor:
    """Return ``work``'s rows for all images with these indices, plain, the cycle's network in evaluation mode.

    What does not fit into the device's memory goes on in smaller batches; the record then says so of ``what``.
    """
    size = cycle.recipe.inference_batch_size
    divider = Divider(size)
    with evaluating(cycle.network), within_memory(what, INFERENCE):
        found = [
            divider.run((seen,), lambda parts: torch.cat([work(images) for (images,) in parts]))
            for seen in cycle.images.plain_batches(indices.split(size))
        ]
    cycle.warnings += divider.warnings(what)
    return torch.cat(found)


def confusion(
    network: Network,
    images: Images,
    labels: Rows,
    num_classes: int,
    recipe: Recipe,
    predict: Callable[[Network, torch.Tensor], list[torch.Tensor]],
    warnings: list[str] | None = None,
) -> torch.Tensor:
    """Return [heads, C, C] int64: how often label i was predicted as class j by each of a method's heads.

    The images are plain; a map is predicted at its labels' own size, and IGNORED pixels are left out. ``warnings`` gets
    what the record should say of batches that did not fit into memory.
    """
    counts: torch.Tensor | None = None
    cells = num_classes**2  # of the matrix, and one more for what is IGNORED: leaving it out would wait for the device
    batches = torch.arange(len(labels), device=images.device).split(recipe.inference_batch_size)
    divider = Divider(recipe.inference_batch_size)

    def paired(seen: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the cell of the matrix [heads, labels] of each prediction."""
        expected = known.long()
        found = [at_labels(head, expected).argmax(1) for head in predict(network, seen)]
        pairs = torch.stack([(expected * num_classes + head).flatten() for head in found])
        return torch.where(expected.flatten() < num_classes, pairs, cells)

    with evaluating(network), within_memory("evaluation", INFERENCE):
        for batch in zip(images.plain_batches(batches), taken(labels, batches), strict=True):
            pairs = divider.run(batch, lambda parts: torch.cat([paired(*part) for part in parts], 1))
            if counts is None:
                counts = pairs.new_zeros(len(pairs), cells + 1)
            with in_any_order():
                counts.scatter_add_(1, pairs, torch.ones_like(pairs))
    if warnings is not None:
        warnings += divider.warnings("evaluation")
    assert counts is not None
    return counts[:, :-1].reshape(-1, num_classes, num_classes).cpu()

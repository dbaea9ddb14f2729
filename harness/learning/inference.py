"""Inference: one implementation for testing and scoring."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import nan
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from harness.data.host import in_units
from harness.data.rows import take
from harness.errors import REMEDY, NonFiniteLoss, OutOfMemory
from harness.lazy import torch
from harness.learning.labels import at_labels
from harness.learning.table import Table
from harness.settings import Recipe

if TYPE_CHECKING:
    from harness.data.images import Images
    from harness.data.rows import Rows
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network

Result = TypeVar("Result")


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
    """Allow nondeterministic kernels in a ``with`` block that sums integers: sums are exact, and faster on a GPU."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


REFUSED = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
"""What torch says when the system refuses memory of a CPU; it has no type of its own for that."""


@contextmanager
def within_memory(what: str, settings: str) -> Iterator[None]:
    """Raise OutOfMemory, which names the ``settings`` to lower, if a ``with`` block needs too much memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemory(
            f"{what}: the device's memory is full; lower {settings}, or raise each trial's share of the memory "
            "(where.gpus_per_trial)"
        ) from None
    except RuntimeError as error:
        if (found := REFUSED.search(str(error))) is None:
            raise
        raise OutOfMemory(
            f"{what}: this machine's memory is full: {in_units(int(found[1]))} more were needed; lower {settings}, or "
            "run fewer trials at once (where.max_concurrent)"
        ) from None


INFERENCE = "recipe.inference_batch_size or the size of the images"
"""The settings that determine the memory of inference, for messages."""


class BatchSplitter:
    """Runs inference batches; after an out-of-memory error, halves the batch size and keeps it."""

    def __init__(self, at_once: int, smallest: int = 1) -> None:
        self.requested, self.at_once, self.smallest = at_once, at_once, smallest

    def run(self, batch: tuple[torch.Tensor, ...], work: Callable[[list[tuple[torch.Tensor, ...]]], Result]) -> Result:
        """Return ``work(parts)`` for a list of parts of a batch of tensors [B, ...].

        If the parts do not fit into memory, ``work`` is called again with smaller parts. Raises torch.OutOfMemoryError
        if parts of ``smallest`` images do not fit either.
        """
        while True:
            try:
                return work(list(zip(*(rows.split(self.at_once) for rows in batch), strict=True)))
            except torch.OutOfMemoryError:
                if self.at_once == self.smallest:
                    raise
            # outside of the except clause, because the error keeps tensors in memory
            if batch[0].device.type == "cuda":
                torch.cuda.empty_cache()
            self.at_once = max(self.smallest, (min(self.at_once, len(batch[0])) + 1) // 2)

    def warnings(self, what: str) -> list[str]:
        """Return a warning for the record, naming ``what``, if the batch size was halved."""
        if self.at_once == self.requested:
            return []
        return [f"{what}: {self.requested} images at a time did not fit into the device's memory, {self.at_once} did"]


def inferred(
    cycle: Cycle, indices: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor], what: str
) -> torch.Tensor:
    """Return the rows that ``work`` computes for the unaugmented images with these indices, in evaluation mode.

    If memory requires smaller batches, the record gets a warning that names ``what``.
    """
    size = cycle.recipe.inference_batch_size
    splitter, table = BatchSplitter(size), Table(len(indices))
    with evaluating(cycle.network), within_memory(what, INFERENCE):
        for images in cycle.images.unaugmented_batches(indices.split(size)):
            table.put({"rows": splitter.run((images,), lambda parts: torch.cat([work(part) for (part,) in parts]))})
    cycle.warnings += splitter.warnings(what)
    return table.columns["rows"]


BINS = 15
"""Bins of the confidence, as in Guo et al. 2017, On Calibration of Modern Neural Networks, section 4."""
CONFIDENCE = 2**24
"""Confidences are summed as whole numbers of this fraction, so that their sum depends on no order."""


TOP = 5
"""How many of the highest class scores top-5 accuracy looks at."""


class Tally(NamedTuple):
    """What a test set counts, from which all test metrics follow."""

    confusion: torch.Tensor
    """Matrices [heads, C, C] int64: entry [h, i, j] counts label i predicted as class j by head h."""
    bins: torch.Tensor
    """[3, BINS] int64: predictions, correct ones, and the sum of their confidences in units of 1 / CONFIDENCE, by the
    confidence of the prediction, i.e. its probability; zeros if the heads are not logits."""
    loss: float
    """Sum over labels of the negative log-likelihood, in nats; NaN if the heads are not logits."""
    in_top: int | None = None
    """Labels that are among the TOP highest class scores of a head, over all heads; None: not counted."""


def tally(
    network: Network,
    images: Images,
    labels: Rows,
    num_classes: int,
    recipe: Recipe,
    predict: Callable[[Network, torch.Tensor], list[torch.Tensor]],
    cycle: Cycle | None = None,
    logits: bool = True,
    top: bool = False,
) -> Tally:
    """Return what the network predicts on a test set.

    Images are not augmented. Maps are predicted at the labels' own size, and IGNORED pixels are left out. ``logits``:
    whether the softmax of the only head is a probability. ``top``: count labels among the TOP highest scores of an
    image; for image labels only. ``cycle`` gets a warning if the batch size was halved.
    Raises NonFiniteLoss if a class score is NaN: weights may be finite, but so large that what is computed with them
    is not.
    """
    counts: torch.Tensor | None = None
    broken: list[torch.Tensor] = []
    bins = torch.zeros(3, BINS + 1, dtype=torch.int64, device=images.device)
    losses: list[torch.Tensor] = []
    in_top: list[torch.Tensor] = []
    cells = (
        num_classes**2
    )  # also the number of an extra cell for IGNORED pixels, because filtering them would synchronise
    batches = torch.arange(len(labels), device=images.device).split(recipe.inference_batch_size)
    splitter = BatchSplitter(recipe.inference_batch_size)

    def paired(inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        """Return the number of the matrix cell [heads, labels] that each prediction belongs to.

        Also whether the label is in the top [heads, labels], if that is counted, else nothing [heads, 0]. Of logits,
        also the bin [labels], the confidence [labels] and the loss [1].
        """
        expected = targets.long()
        heads = predict(network, inputs)
        broken.extend(head.isnan().any() for head in heads)
        scores = [at_labels(head, expected) for head in heads]
        predicted = [head.argmax(1) for head in scores]
        known = expected.flatten() < num_classes
        pairs = torch.stack([(expected * num_classes + head).flatten() for head in predicted])
        cell = torch.where(known, pairs, cells)
        hits = cell[:, :0]
        if top:
            hits = torch.stack([(head.topk(TOP, 1).indices == expected[:, None]).any(1) for head in scores])
        if not logits:
            return [cell, hits]
        (likely,) = (head.float().log_softmax(1) for head in scores)
        confidence = likely.gather(1, predicted[0][:, None]).flatten().exp()
        of_label = likely.gather(1, expected.where(expected < num_classes, 0)[:, None]).flatten()
        number = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        whole = (confidence * CONFIDENCE).round().long()
        return [cell, hits, number.where(known, BINS), whole, -(of_label.double() * known).sum()[None]]

    with evaluating(network), within_memory("evaluation", INFERENCE):
        for batch in zip(images.unaugmented_batches(batches), take(labels, batches), strict=True):
            found = splitter.run(batch, lambda parts: [*zip(*(paired(*part) for part in parts), strict=True)])
            pairs = torch.cat(found[0], 1)
            in_top.append(torch.cat(found[1], 1).sum())
            if counts is None:
                counts = pairs.new_zeros(len(pairs), cells + 1)
            with in_any_order():
                counts.scatter_add_(1, pairs, torch.ones_like(pairs))
                if logits:
                    number, whole = torch.cat(found[2]), torch.cat(found[3])
                    correct = (pairs[0] // num_classes == pairs[0] % num_classes).long()
                    bins.scatter_add_(1, number.expand(3, -1), torch.stack([torch.ones_like(whole), correct, whole]))
            if logits:
                losses += found[4]
    if cycle is not None:
        cycle.warnings += splitter.warnings("evaluation")
    assert counts is not None
    if bool(torch.stack(broken).any()):
        number_of = f"cycle {cycle.number}, " if cycle else ""
        raise NonFiniteLoss(f"{number_of}after the last step: the class scores of test images are NaN; {REMEDY}")
    matrices = counts[:, :-1].reshape(-1, num_classes, num_classes).cpu()
    loss = float(torch.cat(losses).sum()) if logits else nan
    return Tally(matrices, bins[:, :-1].cpu(), loss, int(torch.stack(in_top).sum()) if top else None)

"""The training loop and the one inference path: evaluation and scoring are the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from harness.cycle import Cycle
from harness.data import IGNORED
from harness.errors import NonFiniteLoss, OutOfMemory
from harness.images import Images, Rows, taken
from harness.networks import Network, Outputs, stride_of, upsampled
from harness.settings import Recipe

Found = TypeVar("Found")

Loss = Callable[[Outputs, torch.Tensor, float], torch.Tensor]
"""(outputs, labels, progress) -> mean loss of the batch"""


def optimizer(parameters: Iterable[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser, new in each cycle (paper, Sec. 4.1); on a GPU one kernel for all tensors."""
    parameters = [*parameters]
    common: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "fused": True if parameters[0].is_cuda else None,
    }
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, **common)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, **common)


def shuffled(count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Return 0..count-1 in random order on the device, without waiting for it; the order is drawn on the CPU."""
    order = torch.randperm(count, generator=generator)
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order.to(device)


def batches(count: int, recipe: Recipe, generator: torch.Generator, device: torch.device) -> list[torch.Tensor]:
    """Return one epoch's batches of positions 0..count-1, shuffled, on the device.

    Nothing is dropped. A last batch of a single image joins the one before: batch norm can't normalise one value.
    """
    parts = list(shuffled(count, generator, device).split(recipe.batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    return recipe.learning_rate * recipe.gamma ** sum(epoch >= m for m in recipe.milestones)


def fit(cycle: Cycle, loss: Loss, extra_parameters: Iterable[torch.nn.Parameter] = (), stages: bool = False) -> float:
    """Train the cycle's network, and what a method adds to it, by the recipe; return the last epoch's mean loss.

    ``stages``: the loss wants the outputs of the network's stages.
    Losses stay on the device until an epoch's end. Raises NonFiniteLoss, naming epoch and step.
    """
    recipe, network, device = cycle.recipe, cycle.network, cycle.device
    order, augmentation = cycle.stream("order"), cycle.stream("augmentation", on_device=True)
    optimiser = optimizer([*network.parameters(), *extra_parameters], recipe)
    losses = torch.zeros(0)
    with cycle.clock.phase("train"):
        network.train()
        for epoch in range(recipe.epochs):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe, epoch)
            step_losses = []
            for images, labels in cycle.pairs(batches(len(cycle.labelled), recipe, order, device), augmentation):
                value = loss(network(images, stages), labels, epoch / recipe.epochs)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                step_losses.append(value.detach())
            losses = torch.stack(step_losses)
            check_finite(losses, cycle, f"epoch {epoch}, training")
        network.eval()
        return float(losses.mean())


def check_finite(losses: torch.Tensor, cycle: Cycle, kind: str, first: int = 0) -> None:
    """Raise NonFiniteLoss, naming cycle, kind and step, if one of the losses [steps] from step ``first`` on is not."""
    if not bool(losses.isfinite().all()):
        step = int((~losses.isfinite()).nonzero()[0])
        raise NonFiniteLoss(
            f"cycle {cycle.number}, {kind} step {first + step}: the loss is {float(losses[step])}; a lower learning "
            "rate (recipe.learning_rate or the method's own) or, with isda, lambda_0 usually mends this"
        )


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


def at_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return logits [B, C, *s] at the size of labels [B, *S]."""
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    return upsampled(logits, (labels.shape[1], labels.shape[2]))


def at_places(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return labels [B, *s] int64 for logits [B, C, *s]: of a map of labels, the pixel in the middle of each place."""
    if labels.shape[1:] == logits.shape[2:]:
        return labels.long()
    height, width = labels.shape[1:]
    stride = stride_of(logits, (height, width))
    rows, columns = (
        (torch.arange(places, device=labels.device) * stride + stride // 2).clamp(max=side - 1)
        for places, side in zip(logits.shape[2:], (height, width), strict=True)
    )
    return labels[:, rows[:, None], columns].long()


def as_rows(maps: torch.Tensor) -> torch.Tensor:
    """Return features or logits [B, K, *s] as rows [N, K], one for each image or place."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, per_image: bool = False) -> torch.Tensor:
    """Return the mean cross-entropy of logits [B, C, *s] against labels [B, *S], or each image's [B].

    Maps are compared at the labels' size; IGNORED pixels are left out, and an image of nothing else has loss 0.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none" if per_image else "mean")
    losses = F.cross_entropy(at_labels(logits, labels), labels.long(), ignore_index=IGNORED, reduction="none")
    known = labels != IGNORED
    if per_image:
        return losses.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
    return losses.sum() / known.sum().clamp(min=1)

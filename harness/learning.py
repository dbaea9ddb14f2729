"""The training loop and the one inference path: evaluation and scoring are the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from harness.cycle import Cycle
from harness.errors import NonFiniteLoss
from harness.images import Images
from harness.networks import Network, Outputs
from harness.settings import Recipe

Loss = Callable[[Outputs, torch.Tensor, float], torch.Tensor]
"""(outputs, labels, progress) -> mean loss of the batch"""


def optimizer(parameters: Iterable[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser, made anew in each cycle (paper, Sec. 4.1)."""
    return torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def batches(count: int, recipe: Recipe, generator: torch.Generator) -> list[torch.Tensor]:
    """Return one epoch's batches of positions 0..count-1, shuffled.

    Nothing is dropped. A last batch of a single image joins the one before: batch norm can't normalise one value.
    """
    parts = list(torch.randperm(count, generator=generator).split(recipe.batch_size))
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
            for positions in batches(len(cycle.labelled), recipe, order):
                positions = positions.to(device)
                images = cycle.images.augmented(cycle.labelled[positions], augmentation)
                value = loss(network(images, stages), cycle.labels[positions], epoch / recipe.epochs)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                step_losses.append(value.detach())
            losses = torch.stack(step_losses)
            check_finite(losses, cycle, epoch)
        network.eval()
        return float(losses.mean())


def check_finite(losses: torch.Tensor, cycle: Cycle, epoch: int) -> None:
    """Raise NonFiniteLoss, naming cycle, epoch and step, if one of an epoch's losses [steps] is not finite."""
    if not bool(losses.isfinite().all()):
        step = int((~losses.isfinite()).nonzero()[0])
        raise NonFiniteLoss(
            f"cycle {cycle.number}, epoch {epoch}, step {step}: the loss is {float(losses[step])}; "
            "a lower learning rate (recipe.learning_rate) or lambda_0 usually mends this"
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


def accuracy(
    network: Network,
    images: Images,
    labels: torch.Tensor,
    recipe: Recipe,
    predict: Callable[[Network, torch.Tensor], list[torch.Tensor]],
) -> float:
    """Return the fraction of plain images whose highest output is their label, the mean over a method's heads."""
    right: list[torch.Tensor] = []
    everything = torch.arange(len(labels), device=labels.device)
    with evaluating(network):
        for indices in everything.split(recipe.inference_batch_size):
            heads = predict(network, images.plain(indices))
            right.append(torch.stack([(head.argmax(1) == labels[indices]).sum() for head in heads]))
    counts: list[int] = torch.stack(right).sum(0).tolist()
    return sum(counts) / (len(counts) * len(labels))

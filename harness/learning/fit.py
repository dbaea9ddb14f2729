"""The training loop: one for every method, by the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from harness.errors import NonFiniteLoss
from harness.learning.cycle import Cycle
from harness.networks.network import Outputs
from harness.settings import Recipe

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

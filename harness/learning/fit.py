"""The default training loop, which follows the suite's recipe."""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import TYPE_CHECKING, Any

from harness.errors import REMEDY, NonFiniteLoss
from harness.lazy import torch
from harness.learning import boundary
from harness.settings import Recipe

if TYPE_CHECKING:
    from harness.learning.contract import Training
    from harness.learning.cycle import Cycle


def optimizer(parameters: Iterable[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; each cycle has a new one (DAST-AL, Sec. 4.1). On a GPU it is fused."""
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
    """Return 0..count-1 in random order on the device. The order is drawn on the CPU and copied asynchronously."""
    order = torch.randperm(count, generator=generator)
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order.to(device)


def batches(count: int, recipe: Recipe, generator: torch.Generator, device: torch.device) -> list[torch.Tensor]:
    """Return one epoch's batches of positions 0..count-1, shuffled, on the device.

    Every position is in one batch. A last batch of one image is merged into the batch before it, because batch norm
    can't normalise a single image.
    """
    parts = list(shuffled(count, generator, device).split(recipe.batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def learning_rate(recipe: Recipe, epoch: int, done: float = 1.0, ahead: int = 0) -> float:
    """Return the learning rate of a step of an epoch, counted from 0; ``done``: share of its steps, this one included.

    Milestones count ``ahead`` epochs earlier: 1 for code that steps its scheduler before an epoch. In the first
    ``warmup_epochs`` the rate grows by the same amount at each step (gradual warmup, Goyal et al. 2017, Accurate, Large
    Minibatch SGD, Sec. 2.2; theirs starts from the rate of one worker's share of a batch, this one from 0).
    """
    rate = recipe.learning_rate * recipe.gamma ** sum(epoch + ahead >= m for m in recipe.milestones)
    return rate * min(1.0, (epoch + done) / recipe.warmup_epochs) if recipe.warmup_epochs else rate


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters of an optimizer."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def fit(cycle: Cycle, training: Training, stages: bool = False, ahead: int = 0) -> float:
    """Train the cycle's network and the training's module by the recipe; return the last epoch's mean loss.

    With ``stages`` the network also returns the outputs of its stages. ``ahead``: see ``learning_rate``. Losses stay on
    the device until the end of an epoch. Raises NonFiniteLoss, which names epoch and step; the cycle gets a warning if
    the loss exploded.
    """
    recipe, network, device = cycle.recipe, cycle.network, cycle.device
    order, augmentation = cycle.stream("order"), cycle.stream("augmentation", on_device=True)
    mixing = cycle.stream("batch", on_device=True)
    trained = [network] if training.module is None else [network, training.module]
    optimiser = optimizer([p for module in trained for p in module.parameters()], recipe)
    kept: dict[str, torch.Tensor] = {}  # the loss of the first step, and the losses of the last epoch
    changed = {"network": network, "training": training, "optimiser": optimiser, "kept": kept}
    with cycle.clock.phase("train"):
        for module in trained:
            module.train()
        for epoch in cycle.steps(recipe.epochs, **changed, streams=[order, augmentation, mixing]):
            parts, step_losses = batches(len(cycle.labelled), recipe, order, device), list[torch.Tensor]()
            steps = cycle.steps(len(parts), parts=parts, losses=step_losses)
            for number, pair in zip(steps, cycle.pairs(parts[steps.first :], augmentation), strict=True):
                set_rate(optimiser, learning_rate(recipe, epoch, (number + 1) / len(parts), ahead))
                images, targets = boundary.batch(training, *pair, mixing)
                loss = boundary.loss(training, network(images, stages), targets, epoch / recipe.epochs)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                step_losses.append(loss.detach())
            kept["losses"] = torch.stack(step_losses)
            check_finite(kept["losses"], cycle, f"epoch {epoch}, training")
            kept.setdefault("first", step_losses[0])
        for module in trained:
            module.eval()
        guessing = log(training.num_classes)
        own = getattr(training.loss, "__module__", "") != "harness.learning.contract"
        # a warm network may have exploded before, but only of the cross-entropy is it known what guessing costs
        return final_loss(kept["losses"], max(float(kept["first"]), guessing) if own else guessing, cycle)


def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    """Run one optimizer step and return the loss, detached. Other parameters get no gradient."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    optimiser.step()
    return loss.detach()


def built(make: Any, seed: int, device: torch.device) -> Any:
    """Return the module ``make()`` on the device, with weights that depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # seeds only the CPU's generator, not the GPU's
        return make().to(device)


def check_finite(losses: torch.Tensor, cycle: Cycle, kind: str, first: int = 0) -> None:
    """Raise NonFiniteLoss, which names cycle, kind and step, if one of the losses [steps] is not finite.

    ``first`` is the number of the first step.
    """
    if not bool(losses.isfinite().all()):
        number = int((~losses.isfinite()).nonzero()[0])
        raise NonFiniteLoss(
            f"cycle {cycle.number}, {kind} step {first + number}: the loss is {float(losses[number])}; {REMEDY}"
        )


EXPLODED = 10
"""How many times the loss that a training starts from its last loss must be to count as exploded."""


def final_loss(losses: torch.Tensor, start: float, cycle: Cycle) -> float:
    """Return the mean of the last epoch's losses [steps], and warn in the cycle if the loss exploded.

    ``start`` is the loss before any update, or that of guessing (the cross-entropy ln C) where it is higher: a warm
    network may start from almost 0. A method's own loss may grow by design, as ISDA's does, but not by the factor.
    """
    mean = float(losses.mean())
    if mean > EXPLODED * start:
        what = f"in the last epoch it is over {EXPLODED} times that of the first step or of guessing"
        cycle.warnings.append(f"the loss exploded: {what}; {REMEDY}")
    return mean

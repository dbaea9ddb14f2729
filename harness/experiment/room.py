"""Whether what the methods of a suite keep fits into the memory of a trial: asked before anything is loaded."""

from __future__ import annotations

import shlex
from functools import cache, partial

from harness import registry
from harness.config.suite import Suite
from harness.data.dataset import DatasetInfo
from harness.data.host import in_units
from harness.errors import UserError
from harness.experiment.holding import gpus_per_trial, scoring_workers
from harness.learning import boundary
from harness.learning.contract import Acquisition, Ahead, Training
from harness.networks import names
from harness.settings import Where

SMALL = 10**9
"""Bytes of a network that every machine has."""


def check_room(suite: Suite, info: DatasetInfo, where: Where) -> None:
    """Raise UserError if a network or methods take more than a trial has on this machine; ``info``: see ``grid.seen``.

    It tells what the first one keeps, and how the others run without all of these. The network is built only for a
    method that keeps a lot. On a cluster, whose machines are others, each trial asks for itself.
    """
    if where.trials == "ray" and where.cluster():
        return

    if problem := _too_wide(suite, info, where):
        raise UserError(f"{suite.at('model')}: {problem}")
    ahead = Ahead(suite.dataset.name, info, suite.protocol, tuple(suite.seeds))

    @cache
    def features() -> int:
        from harness.networks.building import build

        return build(suite.model, info, 0).classifier.in_features

    problems: dict[str, str] = {}
    for name, (training, acquisition) in suite.methods.items():
        selects = registry.find("methods", acquisition.name, Acquisition)
        assert selects is not None
        room = partial(memory, where, suite.exclusive, selects.scores_images)
        for half, contract in ((training, Training), (acquisition, Acquisition)):
            plugin = registry.find("methods", half.name, contract)
            assert plugin is not None
            if problem := boundary.too_large(plugin, half, ahead, features, room):
                problems.setdefault(name, problem)
    if problems:
        first, problem = next(iter(problems.items()))
        more = f" (also {', '.join([*problems][1:])})" if len(problems) > 1 else ""
        fitting = ",".join(name for name in suite.methods if name not in problems)
        others = f"suite={suite.name} {shlex.quote(f'method={fitting}')}"
        without = f"; --only {others} runs the others" if fitting else ""
        raise UserError(f"{suite.at(f'methods.{first}')}{more}: {problem}{without}")


def _too_wide(suite: Suite, info: DatasetInfo, where: Where) -> str:
    """Return why the weights of a network and their gradients do not fit into the memory of a trial, or ''.

    Only the harness's own networks are asked: others are built to be counted.
    """
    if not (suite.model.name in registry.names("networks") and names.shipped(suite.model.name)):
        return ""
    taken = 2 * 4 * names.of(suite.model).num_parameters(info)
    if taken <= SMALL or taken <= (free := memory(where, suite.exclusive, scores=False)) or not free:
        return ""
    return (
        f"the weights of {suite.model.name} and their gradients take {in_units(taken)}, but a trial has "
        f"{in_units(free)} of memory here; choose a smaller network"
    )


def memory(where: Where, exclusive: bool, scores: bool) -> int:
    """Return the bytes that a trial can have at most on this machine; 0: not known.

    ``scores``: whether it scores images, for which it may share its GPU with workers.
    """
    import torch

    from harness.learning.process import available, chosen_device

    device = chosen_device(where.device)
    share = gpus_per_trial(where, exclusive, device == "cuda")
    processes = 1 + scoring_workers(where) if scores else 1
    return available(torch.device(device if share else "cpu"), share / processes)

"""Describe CONFIG's candidates by its methods and the learned ones, here and on 1, 2 and 3 shards, and compare.

Columns, selected images and what a selection changes in the training's state must be equal to the last bit. Where
RAY_ADDRESS is set, the shards are on that cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import

# ruff: isort: split
import ray
import torch

from harness.config.load import load_config
from harness.learning.cycle import Cycle
from harness.learning.scoring import Columns, Scored, Scorer
from harness.on_ray import scoring
from harness.on_ray.scoring import RayData
from harness.settings import Where
from harness.trial import ActiveLearner

SMALL = "width: 4, latent: 6, iterations: 3, batch_size: 16"
ADDED = {
    "Pseudo-labels": "{acquisition: {name: epmcm, pseudo_labels: true}, training: isda}",
    "LL4AL": "ll4al",
    "VAAL": f"{{name: vaal, {SMALL}}}",
    "SRAAL": f"{{name: sraal, {SMALL}}}",
    "ADS": "ads",
}


def selecting(learner: ActiveLearner, cycle: Cycle) -> Callable[[Scorer], tuple[Scored, list[int], Columns]]:
    """Return a function of a scorer: the candidates' columns, the selected images, the training's state after it."""
    acquisition, budget = learner.acquisition, learner.trial.protocol.budget
    acquisition.ready(cycle)
    prepared = acquisition.prepare(cycle)
    learned = {name: tensor.clone() for name, tensor in cycle.learned.items()}

    def select(scorer: Scorer) -> tuple[Scored, list[int], Columns]:
        def described(images: torch.Tensor, purpose: str) -> Scored:
            return scorer.describe(cycle, acquisition, prepared, images, purpose)

        for name, tensor in learned.items():  # pseudo-labels change it
            cycle.learned[name].copy_(tensor)
        scored = described(cycle.candidates, "describe")
        index = scored.columns["index"]
        with torch.no_grad():
            rows = acquisition.select(
                scored.columns,
                lambda: described(cycle.labelled, "describe labelled").columns,
                budget,
                cycle.stream("selection"),
            )
        return scored, index[rows].tolist(), {name: tensor.clone() for name, tensor in cycle.learned.items()}

    return select


def compare(method: str, learner: ActiveLearner, data: Any) -> set[int]:
    """Compare one method's selections here and on workers; ``data`` is in the object store. Return the workers."""
    cycle = learner.open_cycle(0)
    learner.training.fit(cycle)
    cycle.learned = learner.training.state()
    learned = {name: tensor.clone() for name, tensor in cycle.learned.items()}
    select, pids = selecting(learner, cycle), set()
    here, selected, state = select(learner.scorer)
    assert torch.equal(here.columns["index"], cycle.candidates.sort().values)
    assert len(set(selected)) == learner.trial.protocol.budget
    changed = any(not torch.equal(tensor, state[name]) for name, tensor in learned.items())
    assert changed == (method == "Pseudo-labels"), f"{method}: only pseudo-labels enter the training's state"
    workers = RayData(learner.trial, data, learner.placement, 3, keep=True)  # all methods on the same three processes
    workers.start()
    for workers.shards, scoring.IMAGES_AT_ONCE in ((1, 8192), (2, 1), (3, 70)):  # one answer, or several of each worker
        there, selected_there, state_there = select(workers)
        assert there.path == "ray_data" and len(there.shards) == workers.shards
        pids |= {shard.pid for shard in there.shards}
        assert there.columns.keys() == here.columns.keys()
        for name, column in here.columns.items():
            assert torch.equal(column, there.columns[name]), (method, workers.shards, name)
        assert selected_there == selected, (method, workers.shards)
        for name, tensor in state.items():
            assert torch.equal(tensor, state_there[name]), (method, workers.shards, name)
        print(method, workers.shards, "same")
    workers.close()
    return pids


def main() -> None:
    """Compare all methods."""
    suite = load_config(Path(sys.argv[1]), ["recipe.epochs=2", *(f"methods.{k}={v}" for k, v in ADDED.items())]).suites[
        0
    ]
    data = suite.open_dataset(Where()).load()
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    held, pids = ray.put(data), set()
    for method, trial in suite.trials():
        if method in ("Core-set", "Sampled", *ADDED):
            pids |= compare(method, ActiveLearner(trial, data), held)
    assert len(pids) == 3 and os.getpid() not in pids


if __name__ == "__main__":
    main()

"""Describe the candidates of CONFIG's methods, and of the learned ones, here and on 1, 2 and 3 shards, and compare."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import

# ruff: isort: split
import ray
import torch

from harness.config.load import load
from harness.on_ray.scoring import RayData
from harness.results.store import RunStore
from harness.settings import Where
from harness.trial import Runner, Surroundings

path = Path(sys.argv[1])
SMALL = "width: 4, latent: 6, iterations: 3, batch_size: 16"
LEARNED = {
    "LL4AL": "ll4al",
    "VAAL": f"{{name: vaal, {SMALL}}}",
    "SRAAL": f"{{name: sraal, {SMALL}}}",
    "ADS": "ads",
}
suite = load(path, ["recipe.epochs=2", *(f"methods.{k}={v}" for k, v in LEARNED.items())]).suites[0]
problem = suite.open_dataset(Where()).load()
here = Surroundings()
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
put = ray.put(problem)
pids: set[int] = set()
for label, trial in suite.trials():
    if label not in ("Core-set", "Sampled", *LEARNED):
        continue
    runner = Runner(trial, problem, RunStore(path.parent / "compared"), here)
    cycle = runner._begin(0)
    runner.training.fit(cycle)
    prepared = runner.acquisition.prepare(cycle)
    arguments = (cycle, runner.acquisition, prepared, cycle.candidates, "describe")
    plain = runner.scorer.describe(*arguments)
    scorer = RayData(trial, put, here, 3, keep=True)  # all methods on the same three processes
    scorer.start()
    for scorer.shards in (1, 2, 3):
        found = scorer.describe(*arguments)
        assert len(found.shards) == scorer.shards
        pids |= {shard.pid for shard in found.shards}
        for name, column in plain.columns.items():
            assert torch.equal(column, found.columns[name]), (label, scorer.shards, name)
        assert torch.equal(plain.columns["index"], cycle.candidates.sort().values)
        print(label, scorer.shards, "same")
    scorer.close()
assert len(pids) == 3 and os.getpid() not in pids

"""Scoring on workers: Ray Data shards the batches of indices into actors that live as long as their trial.

The batches are cut by the core and a worker runs the same code as the in-process path, so the result is the same bit
for bit for any number of shards. Ray Data carries indices only; the pixels lie once per node in the object store.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from harness.lazy import importing

with importing():
    import pyarrow as pa
    import ray
    import ray.data
    import torch

    from harness.networks.zoo import build

from harness.config.suite import Trial
from harness.data.images import Images
from harness.data.rows import on_device
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.inference import evaluating
from harness.learning.scoring import Columns, InProcess, Scored, Shard, ascending, cut, describe_batches, seconds_since
from harness.trial import (
    Surroundings,
    build_method,
    facts_of,
    limit_memory,
    peak_memory,
    prepare_process,
    reset_peak_memory,
)

START_SECONDS = 8.0
"""Start of the workers, once per trial: processes that import torch and timm (benchmarks/scoring.py, 2 CPU cores)."""
CALL_SECONDS = 0.2
"""More than the overhead of one call on warm workers: 0.06 s for 10 000 images (benchmarks/scoring.py)."""


class Worker:
    """Describes its share of the batches. A call carries all it needs, so it can be repeated on a new process."""

    def __init__(self, gpus: str | None) -> None:
        if gpus is not None:
            # the trial's own GPU: its placement group holds this worker on the same node, and CUDA has not started
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        self.task: Any = None

    def take(self, task: list[Any]) -> None:
        """Make ready for a trial; ``task`` is a reference to (its data, what it measures, where it runs)."""
        if task[0] == self.task:
            return
        problem, measured, here = ray.get(task[0])
        trial, loaded = Trial.from_measured(measured), ray.get(problem)
        self.device = torch.device(here.device)
        limit_memory(self.device, here.gpu_share)
        prepare_process(here.threads, trial.recipe.deterministic)
        self.images = Images(on_device(loaded.train_images, self.device), loaded, trial.recipe)
        facts = facts_of(loaded)
        self.network = build(trial.model, facts, 0).to_place(self.device, trial.recipe)
        _, self.acquisition = build_method(trial.training, trial.acquisition, facts.num_classes)
        self.cycle = -1
        if trial.recipe.compile:  # now, because no method's seconds have begun
            with evaluating(self.network):
                self.network(self.images.plain(torch.zeros(trial.recipe.inference_batch_size, dtype=torch.long)))
        self.task = task[0]

    def leave(self) -> None:
        """Let go of the trial and its data; the process, which took seconds to start, may be given another."""
        if self.task is not None:
            del self.images, self.network, self.acquisition
            self.prepared: Columns = {}
            self.task = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def describe(
        self, shard: Any, task: list[Any], weights: list[Any], cycle: int, key: int
    ) -> tuple[dict[str, np.ndarray[Any, Any]], Shard]:
        """Return the columns of the shard's batches; a cycle's weights are fetched once."""
        self.take(task)
        if cycle != self.cycle:
            network, self.prepared = (
                {k: torch.from_numpy(np.array(v)).to(self.device) for k, v in part.items()}
                for part in ray.get(weights[0])
            )
            self.network.load_state_dict(network)
            self.cycle = cycle
        rows = [
            row for batch in shard.iter_batches(batch_size=None, batch_format="pyarrow") for row in batch.to_pylist()
        ]
        reset_peak_memory(self.device)
        began = time.perf_counter()
        batches = [(row["number"], torch.tensor(row["indices"], device=self.device)) for row in rows]
        warnings: list[str] = []
        columns = describe_batches(self.network, self.images, self.acquisition, self.prepared, batches, key, warnings)
        found = {name: column.cpu().numpy() for name, column in columns.items()}
        count = sum(len(b) for _, b in batches)
        seconds = seconds_since(began, self.device)
        return found, Shard(os.getpid(), count, seconds, warnings, peak_memory(self.device))


_kept: list[Any] = []
"""Workers of the trial that this process ran before: they are in its reservation, as the next trial is."""


class RayData:
    """Describes images on ``shards`` workers; with ``keep`` they wait for the next trial of this process."""

    def __init__(self, trial: Trial, problem: Any, here: Surroundings, shards: int, keep: bool = False) -> None:
        self.trial, self.problem, self.here, self.shards, self.keep = trial, problem, here, shards, keep
        self.workers: list[Any] = []
        self.task: Any = None
        self.weights: Any = None
        self.shipped = -1
        """The cycle whose weights the workers are given; they are put into the object store once per cycle."""

    def start(self) -> None:
        """Start the workers, inside the trial's own reservation, and wait for them."""
        if self.workers:
            return
        # they reserve nothing of their own, so Tune's placement group of the trial captures them: same node, same GPU
        actor: Any = ray.remote(num_cpus=0, num_gpus=0, max_restarts=3, max_task_retries=3)(Worker)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if self.here.device == "cuda" else None
        self.workers = [_kept.pop() if _kept else actor.remote(gpus) for _ in range(self.shards)]
        self.task = ray.put((self.problem, self.trial.measured(), self.here))
        ray.get([worker.take.remote([self.task]) for worker in self.workers])

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see harness.scoring.Scorer."""
        if cycle.number != self.shipped:
            both = (cycle.network.state_dict(), prepared)
            self.weights = ray.put(tuple({k: v.cpu().numpy() for k, v in part.items()} for part in both))
            self.shipped = cycle.number
        batches = cut(indices, cycle.recipe)
        groups = [
            batches[len(batches) * s // self.shards : len(batches) * (s + 1) // self.shards] for s in range(self.shards)
        ]
        # from_blocks starts no task of its own: tasks would wait outside the trial's reservation for CPUs that the
        # trials hold, for ever
        blocks = [
            pa.table({"number": [n for n, _ in group], "indices": [i.tolist() for _, i in group]})
            for group in groups
            if group
        ]
        shards = ray.data.from_blocks(blocks).split(len(blocks))
        answers = ray.get(
            [
                worker.describe.remote(shard.iterator(), [self.task], [self.weights], self.shipped, cycle.key(purpose))
                for worker, shard in zip(self.workers, shards, strict=False)
            ]
        )
        columns = {
            name: torch.cat([torch.from_numpy(np.array(found[name])) for found, _ in answers]).to(cycle.device)
            for name in answers[0][0]
        }
        return Scored(ascending(columns), "ray_data", [shard for _, shard in answers])

    def close(self) -> None:
        """End the workers, or let them wait for the next trial."""
        for worker in self.workers:
            if self.keep:
                worker.leave.remote()
                _kept.append(worker)
            else:
                ray.kill(worker)
        self.workers = []


class Measured:
    """In process first; on workers from the next cycle on, once the measured forward time says that they pay.

    ``parallel``: how many of them can compute at once. Where each processor has a trial of its own none would be idle.
    """

    def __init__(self, workers: RayData, cycles: int, parallel: int) -> None:
        self.here, self.workers, self.cycles, self.parallel = InProcess(), workers, cycles, parallel
        self.worth_it = self.started = False
        self.seconds: dict[int, float] = {}
        """Of all forward passes of each cycle: an acquisition may describe twice."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see harness.scoring.Scorer."""
        if self.started and not acquisition.sequential(acquisition.settings):
            return self.workers.describe(cycle, acquisition, prepared, indices, purpose)
        scored = self.here.describe(cycle, acquisition, prepared, indices, purpose)
        calls_left = self.cycles - 2 - cycle.number  # the last cycle scores nothing
        self.seconds[cycle.number] = self.seconds.get(cycle.number, 0.0) + scored.shards[0].seconds
        saved = self.seconds[cycle.number] * (1 - 1 / self.parallel) - CALL_SECONDS
        self.worth_it = calls_left * saved > START_SECONDS
        return scored

    def start(self) -> None:
        """Start the workers where they are used: before a cycle's scoring, never between two calls of it."""
        if self.worth_it:
            self.workers.start()
            self.started = True

    def close(self) -> None:
        """End the workers, if there are any."""
        self.workers.close()

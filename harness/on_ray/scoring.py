"""Scoring on workers: Ray Data distributes batches of indices to actors that serve one trial at a time.

Batches are formed before they are distributed, and a worker runs the same code as the in-process path, so results are
bit-identical for any number of shards. Ray Data transfers only indices; each node holds the pixels once, in its object
store.
"""

from __future__ import annotations

import os
import pickle
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from harness.lazy import importing

with importing():
    import pyarrow as pa
    import ray
    import ray.data
    import torch

    from harness.networks.building import build

from harness import registry
from harness.config.suite import Trial
from harness.data.images import Images
from harness.data.rows import on_device
from harness.learning.boundary import Unchanged
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.process import Placement, limit_memory, peak_memory, prepare_process, reset_peak_memory
from harness.learning.scoring import (
    Columns,
    Describing,
    InProcess,
    Scored,
    Shard,
    describe_batches,
    put,
    seconds_since,
    warm_up,
)
from harness.networks.names import normalisation as normalised_by
from harness.on_ray.beats import beating
from harness.trial import build_half, info_of

START_SECONDS = 8.0
"""Start-up time of the workers in seconds, once per trial: they import torch and timm (measured on 2 CPU cores)."""
CALL_SECONDS = 0.2
"""Upper bound for the overhead of a call on warm workers, in seconds (measured: 0.06 for 10 000 images)."""
IMAGES_AT_ONCE = 8192
"""Images of one answer of a worker. It limits the memory of answers: a worker has two of them on the way."""


class Worker:
    """Describes its shard of the batches. A call carries all its inputs, so it can be repeated in a new process."""

    def __init__(self, gpus: str | None) -> None:
        if gpus is not None:
            # the trial's GPU: its placement group keeps this worker on the same node, and CUDA has not started yet
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        self.task: Any = None

    def take(self, task: list[Any]) -> None:
        """Prepare for a trial; ``task`` holds a reference to (plug-ins, reference to the data, trial, placement)."""
        if task[0] == self.task:
            return
        plugins, data, packed, placement = ray.get(task[0])
        registry.unpack(plugins)
        trial: Trial = pickle.loads(packed)
        loaded = ray.get(data)
        self.device = torch.device(placement.device)
        limit_memory(self.device, placement)
        prepare_process(placement.threads, trial.recipe.deterministic)
        info = info_of(loaded, trial.recipe)
        normalisation = normalised_by(trial.model, info.channels)
        self.images = Images(on_device(loaded.train_images, self.device), loaded, trial.recipe, normalisation)
        self.network = build(trial.model, info, 0).to_device(self.device, trial.recipe)
        self.acquisition = build_half(trial.acquisition, Acquisition, info.num_classes)
        self.cycle = -1
        self.read: Any = None
        warm_up(self.network, self.images, trial.recipe)
        self.task = task[0]

    def leave(self) -> None:
        """Release the trial and its data; the process, which took seconds to start, can serve another trial."""
        if self.task is not None:
            del self.images, self.network, self.acquisition
            self.prepared: Columns = {}
            self.batches: list[tuple[int, torch.Tensor]] = []
            self.task = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def describe(
        self,
        shard: Any,
        task: list[Any],
        weights: list[Any],
        cycle: int,
        key: int,
        scoring: int = 0,
        beat: Path | None = None,
        first: int = 0,
        end: int | None = None,
    ) -> tuple[dict[str, np.ndarray[Any, Any]], Shard]:
        """Return the columns of the shard's batches ``first`` to ``end``.

        The weights of a cycle are fetched once, and the shard once for all calls of one ``scoring``, a number.
        """
        with beating(beat, None) if beat else nullcontext():
            return self._describe(shard, task, weights, cycle, key, scoring, slice(first, end))

    def _describe(
        self, shard: Any, task: list[Any], weights: list[Any], cycle: int, key: int, scoring: int, part: slice
    ) -> tuple[dict[str, np.ndarray[Any, Any]], Shard]:
        self.take(task)
        if cycle != self.cycle:
            network, self.prepared = (
                {k: torch.from_numpy(np.array(v)).to(self.device) for k, v in part.items()}
                for part in ray.get(weights[0])
            )
            self.network.load_state_dict(network)
            self.cycle = cycle
        if self.read != (cycle, scoring):
            tables = shard.iter_batches(batch_size=None, batch_format="pyarrow")
            self.batches = [batch for table in tables for batch in _batches(table)]
            self.read = cycle, scoring
        reset_peak_memory(self.device)
        began = time.perf_counter()
        batches = [(number, indices.to(self.device)) for number, indices in self.batches[part]]
        warnings: list[str] = []
        unchanged = Unchanged(self.acquisition, self.network)
        with unchanged.during("describe"):
            columns = describe_batches(
                self.network, self.images, self.acquisition, self.prepared, batches, key, warnings
            )
        unchanged.finish()
        arrays = {name: column.cpu().numpy() for name, column in columns.items()}
        count = sum(len(b) for _, b in batches)
        seconds = seconds_since(began, self.device)
        return arrays, Shard(os.getpid(), count, seconds, warnings, peak_memory(self.device))


def _block(batches: list[tuple[int, torch.Tensor]]) -> pa.Table:
    """Return batches (number, indices) as rows for Ray Data, without a Python object for each image."""
    ends = np.cumsum([0, *(len(indices) for _, indices in batches)], dtype=np.int32)
    indices = torch.cat([indices for _, indices in batches]).cpu().numpy()
    return pa.table({"number": [n for n, _ in batches], "indices": pa.ListArray.from_arrays(ends, indices)})


def _batches(table: pa.Table) -> list[tuple[int, torch.Tensor]]:
    """Return the batches (number, indices) of a ``_block``."""
    lists = zip(table["number"].to_pylist(), table["indices"], strict=True)
    return [(number, torch.from_numpy(indices.values.to_numpy().copy())) for number, indices in lists]


def _results(references: list[Any]) -> list[Any]:
    """Return the workers' results. What a worker's code raised is raised as it was there: no worker has died of it."""
    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        if error.cause is None or isinstance(error.cause, ray.exceptions.RayError):
            raise
        raise error.cause from error


_kept: list[Any] = []
"""Workers of the previous trial of this process, which the next trial reuses within the same reservation."""


class RayData:
    """Describes images on ``shards`` workers; with ``keep`` the next trial of this process reuses them."""

    def __init__(
        self, trial: Trial, data: Any, placement: Placement, shards: int, keep: bool = False, beat: Path | None = None
    ) -> None:
        self.beat = beat
        """The file that the trial writes as a heartbeat: while it waits for the workers, they do so."""
        self.trial, self.data, self.placement, self.shards, self.keep = trial, data, placement, shards, keep
        self.workers: list[Any] = []
        self.task: Any = None
        self.weights: Any = None
        self.scorings = 0
        self.shipped = -1
        """The cycle whose weights are in the object store; they are stored once per cycle."""

    def start(self) -> None:
        """Start the workers within the trial's reservation, and wait for them."""
        if self.workers:
            return
        # actors without resources of their own join the trial's placement group: same node, same GPU
        actor: Any = ray.remote(num_cpus=0, num_gpus=0, max_restarts=3, max_task_retries=3)(Worker)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if self.placement.device == "cuda" else None
        self.workers = [_kept.pop() if _kept else actor.remote(gpus) for _ in range(self.shards)]
        self.task = ray.put((registry.luggage(), self.data, pickle.dumps(self.trial), self.placement))
        _results([worker.take.remote([self.task]) for worker in self.workers])

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see harness.learning.scoring.Scorer."""
        if cycle.number != self.shipped:
            states = (cycle.network.state_dict(), prepared)
            self.weights = ray.put(tuple({k: v.cpu().numpy() for k, v in state.items()} for state in states))
            self.shipped = cycle.number
        it = Describing(cycle, indices)
        self.scorings += 1
        batches = [*it.left.items()]
        groups = [
            group
            for s in range(self.shards)
            if (group := batches[len(batches) * s // self.shards : len(batches) * (s + 1) // self.shards])
        ]
        # from_blocks starts no task; a task outside the trial's reservation would wait forever for CPUs that the
        # trials hold
        blocks = [_block(group) for group in groups]  # none, if only the last step is left of a process that died
        shards = ray.data.from_blocks(blocks).split(len(groups)) if groups else []
        at_once = max(1, IMAGES_AT_ONCE // cycle.recipe.inference_batch_size)
        firsts = [iter(range(0, len(group), at_once)) for group in groups]
        done: dict[int, Shard] = {}
        waiting: dict[Any, tuple[int, int]] = {}

        def ask(number: int) -> None:
            """Ask a worker for its next part, if there is one."""
            if (begin := next(firsts[number], None)) is not None:
                inputs = shards[number].iterator(), [self.task], [self.weights], self.shipped, cycle.key(purpose)
                part = self.scorings, self.beat, begin, begin + at_once
                answer = self.workers[number].describe.remote(*inputs, *part)
                waiting[answer] = number, begin

        def take() -> None:
            """Wait for a part, and write it."""
            answer = ray.wait([*waiting], num_returns=1)[0][0]
            if self.beat is not None:
                with suppress(OSError):  # a call may be too short for the worker's own heartbeats
                    os.utime(self.beat)
            number, begin = waiting.pop(answer)
            ((arrays, shard),) = _results([answer])
            ask(number)
            part = {name: torch.from_numpy(np.array(array)).to(cycle.device) for name, array in arrays.items()}
            put(acquisition, it.table, part)
            it.done[[batch for batch, _ in groups[number][begin : begin + at_once]]] = True
            done[number] = done[number].plus(shard) if number in done else shard
            it.shard(done[number], number)
            # here the answer is released: else it stays in the object store until the next one is there

        for number in [*range(len(groups))] * 2:  # a worker computes a part while the one before is taken
            ask(number)
        for batch in it.steps:
            while not it.done[batch]:
                take()
        return it.scored("ray_data")

    def close(self) -> None:
        """End the workers, or keep them for the next trial."""
        for worker in self.workers:
            if self.keep:
                worker.leave.remote()
                _kept.append(worker)
            else:
                ray.kill(worker)
        self.workers = []


class AutoScorer:
    """Scores in process until the measured time predicts that workers are faster; from the next cycle on, uses workers.

    ``parallel`` is the number of workers that can compute at the same time; it is lower than the number of workers if
    other trials use the cores.
    """

    def __init__(self, workers: RayData, cycles: int, parallel: int) -> None:
        self.in_process, self.workers, self.cycles, self.parallel = InProcess(), workers, cycles, parallel
        self.worth_it = self.started = False
        self.seconds: dict[int, float] = {}
        """Cycle -> seconds of all its forward passes; an acquisition may describe images twice per cycle."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see harness.learning.scoring.Scorer."""
        if self.started:
            return self.workers.describe(cycle, acquisition, prepared, indices, purpose)
        scored = self.in_process.describe(cycle, acquisition, prepared, indices, purpose)
        calls_left = self.cycles - 2 - cycle.number  # the last cycle scores nothing
        self.seconds[cycle.number] = self.seconds.get(cycle.number, 0.0) + scored.shards[-1].seconds
        saved = self.seconds[cycle.number] * (1 - 1 / self.parallel) - CALL_SECONDS
        self.worth_it = calls_left * saved > START_SECONDS
        return scored

    def start(self) -> None:
        """Start the workers if they are predicted to be faster: before a cycle's scoring, never between its calls."""
        if self.worth_it:
            self.workers.start()
            self.started = True

    def close(self) -> None:
        """End the workers, if there are any."""
        self.workers.close()

"""Scoring: an acquisition describes batches of images, with the same result on any number of workers.

Batches are formed before they are distributed, and random numbers are keyed by a batch's number, so the result for a
batch does not depend on which worker computes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from harness.data.images import Images
from harness.learning import boundary
from harness.learning.contract import Acquisition, Batch
from harness.learning.cycle import Cycle
from harness.learning.inference import INFERENCE, BatchSplitter, evaluating, within_memory
from harness.learning.table import Table
from harness.networks.network import Network
from harness.seeds import stream
from harness.settings import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

Columns = dict[str, torch.Tensor]


@dataclass
class Shard:
    """One worker's part of the scoring."""

    pid: int
    images: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    """Warnings for the cycle's record."""
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    """Peak memory of a worker's process; empty for the trial's own process, whose peak is in the cycle's record."""

    def plus(self, later: Shard) -> Shard:
        """Return both, for a worker that has described its images in several parts."""
        peaks, more = self.peak_memory_bytes, later.peak_memory_bytes
        return replace(
            later,
            images=self.images + later.images,
            seconds=self.seconds + later.seconds,
            warnings=[*dict.fromkeys([*self.warnings, *later.warnings])],
            peak_memory_bytes={kind: max(peaks.get(kind, 0), more.get(kind, 0)) for kind in {**peaks, **more}},
        )


@dataclass
class Scored:
    """Columns for all images, rows in ascending order of index, and the workers that computed them."""

    columns: Columns
    path: str
    """``in_process`` or ``ray_data``."""
    shards: list[Shard] = field(default_factory=list)

    def packed(self) -> dict[str, Any]:
        """Return it as tensors, numbers and texts; see ``of``."""
        return {"columns": self.columns, "path": self.path, "shards": [dict(vars(shard)) for shard in self.shards]}

    @classmethod
    def of(cls, packed: dict[str, Any], device: torch.device) -> Scored:
        """Return what ``packed`` has returned, with its columns on a device."""
        columns = {name: column.to(device) for name, column in packed["columns"].items()}
        return cls(columns, packed["path"], [Shard(**shard) for shard in packed["shards"]])

    def as_record(self) -> dict[str, Any]:
        """Return the entry of a cycle's record: the path and the shards."""
        return {"path": self.path, "shards": [vars(shard) for shard in self.shards]}


class Scorer(Protocol):
    """Describes images, in this process or on workers."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images with these indices, batch by batch in the order given."""
        ...

    def start(self) -> None:
        """Start the workers, if there are any, and wait for them, so that their start-up is not timed as scoring."""
        ...

    def close(self) -> None:
        """Release the workers, if there are any."""
        ...


class Describing:
    """The columns of images while they are described; after a death of the process they are as at the checkpoint.

    It has a step for each batch. Batches may also come before their step, in any order.
    """

    def __init__(self, cycle: Cycle, indices: torch.Tensor) -> None:
        batches = cut(indices, cycle.recipe)
        self.table = Table(len(indices), indices.sort().values)
        self._found: dict[str, Any] = {"done": np.zeros(len(batches), dtype=np.bool_), "shards": {}}
        self.steps = cycle.steps(len(batches), columns=self.table.columns, found=self._found)
        self.done: NDArray[np.bool_] = self._found["done"]
        """[batches], on the host: a tensor's truth could wait for the device."""
        self.left = {number: part for number, part in batches if not self.done[number]}
        """Number -> indices of each batch that is left."""
        self.warnings: list[str] = []
        """For the record, of the batches that this process has described so far."""
        self._first = max(self._found["shards"], default=-1) + 1

    def here(self) -> Iterator[int]:
        """Yield the number of each batch that is left, to be described in this process until the next one."""
        began, images = time.perf_counter(), 0
        for number in self.steps:
            if number in self.left:
                yield number
                self.done[number] = True
                images += len(self.left[number])
                self.shard(Shard(os.getpid(), images, time.perf_counter() - began, self.warnings))

    def shard(self, shard: Shard, worker: int = 0) -> None:
        """Note what a worker of this process has described so far."""
        self._found["shards"][self._first + worker] = dict(vars(shard))

    def scored(self, path: str) -> Scored:
        """Return the columns, once all batches are described."""
        return Scored(self.table.columns, path, [Shard(**shard) for _, shard in sorted(self._found["shards"].items())])


def put(acquisition: Acquisition, table: Table, part: Columns) -> None:
    """Write a part into a table. Raises PluginFault if it is unlike the parts before."""
    if table.columns:
        boundary.check_alike(acquisition, table.columns, part)
    table.put(part)


def describe_batches(
    network: Network,
    images: Images,
    acquisition: Acquisition,
    prepared: Columns,
    batches: Sequence[tuple[int, torch.Tensor]],
    key: int,
    warnings: list[str] | None = None,
    into: Describing | None = None,
) -> Columns:
    """Return the columns of batches (number, indices), rows in the order given, with a column ``index``.

    With ``into``, whose batches they are, rows are in ascending order of index, and there may be further ones.
    Score maps are reduced batch by batch. A batch that does not fit into memory is described in parts, which draw one
    after another from the batch's random stream. The random numbers of a method then differ from those for the whole
    batch, and ``warnings`` gets a warning about it.
    """
    splitter = BatchSplitter(max((len(indices) for _, indices in batches), default=1))
    table = into.table if into else Table(sum(len(indices) for _, indices in batches))
    numbers = into.here() if into else [number for number, _ in batches]
    drew, said = False, list[str]()
    with evaluating(network), within_memory("scoring", INFERENCE):
        pixels_of = images.unaugmented_batches([part for _, part in batches])
        for number, (_, indices), pixels in zip(numbers, batches, pixels_of, strict=True):

            def described(pieces: list[tuple[torch.Tensor, ...]], number: int = number) -> list[Columns]:
                nonlocal drew
                generator = stream(key, number, device=images.device)
                initial = generator.get_state()
                columns = [
                    boundary.describe(acquisition, network, Batch(inputs, index, generator), prepared)
                    for index, inputs in pieces
                ]
                drew |= len(pieces) > 1 and not torch.equal(generator.get_state(), initial)
                return columns

            for part in splitter.run((indices, pixels), described):
                put(acquisition, table, part)
            drawn = "; the method's random numbers therefore differ from those for whole batches" if drew else ""
            said = [warning + drawn for warning in splitter.warnings("scoring")]
            if into:
                into.warnings = said
    if warnings is not None:
        warnings += said
    return table.columns


def warm_up(network: Network, images: Images, recipe: Recipe) -> None:
    """Run the network on one inference batch and throw the result away.

    A process's first pass allocates memory, loads kernels and compiles, none of which is scoring. It draws no random
    number and changes no buffer.
    """
    image = torch.zeros(recipe.inference_batch_size, dtype=torch.long, device=images.device)
    with evaluating(network), suppress(torch.OutOfMemoryError):  # scoring halves its batches by itself
        network(images.unaugmented(image))


def seconds_since(began: float, device: torch.device) -> float:
    """Return the seconds since ``began`` (time.perf_counter) after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def cut(indices: torch.Tensor, recipe: Recipe) -> list[tuple[int, torch.Tensor]]:
    """Return batches (number, indices), in order."""
    return list(enumerate(indices.split(recipe.inference_batch_size)))


def ascending(columns: Columns) -> Columns:
    """Return the columns with rows in ascending order of index, so that ties go to the lowest index."""
    order = columns["index"].argsort()
    return {name: column[order] for name, column in columns.items()}


class InProcess:
    """Describes images in the trial's process, with the trial's own network."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see Scorer."""
        it = Describing(cycle, indices)
        began, compiling = time.perf_counter(), cycle.clock.seconds["compile"]
        warnings = list[str]()
        key, left = cycle.key(purpose), [*it.left.items()]
        describe_batches(cycle.network, cycle.images, acquisition, prepared, left, key, warnings, it)
        compiling = cycle.clock.seconds["compile"] - compiling
        seconds = seconds_since(began, cycle.device) - compiling
        it.shard(Shard(os.getpid(), sum(map(len, it.left.values())), seconds, warnings))
        return it.scored("in_process")

    def start(self) -> None:
        """Do nothing: there are no workers."""

    def close(self) -> None:
        """Do nothing: there are no workers."""

"""Describing images by a method: fixed batches in, columns out, the same on any number of workers.

Batches are cut here, before anything is shared out, and random numbers are keyed by a batch's number, so a batch's
result does not depend on which worker computes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from harness.data.images import Images
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.inference import INFERENCE, Divider, evaluating, within_memory
from harness.networks.network import Network
from harness.seeds import stream
from harness.settings import Recipe

Columns = dict[str, torch.Tensor]


@dataclass
class Shard:
    """What one worker did."""

    pid: int
    images: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    """What the cycle's record should say."""
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    """Of a worker's process; empty in the trial's own, whose peak is the cycle's."""


@dataclass
class Scored:
    """Columns for all images, rows in ascending order of index, and who computed them."""

    columns: Columns
    path: str
    shards: list[Shard] = field(default_factory=list)


class Scorer(Protocol):
    """A way to describe images: in this process, or on workers."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images with these indices, batch by batch in the order given."""
        ...

    def start(self) -> None:
        """Wait until the workers, if there are any, are ready: their start is no part of a method's seconds."""
        ...

    def close(self) -> None:
        """Release the workers."""
        ...


def describe_batches(
    network: Network,
    images: Images,
    acquisition: Acquisition,
    prepared: Columns,
    batches: Sequence[tuple[int, torch.Tensor]],
    key: int,
    warnings: list[str] | None = None,
) -> Columns:
    """Describe batches of (number, indices); rows in the order given, with a column ``index``.

    A batch that does not fit into memory is described in parts, which draw one after another from the batch's stream:
    a method that draws then draws other numbers than for the whole, and ``warnings``, for the record, says so.
    """
    largest = max(len(indices) for _, indices in batches)
    # where a batch changes what the next is described with, half of one would change the result
    divider = Divider(largest, largest if acquisition.sequential(acquisition.settings) else 1)
    parts: list[Columns] = []
    drew = False
    with evaluating(network), within_memory("scoring", INFERENCE):
        for (number, indices), images_seen in zip(
            batches, images.plain_batches([some for _, some in batches]), strict=True
        ):

            def described(pieces: list[tuple[torch.Tensor, ...]], number: int = number) -> list[Columns]:
                nonlocal drew
                generator = stream(key, number, device=images.device)
                untouched = generator.get_state()
                found = [
                    {"index": some, **acquisition.describe(network, seen, prepared, generator)} for some, seen in pieces
                ]
                drew |= len(pieces) > 1 and not torch.equal(generator.get_state(), untouched)
                return found

            parts += divider.run((indices, images_seen), described)
    if warnings is not None:
        drawn = ", and its random numbers are others than those of whole batches" if drew else ""
        warnings += [warning + drawn for warning in divider.warnings("scoring")]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def seconds_since(began: float, device: torch.device) -> float:
    """Return the seconds since ``began`` (time.perf_counter) once all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def cut(indices: torch.Tensor, recipe: Recipe) -> list[tuple[int, torch.Tensor]]:
    """Return numbered batches of indices, in order."""
    return list(enumerate(indices.split(recipe.inference_batch_size)))


def ascending(columns: Columns) -> Columns:
    """Return the columns with rows in ascending order of index: ties then go to the lowest index."""
    order = columns["index"].argsort()
    return {name: column[order] for name, column in columns.items()}


class InProcess:
    """Describes images here, on the trial's own network."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see Scorer."""
        began, compiling = time.perf_counter(), cycle.clock.seconds["compile"]
        warnings: list[str] = []
        columns = describe_batches(
            cycle.network,
            cycle.images,
            acquisition,
            prepared,
            cut(indices, cycle.recipe),
            cycle.key(purpose),
            warnings,
        )
        compiling = cycle.clock.seconds["compile"] - compiling
        shard = Shard(os.getpid(), len(indices), seconds_since(began, cycle.device) - compiling, warnings)
        return Scored(ascending(columns), "in_process", [shard])

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to release."""


def as_record(scored: Scored | None) -> dict[str, Any]:
    """Return what a cycle's record keeps of its scoring."""
    if scored is None:
        return {"path": "none", "shards": []}
    return {"path": scored.path, "shards": [vars(s) for s in scored.shards]}

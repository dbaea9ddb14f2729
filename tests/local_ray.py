"""Ray within one process, for what does not depend on more: objects stand for references, answers come out of order.

As a script, print by how many bytes the memory of a process rises above the columns of a million images that workers
describe.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.learning.process import peak_memory, reset_peak_memory
from harness.learning.scoring import Shard
from harness.on_ray import scoring
from harness.settings import Recipe

ROWS, WIDTH = 1_000_000, 96


class Answer:
    """A reference to what a worker returns."""

    def __init__(self, value: Any) -> None:
        self.value = value


def replace_ray(patch: pytest.MonkeyPatch) -> None:
    """Let the scoring of this process use no cluster."""

    def shard(block: Any) -> Any:
        return SimpleNamespace(iterator=lambda: SimpleNamespace(iter_batches=lambda **_: [block]))

    patch.setattr("ray.put", lambda value: value)
    patch.setattr("ray.get", lambda held: [a.value for a in held] if isinstance(held, list) else held)
    patch.setattr("ray.wait", lambda answers, num_returns: (answers[-1:], answers[:-1]))
    patch.setattr(
        "ray.data.from_blocks", lambda blocks: SimpleNamespace(split=lambda count: [shard(block) for block in blocks])
    )


def remote(describe: Callable[..., Any]) -> Any:
    """Return a worker with this ``describe``."""
    return SimpleNamespace(describe=SimpleNamespace(remote=lambda *arguments: Answer(describe(*arguments))))


def features(
    shard: Any, task: Any, weights: Any, cycle: int, key: int, scoring_: int, beat: Any, first: int, end: int
) -> Any:
    """Return the columns of some batches of a shard, which take no time."""
    (block,) = shard.iter_batches()
    index = torch.cat([indices for _, indices in scoring._batches(block.slice(first, end - first))])
    columns = {"index": index.numpy(), "features": index[:, None].float().repeat(1, WIDTH).numpy()}
    return columns, Shard(os.getpid(), len(index), 0.0)


def main() -> None:
    """Measure."""
    cpu = torch.device("cpu")
    recipe = Recipe(epochs=1, inference_batch_size=512)
    cycle: Any = SimpleNamespace(
        number=0,
        network=torch.nn.Linear(1, 1),
        recipe=recipe,
        device=cpu,
        key=lambda purpose: 17,
        steps=lambda count, **state: iter(range(count)),
    )
    nothing: Any = None
    workers = scoring.RayData(nothing, nothing, nothing, 3)
    workers.workers = [remote(features)] * 3
    order = torch.randperm(ROWS)
    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        reset_peak_memory(cpu)
        before = peak_memory(cpu)["host"]
        scored = workers.describe(cycle, nothing, {}, order, "describe")
        more = peak_memory(cpu)["host"] - before
    assert torch.equal(scored.columns["features"][:, -1], torch.arange(ROWS).float())
    assert sum(shard.images for shard in scored.shards) == ROWS
    print(more - sum(column.nbytes for column in scored.columns.values()))


if __name__ == "__main__":
    main()

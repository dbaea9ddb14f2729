"""Columns of millions of images: written once at their place, with the same numbers, and no second copy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_trial, noise, same, trained
from hypothesis import given
from hypothesis import strategies as st
from measure import Waits

from harness.data.dataset import LoadedData
from harness.learning import boundary
from harness.learning.checkpoints import Checkpoints, Steps
from harness.learning.contract import Acquisition, Batch
from harness.learning.process import peak_memory, reset_peak_memory
from harness.learning.scoring import InProcess, Shard, ascending, cut, describe_batches
from harness.learning.table import Table
from harness.results.clock import Clock
from harness.settings import Recipe

k_center = import_module("harness.methods._k_center")
CPU = torch.device("cpu")
CONSTANT = 24 * 2**20
"""Bytes that a piece of work may need besides the features, whatever their number: batches, blocks, the allocator."""


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 10**6))
def test_parts_are_written_at_their_place(sizes: list[int], seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    index = torch.randperm(100, generator=drawn)[: sum(sizes)]
    whole = {"index": index, "a": torch.rand(len(index), 2, 3, generator=drawn), "b": index % 2 == 0}
    parts = [
        dict(zip(whole, rows, strict=True)) for rows in zip(*(c.split(sizes) for c in whole.values()), strict=True)
    ]
    one_by_one, sorted_ = Table(len(index)), Table(len(index), index.sort().values)
    for part in parts:
        one_by_one.put(part)
        sorted_.put(part)
    assert same(one_by_one.columns, whole)
    assert same(sorted_.columns, ascending(whole))


def test_columns_are_those_of_all_batches_in_order(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial("cross_entropy", "core_set"), digits)
    work = cycle.network, cycle.images, learner.acquisition, {}
    batches = cut(cycle.candidates, cycle.recipe)
    alone = [describe_batches(*work, [batch], 17) for batch in batches]
    assert same(describe_batches(*work, batches, 17), {n: torch.cat([part[n] for part in alone]) for n in alone[0]})
    scored = InProcess().describe(cycle, learner.acquisition, {}, cycle.candidates, "describe").columns
    assert torch.equal(scored["index"], cycle.candidates.sort().values)


def test_a_worker_that_answers_in_parts_counts_once() -> None:
    one, two = (
        Shard(7, 10, 1.5, ["w"], {"host": 5, "device": 1}),
        Shard(8, 4, 0.5, ["w", "v"], {"host": 3, "device": 2}),
    )
    assert one.plus(two) == Shard(8, 14, 2.0, ["w", "v"], {"host": 5, "device": 2})


def test_finite_numbers_are_told_from_others() -> None:
    for wrong in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            tensor = torch.zeros(4, 5, dtype=dtype)
            tensor[2, 3] = wrong
            found = boundary.first_not_finite([("a", torch.ones(3)), ("b", tensor), ("c", torch.arange(3))])
            assert found == "b", (wrong, dtype)
    assert boundary.first_not_finite([("a", torch.ones(3)), ("b", torch.zeros(0)), ("c", torch.tensor(1e38))]) is None


# -------------------------------------------------------------------------------------------------------------- memory

ROWS, WIDTH = 24_000, 512
FEATURES = ROWS * WIDTH * 4


class Wide(Acquisition):
    """Describes an image by features that take no time."""

    def describe(self, network: Any, batch: Batch, prepared: Any) -> dict[str, torch.Tensor]:
        return {"features": batch.index[:, None].float().repeat(1, WIDTH).sin_()}

    steps = staticmethod(k_center.straight)
    select = import_module("harness.methods.core_set").CoreSet.select


def more_bytes(work: Callable[[], Any]) -> int:
    """Return how far the peak of this process rises above what it holds now."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier tests have freed would be used again, without a rise
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["host"]
    kept = work()
    after = peak_memory(CPU)["host"] - before
    del kept
    return after


@pytest.fixture
def cycle() -> Any:
    """A cycle with many candidates, drawn in another order than that of their index."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(ROWS))
    images = SimpleNamespace(
        unaugmented_batches=lambda batches: (torch.zeros(len(batch), 1, 1, 1) for batch in batches), device=CPU
    )
    recipe = Recipe(epochs=1, inference_batch_size=500)
    clock = Clock(CPU)
    return SimpleNamespace(
        network=torch.nn.Linear(1, 1), images=images, candidates=order, recipe=recipe, device=CPU, clock=clock,
        key=lambda purpose: 17, warnings=[], steps=lambda count, **state: Steps(Checkpoints(), clock, count, state),
    )  # fmt: skip


def test_features_are_held_once(cycle: Any) -> None:
    acquisition = Wide(SimpleNamespace(memory_gb=0.02), 10)
    more_bytes(lambda: torch.zeros(1000, WIDTH).sum())  # warms up
    scored: list[Any] = []

    def score() -> None:
        scored.append(InProcess().describe(cycle, acquisition, {}, cycle.candidates, "describe"))
        boundary.check_finite_columns(acquisition, scored[0].columns)

    assert FEATURES <= more_bytes(score) < FEATURES + CONSTANT
    columns = scored[0].columns
    assert columns["features"][:, 0].equal(torch.arange(ROWS).float().sin())
    labelled = {"features": noise(100, WIDTH)}
    rows: list[torch.Tensor] = []
    more = more_bytes(lambda: rows.append(acquisition.select(columns, lambda: labelled, 20, torch.Generator())))
    assert more < 20e6 + CONSTANT and len(set(rows[0].tolist())) == 20


def test_an_inference_over_all_images_holds_its_rows_once(cycle: Any) -> None:
    from harness.learning.inference import inferred

    def work(images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), WIDTH)

    assert more_bytes(lambda: inferred(cycle, cycle.candidates, work, "it")) < FEATURES + CONSTANT


# --------------------------------------------------------------------------------------------------------------- waits


def test_the_host_waits_seldom_while_core_set_selects() -> None:
    points = noise(3000, 8)
    with Waits() as few:
        k_center.k_center(points, points[:5], 10)
    with Waits() as many:
        rows = k_center.k_center(points, points[:5], 410)
    assert (many.count - few.count) / 400 < 0.5, "it was three for each image"
    assert len(set(rows.tolist())) == 410

"""recipe.compile: the same network, with torch's compiler, and its seconds where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import HALF, make_trial, run, same
from torch._dynamo.testing import CompileCounter

from harness import compiling
from harness.cycle import Clock
from harness.data import Facts, Problem
from harness.networks import Network, build
from harness.settings import Model, Recipe

CPU = torch.device("cpu")
SMALL = Model(name="resnet_small", width=4)
FACTS = Facts(100, 10, 10, 3, (16, 16), "")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Take a compiler that runs its graphs as they are and counts them."""
    found = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: real(function, backend=found, dynamic=dynamic))
    compiling.compiled.cache_clear()
    torch._dynamo.reset()
    yield found
    compiling.compiled.cache_clear()
    torch._dynamo.reset()


def network(recipe: Recipe, seed: int = 0) -> Network:
    return build(SMALL, FACTS, seed).to_place(CPU, recipe)


def test_a_build_is_compiled_once_for_each_mode_and_whole_batch(counter: CompileCounter) -> None:
    recipe = Recipe(epochs=1, batch_size=6, inference_batch_size=9, compile=True)
    images = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = []
    for seed in (0, 1):  # another network of one build, as in the next trial or cycle
        compiled, plain = network(recipe, seed), network(Recipe(epochs=1), seed)
        for count, train in ((6, True), (9, False), (5, True), (6, False), (9, True)):
            compiled.train(train)
            plain.train(train)
            found, expected = compiled(images[:count]), plain(images[:count])
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
            seen.append(counter.frame_count)
        assert same({**compiled.state_dict()}, {**plain.state_dict()}) or seed
    assert seen == [1, 2, 2, 2, 2] + [2] * 5


def test_stages_and_precision_are_compiled_apart(counter: CompileCounter) -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for number, base in enumerate((Recipe(epochs=1), HALF)):
        some = network(base.model_copy(update={"batch_size": 4, "compile": True}))
        for again in range(2):
            outputs = some(images, stages=True)
            assert [tuple(s.shape[2:]) for s in outputs.stages] == [(16, 16), (8, 8), (4, 4), (2, 2)]
            assert outputs.features.dtype == torch.float32
            assert counter.frame_count == number + 1, f"call {again}"


def test_a_function_of_too_many_versions_is_an_error(counter: CompileCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "VERSIONS", 2)
    some = network(Recipe(epochs=1, batch_size=2, compile=True))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for count in range(2, 6):
            some.compiled = (0, count)
            some(torch.zeros(count, 3, 16, 16))


def test_a_compiled_trial_learns_the_same_and_books_its_compiling(digits: Problem, folders: Callable[[], Path]) -> None:
    # 40 images: two whole batches and a half one, which is not compiled; 150 candidates, 100 test images
    trial = make_trial("isda", "epmcm", epochs=2, inference_batch_size=50)
    plain = run(trial, digits, folders())
    compiled = run(make_trial("isda", "epmcm", epochs=2, inference_batch_size=50, compile=True), digits, folders())
    assert compiled[0].final_loss == pytest.approx(plain[0].final_loss, rel=1e-5)
    assert compiled[0].figures == plain[0].figures
    assert compiled[0].chosen[:5] == plain[0].chosen[:5], "later ones lie too near to each other"
    for here in compiled:
        assert sum(here.seconds.values()) == pytest.approx(here.wall_seconds, rel=0.02, abs=0.01)
    assert compiled[0].seconds["compile"] > 1 > compiled[0].seconds["train"]
    assert [r.seconds["compile"] for r in compiled[1:]] == [0, 0], "weights are warm, and so is the code"
    assert [r.seconds["compile"] for r in plain] == [0, 0, 0]


def test_only_what_is_compiled_under_a_clock_is_booked_on_it(counter: CompileCounter) -> None:
    clock, other = Clock(CPU), Clock(CPU)
    some = network(Recipe(epochs=1, batch_size=2, compile=True))
    with compiling.booked(clock), clock.phase("train"):
        some(torch.zeros(2, 3, 16, 16))
    booked = dict(clock.seconds)
    assert booked["compile"] > 0
    some.compiled = (0, 3)
    with other.phase("train"):
        some(torch.zeros(3, 3, 16, 16))
    assert clock.seconds == booked and other.seconds["compile"] == 0

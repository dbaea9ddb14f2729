"""recipe.compile: the same network, with torch's compiler, and its seconds where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HALF, make_trial, outcomes, run, same
from torch._dynamo.callback import callback_handler
from torch._dynamo.testing import CompileCounter

from harness.data.dataset import DatasetInfo, LoadedData
from harness.errors import UserError
from harness.networks import compiling
from harness.networks.building import build
from harness.networks.names import spec as net
from harness.networks.network import Network
from harness.results.clock import Clock
from harness.settings import Recipe

CPU = torch.device("cpu")
SMALL = net("resnet_small", width=4)
INFO = DatasetInfo(100, 10, 10, 3, (16, 16), "")


@pytest.fixture
def take_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Give a function that replaces the compiler's backend."""
    real = torch.compile

    def take(backend: Any) -> None:
        monkeypatch.setattr(
            torch, "compile", lambda function, dynamic: real(function, backend=backend, dynamic=dynamic)
        )
        compiling.compiled.cache_clear()
        torch._dynamo.reset()

    yield take
    compiling.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def counter(take_compiler: Callable[[Any], None]) -> CompileCounter:
    """Take a compiler that runs its graphs as they are and counts them."""
    found = CompileCounter()
    take_compiler(found)
    return found


def network(recipe: Recipe, seed: int = 0) -> Network:
    return build(SMALL, INFO, seed).to_device(CPU, recipe)


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
        assert same({**compiled.state_dict()}, {**plain.state_dict()})
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
            some.compiled_batches = (0, count)
            some(torch.zeros(count, 3, 16, 16))


@pytest.mark.long
def test_a_compiled_trial_learns_the_same_and_books_its_compiling(
    digits: LoadedData, folders: Callable[[], Path]
) -> None:
    # 40 images: two whole batches and a half one, which is not compiled; 150 candidates, 100 test images
    trial = make_trial("isda", "epmcm", epochs=2, inference_batch_size=50)
    plain = run(trial, digits, folders())
    compiled = run(make_trial("isda", "epmcm", epochs=2, inference_batch_size=50, compile=True), digits, folders())
    assert compiled[0].final_loss == pytest.approx(plain[0].final_loss, rel=1e-5)
    assert compiled[0].metrics == plain[0].metrics
    assert compiled[0].selected[:5] == plain[0].selected[:5], "later ones lie too near to each other"
    for here in compiled:
        assert sum(here.seconds.values()) == pytest.approx(here.wall_seconds, rel=0.02, abs=0.01)
    assert compiled[0].seconds["compile"] > compiled[0].seconds["train"] > 0
    assert [r.seconds["compile"] for r in compiled[1:]] == [0, 0], "weights are warm, and so is the code"
    assert [r.seconds["compile"] for r in plain] == [0, 0, 0]


@pytest.mark.long
@pytest.mark.parametrize(
    "names", [("ads", "ads"), ("cross_entropy", "qbc"), ("ll4al", "ll4al"), ("dropout", "mc_dropout")]
)
def test_methods_that_run_networks_in_their_own_way_can_be_compiled(
    names: tuple[str, str], counter: CompileCounter, digits: LoadedData, folders: Callable[[], Path]
) -> None:
    plain = run(make_trial(*names, cycles=2), digits, folders())
    assert counter.frame_count == 0
    compiled = run(make_trial(*names, cycles=2, compile=True), digits, folders())
    assert outcomes(compiled) == outcomes(plain), "the compiler of this test changes nothing"
    assert counter.frame_count > 0 and compiled[0].seconds["compile"] > 0


@pytest.mark.long
def test_each_trial_of_a_process_has_a_thread_of_its_own(
    counter: CompileCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = network(Recipe(epochs=1, batch_size=2, compile=True))

    def forward(count: int) -> None:
        some.compiled_batches = (0, count)
        some(torch.zeros(count, 3, 16, 16))

    for count in range(2, 14):  # more than torch's own limit of 8
        thread = threading.Thread(target=forward, args=(count,))
        thread.start()
        thread.join()
    assert counter.frame_count == 12


def test_what_can_not_be_compiled_is_said_in_a_sentence(take_compiler: Callable[[Any], None]) -> None:
    clock = Clock(CPU)

    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler found")

    take_compiler(broken)
    handlers = len(callback_handler.start_callbacks), len(callback_handler.end_callbacks)
    some = network(Recipe(epochs=1, batch_size=2, compile=True))
    with (
        pytest.raises(
            UserError, match=r"recipe\.compile: torch can't compile the network on this machine: .*no compiler found"
        ),
        compiling.timing_compilation(clock),
        clock.phase("train"),
    ):
        some(torch.zeros(2, 3, 16, 16))
    assert clock.seconds["compile"] > 0 and not clock._open
    assert (len(callback_handler.start_callbacks), len(callback_handler.end_callbacks)) == handlers


def test_only_what_is_compiled_under_a_clock_is_booked_on_it(counter: CompileCounter) -> None:
    clock, other = Clock(CPU), Clock(CPU)
    some = network(Recipe(epochs=1, batch_size=2, compile=True))
    with compiling.timing_compilation(clock), clock.phase("train"):
        some(torch.zeros(2, 3, 16, 16))
    seconds = dict(clock.seconds)
    assert seconds["compile"] > 0
    some.compiled_batches = (0, 3)
    with other.phase("train"):
        some(torch.zeros(3, 3, 16, 16))
    assert clock.seconds == seconds and other.seconds["compile"] == 0

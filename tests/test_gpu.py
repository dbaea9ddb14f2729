"""What only a GPU can show. Run on one with ``pytest -m gpu``; elsewhere pytest names these as skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import changed, make_street_trial, make_trial, outcomes, part

from harness.config.suite import Trial
from harness.data.dataset import Problem
from harness.learning.contract import Acquisition
from harness.results.records import CycleRecord
from harness.results.store import RunStore
from harness.trial import Runner, Surroundings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

METHODS = [
    *[("plain", "random"), ("plain", "core_set"), ("isda", "epmcm"), ("plain", "least_confidence")],
    *[("ll4al", "ll4al"), ("plain", "vaal"), ("plain", "sraal"), ("ads", "ads")],
]


def run_on_gpu(trial: Trial, problem: Problem, folder: Path) -> list[CycleRecord]:
    store = RunStore(folder)
    Runner(trial, problem, store, Surroundings(device="cuda")).run(lambda record: None)
    return store.trial(trial.id).records()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("training", "acquisition"), METHODS)
def test_two_runs_on_a_gpu_are_the_same(
    training: str, acquisition: str, precision: str, colours: Problem, folders: Callable[[], Path]
) -> None:
    trial = changed(make_trial(training, acquisition, epochs=2), precision=precision)
    one, other = (run_on_gpu(trial, colours, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other)
    assert one[0].device == torch.cuda.get_device_name() and one[0].peak_memory_bytes["device"] > 0


@pytest.mark.parametrize(("training", "acquisition"), [("plain", "core_set"), ("isda", "epmcm"), ("ll4al", "ll4al")])
def test_two_compiled_runs_on_a_gpu_are_the_same(
    training: str, acquisition: str, colours: Problem, folders: Callable[[], Path]
) -> None:
    trial = changed(make_trial(training, acquisition, epochs=2), precision="bfloat16", compile=True)
    one, other = (run_on_gpu(trial, colours, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other)
    assert one[0].seconds["compile"] > 0 == other[0].seconds["compile"]


def test_a_run_with_autotuning_ends_on_a_gpu(colours: Problem, folders: Callable[[], Path]) -> None:
    records = run_on_gpu(make_trial("isda", "epmcm", deterministic=False), colours, folders())
    assert len(records) == 3 and torch.backends.cudnn.benchmark
    run_on_gpu(make_trial(), colours, folders())
    assert not torch.backends.cudnn.benchmark, "the next trial of the process is deterministic again"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("training", "acquisition"), [*METHODS, ("dropout", "mc_dropout"), ("qbc", "qbc")])
def test_two_runs_on_maps_are_the_same(
    training: str, acquisition: str, precision: str, streets: Problem, folders: Callable[[], Path]
) -> None:
    trial = changed(make_street_trial(training, acquisition, epochs=2), precision=precision)
    one, other = (run_on_gpu(trial, streets, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other) and one[0].per_class


def test_full_covariance_and_samples_run_on_a_gpu(colours: Problem, folders: Callable[[], Path]) -> None:
    sampled = part("epmcm", Acquisition, form="sampled", samples=50)
    trial = make_trial("isda", sampled)
    assert len(run_on_gpu(trial, colours, folders())) == 3

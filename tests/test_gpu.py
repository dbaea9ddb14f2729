"""What only a GPU can show. Run on one with ``pytest -m gpu``; elsewhere pytest names these as skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import changed, make_street_trial, make_trial, outcomes, run, spec
from test_within import Kills

from harness.config.suite import Trial
from harness.data.dataset import LoadedData
from harness.learning.contract import Acquisition
from harness.learning.process import Placement
from harness.networks import compiling
from harness.results.records import CycleRecord

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

METHODS = [
    *[("cross_entropy", name) for name in ("random", "core_set", "least_confidence", "vaal", "sraal")],
    *[("isda", "epmcm"), ("ll4al", "ll4al"), ("ads", "ads")],
]


def run_on_gpu(trial: Trial, data: LoadedData, folder: Path) -> list[CycleRecord]:
    return run(trial, data, folder, placement=Placement(device="cuda"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("training", "acquisition"), METHODS)
def test_two_runs_on_a_gpu_are_the_same(
    training: str, acquisition: str, precision: str, colours: LoadedData, folders: Callable[[], Path]
) -> None:
    trial = changed(make_trial(training, acquisition, epochs=2), precision=precision)
    one, other = (run_on_gpu(trial, colours, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other)
    assert one[0].device == torch.cuda.get_device_name() and one[0].peak_memory_bytes["device"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("training", "acquisition"), METHODS)
def test_a_cycle_that_dies_on_a_gpu_goes_on(
    training: str,
    acquisition: str,
    precision: str,
    colours: LoadedData,
    folders: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = changed(make_trial(training, acquisition, epochs=2, cycles=2), precision=precision)
    first, kills, folder = run_on_gpu(trial, colours, folders()), Kills(monkeypatch), folders()
    kills.placement = Placement(device="cuda", checkpoint_minutes=1e-9)
    assert outcomes(kills.run(trial, colours, folder, 2, 3, 2)) == outcomes(first) and len(kills.contents) >= 2


@pytest.mark.parametrize(
    ("training", "acquisition"), [("cross_entropy", "core_set"), ("isda", "epmcm"), ("ll4al", "ll4al")]
)
def test_two_compiled_runs_on_a_gpu_are_the_same(
    training: str, acquisition: str, colours: LoadedData, folders: Callable[[], Path]
) -> None:
    compiling.compiled.cache_clear()  # a test before this one may have compiled the same network
    torch._dynamo.reset()
    trial = changed(make_trial(training, acquisition, epochs=2), precision="bfloat16", compile=True)
    one, other = (run_on_gpu(trial, colours, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other)
    assert one[0].seconds["compile"] > 0 == other[0].seconds["compile"]


def test_a_run_with_autotuning_ends_on_a_gpu(colours: LoadedData, folders: Callable[[], Path]) -> None:
    records = run_on_gpu(make_trial("isda", "epmcm", deterministic=False), colours, folders())
    assert len(records) == 3 and torch.backends.cudnn.benchmark
    run_on_gpu(make_trial(), colours, folders())
    assert not torch.backends.cudnn.benchmark, "the next trial of the process is deterministic again"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("training", "acquisition"), [*METHODS, ("dropout", "mc_dropout"), ("cross_entropy", "qbc")])
def test_two_runs_on_maps_are_the_same(
    training: str, acquisition: str, precision: str, streets: LoadedData, folders: Callable[[], Path]
) -> None:
    trial = changed(make_street_trial(training, acquisition, epochs=2), precision=precision)
    one, other = (run_on_gpu(trial, streets, folders()) for _ in range(2))
    assert outcomes(one) == outcomes(other) and one[0].per_class


def test_full_covariance_and_samples_run_on_a_gpu(colours: LoadedData, folders: Callable[[], Path]) -> None:
    sampled = spec("epmcm", Acquisition, form="sampled", samples=50)
    trial = make_trial("isda", sampled)
    assert len(run_on_gpu(trial, colours, folders())) == 3

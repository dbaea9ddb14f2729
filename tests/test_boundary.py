"""The boundary of plug-ins: each wrong one gets its sentence, its correct twin passes, and a good trial goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import make_trial, opened, trained
from wrong import Wrong
from wrong.datasets import DATASETS
from wrong.methods import ACQUISITIONS, CLASSES, CONFIGS, TRAININGS

from harness import registry
from harness.config.load import load_config
from harness.config.suite import PluginSpec, Trial
from harness.data.dataset import LoadedData
from harness.errors import UserError
from harness.experiment import executor, runner
from harness.experiment.display import Failure
from harness.experiment.grid import Grid, Unit, expand
from harness.faults import PluginFault
from harness.learning import boundary
from harness.learning.contract import Acquisition, Training
from harness.learning.process import Placement
from harness.results.store import RunStore
from harness.run import main
from harness.trial import ActiveLearner

HALVES = {"Training": Training, "Acquisition": Acquisition}
METHODS = [*CLASSES, *TRAININGS, *ACQUISITIONS]


def ids(wrong: Wrong) -> str:
    return wrong.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose package ``plugins`` can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "plugins"]:
        del sys.modules[name]
    registry._import.cache_clear()


def trial_of(wrong: Wrong, name: str, **keys: Any) -> Trial:
    """Return a short trial with the plug-in as one half."""
    trial = make_trial(cycles=2, **keys)
    # a class with wrong settings has none that could be checked
    plugin: Any = registry.find("methods", name, HALVES[wrong.base])
    settings = getattr(plugin, "Settings", SimpleNamespace)()
    return replace(trial, **{wrong.base.lower(): PluginSpec(name, settings)})


def unit_of(trial: Trial, method: str) -> Unit:
    return Unit(trial, "suite", method, False, False, None, [40, 60], [0, 0])


def run(folder: Path, data: LoadedData, *units: Unit) -> tuple[list[Failure], RunStore]:
    """Run the units in this process; return those that failed, and the store."""
    store = RunStore(folder / "run")
    failures: list[Failure] = []

    def listen(event: str, unit: Unit, values: dict[str, Any]) -> None:
        if event == "failed":
            failures.append(Failure(unit.name, values["failure"]))

    runner._run_in_process(Placement(), Grid([*units], {}, {}), {"suite": data}, store, listen)
    return failures, store


@pytest.mark.parametrize("wrong", METHODS, ids=ids)
def test_a_wrong_method_fails_with_a_sentence_and_the_others_go_on(
    wrong: Wrong, folder: Path, digits: LoadedData, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, good = trial_of(wrong, wrong.write(folder)), make_trial(cycles=2)
    failures, store = run(folder, digits, unit_of(bad, "Bad"), unit_of(good, "Good"))
    trace = store.folder / "logs" / f"{bad.id}.log"
    if " raises " in wrong.sentence:
        assert wrong.sentence.split(" raises ")[1].split(":")[0] in trace.read_text().splitlines()[-1]
    assert "Traceback" in trace.read_text()
    assert failures == [("suite / Bad / seed 3", f"{wrong.expected}; the traceback is in {trace}")]
    assert "Traceback" not in "".join(capfd.readouterr())
    assert len(store.trial(good.id).records()) == 2


@pytest.mark.parametrize("error", [MemoryError("no room\nfor more"), KeyError("x"), RuntimeError()])
def test_an_exception_of_no_plug_in_fails_its_trial_alone(
    error: Exception, folder: Path, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_trial(cycles=2), make_trial(cycles=2, seed=4)
    original = executor.run_trial

    def run_trial(learner: Any, *given: Any) -> None:
        if learner.trial.id == first.id:
            raise error
        original(learner, *given)

    monkeypatch.setattr(executor, "run_trial", run_trial)
    failures, store = run(folder, digits, unit_of(first, "One"), unit_of(second, "Other"))
    (failure,) = failures
    sentence, _, trace = failure.cause.partition("; the traceback is in ")
    first_line = str(error).partition("\n")[0]
    assert failure.unit == "suite / One / seed 3" and (
        sentence.startswith(f"{type(error).__name__}: {first_line}")
        or (type(error) is MemoryError and sentence.startswith("this machine's memory is full, at test_boundary.py:"))
    )
    assert Path(trace).read_text().startswith("Traceback") and len(store.trial(second.id).records()) == 2


@pytest.mark.parametrize("wrong", METHODS, ids=ids)
def test_its_correct_twin_passes(wrong: Wrong, folder: Path, digits: LoadedData) -> None:
    twin = trial_of(wrong, wrong.write(folder, correct=True))
    failures, store = run(folder, digits, unit_of(twin, "Twin"))
    assert failures == [] and len(store.trial(twin.id).records()) == 2


def config(folder: Path, name: str, base: str) -> Path:
    """Write a config with the plug-in, and return its path."""
    method: Any = {"acquisition": "random", "training": name} if base == "Training" else name
    values = {
        "dataset": name if base == "Dataset" else {"name": "digits", "limit": 300, "test_limit": 100},
        "model": {"name": "resnet_small", "width": 4},
        "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 1},
        "protocol": {"initial": 40, "budget": 10, "cycles": 2, "candidates": 150, "start": "warm"},
        "methods": {"it": "random" if base == "Dataset" else method},
        "seeds": [0],
        "where": {"trials": "in_process", "output": str(folder / "run")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("wrong", [*CONFIGS, *DATASETS], ids=ids)
def test_a_mistake_that_a_config_can_show_ends_the_command_before_any_work(
    wrong: Wrong, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config(folder, wrong.write(folder), wrong.base))]) == 2
    out, err = capsys.readouterr()
    assert err == f"error: {wrong.expected}\n"
    assert "Traceback" not in out + err and not (folder / "run" / "trials").exists()


@pytest.mark.parametrize("wrong", [*CONFIGS, *DATASETS], ids=ids)
def test_its_correct_twin_starts(wrong: Wrong, folder: Path) -> None:
    benchmark = load_config(config(folder, wrong.write(folder, correct=True), wrong.base))
    grid = expand(benchmark, fetch=True)
    (loaded,) = runner._load(benchmark, grid).values()
    assert len(loaded.train_images) in (60, 300)


def test_a_dataset_that_ignores_its_limit_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(wrong for wrong in DATASETS if wrong.name == "draws_from_numpy").write(folder, correct=True)
    path = config(folder, name, "Dataset")
    for key, count in (("limit", 60), ("test_limit", 20)):
        assert main([str(path), f"dataset={{name: {name}, {key}: 10}}", "--plan"]) == 2
        sentence = f"info must apply {key}: with {key}=10 at most 10 images are left; got {count}\n"
        assert capsys.readouterr().err.endswith(sentence)


def test_the_streams_are_those_before_a_dataset_drew_from_them(folder: Path) -> None:
    name = next(wrong for wrong in DATASETS if wrong.name == "draws_from_numpy").write(folder)
    benchmark = load_config(config(folder, name, "Dataset"))
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    with pytest.raises(UserError, match="must not draw"):
        runner._load(benchmark, expand(benchmark, fetch=True))
    assert random.getstate() == before[0]
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()  # noqa: NPY002


def test_there_are_at_least_forty_wrong_plug_ins() -> None:
    names = [wrong.name for wrong in (*METHODS, *CONFIGS, *DATASETS)]
    assert len(set(names)) == len(names) >= 40


MOVING = """
import os
import tempfile
from harness import Acquisition
os.chdir(tempfile.gettempdir())
class Moving(Acquisition):
    def describe(self, network, batch, prepared):
        os.chdir(tempfile.gettempdir())
        return {"score": batch.images.mean((1, 2, 3))}
"""


def test_a_plug_in_that_changes_the_current_folder_moves_no_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "moving.py").write_text(MOVING)
    path = config(folder, "moving", "Acquisition")
    monkeypatch.chdir(folder)
    assert main([str(path), "where.output=here", "plugins=[moving.py]"]) == 0
    assert len(list((folder / "here" / "trials").glob("*/cycle_*.json"))) == 2 and Path.cwd() == folder


def test_a_failed_trial_gives_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = next(wrong for wrong in ACQUISITIONS if wrong.name == "describe_raises")
    assert main([str(config(folder, wrong.write(folder), wrong.base))]) == 1
    out, err = capsys.readouterr()
    (trace,) = (folder / "run" / "logs").glob("*.log")
    assert f"FAILED: config / it / seed 0: {wrong.expected}; the traceback is in {trace}\n" in err
    assert "Traceback" not in out + err


def test_an_old_traceback_does_not_outlive_a_success(folder: Path, digits: LoadedData) -> None:
    wrong = next(wrong for wrong in ACQUISITIONS if wrong.name == "select_raises")
    unit = unit_of(trial_of(wrong, wrong.write(folder)), "Bad")
    failures, store = run(folder, digits, unit)
    trace = store.folder / "logs" / f"{unit.trial.id}.log"
    assert failures and trace.exists()
    (folder / "plugins" / f"{wrong.name}.py").write_text(wrong.module(correct=True))
    del sys.modules[f"plugins.{wrong.name}"]
    registry._import.cache_clear()
    assert run(folder, digits, unit)[0] == [] and not trace.exists()


def test_in_a_notebook_the_exception_is_the_cause(folder: Path, digits: LoadedData) -> None:
    wrong = next(wrong for wrong in ACQUISITIONS if wrong.name == "describe_raises")
    learner, cycle = trained(trial_of(wrong, wrong.write(folder)), digits)
    with pytest.raises(PluginFault) as caught:
        learner.select(cycle)
    assert str(caught.value) == wrong.expected and isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        UserError("a message"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_what_is_not_the_plug_ins_passes(
    error: BaseException, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, cycle = opened(make_trial(), digits)

    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(learner.acquisition, "select", fails)
    with pytest.raises(type(error)) as caught:
        learner.select(cycle)
    assert caught.value is error


def test_a_shipped_plug_in_gets_a_sentence_too(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, cycle = trained(make_trial("cross_entropy", "core_set"), digits)
    monkeypatch.setattr(learner.acquisition.settings.__class__, "memory_gb", None, raising=False)
    monkeypatch.setitem(learner.acquisition.settings.__dict__, "memory_gb", "much")
    with pytest.raises(PluginFault, match=r"^core_set \(_k_center\.py:\d+\): select raises TypeError"):
        learner.select(cycle)


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_a_wrong_method_fails_once_and_the_others_go_on(folder: Path) -> None:
    names = "init_raises", "describe_nan", "describe_raises", "describe_counts_on_the_target", "select_raises"
    wrongs = {wrong.name: wrong for wrong in METHODS if wrong.name in names}
    path = config(folder, "random", "Acquisition")
    values = yaml.safe_load(path.read_text())
    written = {name: (wrong.base.lower(), wrong.write(folder)) for name, wrong in wrongs.items()}
    values["methods"] = {name: {"acquisition": "random", half: plugin} for name, (half, plugin) in written.items()}
    values["methods"]["good"] = "entropy"
    values["recipe"]["inference_batch_size"] = 64
    values["where"] |= {"trials": "ray", "scoring": "ray_data", "shards": 2, "dashboard": False, "warm_workers": True}
    path.write_text(yaml.safe_dump(values))
    known = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": known}
    command = [sys.executable, "-m", "harness.run", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=registry.ROOT, check=False)
    assert done.returncode == 1, done.stderr
    said = dict(line.removeprefix("FAILED: config / ").split(" / seed 0: ") for line in done.stderr.splitlines()[:-1])
    assert said.keys() == wrongs.keys()
    for name, wrong in wrongs.items():
        sentence, _, trace = said[name].partition("; the traceback is in ")
        assert sentence == wrong.expected and Path(trace).read_text().startswith("Traceback")
        assert "harness-plugins" not in Path(trace).read_text(), "a copy that nobody should edit"
    assert "Traceback" not in done.stdout + done.stderr and "retr" not in done.stdout
    records = [path.parent.name for path in (folder / "run" / "trials").glob("*/cycle_001.json")]
    assert len(records) == 1 and "entropy" in records[0]


# ---------------------------------------------------------------------------------------------------------- the state


def test_a_state_that_is_not_restored_is_a_fault(digits: LoadedData) -> None:
    class Forgets(Training):
        steps = 0

        def state(self) -> dict[str, torch.Tensor]:
            return {"steps": torch.tensor(self.steps)}

        def load_state(self, state: dict[str, torch.Tensor]) -> None:
            pass

    class Restores(Forgets):
        def load_state(self, state: dict[str, torch.Tensor]) -> None:
            self.steps = int(state["steps"])

    for kind in (Restores, Forgets):
        learner, _ = opened(make_trial(), digits)
        state = {**learner.state(), "training": {"steps": torch.tensor(3)}}
        learner.training = kind(kind.Settings(), 10)
        if kind is Restores:
            learner.load_state(state)
        else:
            with pytest.raises(PluginFault, match="load_state must restore what state returned; 'steps' is another"):
                learner.load_state(state)


def test_a_module_of_other_shapes_than_before_is_a_fault(digits: LoadedData) -> None:
    class Grows(Training):
        def make(self, cycle: Any) -> torch.nn.Module:
            return torch.nn.Linear(len(cycle.labelled), 1)

    _, cycle = opened(make_trial(), digits)
    half = Grows(Grows.Settings(), 10)
    half.load_state(torch.nn.Linear(3, 1).state_dict())
    with pytest.raises(PluginFault, match="make must return a module that takes the weights of the previous cycle"):
        half.ready(cycle)


# ------------------------------------------------------------------------------------------------- what stays as it is


def drawn() -> list[float]:
    return [float(torch.rand(1)), float(np.random.random()), random.random()]  # noqa: NPY002


def test_forked_streams_are_keyed_and_leave_the_others_where_they_were() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    with boundary.forked(2**62 + 1, cpu):
        first = drawn()
    with boundary.forked(2**62 + 1, cpu):
        assert drawn() == first
    with boundary.forked(2**62 + 2, cpu):
        assert not set(drawn()) & set(first)
    with pytest.raises(ZeroDivisionError), boundary.forked(3, cpu):
        drawn()
        _ = 1 / 0
    assert drawn() == expected


def test_draws_of_fit_and_prepare_depend_on_the_cycle_alone(digits: LoadedData) -> None:
    def noted(half: Any, hook: str, result: Any) -> list[list[float]]:
        seen: list[list[float]] = []
        real = getattr(half, hook)

        def draw(cycle: Any) -> Any:
            seen.append(drawn())
            return real(cycle)

        setattr(half, hook, draw)
        return seen

    found = []
    for disturbed in (False, True):
        learner = ActiveLearner(make_trial("cross_entropy", "entropy"), digits)
        fitted, prepared = noted(learner.training, "fit", 0.0), noted(learner.acquisition, "prepare", {})
        for number in range(2):
            cycle = learner.open_cycle(number)
            if disturbed:
                drawn()
            learner.train(cycle)
            learner.label(learner.select(cycle).indices)
        found.append([*fitted, *prepared])
    assert found[0] == found[1] and len({tuple(values) for values in found[0]}) == 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(5, 7).T,
        torch.randn(6, dtype=torch.float64),
        torch.randn(6).bfloat16(),
        torch.randn(6, dtype=torch.complex64),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), 0.0]),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_a_checksum_changes_with_one_entry(tensor: torch.Tensor) -> None:
    before = boundary.checksum(tensor)
    assert torch.equal(boundary.checksum(tensor.clone()), before)
    other = tensor.clone()
    other[(0,) * tensor.ndim] = other[(0,) * tensor.ndim].logical_not() if tensor.dtype == torch.bool else 17
    assert not torch.equal(boundary.checksum(other), before)
    assert boundary.checksum(torch.zeros(0)) == 0


def test_a_change_of_the_trainings_module_is_a_fault(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial("ll4al", "random"), digits)

    def select(columns: Any, labelled: Any, budget: int, generator: Any) -> torch.Tensor:
        next(learner.training.module.parameters()).data.neg_()
        return torch.arange(budget)

    learner.acquisition.select = select  # type: ignore[method-assign]
    with pytest.raises(
        PluginFault, match=r"select must leave .*; it changes stages\.0\.weight of the training's module 1"
    ):
        learner.select(cycle)


def test_scoring_waits_for_the_device_a_fixed_number_of_times(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would synchronise with a GPU is called as often for ten batches as for three."""
    counts = []
    for size in (50, 15):
        learner, cycle = trained(make_trial("cross_entropy", "entropy", inference_batch_size=size), digits)
        calls: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "__bool__", "nonzero", "__int__", "__float__"):
                real = getattr(torch.Tensor, name)

                def counted(
                    self: torch.Tensor, *rest: Any, name: str = name, real: Any = real, calls: list[str] = calls
                ) -> Any:
                    calls.append(name)
                    return real(self, *rest)

                patch.setattr(torch.Tensor, name, counted)
            learner.select(cycle)
        counts.append(calls)
    assert counts[0] == counts[1] and len(counts[0]) < 10


def test_a_full_memory_of_the_host_is_a_sentence_wherever_it_is_met(tmp_path: Path) -> None:
    try:
        torch.empty(10**13)  # no system gives 40 TB
    except RuntimeError as error:
        said = executor.failed(error, tmp_path / "x.log")
    assert said.startswith("this machine's memory is full (40000.0 GB more were needed), at test_boundary.py:")
    assert "; use smaller batches or a smaller network, or on Ray run fewer trials at once" in said
    assert "DefaultCPUAllocator" in (tmp_path / "x.log").read_text()

"""Trackers: what each has is read back by its own reader, and one that fails, hangs or is slow costs no cycle."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from conftest import a_record

from harness import tracking
from harness.errors import UserError
from harness.results.manifest import Manifest, SuiteEntry, TrialEntry
from harness.results.records import PHASES
from harness.results.store import RunStore
from harness.run import main
from harness.settings import Where
from harness.tracking import __main__ as process
from harness.tracking import trackers
from harness.tracking.tracker import Trial, values

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"one": "Ran/dom", "two": '=DAST, "AL"'}
"""Id of a trial -> its method."""


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"pip install {' '.join(missing)}")


def a_run(folder: Path, cycles: int = 3) -> RunStore:
    """Write a run of two trials, of which no cycle is finished."""
    folder.mkdir(exist_ok=True)
    suite = SuiteEntry(
        name="s",
        title="S",
        dataset="d",
        model="m",
        recipe="",
        methods=[*METHODS.values()],
        halves={name: {"training": {"name": "t"}, "acquisition": {"name": "a", "k": 3}} for name in METHODS.values()},
        settings={"recipe": {"epochs": 2}},
        seeds=[0],
        labelled=[10 * (1 + cycle) for cycle in range(cycles)],
        trials={id_: TrialEntry(method=method, seed=0) for id_, method in METHODS.items()},
    )
    (folder / "run.json").write_bytes(Manifest(schema_version=3, name="demo", suites=[suite]).packed())
    return RunStore(folder)


def finish(store: RunStore, id_: str, cycle: int) -> None:
    """Store a cycle of a trial."""
    record = a_record(trial=id_, cycle=cycle, labelled=10 * (1 + cycle), metrics={"accuracy": (10 + cycle) / 100})
    store.trial(id_).commit(record, "")


OWN_PROCESS = ("trackio", "wandb")
"""Trackers whose libraries keep states."""


def send(folder: Path, tracker: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Run the command that sends what a tracker lacks; return its last line."""
    if tracker not in OWN_PROCESS:
        assert process.main([str(folder), tracker]) == 0
        return capfd.readouterr().out.splitlines()[-1]
    sent = subprocess.run(
        [sys.executable, "-m", "harness.tracking", str(folder), tracker],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        timeout=120,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.splitlines()[-1]


def test_two_processes_never_send_to_one_tracker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = a_run(tmp_path / "run")
    finish(store, next(iter(METHODS)), 0)
    with process._alone(store.folder, "csv", wait=True):
        with pytest.raises(UserError, match="its cycles are being sent to csv, as by its run; wait"):
            process.main([str(store.folder), "csv"])
        command = [sys.executable, "-m", "harness.tracking", str(store.folder), "csv", "--follow"]
        waits = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(3)
        assert not (store.folder / "track" / "csv.json").exists()
    assert waits.wait(60) == 0 and json.loads((store.folder / "track" / "csv.json").read_text())
    assert send(store.folder, "csv", capfd) == "csv has 1 cycles"


EXPECTED = {10: 10.0, 20: 11.0, 30: 12.0}
"""Labelled images -> accuracy in percent."""
NAMES = sorted(f"s / {method} / seed 0" for method in METHODS.values())


# ------------------------------------------------------------------------------------------------ each tracker's reader


def read_csv(folder: Path) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    with (folder / "track.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"s / {row['method'].removeprefix(chr(39))} / seed {row['seed']}"
            found.setdefault(name, {}).setdefault(int(row["labelled"]), []).append(float(row["accuracy_percent"]))
            assert float(row["seconds/train"]) == 0.1 and row["miou_percent"] == ""
    return found


def read_tensorboard(folder: Path) -> dict[str, dict[int, list[float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, list[float]]] = {}
    paths = {"Ran_dom": "Ran/dom", "_DAST_ _AL_": METHODS["two"]}
    for path in (folder / "track" / "tensorboard").glob("*/*/*"):
        events = EventAccumulator(str(path))
        events.Reload()
        steps = found.setdefault(f"{path.parts[-3]} / {paths[path.parts[-2]]} / {path.parts[-1]}", {})
        for scalar in events.Scalars("accuracy_percent"):
            steps.setdefault(scalar.step, []).append(pytest.approx(scalar.value))
        assert "recipe.epochs" in str(events.Tensors("config/text_summary")[0])
        assert {f"seconds/{phase}" for phase in PHASES} <= {*events.Tags()["scalars"]}
    return found


def read_mlflow(folder: Path) -> dict[str, dict[int, list[float]]]:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient((folder / "track" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        steps = found.setdefault(run.info.run_name, dict[int, list[float]]())
        for metric in client.get_metric_history(run.info.run_id, "accuracy_percent"):
            steps.setdefault(metric.step, []).append(metric.value)
        assert run.data.params["recipe.epochs"] == "2" and run.data.params["acquisition.k"] == "3"
        assert run.data.tags["method"] in METHODS.values() and run.data.tags["seed"] == "0"
        assert run.info.status == ("FINISHED" if len(steps) == 3 else "FAILED")
    return found


def read_trackio(folder: Path) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    with sqlite3.connect(folder / "track" / "trackio" / "demo.db") as database:
        for name, step, metrics in database.execute("SELECT run_name, step, metrics FROM metrics"):
            found.setdefault(name, {}).setdefault(step, []).append(json.loads(metrics)["accuracy_percent"])
        configs = [json.loads(text) for (text,) in database.execute("SELECT config FROM configs")]
    assert {config["_Group"] for config in configs} == {*METHODS.values()}
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of W&B's file: 7 bytes, then LevelDB's log of blocks (checksum, length, kind, data)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, block = path.read_bytes(), 7, b"", 2**15
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block that holds no head
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def read_wandb(folder: Path) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted((folder / "track" / "wandb").glob("offline-run-*/*.wandb")):
        name = ""
        for record in wandb_records(path):
            if record.HasField("run") and record.run.display_name:
                name = record.run.display_name
                assert record.run.run_group in METHODS.values() and record.run.project == "demo"
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found.setdefault(name, {}).setdefault(record.history.step.num, []).append(items["accuracy_percent"])
    return found


READERS: dict[str, Callable[[Path], dict[str, dict[int, list[float]]]]] = {
    "csv": read_csv,
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("csv"),
        pytest.param("mlflow", marks=needs("mlflow")),
        pytest.param("tensorboard", marks=needs("tensorboardX", "tensorboard")),
        pytest.param("trackio", marks=[needs("trackio"), pytest.mark.long]),
        pytest.param("wandb", marks=[needs("wandb"), pytest.mark.long]),
    ],
)
def test_its_own_reader_finds_every_cycle_once_also_of_a_run_in_two_parts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    store = a_run(folder)
    for id_ in METHODS:
        finish(store, id_, 0)
    finish(store, "one", 1)
    assert send(folder, name, capfd) == f"{name} has 3 cycles"
    first = READERS[name](folder)
    assert sorted(first) == NAMES and sum(map(len, first.values())) == 3
    for id_, cycle in (("one", 2), ("two", 1), ("two", 2)):
        finish(store, id_, cycle)
    for _ in range(2):  # the second time, nothing is left to send
        assert send(folder, name, capfd) == f"{name} has 6 cycles"
    assert READERS[name](folder) == {trial: {k: [v] for k, v in EXPECTED.items()} for trial in NAMES}


@needs("tensorboardX")
def test_a_stored_key_leads_to_no_folder_outside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(a_run(folder), "one", 0)
    (folder / "track").mkdir()
    state = {"one": {"key": "../../../evil", "cycles": 0, "ended": False}}
    (folder / "track" / "tensorboard.json").write_text(json.dumps(state))
    assert process.main([str(folder), "tensorboard"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len([*(folder / "track" / "tensorboard" / "s").rglob("events*")]) == 1


def test_every_tracker_has_a_file_a_setting_and_a_reader() -> None:
    files = {path.stem for path in (ROOT / "harness" / "tracking").glob("*.py") if "class Tracker:" in path.read_text()}
    (literal,) = get_args(Where.model_fields["track"].annotation)
    assert files == {*tracking.PACKAGES} == {*get_args(literal)} == {*READERS}


# ------------------------------------------------------------------------------------------------------- one that fails


class Fake:
    """A tracker that fails at some calls, and remembers all others."""

    def __init__(self, fails: set[int] | None = None) -> None:
        self.calls, self.fails = 0, fails or set()
        self.has: list[tuple[str, int, float]] = []
        self.ended: list[tuple[str, bool]] = []

    def _called(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.fails:
            raise ConnectionError("http://me:secret@host/x: refused\nmore")

    def begin(self, trial: Trial, key: str) -> str:
        self._called()
        return key or f"key of {trial.id}"

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        self._called()
        self.has.append((key, step, values["accuracy_percent"]))

    def end(self, key: str, finished: bool) -> None:
        self._called()
        self.ended.append((key, finished))


def sender(folder: Path, fake: Fake) -> process.Sender:
    manifest = Manifest.read(folder)
    return process.Sender(folder, "fake", fake, process.trials(manifest))  # type: ignore[arg-type]


@pytest.mark.parametrize("call", range(5))
def test_a_failure_of_any_call_is_said_once_without_passwords_and_no_cycle_is_lost(call: int, tmp_path: Path) -> None:
    store = a_run(tmp_path, cycles=3)
    finish(store, "one", 0)
    finish(store, "one", 1)
    fake, said = Fake({call, call + 1}), list[str]()

    def looks() -> Iterator[list[tuple[str, str]]]:
        yield []
        finish(store, "one", 2)
        yield [("cycle", "one"), ("nonsense", "nobody")]
        yield []
        yield []
        yield []

    assert process.follow(sender(tmp_path, fake), looks(), said.append)
    assert fake.has == [("key of one", labelled, pytest.approx(value)) for labelled, value in EXPECTED.items()]
    assert fake.ended == [("key of one", True)]
    assert [line for line in said if line] == ["ConnectionError: http://***@host/x: refused more"]


def a_trial(**changes: Any) -> Trial:
    return Trial(**{"id": "one", "suite": "s", "method": "Ran", "seed": 0, "cycles": 3, "config": {"x": 1}, **changes})


class Flaky:
    """A run or a file of a tracker that can be closed only the second time."""

    def __init__(self, **_: Any) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        if self.closed == 1:
            raise OSError("full")

    def finish(self) -> None:
        self.close()


@pytest.mark.parametrize("name", [pytest.param("tensorboard", marks=needs("tensorboardX")), "trackio"])
def test_an_end_that_fails_is_tried_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=Flaky))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    tracker = importlib.import_module(f"harness.tracking.{name}").Tracker("p", tmp_path)
    key = tracker.begin(a_trial(), "")
    opened = tracker.runs if name == "trackio" else tracker.writers
    opened[key] = flaky = Flaky()
    with pytest.raises(OSError, match="full"):
        tracker.end(key, True)
    tracker.end(key, True)
    assert flaky.closed == 2 and not opened


class Client:
    """MLflow's client, with a server that refuses the first parameters."""

    def __init__(self, uri: str) -> None:
        self.runs: list[str] = []
        self.batches = 0

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, experiment: str, **_: Any) -> Any:
        self.runs.append(f"run {len(self.runs)}")
        return SimpleNamespace(info=SimpleNamespace(run_id=self.runs[-1]))

    def log_batch(self, run: str, **_: Any) -> None:
        self.batches += 1
        if self.batches == 1:
            raise ConnectionError("refused")


@needs("mlflow")
def test_a_begin_that_fails_makes_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("harness.tracking.mlflow")
    monkeypatch.setattr(module, "MlflowClient", Client)
    tracker = module.Tracker("p", tmp_path)
    with pytest.raises(ConnectionError):
        tracker.begin(a_trial(), "")
    assert tracker.begin(a_trial(), "") == "run 0"
    assert tracker.begin(a_trial(id="two"), "") == "run 1"
    assert tracker.client.runs == ["run 0", "run 1"]


def test_a_process_that_dies_after_a_begin_begins_no_second_run(tmp_path: Path) -> None:
    store = a_run(tmp_path)
    finish(store, "one", 0)
    with pytest.raises(ConnectionError):
        sender(tmp_path, Fake({1})).send("one", False)
    assert json.loads((tmp_path / "track" / "fake.json").read_text())["one"] == {
        "key": "key of one",
        "cycles": 0,
        "ended": False,
    }


def test_a_spreadsheet_computes_no_text(tmp_path: Path) -> None:
    tracker = importlib.import_module("harness.tracking.csv").Tracker("p", tmp_path / "track")
    names = ["=1", "+1", "-1", "@1", *(f"{c}1" for c in "\uff1d\uff0b\uff0d\uff20"), "\t=1", "\r=1"]
    for name in names:
        tracker.begin(a_trial(id=name, method=name), "")
        tracker.log(name, 1, {})
    with (tmp_path / "track.csv").open(newline="") as file:
        cells = [row["method"] for row in csv.DictReader(file)]
    assert len(cells) == len(names) and all(cell[0] in "'\\" for cell in cells), cells


def test_a_trial_that_failed_is_ended_and_goes_on_in_the_next_run(tmp_path: Path) -> None:
    store = a_run(tmp_path)
    finish(store, "one", 0)
    first = Fake()
    assert process.follow(sender(tmp_path, first), iter([[("failed", "one")], []]), str)
    assert first.ended == [("key of one", False)]
    finish(store, "one", 1)
    finish(store, "one", 2)
    second = Fake()
    assert process.follow(sender(tmp_path, second), iter([[]]), str)
    assert [step for _, step, _ in second.has] == [20, 30] and second.ended == [("key of one", True)]


def test_a_damaged_memory_of_what_was_sent_sends_it_again(tmp_path: Path) -> None:
    store = a_run(tmp_path)
    finish(store, "one", 0)
    for text in ("", "[]", '{"one": 3}', '{"one": {"key": "k"}}', "null"):
        (tmp_path / "track").mkdir(exist_ok=True)
        (tmp_path / "track" / "fake.json").write_text(text)
        fake = Fake()
        assert process.follow(sender(tmp_path, fake), iter(()), str)
        assert fake.has == [("key of one", 10, 10.0)]


def test_values_have_units_and_no_gaps() -> None:
    found = values(a_record(metrics={"miou": 0.25}, peak_memory_bytes={"host": 2**31}, final_loss=None))
    assert (found["miou_percent"], found["memory_gib/host"], found["seconds/wall"]) == (25.0, 2.0, 0.7)
    assert found["seconds/cost"] == pytest.approx(0.4) and "final_loss" not in found


# -------------------------------------------------------------------------------------------- in a run, a broken server

FAKE_WANDB = """
import os, pathlib, socket, time
mode, seen = os.environ["FAKE_WANDB"], pathlib.Path(os.environ["FAKE_WANDB_FILE"])
class Settings:
    def __init__(self, **settings): pass
class Run:
    def log(self, values, step):
        with seen.open("a") as file: print(step, values["labelled"], file=file)
    def finish(self, exit_code): pass
def init(**keys):
    if mode == "hangs":
        time.sleep(1000)
    if mode == "dies":
        os._exit(3)
    if mode == "refuses":
        socket.create_connection(("127.0.0.1", 9), 1)
    if mode == "chatters":
        print("x" * 10**6, flush=True)
    return Run()
"""

CONFIG = {
    "dataset": {"name": "digits", "limit": 300, "test_limit": 100},
    "model": {"name": "resnet_small", "width": 4},
    "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 1},
    "protocol": {"initial": 40, "budget": 10, "cycles": 3, "candidates": 150, "start": "warm"},
    "methods": {"Ran": "random"},
    "seeds": [0],
    "where": {"trials": "in_process", "device": "cpu"},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, and a package wandb that is ours."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "packages"), str(ROOT))))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("FAKE_WANDB_FILE", str(tmp_path / "seen"))
    monkeypatch.setattr(trackers, "FLUSH", 60.0)  # the machine may be busy
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def outcomes(folder: Path) -> list[Any]:
    """Return what must come out the same."""
    store = RunStore(folder)
    ids = sorted(path.name for path in (folder / "trials").iterdir())
    return [record.outcome() for id_ in ids for record in store.trial(id_).records()]


WORDS = {
    "works": "",
    "refuses": "ConnectionRefusedError: [Errno 111] Connection refused",
    "hangs": tracking.LATE,
    "dies": "its process ended with exit code 3; see ",
}


@pytest.mark.long
def test_a_tracker_that_fails_costs_no_cycle(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    assert main([str(config), f"where.output={plain}"]) == 0
    for mode, word in WORDS.items():
        monkeypatch.setenv("FAKE_WANDB", mode)
        monkeypatch.setattr(trackers, "FLUSH", 1.0 if mode == "hangs" else 60.0)
        folder = tmp_path / mode
        assert main([str(config), f"where.output={folder}", "where.track=wandb"]) == 0
        out = capsys.readouterr().out
        assert outcomes(folder) == outcomes(plain) and len(outcomes(folder)) == 3
        lines = [line.partition(" ")[2] for line in out.splitlines() if "where.track: " in line]
        if word:
            assert lines[0].startswith(f"where.track: wandb lacks cycles ({word}"), out
            assert lines[1:] == [f"where.track: `python -m harness.tracking {folder} wandb` sends what it lacks"]
        else:
            assert lines == []
    seen = tmp_path / "seen"
    assert seen.read_text().split()[::2] == ["40", "50", "60"], "of the one that works"
    monkeypatch.setenv("FAKE_WANDB", "chatters")
    assert main([str(config), f"where.output={tmp_path / 'hangs'}", "where.track=[csv, wandb]", "--resume"]) == 0
    assert "lacks" not in capsys.readouterr().out
    assert seen.read_text().split()[::2] == 2 * ["40", "50", "60"], "a run that is continued sends what was lacking"
    assert len((tmp_path / "hangs" / "track.csv").read_text().splitlines()) == 4


@pytest.mark.long
def test_no_secret_of_a_tracker_is_written(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t-key@127.0.0.1:9")
    monkeypatch.setenv("FAKE_WANDB", "works")
    names = ["csv", "wandb", *(["mlflow"] if importlib.util.find_spec("mlflow") else [])]
    folder = tmp_path / "out"
    assert main([str(config), f"where.output={folder}", f"where.track=[{','.join(names)}]"]) == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"s3cr3t-key" in path.read_bytes()]


def test_a_missing_package_and_an_unknown_name_are_refused_before_any_work(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PACKAGES", {**tracking.PACKAGES, "mlflow": ("no_such_package", "mlflow-skinny")})
    words = {
        "mlflow": "where.track: mlflow needs the package no_such_package: pip install mlflow-skinny",
        "[csv, tensorbord]": "did you mean 'tensorboard'? allowed: csv, mlflow, tensorboard, trackio, wandb",
        "[csv, csv]": "must differ, got ['csv', 'csv']",
        "3": "must be a list, such as [0, 1, 2], got 3",
    }
    for written, word in words.items():
        assert main([str(config), f"where.track={written}", f"where.output={tmp_path / 'out'}"]) == 2
        _, err = capsys.readouterr()
        assert err.startswith("error: ") and err.rstrip().endswith(word) and err.count("\n") == 1, err
        assert not (tmp_path / "out").exists()


SERVERS = {
    "mlflow": {"MLFLOW_TRACKING_URI": "http://{}"},
    "trackio": {"TRACKIO_SERVER_URL": "http://{}/?write_token=a"},
    "wandb": {"WANDB_BASE_URL": "http://{}", "WANDB_API_KEY": 40 * "a", "WANDB_MODE": "online"},
}
"""Tracker -> the variables that name its server."""


@pytest.mark.long
@pytest.mark.parametrize("answers", [True, False], ids=["accepts and never answers", "refuses"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in SERVERS])
def test_a_broken_server_costs_no_cycle_and_at_most_the_limit(
    name: str, answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for variable, value in SERVERS[name].items():
            monkeypatch.setenv(variable, value.format(f"127.0.0.1:{server.getsockname()[1]}"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
        if not answers:
            server.close()
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(CONFIG))
        assert main([str(path), f"where.output={tmp_path / 'plain'}"]) == 0
        capsys.readouterr()
        leaving = []
        leave = trackers.Trackers.__exit__

        def timed(self: Any, *error: object) -> None:
            began = time.monotonic()
            leave(self, *error)
            leaving.append(time.monotonic() - began)

        monkeypatch.setattr(trackers.Trackers, "__exit__", timed)
        assert main([str(path), f"where.output={tmp_path / 'out'}", f"where.track={name}"]) == 0
    assert outcomes(tmp_path / "out") == outcomes(tmp_path / "plain")
    assert leaving[0] < tracking.FLUSH + 3
    out = capsys.readouterr().out
    assert out.count(f"where.track: {name} lacks cycles (") == 1, out


@pytest.mark.long
@needs("tensorboardX")
def test_trackers_that_can_not_write_cost_no_cycle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These two have no server: something stands in the place of their files."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    plain, folder = tmp_path / "plain", tmp_path / "out"
    assert main([str(tmp_path / "c.yaml"), f"where.output={plain}"]) == 0
    (folder / "track").mkdir(parents=True)
    (folder / "track" / "tensorboard").write_text("")
    (folder / "track.csv").symlink_to(tmp_path / "no folder" / "track.csv")
    capsys.readouterr()
    assert main([str(tmp_path / "c.yaml"), f"where.output={folder}", "where.track=[csv, tensorboard]"]) == 0
    assert outcomes(folder) == outcomes(plain) and len(outcomes(folder)) == 3
    out = capsys.readouterr().out
    for name in ("csv", "tensorboard"):
        assert out.count(f"where.track: {name} lacks cycles (") == 1, out
        assert f"`python -m harness.tracking {folder} {name}` sends what it lacks" in out


@pytest.mark.long
@pytest.mark.ray
def test_on_ray_the_driver_sends_every_cycle_once_also_of_a_run_that_is_continued(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "where": {"device": "cpu", "dashboard": False}}))
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "harness.run", "c.yaml", f"where.output={folder}", "where.track=csv"]
    for more in ("protocol.cycles=2", "--resume"):
        run = subprocess.run(
            [*command, more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    with (folder / "track.csv").open(newline="") as file:
        rows = sorted((row["method"], int(row["labelled"])) for row in csv.DictReader(file))
    assert rows == [("Ran", labelled) for labelled in (40, 50, 60)]


@pytest.mark.long
def test_its_process_ends_with_the_run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with one that is killed: the pipe closes."""
    a_run(tmp_path / "run")
    monkeypatch.setenv("FAKE_WANDB", "works")
    code = (
        "import sys, time, pathlib; from harness.tracking.trackers import Trackers\n"
        f"t = Trackers(['wandb'], pathlib.Path({str(tmp_path / 'run')!r})); t.start(print)\n"
        "print(t.processes[0].process.pid, flush=True); time.sleep(100)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    os.kill(pid, 0)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_the_names_of_missing_packages_are_those_of_pip() -> None:
    extras = (ROOT / "pyproject.toml").read_text().split("track = [")[1].split("]")[0]
    for _, install in tracking.PACKAGES.values():
        assert all(f'"{package}' in extras for package in install.split())
    with pytest.raises(UserError, match=r"^where.track: x needs the package y: pip install z$"):
        tracking.PACKAGES["x"] = ("y", "z")
        try:
            tracking.check(["csv", "x"])
        finally:
            del tracking.PACKAGES["x"]

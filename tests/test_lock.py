"""One writer for a results folder, shown with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_trial, run
from test_store import record, weights

from harness import run as command
from harness.data.dataset import LoadedData
from harness.errors import UserError
from harness.results import lock
from harness.results.store import RunStore

HOLD = """
import sys, time
from pathlib import Path
from harness.results import lock
with lock.taken(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

RACE = """
import sys, time
from pathlib import Path
from harness.errors import UserError
from harness.results import lock
folder, at = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < at:
    pass
try:
    with lock.taken(folder):
        print("held")
        time.sleep(1.5)
except UserError as error:
    print(error)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Return a process that holds the lock of a folder."""
    process = start(HOLD, folder)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_lock_is_released_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with lock.taken(tmp_path) as token:
        lock.check(tmp_path, token)
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), lock.taken(tmp_path):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_with_the_first_ones_host_process_and_start(tmp_path: Path) -> None:
    first = holder(tmp_path)
    before = (tmp_path / "lock.json").read_bytes()
    since = json.loads(before)["since"]
    named = f"process {first.pid} on {lock.socket.gethostname()}, started {since}"
    message = f"being written by another run, {named}; wait .* add --force$"
    with pytest.raises(UserError, match=message), lock.taken(tmp_path):
        raise AssertionError
    assert (tmp_path / "lock.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    end(first)
    with lock.taken(tmp_path):  # its process is dead
        assert json.loads((tmp_path / "lock.json").read_bytes())["process"] == os.getpid()


def test_force_takes_the_lock_and_the_first_writer_notices(tmp_path: Path, capsys: Any) -> None:
    with lock.taken(tmp_path) as first:
        store = RunStore(tmp_path, {}, first).trial("trial")
        store.commit(record(0), store.save_state(0, weights(0)))
        with lock.taken(tmp_path, force=True) as second:
            assert "removed the lock of process" in capsys.readouterr().out
            lock.check(tmp_path, second)
            with pytest.raises(UserError, match=r"taken over by process \d+ on .*; this run writes no more cycles"):
                store.save_state(1, weights(1))
            with pytest.raises(UserError, match="taken over"):
                store.commit(record(1), "state")
            assert len(store.records()) == 1 and not list(store.folder.glob("*_001*"))
    with pytest.raises(UserError, match="its lock is gone"):
        lock.check(tmp_path, first)


def write(folder: Path, age: float = 0.0, **changes: Any) -> None:
    """Write the lock of this process, changed, last touched ``age`` seconds ago."""
    (folder / "lock.json").unlink(missing_ok=True)
    with lock.taken(folder):
        own = json.loads((folder / "lock.json").read_bytes())
    (folder / "lock.json").write_text(json.dumps({**own, **changes}))
    os.utime(folder / "lock.json", (time.time() - age,) * 2)


def is_taken(folder: Path) -> bool:
    try:
        with lock.taken(folder):
            return False
    except UserError as error:
        assert "is being written by another run" in str(error)
        return True


def test_a_lock_of_this_machine_is_stale_when_its_process_is(tmp_path: Path) -> None:
    write(tmp_path, age=10 * lock.STALE)
    assert is_taken(tmp_path), "the process lives, however long ago it touched the lock"
    write(tmp_path, born="1")
    assert not is_taken(tmp_path), "another process has the number of the dead one"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(tmp_path, process=gone.pid)
    assert not is_taken(tmp_path)


@pytest.mark.parametrize("machine", ["another host", "the same host after a restart", "another container"])
def test_a_lock_of_another_machine_is_stale_by_its_age(tmp_path: Path, machine: str) -> None:
    write(tmp_path, machine=machine, age=lock.STALE - 60)
    assert is_taken(tmp_path)
    write(tmp_path, machine=machine, age=lock.STALE + 60)
    assert not is_taken(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b'{"process": "7"}'])
def test_a_damaged_lock_is_stale_by_its_age(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(content)
    assert is_taken(tmp_path)
    os.utime(tmp_path / "lock.json", (time.time() - lock.STALE - 60,) * 2)
    assert not is_taken(tmp_path)


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with lock.taken(tmp_path):
        os.utime(tmp_path / "lock.json", (1, 1))
        deadline = time.time() + 10
        while (tmp_path / "lock.json").stat().st_mtime == 1:
            assert time.time() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_starters_exactly_one_holds_the_lock(tmp_path: Path, stale: bool) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        if stale:
            write(folder, born="1")
        at = time.time() + 2.5
        processes = [start(RACE, folder, at) for _ in range(8)]
        said = [process.communicate()[0] for process in processes]
        assert sum("held\n" in text for text in said) == 1, said
        assert sum("is being written by another run" in text for text in said) == 7
        assert not list(folder.iterdir())


def test_a_folder_with_the_name_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "lock.json").mkdir()
    with pytest.raises(UserError, match=r"lock.json is a folder"), lock.taken(tmp_path):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def test_a_full_or_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    message = r"lock.json: the lock of the results folder can't be written: No such file"
    with pytest.raises(UserError, match=message), lock.taken(tmp_path / "gone"):
        raise AssertionError


# ------------------------------------------------------------------------------------------------------------- runs

CONFIG = {
    "dataset": {"name": "digits", "limit": 120, "test_limit": 40},
    "model": {"name": "resnet_small", "width": 2},
    "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 1},
    "protocol": {"initial": 20, "budget": 10, "cycles": 2, "start": "warm"},
    "methods": {"Ran": "random"},
    "seeds": [0],
}


def config(tmp_path: Path, **keys: Any) -> list[str]:
    where = {"trials": "in_process", "output": str(tmp_path / "run")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, **keys, "where": where}))
    return [str(tmp_path / "c.yaml")]


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(config(tmp_path)) == 0
    first = holder(tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command.main([*config(tmp_path, seeds=[0, 1]), "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"process {first.pid} on " in error
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert command.main([*config(tmp_path, seeds=[0, 1]), "--resume", "--force"]) == 0
    end(first)
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_run_that_lost_its_folder_stops_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.experiment import executor

    real = executor.run_trial

    def robbed(*arguments: Any) -> None:
        with lock.taken(tmp_path / "run", force=True):
            real(*arguments)

    monkeypatch.setattr(executor, "run_trial", robbed)
    assert command.main(config(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "it was taken over by process" in error and "Not finished: 1 trial" in error
    assert not list((tmp_path / "run").rglob("cycle_*"))


def test_a_stopped_run_leaves_no_lock(tmp_path: Path) -> None:
    script = "import sys; from harness.run import main; sys.exit(main(sys.argv[1:]))"
    words = config(tmp_path, recipe={**CONFIG["recipe"], "epochs": 400}, protocol={**CONFIG["protocol"], "cycles": 9})
    process = start(script, *words)
    assert process.stdout is not None
    while "cycle 1/9" not in (line := process.stdout.readline()):
        assert line or process.poll() is None
    assert (tmp_path / "run" / "lock.json").exists()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_trial_without_a_lock_is_written(tmp_path: Path, digits: LoadedData) -> None:
    assert len(run(make_trial(), digits, tmp_path)) == 3, "as from a notebook"

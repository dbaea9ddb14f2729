"""One run at a time writes into a results folder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_store import record, weights

from harness.errors import UserError
from harness.report.write import write as write_report
from harness.results import lock
from harness.results.lock import LockLost
from harness.results.store import TrialStore, write_atomically
from harness.run import main

ROOT = Path(__file__).resolve().parent.parent

CONFIG = """
dataset: digits
model: {name: resnet_small, width: 4}
recipe: {epochs: 2, batch_size: 16, learning_rate: 0.05, crop_padding: 1}
protocol: {initial: 40, budget: 20, cycles: 8, candidates: 100, start: warm}
methods: {Ran: random, LC: least_confidence}
seeds: [0]
where: {trials: in_process}
"""


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """A test that fails in the middle leaves no lock to the next one."""
    yield
    lock.work_under(None)


def command(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out, err


def wait_for_cycles(process: subprocess.Popen[str], folder: Path, count: int = 1) -> None:
    deadline = time.time() + 100
    while len(list(folder.glob("trials/*/cycle_*.json"))) < count:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.05)


def locks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*lock*"))


@pytest.fixture
def config(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return str(path), f"where.output={tmp_path / 'run'}"


def holder(folder: Path) -> dict[str, Any]:
    """Hold the folder once, and return what its lock says; nothing is left in the folder."""
    with lock.held(folder):
        content: dict[str, Any] = json.loads((folder / "lock.1").read_text())
    assert locks(folder) == []
    return content


def leave(folder: Path, age: float = 0.0, **changes: Any) -> Path:
    """Leave a lock behind, as a process with these values would, that was renewed ``age`` seconds ago."""
    path, content = folder / "lock.1", holder(folder)
    path.write_text(json.dumps({**content, "token": "of another run", **changes}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def refusal(folder: Path) -> str:
    """Return why the folder can't be taken; what is there stays as it was."""
    before = locks(folder)
    with pytest.raises(UserError) as error, lock.held(folder):
        pass
    assert locks(folder) == before and "\n" not in str(error.value)
    return str(error.value)


def test_the_command_refuses_a_folder_in_use_before_anything_starts(
    config: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    leave(folder)
    for options in ([], ["--resume"]):
        assert main([*config, *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: where.output: {folder} is in use by process {os.getpid()} on ")
    assert [path.name for path in folder.iterdir()] == ["lock.1"]


@pytest.mark.long
@pytest.mark.parametrize("trials", ["in_process", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_second_run_is_refused_and_a_forced_one_takes_the_folder(
    trials: str, config: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = command("harness.run", *config, f"where.trials={trials}", "protocol.cycles=30")
    wait_for_cycles(first, folder)
    content = json.loads((folder / "lock.1").read_text())
    assert content["pid"] == first.pid
    for options in ([], ["--resume"]):
        out, err = ended(command("harness.run", *config, *options), 2)
        assert out == "" and err == (
            f"error: where.output: {folder} is in use by process {first.pid} on {content['host']}, started "
            f"{content['started']}; wait for its end, set another where.output, or take the folder over with --force\n"
        )
    out, err = ended(command("harness.run", *config, "--force"), 2)  # nothing is taken for a run that does not start
    assert "already holds results; add --resume" in err and first.poll() is None
    second = command("harness.run", *config, "--resume", "--force")  # in one process, and fewer cycles
    out, err = ended(first, 1)
    assert err.startswith(f"stopped: {folder} was taken over by process {second.pid} on ")
    assert err.count("\n") == 1 and "finished cycles are kept" in err
    ended(second, 0)
    assert locks(folder) == []
    assert len(list(folder.glob("trials/*/cycle_*.json"))) >= 16


@pytest.mark.long
def test_two_hosts_that_share_a_folder(config: tuple[str, ...], tmp_path: Path) -> None:
    """Each with its own name and ids of processes. The disk is one: no caches of a network file system are tried."""
    if subprocess.run(["unshare", "--uts", "--pid", "--mount", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here, as in most containers")
    folder = tmp_path / "run"

    def on(host: str, *options: str) -> subprocess.Popen[str]:
        apart = ["unshare", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        script = f'hostname {host} && exec "$@"'
        line = [*apart, "sh", "-c", script, "sh", sys.executable, "-m", "harness.run", *config, *options]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    first = on("alpha", "protocol.cycles=30")
    wait_for_cycles(first, folder)
    _, err = ended(on("beta", "--resume"), 2)
    assert f"{folder} is in use by process 1 on alpha, started " in err
    assert "without renewal for 5 minutes it counts as gone" in err
    second = on("beta", "--resume", "--force", "protocol.cycles=30")
    _, err = ended(first, 1)
    assert err.startswith(f"stopped: {folder} was taken over by process 1 on beta") and err.count("\n") == 1
    wait_for_cycles(second, folder, len(list(folder.glob("trials/*/cycle_*.json"))) + 1)
    second.kill()  # and what it has started with it: the whole host dies
    second.communicate()
    (left,) = locks(folder)
    _, err = ended(on("alpha", "--resume"), 2)
    assert f"{folder} is in use by process 1 on beta" in err
    os.utime(folder / left, (time.time() - 301, time.time() - 301))
    out, _ = ended(on("alpha", "--resume"), 0)
    assert f"{folder}: taken over from process 1 on beta" in out and "16 of 16 cycles" in out
    assert locks(folder) == []


@pytest.mark.long
def test_a_report_may_be_written_while_the_run_goes_on(config: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = command("harness.run", *config)
    wait_for_cycles(run, folder, 2)
    reports = 0
    while run.poll() is None:
        assert "accuracy" in write_report(folder)
        reports += 1
    ended(run, 0)
    assert reports and not list(folder.rglob("*.tmp"))
    assert "16 of 16 cycles" in (folder / "report" / "report.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_no_lock(
    number: signal.Signals, config: tuple[str, ...], tmp_path: Path
) -> None:
    run = command("harness.run", *config)
    wait_for_cycles(run, tmp_path / "run")
    run.send_signal(number)
    said = f"stopped by {number.name}; finished cycles are kept, add --resume to continue\n"
    assert ended(run, 128 + number)[1] == said
    assert locks(tmp_path / "run") == []


@pytest.mark.long
def test_a_killed_run_is_resumed_at_once(config: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = command("harness.run", *config)
    wait_for_cycles(run, folder)
    run.kill()
    time.sleep(0.5)  # it stays a zombie until it is waited for
    assert locks(folder) == ["lock.1"]
    ended(command("harness.run", *config, "--resume"), 0)
    run.communicate()
    assert locks(folder) == []


def _compete(folder: Path, rounds: int, barrier: Any, results: Any) -> None:
    """Try to take the folder in every round, at the same time as the others; report how often that succeeded."""
    won = []
    for number in range(rounds):
        target = folder / str(number)
        barrier.wait(60)
        try:
            with lock.held(target):
                won.append(number)
                barrier.wait(60)
        except UserError as error:
            assert "is in use by process " in str(error), error
            barrier.wait(60)
    results.put(won)


@pytest.mark.parametrize("left", [False, True], ids=["free", "left_behind"])
def test_of_eight_that_start_at_once_exactly_one_wins(left: bool, tmp_path: Path) -> None:
    rounds, many = 60, 8
    if left:
        for number in range(rounds):
            leave(tmp_path / str(number), pid=2**31 - 1)
    spawn = multiprocessing.get_context("fork")
    barrier, results = spawn.Barrier(many), spawn.Queue()
    processes = [spawn.Process(target=_compete, args=(tmp_path, rounds, barrier, results)) for _ in range(many)]
    for process in processes:
        process.start()
    won = [number for _ in processes for number in results.get(timeout=100)]
    assert sorted(won) == list(range(rounds))
    for process in processes:
        process.join()
    assert all(locks(tmp_path / str(number)) == [] for number in range(rounds))


def test_a_lock_that_another_run_has_just_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.disk, "exists", lambda path: True)  # as it was a moment ago
    assert not lock._left_behind(tmp_path, 1, False)


def _pass_on(folder: Path, seconds: float, results: Any) -> None:
    """Take and leave the folder as often as possible; report how often, and how often another one was inside."""
    taken = met = 0
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            with lock.held(folder):
                try:
                    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    met += 1
                taken += 1
                time.sleep(0.002)
                (folder / "inside").unlink()
        except UserError:
            pass
    results.put((taken, met))


def test_runs_that_follow_each_other_closely_never_meet(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_pass_on, args=(tmp_path, 3.0, results)) for _ in range(6)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(met for _, met in found) == 0 and sum(taken for taken, _ in found) > 30
    assert locks(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "age", "free"),
    [
        ({}, 10_000, False),  # this very process, stopped for hours
        ({"pid": 2**31 - 1}, 0, True),
        ({"birth": "1"}, 0, True),  # the id of the process is used again
        ({"birth": ""}, 250, False),
        ({"birth": ""}, 350, True),
        ({"machine": "another host"}, 250, False),
        ({"machine": "another host"}, 350, True),
        ({"machine": "another host", "pid": 2**31 - 1}, 0, False),
        ({"machine": ""}, 0, False),
        ({"machine": "another host"}, -350, True),  # the clock of the file system was set back
    ],
)
def test_what_counts_as_left_behind(
    changes: dict[str, Any], age: float, free: bool, tmp_path: Path, capsys: Any
) -> None:
    path = leave(tmp_path, age, **changes)
    if free:
        with lock.held(tmp_path):
            assert locks(tmp_path) == ["lock.2"]
        assert locks(tmp_path) == []
        assert f"{tmp_path}: taken over from process " in capsys.readouterr().out
    else:
        said = refusal(tmp_path)
        named = json.loads(path.read_text())
        assert f"process {named['pid']} on {named['host']}, started {named['started']}" in said
        assert (f"renewed {age} s ago" in said) == bool(changes)


def test_hosts_with_another_time_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, machine="another host")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    assert "renewed 0 s ago" in refusal(tmp_path)


@pytest.mark.parametrize("lost", ["/proc/sys/kernel/random/boot_id", "/proc"])
def test_without_what_only_linux_has(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS there is no /proc: ids of processes decide, and where they can't, the age."""
    known, readlink = Path.read_text, Path.readlink

    def read_text(path: Path, *arguments: Any, **keys: Any) -> str:
        if str(path).startswith(lost):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return known(path, *arguments, **keys)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "readlink", readlink)
    for platform, decides in (("linux", False), ("darwin", True)):
        monkeypatch.setattr(sys, "platform", platform)
        leave(tmp_path, pid=2**31 - 1)
        if decides:
            with lock.held(tmp_path):
                pass
        else:
            assert "in use" in refusal(tmp_path)
            (tmp_path / "lock.1").unlink()
        with lock.held(tmp_path):
            assert "in use" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"host": 3}', "\x00" * 100, '{"pid": -1}'])
def test_a_damaged_lock_holds_until_it_is_old(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STARTING", 0.1)
    path = tmp_path / "lock.7"
    path.write_text(content)
    assert f"in use by a process that {path} does not name (renewed 0 s ago" in refusal(tmp_path)
    os.utime(path, (0, 0))
    with lock.held(tmp_path):
        assert locks(tmp_path) == ["lock.8"]


def test_a_folder_or_a_pipe_instead_of_the_lock(tmp_path: Path) -> None:
    for make in (Path.mkdir, os.mkfifo):
        path = tmp_path / "lock.1"
        make(path)
        assert refusal(tmp_path) == f"{path}: must be a file, the lock of a run; remove it"
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_folder_that_can_not_be_written_to(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = {"open": OSError(errno.EROFS, "Read-only file system"), "write": OSError(errno.ENOSPC, "No space left")}
    remedy = {"open": "mount its disk writable", "write": "free space on its disk"}

    def fail(*_: Any) -> None:
        raise cause[call]

    monkeypatch.setattr(lock.os, call, fail)
    why = f"can't be written to: {cause[call].strerror}; {remedy[call]}, or set where.output=OTHER_FOLDER"
    assert refusal(tmp_path) == f"where.output: {tmp_path} {why}"
    monkeypatch.undo()
    assert holder(tmp_path)["pid"] == os.getpid()


def test_a_refused_run_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    for name, kept in (("mine", False), ("new", False), ("new/deep", False), ("used", True)):
        folder = tmp_path / name
        if name == "mine":
            folder.mkdir()
        with pytest.raises(UserError, match="refused"), lock.held(folder):
            if kept:
                (folder / "ray.log").touch()
            raise UserError("refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "used"]
    with pytest.raises(UserError, match="can't be written to: File name too long"), lock.held(tmp_path / ("a" * 300)):
        pass


def test_an_error_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        _ = 1 / 0
    assert locks(tmp_path) == []


def another_run(folder: Path) -> None:
    """Let another process take the folder over, and go on for a moment."""
    code = "import sys, time; from pathlib import Path; from harness.results import lock\n"
    code += "with lock.held(Path(sys.argv[1]), force=True): print(flush=True), time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()


def remove(folder: Path) -> None:
    (folder / "lock.1").unlink()


@pytest.mark.parametrize("take", [another_run, remove])
def test_nothing_is_written_after_the_folder_was_lost(take: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    store = TrialStore(folder / "trials" / "trial")
    with pytest.raises(LockLost) as error, lock.held(folder):
        write_atomically(folder / "run.json", b"{}")
        store.commit(record(0), store.save_state(0, weights(0)))
        state = store.save_state(1, weights(1))
        take(folder)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        write_atomically(tmp_path / "elsewhere.txt", b"x")
        with pytest.raises(LockLost):
            store.save_state(1, weights(1))
        assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        store.commit(record(1), state)
    assert ("was taken over by process" if take is another_run else "lock.1 is gone") in str(error.value)
    assert len(store.records()) == 1
    write_atomically(folder / "config.yaml", b"x")  # nothing is held any longer


@pytest.mark.parametrize("output", ["run", "link"])
def test_a_lost_folder_is_noticed_where_its_trials_are_on_another_disk(output: str, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    store = TrialStore(tmp_path / output / "trials" / "trial")
    with pytest.raises(LockLost), lock.held(tmp_path / output):
        write_atomically(tmp_path / output / "run.json", b"{}")
        store.save_state(0, weights(0))
        remove(tmp_path / "run")
        store.save_state(1, weights(1))
    assert [path.name for path in (tmp_path / "disk" / "trial").iterdir()] == ["state_000.pt"]


def test_a_worker_of_a_dead_run_writes_nothing_once_another_run_has_the_folder(tmp_path: Path) -> None:
    """As Ray's workers do, it gets the lock of its driver, which is killed; then another run takes the folder."""
    store = TrialStore(tmp_path / "trials" / "trial")
    with lock.held(tmp_path):
        passed_on = lock.held_here()
    assert passed_on is not None
    leave(tmp_path, token=passed_on.token, pid=2**31 - 1)
    lock.work_under(passed_on)
    store.commit(record(0), store.save_state(0, weights(0)))
    another_run(tmp_path)
    with pytest.raises(LockLost, match="was taken over by process"):
        store.save_state(1, weights(1))
    with pytest.raises(LockLost):
        lock.work_under(passed_on)


def test_a_run_that_writes_nothing_notices_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with pytest.raises(LockLost, match="was taken over by process"), lock.held(tmp_path):
        old = (tmp_path / "lock.1").stat().st_mtime_ns
        for _ in range(100):  # a loaded machine may keep the thread that renews it waiting
            time.sleep(0.1)
            if renewed := (tmp_path / "lock.1").stat().st_mtime_ns > old:
                break
        assert renewed, "the lock is renewed"
        another_run(tmp_path)
        time.sleep(20)
    assert locks(tmp_path) == ["lock.2"], "the lock of the other run stays"

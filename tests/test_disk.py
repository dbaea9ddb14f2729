"""What a run says and leaves when its disk refuses: full, quota, read-only, broken, gone."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import pytest
from faulty import Drivers, configs, fresh  # noqa: F401 - fixtures
from test_lock import CONFIG, ROOT
from test_store import record, weights

from harness.errors import StorageError, UserError
from harness.report.__main__ import main as report
from harness.results import disk, lock
from harness.results.manifest import Manifest
from harness.results.store import TrialStore, write_atomically

REASONS = {
    errno.ENOSPC: "No space left on device; free space on its disk; finished cycles are kept",
    errno.EDQUOT: "Disk quota exceeded; remove files of yours or raise your quota; finished cycles are kept",
    errno.EFBIG: "File too large; raise the limit on the size of a file (ulimit -f); finished cycles are kept",
    errno.EROFS: "Read-only file system; mount its disk writable; finished cycles are kept",
    errno.EACCES: "Permission denied; allow this user to read and write there; finished cycles are kept",
    errno.EIO: "Input/output error; check its disk, or the connection to it; finished cycles are kept",
    errno.ESTALE: "Stale file handle; check its disk, or the connection to it; finished cycles are kept",
}


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """Let a call of os fail from now on."""

    def refuse(*arguments: Any, **keys: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize("number", REASONS)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_what_can_not_be_written_is_a_sentence(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        refusing(patch, call, number)
        with pytest.raises(StorageError) as error:
            write_atomically(path, b"new")
    assert str(error.value) == f"{path}: can't be written: {REASONS[number]}, and --resume continues the run"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "no temporary file"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value), "workers send it"


def test_what_can_not_be_read_is_no_missing_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrialStore(tmp_path / "trial")
    store.open({"spec": {}})
    store.commit(record(0), store.save_state(0, weights(0)))
    refusing(monkeypatch, "read", errno.EIO)
    works: dict[str, Callable[[], Any]] = {
        "cycle_000.json": store.records,
        "trial.json": lambda: store.open({"spec": {}}),
    }
    for name, work in works.items():
        with pytest.raises(StorageError, match=f"{name}: can't be read: Input/output error; check its disk"):
            work()
    with pytest.raises(StorageError, match=r"run\.json: can't be read: Input/output error"):
        (tmp_path / "run.json").write_text("{}")
        Manifest.read(tmp_path)


def test_what_can_not_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrialStore(tmp_path)
    for cycle in range(2):
        store.commit(record(cycle), store.save_state(cycle, weights(cycle)))
    state = store.save_state(2, weights(2))
    refusing(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(StorageError, match="can't be removed: Input/output error; check"):
        store.commit(record(2), state)


def test_a_folder_that_a_worker_has_made_again_is_gone(tmp_path: Path) -> None:
    with lock.held(tmp_path / "run"):
        write_atomically(tmp_path / "run" / "run.json", b"{}")
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run" / "ray").mkdir(parents=True)
        with pytest.raises(StorageError, match="if its folder is moved back, --resume continues the run"):
            write_atomically(tmp_path / "run" / "trials" / "x" / "trial.json", b"{}")
        (tmp_path / "run" / "ray").rmdir()
        (tmp_path / "run").rmdir()
        (tmp_path / "moved").rename(tmp_path / "run")
        write_atomically(tmp_path / "run" / "trials" / "x" / "trial.json", b"{}")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with lock.held(tmp_path / "run"):
        write_atomically(tmp_path / "run" / "run.json", b"{}")
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(StorageError) as error:
            write_atomically(tmp_path / "run" / "trials" / "x" / "trial.json", b"{}")
    sentence = (
        "can't be read: No such file or directory; if its folder is moved back, --resume continues the run; "
        "if it is lost, start the run again"
    )
    assert str(error.value) == f"{tmp_path / 'run'}: {sentence}"
    assert not (tmp_path / "run").exists(), "nothing is written beside what was moved away"


@pytest.mark.parametrize("place", ["a file", "a folder"])
def test_a_file_instead_of_a_folder_is_no_failure_of_the_disk(place: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("") if place == "a file" else (tmp_path / "x" / "y.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"y\.json: can't be written: "):
        write_atomically(tmp_path / "x" / "y.json", b"{}")


def test_a_file_system_that_can_not_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "x" / "file", b"new")
    assert (tmp_path / "x" / "file").read_bytes() == b"new"


def test_a_new_folder_lasts(tmp_path: Path) -> None:
    """Without a sync of the folders above it, a loss of power takes a whole trial away, finished cycles included."""
    faults = faulty.Disk(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "os", faults)
        write_atomically(tmp_path / "a" / "b" / "c.json", b"{}")
    faults.lose_power()
    assert (tmp_path / "a" / "b" / "c.json").read_bytes() == b"{}"


# ------------------------------------------------------------------------------------------------- temporary files


def test_the_next_start_removes_temporary_files(tmp_path: Path) -> None:
    host, dead, alive = socket.gethostname(), 2**22 + 1, os.getppid()
    ours = [
        f"run.json.{host}.{dead}.tmp",
        f".clock-{2**60}",
        f"trials/x/state_001.pt.{host}.{alive}.tmp",  # the id of the process is used again
        "shared/y/cycle_000.json.elsewhere.17.tmp",
        f"logs/a.log.{host}.{dead}.tmp",
        ".seen-by-all-nodes-ab_1c",
        f"report/a.b c.md.{host}.{dead}.tmp",
        f"report/a.md.{host}.{os.getpid()}.tmp",
        "report/a.md.elsewhere.17.tmp",
        f"index/0123.jsonl.{host}.{dead}.tmp",
        f"track/csv.json.{host}.{dead}.tmp",
        f"index_sets/LC.json.{host}.{dead}.tmp",
    ]
    others = ["notes.tmp", "trials/x/cycle_000.json", "trials/notes/1.txt", "trials/17.tmp.txt", "x.17.tmp/file"]
    # of reports and trackers that write at this moment
    others += [f"{name}.{host}.{alive}.tmp" for name in ("report/b.md", "index/0123.jsonl", "track/csv.json")]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with lock.held(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert found == {*others, "lock.1"}
        (tmp_path / ours[0]).write_text("x")
        with pytest.raises(UserError, match="in use"), lock.held(tmp_path):
            pass
        assert (tmp_path / ours[0]).exists(), "only who holds the folder removes anything"


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("point", [0.1, 0.3, 0.6, 0.9])
def test_a_refusal_ends_the_run_with_the_report_and_one_sentence(
    number: int,
    point: float,
    fresh: Callable[[], Drivers],  # noqa: F811
) -> None:
    drivers = fresh()
    assert drivers.start(3).code == 0
    expected, points = drivers.results(), drivers.disk.points
    drivers = fresh()

    def hook(at: int, call: str, path: str) -> None:
        if at == int(points * point):
            drivers.disk.refusing = number

    drivers.disk.hook = hook
    ended = drivers.start(3)
    *before, last = ended.err.splitlines()
    assert ended.code == 1 and last.startswith("error: ") and os.strerror(number) in last
    assert last.endswith("; finished cycles are kept, and --resume continues the run")
    assert all(line.startswith("Not finished: ") for line in before), "no trial fails by itself, none is tried again"
    finished = {f"{'LC' if 'least' in name else 'Ran'} 0 {cycle}" for name, cycle in drivers.reported if name[0] == "t"}
    assert all(f"\n{line} " in ended.out for line in finished), "the report of what is there"
    drivers.disk.refusing = None
    assert drivers.unfinished() == []
    assert drivers.finish(3).code == 0
    assert drivers.results() == expected and drivers.left_over() == []


def test_a_folder_that_is_removed_ends_the_run(fresh: Callable[[], Drivers]) -> None:  # noqa: F811
    drivers = fresh()
    assert drivers.start(3).code == 0
    expected = drivers.results()
    drivers = fresh()

    def hook(at: int, call: str, path: str) -> None:
        if at == 100:
            shutil.rmtree(drivers.folder)
            drivers.disk.settle()

    drivers.disk.hook = hook
    ended = drivers.start(3)
    assert ended.code == 1 and "Not finished: 2 trials" in ended.err
    assert (
        "; if its folder is moved back, --resume continues the run; if it is lost, start the run again"
        in ended.err.splitlines()[-1]
    )
    assert not drivers.folder.exists()
    assert drivers.finish(3).code == 0
    assert drivers.results() == expected


def test_a_report_that_can_not_be_stored_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "mine", "suites": []}))
    with monkeypatch.context() as patch:
        refusing(patch, "mkdir", errno.EROFS)
        assert report([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "Report of run mine\n"
    assert err.startswith(f"error: {tmp_path}/report/records.csv: can't be written: Read-only file system; mount")
    assert report([str(tmp_path)]) == 0


def real(home: Path, folder: Path, *options: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a small grid in a process of its own, whose files may not be larger than ``limit``."""
    config = home / "c.yaml"
    config.write_text(CONFIG)

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    small = [
        "recipe.epochs=1",
        "dataset.limit=100",
        "dataset.test_limit=20",
        "protocol.initial=20",
        "protocol.cycles=2",
    ]
    command = [sys.executable, "-m", "harness.run", str(config), *small, f"where.output={folder}", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=prepare)


@pytest.mark.long
def test_a_limit_on_the_size_of_files_is_an_error_and_no_death(tmp_path: Path) -> None:
    ended = real(tmp_path, tmp_path / "run", limit=16_000)
    *_, last = ended.stderr.splitlines()
    assert ended.returncode == 1 and "Report of run c" in ended.stdout, ended
    assert (
        last.startswith(f"error: {tmp_path}/run/shared/") and "state_000.pt: can't be written: File too large" in last
    )
    assert real(tmp_path, tmp_path / "run", "--resume").returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("trials", ["in_process", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_small_disk(trials: str, tmp_path: Path) -> None:
    on = f"where.trials={trials}"
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        ended = real(tmp_path, mount / "run", on)
        assert ended.returncode == 1 and "Report of run c" in ended.stdout, ended
        assert ": can't be written: No space left on device; free space" in ended.stderr.splitlines()[-1]
        assert not list(mount.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=9m", str(mount)], check=True)
        assert real(tmp_path, mount / "run", "--resume", on).returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        ended = real(tmp_path, mount / "run", "--resume", on)
        assert ended.returncode == 2
        remedy = "mount its disk writable, or set where.output=OTHER_FOLDER"
        why = f"can't be written to: Read-only file system; {remedy}"
        assert ended.stderr == f"error: where.output: {mount}/run {why}\n"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


LIMITED = '''
import resource

from harness import Training


class Limited(Training):
    """Cross-entropy in a process whose files may not grow."""

    def fit(self, cycle):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
        return super().fit(cycle)
'''


@pytest.mark.long
@pytest.mark.ray
def test_a_worker_of_ray_that_can_not_write_says_so_and_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    config = tmp_path / "c.yaml"
    methods = CONFIG.replace("{Ran: random, LC: least_confidence}", "{L: {training: limited, acquisition: random}}")
    config.write_text(f"plugins: [{tmp_path}/limited.py]\n{methods}")
    options = ["where.trials=ray", f"where.output={tmp_path / 'run'}", "protocol.cycles=2", "recipe.epochs=1"]
    command = [sys.executable, "-m", "harness.run", str(config), *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1, ended
    unfinished, said = ended.stderr.splitlines()
    assert unfinished.startswith("Not finished: ")
    assert "state_000.pt: can't be written: File too large; raise the limit" in said
    assert "its process died" not in ended.stdout

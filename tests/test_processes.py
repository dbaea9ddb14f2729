"""A report that several processes make is that of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import many_records
import pytest
from test_report import all_records, run_dir, street_records, suite

from harness.errors import StorageError, UserError
from harness.report import index, part, processes
from harness.report.write import write
from harness.results import lock, store
from harness.results.manifest import Manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of four suites: of two metrics, without results, and skipped."""
    entries = [
        suite(name="first", title="First"),
        suite(name="streets", title="Streets"),
        suite(name="waiting", title="Waiting", trials={"w": {"method": "Ran", "seed": 0}}),
        suite(name="skipped", title="Skipped", skipped="there is no data"),
    ]
    trials = {f"street-{trial}": entry for trial, entry in entries[1].trials.items()}
    entries[1] = entries[1].model_copy(update={"trials": trials})
    run_dir(tmp_path / "run", [], entries)
    for r in [*all_records(), *street_records()]:
        trial = f"street-{r.trial}" if r.per_class else r.trial
        path = tmp_path / "run" / "trials" / trial / f"cycle_{r.cycle:03d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(many_records.packed(r.to_json() | {"trial": trial}, trial))
    return tmp_path / "run"


def several(monkeypatch: pytest.MonkeyPatch, number: int = 3) -> None:
    """Make reports in so many processes."""
    monkeypatch.setattr(processes, "MANY", 0)
    monkeypatch.setattr(processes, "MOST", number)
    monkeypatch.setattr(processes, "processors", lambda: number)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("number", [2, 3, 9])
def test_the_report_is_the_same(run: Path, number: int, indexed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if indexed:
        monkeypatch.setattr(index, "FEWEST", 0)
        monkeypatch.setattr(index, "YOUNG", -(10**9))
    text, files = write(run), contents(run / "report")
    assert {"first_accuracy.png", "streets_miou.csv", "report.html", "records.csv"} <= files.keys()
    names = {path.name for path in (run / "index").glob("*")}
    assert bool(names) is indexed
    (run / "index").mkdir(exist_ok=True)
    (run / "index" / f"{'0' * 16}.jsonl").write_text("of a suite that is gone")
    for path in (run / "report").iterdir():
        path.unlink()
    several(monkeypatch, number)
    shown: list[str] = []
    pids: list[int] = []
    original = processes.Processes.look

    def look(self: processes.Processes) -> Any:
        pids.extend(worker.pid for worker in self.workers)
        return original(self)

    monkeypatch.setattr(processes.Processes, "look", look)
    assert write(run, shown.append) == text == shown[0]
    assert contents(run / "report") == files
    assert {path.name for path in (run / "index").iterdir()} == names, "and the index of the suite that is gone"
    assert len({*pids}) == min(number, 4) and os.getpid() not in pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_few_records_or_names_that_may_collide_keep_it_in_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(run)
    assert processes.number_of_processes(manifest) == 1
    several(monkeypatch)
    assert processes.number_of_processes(manifest) == 3
    one, *others = manifest.suites
    for name in ("streets_miou", "STREETS_x", "s?reets_" * 30):
        like = one.model_copy(update={"name": name})
        longer = one.model_copy(update={"name": f"{name} and more"})
        suites = [like, longer, *others] if "?" in name else [like, *others]
        assert processes.number_of_processes(manifest.model_copy(update={"suites": suites})) == 1, name
    monkeypatch.setattr(processes, "processors", lambda: 1)
    assert processes.number_of_processes(manifest) == 1


def test_a_process_that_dies_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch)
    monkeypatch.setattr(part, "write", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"^a process that made the report has ended with signal 9, SIGKILL$"):
        write(run)


def test_a_disk_that_is_full_still_shows_the_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(run)
    several(monkeypatch)

    def full(path: Path, data: bytes) -> None:
        raise StorageError(f"{path}: can't be written: No space left on device")

    monkeypatch.setattr("harness.report.files.write_atomically", full)
    shown: list[str] = []
    with pytest.raises(StorageError, match="No space left"):
        write(run, shown.append)
    assert text.startswith(shown[0]), "all but where the files are"


def test_a_folder_that_another_run_has_taken_over_is_not_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch)

    def lost(path: Path) -> None:
        raise lock.LockLost("another run has taken the folder over")

    monkeypatch.setattr(store.lock, "check", lost)
    with pytest.raises(lock.LockLost):
        write(run)


def test_the_processes_end_with_the_one_that_started_them(run: Path) -> None:
    manifest = Manifest.read(run)
    with processes.started(manifest, run, run / "index", run / "report", 2) as suites:
        suites.look()
        for pipe in suites.pipes:  # as if it had been killed
            pipe.close()
        for worker in suites.workers:
            worker.join(20)
        assert [worker.exitcode for worker in suites.workers] == [1, 1]


def test_a_process_that_dies_between_the_steps_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch)
    original = processes.Processes.look

    def look(self: processes.Processes) -> Any:
        found = original(self)
        for worker in self.workers:
            worker.kill()
            worker.join()
        return found

    monkeypatch.setattr(processes.Processes, "look", look)
    with pytest.raises(UserError, match=r"^a process that made the report has ended with signal 9, SIGKILL$"):
        write(run)


def test_processes_that_can_t_be_started_are_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch)

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(UserError, match=r"can't be started \(Resource temporarily unavailable\)"):
        write(run)


def test_processes_end_with_the_process_that_is_killed(run: Path) -> None:
    """Also while they work, and with answers that nobody reads."""
    code = (
        "import os, sys, time; from pathlib import Path; from harness.report import part, processes; "
        "from harness.results.manifest import Manifest; run = Path(sys.argv[1]); "
        "part.look = lambda *given: time.sleep(60)\n"
        "with processes.started(Manifest.read(run), run, run / 'index', run / 'report', 2) as suites:\n"
        "    print(*(worker.pid for worker in suites.workers), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    assert process.stderr.read() == "", "it ends once they have ended, because they hold it, too"
    process.wait()
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < ends
        time.sleep(0.1)

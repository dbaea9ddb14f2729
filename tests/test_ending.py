"""However a run ends, its last words are a sentence, and the report of what is finished."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import SMALL, cycles, outcomes, processes

from harness.errors import died
from harness.on_ray import beats
from harness.on_ray.beats import Watch, beating

ROOT = Path(__file__).resolve().parent.parent
GRID = f"""{SMALL}
methods: {{Ran: random, Core-set: core_set}}
seeds: [0]
where: {{dashboard: false, scoring: in_process}}
"""


def _heed() -> None:
    """Undo that a shell lets its background jobs ignore SIGINT, and nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python installs its own handler only then
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Run:
    """A run of the command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.output, path = folder / "run", folder / "grid.yaml"
        path.write_text(GRID)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.run", str(path), f"where.output={self.output}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment,
            cwd=ROOT,
            preexec_fn=_heed,
        )

    def wait_for(self, count: int) -> None:
        """Wait until so many cycles are finished."""
        deadline = time.time() + 240
        while cycles(self.output) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.time() < deadline, "too slow"
            time.sleep(0.05)

    def find(self, kind: str) -> list[int]:
        """Return the ids of the processes of a kind: see chaos.processes."""
        return [pid for pid, found in processes(self.process.pid).items() if found == kind]

    def kill(self, kind: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process of a kind."""
        os.kill(self.find(kind)[0], number)

    def end(self, code: int) -> tuple[str, str]:
        """Return what was printed; nothing of it may be a traceback or a dump of Ray's."""
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == code, out[-3000:] + err[-3000:]
        for word in ("Traceback", "raylet", "(pid", "state-dump", "SIGABRT", ".cc:"):
            assert word not in out + err, out + err
        return out, err


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """The outcomes of the grid in one process: every run that ends well must have the same."""
    run = Run(tmp_path_factory.mktemp("expected"), "where.trials=in_process")
    run.end(0)
    return outcomes(run.output)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("trials", ["ray", "in_process"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_alike(tmp_path: Path, number: signal.Signals, trials: str) -> None:
    run = Run(tmp_path, f"where.trials={trials}")
    run.wait_for(1)
    run.process.send_signal(number)
    began = time.time()
    out, err = run.end(128 + number)
    assert time.time() - began < 60
    assert err == f"stopped by {number.name}; finished cycles are kept, add --resume to continue\n"
    assert "of 8 cycles finished." in out and "All tables and pictures" in out
    assert not run.find("trial") and not run.find("raylet"), "no process is left"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("what", ["raylet", "GCS", "Ray's driver"])
def test_ray_is_started_again(tmp_path: Path, expected: dict[str, list[dict[str, object]]], what: str) -> None:
    run = Run(tmp_path, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    run.wait_for(2)
    run.kill(what)
    out, _ = run.end(0)
    assert outcomes(run.output) == expected
    assert out.count("Ray is started again (restart 1 of 2 without another finished cycle)") == 1
    assert (run.output / "logs" / "ray.log").exists()


@pytest.mark.ray
@pytest.mark.long
def test_a_ray_that_dies_too_often_ends_the_run_with_its_report(tmp_path: Path) -> None:
    slow = "recipe.epochs=300"  # so that the trials do not end before Ray has noticed
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole", slow, "where.trials=in_process")
    whole.end(0)
    run = Run(tmp_path, slow, "where.retries=0")
    run.wait_for(2)
    run.kill("raylet")
    out, err = run.end(1)
    assert "of 8 cycles finished." in out
    stopped, unfinished = err.splitlines()
    assert re.match(r"stopped: Ray has (died \(its driver ended with .*|failed \(\w+)\); ", stopped)
    assert stopped.endswith(f"; Ray's own words are in {run.output}/logs/ray.log")
    assert unfinished == "Not finished: 2 trials; add --resume to continue."
    again = Run(tmp_path, slow, "--resume")
    again.end(0)
    assert outcomes(run.output) == outcomes(whole.output)


@pytest.mark.ray
@pytest.mark.long
def test_a_stopped_trial_is_shown_and_restarted(tmp_path: Path, expected: dict[str, list[dict[str, object]]]) -> None:
    run = Run(tmp_path, "where.stalled_after=20")
    run.wait_for(1)
    run.kill("trial", signal.SIGSTOP)
    out, _ = run.end(0)
    assert outcomes(run.output) == expected
    assert "STALLED, without progress for " in out and "; it is restarted after 20 s" in out
    assert "its process died; it restarts from its last finished cycle" in out


HUNGRY = '''
"""Holds memory."""

import torch

from harness import Training


class Hungry(Training):
    """Takes memory until there is none."""

    def loss(self, outputs, targets, progress):
        """Return the usual loss."""
        self.held = getattr(self, "held", []) + [bytearray(b"x" * 10**8)]
        import time

        time.sleep(0.2)
        return torch.nn.functional.cross_entropy(outputs.logits, targets)
'''


@pytest.mark.ray
@pytest.mark.long
def test_a_kill_by_ray_s_memory_monitor_ends_one_trial(tmp_path: Path) -> None:
    words = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    limit = 1 - (words["MemAvailable"] - 4 * 10**6) / words["MemTotal"]  # what is free but 4 GB is in use
    (tmp_path / "hungry.py").write_text(HUNGRY)
    run = Run(
        tmp_path,
        f"plugins=[{tmp_path / 'hungry.py'}]",
        "methods={Ran: random, LC: least_confidence, Hungry: {training: hungry, acquisition: random}}",
        RAY_memory_usage_threshold=f"{limit:.3f}",
        RAY_memory_monitor_refresh_ms="200",
    )
    out, err = run.end(1)
    found = {name.split("-")[-1].split(".")[0]: len(records) for name, records in outcomes(run.output).items()}
    assert "the memory of a machine was full" in out
    assert err.count("FAILED: grid / Hungry / seed 0: the memory of a machine was full") == 1
    assert "2 of 3 trials" in out, found


# ------------------------------------------------------------------------------------------------------- heartbeats


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "BEAT", 0.1)


def _stalls(folder: Path, work: Callable[[], None]) -> bool:
    """Return whether the work of this thread counts as stalled after two seconds, which a busy machine may take."""
    watch, found = Watch(folder), []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            found.extend(watch.stalled(2))

    thread = threading.Thread(target=look)
    thread.start()
    with beating(folder / "7", "node"):
        work()
    over.set()
    thread.join()
    assert all(stalled[:3] == (7, "node", os.getpid()) for stalled in found)
    return bool(found)


def _busy() -> None:
    end = time.time() + 3
    while time.time() < end:
        sum(range(1000))


def _moving() -> None:
    for number in range(60):
        time.sleep(0.007 * (number % 7))
        time.sleep(0.011 * (number % 5))
        time.sleep(0.013 * (number % 3))


@pytest.mark.long
@pytest.mark.usefixtures("fast")
def test_a_thread_that_waits_is_stalled_and_one_that_works_is_not(tmp_path: Path) -> None:
    assert _stalls(tmp_path / "waits", lambda: time.sleep(3.5))
    assert _stalls(tmp_path / "locked", lambda: bool(threading.Event().wait(3.5)) or None)
    assert not _stalls(tmp_path / "busy", _busy)
    assert not _stalls(tmp_path / "moving", _moving)


def test_a_heartbeat_that_can_t_be_read_is_none(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    for name, text in (("1", "{"), ("2", json.dumps({"node": "n"})), ("x", json.dumps({"node": "n", "pid": 1}))):
        (tmp_path / name).write_text(text)
    assert watch.stalled(-1) == []
    watch.end(1)
    watch.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "exit code 1"),
        (-9, "signal 9, SIGKILL"),
        (134, "signal 6, SIGABRT"),
        (None, "exit code None"),
        (3, "exit code 3"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(code: int | None, words: str) -> None:
    assert died(code) == words

"""However a run ends, its last words are a sentence, and the report of what is finished."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chaos import SMALL, cycles, outcomes, processes

from harness.errors import RayLost, Stopped, StorageError, UserError, answered, died
from harness.experiment import beat, guard, runner
from harness.on_ray import beats, launch
from harness.on_ray.beats import Watch, beating
from harness.results import lock
from harness.run import main
from harness.settings import Where

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
            start_new_session=True,
        )

    def wait_for(self, count: int) -> None:
        """Wait until so many cycles are finished."""
        deadline = time.time() + 240
        while cycles(self.output) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.time() < deadline, "too slow"
            time.sleep(0.05)

    def heeds(self, number: int) -> bool:
        """Return whether the command has a handler for a signal."""
        (line,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return bool(int(line, 16) >> number - 1 & 1)

    def find(self, kind: str) -> list[int]:
        """Return the ids of the processes of a kind: see chaos.processes."""
        return [pid for pid, found in processes(self.process.pid).items() if found == kind]

    def kill(self, kind: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process of a kind."""
        os.kill(self.find(kind)[0], number)

    def of_trials(self) -> str:
        """Return the kind of the process in which trials run."""
        return "trial" if self.find("trial") else "child"

    def end(self, code: int) -> tuple[str, str]:
        """Return what was printed; nothing of it may be a traceback or a dump of Ray's."""
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == code, out[-3000:] + err[-3000:]
        for word in ("Traceback", "(raylet", "raylet.", "(pid", "state-dump", "*** SIG", ".cc:"):
            assert word not in out + err, out + err
        return out, err


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.time() + 60
    while not ready():
        assert time.time() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """The outcomes of the grid in one process: every run that ends well must have the same."""
    run = Run(tmp_path_factory.mktemp("expected"), "where.trials=in_process")
    run.end(0)
    return outcomes(run.output)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(
    ("trials", "number"),
    [
        *((way, each) for way in ("ray", "in_process") for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        ("ray", signal.SIGUSR1),
        ("in_process", signal.SIGXCPU),
    ],
)
def test_signals_end_a_run_alike(tmp_path: Path, number: signal.Signals, trials: str) -> None:
    run = Run(tmp_path, f"where.trials={trials}", f"where.notify=cat >> {tmp_path / 'told'}")
    run.wait_for(1)
    started = processes(run.process.pid)
    assert ("trial" in started.values()) is (trials == "ray")
    run.process.send_signal(number)
    began = time.time()
    out, err = run.end(128 + number)
    assert time.time() - began < 60
    assert err == f"stopped by {number.name}; finished cycles are kept, add --resume to continue\n"
    assert "of 8 cycles finished." in out and "All tables and pictures" in out
    (notice,) = (tmp_path / "told").read_text().splitlines()
    assert notice.startswith(f"grid was stopped by {number.name}: "), notice
    while (
        left := [kind for pid, kind in started.items() if Path(f"/proc/{pid}").exists()]
    ) and time.time() < began + 60:
        time.sleep(0.1)
    assert not left, "of the processes of the run"


def test_a_signal_during_the_last_report_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(runner, "write", stopped)
    (tmp_path / "grid.yaml").write_text(GRID)
    words = [str(tmp_path / "grid.yaml"), f"where.output={tmp_path / 'run'}", "where.trials=in_process", *SHORTER]
    assert main(words) == 128 + signal.SIGTERM
    kept = f"all trials are finished; python -m harness.report {tmp_path / 'run'} writes the report"
    assert capsys.readouterr().err == f"stopped by SIGTERM; {kept}\n"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("trials", ["ray", "in_process"])
def test_a_run_is_seen_from_elsewhere(tmp_path: Path, trials: str) -> None:
    run = Run(tmp_path, SLOWLY, f"where.trials={trials}")
    run.wait_for(1)
    status = [sys.executable, "-m", "harness.status", str(run.output)]
    for _ in range(20):  # until it looks while a trial trains
        seen = subprocess.run(status, capture_output=True, text=True, cwd=tmp_path, check=True).stdout.splitlines()
        assert seen[0].startswith(f"running: process {run.process.pid} on "), seen
        assert re.match(r"grid: \d/2 trials, elapsed ", seen[1]), seen
        if any(re.search(r" train \d+/600 ", line) for line in seen[2:]):
            break
    else:
        pytest.fail(f"no trial was seen to train: {seen}")
    run.process.send_signal(signal.SIGTERM)
    run.end(128 + signal.SIGTERM)


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_is_extended_on_ray_equals_a_long_one(
    tmp_path: Path, expected: dict[str, list[dict[str, object]]]
) -> None:
    Run(tmp_path, "protocol.cycles=2").end(0)
    run = Run(tmp_path, "--resume")
    out, _ = run.end(0)
    assert "8 of 8 cycles finished" in out and outcomes(run.output) == expected


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("moment", ["imports", "Ray's start", "trials"])
def test_ctrl_c_reaches_the_whole_group_at_any_moment(tmp_path: Path, moment: str) -> None:
    """As a terminal sends it: to every process of the command's group."""
    run = Run(tmp_path)
    if moment == "imports":  # Python has set its own handler for SIGINT, and the command has taken it away
        wait_until(lambda: run.heeds(signal.SIGINT))
        wait_until(lambda: not run.heeds(signal.SIGINT))
    elif moment == "trials":
        run.wait_for(1)
    else:
        wait_until(lambda: bool(run.find("GCS")))
    started = processes(run.process.pid)
    assert ("trial" in started.values()) is (moment == "trials")
    os.killpg(run.process.pid, signal.SIGINT)
    _, err = run.end(-signal.SIGINT if moment == "imports" else 128 + signal.SIGINT)
    ended = "finished cycles are kept, add --resume to continue" if moment == "trials" else "nothing was computed"
    assert err == ("" if moment == "imports" else f"stopped by SIGINT; {ended}\n")
    deadline = time.time() + 60
    while left := [kind for pid, kind in started.items() if Path(f"/proc/{pid}").exists()]:
        assert time.time() < deadline, left
        time.sleep(0.1)
    run.process = Run(tmp_path, *(["--resume"] if cycles(run.output) else [])).process
    run.end(0)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGHUP, None], ids=["SIGHUP", "nohup"])
def test_a_terminal_that_is_closed_ends_no_run_without_its_report(tmp_path: Path, number: int | None) -> None:
    """With a signal, as a lost connection sends it, or without one, as a run that was started by nohup ignores it."""
    ours, its = os.openpty()
    (tmp_path / "grid.yaml").write_text(GRID)
    output = tmp_path / "run"
    command = [sys.executable, "-m", "harness.run", str(tmp_path / "grid.yaml"), "where.trials=in_process"]
    process = subprocess.Popen(
        [*command, f"where.output={output}"],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm"},
        cwd=ROOT,
        preexec_fn=_heed if number else _ignore,
        start_new_session=True,
    )
    os.close(its)
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    while cycles(output) < 1:
        assert process.poll() is None
        time.sleep(0.05)
    os.close(ours)
    if number:
        process.send_signal(number)
    assert process.wait(120) == (128 + number if number else 0)
    assert (output / "report" / "report.md").exists()


def _ignore() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _drain(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass


def test_output_to_a_full_disk_goes_into_nothing() -> None:
    command = [sys.executable, "-m", "harness.run", "quickstart", "--plan"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_a_plug_in_does_to_the_output_does_not_end_it(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
            print("more", file=stream)
        return 0

    assert answered(work) == 0
    assert tuple(capfd.readouterr()) == ("more\n", "more\n")


SHORT = "protocol.cycles=2 recipe.epochs=2 --only method=Ran"
WAYS = [
    "--plan",
    pytest.param("where.trials=in_process", marks=pytest.mark.long),
    pytest.param("where.trials=ray", marks=[pytest.mark.long, pytest.mark.ray]),
]


def shell(folder: Path, way: str, closing: str = "", **environment: str) -> tuple[int, str, str]:
    """Return exit code and output of a short run that a shell starts, with names that are not ASCII."""
    folder /= "日本"
    folder.mkdir()
    (folder / "grid.yaml").write_text(f"title: 日本\n{GRID}")
    arguments = f"{folder / 'grid.yaml'} where.output={folder / 'run'} {SHORT} {way}"
    ended = subprocess.run(
        f"{sys.executable} -m harness.run {arguments} {closing}",
        shell=True,
        capture_output=True,
        encoding="latin-1",
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment,
        cwd=ROOT,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(tmp_path: Path, closing: str, way: str) -> None:
    code, out, err = shell(tmp_path, way, closing)
    assert (code, err) == (0, ""), out
    assert bool(out) == (closing == "2>&-")
    run = tmp_path / "日本" / "run"
    assert way == "--plan" or (run / "report" / "report.md").exists()
    assert way == "--plan" or json.loads((run / "run.json").read_text()), "no output has got into a file"


ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("environment", "title"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\u65e5\u672c"),
        ({"PYTHONIOENCODING": "latin-1"}, r"\u65e5\u672c"),
        (ASCII_LOCALE, "日本".encode().decode("latin-1")),
    ],
    ids=["ascii", "latin-1", "C"],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_the_terminal_can_t_show_ends_no_run(
    tmp_path: Path, environment: dict[str, str], title: str, way: str
) -> None:
    code, out, err = shell(tmp_path, way, **environment)
    assert (code, err) == (0, "") and title in out
    assert way == "--plan" or ("mean+-std" in out) == (environment.get("PYTHONIOENCODING") == "ascii")


def test_a_report_that_can_t_be_written_is_told_although_ray_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(runner, "write", refuse)
    nothing: Any = SimpleNamespace(units=[], failures=[])
    monkeypatch.setattr(runner, "left_to_run", lambda *_: nothing)
    with pytest.raises(StorageError, match="the disk is full"):
        runner._end(tmp_path, nothing, nothing, nothing, nothing, RayLost("Ray has died"))


SLOWLY = "recipe.epochs=600"
"""Trials outlive the raylet by some seconds."""


@pytest.fixture(scope="module")
def slowly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """The outcomes of the grid with more epochs."""
    run = Run(tmp_path_factory.mktemp("slowly"), SLOWLY, "where.trials=in_process")
    run.end(0)
    return outcomes(run.output)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("what", ["raylet", "GCS", "Ray's driver"])
def test_ray_is_started_again(tmp_path: Path, slowly: dict[str, list[dict[str, object]]], what: str) -> None:
    run = Run(tmp_path, SLOWLY, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    run.wait_for(2)
    run.kill(what)
    out, _ = run.end(0)
    assert outcomes(run.output) == slowly
    assert out.count("Ray is started again (restart 1 of 2 without another finished cycle)") == 1
    cause = "driver ended with signal 9, SIGKILL" if what == "Ray's driver" else f"{what} has ended"
    assert f"Ray has died (its {cause})" in out and "as by SIGKILL" not in out
    assert (run.output / "logs" / "ray.log").exists()


HELD = '''
"""Waits while a file is there."""

import time
from pathlib import Path

import torch

from harness import Training


class Held(Training):
    """Trains as usual, once the file is gone."""

    def loss(self, outputs, targets, progress):
        """Return the usual loss."""
        while Path({gate!r}).exists():
            time.sleep(0.05)
        return torch.nn.functional.cross_entropy(outputs.logits, targets)
'''


@pytest.mark.ray
@pytest.mark.long
def test_a_ray_that_dies_too_often_ends_the_run_with_its_report(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "held.py").write_text(HELD.format(gate=str(gate)))
    methods = "{Ran: {training: held, acquisition: random}, Core-set: {training: held, acquisition: core_set}}"
    arguments = f"plugins=[{tmp_path / 'held.py'}]", f"methods={methods}", "where.retries=0"
    run = Run(tmp_path, *arguments)
    run.wait_for(2)
    gate.touch()  # else they could end before Ray has noticed
    run.kill("raylet")
    out, err = run.end(1)
    assert " of 8 cycles finished." in out
    stopped, unfinished = err.splitlines()
    assert re.match(r"stopped: Ray has (died \(its .*|failed \(\w+\)); ", stopped)
    assert stopped.endswith(f"; Ray's own words are in {run.output}/logs/ray.log")
    assert unfinished == "Not finished: 2 trials; add --resume to continue."
    gate.unlink()
    again = Run(tmp_path, *arguments, "--resume")
    again.end(0)
    assert cycles(run.output) == 8


@pytest.mark.ray
@pytest.mark.long
def test_a_folder_that_is_moved_away_is_one_sentence(tmp_path: Path) -> None:
    run = Run(tmp_path, "seeds=[0,1,2]")  # trials that start later make it again
    run.wait_for(3)
    run.output.rename(tmp_path / "moved")
    out, err = run.end(1)
    sentence = "if its folder is moved back, --resume continues the run; if it is lost, start the run again"
    assert err.splitlines()[-1] == f"error: {run.output}: can't be read: No such file or directory; {sentence}"
    assert "FAILED" not in out + err
    assert not run.output.exists(), "else it could not be moved back"
    (tmp_path / "moved").rename(run.output)
    Run(tmp_path, "seeds=[0,1,2]", "--resume").end(0)
    assert cycles(run.output) == 24


TRIALS = pytest.mark.parametrize("trials", [pytest.param("ray", marks=pytest.mark.ray), "in_process"])


@pytest.mark.long
@TRIALS
def test_a_stopped_trial_is_shown_and_restarted(
    tmp_path: Path, expected: dict[str, list[dict[str, object]]], trials: str
) -> None:
    run = Run(tmp_path, f"where.trials={trials}", "where.stalled_after=20")
    run.wait_for(1)
    run.kill(run.of_trials(), signal.SIGSTOP)
    status, seen = [sys.executable, "-m", "harness.status", str(run.output)], ""
    while "STALLED" not in seen:
        assert run.process.poll() is None, seen
        seen = subprocess.run(status, capture_output=True, text=True, cwd=ROOT, check=True).stdout
        assert "NO SIGN OF LIFE" not in seen
    out, _ = run.end(0)
    assert outcomes(run.output) == expected
    assert "STALLED, without progress for " in out and "; its process is ended after 20 s" in out
    assert (
        "it stalled for 20 s, and its process was ended; it goes on from its last checkpoint or finished cycle" in out
    )


WAITING = '''
"""Waits forever, the first time."""

import threading
from pathlib import Path

from harness import Training

BEFORE = Path("FOLDER") / "before"  # the file itself is unpacked elsewhere on a worker


class Waiting(Training):
    """Cross-entropy."""

    def fit(self, cycle):
        """Wait for a lock that nobody releases, then train."""
        if not BEFORE.exists():
            BEFORE.touch()
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        return super().fit(cycle)
'''


@pytest.mark.long
@TRIALS
def test_a_trial_that_waits_for_a_lock_is_shown_and_restarted(tmp_path: Path, trials: str) -> None:
    (tmp_path / "waiting.py").write_text(WAITING.replace("FOLDER", str(tmp_path)))
    methods = "methods={W: {training: waiting, acquisition: random}}"
    where = f"where.trials={trials}", "where.stalled_after=20"
    run = Run(tmp_path, f"plugins=[{tmp_path / 'waiting.py'}]", methods, "protocol.cycles=2", *where)
    out, _ = run.end(0)
    assert "STALLED, without progress for " in out
    ended = "it stalled for 20 s, and its process was ended, at waiting.py:"
    log = Path(re.findall(f"{ended}\\d+; the traceback is in (.*); it goes on", out)[0])
    assert "waiting.py" in log.read_text() and "in fit" in log.read_text(), "although it has gone on since"


CRASHING = '''
"""Dies of a signal, as a library would let it."""

import os

from harness import Acquisition


class Crashing(Acquisition):
    """Aborts."""

    def describe(self, network, batch, prepared):
        """Describe nothing."""
        os.abort()
'''
CRASHED = "methods={Crash: crashing, Ran: random}"
SHORTER = "protocol.cycles=2", "recipe.epochs=2"


def crashing(folder: Path, *arguments: str) -> Run:
    """Start a run with a method that dies of SIGABRT."""
    (folder / "crashing.py").write_text(CRASHING)
    return Run(
        folder, f"plugins=[{folder / 'crashing.py'}]", CRASHED, "protocol.cycles=2", "recipe.epochs=2", *arguments
    )


@pytest.mark.long
@TRIALS
def test_a_process_that_dies_of_a_signal_is_told_as_such(tmp_path: Path, trials: str) -> None:
    run = crashing(tmp_path, f"where.trials={trials}", "where.retries=1")
    out, err = run.end(1)
    log = next((run.output / "logs").glob("*crashing*.log"))
    assert (
        f"Crash / seed 0: its process died of SIGABRT, at crashing.py:14; the traceback is in {log}; it goes on from"
        in out
    )
    often = "more often than where.retries (1) allows, at crashing.py:14"
    end = f": its process died of SIGABRT {often}; the traceback is in {log}"
    assert f"FAILED{end}" in out and f"Crash / seed 0{end}" in err, "when it happens, and in the summary"
    assert log.read_text().startswith("Fatal Python error: Aborted") and "crashing.py" in log.read_text()
    assert "1 of 2 trials" in out, "the other one goes on"


ELSEWHERE = '''
"""Needs a package that the machines of the workers lack."""

import sys

from harness import Acquisition

if sys.argv[0].endswith("default_worker.py"):
    import that_is_only_here


class Elsewhere(Acquisition):
    """Describes nothing."""

    def describe(self, network, batch, prepared):
        """Describe nothing."""
        return {}
'''


@pytest.mark.ray
@pytest.mark.long
def test_a_plugin_that_a_worker_can_t_import_fails_once_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    plugin = f"plugins=[{tmp_path / 'elsewhere.py'}]"
    run = Run(tmp_path, plugin, "methods={Elsewhere: elsewhere, Ran: random}", *SHORTER, "where.retries=5")
    out, err = run.end(1)
    first, like_it, last = err.splitlines()
    reason = "method 'elsewhere' can't be imported: elsewhere.py:9: No module named 'that_is_only_here'"
    before, _, log = first.partition("; the traceback is in ")
    assert before == f"FAILED: grid / first cycle of 2 methods (cross_entropy) / seed 0: {reason}"
    assert like_it == "FAILED like it: grid / Elsewhere / seed 0" and last.startswith(
        "Not finished: 1 trial and 1 shared"
    )
    assert Path(log).read_text().startswith("Traceback") and "died" not in out + err
    assert "1 of 2 trials" in out, "the other one goes on"


@pytest.mark.long
def test_a_crash_is_named_when_the_run_goes_on(tmp_path: Path) -> None:
    crashing(tmp_path, "where.trials=in_process", "where.retries=0").end(1)
    log = next((tmp_path / "run" / "logs").glob("*crashing*.log"))
    assert "crashing.py" in log.read_text()
    out, _ = crashing(tmp_path, "where.trials=in_process", "where.retries=0", "--resume").end(1)
    assert f"SIGABRT ended its process, or the run did after a stall; where it was is in {log}" in out
    assert log.read_text().count("Fatal Python error: Aborted") == 2
    run = Run(
        tmp_path, "where.trials=in_process", "methods={Ran: random}", "protocol.cycles=2", "recipe.epochs=2", "--resume"
    )
    run.end(0)
    assert not [*(tmp_path / "run" / "logs").glob("*random*.log")], "no empty log stays"


@pytest.mark.long
def test_a_killed_child_goes_on_and_a_killed_command_ends_it(
    tmp_path: Path, slowly: dict[str, list[dict[str, object]]]
) -> None:
    run = Run(tmp_path, SLOWLY, "where.trials=in_process")
    run.wait_for(1)
    run.kill("child")
    run.wait_for(2)
    (child,) = run.find("child")
    run.kill("run")
    out, err = run.process.communicate(timeout=60)
    died = "its process died of SIGKILL, as by a full memory; it goes on from its last checkpoint or finished cycle"
    assert died in out and not err
    wait_until(lambda: not lock.is_alive(child))
    run.process = Run(tmp_path, SLOWLY, "where.trials=in_process", "--resume").process
    run.end(0)
    assert outcomes(run.output) == slowly


@pytest.mark.long
def test_a_child_that_dies_before_any_trial_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path, "where.trials=in_process", f"where.notify=cat > {tmp_path / 'told'}")
    wait_until(lambda: bool(run.find("child")))
    run.kill("child", signal.SIGSEGV)
    _, err = run.end(1)
    assert err == "stopped: its process died of SIGSEGV while no trial ran; add --resume to continue\n"
    assert "grid has failed: its process died of SIGSEGV while no trial ran" in (tmp_path / "told").read_text()


def test_a_command_that_can_t_start_its_child_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    lost: list[BaseException] = []
    monkeypatch.setattr(os, "fork", refuse)
    assert guard.guarded(lambda: 0, Where(), lost.append) == 1
    said = "no process can be started (Resource temporarily unavailable)"
    assert capsys.readouterr().err == f"stopped: {said}; add --resume to continue\n"
    assert str(lost[0]) == said and not signal.pthread_sigmask(signal.SIG_BLOCK, []), "signals are heard again"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert guard.guarded(lambda: 7, Where(), lost.append) == 7, "without a child"


@pytest.mark.long
def test_a_command_whose_caller_ignores_the_end_of_children_ends(tmp_path: Path) -> None:
    code = (
        "import signal, os, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    (tmp_path / "grid.yaml").write_text(GRID)
    words = [sys.executable, "-m", "harness.run", str(tmp_path / "grid.yaml"), "where.trials=in_process"]
    words += [*SHORTER, "methods={Ran: random}", f"where.output={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_child_that_hears_no_signal_is_killed_by_a_second_one(tmp_path: Path) -> None:
    run = Run(tmp_path, SLOWLY, "where.trials=in_process", f"where.notify=cat > {tmp_path / 'told'}")
    run.wait_for(1)
    run.kill("child", signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    time.sleep(guard.PATIENCE + 1)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    _, err = run.end(128 + signal.SIGINT)
    assert err == "stopped by SIGINT; finished cycles are kept, add --resume to continue\n"
    assert "was stopped by SIGINT" in (tmp_path / "told").read_text()
    run.process = Run(tmp_path, SLOWLY, "where.trials=in_process", "--resume").process
    run.end(0)


LEAVING = '''
"""Three ways in which a trial ends badly, and work while the file is imported, whose threads outlive no fork."""

import os

import torch

from harness import Acquisition

AT_IMPORT = float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())


class Leaving(Acquisition):
    """Leaves the process, or raises."""

    def describe(self, network, batch, prepared):
        """Leave."""
        if WAY == "raise":
            raise ZeroDivisionError("again and again")
        if WAY == "memory":
            raise MemoryError
        os._exit(3)
'''


@pytest.mark.long
@TRIALS
def test_trials_that_end_badly_fail_once_each_and_alone(tmp_path: Path, trials: str) -> None:
    (tmp_path / "own").mkdir()
    for name in ("leave", "raise", "memory"):
        (tmp_path / "own" / f"own_{name}.py").write_text(f"{LEAVING}\n\nWAY = {name!r}\n")
    methods = "methods={Raise: own_raise, Leave: own_leave, Memory: own_memory, Ran: random}"
    run = Run(
        tmp_path,
        f"plugins=[{tmp_path / 'own'}]",
        methods,
        *SHORTER,
        f"where.trials={trials}",
        "where.retries=1",
        "where.cpus_per_trial=2",
        "where.stalled_after=40",
    )
    out, err = run.end(1)
    left = "its process ended with exit code 3" if trials == "in_process" else "its process died"
    assert out.count(f"grid / Leave / seed 0: {left}") == 1, "one retry"
    for name, why in (
        ("Raise", "own_raise (own_raise.py:19): describe raises ZeroDivisionError: again and again"),
        ("Memory", "this machine's memory is full, at own_memory.py:21; "),
        ("Leave", f"{left} more often than where.retries (1) allows"),
    ):
        assert out.count(f"grid / {name} / seed 0: FAILED: {why}") == 1, out
        assert err.count(f"FAILED: grid / {name} / seed 0: {why}") == 1, err
    assert out.count("To run:") == 1 and "1 of 4 trials" in out and "STALLED" not in out
    assert all(log.stat().st_size for log in (run.output / "logs").iterdir())
    assert "Not finished: 3 trials" in err


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
@pytest.mark.alone  # the memory of another test may make Ray kill more than one trial
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
    monkeypatch.setattr(beat, "BEAT", 0.1)


def _stalls(folder: Path, work: Callable[[], None], in_thread: Callable[[], None] | None = None) -> bool:
    """Return whether the work of this thread counts as stalled after two seconds, which a busy machine may take."""
    watch, found = Watch(folder), []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            found.extend(watch.stalled(2))

    thread = threading.Thread(target=look)
    thread.start()

    def beat() -> None:
        with beating(folder / "7", "node"):
            (in_thread or work)()

    worker = threading.Thread(target=beat)
    worker.start() if in_thread else beat()
    if in_thread:
        worker.join()
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
    debugger: dict[str, Any] = {"__name__": "pdb", "time": time}
    exec("def waits(): time.sleep(3.5)", debugger)
    assert not _stalls(tmp_path / "debugger", debugger["waits"])
    assert not _stalls(tmp_path / "busy", _busy)
    assert not _stalls(tmp_path / "moving", _moving)
    assert not _stalls(tmp_path / "elsewhere", lambda: None, in_thread=_moving)  # Tune runs a trial in a thread


def test_a_worker_beats_for_the_trial_that_waits_for_it(tmp_path: Path, fast: None) -> None:
    path = tmp_path / "beats" / "7"
    with beating(path, "node"):
        written = path.read_text()
    os.utime(path, (0, 0))
    with beating(path, None):
        _moving()
    assert path.stat().st_mtime > 0 and path.read_text() == written


def test_a_look_for_a_heartbeat_costs_next_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one core at most a thousandth: a look each BEAT seconds, below a hundred frames."""
    looks, spent = 200, list[float]()

    def measured(beaten: Callable[[], None], thread: int, ended: threading.Event) -> None:
        turns = iter([False] * looks + [True])
        began = time.thread_time()
        look(beaten, thread, SimpleNamespace(wait=lambda seconds: next(turns)))  # type: ignore[arg-type]
        spent.append(time.thread_time() - began)

    def below(frames: int) -> None:
        if frames:
            below(frames - 1)
        else:
            with beating(tmp_path / "0", "node"):
                wait_until(lambda: bool(spent))

    look = beat._look
    monkeypatch.setattr(beat, "_look", measured)
    below(100)
    assert spent[0] / looks < beat.BEAT / 1000


def test_a_file_system_that_fails_shows_no_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    watch = Watch(tmp_path)
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, stale)
    assert watch.stalled(1) == []
    watch.clear()


# ------------------------------------------------------------------------- a driver of Ray that does what a test says


class Shown:
    """What a display would show of sixteen trials."""

    def __init__(self) -> None:
        trials = [SimpleNamespace(id=f"t{number}") for number in range(16)]
        self.units: Any = [SimpleNamespace(name="u", trial=trial, shared=False) for trial in trials]
        self.running: dict[int, Any] = {}
        self.reached, self.failed, self.said = [0] * 16, set[int](), list[str]()
        self.lock, self.look = threading.RLock(), None

    def __call__(self, event: str, unit: Any, values: dict[str, Any]) -> None:
        if event == "start":
            self.running[self.units.index(unit)] = values
        else:
            self.said.append(f"{event} {unit.name}")
            self.values = values
            self.failed |= {self.units.index(unit)} if event == "failed" else set()

    def ended(self) -> dict[str, int]:
        return {"finished": 7, "failed": len(self.failed)}

    def restart(self, line: str) -> None:
        self.said.append(line)
        self.running.clear()


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """Run sixteen units on a driver that does what a function says."""

    def driven(act: Callable[[Any, int], None], where: Where) -> Shown:
        def drive(pipe: Any, others: Any, units: Any, data: Any, where: Where, output: Path) -> None:
            others.close()
            act(pipe, min(where.max_concurrent or 16, len(units)))
            os._exit(0)

        shown = Shown()
        monkeypatch.setattr(launch, "_drive", drive)
        monkeypatch.setattr(launch, "left_to_run", lambda grid, store: grid)
        given: Any = SimpleNamespace(output=tmp_path, where=where), SimpleNamespace(units=shown.units)
        begin: Any = lambda devices: shown  # noqa: E731
        launch.run(*given, {}, begin)
        return shown

    return driven


def _begin(pipe: Any, many: int) -> None:
    pipe.send(("say", "Ray"))
    pipe.send(("begin", set()))
    pipe.recv()
    for number in range(many):
        pipe.send(("event", "start", number, {}))


def test_the_driver_is_given_how_many_trials_have_ended(driven: Callable[..., Shown]) -> None:
    """Also after Ray was started again; its metrics count them."""

    def act(pipe: Any, many: int) -> None:
        pipe.send(("say", "Ray"))
        pipe.send(("begin", set()))
        pipe.send(("event", "failed", 0, {"failure": str(pipe.recv())}))
        pipe.send(("finished",))

    assert driven(act, Where(retries=0)).values == {"failure": "{'finished': 7, 'failed': 0}"}


def test_a_full_memory_halves_the_trials_down_to_one(driven: Callable[..., Shown]) -> None:
    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        pipe.send(("memory",) if many > 1 else ("finished",))

    said = driven(act, Where(retries=0)).said
    assert [line.rpartition("; ")[2] for line in said] == [
        f"Ray is started again, with {half} of {2 * half} trials at once" for half in (8, 4, 2, 1)
    ]


STALLED = "it stalled for 10 s, and its process was ended"


@pytest.mark.parametrize(
    ("event", "values"),
    [
        ("retry", {"cause": STALLED}),
        ("dead", {"failure": f"{STALLED}, more often than where.retries (0) allows"}),
    ],
)
def test_a_stall_is_told_as_one(
    event: str, values: dict[str, str], driven: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        found = pipe.recv()
        pipe.send(("event", event, found.unit, {"cause": "its process died"}))
        pipe.send(("finished",))

    monkeypatch.setattr(Watch, "stalled", lambda self, longer_than: [beats.Stalled(3, "node", 1, 99.0)])
    assert driven(act, Where(retries=0, stalled_after=2.0)).values == values, "less than two heartbeats is no time"


def test_a_results_folder_that_does_not_answer_is_told_once(
    driven: Callable[..., Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process then waits, as for a file server that is gone, and goes on afterwards."""

    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        time.sleep(1.0)
        pipe.send(("finished",))

    def waits(self: Watch, longer_than: float) -> list[beats.Stalled]:
        if not waited:
            waited.append(True)
            time.sleep(2.0)
        return []

    waited: list[bool] = []
    monkeypatch.setattr(launch, "BEAT", 0.2)
    monkeypatch.setattr(launch, "LEAST", 0.4)
    monkeypatch.setattr(Watch, "stalled", waits)
    driven(act, Where(retries=0, stalled_after=2.0))
    told = capsys.readouterr().err
    assert re.fullmatch(rf"{re.escape(str(tmp_path))} has not answered for \d+ s: its file system hangs; .*\n", told)


def test_a_process_that_dies_while_it_starts_costs_a_retry_only(driven: Callable[..., Shown], tmp_path: Path) -> None:
    """Tune gives such a trial up at once, with retries left."""

    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        again = tmp_path / "again"
        if not again.exists():
            again.touch()
            pipe.send(("event", "retry", 3, {}))
            pipe.send(("event", "dead", 3, {}))
        pipe.send(("finished",))

    shown = driven(act, Where(retries=2))
    assert shown.said[:2] == ["retry u", "waiting u"] and not shown.failed
    assert shown.said[2].startswith("the process of u died while it started; Ray is started") and len(shown.said) == 3


def test_a_process_that_dies_too_often_has_failed(driven: Callable[..., Shown]) -> None:
    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        for event in ("retry", "retry", "dead"):
            pipe.send(("event", event, 3, {}))
        pipe.send(("finished",))

    assert driven(act, Where(retries=2)).said == ["retry u", "retry u", "failed u"]


def test_a_unit_that_failed_is_not_run_again_but_another_of_its_name_is(driven: Callable[..., Shown]) -> None:
    def act(pipe: Any, many: int) -> None:
        _begin(pipe, many)
        if many == 16:
            pipe.send(("event", "failed", 3, {"failure": "it is wrong"}))
            pipe.send(("lost", "Ray"))
        else:
            pipe.send(("event", "end", 0, {"left": many}) if many == 15 else ("lost", "Ray"))
            pipe.send(("finished",))

    shown = driven(act, Where())
    assert [line.partition(";")[0] for line in shown.said] == ["failed u", "Ray has failed (Ray)", "end u"]


@pytest.mark.parametrize(
    ("retries", "problem"),
    [(0, "Ray's driver has made no progress for "), (1, "Ray has not started again within 2 s")],
)
def test_a_ray_that_hangs_is_ended(
    retries: int, problem: str, driven: Callable[..., Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While trials run, and, where it may start again, while it starts."""

    def act(pipe: Any, many: int) -> None:
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            _begin(pipe, many)
        time.sleep(60)

    monkeypatch.setattr(launch, "BEAT", 0.5)
    monkeypatch.setattr(launch, "LEAST", 1.0)
    monkeypatch.setattr(launch.before, "START_SECONDS", 2.0)
    with pytest.raises(RayLost, match=f"^{problem}"):
        driven(act, Where(retries=retries, stalled_after=1.0))


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda pipe, many: time.sleep(60), "Ray did not start within "),
        (lambda pipe, many: pipe.send(("say", "Ray")) or time.sleep(60), "Ray did not start within "),
        (lambda pipe, many: pipe.send(("memory",)), "Ray could not be started: the memory of a machine is full"),
        (lambda pipe, many: None, r"Ray could not be started \(exit code 0\)$"),
    ],
)
@pytest.mark.parametrize("logs", [False, True], ids=["no logs", "logs of trials"])
def test_what_ends_the_start_is_one_sentence(
    act: Any, problem: str, logs: bool, driven: Callable[..., Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.before, "START_SECONDS", 3.0)
    if logs:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "a.log").write_text("of an earlier run")
    with pytest.raises(UserError, match=f"^{problem}"):
        driven(act, Where(stalled_after=2.0))
    assert (tmp_path / "logs").exists() == logs


def test_a_disk_that_refuses_the_log_of_ray_is_told(
    driven: Callable[..., Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match=r"ray\.log: can't be written: No space left on device"):
        driven(_begin, Where())


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

"""The live view, python -m harness.status, and the command of where.notify."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_trial, opened
from rich.cells import cell_len

from harness import status
from harness.config.load import load_config
from harness.data.dataset import LoadedData
from harness.errors import Stopped, UserError
from harness.experiment import grid, notify, publish, runner, seen, view
from harness.experiment.display import Display
from harness.experiment.publish import Ticker
from harness.experiment.scores import Leader, Scores
from harness.experiment.seen import Reader
from harness.experiment.view import Row, State
from harness.report.write import write
from harness.results import lock, progress
from harness.results.clock import Clock
from harness.results.lock import LockLost
from harness.results.progress import Progress
from harness.run import main

CONFIG = {
    "dataset": {"name": "digits", "limit": 120, "test_limit": 40},
    "model": {"name": "resnet_small", "width": 4},
    "recipe": {"epochs": 2, "batch_size": 16},
    "protocol": {"initial": 20, "budget": 10, "cycles": 2, "start": "warm"},
    "methods": {"LC": "least_confidence", "Ran": "random"},
    "seeds": [0],
    "where": {"trials": "in_process"},
}


def config(folder: Path, **changes: Any) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))
    return path


def row(number: int, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "suite": "cifar10_table1",
        "method": f"Method {number} with a name that is longer than any column may be",
        "seed": number,
        "cycle": 3,
        "cycles": 20,
        "labelled": 4000,
        "phase": "auxiliary",
        "step": 12_345,
        "steps": 39_062,
        "metrics": {"accuracy": 0.9042},
        "seconds": 3700.0,
    }
    return Row(**{**values, **changes})


def leader(suite: str) -> Leader:
    return Leader(suite=suite, method="DAST-AL", metric="miou", mean=0.5, labelled=80, seeds=2, methods=3)


# ------------------------------------------------------------------------------------------------------------ the view


@pytest.mark.parametrize("width", [79, 199])
@pytest.mark.parametrize("height", [8, 23, 49])
def test_the_view_fits_into_the_terminal(width: int, height: int) -> None:
    rows = [row(n) for n in range(60)]
    rows[0] = row(0, method="\u65b9\u6cd5" * 60, suite="\x1b[2J", stalled=True, beat=700.0)
    leaders = [leader(f"suite {number}" * 9) for number in range(9)]
    state = State(name="n" * 300, done=3, total=120, elapsed=9e4, left=1e6, rows=rows, leaders=leaders)
    lines = view.lines(state, width, height)
    assert len(lines) <= height and all(cell_len(line) <= width for line in lines)
    assert all("\x1b" not in line and "\n" not in line for line in lines)
    shown = sum("auxiliary 31 %" in line or "STALLED" in line for line in lines)
    assert shown > 0 and f"... and {60 - shown} more running" in lines
    assert "3/120 trials, elapsed 25 h 00 min, about 277 h 46 min remaining" in lines[0]
    assert "seed" in lines[1] and "silent" in lines[1]
    for part in ("90.42 %", "1 h 01 min", "11 min 40 s", "3/19", "\u2026"):
        assert part in lines[2]


def test_a_view_without_a_height_shows_all_running_trials() -> None:
    lines = view.lines(State(name="n", done=0, total=40, elapsed=1.0, rows=[row(n) for n in range(40)]), 80)
    assert len(lines) == 42 and max(map(len, lines)) <= 80


def test_one_suite_is_not_named_in_each_row() -> None:
    state = State(name="n", done=0, total=2, elapsed=1.0, rows=[row(1, method="Ran", steps=20, step=7, phase="train")])
    assert "cifar10_table1" not in "\n".join(view.lines(state, 80))
    assert view.lines(state, 80)[2].split()[:5] == ["Ran", "1", "3/19", "train", "7/20"]


def test_the_clock_of_the_view_ticks_between_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(publish, "TICK", 0.05)
    (unit, *_) = grid.expand(load_config(config(tmp_path))).units
    output = io.StringIO()
    output.isatty = lambda: True  # type: ignore[method-assign]
    show = Display([unit], output)
    show("start", unit, {})
    show.began -= 100
    ticker = Ticker(show, tmp_path)
    deadline = time.monotonic() + 20
    while "elapsed 1 min 4" not in output.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    ticker.end("finished")
    show.close()
    assert "elapsed 1 min 4" in output.getvalue()
    length = len(output.getvalue())
    time.sleep(0.2)
    assert len(output.getvalue()) == length, "nothing is shown after the end"


def test_the_display_counts_the_trials_that_have_ended(tmp_path: Path) -> None:
    units = grid.expand(load_config(config(tmp_path, seeds=[0, 1]))).units
    trials = [unit for unit in units if not unit.shared]
    show = Display(units, io.StringIO(), earlier=3)
    assert show.ended() == {"finished": 3, "failed": 0}
    for unit in units:
        show("start", unit, {})
        show("end", unit, {}) if unit is not trials[0] else show("failed", unit, {"failure": "why"})
    assert show.ended() == {"finished": 3 + len(trials) - 1, "failed": 1} and show.state().done == 6


# -------------------------------------------------------------------------------------------------------- who is ahead


def test_the_leader_is_that_of_the_highest_count_that_two_methods_have(tmp_path: Path) -> None:
    benchmark = load_config(config(tmp_path, seeds=[0, 1]))
    entries = grid.manifest(benchmark, grid.expand(benchmark))
    scores = Scores(entries)
    ids = {(entry.method, entry.seed): trial for trial, entry in entries.suites[0].trials.items()}
    scores.add(ids["Ran", 0], 0, 20, {"accuracy": 0.9})
    assert scores.leaders() == [], "one method leads nobody"
    scores.add(ids["LC", 0], 0, 20, {"accuracy": 0.5})
    scores.add(ids["LC", 0], 1, 30, {"accuracy": 0.99})
    scores.add("of no suite", 1, 30, {"accuracy": 1.0})
    (found,) = scores.leaders()
    assert (found.method, found.labelled, found.mean, found.seeds, found.methods) == ("Ran", 20, 0.9, 1, 2)
    scores.add(ids["Ran", 1], 0, 20, {"accuracy": 0.2})
    scores.add(ids["LC", 1], 0, 20, {"accuracy": 0.7})
    (found,) = scores.leaders()
    assert (found.method, found.seeds) == ("LC", 2) and found.mean == pytest.approx(0.6)
    assert scores.finished() == {ids["LC", 0]}


# ------------------------------------------------------------------------------------------------------ phase and epoch


def test_a_training_notes_its_epochs(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, cycle = opened(make_trial(epochs=4), digits)
    notes = []
    real = learner.training.loss

    def loss(*arguments: Any) -> Any:
        notes.append((progress.here.phase, progress.here.step, progress.here.steps))
        return real(*arguments)

    monkeypatch.setattr(learner.training, "loss", loss)
    learner.train(cycle)
    assert list(dict.fromkeys(notes)) == [("train", epoch, 4) for epoch in range(4)]
    assert progress.here.phase == "" and progress.here.steps == 0
    assert 0 < progress.here.expected["train"] < 2 * learner.clock.seconds["train"]


def test_steps_expect_what_those_after_the_first_take() -> None:
    found = Progress()
    clock = Clock(torch.device("cpu"), found)
    with clock.phase("score"), clock.phase("auxiliary"):
        for step in clock.steps(5):
            assert (found.phase, found.step, found.steps) == ("auxiliary", step, 5)
            time.sleep(0.3 if step == 0 else 0.02)
    assert 0.1 <= found.expected["auxiliary"] < 0.25 and "score" not in found.expected
    assert clock.seconds["auxiliary"] > 0.35
    other = Clock(torch.device("cpu"))  # of a member of a committee
    with clock.phase("train"), other.phase("evaluate"):
        assert found.phase == "train"


def test_progress_goes_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN", 0.02)
    path = tmp_path / "progress" / "trial.x"
    expected = Progress(2, "train", 7, 15, {"train": 3.5})
    with progress.written(path):
        progress.here.begin(2)
        progress.here.phase, progress.here.step, progress.here.steps = "train", 7, 15
        progress.here.expected = {"train": 3.5}
        deadline = time.monotonic() + 20
        while progress.read(path) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        assert progress.read(path) == expected
    assert not path.exists() and progress.read(path) is None
    for text in ("", "[]", "{}x", '{"cycle": "a"}', '{"expected": 3}', '{"expected": {"train": "x"}}', "null"):
        path.write_text(text)
        assert progress.read(path) is None
    progress.clear(path.parent)
    assert not path.exists()


def test_a_folder_that_is_moved_away_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN", 0.02)
    with progress.written(tmp_path / "run" / "progress" / "x"):
        while not (tmp_path / "run" / "progress" / "x").exists():
            time.sleep(0.01)
        (tmp_path / "run").rename(tmp_path / "moved")
        progress.here.step += 1
        time.sleep(0.1)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------- the status


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("live")
    assert main([str(config(folder)), f"where.output={folder / 'run'}"]) == 0
    return folder / "run"


def copied(finished: Path, folder: Path, without: str) -> Path:
    """Copy a run, without the files of this name."""
    shutil.copytree(finished, folder / "run", ignore=shutil.ignore_patterns(without))
    return folder / "run"


def contents(folder: Path) -> list[tuple[str, int, int]]:
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))]


def test_a_finished_run_says_so_and_nothing_is_written(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert status.main([str(finished)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "finished" and out[1].startswith("c: 2/2 trials, elapsed ")
    assert out[2].startswith("best so far (30 labelled): ") and "(1 seed, 2 methods)" in out[2] and len(out) == 3
    assert status.main([str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["condition"] == "finished" and (found["done"], found["total"]) == (2, 2) and found["resume"] is None
    assert status.main([str(finished), "--watch"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "finished"
    assert contents(finished) == before


@pytest.mark.parametrize("content", [None, "{", '{"state": 1}', "folder"])
def test_a_run_without_what_it_published_is_seen(content: str | None, finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path, "progress.json")
    if content == "folder":
        (run / "progress.json").mkdir()
    elif content:
        (run / "progress.json").write_text(content)
    assert Reader(run).look().condition == "finished"
    next(run.glob("trials/*/cycle_001.json")).unlink()
    found = Reader(run).look()
    assert (found.condition, found.state.done, found.state.total) == ("unfinished", 1, 2)
    assert found.resume == f"python -m harness.run {run}/config.yaml where.output={run} --resume"


def test_the_page_says_how_long_all_starts_of_a_run_took(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path, "")
    last = publish.read(run)
    assert last is not None and last.earlier == 0.0 and last.state.elapsed > 0.1
    last = last.model_copy(update={"earlier": 500.0, "state": last.state.model_copy(update={"elapsed": 400.0})})
    (run / "progress.json").write_text(last.model_dump_json())
    write(run)
    assert "<p>The run took 15 min.</p>" in (run / "report" / "report.html").read_text()
    show = Display([], io.StringIO(), name="c")
    show.began = last.written - 1.0  # a process of this start has ended, and another one goes on
    Ticker(show, run).end("running")
    assert progress.elapsed(run) == pytest.approx(500.0 + time.time() - show.began, abs=1.0)
    (run / "progress.json").write_text(last.model_dump_json())
    assert main([str(config(tmp_path)), f"where.output={run}", "protocol.cycles=3", "--resume"]) == 0
    found = publish.read(run)
    assert found is not None and found.earlier == 900.0 and found.state.elapsed > 0.1
    assert progress.elapsed(run) == pytest.approx(900.0 + found.state.elapsed)


@pytest.mark.parametrize("content", [None, "{", '{"state": 1}', '{"state": {"elapsed": "NaN"}, "earlier": 0}', "pipe"])
def test_a_page_does_not_say_how_long_a_run_took_if_that_is_not_known(
    content: str | None, finished: Path, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path, "progress.json")
    if content == "pipe":
        os.mkfifo(run / "progress.json")
    elif content:
        (run / "progress.json").write_text(content)
    write(run)
    assert "The run took" not in (run / "report" / "report.html").read_text()


def test_a_running_trial_is_shown_with_its_epoch(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path, "cycle_001.json")
    units = [unit for unit in grid.expand(load_config(tmp_path / "run" / "config.yaml")).units if not unit.shared]
    with lock.held(run):
        show = Display(units, io.StringIO(), [1, 1], name="c")
        show.look = lambda unit: (Progress(1, "train", 7, 15), 40.0)
        assert Reader(run).look().condition == "starting"
        ticker = Ticker(show, run, ["c.yaml", "a=b c"])
        show("start", units[0], {})
        ticker.publish("running")
        before = contents(run)
        assert status.main([str(run)]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith(f"running: process {os.getpid()} on ") and "0/2 trials" in out[1]
        assert [line for line in out if "train 7/15" in line and " 1/1 " in line and "40 s" in line]
        found = Reader(run).look()
        assert found.silent is not None and found.silent < seen.LATE and found.resume is None
        values = found.to_json()
        assert values["process"]["pid"] == os.getpid() and values["rows"][0]["step"] == 7
        assert contents(run) == before
        ticker.ended.set()
        ticker.thread.join()
        (run / "progress.json").write_text(
            (run / "progress.json").read_text().replace('"written":', '"written":1.0,"was":')
        )
        assert any(line.startswith("NO SIGN OF LIFE for ") for line in Reader(run).look().lines(80))
        show("failed", units[0], {"failure": "the loss is not finite"})
        ticker.end("interrupted")
        (run / "progress.json").write_text(
            (run / "progress.json").read_text().replace('"written":', '"written":1.0,"was":')
        )
        ending = Reader(run).look()
        assert (ending.condition, ending.silent) == ("running", None), "its last trackers and notice may take long"
    found = Reader(run).look()
    assert found.condition == "interrupted"
    assert found.resume == f"cd {Path.cwd()} && python -m harness.run c.yaml 'a=b c' --resume"
    assert f"FAILED: {units[0].name}: the loss is not finite" in found.lines(200)


def test_a_run_that_died_without_a_word_is_dead(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path, "cycle_001.json")
    code = (
        "import os, sys; from pathlib import Path; from harness.results import lock\n"
        "with lock.held(Path(sys.argv[1])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    found = Reader(run).look()
    assert found.condition == "dead" and found.resume
    assert found.lines(200)[0].startswith("DEAD: process ") and found.lines(80)[-1].startswith("to continue it: ")


def test_a_lock_of_another_machine_counts_by_its_age(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path, "cycle_001.json")
    values = {"host": "elsewhere", "pid": 1, "started": "today", "machine": "another", "birth": "1", "token": "t"}
    (run / "lock.1").write_text(json.dumps(values))
    assert Reader(run).look().condition == "starting"
    os.utime(run / "lock.1", (time.time() - 1000,) * 2)
    assert Reader(run).look().condition == "dead"


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_a_folder_without_a_run_is_one_sentence(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    assert status.main([str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: not the results folder of a run: it has no run.json\n"


# ---------------------------------------------------------------------------------------------------------- the notice


def test_the_command_runs_at_the_end_of_a_run(tmp_path: Path) -> None:
    """What the run is called reaches it as a value: no shell reads it."""
    command = "env | grep ^HARNESS_ > told; cat >> told"
    methods = {"$(touch stolen)`touch stolen`; touch stolen": "random"}
    path = config(tmp_path, methods=methods, where={"trials": "in_process", "notify": f"cd {tmp_path}; {command}"})
    assert main([str(path), f"where.output={tmp_path / 'run'}"]) == 0
    told = (tmp_path / "told").read_text().splitlines()
    sentence = f"c has finished: 1 of 1 trials are finished; the report is in {tmp_path / 'run' / 'report'}"
    assert {f"HARNESS_RUN={tmp_path / 'run'}", "HARNESS_OUTCOME=finished", f"HARNESS_MESSAGE={sentence}"} < set(told)
    assert f"HARNESS_REPORT={tmp_path / 'run' / 'report'}" in told and told[-1] == sentence
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.parametrize(
    ("error", "how", "sentence"),
    [
        (Stopped(signal.SIGTERM), "interrupted", "c was stopped by SIGTERM; --resume continues it"),
        (KeyboardInterrupt(), "interrupted", "c was stopped by SIGINT; --resume continues it"),
        (LockLost("it was taken over"), "interrupted", "c has stopped: it was taken over"),
        (UserError("the data is missing"), "failed", "c has failed: the data is missing"),
        (ZeroDivisionError(), "failed", "c has failed: ZeroDivisionError"),
        (None, "failed", "c has failed"),
    ],
)
def test_the_command_learns_how_a_run_ended(
    error: BaseException | None, how: str, sentence: str, tmp_path: Path
) -> None:
    def work() -> int:
        if error is not None:
            raise error
        return 1

    command = f"(echo $HARNESS_OUTCOME; cat) > {tmp_path}/told"
    if error is None:
        assert notify.announced(notify.Notice(command, "c", tmp_path), work) == 1
    else:
        with pytest.raises(type(error)):
            notify.announced(notify.Notice(command, "c", tmp_path), work)
    assert (tmp_path / "told").read_text() == f"{how}\n{sentence}\n"


def test_a_run_whose_folder_was_taken_over_says_so(tmp_path: Path) -> None:
    """The thread that renews the lock interrupts it."""
    folder = tmp_path / "run"

    def work() -> int:
        values = {"host": "elsewhere", "pid": 1, "started": "today", "machine": "another", "birth": "1", "token": "t"}
        (folder / "lock.2").write_text(json.dumps(values))
        raise Stopped(signal.SIGINT)

    with pytest.raises(LockLost), lock.held(folder):
        notify.announced(notify.Notice(f"cat > {tmp_path}/told", "c", folder), work)
    told = (tmp_path / "told").read_text()
    assert told.startswith(f"c has stopped: {folder} was taken over by process 1 on elsewhere, ")


def test_the_command_runs_before_the_report_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler kills the run soon, and reports and trackers may take long."""
    told, seen = tmp_path / "told", []

    def stopped(*_: Any) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(runner, "_run_in_process", stopped)
    monkeypatch.setattr(runner, "write", lambda *_: seen.append(told.read_text()))
    path = config(tmp_path, where={"trials": "in_process", "notify": f"cat >> {told}"})
    assert main([str(path), f"where.output={tmp_path / 'run'}"]) == 128 + signal.SIGTERM
    assert seen == ["c was stopped by SIGTERM: 0 of 2 trials are finished; --resume continues it\n"]
    assert told.read_text() == seen[0], "it runs once"
    assert Reader(tmp_path / "run").look().condition == "interrupted"


def test_a_run_that_writes_its_report_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "TICK", 0.02)
    monkeypatch.setattr(publish, "PUBLISHED", 0.02)
    folder, found = tmp_path / "run", []

    def units(placement: Any, grid: Any, data: Any, run: Any, display: Display) -> None:
        display("start", display.units[0], {})

    def write(*_: Any) -> None:
        first = publish.read(folder)
        deadline = time.monotonic() + 20
        while (last := publish.read(folder)) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        found.append((first, last, Reader(folder).look()))

    monkeypatch.setattr(runner, "_run_in_process", units)
    monkeypatch.setattr(runner, "write", write)
    assert main([str(config(tmp_path)), f"where.output={folder}"]) == 1
    ((first, last, look),) = found
    assert first is not None and last is not None and last.written > first.written
    assert look.condition == "running" and look.silent < seen.LATE
    assert look.state.rows == [] and look.state.left is None, "no trial runs any more"
    ended = publish.read(folder)
    assert ended is not None and ended.outcome == "failed"
    time.sleep(0.1)
    assert publish.read(folder) == ended


def test_a_failed_trial_is_named(tmp_path: Path) -> None:
    state = State(name="c", done=1, total=3, failed={"c / Ran / seed 0": "why", "c / LC / seed 0": "why"}, elapsed=1.0)
    values = {"token": "", "written": 0.0, "outcome": "failed", "folder": "/", "command": []}
    (tmp_path / "progress.json").write_text(publish.Published(**values, state=state).model_dump_json())
    said = notify._message("c", tmp_path, 1)
    assert said == "c has failed: 1 of 3 trials are finished; FAILED: c / Ran / seed 0 and 1 more: why"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo first >&2; echo no such host >&2; exit 3", "failed with exit code 3 (no such host)"),
        ("kill -9 $$", "died of signal 9"),
        ("sleep 60", "took longer than 1 s and was ended"),
        ("sleep 60 & exit 0", "has processes in the background that took longer than 1 s and were ended"),
        ("cat > /dev/null; no-such-command", "failed with exit code 127 (/bin/sh: "),
    ],
)
def test_a_command_that_fails_or_hangs_is_one_warning(
    command: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "LIMIT", 1.0)
    began = time.monotonic()
    assert notify.announced(notify.Notice(command, "c", tmp_path), lambda: 0) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"warning: where.notify: the command {problem}") and err.count("\n") == 1
    assert time.monotonic() - began < 20


def test_a_command_may_work_on_in_the_background(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As mail does, which returns before the message is delivered."""
    began = time.monotonic()
    notify.announced(notify.Notice(f"(sleep 0.3; echo sent > {tmp_path}/file) & exit 0", "c", tmp_path), lambda: 0)
    assert (tmp_path / "file").read_text() == "sent\n"
    assert time.monotonic() - began < 10 and capsys.readouterr().err == ""


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LIMIT", 0.5)
    notify.announced(notify.Notice(f"sleep 300 & echo $! > {tmp_path}/pid", "c", tmp_path), lambda: 0)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


@pytest.mark.long
def test_a_signal_while_the_command_runs_ends_the_command_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert notify.announced(notify.Notice("sleep 60", "c", tmp_path), lambda: 0) == 0
    timer.join()
    assert capsys.readouterr().err == "warning: where.notify: the command was interrupted\n"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_runs_when_a_signal_ends_the_run(number: signal.Signals, tmp_path: Path) -> None:
    path = config(tmp_path, recipe={"epochs": 100_000, "batch_size": 16})
    words = [sys.executable, "-m", "harness.run", str(path), f"where.output={tmp_path / 'run'}"]
    words.append(f"where.notify=(echo $HARNESS_OUTCOME; cat) > {tmp_path}/told; exit 4")
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(number)
    try:
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()  # one that does not heed the signal would train for hours
    assert running.returncode == 128 + number, err
    assert "warning: where.notify: the command failed with exit code 4\n" in err
    sentence = f"c was stopped by {number.name}: 0 of 2 trials are finished; --resume continues it"
    assert (tmp_path / "told").read_text().splitlines() == ["interrupted", sentence]
    assert Reader(tmp_path / "run").look().condition == "interrupted"

"""What is watched of a run: trials on all training images count like others, and leaders cost little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from many_records import packed
from test_report import METHODS, record, suite

from harness import run
from harness.experiment.scores import Scores
from harness.experiment.seen import Reader
from harness.results.manifest import Manifest
from harness.results.records import SCHEMA_VERSION, CycleRecord
from harness.tracking.tracker import trials


def write(folder: Path, r: CycleRecord) -> None:
    path = folder / "trials" / r.trial / f"cycle_{r.cycle:03d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(r.to_json(), r.trial))


def full(seed: int) -> CycleRecord:
    return record("-", seed, 0, 0.9, trial=f"full.s{seed}", labelled=1000, selected=[])


def a_run(folder: Path) -> Manifest:
    """Write a run whose trials of methods are finished, and none on all images."""
    entry = suite(
        pool=1000,
        full_data={"full.s0": 0, "full.s1": 1},
        seeds=[0, 1],
        trials={f"{m}-{s}": {"method": m, "seed": s} for m in METHODS for s in range(2)},
        settings={"recipe": {"epochs": 2}, "protocol": {"initial": 100, "cycles": 3, "budget": 100}},
    )
    manifest = Manifest(schema_version=SCHEMA_VERSION, name="quick", suites=[entry])
    folder.mkdir()
    (folder / "run.json").write_bytes(manifest.packed())
    for method in METHODS:
        for seed in range(2):
            for cycle in range(3):
                write(folder, record(method, seed, cycle, 0.5))
    return manifest


def test_a_run_without_them_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    manifest = a_run(folder)
    scores = Scores(manifest)
    assert scores.cycles["full.s1"] == 1 and scores.cycles["Ran-1"] == 3
    write(folder, full(0))
    found = Reader(folder).look()
    assert (found.condition, found.state.done, found.state.total) == ("unfinished", 7, 8)
    assert found.resume is not None
    assert [leader.labelled for leader in found.state.leaders] == [400], "they are compared with nothing"
    write(folder, full(1))
    found = Reader(folder).look()
    assert (found.condition, found.state.done, found.resume) == ("finished", 8, None)


def test_leaders_are_found_once_for_each_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, looks = Scores(a_run(tmp_path / "run")), []
    real = scores._leader
    monkeypatch.setattr(scores, "_leader", lambda name: looks.append(name) or real(name))
    for method, accuracy in (("Ran", 0.5), ("Ran+", 0.6), ("DAST-AL", 0.7)):
        scores.add(f"{method}-0", 0, 100, {"accuracy": accuracy})
        assert [leader.method for leader in scores.leaders() + scores.leaders()] == [method] * 2 * (method != "Ran")
    assert len(looks) == 3


def test_trackers_are_sent_them(tmp_path: Path) -> None:
    found = trials(a_run(tmp_path / "run"))
    assert [trial.cycles for trial in found.values()] == [3] * 6 + [1] * 2
    last = found["full.s1"]
    assert last.name == "digits / all 1000 images / seed 1"
    assert last.config == {
        "method": "all 1000 images",
        "seed": 1,
        "recipe.epochs": 2,
        "protocol.initial": 1000,
        "protocol.cycles": 1,
    }


def test_a_plan_to_resume_a_run_without_its_manifest_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(
        "dataset: {name: digits, limit: 120}\nmodel: resnet_small\nrecipe: {epochs: 1}\nseeds: [0]\n"
        "protocol: {initial: 20, budget: 10, cycles: 2, start: warm}\nmethods: {Ran: random}\nfull_data: true\n"
        "where: {trials: in_process, output: run}\n"
    )
    from harness.config.load import load_config

    (trial,) = load_config("c.yaml").suites[0].full_trials(120)
    write(Path("run"), replace(full(0), trial=trial.id))
    Path("run/run.json").write_text("{")
    assert run.main(["c.yaml", "--plan", "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "is damaged: it is written again" in printed
    assert "leaves the tables" not in printed

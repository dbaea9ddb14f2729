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
from harness.report.curves import full_records
from harness.report.formats import csv
from harness.report.record_table import record_table
from harness.report.sources import one
from harness.results.manifest import Manifest
from harness.results.records import SCHEMA_VERSION, CycleRecord
from harness.results.store import RunStore
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


def test_records_csv_has_them_and_what_other_tables_show(tmp_path: Path) -> None:
    manifest = a_run(tmp_path / "run")
    write(tmp_path / "run", full(0))
    matrix = [{"a": {"a": 3, "b": 1}, "b": {"b": 4}}]
    changes = {"confusion": matrix, "calibration": {"ece": 0.25, "nll": 1.5}, "selected_classes": [2, 2]}
    write(tmp_path / "run", record("Ran", 0, 0, 0.5, **changes, energy_joules=7.0, shared_from="key"))
    ((entry, records),) = one(tmp_path / "run").suites
    records[0] = replace(records[0], confusion=matrix)
    table = record_table([(entry, [*full_records(entry, RunStore(tmp_path / "run")), *records])])
    assert [*table["method"]] == [method for method in METHODS for _ in range(6)] + ["all 1000 images"]
    assert table.iloc[-1][["labelled", "accuracy (%)", "selected"]].tolist() == [1000, 90.0, 0]
    names = [
        "balanced accuracy (%)",
        "ECE (%)",
        "NLL (nats)",
        "class entropy (%)",
        "energy_joules",
        "shared_first_cycle",
    ]
    assert table.iloc[0][names].tolist() == [87.5, 25.0, 1.5, 100.0, 7.0, True]
    assert table.iloc[1][names[:5]].isna().all()
    (head,) = csv(record_table([(entry, [])])).splitlines()
    assert head.startswith("suite,dataset,model,method,seed,cycle,labelled,")
    assert manifest.suites == [entry]


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

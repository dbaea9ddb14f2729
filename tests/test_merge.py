"""The report of several runs: ``python -m harness.report A B C``."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many_records import packed
from test_report import METHODS, all_records, record, suite

import harness
import harness.report.__main__
from harness.report.__main__ import main
from harness.report.curves import full_data_notes, full_records
from harness.report.merge import sources
from harness.report.transfer import transfer
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.records import SCHEMA_VERSION, CycleRecord

HALVES = {name: {"training": {"name": "t"}, "acquisition": {"name": name}} for name in METHODS}


def a_run(folder: Path, records: list[CycleRecord], version: int = SCHEMA_VERSION, **changes: Any) -> Path:
    """Write the folder of a run with one suite, whose trials are those of the records."""
    trials = {r.trial: {"method": r.method, "seed": r.seed} for r in records}
    values: dict[str, Any] = {"halves": HALVES, "trials": trials, "seeds": sorted({r.seed for r in records})}
    entry: SuiteEntry = suite(**(values | changes))
    for r in records:
        path = folder / "trials" / r.trial / f"cycle_{r.cycle:03d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(r.to_json(), r.trial))
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(Manifest(schema_version=version, name="quick", suites=[entry]).packed())
    return folder


def of(keep: Callable[[CycleRecord], bool], **changes: Any) -> list[CycleRecord]:
    return [r for r in all_records(**changes) if keep(r)]


def report(capsys: pytest.CaptureFixture[str], folder: Path, *runs: Path) -> str:
    """Return what the command prints, without its line breaks."""
    assert main([*map(str, runs), "--output", str(folder)]) == 0
    return " ".join(capsys.readouterr().out.split())


def tables(folder: Path) -> dict[str, str]:
    """Return the tables of a report: file name -> text."""
    return {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".txt", ".csv", ".tex", ".svg")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_a_run_split_by_seeds_has_the_report_of_the_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = a_run(tmp_path / "whole", all_records())
    parts = [a_run(tmp_path / f"seed{seed}", of(lambda r, seed=seed: r.seed == seed)) for seed in (0, 1, 2)]
    report(capsys, tmp_path / "one", whole)
    before = {path: path.stat().st_mtime_ns for part in parts for path in [part, *part.rglob("*")]}
    printed = report(capsys, tmp_path / "merged", *parts)
    assert tables(tmp_path / "merged") == tables(tmp_path / "one")
    assert "9 of 9 trials and 27 of 27 cycles finished" in printed
    assert before == {path: path.stat().st_mtime_ns for part in parts for path in [part, *part.rglob("*")]}
    page = (tmp_path / "merged" / "report.md").read_text()
    for text in (printed, page.replace("\\_", "_")):
        for seed, part in enumerate(parts):
            origin = (
                f"seed{seed}: run quick in {part}, 9 of 9 cycles finished; device cpu, precision bfloat16, torch 2.11"
            )
            assert text.count(origin) == 1, "each run's origin is said once"
        assert "The records are from seed0, seed1, seed2: their machines and loads may differ" in text
    frame = harness.load(whole).drop(columns="trial")
    with pytest.warns(UserWarning, match="machines and loads may differ"):
        assert harness.load(*parts).drop(columns="trial").equals(frame)


def test_costs_are_compared_only_within_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both machines call their device cpu, and one may be twice as fast."""
    ran = a_run(tmp_path / "slow", of(lambda r: r.method == "Ran"), methods=["Ran"])
    others = a_run(tmp_path / "fast", of(lambda r: r.method != "Ran"), methods=METHODS[1:])
    printed = report(capsys, tmp_path / "merged", ran, others)
    assert "0 seeds with both trials from one run can't show that a method is cheaper; 10 seeds can." in printed
    assert "3 seeds can't show a difference to Ran" in printed


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_split_with_copies_has_the_tables_of_the_whole_run(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some trials are in several runs, some of these have fewer cycles there."""
    tmp = tmp_path_factory.mktemp("split")
    whole = all_records()
    runs: list[list[CycleRecord]] = [[], [], []]
    for trial in sorted({r.trial for r in whole}):
        full = data.draw(st.integers(0, 2))
        for number, records in enumerate(runs):
            cycles = 3 if number == full else data.draw(st.integers(0, 3))
            records += [r for r in whole if r.trial == trial and r.cycle < cycles]
    folders = [a_run(tmp / str(number), records, seeds=[0, 1, 2]) for number, records in enumerate(runs)]
    found = sources(data.draw(st.permutations(folders)), tmp / "index")
    (entry, records), *others = found.suites
    assert not others
    assert entry.methods == METHODS
    assert {*entry.trials} == {r.trial for r in whole}
    key = lambda r: (r.trial, r.cycle)  # noqa: E731
    assert [(r.trial, r.metrics, r.method, r.seed) for r in sorted(records, key=key)] == [
        (r.trial, r.metrics, r.method, r.seed) for r in sorted(whole, key=key)
    ]
    assert [r for _, full in harness.report.sources.one(folders[0]).suites for r in full] == runs[0]


def with_full_data(folder: Path, seed: int, seeds: dict[str, int], accuracy: float | None) -> Path:
    """Write a run of one seed, with trials on all images, of which that of the seed is finished with an accuracy."""
    run = a_run(folder, of(lambda r: r.seed == seed), pool=1000, full_data=seeds)
    if accuracy is not None:
        trial = f"full.s{seed}"
        full = record("-", seed, 0, accuracy, trial=trial, labelled=1000, selected=[])
        path = run / "trials" / trial / "cycle_000.json"
        path.parent.mkdir()
        path.write_bytes(packed(full.to_json(), trial))
    return run


def full_data(*runs: Path) -> tuple[list[tuple[int, float]], list[str]]:
    """Return (seed, accuracy) of the trials on all images of merged runs, and the notes on their suite."""
    found = sources(runs)
    ((entry, _),) = found.suites
    full = full_records(entry, found.store)
    return [(r.seed, r.metrics["accuracy"]) for r in full], [
        *found.suite_notes[entry.name],
        *full_data_notes(entry, full),
    ]


def test_trials_on_all_images_are_merged(tmp_path: Path) -> None:
    both = {"full.s0": 0, "full.s1": 1}
    one, two = with_full_data(tmp_path / "a", 0, both, 0.9), with_full_data(tmp_path / "b", 1, both, 0.8)
    for runs in ((one, two), (two, one)):
        found, notes = full_data(*runs)
        assert sorted(found) == [(0, 0.9), (1, 0.8)]
        assert len(notes) == 1, "that records are from two runs"
    parts = [with_full_data(tmp_path / f"c{s}", s, {f"full.s{s}": s}, value) for s, value in ((0, 0.9), (1, None))]
    found, notes = full_data(*parts)
    assert found == [(0, 0.9)]
    assert notes[-1] == "all 1000 images: 1 of 2 trials finished."


def test_two_results_of_a_trial_on_all_images_are_warned_of(tmp_path: Path) -> None:
    seeds = {"full.s0": 0}
    values = {"a": 0.9, "b": 0.8, "c": 0.9}
    one, two, same = (with_full_data(tmp_path / name, 0, seeds, value) for name, value in values.items())
    found, notes = full_data(one, two)
    assert found == [(0, 0.9)]
    assert notes[0] == (
        f"WARNING: {one} and {two} hold different results of full.s0, which trains on all images (cycle 0: metrics): "
        "that of a is shown."
    )
    found, notes = full_data(one, same)
    assert found == [(0, 0.9)] and not any("different results" in note for note in notes)


def test_other_code_stays_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "a", of(lambda r: r.seed < 2, code={"harness": "aaaaaaaaaaaa"}))
    other = a_run(tmp_path / "b", of(lambda r: r.seed == 2, code={"harness": "bbbbbbbbbbbb"}))
    printed = report(capsys, tmp_path / "merged", one, other)
    assert re.search(r"Ran \[code aaaaaa\] +50.50±0.71", printed)
    assert re.search(r"Ran \[code bbbbbb\] +52.00 ", printed)
    assert "The methods are not compared: Ran has the rows" in printed


def test_a_trial_that_two_runs_hold_counts_once_if_they_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = a_run(tmp_path / "a", all_records())
    slower = [replace(r, wall_seconds=r.wall_seconds + 1) for r in all_records() if r.seed == 1]
    report(capsys, tmp_path / "one", whole)
    report(capsys, tmp_path / "merged", whole, a_run(tmp_path / "b", slower))
    assert tables(tmp_path / "merged") == tables(tmp_path / "one")


def test_a_trial_with_two_results_is_in_two_rows_and_both_folders_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = a_run(tmp_path / "a", all_records())
    changed = [replace(r, metrics={"accuracy": 0.25}) if r.cycle == 1 else r for r in of(lambda r: r.trial == "Ran-1")]
    other = a_run(tmp_path / "b", changed)
    printed = report(capsys, tmp_path / "merged", whole, other)
    sentence = (
        f"WARNING: {whole} and {other} hold different results of Ran-1 under equal conditions (cycle 1: metrics): "
        "both are shown, in rows of their own."
    )
    assert sentence in printed
    assert re.search(r" Ran 51.00±1.00 61.00±1.00 ", printed)
    assert re.search(r" Ran \[b\] 51.00 25.00 71.00 1 ", printed)
    moved = [replace(r, device="NVIDIA H100") for r in changed]
    printed = report(capsys, tmp_path / "moved", whole, a_run(tmp_path / "c", moved))
    assert "of Ran-1 under different conditions (cycle 1: metrics)" in printed
    assert re.search(r" Ran \[device cpu\] 51.00±1.00 ", printed)
    assert re.search(r" Ran \[device NVIDIA H100\] 51.00 25.00 ", printed)


def test_a_trial_that_goes_on_in_a_run_that_is_kept_apart_stays_where_it_was(tmp_path: Path) -> None:
    """Seed 0 of Ran differs, so that all of b's Ran is a row of its own, also seed 1, which agrees and is longer."""
    rans = of(lambda r: r.method == "Ran" and r.seed < 2)
    one = a_run(tmp_path / "a", [r for r in rans if (r.seed, r.cycle) != (1, 2)])
    two = a_run(tmp_path / "b", [replace(r, metrics={"accuracy": 0.25}) if r.seed == 0 else r for r in rans])
    ((entry, records),) = sources([one, two]).suites
    found: dict[str, dict[int, int]] = {}
    for r in records:
        found.setdefault(r.method, {}).setdefault(r.seed, 0)
        found[r.method][r.seed] += 1
    assert found == {"Ran": {0: 3, 1: 2}, "Ran [b]": {0: 3, 1: 3}}
    assert len(entry.trials) == 4


def test_a_trial_of_two_suites_goes_on_in_one_of_them(tmp_path: Path) -> None:
    short = of(lambda r: r.trial == "Ran-0" and r.cycle < 2)
    one, two = a_run(tmp_path / "a", short), a_run(tmp_path / "b", of(lambda r: r.trial == "Ran-0"))
    manifest = Manifest.read(one)
    (entry,) = manifest.suites
    other = entry.model_copy(update={"name": "other", "title": "Other"})
    (one / "run.json").write_bytes(manifest.model_copy(update={"suites": [other, entry]}).packed())
    found = sources([one, two])
    assert [(entry.name, len(records)) for entry, records in found.suites] == [("other", 2), ("digits", 3)]
    for _, records in found.suites:
        trial = found.store.trial(records[0].trial)
        assert len(trial.records()) == len(records)


def test_what_some_runs_lack_of_a_suite_is_that_of_the_others(tmp_path: Path) -> None:
    def run(name: str, seed: int, **changes: Any) -> Path:
        return a_run(tmp_path / name, of(lambda r: r.seed == seed), **changes)

    full = {"primary": ["DAST-AL", "Ran"], "equal_within": 0.5, "official_data": True, "pool": 1000}
    part = {**full, "primary": None, "pool": None}
    skipped = run("s", 2, skipped="the data is missing", primary=["Ran+", "Ran"])
    for runs in ([run("a", 0, **part), run("b", 1, **full)], [run("c", 0, **full), run("d", 1, **part)]):
        ((entry, _),) = (found := sources([skipped, *runs])).suites
        assert (entry.primary, entry.equal_within, entry.pool) == (["DAST-AL", "Ran"], 0.5, 1000)
        assert entry.official_data and not any("differ in primary" in note for note in found.suite_notes["digits"])
    ((entry, _),) = sources([run("e", 0, **full), run("f", 1, **{**full, "official_data": False})]).suites
    assert not entry.official_data, "a verdict needs the published files in every run"
    other = run("g", 1, **{**full, "primary": ["Ran+", "Ran"]})
    ((entry, _),) = (found := sources([skipped, run("h", 0, **full), other])).suites
    assert entry.primary == ["DAST-AL", "Ran"]
    assert "WARNING: the runs differ in primary or equal_within: those of h count." in found.suite_notes["digits"]


def replaying(folder: Path, seed: int, **changes: Any) -> Path:
    """Write a run of one seed that replays another run, whose curves are 10 points lower at Ran and 5 at the others."""
    run = a_run(folder, of(lambda r: r.seed == seed))
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for r in of(lambda r: r.seed == seed):
        value = r.metrics["accuracy"] - (0.1 if r.method == "Ran" else 0.05)
        curves.setdefault(r.method, {}).setdefault(seed, {})[r.labelled] = value
    source = {"network": "vgg", "metric": "accuracy", "reference": "Ran", "curves": curves, **changes}
    (run / "index_sets").mkdir()
    (run / "index_sets" / "source.json").write_text(json.dumps({"suites": {"digits": source}}))
    return run


def test_runs_that_replay_parts_of_one_run_have_its_curves(tmp_path: Path) -> None:
    one, two = replaying(tmp_path / "a", 0), replaying(tmp_path / "b", 1)
    found = sources([one, two])
    ((entry, records),) = found.suites
    gains = transfer(entry, records, found.selected_by[entry.name])
    assert gains is not None and {m: [*by_seed] for m, by_seed in gains.gains.items()} == {
        "Ran+": [0, 1],
        "DAST-AL": [0, 1],
    }
    assert gains.gains["Ran+"][1] == pytest.approx((7.0, 2.0))
    other = replaying(tmp_path / "c", 2, network="drn")
    found = sources([one, other])
    ((entry, records),) = found.suites
    assert [*found.selected_by["digits"].curves["Ran"]] == [0]
    note = "The table of transfer leaves out c, whose images drn has selected, not vgg."
    assert note in found.suite_notes["digits"]
    path = other / "index_sets" / "source.json"
    path.write_text("{")
    assert any(note.startswith(f"{path} is damaged") for note in sources([one, other]).suite_notes["digits"])
    apart = a_run(tmp_path / "d", of(lambda r: r.seed == 1), settings={"recipe": {"epochs": 9}})
    assert [*sources([one, apart]).selected_by] == ["digits (a)"]


def test_suites_with_other_settings_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "a", of(lambda r: r.seed == 0), settings={"recipe": {"epochs": 2}})
    two = a_run(tmp_path / "b", of(lambda r: r.seed == 1), settings={"recipe": {"epochs": 2}})
    other = a_run(tmp_path / "c", of(lambda r: r.seed == 2), settings={"recipe": {"epochs": 3}})
    printed = report(capsys, tmp_path / "merged", one, two, other)
    assert "Digits (a, b) =============" in printed
    assert "Digits (c) ==========" in printed
    assert "a and c differ in suite digits (recipe.epochs is 2 and 3): their results are kept apart." in printed
    assert {"digits_a_b__accuracy.csv", "digits_c__accuracy.csv"} <= {*tables(tmp_path / "merged")}
    older = a_run(tmp_path / "d", of(lambda r: r.seed == 2), version=2, settings={"recipe": {"epochs": 2}})
    assert "schema_version is 3 and 2" in report(capsys, tmp_path / "older", one, older)


def test_a_name_that_stands_for_two_methods_has_two_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "a", of(lambda r: r.seed == 0))
    other = json.loads(json.dumps(HALVES))
    other["Ran"]["acquisition"]["size"] = 7
    renamed = {"Random": HALVES["Ran"], "Ran": other["Ran"]}
    records = [replace(r, trial=f"{r.trial}x", method="Ran") for r in of(lambda r: r.trial == "Ran-1")]
    records += [replace(r, method="Random") for r in of(lambda r: r.trial == "Ran-2")]
    two = a_run(tmp_path / "b", records, methods=[*renamed], halves=renamed)
    printed = report(capsys, tmp_path / "merged", one, two)
    assert (
        "Ran stands for different settings in a and b (acquisition.size is the default and 7): that of b is Ran [b]."
        in printed
    )
    assert "Random of b is the method Ran under another name." in printed
    assert re.search(r" Ran 51.00±1.41 ", printed), "seeds 0 and 2"
    assert re.search(r" Ran \[b\] 51.00 ", printed)


def test_an_unfinished_run_and_one_of_more_cycles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "a", of(lambda r: r.seed == 0 and r.cycle < 2), labelled=[100, 200])
    two = a_run(tmp_path / "b", of(lambda r: r.seed == 1))
    records = of(lambda r: r.seed == 2 and (r.method, r.cycle) != ("Ran", 1))
    three = a_run(tmp_path / "c", records)
    empty = a_run(tmp_path / "d", [], trials={"Ran-7": {"method": "Ran", "seed": 7}})
    printed = report(capsys, tmp_path / "merged", one, two, three, empty)
    assert re.search(r" Ran 51.00±1.00 60.50±0.71 \(n=2\) 71.00 \(n=1\) 3 ", printed)
    assert f"{three}/trials/Ran-2/cycle_001.json is lost" in printed
    assert f"d: run quick in {empty}, 0 of 3 cycles finished; no results yet." in printed


def test_folders_that_can_not_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (a_run(tmp_path / name, of(lambda r: r.seed == 0)) for name in "ab")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    output = ("--output", tmp_path / "out")
    assert refused(capsys, one, foreign, *output) == (f"{foreign}: not the results folder of a run: it has no run.json")
    assert f"{one / '..' / 'a'}: is the same folder as {one}" in refused(capsys, one, two, one / ".." / "a", *output)
    assert f"{one / 'report'}: is in the run {one}" in refused(capsys, one, two, "--output", one / "report")
    third = a_run(tmp_path / "c", of(lambda r: r.seed == 0))
    assert f"{third}: is the results folder of a run" in refused(capsys, one, two, "--output", third)
    monkeypatch.chdir(one)
    assert f"merged_report: is in the run {one}" in refused(capsys, one, two)
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(foreign)
    assert main([str(one), str(two)]) == 0
    assert (foreign / "merged_report" / "report.md").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("file", "Not a directory"),
        ("file/x", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("full/x", "Read-only file system"),
    ],
)
def test_a_folder_that_can_not_be_written_to_is_named_before_records_are_read(
    output: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "a", of(lambda r: r.seed == 0))
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)

    def temporary(dir: Path) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if output == "full/x":
        monkeypatch.setattr(harness.report.__main__, "TemporaryFile", temporary)
    monkeypatch.setattr(harness.report.__main__, "sources", None)
    sentence = refused(capsys, run, "--output", output)
    assert sentence == f"--output: {output[:200]} can't be written to: {why}; set --output to another folder"


def test_runs_of_one_folder_name_are_told_apart_by_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    one = a_run(tmp_path / "x" / "run", [record("Ran", 0, 0, 0.5)])
    two = a_run(tmp_path / "y" / "run", [record("Ran", 1, 0, 0.5)], settings={"recipe": {"epochs": 3}})
    printed = report(capsys, tmp_path / "merged", one, two)
    assert f"Digits ({one})" in printed
    assert f"Digits ({two})" in printed

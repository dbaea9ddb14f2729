"""The index of a report's records: it saves reading, and decides nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import many_records
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import METHODS, all_records, record, run_dir, street_records, suite

from harness.report import html, index
from harness.report.index import short
from harness.report.sources import one
from harness.report.write import write
from harness.results import disk
from harness.results.records import CycleRecord
from harness.results.store import RunStore

TICK = 0.02
"""Seconds after which the clock of the file system has moved on."""


@pytest.fixture(autouse=True)
def _of_any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index suites of any size, and files that have just been written, too."""
    monkeypatch.setattr(index, "FEWEST", 0)
    monkeypatch.setattr(index, "YOUNG", -(10**9))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cycle files that are read."""
    found: list[str] = []
    original = disk.read

    def read(path: Path, most: int | None = None) -> bytes:
        if index.FILES.fullmatch(path.name) and path.exists():
            found.append(f"{path.parent.name}/{path.name}")
        return original(path, most)

    monkeypatch.setattr(disk, "read", read)
    return found


def fast(folder: Path, records: list[CycleRecord]) -> Path:
    """Write the cycle files of records, without syncing them."""
    run_dir(folder, [], [suite()])
    for r in records:
        path = folder / "trials" / r.trial / f"cycle_{r.cycle:03d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(many_records.packed(r.to_json(), r.trial))
    return folder


def with_index(folder: Path) -> list[CycleRecord]:
    return [r for _, records in one(folder, folder / "index").suites for r in records]


def without(folder: Path) -> list[CycleRecord]:
    return [short(r) for _, records in one(folder).suites for r in records]


def index_file(folder: Path) -> Path:
    (path,) = (folder / "index").iterdir()
    return path


def test_the_next_report_reads_only_what_changed_and_what_the_index_lacks(tmp_path: Path, opened: list[str]) -> None:
    run = fast(tmp_path / "run", all_records())
    text = write(run)
    shown = [f"{method}-0/cycle_000.json" for method in METHODS]  # with their selected images
    assert sorted(opened) == sorted(
        [f"{m}-{s}/cycle_00{c}.json" for m in METHODS for s in range(3) for c in range(3)] + shown
    )
    opened.clear()
    files = {p: p.read_bytes() for p in (run / "report").iterdir() if p.is_file()}
    assert write(run) == text
    assert sorted(opened) == sorted(shown)
    assert {p: p.read_bytes() for p in files} == files
    opened.clear()
    path = run / "trials" / "Ran-1" / "cycle_002.json"
    path.write_bytes(many_records.packed(record("Ran", 1, 2, 0.99).to_json(), "Ran-1"))
    assert "99.00" not in text
    assert ("Ran-1", 0.99) in {(r.trial, r.metrics["accuracy"]) for r in with_index(run)}
    assert opened == ["Ran-1/cycle_002.json"]
    opened.clear()
    write(run)
    assert sorted(opened) == sorted(shown)


def test_the_records_are_those_of_the_files(tmp_path: Path) -> None:
    shard = {"pid": 1, "images": 5, "seconds": 0.1, "warnings": [], "peak_memory_bytes": {"host": 7}}
    rich: dict[str, Any] = {
        "scoring": {"path": "ray_data", "shards": [shard]},
        "warnings": ["one\x1b[0m", "two"],
        "initial_set": [4, 5],
        "health": {"loss": 0.5},
        "trained_under": {"torch": "2.10", "device": "cpu"},
        "selected_files": ["a", "b"],
        "code": {"harness": "b" * 12, "acquisition x": "a" * 12},
        "shared_from": "key",
    }
    records = street_records() + [r for r in all_records(**rich) if r.method == "Ran+"]
    run = fast(tmp_path / "run", records)
    expected = without(run)
    assert len(expected) == len(records)
    for _ in range(2):
        found = with_index(run)
        assert found == expected
        assert [[*r.code] for r in found] == [[*r.code] for r in expected], "the order names rows"
        assert [[*r.per_class] for r in found] == [[*r.per_class] for r in expected]


@pytest.mark.parametrize("files", [[], ["a/1.png", "b/2\x1b.png"]])
def test_the_page_shows_the_true_images(tmp_path: Path, files: list[str]) -> None:
    """An index holds only how many images were selected."""
    images = [record("Ran", 1, 0, 0.5, selected=[25247, 14], selected_files=files), record("Ran", 1, 1, 0.5)]
    run = fast(tmp_path / "run", images)
    with_index(run)
    for folder in (run / "index", None):
        ((entry, records),) = one(run, folder).suites
        first = html.first_selections(entry, records, RunStore(run))
        page = html.page("x", [html.describe(html.Section(entry, records, "", first=first))])
        names = ["a/1.png (25247)", "b/2\\x1b.png (14)"] if files else ["25247", "14"]
        assert ", ".join(names) in " ".join(page.split()), folder
        assert (
            "order of selection: files, and their indices in" if files else "order of selection: indices in"
        ) in page
    with_index(run)
    (run / "trials" / "Ran-1" / "cycle_000.json").unlink()
    assert html.first_selections(entry, records, RunStore(run)) == [], "the file is gone since"


EDITS = ("content", "same size and time", "touch", "remove", "swap", "truncate", "damage", "pipe", "selection", "young")


@settings(max_examples=25, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.sampled_from(EDITS), st.sampled_from(["Ran-0", "Ran-1", "DAST-AL-2"]), st.integers(0, 2)),
        min_size=1,
        max_size=4,
    ),
    between=st.booleans(),
)
def test_any_change_of_files_is_noticed(
    edits: list[tuple[str, str, int]], between: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = fast(tmp_path_factory.mktemp("edits") / "run", all_records())
    with_index(run)
    time.sleep(TICK)
    for kind, trial, cycle in edits:
        _edit(run, kind, trial, cycle)
        if between:
            assert with_index(run) == without(run)
            time.sleep(TICK)
    assert with_index(run) == without(run)
    assert with_index(run) == without(run), "from the new index"


def _edit(run: Path, kind: str, trial: str, cycle: int) -> None:
    path = run / "trials" / trial / f"cycle_{cycle:03d}.json"
    if kind == "young" or not path.is_file():
        method, seed = trial.rsplit("-", 1)
        path.unlink(missing_ok=True)
        path.write_bytes(many_records.packed(record(method, int(seed), cycle, 0.125).to_json(), trial))
    elif kind == "content":
        path.write_bytes(many_records.packed(_values(path, trial) | {"metrics": {"accuracy": 0.875}}, trial))
    elif kind == "same size and time":
        before = path.stat()
        values = _values(path, trial)
        sound = path.read_bytes() == many_records.packed(values, trial)
        values["commit"] = values["commit"][::-1]
        path.write_bytes(many_records.packed(values, trial))
        assert path.stat().st_size == before.st_size or not sound
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif kind == "touch":
        path.touch()
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        other = path.parent.parent / "Ran+-1" / path.name
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "damage":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "selection":
        values = _values(path, trial) | {"selected": [8, 9]}
        path.with_name(f"selection_{cycle:03d}.json").write_bytes(many_records.packed(values, trial))


def _values(path: Path, trial: str) -> dict[str, Any]:
    """The record in a cycle file; another one where an edit before has damaged the file."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())["body"]["record"]
    except (ValueError, KeyError):
        method, seed = trial.rsplit("-", 1)
        values = record(method, int(seed), int(path.stem.removeprefix("cycle_")), 0.25).to_json()
    return values


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_damaged_index_changes_nothing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = fast(tmp_path_factory.mktemp("damaged") / "run", all_records())
    expected = with_index(run)
    path = index_file(run)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 300))] = data.draw(st.binary(max_size=20))
    path.write_bytes(content)
    assert with_index(run) == expected
    assert with_index(run) == expected


@pytest.mark.parametrize(
    "wrong", [[1, 2], {"name": 5}, {"cycle_000.json": []}, {"cycle_000.json": [[1, 2, 3, 4], 99, []]}, None]
)
def test_an_index_of_wrong_values_changes_nothing(tmp_path: Path, wrong: Any) -> None:
    """Its checksums are right: someone, or another program, has written it."""
    run = fast(tmp_path / "run", all_records())
    expected = with_index(run)
    path = index_file(run)
    first, *lines = path.read_bytes().splitlines()
    if isinstance(wrong, dict) and "cycle_000.json" in wrong and wrong["cycle_000.json"]:
        wrong["cycle_000.json"][0] = json.loads(lines[0].split(b"\t")[1])[1]["cycle_000.json"][0]
    trial = json.loads(lines[0][index.CHECKSUM + 1 :].split(b"\t")[0])
    path.write_bytes(b"\n".join([first, index._line(trial, [[trial], wrong]), *lines[1:]]))
    assert with_index(run) == expected


def test_texts_of_a_foreign_index_can_be_printed(tmp_path: Path, opened: list[str]) -> None:
    """Its checksums are right: its folder came with it."""
    run = fast(tmp_path / "run", all_records(warnings=["loud"]))
    with_index(run)
    opened.clear()
    path = index_file(run)
    lines = []
    for line in path.read_bytes().splitlines():
        content = line[index.CHECKSUM + 1 :].replace(b'"cpu"', b'"\\u001b[2J"').replace(b'"loud"', b'"\\u001b[2J"')
        lines.append(index._line(*map(json.loads, content.split(b"\t"))))
    path.write_bytes(b"\n".join(lines))
    assert {(r.device, *r.warnings) for r in with_index(run)} == {("\\x1b[2J", "\\x1b[2J")}
    assert opened == []


def test_an_index_of_another_version_is_made_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fast(tmp_path / "run", all_records())
    with_index(run)
    opened.clear()
    with monkeypatch.context() as patched:
        patched.setattr(index, "VERSION", 99)
        with_index(run)
    assert len(opened) == 27
    with_index(run)
    assert len(opened) == 54


def test_without_a_place_for_the_index_the_report_is_the_same(tmp_path: Path) -> None:
    run = fast(tmp_path / "run", all_records())
    text = write(run)
    shutil.rmtree(run / "index")
    (run / "index").write_text("a file in its place")
    assert write(run) == text
    assert (run / "index").read_text() == "a file in its place"


def test_a_file_that_has_just_been_written_is_read_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "YOUNG", 2 * 10**9)
    run = fast(tmp_path / "run", all_records())
    with_index(run)
    with_index(run)
    assert len(opened) == 54
    assert not (run / "index").exists()


def test_a_suite_that_is_gone_leaves_no_index(tmp_path: Path) -> None:
    run = fast(tmp_path / "run", all_records())
    with_index(run)
    before = index_file(run)
    mine = [run / "index" / name for name in ("notes.jsonl", f"x{before.name}")]
    for path in mine:
        path.write_text("{}")
    run_dir(run, [], [suite(name="other")])
    with_index(run)
    assert not before.exists() and len([*(run / "index").iterdir()]) == 3
    assert all(path.exists() for path in mine), "files that no report has written stay"


@pytest.mark.long
def test_lost_and_damaged_files_are_told_as_without_an_index(tmp_path: Path) -> None:
    run = fast(tmp_path / "run", all_records())
    write(run)
    (run / "trials" / "Ran-0" / "cycle_001.json").unlink()
    (run / "trials" / "Ran-1" / "cycle_002.json").write_text("{}")
    text = " ".join(write(run).split())
    assert "Ran-0/cycle_001.json is lost: later cycles are not used; the tables lack Ran, seed 0, from cycle 1" in text
    assert "Ran-1/cycle_002.json is damaged, or belongs to another trial or cycle" in text
    shutil.rmtree(run / "index")
    assert " ".join(write(run).split()) == text


def test_the_first_part_of_a_trial_is_found_by_its_earlier_folder(tmp_path: Path) -> None:
    """The folders that run.json names decide which files are a trial's own, not the index."""
    run = fast(tmp_path / "run", [r for r in all_records() if r.trial == "Ran-0"])
    assert len(with_index(run)) == 3
    values = json.loads((run / "run.json").read_bytes())
    (run / "run.json").write_text(json.dumps(values | {"folders": {"trials/Ran-1": "trials/Ran-0"}}))
    assert {r.trial for r in with_index(run)} == {"Ran-0", "Ran-1"} == {r.trial for r in without(run)}


def test_the_records_of_the_benchmark_have_what_others_have(tmp_path: Path) -> None:
    assert many_records.make(tmp_path, suites=1, methods=1, seeds=1, cycles=3) == 3
    first, _, last = RunStore(tmp_path).trial("suite0.method0.s0").records()
    assert (
        len({*first.selected}) == 1000 == sum(first.selected_classes) and last.selected == last.selected_classes == []
    )
    (confusion,) = first.confusion
    assert sum(count for row in confusion.values() for count in row.values()) == 10_000
    assert sum(row[name] for name, row in confusion.items()) == 10_000 * first.metrics["accuracy"]
    assert 8_000 < (tmp_path / "trials" / first.trial / "cycle_000.json").stat().st_size < 15_000


@pytest.mark.long
def test_many_records_in_little_memory(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """20 000 records: the index saves reading, and a record in memory is small."""
    import tracemalloc

    monkeypatch.setattr(index, "YOUNG", 0)
    run = tmp_path / "run"
    count = many_records.make(run, suites=2, methods=50, seeds=10, cycles=20, budget=40)
    assert len(with_index(run)) == count == len(opened)
    opened.clear()
    tracemalloc.start()
    before = time.process_time()
    records = with_index(run)
    seconds = time.process_time() - before
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert opened == []
    assert len(records) == count
    assert held / count < 1600, "bytes of a record: a million must fit into 2 GB with the rest of a report"
    assert seconds / count < 1e-3
    assert len(RunStore(run).trial(records[0].trial).records()[0].selected) == len(records[0].selected) == 40

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import a_record, make_trial, outcomes, run, same, state_of

from harness import forked
from harness.config.suite import Trial
from harness.data.dataset import LoadedData
from harness.errors import NotReproduced
from harness.results import disk
from harness.results.records import SCHEMA_VERSION, CycleRecord
from harness.results.store import RunStore, TrialStore, _body, _sha256, write_atomically


def record(cycle: int, **changes: Any) -> CycleRecord:
    own = {"cycle": cycle, "labelled": 10 + cycle, "metrics": {"accuracy": 1 / 3}, "selected": [cycle, 7]}
    return a_record(**{**own, **changes})


def weights(value: float) -> dict[str, Any]:
    return {"network": {"w": torch.full((3,), value)}, "training": {}}


def flip_byte(path: Path, fraction: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * fraction)] ^= 1
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    """Four finished cycles."""
    store = TrialStore(tmp_path / "trial")
    for cycle in range(4):
        store.commit(record(cycle), store.save_state(cycle, weights(cycle)))
    return store


@pytest.fixture
def trial() -> Trial:
    return make_trial("isda", "epmcm")


def test_an_empty_store(tmp_path: Path) -> None:
    empty = TrialStore(tmp_path / "none")
    assert empty.records() == []
    assert empty.resume_point() == (0, None)


def test_what_is_committed_is_read_back(store: TrialStore) -> None:
    assert store.records() == [record(cycle) for cycle in range(4)]
    finished, state = store.resume_point()
    assert finished == 4
    assert state is not None
    assert same(state["network"], weights(3)["network"])
    assert sorted(p.name for p in store.folder.glob("state_*")) == ["state_002.pt", "state_003.pt"]
    assert not list(store.folder.glob("*.tmp"))


def test_the_readable_copy_is_the_records(store: TrialStore) -> None:
    lines = (store.folder / "records.jsonl").read_text().splitlines()
    assert [CycleRecord.from_json(json.loads(line)) for line in lines] == store.records()
    (store.folder / "records.jsonl").write_text("nonsense")
    assert len(store.records()) == 4, "it is never read"


def test_a_trial_of_version_1_that_version_2_went_on_with_is_whole(tmp_path: Path) -> None:
    """Version 2 wrote its own id into the records that it added to the folder that version 1 had named."""
    old = TrialStore(tmp_path / "trials" / "id_of_1")
    for cycle, name in enumerate(("id_of_1", "id_of_1", "id_of_2", "id_of_2")):
        old.commit(record(cycle, trial=name), old.save_state(cycle, weights(cycle)))
    for path in old.folder.glob("cycle_*.json"):
        body = json.loads(path.read_bytes())["body"]
        del body["folder"]
        path.write_text(json.dumps({"sha256": _sha256(_body(body)), "body": body}))
    assert len(old.records()) == 2, "by itself, the rest may be another trial's"
    folders = {f"trials/id_of_{version}": "trials/id_of_1" for version in (2, 3)}
    assert len(RunStore(tmp_path, folders).trial("id_of_3").records()) == 4
    assert len(RunStore(tmp_path, {"trials/id_of_3": "trials/id_of_1"}).trial("id_of_3").records()) == 2


def test_keys_of_a_later_version_are_left_out() -> None:
    assert CycleRecord.from_json({**record(0).to_json(), "colour": "blue"}) == record(0)


def test_keys_of_version_1_are_read_under_their_new_names() -> None:
    first = record(0, initial_set=[5, 3])
    today = first.to_json()
    renamed = {"metrics": "figures", "selected": "chosen", "initial_set": "own_initial_set"}
    before = {renamed.get(key, key): value for key, value in today.items()} | {"schema_version": 1}
    assert before.keys() & today.keys() == today.keys() - renamed.keys()
    assert CycleRecord.from_json(before) == first
    assert first.schema_version == SCHEMA_VERSION


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_cycle_ends_what_is_finished(store: TrialStore, fraction: float) -> None:
    flip_byte(store.folder / "cycle_002.json", fraction)
    assert store.records() == [record(0), record(1)]
    assert store.resume_point() == (0, None), "the weights of cycle 1 are gone: all is computed again"


@pytest.mark.parametrize("damage", ["truncate", "empty", "null", "remove"])
def test_other_damage_to_the_last_cycle(store: TrialStore, damage: str) -> None:
    path = store.folder / "cycle_003.json"
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": path.read_bytes()[:-9], "empty": b"", "null": b"null"}[damage])
    assert len(store.records()) == 3
    finished, state = store.resume_point()
    assert finished == 3
    assert state is not None
    assert same(state["network"], weights(2)["network"])


def test_a_signal_that_ends_the_process_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(temporary: Path, path: Path) -> None:
        assert temporary.exists()
        forked.leave(signal.SIGUSR2, None)

    before = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr(disk, "move", ended)
    try:
        with pytest.raises(SystemExit):
            write_atomically(tmp_path / "a", b"x")
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, "another one interrupts nothing"
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_weights_fall_back_one_cycle(store: TrialStore, damage: str) -> None:
    path = store.folder / "state_003.pt"
    if damage == "flip":
        flip_byte(path)
    else:
        path.unlink()
    finished, state = store.resume_point()
    assert finished == 3
    assert state is not None
    assert same(state["network"], weights(2)["network"])
    assert len(store.records()) == 4, "what is recorded stays so"


def test_a_cycle_is_written_once(store: TrialStore) -> None:
    again = record(3, wall_seconds=99.0, device="another", final_loss=0.5)
    store.commit(again, store.save_state(3, weights(3)))
    assert store.records()[3] == record(3)


@pytest.mark.parametrize(
    "changes",
    [{"metrics": {"accuracy": 1 / 3 + 1e-15}}, {"selected": [7, 3]}, {"labelled": 12}, {"data_fingerprint": "other"}],
)
def test_another_result_of_the_same_cycle_is_refused(store: TrialStore, changes: dict[str, Any]) -> None:
    with pytest.raises(NotReproduced, match=f"cycle_003.json: .*{next(iter(changes))}"):
        store.commit(record(3, **changes), store.save_state(3, weights(3)))
    assert store.records()[3] == record(3)


def test_a_second_writer_of_a_cycle_changes_nothing(tmp_path: Path) -> None:
    """A trial that was given up for dead may still run while its retry does: the first to commit wins."""
    one, other = TrialStore(tmp_path), TrialStore(tmp_path)
    states = [writer.save_state(0, weights(1)) for writer in (one, other)]
    one.commit(record(0, wall_seconds=1.0), states[0])
    other.commit(record(0, wall_seconds=2.0), states[1])
    other.commit(record(1), other.save_state(1, weights(2)))
    one.commit(record(1), one.save_state(1, weights(2)))
    for store in (one, other):
        assert [r.wall_seconds for r in store.records()] == [1.0, 0.7]
        assert store.resume_point()[0] == 2


def test_a_cycle_file_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    (path := tmp_path / "cycle_000.json").write_bytes(b"[" * 100_000)
    store = TrialStore(tmp_path)
    assert store.records() == []
    assert store.problems(0) == [f"{path} is damaged, or belongs to another trial or cycle: it is not used"]


@pytest.mark.parametrize("content", [b"", b"null", b"not JSON", b'{"spec": {"seed": 2}}'])
def test_a_damaged_or_foreign_header_is_written_again(tmp_path: Path, content: bytes) -> None:
    store = TrialStore(tmp_path)
    store.open({"spec": {"seed": 1}})
    right = (tmp_path / "trial.json").read_bytes()
    (tmp_path / "trial.json").write_bytes(content)
    store.open({"spec": {"seed": 1}})
    assert (tmp_path / "trial.json").read_bytes() == right


def test_a_cycle_file_of_another_trial_or_cycle_does_not_count(store: TrialStore, tmp_path: Path) -> None:
    other = TrialStore(tmp_path / "other")
    for cycle in range(4):
        other.commit(record(cycle, trial="other", selected=[9, cycle]), other.save_state(cycle, weights(9)))
    path = store.folder / "cycle_002.json"
    right = path.read_bytes()
    for foreign in (other.folder / "cycle_002.json", store.folder / "cycle_003.json", store.folder / "cycle_000.json"):
        path.write_bytes(foreign.read_bytes())
        assert store.records() == [record(0), record(1)]
        assert store.problems(2) == [f"{path} is damaged, or belongs to another trial or cycle: it is not used"]
    path.write_bytes(right)
    assert store.problems(4) == [] and len(store.records()) == 4
    copied = TrialStore(Path(shutil.copytree(store.folder, tmp_path / "copied")))
    assert copied.records() == [], "a folder that was renamed or copied holds another trial"


def test_a_copied_shared_first_cycle_does_not_count(tmp_path: Path) -> None:
    right = TrialStore(tmp_path / "shared" / "right")
    right.commit(record(0), right.save_state(0, weights(1)))
    assert right.records() == [record(0)], "its record names one of the trials that share it"
    assert TrialStore(Path(shutil.copytree(right.folder, tmp_path / "shared" / "other"))).records() == []


def test_a_pipe_or_folder_in_the_place_of_a_file_is_damage(store: TrialStore, at_once: None) -> None:
    for make in (os.mkfifo, Path.mkdir):
        for name in ("cycle_002.json", "selection_003.json", "state_003.pt"):
            copy = TrialStore(Path(shutil.copytree(store.folder, store.folder.parent / make.__name__ / name / "trial")))
            path = copy.folder / name
            path.unlink(missing_ok=True)
            make(path)
            count = 2 if name == "cycle_002.json" else 4
            assert len(copy.records()) == count
            assert copy.resume_point()[0] == (3 if name == "state_003.pt" else 4 if count == 4 else 0)
            said = f"{path} is damaged, or belongs to another trial or cycle: it is not used"
            assert copy.problems(count) == ([said] if name.endswith(".json") else [])


def test_a_damaged_or_lost_state_is_said(store: TrialStore) -> None:
    assert store.state_problems() == [] == TrialStore(store.folder.parent / "new").state_problems()
    path = store.folder / "state_003.pt"
    flip_byte(path)
    again = "its cycle, and each before it up to one with its state, is computed again"
    assert store.state_problems() == [f"{path} is damaged: {again}"]
    path.unlink()
    assert store.state_problems() == [f"{path} is not there (only the last 2 are kept): {again}"]
    assert store.resume_point()[0] == 3


def test_a_lost_cycle_file_is_said(store: TrialStore) -> None:
    path = store.folder / "cycle_001.json"
    path.unlink()
    assert len(store.records()) == 1
    assert store.problems(1) == [f"{path} is lost: later cycles are not used"]
    for cycle in (2, 3):
        (store.folder / f"cycle_00{cycle}.json").unlink()
    assert store.problems(1) == [], "a run that is to go on"


# ------------------------------------------------------------------------------------- a selection that is made later


def extended(store: TrialStore) -> list[CycleRecord]:
    """Add the selection of a last cycle 4 to the store; return the records."""
    last = record(4, selected=[])
    store.commit(last, store.save_state(4, weights(4)))
    whole = replace(last, selected=[40, 41], wall_seconds=2.0)
    store.commit(whole, store.save_state(4, weights(40), late=True), late=True)
    return [*(record(cycle) for cycle in range(4)), whole]


def test_a_late_selection_completes_its_cycle(store: TrialStore) -> None:
    whole = extended(store)
    assert json.loads((store.folder / "cycle_004.json").read_text())["body"]["record"]["selected"] == []
    assert store.records() == whole
    finished, state = store.resume_point()
    assert finished == 5 and state is not None and same(state["network"], weights(40)["network"])
    store.commit(record(5), store.save_state(5, weights(5)))
    assert len(store.records()) == 6
    store.commit(record(6), store.save_state(6, weights(6)))
    assert sorted(p.name for p in store.folder.glob("*.pt")) == ["state_005.pt", "state_006.pt"]


@pytest.mark.parametrize("file", ["selection_004.json", "selection_004.pt"])
def test_a_late_selection_is_made_again_after_damage(store: TrialStore, file: str) -> None:
    whole = extended(store)
    store.commit(record(5), store.save_state(5, weights(5)))
    (store.folder / "state_005.pt").unlink()
    flip_byte(store.folder / file)
    records, (finished, state) = store.records(), store.resume_point()
    if file.endswith(".json"):
        assert records == [*whole[:4], record(4, selected=[])], "nobody knows what cycle 5 trained on"
        assert finished == 5 and state is not None and same(state["network"], weights(4)["network"])
    else:
        assert records == [*whole, record(5)] and finished == 0, "the weights before it are gone"
    with pytest.raises(NotReproduced, match=r"selection_004\.json.* in selected"):
        extended_otherwise(store)
    extended_alike = replace(whole[4], wall_seconds=9.0)
    store.commit(extended_alike, store.save_state(4, weights(40), late=True), late=True)
    assert [r.outcome() for r in store.records()[:5]] == [r.outcome() for r in whole]


def extended_otherwise(store: TrialStore) -> None:
    """Store a late selection, then another one."""
    store.commit(record(4, selected=[40, 41]), store.save_state(4, weights(40), late=True), late=True)
    store.commit(record(4, selected=[41, 40]), store.save_state(4, weights(40), late=True), late=True)


def test_a_cycle_with_a_late_selection_that_is_computed_again_as_a_whole(store: TrialStore) -> None:
    whole = extended(store)
    with pytest.raises(NotReproduced, match="in selected"):
        store.commit(record(4, selected=[41, 40]), "")
    store.commit(record(4, selected=[40, 41]), store.save_state(4, weights(44)))
    assert store.records() == whole, "with the seconds of the first time"
    assert store.resume_point()[0] == 5
    assert not (store.folder / "selection_004.json").exists()


def test_the_state_of_a_last_cycle_does_not_stand_for_that_after_a_selection(store: TrialStore) -> None:
    """A run of fewer cycles computes a cycle again as its last one, which selects nothing."""
    store.commit(record(3, selected=[]), store.save_state(3, weights(33)))
    assert store.records() == [record(cycle) for cycle in range(4)]
    finished, state = store.resume_point()
    assert finished == 3 and state is not None and same(state["network"], weights(2)["network"])
    whole = extended(store)
    flip_byte(store.folder / "cycle_004.json")
    store.commit(record(4, selected=[]), store.save_state(4, weights(4)))
    assert store.records() == whole
    flip_byte(store.folder / "selection_004.json")
    assert store.records()[4] == record(4, selected=[])
    finished, state = store.resume_point()
    assert finished == 5 and state is not None and same(state["network"], weights(4)["network"])


def test_a_last_cycle_that_is_computed_again_keeps_its_late_selection(store: TrialStore) -> None:
    whole = extended(store)
    store.commit(record(4, selected=[]), store.save_state(4, weights(4)))
    assert store.records() == whole


# ------------------------------------------------------------------------------------------------- whole trials


def folder_of(trial: Trial, folder: Path) -> Path:
    return RunStore(folder).trial(trial.id).folder


def test_a_trial_with_damaged_weights_is_computed_again_alike(
    trial: Trial, digits: LoadedData, folders: Callable[[], Path]
) -> None:
    folder = folders()
    first, end = run(trial, digits, folder), state_of(trial, folder)
    header = json.loads((folder_of(trial, folder) / "trial.json").read_text())
    assert header == {"spec": trial.spec()}
    flip_byte(folder_of(trial, folder) / "state_002.pt")
    reported: list[int] = []
    again = run(trial, digits, folder, lambda r: reported.append(r.cycle))
    assert again == first, "with the seconds of the first time"
    assert reported == [0, 1, 2]
    assert same(state_of(trial, folder)["network"], end["network"])
    for name in ("state_001.pt", "state_002.pt", "cycle_000.json"):
        flip_byte(folder_of(trial, folder) / name)
    again = run(trial, digits, folder)
    assert outcomes(again) == outcomes(first)
    assert again[0] != first[0], "its file was damaged and is written again"
    assert again[1:] == first[1:]
    assert same(state_of(trial, folder)["network"], end["network"])


def test_a_trial_that_comes_out_different_stops(trial: Trial, digits: LoadedData, folders: Callable[[], Path]) -> None:
    folder = folders()
    run(trial, digits, folder)
    path = folder_of(trial, folder) / "cycle_002.json"
    body = json.loads(path.read_text())["body"]
    body["record"]["metrics"]["accuracy"] += 0.01
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "body": body}))
    run(trial, digits, folder)  # finished: nothing is computed again
    flip_byte(folder_of(trial, folder) / "state_002.pt")
    with pytest.raises(NotReproduced, match="differs from the stored one in metrics"):
        run(trial, digits, folder)

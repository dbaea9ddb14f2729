"""Replay: the images that a run has selected, or that others have published, with any network."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import yaml

from harness import registry, tracking
from harness.config.load import load_config
from harness.data import foreign_sets
from harness.data.index_sets import IndexSets, SeedSets
from harness.errors import UNPRINTABLE, UserError, readable
from harness.experiment import replaying
from harness.experiment.replaying import Replayed
from harness.learning.contract import Acquisition
from harness.learning.pool import initial_set
from harness.replay import main as replay
from harness.report.transfer import transfer, transfer_table, wide_transfer
from harness.report.write import read
from harness.report.write import write as report
from harness.results.records import CycleRecord
from harness.results.source import Source, SourceSuite
from harness.run import main as run
from harness.seeds import stream

CONFIG: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 120, "test_limit": 60},
    "model": {"name": "resnet_small", "width": 4},
    "recipe": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "crop_padding": 1},
    "protocol": {"initial": 20, "budget": 10, "cycles": 3, "candidates": 60, "start": "warm"},
    "methods": {
        "Ran": "random",
        "LC": "least_confidence",
        "LC+": {"acquisition": "least_confidence", "training": "isda"},
    },
    "seeds": [0, 1],
    "where": {"trials": "in_process", "device": "cpu"},
}
BY = " (selected by resnet_small)"


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    assert run([str(written(folder)), f"where.output={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def replayed(source: Path) -> Path:
    """The same network and recipe, two of three cycles at first."""
    output = source.parent / "replayed"
    assert replay([str(source), f"where.output={output}", "protocol.cycles=2"]) == 0
    assert replay([str(source), f"where.output={output}", "--resume"]) == 0
    return output


def records(folder: Path) -> dict[tuple[str, int, int], CycleRecord]:
    ((_, found),) = read(folder)[1]
    return {(r.method, r.seed, r.cycle): r for r in found}


def curves_of(folder: Path) -> SourceSuite:
    source = Source.read(folder)
    assert source is not None
    return source.suites["own"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any, command: Any = replay) -> str:
    assert command([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# ------------------------------------------------------------------------------------------------------ a run of ours


def test_the_same_network_gives_the_same_results(source: Path, replayed: Path) -> None:
    """No random stream depends on the acquisition, so that training is the same to the last bit."""
    first, again = records(source), records(replayed)
    assert {(f"{m}{BY}", s, c) for m, s, c in first} == {*again} and len(again) == 18
    for (method, seed, cycle), was in first.items():
        now = again[f"{method}{BY}", seed, cycle]
        assert (now.metrics, now.final_loss, now.selected, now.labelled) == (
            was.metrics,
            was.final_loss,
            was.selected,
            was.labelled,
        )
        assert bool(now.shared_from) == bool(was.shared_from), "first cycles are shared as in the source"
        assert now.scoring["path"] == "none"


def test_gains_of_the_same_network_are_equal(replayed: Path) -> None:
    ((suite, found),) = read(replayed)[1]
    gains = transfer(suite, found, curves_of(replayed))
    assert gains is not None and [*gains.gains] == [f"LC{BY}", f"LC+{BY}"]
    assert all(one == other for by_seed in gains.gains.values() for one, other in by_seed.values())
    assert gains.rank_correlation() is None, "two methods have no rank worth a number"
    text = " ".join(report(replayed).split())
    assert "Transfer: gain over Ran (selected by resnet_small) in points of accuracy (AUBC from 20 to 40" in text
    assert (replayed / "report" / "own_transfer.csv").read_text().count("\n") == 5


def test_gains_are_differences_of_areas(replayed: Path, tmp_path: Path) -> None:
    """Against the trapezoid rule by hand, with other curves of the source, one of which ends early."""
    folder = tmp_path / "run"
    shutil.copytree(replayed, folder)
    path = folder / "index_sets" / "source.json"
    values = json.loads(path.read_text())
    curves = {"Ran": [0.1, 0.2, 0.4], "LC": [0.1, 0.5, 0.5], "LC+": [0.2, 0.2, 0.3]}
    values["suites"]["own"]["curves"] = {
        f"{m}{BY}": {str(seed): dict(zip(("20", "30", "40"), c, strict=True)) for seed in (0, 1)}
        for m, c in curves.items()
    }
    path.write_text(json.dumps(values))
    ((suite, found),) = read(folder)[1]
    gains = transfer(suite, found, curves_of(folder))
    assert gains is not None
    now = {key: r.metrics["accuracy"] for key, r in records(folder).items()}
    for method in ("LC", "LC+"):
        for seed in (0, 1):
            area = {m: [now[f"{m}{BY}", seed, cycle] for cycle in range(3)] for m in ("Ran", method)}
            expected = [
                100 * (np.trapezoid(c[method], [20, 30, 40]) - np.trapezoid(c["Ran"], [20, 30, 40])) / 20
                for c in (curves, area)
            ]
            assert gains.gains[f"{method}{BY}"][seed] == pytest.approx(expected)
    assert len(transfer_table(gains)) == 4
    wide = wide_transfer(gains)
    assert wide.iloc[0, 1] == "+17.50±0.00" and [*wide["n"]] == ["2", "2"]
    for row in values["suites"]["own"]["curves"].values():
        row["1"].pop("40")
    path.write_text(json.dumps(values))
    shorter = transfer(suite, found, curves_of(folder))
    assert shorter is not None and shorter.labelled == [20, 30], "budgets that both have"
    path.write_text("{")
    assert f"{path} is damaged: the report can't compare" in report(folder).replace("\n", " ")


@pytest.mark.long
def test_a_resumed_replay_computes_nothing_twice(
    source: Path, replayed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in replayed.glob("*/*/*.json")}
    for command in ([str(source), f"where.output={replayed}", "--resume"], [str(replayed / "config.yaml"), "--resume"]):
        assert (replay if command[0] == str(source) else run)(command) == 0
        assert "To run: 0 trials" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in replayed.glob("*/*/*.json")} == before
    assert "already holds results" in refused(capsys, source, f"where.output={replayed}")
    other = refused(capsys, source, f"where.output={replayed}", "--resume", "seeds=[1]")
    assert "replays other index sets than those of this command" in other


@pytest.mark.long
def test_another_network_starts_from_the_same_images(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [str(source), "--model", "resnet_small", "model.width=6", "recipe.epochs=1", "--only", "method=Ran,LC"]
    assert replay([*arguments, "seed=1", f"where.output={output}"]) == 0
    first, again = records(source), records(output)
    assert {seed for _, seed, _ in again} == {1} and len(again) == 6
    assert all(r.selected == first[m.removesuffix(BY), s, c].selected for (m, s, c), r in again.items())
    assert load_config(output / "config.yaml").suites[0].model.settings.width == 6
    assert "trained now: resnet_small (width 6)" in (output / "report" / "own_transfer.md").read_text()


@pytest.mark.long
def test_sets_are_exported_and_replayed_as_a_method(source: Path, tmp_path: Path) -> None:
    assert replay([str(source), "--export", str(tmp_path / "sets")]) == 0
    assert {path.name for path in (tmp_path / "sets").iterdir()} == {"own_LC.json", "own_LC_.json", "own_Ran.json"}
    sets = IndexSets.unpacked((tmp_path / "sets" / "own_LC.json").read_bytes())
    was = records(source)
    protocol = load_config(source / "config.yaml").suites[0].protocol
    for seed in (0, 1):
        found = sets.of(seed)
        assert found is not None and found.initial == initial_set(protocol, 120, seed).tolist()
        assert found.selected == [was["LC", seed, cycle].selected for cycle in (0, 1)]
        assert len({*found.order()}) == 40, "nested, without repetition"
    output = tmp_path / "out"
    config = written(tmp_path, methods={"Ran": "random"})
    assert replay(["--indices", str(tmp_path / "sets" / "own_LC.json"), str(config), f"where.output={output}"]) == 0
    now = records(output)
    assert {m for m, _, _ in now} == {"Ran", f"LC{BY}"}
    assert all(now[f"LC{BY}", s, c].metrics == was["LC", s, c].metrics for s in (0, 1) for c in range(3))


@pytest.mark.long
def test_an_unfinished_run_is_replayed_as_far_as_all_methods_went(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    (trial,) = {r.trial for (m, s, _), r in records(source).items() if (m, s) == ("LC", 1)}
    for number in (1, 2):
        (folder / "trials" / trial / f"cycle_00{number}.json").unlink()
    assert replay([str(folder), "--export", str(tmp_path / "sets")]) == 0
    assert "seed 1 is left out: LC has 1 of 2 selections" in capsys.readouterr().out
    sets = IndexSets.unpacked((tmp_path / "sets" / "own_Ran.json").read_bytes())
    assert [*sets.seeds] == ["0"]
    error = refused(capsys, folder, "seeds=[1]", "--export", tmp_path / "none")
    assert "nothing to replay" in error and not (tmp_path / "none").exists()


@pytest.mark.long
def test_label_maps_are_replayed(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        dataset={"name": "scenes", "train": 20, "test": 5, "size": [32, 48]},
        model={"name": "drn_small", "width": 4},
        recipe={"epochs": 1, "batch_size": 4},
        protocol={"initial": 4, "budget": 2, "cycles": 2, "start": "fresh"},
        methods={"Ran": "random", "Ent": "entropy"},
        seeds=[3],
    )
    assert run([str(config), f"where.output={tmp_path / 'run'}"]) == 0
    assert replay([str(tmp_path / "run"), f"where.output={tmp_path / 'out'}"]) == 0
    first, again = records(tmp_path / "run"), records(tmp_path / "out")
    assert all(
        again[f"{m} (selected by drn_small)", s, c].metrics == r.metrics and r.metrics["miou"] >= 0
        for (m, s, c), r in first.items()
    )


# ---------------------------------------------------------------------------------------------------- the id, refusals


def sets_file(path: Path, **changes: Any) -> Path:
    every = list(range(40))
    values: dict[str, Any] = {
        "format": "index sets 1",
        "seeds": {"all": {"initial": every[:20], "selected": [every[20:30], every[30:]]}},
    }
    path.write_text(json.dumps({**values, **changes}))
    return path


def with_sets(folder: Path, path: Path | None, **changes: Any) -> Path:
    method = {"acquisition": {"name": "replay", "sets": path and str(path)}}
    protocol = {**CONFIG["protocol"], "candidates": None}
    return written(folder, methods={"Re": method}, **{"protocol": protocol, **changes})


def ids(config: Path) -> tuple[list[str], list[str]]:
    trials = [trial for _, trial in load_config(config).suites[0].trials()]
    return [trial.id for trial in trials], [trial.sharing_key for trial in trials]


def test_ids_depend_on_the_content_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sets_file(tmp_path / "a.json")
    before = ids(with_sets(tmp_path, path))
    moved = Path(shutil.move(path, tmp_path / "b.json"))
    assert ids(with_sets(tmp_path, moved)) == before
    monkeypatch.chdir(tmp_path)
    assert ids(with_sets(tmp_path, Path("b.json"))) == before
    ((_, trial), _) = load_config(tmp_path / "own.yaml").suites[0].trials()
    assert trial.acquisition.settings.sets == str(moved), "workers may run in another folder"
    assert "sets" not in trial.spec()["acquisition"]
    edited = sets_file(
        moved, seeds={"all": {"initial": [*range(19), 99], "selected": [[*range(20, 30)], [*range(30, 40)]]}}
    )
    after = ids(with_sets(tmp_path, edited))
    assert not {*after[0]} & {*before[0]} and not {*after[1]} & {*before[1]}


def test_a_digest_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_sets(tmp_path, sets_file(tmp_path / "a.json"))
    error = refused(capsys, config, "methods.Re.acquisition.sets_sha256=abc", command=run)
    assert "methods.Re.acquisition.sets_sha256" in error and "must be the SHA-256 of" in error
    error = refused(
        capsys, config, "methods.Re.acquisition.sets_sha256=abc", "methods.Re.acquisition.sets=", command=run
    )
    assert "needs sets, which is not set" in error
    error = refused(capsys, config, "methods.Re.acquisition.sets=none.json", command=run)
    assert "'none.json' can't be read: No such file" in error


EVERY = list(range(40))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "short": ({"selected": [EVERY[20:30]]}, "has sets of 20, 30 images, but the protocol needs 20, 30, 40"),
    "initial": (
        {"initial": EVERY[:10], "selected": [EVERY[10:20], EVERY[20:30]]},
        "set protocol.initial=10 protocol.cycles=3 protocol.budget=10",
    ),
    "budget": ({"selected": [EVERY[20:29], EVERY[30:]]}, "has sets of 20, 29, 39 images"),
    "range": (
        {"selected": [EVERY[20:30], [*EVERY[30:39], 120]]},
        "has the index 120 in the selection of cycle 1, but the",
    ),
    "twice": (
        {"selected": [[*EVERY[20:29], 3], EVERY[30:]]},
        "has the index 3 twice, the second time in the selection of",
    ),
    "empty": ({"initial": []}, "seeds.all.initial: must be at least 1 long"),
    "negative": ({"initial": [*EVERY[:19], -1]}, "must be at least 0"),
    "texts": ({"initial": ["1"] * 20}, "must be a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_refused_before_the_start(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, problem = BAD[case]
    seeds = {"all": {"initial": EVERY[:20], "selected": [EVERY[20:30], EVERY[30:]], **change}}
    config = with_sets(tmp_path, sets_file(tmp_path / "a.json", seeds=seeds))
    error = refused(capsys, config, f"where.output={tmp_path / 'out'}", command=run)
    assert problem in error and "a.json" in error and not (tmp_path / "out").exists()


def test_what_does_not_suit_the_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"where.output={tmp_path / 'out'}"

    def error(path: Path | None, *more: str) -> str:
        return refused(capsys, with_sets(tmp_path, path), output, *more, command=run)

    path, every = tmp_path / "a.json", {"initial": EVERY[:20], "selected": [EVERY[20:30], EVERY[30:]]}
    assert "replay needs a file of index sets" in error(None)
    assert "has no sets of seed 1; it has those of 0" in error(sets_file(path, seeds={"0": every}))
    assert "is of the dataset 'cifar10', not of 'digits'" in error(sets_file(path, dataset="cifar10"))
    assert "is of other data: its fingerprint is abc" in error(sets_file(path, fingerprint="abc"))
    assert "this protocol draws another initial set" in error(sets_file(path, shared_initial=True))
    assert "not among its 15 candidates" in error(sets_file(path), "protocol.candidates=15")
    assert "is no file of index sets: format" in error(sets_file(path, format="other"))
    path.write_text("[" * 100_000)
    assert "is no file of index sets" in error(path)
    assert not (tmp_path / "out").exists()


def test_a_replay_of_changed_data_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    error = refused(capsys, source, "dataset.test_limit=50", f"where.output={output}")
    assert "is of other data: its fingerprint is" in error and not output.exists()


def test_the_command_line_says_what_is_wrong(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the results folder of a run is needed" in refused(capsys)
    assert "it has no run.json" in refused(capsys, tmp_path)
    assert "unknown network 'resnet_smal'; did you mean" in refused(capsys, source, "--model", "resnet_smal")
    assert "choose --export or --indices" in refused(capsys, source, "--export", "x", "--indices", "a.npy")
    assert "--accept-changes needs --resume" in refused(capsys, source, "--accept-changes")
    assert "is the run whose selections are replayed" in refused(capsys, source, f"where.output={source}", "--resume")
    assert "a config is needed" in refused(capsys, "--indices", "a.npy")
    assert "can't be read" in refused(capsys, "quickstart", "--indices", tmp_path / "a.npy")


def test_a_tracker_without_its_package_is_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PACKAGES", {**tracking.PACKAGES, "mlflow": ("no_such_package", "mlflow-skinny")})
    config, output = with_sets(tmp_path, sets_file(tmp_path / "a.json")), tmp_path / "out"
    plain = saved(tmp_path, "b.txt", EVERY)
    error = refused(capsys, config, f"where.output={output}", "where.track=mlflow", "--indices", plain)
    assert "where.track: mlflow needs the package no_such_package: pip install mlflow-skinny" in error
    assert not output.exists()


# --------------------------------------------------------------------------------------------------------- the method


def test_candidates_are_taken_in_the_order_of_the_file(tmp_path: Path) -> None:
    import torch

    plugin: Any = registry.find("methods", "replay", Acquisition)
    order = [7, 2, 9, 4, 30, 11]
    seeds = {"5": {"initial": order[:2], "selected": [order[2:4], order[4:]]}}
    half = plugin(plugin.Settings(sets=str(sets_file(tmp_path / "a.json", seeds=seeds))), 10)
    half.seed = 5
    columns = {"index": torch.tensor([1, 3, 4, 9, 11, 20, 30])}
    rows = half.select(columns, dict, 5, stream(0))
    assert columns["index"][rows].tolist() == [9, 4, 30, 11, 1], "then by index"


# ------------------------------------------------------------------------------------------------------ foreign formats


def saved(folder: Path, name: str, indices: list[int]) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, np.array(indices))
    elif path.suffix == ".npz":
        np.savez(path, a=np.array(indices, dtype=np.uint16))
    elif path.suffix == ".json":
        path.write_text(json.dumps(indices))
    else:
        path.write_text(
            "index\n" * (path.suffix == ".csv") + (", " if path.suffix == ".csv" else "\n").join(map(str, indices))
        )
    return path


@pytest.mark.parametrize("ending", foreign_sets.READERS)
def test_published_sets_are_read(ending: str, tmp_path: Path) -> None:
    indices = [5, 3, 90, 17]
    assert foreign_sets.lists(saved(tmp_path, f"set{ending}", indices)) == [indices]


def test_nested_and_added_sets_are_told_apart() -> None:
    nested = foreign_sets.sets_of([[4, 1, 9, 7], [1, 4], [9, 1, 3, 2, 4, 7]])  # 100.npy comes before 20.npy
    assert (nested.initial, nested.selected) == ([1, 4], [[9, 7], [3, 2]])
    added = foreign_sets.sets_of([[4, 1, 8], [3, 2], [7, 5]])
    assert (added.initial, added.selected) == ([4, 1, 8], [[3, 2], [7, 5]])
    assert foreign_sets.sets_of([[3, 1]]) == SeedSets(initial=[3, 1])
    with pytest.raises(UserError, match=r"neither nested .* nor disjoint .*: the index 1 of one is not in the next"):
        foreign_sets.sets_of([[1, 2], [2, 3, 4]])
    with pytest.raises(UserError, match="two of the sets hold the same images"):
        foreign_sets.sets_of([[1, 2], [2, 1]])


def test_files_are_in_the_order_of_cycles() -> None:
    def order(*names: str) -> list[str]:
        return [*map(str, foreign_sets.in_order([*map(Path, names)]))]

    episodes = [f"episode_{n}/activeSet.npy" for n in range(12)]
    assert order(*sorted(episodes), "lSet.npy") == ["lSet.npy", *episodes]
    assert order("initial.npy", "added10.npy", "added9.npy") == ["initial.npy", "added9.npy", "added10.npy"]
    assert order("b.npy", "a.npy") == ["b.npy", "a.npy"], "as they are given"


def of_files(folder: Path, *paths: Path) -> Replayed:
    benchmark = load_config(written(folder, methods={"Ran": "random"}))
    return replaying.of_files(paths, benchmark, folder / "out", "replay")


def test_the_order_of_added_sets_is_said(tmp_path: Path) -> None:
    for episode in range(12):
        (tmp_path / f"episode_{episode}").mkdir()
        saved(tmp_path / f"episode_{episode}", "activeSet.npy", [100 + episode])
    paths = sorted(tmp_path.glob("*/activeSet.npy"))
    found = of_files(tmp_path, *paths, saved(tmp_path, "lSet.npy", [3, 1]))
    (data,) = found.files.values()
    sets = IndexSets.unpacked(data).of(0)
    assert sets is not None and sets.order() == [3, 1, *range(100, 112)]
    (note,) = found.notes
    assert note.startswith("the sets are labelled in this order: ") and "/lSet.npy, episode_0/activeSet.npy, " in note
    assert note.endswith(", ..., episode_11/activeSet.npy")
    nested = [saved(tmp_path, f"{n}.npy", [*range(n)]) for n in (1, 2)]
    assert of_files(tmp_path, *nested).notes == []


def test_no_file_of_index_sets_is_lost(tmp_path: Path) -> None:
    for name in ("s0", "s1"):
        (tmp_path / name).mkdir()
    one, two = (sets_file(tmp_path / name / "LC.json") for name in ("s0", "s1"))
    with pytest.raises(UserError) as error:
        of_files(tmp_path, one, two)
    assert str(error.value) == f"{two}: has the name of {one}, 'LC'; give one of the files another name"
    long = [sets_file(tmp_path / f"{name}.json", method="M" * 100 + name) for name in "ab"]
    methods = of_files(tmp_path, *long).benchmark.suites[0].methods
    assert [*methods] == ["Ran", "M" * 100, "b"]
    plain = saved(tmp_path, "LC.npy", [5, 3])
    with pytest.raises(UserError, match="has the name of"):
        of_files(tmp_path, one, plain)


@pytest.mark.parametrize("name", ["\x1b[2J evil\nname", "a\u202eb", " "])
def test_the_name_of_a_foreign_method_is_printable(name: str, tmp_path: Path) -> None:
    path = sets_file(tmp_path / "a.json", method=name)
    with pytest.raises(UserError) as error:
        of_files(tmp_path, path)
    assert str(error.value).startswith(f"{path}: the name of a method must be printable text, got '")
    assert not UNPRINTABLE.search(str(error.value))
    with pytest.raises(UserError, match="must be printable text"):
        of_files(tmp_path, sets_file(path, method="a", network=f"{name}\x07"))


@pytest.mark.long
def test_published_sets_become_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "authors"
    folder.mkdir()
    paths = [str(saved(folder, f"{n}.npy", list(range(100, 100 - n, -1)))) for n in (20, 30, 40)]
    config = written(
        tmp_path, methods={"Ran": "random"}, seeds=[4], protocol={**CONFIG["protocol"], "candidates": None}
    )
    arguments = [str(config), f"where.output={tmp_path / 'out'}", "--indices", *paths]
    assert "set protocol.initial=20" in refused(capsys, *arguments[:2], "protocol.initial=10", *arguments[2:])
    assert not (tmp_path / "out").exists()
    assert replay(arguments) == 0
    found = records(tmp_path / "out")
    assert found["authors", 4, 0].initial_set == list(range(100, 80, -1))
    assert found["authors", 4, 1].selected == list(range(70, 60, -1)) and ("Ran", 4, 2) in found
    assert Source.read(tmp_path / "out") is None and "Transfer" not in report(tmp_path / "out")


def test_a_foreign_source_is_printable_and_of_known_metrics(tmp_path: Path) -> None:
    evil = "a\n\x1b[2J"
    suite = {"network": evil, "metric": "accuracy", "reference": evil, "curves": {evil: {"0": {"20": 0.5}}}}
    (tmp_path / "index_sets").mkdir()
    path = tmp_path / "index_sets" / "source.json"
    path.write_text(json.dumps({"suites": {"s": suite}}))
    source = Source.read(tmp_path)
    assert source is not None
    found = source.suites["s"]
    assert (found.network, found.reference, found.curves) == (
        readable(evil),
        readable(evil),
        {readable(evil): {0: {20: 0.5}}},
    )
    for change in ({"metric": "loss"}, {"curves": {"a": {"first": {"20": 0.5}}}}, {"curves": {"a": {"0": {"x": 0.5}}}}):
        path.write_text(json.dumps({"suites": {"s": {**suite, **change}}}))
        with pytest.raises(UserError, match="is damaged"):
            Source.read(tmp_path)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    """TorchAL's arrays hold objects, and so are pickles."""
    target = tmp_path / "made"
    objects = np.array([Payload(target)], dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "b.npz", a=objects)
    for name in ("c.npy", "d.pkl", "e.json", "f.txt", "g.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(target)))
    for path in tmp_path.glob("*.*"):
        with pytest.raises(UserError, match=str(path)) as error:
            foreign_sets.lists(path)
        if path.name in ("a.npy", "b.npz", "c.npy", "d.pkl"):
            assert "pickles are not read" in str(error.value)
        for reader in (IndexSets.unpacked,):
            with pytest.raises(UserError):
                reader(path.read_bytes())
    assert not target.exists()


def zipped(**header: int) -> bytes:
    """Return a zip of one file, whose headers say that it is encrypted, or compressed in another way."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\xff" * 100)
        data = bytearray(buffer.getvalue())
    archive = ZipFile(buffer)
    (entry,) = archive.infolist()
    places = {"flag_bits": (6, 8), "compress_type": (8, 10)}
    for key, value in header.items():
        for start, place in zip((entry.header_offset, archive.start_dir), places[key], strict=True):
            data = bytearray(buffer.getvalue())
            data[start + place : start + place + 2] = value.to_bytes(2, "little")
            buffer = io.BytesIO(bytes(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", b'{"a": 1}', "must be a list of indices"),
        ("a.json", b"[1, 2.5]", "must be a list of indices"),
        ("a.json", b"[" * 100_000, "can't be read as json"),
        ("a.json", b"[]", "has an empty list"),
        ("a.json", b"[-1]", "an index must be 0 to"),
        ("a.txt", b"1 2 x", "got 'x'"),
        ("a.txt", b"", "got ''"),
        ("a.txt", b"\xff\xfe", "can't be read as txt"),
        ("a.npz", b"PK", "can't be read as npz"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (99999999,)}\n",
            "can't be read",
        ),
        ("a.csv", b",0\n0,25247\n1,14\n", "has two columns, of which the first counts the lines"),
        ("a.txt", b"0 25247\r\n1 14", "has two columns"),
        ("a.npz", zipped(flag_bits=1), "can't be read as npz: File "),
        ("a.npz", zipped(compress_type=99), "can't be read as npz: That compression method is not supported"),
        ("a.npz", zipped(compress_type=14), "can't be read as npz: "),
        ("a.mat", b"", "allowed: .npy, .npz, .json, .csv, .txt"),
    ],
)
def test_bad_files_are_one_sentence(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        foreign_sets.lists(path)
    assert str(error.value).startswith(f"{path}: ") and problem in str(error.value) and "\n" not in str(error.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError):
        foreign_sets.lists(path)

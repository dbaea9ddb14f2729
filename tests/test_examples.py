"""Every example runs, and the package's face has what it promises."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.run import main

ROOT = Path(__file__).resolve().parent.parent


def test_one_cycle(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "one_cycle.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("40 labelled images: accuracy")
    assert lines[1].startswith("1402 candidates have scores from")
    assert lines[-1] == "the next cycle trains on 80 images"


@pytest.mark.long
@pytest.mark.parametrize("name", ["own_method", "own_dataset", "own_network"])
def test_an_own_plug_in_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    config = ROOT / "examples" / name / f"{name}.yaml"
    assert main([str(config), f"where.output={output}", "where.trials=in_process", "recipe.epochs=2"]) == 0
    table = harness.load(output)
    (suite,) = harness.load_config(config).suites
    assert list(dict.fromkeys(table["method"])) == list(suite.methods)
    assert list(table["cycle"]) == [0, 1, 2] * len(suite.methods) * len(suite.seeds)
    assert table["accuracy"].between(0, 1).all() and table["miou"].isna().all()
    assert (table["selected"].str.len() == suite.protocol.budget).sum() == 2 * len(suite.methods) * len(suite.seeds)
    printed = capsys.readouterr().out
    assert all(method in printed for method in suite.methods)


@pytest.mark.long
def test_load_of_a_run_without_a_finished_cycle_has_the_columns_and_types_of_others(tmp_path: Path) -> None:
    config = ROOT / "examples" / "own_method" / "own_method.yaml"
    for output in ("whole", "empty"):
        assert (
            main([str(config), f"where.output={tmp_path / output}", "where.trials=in_process", "recipe.epochs=1"]) == 0
        )
    for cycle in (tmp_path / "empty").glob("**/cycle_*"):
        cycle.unlink()
    whole, empty = harness.load(tmp_path / "whole"), harness.load(tmp_path / "empty")
    assert len(whole) and not len(empty)
    assert dict(whole.dtypes) == dict(empty.dtypes) and list(whole) == list(empty)


def test_load_dataset_finds_plug_ins_of_ones_own() -> None:
    folder = ROOT / "examples" / "own_dataset"
    assert len(harness.load_dataset({"name": "stripes", "limit": 20}, plugins=[folder]).train_images) == 20


def test_load_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(harness.UserError, match=r"not the results folder of a run"):
        harness.load(tmp_path)


def test_load_dataset_takes_a_spec_as_in_a_config(tmp_path: Path) -> None:
    assert harness.load_dataset({"name": "digits", "limit": 50}).train_images.shape == (50, 8, 8, 1)
    assert len(harness.load_dataset("digits").test_images) == 355
    with pytest.raises(harness.UserError, match=r"^dataset: unknown dataset 'digit'; did you mean"):
        harness.load_dataset("digit")
    with pytest.raises(harness.UserError, match=r"^dataset\.limits: unknown key 'limits'; did you mean 'limit'"):
        harness.load_dataset({"name": "digits", "limits": 50})
    with pytest.raises(harness.DataMissing, match=str(tmp_path)):
        harness.load_dataset("cifar10", data=tmp_path)


def test_the_face_imports_nothing_until_it_is_used() -> None:
    code = (
        "import sys, harness; print(sorted({'torch', 'ray', 'pydantic'} & set(sys.modules)), harness.Training.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["[]", "Training"]


def test_every_name_of_the_face_is_there() -> None:
    assert harness.__all__ == sorted(harness.__all__)
    for name in harness.__all__:
        value = getattr(harness, name)
        assert isinstance(value, str | int) if name.isupper() else value.__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = harness.Nothing


@pytest.mark.long
def test_results_are_made_again_by_one_command(tmp_path: Path) -> None:
    make = runpy.run_path(str(ROOT / "results" / "make.py"))["make"]
    small = ["recipe.epochs=1", "recipe.milestones=[]", "protocol.cycles=2", "seeds=[0]", "where.trials=in_process"]
    for _ in range(2):  # the second time everything is finished
        assert make("quickstart", [f"where.data={tmp_path}", *small], tmp_path, tmp_path / "run") == 0
    made = tmp_path / "quickstart"
    records = [json.loads(line) for line in (made / "records.jsonl").read_text().splitlines()]
    assert [(r["method"], r["cycle"]) for r in records[:2]] == [("Ran", 0), ("Ran", 1)] and len(records) == 10
    assert "DAST-AL" in (made / "quickstart_accuracy.txt").read_text()
    assert json.loads((made / "made.json").read_text())["commands"][-1].endswith(f"quickstart {' '.join(small)}")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: python results/make.py"),
        (["quickstrt"], 2, "error: there is no file and no config 'quickstrt'; did you mean 'quickstart'? allowed: "),
        ([], 2, "error: the name of a config is needed, e.g. quickstart; --help lists the options\n"),
        (["quickstart", "recipe.epoch=3"], 2, "error: recipe.epoch=3 (command line): unknown key 'epoch'; did you"),
        (["quickstart", "--plna"], 2, "error: unknown option '--plna'; did you mean '--plan'? allowed: "),
    ],
)
def test_wrong_arguments_of_results_are_answered_like_those_of_a_run(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "results" / "make.py"))["main"]
    try:
        assert main(arguments) == code
    except SystemExit as helped:
        assert not helped.code and not code
    printed = capsys.readouterr()
    assert (printed.err or printed.out).startswith(said)


def test_the_quickstart_s_table_in_readme_is_that_of_its_records() -> None:
    table = (ROOT / "results" / "quickstart" / "quickstart_accuracy.txt").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("Ran", "LC", "Core-set", "DAST-AL"))]
    readme = (ROOT / "README.md").read_text()
    assert len(rows) == 5 and all(row.strip() in readme for row in rows)

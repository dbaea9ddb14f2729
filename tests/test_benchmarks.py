"""The benchmark scripts start, and benchmarks/gpu.py measures each thing once. The sizes are tiny: no number counts."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import gpu
import grid
import pytest
import torch

SCRIPTS = sorted({path.stem for path in Path(gpu.__file__).parent.glob("*.py")} - {"measure", "workers"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_it_is_called(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(["--help"])
    assert ended.value.code == 0
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_among_all_proofs(script: str) -> None:
    proofs = (Path(gpu.__file__).parents[1] / ".ci" / "full").read_text()
    assert f'    "{script} ' in proofs, "the list called small"


def small(folder: Path, *parts: str) -> tuple[int, dict]:
    """Run parts of gpu.py here; return its exit code and what is finished."""
    words = ["--device", "cpu", "--small", "--json", str(folder / "gpu.json"), "--csv", str(folder / "gpu.csv")]
    code = gpu.main([*words, "--minutes", "5", "--part", *parts, "--override", f"where.data={folder}"])
    return code, json.loads((folder / "gpu.json").read_text())["steps"]


@pytest.mark.long
def test_each_part_ends_without_a_gpu_and_nothing_runs_again(tmp_path: Path) -> None:
    parts = [name for name in gpu.PARTS if name != "ray"]
    code, steps = small(tmp_path, *parts)
    assert code == 0
    assert {key.split(": ")[0] for key in steps} == {*parts} - {"tests", "table1"}, "no GPU, and no data"
    assert all(run > float("-inf") for step in steps.values() for row in step["rows"] for run in row["runs"])
    assert steps["equality: eager"]["rows"][0]["runs"] == [1.0]
    assert small(tmp_path, *parts) == (0, steps)
    assert not (tmp_path / "gpu.csv").exists(), "a small size on a CPU is no result"


@pytest.mark.long
@pytest.mark.ray
def test_the_part_on_ray_ends_without_a_gpu(tmp_path: Path) -> None:
    code, steps = small(tmp_path, "ray")
    assert code == 0
    assert [row["unit"] for row in steps["ray: 10 000 images"]["rows"]] == ["s"] * 4


@pytest.mark.long
@pytest.mark.ray
def test_the_state_of_tune_grows_by_at_most_15_kb_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    grid.main(["--trials", "20", "--seconds", "0.05", "--workers", "2"])
    *_, kilobytes, _ = capsys.readouterr().out.splitlines()[-1].split()
    assert 5 < float(kilobytes) < 15


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    assert "torch sees no GPU on this machine" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def measured(rows: list[gpu.Row], **keys: object) -> gpu.Results:
    """Return results as a GPU would give them."""
    step = {"date": "2026-01-01T00:00:00+00:00", "commit": "abc", "command": "gpu.py", "seconds": 1.0}
    steps = {"packing: 4": {**step, "rows": [vars(row) for row in rows]}}
    return gpu.Results(**{"device": "Some GPU", "torch": "2.11", "small": False, "steps": steps, **keys})


def test_a_row_is_appended_once(tmp_path: Path) -> None:
    table, file = tmp_path / "gpu.csv", tmp_path / "gpu.json"
    results = measured(
        [gpu.Row("speed", "images/s", [3.0, 1.0, 2.0]), gpu.Row("with MPS", "images/s", [], "none here")]
    )
    results.write(file)
    assert gpu.add(results, table) == 2
    assert gpu.main(["--add", str(file), "--csv", str(table)]) == 0
    with table.open(newline="") as lines:
        header, speed, absent = csv.reader(lines)
    assert header == gpu.COLUMNS
    assert speed[2:] == ["Some GPU", "2.11", "packing", "speed", "2", "images/s", "1 to 3", "3", "gpu.py"]
    assert absent[6:10] == ["", "images/s", "none here", "0"]
    assert gpu.add(measured([gpu.Row("other", "s", [1.0])]), table) == 1
    assert len(table.read_text().splitlines()) == 4


@pytest.mark.parametrize("keys", [{"device": "cpu"}, {"small": True}])
def test_rows_that_mean_nothing_are_refused(keys: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    measured([gpu.Row("speed", "images/s", [1.0])], **keys).write(file)
    assert gpu.main(["--add", str(file), "--csv", str(tmp_path / "gpu.csv")]) == 2
    assert "no rows that were measured on a GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.csv").exists()


def test_an_accuracy_is_compared_with_the_logged_ones() -> None:
    times = {"seconds": {"train": 2.0}, "training_images": 100, "shared_from": None}
    record = SimpleNamespace(method="DAST-AL", labelled=2500, metrics={"accuracy": 0.7}, **times)
    accuracy, speed = gpu.with_authors(record, "DAST-AL, seed 0, 2500 labelled", "official archive")
    assert accuracy.runs == [70.0] and accuracy.spread == "official archive"
    assert accuracy.reference == "authors 69.58 (67.11 to 71.78, 8 trials)"
    assert speed.runs == [50.0]


def test_mps_that_is_not_there_is_said_in_the_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: None)
    asked = SimpleNamespace(small=True, device="cpu")
    (row,) = gpu.packed(asked, 2, server=True)
    assert row.value == "" and row.spread == "MPS can't be started: this machine has no nvidia-cuda-mps-control"

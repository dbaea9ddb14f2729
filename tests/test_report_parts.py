"""The parts of the report on full data, gains and selections, against hand-made records and small runs."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_report import METHODS, all_records, record, row, run_dir, suite, tables

from harness import run
from harness.report.captions import uncommitted
from harness.report.formats import NOTHING
from harness.report.lead import facts
from harness.report.selection import class_entropy, jaccard, selection_table
from harness.report.write import write
from harness.results.records import CycleRecord
from harness.results.store import RunStore

HALVES = {
    "Ran": {"training": {"name": "t"}, "acquisition": {"name": "a"}},
    "Ran+": {"training": {"name": "u", "x": 1}, "acquisition": {"name": "a"}},
    "DAST-AL": {"training": {"name": "u", "x": 1}, "acquisition": {"name": "b"}},
}


# --- parts of a gain


def test_the_parts_of_a_gain_add_up_at_each_seed() -> None:
    levels = {"Ran": (0.5, 0.6), "Ran+": (0.53, 0.62), "DAST-AL": (0.6, 0.64)}
    records = [
        record(m, s, c, a + 0.1 * c) for m, seeds in levels.items() for s, a in enumerate(seeds) for c in range(3)
    ]
    table = tables(records, suite(halves=HALVES))["decomposition"]
    cells = row(table, "DAST-AL")
    expected = {"gain": (10.0, 4.0), "training": (3.0, 2.0), "selection": (7.0, 2.0)}
    for part, values in expected.items():
        assert cells[part] == f"{statistics.mean(values):+.2f}±{statistics.stdev(values):.2f}"
    assert row(table, "Ran+")["selection"] == "+0.00±0.00"
    assert list(table.shown["method"]) == ["Ran+", "DAST-AL"]
    assert [row(table, method)["split by"] for method in ("Ran+", "DAST-AL")] == ["Ran+", "Ran+"]


def test_the_training_of_a_module_is_an_auxiliary_part() -> None:
    """LL4AL's module changes the network; the row of its training with random selection says by how much."""
    training = {"name": "module"}
    halves = HALVES | {
        "LL4AL": {"training": training, "acquisition": {"name": "c"}},
        "LL4AL's training": {"training": training, "acquisition": {"name": "a"}},
        "ADS": {"training": {"name": "heads"}, "acquisition": {"name": "d"}},
        "LC": {"training": {"name": "t"}, "acquisition": {"name": "e"}},
    }
    at = {"Ran": 0.5, "Ran+": 0.53, "DAST-AL": 0.6, "LL4AL": 0.58, "LL4AL's training": 0.51, "ADS": 0.62, "LC": 0.54}
    records = [
        record(m, s, c, level, extra_parameters=100 * m.startswith(("LL4AL", "ADS")), trial=f"{m}-{s}")
        for m, level in at.items() for s in range(2) for c in range(3)
    ]  # fmt: skip
    trials = {f"{m}-{s}": {"method": m, "seed": s} for m in at for s in range(2)}
    table = tables(records, suite(methods=[*at], halves=halves, trials=trials))["decomposition"]
    whole = {method: row(table, method) for method in at if method != "Ran"}
    names = ("gain", "training", "auxiliary", "selection")
    parts = {method: [cells[name].split("±")[0] for name in names] for method, cells in whole.items()}
    assert parts == {
        "Ran+": ["+3.00", "+3.00", NOTHING, "+0.00"],
        "DAST-AL": ["+10.00", "+3.00", NOTHING, "+7.00"],
        "LL4AL": ["+8.00", NOTHING, "+1.00", "+7.00"],
        "LL4AL's training": ["+1.00", NOTHING, "+1.00", "+0.00"],
        "ADS": ["+12.00", NOTHING, NOTHING, NOTHING],
        "LC": ["+4.00", "+0.00", NOTHING, "+4.00"],
    }
    assert [cells["split by"] for cells in whole.values()] == ["Ran+", "Ran+", *["LL4AL's training"] * 2, "none", "Ran"]
    assert "none: the suite has no such row" in table.reading["parts of the gain"]


@pytest.mark.parametrize("missing", [{"Ran+"}, {"Ran"}, {"DAST-AL"}])
def test_without_a_row_between_there_are_no_parts(missing: set[str]) -> None:
    halves = {name: pair for name, pair in HALVES.items() if name not in missing}
    assert "decomposition" not in tables(all_records(), suite(halves=halves))
    assert "decomposition" not in tables(all_records(), suite())  # run.json of version 1


# --- selections


def test_class_entropy_and_overlap_by_hand() -> None:
    assert class_entropy([5, 5, 5, 5]) == pytest.approx(1.0)
    assert class_entropy([7, 0, 0]) == 0.0
    assert class_entropy([1, 3]) == pytest.approx((0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / math.log(2))
    assert math.isnan(class_entropy([])) and math.isnan(class_entropy([3]))
    assert jaccard([{1, 2, 3}, {3, 4}, set()]).tolist()[0] == [1, 0.25, 0]
    assert np.isnan(jaccard([set(), set()])).all()
    draw = np.random.default_rng(0)
    sets = [{*draw.integers(0, 60, size).tolist()} for size in (1, 20, 40, 40)]
    by_hand = [[len(one & other) / len(one | other) for other in sets] for one in sets]
    assert jaccard(sets).tolist() == by_hand


def test_overlaps_accumulate_over_the_cycles_of_equal_seeds() -> None:
    def made(method: str, seed: int, cycle: int, selected: list[int]) -> CycleRecord:
        return record(method, seed, cycle, 0.5, selected=selected, selected_classes=[len(selected), 0])

    records = [
        made("Ran", 0, 0, [1, 2]),
        made("Ran", 0, 1, [3, 4]),
        made("Ran+", 0, 0, [3, 4]),
        made("Ran+", 0, 1, [1, 5]),
        made("Ran+", 1, 0, [1, 2]),  # no other method has this seed
    ]
    found = selection_table(records, METHODS).set_index(["method", "labelled"])
    assert found.loc[("Ran and Ran+: overlap (%)", 100), "mean"] == 0
    assert found.loc[("Ran and Ran+: overlap (%)", 200), "mean"] == pytest.approx(60.0)  # 1, 3 and 4 of 1 to 5
    assert found.loc[("Ran: class entropy (%)", 100), "mean"] == 0
    assert "DAST-AL" not in str(found.index)


def test_records_without_classes_have_overlaps_only(tmp_path: Path) -> None:
    printed = write(run_dir(tmp_path / "run", all_records(), [suite()]))
    text = (tmp_path / "run" / "report" / "digits_selection.txt").read_text()
    assert "Ran and Ran+: overlap (%)" in text and ": class entropy (%)" not in text
    assert len([line for line in printed.splitlines() if "digits_selection.txt" in line]) == 1


# --- seconds until an accuracy


def test_the_seconds_until_the_reference_ends() -> None:
    curves = {"Ran": (0.5, 0.6, 0.7), "Ran+": (0.6, 0.72, 0.8), "DAST-AL": (0.4, 0.5, 0.69)}
    records = [
        record(m, s, c, a + 0.01 * s) for m, curve in curves.items() for s in (0, 1) for c, a in enumerate(curve)
    ]
    table = tables(records)["accuracy_reached"]
    # a cycle takes 20 + 2 + 1 + 0.5 seconds, of which 22 are training
    assert row(table, "Ran") == {"labelled": "400", "seconds": "69.0"}
    assert row(table, "Ran+") == {"labelled": "200", "seconds": "45.5"}
    assert row(table, "DAST-AL") == {"labelled": "not reached", "seconds": "not reached"}
    assert "mean accuracy (%) is at least 70.50, the last one of Ran" in table.caption
    gap = [replace(r, seconds=r.seconds | {"train": None}) if (r.method, r.cycle) == ("Ran", 1) else r for r in records]
    cells = row(tables(gap)["accuracy_reached"], "Ran")
    assert cells == {"labelled": "400", "seconds": "not timed"}, "not 45.5: a cycle before took some time"
    one = [r if r.seed else g for r, g in zip(records, gap, strict=True)]
    assert row(tables(one)["accuracy_reached"], "Ran")["seconds"] == "69.0", "that of the other seed"
    unfinished = [r for r in records if (r.method, r.cycle) != ("Ran", 2)]
    assert "accuracy_reached" not in tables(unfinished)


def test_energy_is_shown_where_a_device_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    import torch

    from harness.results.energy import joules

    device = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert joules(device) is None and joules(torch.device("cpu")) is None
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID={"GPU-7": "handle"}.__getitem__,
        nvmlDeviceGetTotalEnergyConsumption={"handle": 5000}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="7"))
    assert joules(device) == 5.0
    assert "energy (Wh)" not in row(tables(all_records())["cost"], "Ran")
    assert row(tables(all_records(energy_joules=7200.0))["cost"], "Ran")["energy (Wh)"] == "2.00±0.00"
    shared = tables(all_records(energy_joules=7200.0, shared_from="key"))["cost"]
    assert "energy (Wh)" not in row(shared, "Ran"), "a column of dashes says nothing"


# --- all training images

SMALL = """\
dataset: {name: digits, limit: 120}
model: {name: resnet_small, width: 4}
recipe: {epochs: 1, batch_size: 50}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
methods: {Ran: random, LC: least_confidence}
seeds: [0, 1]
where: {trials: in_process, output: run}
"""


@pytest.mark.long
def test_full_data_is_added_to_a_run_and_changes_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(SMALL)
    assert run.main(["c.yaml"]) == 0
    before = {path.name: (path / "cycle_000.json").read_bytes() for path in Path("run/trials").iterdir()}
    assert run.main(["c.yaml", "full_data=true", "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "2 x 2 + 2 = 6" in plan and "6 trials." in plan
    assert "2 trials of these, on all training images: 240 training passes" in " ".join(plan.split())
    assert run.main(["c.yaml", "full_data=true", "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "To run: 2 trials" in printed and "all 120 images / seed 1" in printed
    (entry,) = json.loads(Path("run/run.json").read_text())["suites"]
    full = entry["full_data"]
    assert sorted(full.values()) == [0, 1] and not {*full} & {*entry["trials"]}
    assert {p.name for p in Path("run/trials").iterdir()} == {*before, *full}
    for name, data in before.items():
        assert (Path("run/trials") / name / "cycle_000.json").read_bytes() == data
    accuracies = [r.metrics["accuracy"] for t in full for r in RunStore(Path("run")).trial(t).records()]
    shown = f"{100 * statistics.mean(accuracies):.2f}±{100 * statistics.stdev(accuracies):.2f}"
    (line,) = [line for line in printed.splitlines() if line.startswith("all 120 images ") and shown in line]
    assert line.split()[-1] == NOTHING  # it has no area under a curve
    assert run.main(["c.yaml", "full_data=true", "--resume"]) == 0
    assert "To run: 0 trials (6 trials already finished)" in capsys.readouterr().out
    assert "all 120 images" in Path("run/report/c_accuracy.csv").read_text()
    assert "all 120 images" in Path("run/report/c_accuracy.svg").read_text()


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        (
            {"epochs": 200, "milestones": [160, 180]},
            "; momentum 0.9; weight decay 0.0005; learning rate times 0.1 after 160 and 180 epochs; training images "
            "padded by 4 pixels and cropped at random, flipped at random",
        ),
        (
            {"epochs": 2, "optimizer": "adam", "crop_padding": 0, "flip": False},
            "; weight decay 0.0005; training images as they are",
        ),
        (
            {"epochs": 90, "warmup_epochs": 5, "random_resized_crop": {}, "flip": False},
            "; momentum 0.9; weight decay 0.0005; learning rate from 0 in 5 epochs at the start; training images "
            "cropped and resized at random",
        ),
        ({"epochs": 90, "key_of_a_later_version": 1}, ""),
    ],
)
def test_the_page_says_the_whole_recipe(recipe: dict[str, object], more: str) -> None:
    entry = suite().model_copy(update={"settings": {"recipe": recipe}})
    assert dict(facts(entry, []))["Recipe"] == entry.recipe + more


def test_changes_that_no_commit_holds_are_warned_of() -> None:
    records = [record("Ran", s, 0, 0.5, commit=commit) for s, commit in enumerate(("a1", "b2+changes", "b2+changes"))]
    assert uncommitted(records) == [
        "WARNING: the code had changes that no commit holds (b2+changes): keep these changes with the results."
    ]
    assert uncommitted(records[:1]) == []

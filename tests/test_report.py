"""The report: numbers against hand-made records, captions, files, pictures and the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.data.files import IGNORED
from harness.errors import UserError
from harness.registry import ROOT
from harness.report.__main__ import main
from harness.report.captions import mixtures, provenance, record_warnings, timing_note
from harness.report.contents import Table, suite_tables
from harness.report.formats import NOTHING, as_text, latex, markdown, own_file_name, wrapped
from harness.report.write import read, write
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.pictures import SelectedImages
from harness.results.records import PHASES, CycleRecord
from harness.results.store import RunStore

METHODS = ["Ran", "Ran+", "DAST-AL"]
LABELLED = [100, 200, 400]


def record(method: str, seed: int, cycle: int, accuracy: float | None, **changes: Any) -> CycleRecord:
    """Make a record; the cycle of the last of LABELLED selects nothing."""
    last = cycle == len(LABELLED) - 1
    values: dict[str, Any] = {
        "suite": "digits",
        "dataset": "digits",
        "model": "resnet_small",
        "method": method,
        "trial": f"{method}-{seed}",
        "seed": seed,
        "cycle": cycle,
        "labelled": LABELLED[cycle],
        "metrics": {"accuracy": accuracy},
        "selected": [] if last else [1, 2],
        "seconds": dict(zip(PHASES, (9.0, 0.0, 20.0, 2.0, 1.0, 0.5, 3.0, 0.25), strict=True)),
        "wall_seconds": 36.0,
        "target_parameters": 1000,
        "extra_parameters": 0,
        "peak_memory_bytes": {"host": 1},
        "training_images": 100,
        "final_loss": None,
        "device": "cpu",
        "device_share": 1,
        "threads": 1,
        "precision": "bfloat16",
        "scoring": {"path": "none", "shards": []},
        "versions": {"torch": "2.11"},
        "commit": "abc",
        "data_fingerprint": "3f2a99887766aaaaaa",
    }
    return CycleRecord(**(values | changes))


def suite(**changes: Any) -> SuiteEntry:
    values: dict[str, Any] = {
        "name": "digits",
        "title": "Digits",
        "dataset": "digits",
        "model": "resnet_small",
        "recipe": "SGD, 100% of 30_000 steps",
        "methods": METHODS,
        "seeds": [0, 1, 2],
        "labelled": LABELLED,
        "exclusive": False,
        "skipped": None,
        "trials": {f"{m}-{s}": {"method": m, "seed": s} for m in METHODS for s in range(3)},
    }
    return SuiteEntry(**(values | changes))


def all_records(**changes: Any) -> list[CycleRecord]:
    return [
        record(m, s, c, 0.5 + 0.1 * c + 0.01 * s + 0.02 * i, **changes)
        for i, m in enumerate(METHODS)
        for s in range(3)
        for c in range(3)
    ]


def run_dir(path: Path, records: list[CycleRecord], suites: list[SuiteEntry]) -> Path:
    """Write a run's folder; the stored records carry another method name than run.json."""
    for r in records:
        RunStore(path).trial(r.trial).commit(replace(r, method="registry_name"), "state")
    path.mkdir(exist_ok=True)
    (path / "run.json").write_bytes(Manifest(schema_version=2, name="quick", suites=suites).packed())
    return path


def tables(records: list[CycleRecord], entry: SuiteEntry | None = None) -> dict[str, Table]:
    return {t.name: t for t in suite_tables(entry or suite(), records)}


def row(table: Table, method: str) -> dict[str, str]:
    return {str(k): str(v) for k, v in table.shown.set_index("method").loc[method].items()}


# --- numbers


def test_metric_table_mean_and_sample_standard_deviation() -> None:
    accuracies = [0.8112, 0.8155, 0.8209]
    table = tables([record("Ran", s, 0, a) for s, a in enumerate(accuracies)])["accuracy"]
    (values,) = table.numbers[""].to_dict("records")
    assert values["mean"] == pytest.approx(100 * statistics.mean(accuracies))
    assert values["std"] == pytest.approx(100 * statistics.stdev(accuracies))  # pstdev would be 0.40, not 0.49
    assert (values["method"], values["labelled"], values["n"]) == ("Ran", 100, 3)
    assert row(table, "Ran")["100"] == "81.59±0.49"
    assert list(table.shown["method"]) == METHODS  # in display order, also those without results
    assert row(table, "DAST-AL") == {"100": NOTHING, "n": "0", "AUBC": NOTHING}


def test_one_seed_has_no_spread() -> None:
    by_name = tables([record("Ran", 0, c, 0.5) for c in range(3)])
    assert row(by_name["accuracy"], "Ran") == {
        "100": "50.00",
        "200": "50.00",
        "400": "50.00",
        "n": "1",
        "AUBC": "50.00",
    }
    assert not any("±" in text for t in by_name.values() for text in t.shown.to_numpy().ravel())


def test_aubc_by_hand() -> None:
    # (0.4 + 0.6) / 2 * 100 + (0.6 + 0.8) / 2 * 200 = 190; / 300 = 0.6333; the other seed is 0.1 higher throughout
    records = [record("Ran", s, c, (0.4, 0.6, 0.8)[c] + 0.1 * s) for s in range(2) for c in range(3)]
    (area,) = tables(records)["accuracy"].numbers["_aubc"].to_dict("records")
    assert area["mean"] == pytest.approx(100 * (190 / 300 + 0.05))
    assert area["std"] == pytest.approx(statistics.stdev([0.0, 10.0]))
    assert area["n"] == 2
    assert row(tables(records)["accuracy"], "Ran")["AUBC"] == "68.33±7.07"


def test_aubc_leaves_out_curves_that_are_shorter_than_the_axis() -> None:
    records = [r for r in all_records() if (r.method, r.seed, r.cycle) != ("Ran", 2, 2)]
    records = [r for r in records if r.method != "DAST-AL" or r.cycle < 2]
    table = tables(records)["accuracy"]
    assert row(table, "Ran")["AUBC"].endswith("(n=2)")
    assert row(table, "Ran")["400"].endswith("(n=2)")
    assert "(n=" not in row(table, "Ran")["200"]
    assert row(table, "Ran")["n"] == "3"
    assert row(table, "DAST-AL")["AUBC"] == row(table, "DAST-AL")["400"] == NOTHING
    assert "(n=" not in row(table, "Ran+")["AUBC"]


def test_missing_metrics_and_phases_are_gaps_not_zeros() -> None:
    records = [
        record("Ran", 0, 0, None),
        record("Ran", 1, 0, 0.75),
        record("Ran", 2, 0, 0.0, metrics={"mIoU": 0.5}),
    ]
    records[0].seconds.pop("score")
    by_name = tables(records)
    assert row(by_name["accuracy"], "Ran")["100"] == "75.00"
    assert row(by_name["accuracy"], "Ran")["n"] == "1"
    assert row(by_name["mIoU"], "Ran")["100"] == "50.00"  # every metric has a table of its own
    assert row(by_name["seconds"], "Ran")["score"] == "1.00±0.00 (n=2)"
    assert row(by_name["seconds"], "Ran")["total"] == "23.50±0.00 (n=2)"  # no total of an incomplete cycle


def test_seconds_are_means_of_trial_means_over_the_cycles_that_selected() -> None:
    records = []
    for seed, trains in enumerate([(10.0, 20.0, 999.0), (12.0, 24.0, 999.0)]):
        for cycle, train in enumerate(trains):
            seconds = dict.fromkeys(PHASES, 0.0) | {"train": train, "score": 2.0, "evaluate": 5.0, "setup": 7.0}
            records.append(record("Ran", seed, cycle, 0.5, seconds=seconds))
    by_name = tables(records)
    deviation = statistics.stdev([15.0, 18.0])
    assert row(by_name["seconds"], "Ran") == {
        "train": f"16.50±{deviation:.2f}",
        "auxiliary": "0.00±0.00",
        "score": "2.00±0.00",
        "select": "0.00±0.00",
        "total": f"18.50±{deviation:.2f}",  # neither setup nor evaluation is in it
        "evaluate": "5.00±0.00",
        "checkpoint": "0.00±0.00",
        "n": "2",
    }
    assert "mean of all cycles except the last, which selects nothing" in by_name["seconds"].caption
    by_cycle = by_name["seconds_by_cycle"]
    assert list(by_cycle.shown["labelled"]) == ["100", "200", "400"]
    assert list(by_cycle.shown["train"]) == ["11.00±1.41", "22.00±2.83", "999.00±0.00"]
    assert not by_cycle.printed


def test_seconds_of_compiling_are_shown_where_something_was_compiled() -> None:
    eager = record("Ran", 0, 0, 0.5)
    assert "compile" not in row(tables([eager])["seconds"], "Ran")
    compiled = record("DAST-AL", 0, 0, 0.5, seconds=eager.seconds | {"compile": 30.0})
    by_name = tables([eager, compiled])
    assert row(by_name["seconds"], "DAST-AL")["compile"] == "30.00" != row(by_name["seconds"], "Ran")["compile"]
    assert row(by_name["seconds"], "DAST-AL")["total"] == row(by_name["seconds"], "Ran")["total"], "no method's cost"
    assert "compile" in by_name["seconds_by_cycle"].shown.columns


def test_seconds_of_a_run_that_selects_nothing() -> None:
    table = tables([record("Ran", 0, 0, 0.5, selected=[])])["seconds"]
    assert row(table, "Ran")["train"] == "20.00"
    assert "mean of all cycles (unfinished" in table.caption


def test_cost_table_is_the_first_cycle_in_the_form_of_table_4() -> None:
    records = []
    for seed in range(2):
        for method, extra in (("Ran", 0), ("DAST-AL", 257014)):
            for cycle in range(2):
                late = 1000.0 * cycle
                seconds = dict.fromkeys(PHASES, 77.0) | {
                    "train": 100.0 + 20 * seed + late,
                    "auxiliary": 11.0,
                    "score": 8.0,
                    "select": 1.0,
                }
                shard = {"peak_memory_bytes": {"reserved": 3 * 2**30 if method == "Ran" and cycle else 2**29}}
                memory = {
                    "peak_memory_bytes": {"host": 2**33, "device": (1 + seed) * 2**30},
                    "scoring": {"path": "ray_data", "shards": [shard]},
                }
                records.append(record(method, seed, cycle, 0.5, seconds=seconds, extra_parameters=extra, **memory))
    table = tables(records)["cost"]
    assert row(table, "DAST-AL") == {
        "EP": "257,014",
        "EP (MiB)": "0.98",
        "TT (s)": "121.00±14.14",
        "ST (s)": "9.00±0.00",
        "total (min)": "2.167±0.236",
        "memory (GiB)": "1.50±0.71",
        "n": "2",
    }
    assert row(table, "Ran")["EP"] == row(table, "Ran")["EP (MiB)"] == NOTHING
    assert row(table, "Ran")["memory (GiB)"] == "3.00±0.00", "a worker's, of a later cycle"
    numbers = table.numbers[""].set_index(["method", "quantity"])["mean"]
    assert numbers["DAST-AL", "EP (MiB)"] == 257014 * 4 / 2**20
    assert numbers["Ran", "EP"] == 0


@settings(max_examples=15, deadline=None)
@given(
    cells=st.dictionaries(
        st.tuples(st.sampled_from(METHODS), st.integers(0, 4)),
        st.lists(st.floats(0, 1), min_size=1, max_size=3),
        min_size=1,
    ),
    shuffling=st.randoms(use_true_random=False),
)
def test_any_records(cells: dict[tuple[str, int], list[float]], shuffling: random.Random) -> None:
    records = [record(m, s, c, a) for (m, s), curve in cells.items() for c, a in enumerate(curve)]
    by_name = tables(records)
    shuffled = records.copy()
    shuffling.shuffle(shuffled)
    for name, table in tables(shuffled).items():
        assert table.caption == by_name[name].caption
        assert table.shown.equals(by_name[name].shown)
        for ending, numbers in table.numbers.items():
            assert numbers.to_csv() == by_name[name].numbers[ending].to_csv()  # to the last bit

    rows = list(csv.DictReader(io.StringIO(by_name["accuracy"].numbers[""].to_csv(index=False))))
    assert len(rows) == len({(r.method, r.cycle) for r in records})
    for values in rows:
        expected = [
            100 * r.metrics["accuracy"]
            for r in records
            if (r.method, r.labelled) == (values["method"], int(values["labelled"]))
        ]
        assert int(values["n"]) == len(expected)
        assert float(values["mean"]) == pytest.approx(np.mean(expected), abs=1e-9)
        if len(expected) > 1:
            assert float(values["std"]) == pytest.approx(np.std(expected, ddof=1), abs=1e-6)
        else:
            assert values["std"] == ""


# --- label maps


CLASSES = ["sky", "road", "car"]  # in no alphabetical order


def street_record(method: str, seed: int, cycle: int, *by_class: float) -> CycleRecord:
    """Make a record of a suite where pixels have labels."""
    per_class = dict(zip(CLASSES, by_class, strict=True))
    metrics = {"miou": statistics.mean(by_class)}
    return record(method, seed, cycle, None, metrics=metrics, per_class=per_class)


def street_records() -> list[CycleRecord]:
    """Two seeds of two methods; one trial has not selected its last images yet."""
    return [
        street_record(method, seed, cycle, 0.6 + 0.02 * seed + 0.1 * cycle, 0.5, 0.2 + 0.1 * number)
        for number, method in enumerate(("Ran", "DAST-AL"))
        for seed in range(2)
        for cycle in range(3)
        if (method, seed, cycle) != ("DAST-AL", 1, 2)
    ]


def test_mean_iou_is_called_so(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run", street_records(), [suite()])
    printed = write(folder)
    assert "mIoU (%) on the test set by number of labelled images, and AUBC from 100 to 400" in " ".join(
        printed.split()
    )
    assert re.search(r"^Ran +43\.67±0\.47 +47\.00±0\.47 +50\.33±0\.47 +2 ", printed, re.MULTILINE)
    assert {"digits_miou.csv", "digits_miou_aubc.csv", "digits_miou.png"} <= {
        p.name for p in (folder / "report").iterdir()
    }
    markdown = (folder / "report" / "report.md").read_text()
    assert "![mIoU of Digits](digits_miou.png)" in markdown
    assert ">mIoU (%)<" in re.sub(r"<!-- (.*?) -->", r">\1<", (folder / "report" / "digits_miou.svg").read_text())
    for text in (printed, markdown, *(p.read_text() for p in (folder / "report").glob("*.[tcm]*"))):
        assert "accuracy" not in text.replace("balanced accuracy", "")


def test_iou_of_each_class_at_the_last_count_that_all_trials_have() -> None:
    table = tables(street_records())["class_iou"]
    assert "IoU (%) of each class at 200 labelled images" in table.caption
    assert list(table.shown.columns) == ["method", *CLASSES, "n"] and list(table.shown["method"]) == METHODS
    assert row(table, "Ran") == {"sky": "71.00±1.41", "road": "50.00±0.00", "car": "20.00±0.00", "n": "2"}
    assert row(table, "DAST-AL")["car"] == "30.00±0.00"
    assert row(table, "Ran+") == dict.fromkeys(CLASSES, NOTHING) | {"n": "0"}
    numbers = table.numbers[""]
    assert list(numbers.columns) == ["method", "labelled", "class", "mean", "std", "n"] and len(numbers) == 6
    assert set(numbers["labelled"]) == {200}
    assert numbers["mean"][0] == pytest.approx(71) and numbers["std"][0] == pytest.approx(
        100 * statistics.stdev([0, 0.02])
    )
    first = tables([r for r in street_records() if r.cycle == 0 or r.seed == 0][:4])["class_iou"]
    assert " at 100 labelled images" in first.caption and row(first, "Ran")["sky"] == "61.00±1.41"
    without = replace(street_records()[0], per_class={})
    assert "class_iou" not in tables([without]) and "class_iou" not in tables(all_records())


def test_classes_stay_in_their_order_in_all_forms(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run", street_records(), [suite()])
    printed = write(folder)
    assert re.search(r"^method +sky +road +car +n$", printed, re.MULTILINE)
    stem = folder / "report" / "digits_class_iou"
    assert "| method   |        sky |       road |        car |   n |" in stem.with_suffix(".md").read_text()
    assert "71.00 +- 1.41" in stem.with_suffix(".tex").read_text()
    lines = list(csv.DictReader(io.StringIO(stem.with_suffix(".csv").read_text())))
    assert [line["class"] for line in lines] == CLASSES * 2


def selected(scored: bool) -> SelectedImages:
    """Two images: a label map of all classes and none, and one that is predicted as a single class."""
    labels = np.array([[[0, 1, 2, IGNORED]] * 3, [[1] * 4] * 3], dtype=np.uint8)
    scores = np.linspace(-5, 5, labels.size).reshape(labels.shape).astype(np.float16)
    images = np.full((*labels.shape, 3), 90, dtype=np.uint8)
    predictions = np.zeros_like(labels)
    return SelectedImages(np.array([17, 4]), images, labels, predictions, tuple(CLASSES), scores if scored else None)


def test_selected_images_are_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    folder = run_dir(tmp_path / "run", street_records(), [suite()])
    store = RunStore(folder)
    for trial, scored in (("Ran-1", False), ("DAST-AL-0", True), ("DAST-AL-1", False)):
        store.trial(trial).pictures_path.write_bytes(selected(scored).packed())
    store.trial("Ran-0").pictures_path.write_bytes(b"damaged")
    printed = write(folder)
    assert re.search(rf"The first selected images:\s{re.escape(str(folder))}/report/digits_selected_\*\.png\n", printed)
    markdown = (folder / "report" / "report.md").read_text()
    links = re.findall(r"!\[(.*?): the first selected images\]\((.*?)\)", markdown)
    assert links == [("Ran", "digits_selected_0_Ran.png"), ("DAST-AL", "digits_selected_2_DAST-AL.png")]
    (ran, both) = (imread(folder / "report" / name)[..., :3] for _, name in links)
    assert both.shape[1] > ran.shape[1], "the column of scores"
    from harness.report.plots import CLASS_COLOURS

    for colour in (*CLASS_COLOURS[:3], (0, 0, 0), (90 / 255,) * 3):
        assert (np.abs(ran - colour).max(axis=-1) < 0.01).sum() > 1000
    before = [(folder / "report" / name).read_bytes() for _, name in links]
    write(folder)
    assert [(folder / "report" / name).read_bytes() for _, name in links] == before


def test_a_grid_names_images_columns_and_classes() -> None:
    from harness.report.plots import class_colours, selected_grid

    grid = selected_grid(selected(scored=True), "Ran: selected", "Seed 0")
    titles = [axes.get_title() for axes in grid.axes[:4]]
    assert titles == ["image", "labels", "prediction", "score by position"]
    assert [axes.get_ylabel() for axes in grid.axes[:8:4]] == ["image 17", "image 4"]
    (legend,) = grid.legends
    assert [text.get_text() for text in legend.get_texts()] == [*CLASSES, "no class"]
    shown = [axes.images[0] for axes in grid.axes[:8]]
    assert np.array_equal(shown[1].get_array(), class_colours(selected(True).labels[0]))
    assert {image.get_clim() for image in (shown[3], shown[7])} == {(-5, 5)}, "one scale for all images"
    colours = class_colours(np.arange(255, dtype=np.uint8))
    assert len(np.unique(colours[:20], axis=0)) == 20 and colours.max(axis=1).min() > 0, "only no class is black"
    gray = replace(selected(scored=False), images=selected(scored=False).images[..., :1])
    assert len(selected_grid(gray, "t", "c").axes) == 6


# --- captions


SOURCE = "Digits: SGD, 100% of 30_000 steps; 3 seeds; dataset digits (fingerprint 3f2a99887766); cpu, bfloat16."


def test_captions_have_two_lines_at_most_and_each_term_is_explained_once() -> None:
    for records in (all_records(), street_records(), all_records()[:2]):
        for table in tables(records).values():
            assert len(wrapped(table.caption).splitlines()) <= 2 and "Digits" not in table.caption
            assert "n" not in table.shown.columns or table.reading["n"] == "number of seeds"
            words = " ".join([table.caption, *table.reading.values()]).lower()
            for column in table.shown.columns:
                explained = column in table.reading or column.partition(" (")[0] in table.reading
                assert explained or column in ("method", *CLASSES) or column.isdigit() or column in words


def test_the_origin_of_a_suite_is_printed_once_and_is_in_every_file(tmp_path: Path) -> None:
    assert provenance(suite(), all_records()) == SOURCE
    folder = run_dir(tmp_path / "run", all_records(), [suite()])
    printed = " ".join(write(folder).split())
    assert printed.count(SOURCE) == printed.count("mean±std: mean and sample standard deviation") == 1
    assert printed.count("TT: training time") == printed.count("n: number of seeds") == 1
    for path in (folder / "report").glob("digits_*.txt"):
        text = " ".join(path.read_text().split())
        assert text.count(f"{SOURCE} Timing: one trial per device.") == 1
        assert "n: number of seeds" in text or path.stem.endswith("reached")
    for path in (folder / "report").glob("digits_*.tex"):
        assert path.read_text().startswith(f"% {SOURCE}")


def test_the_origin_names_an_initial_set_that_all_seeds_share() -> None:
    words = "; 3 seeds, one initial set for all seeds: std leaves out its spread; dataset"
    per_run = suite(settings={"protocol": {"initial": 100, "initial_set": "per_run"}})
    for entry, said in ((per_run, True), (suite(settings={"protocol": {"initial": 100}}), False), (suite(), False)):
        assert (words in provenance(entry, all_records())) == said


def test_the_origin_of_an_unfinished_suite_says_so() -> None:
    found = provenance(suite(), [r for r in all_records() if r.method == "Ran"][:8])
    assert found.endswith("; unfinished: 2 of 9 trials and 8 of 27 cycles finished.")


def test_the_report_says_how_devices_were_shared() -> None:
    def note(**changes: Any) -> str:
        return timing_note([record("Ran", 0, 0, 0.5), record("Ran", 1, 0, 0.5, **changes)])

    assert note() == "one trial per device"
    assert note(device_share=2) == (
        "up to 2 trials shared a device (cpu, 1 thread each): compare times within this suite only"
    )
    assert "(cpu, up to 4 threads)" in note(device_share=2, threads=4)
    assert note(shared_from="unit") == (
        "one trial per device; methods shared the training of the first cycle, and its time counts for each of them"
    )


def test_mixed_machines_are_warned_of() -> None:
    records = all_records()
    assert mixtures(records) == []
    other = record("Ran", 0, 0, 0.5, device="NVIDIA H100", commit="def", versions={"torch": "2.12"})
    assert mixtures([*records, other]) == [
        "WARNING: the records of this suite differ in torch: 2.11, 2.12",
        "WARNING: the records of this suite differ in device: NVIDIA H100, cpu",
        "WARNING: the records of this suite differ in commit: abc, def",
    ]
    coded = [record("Ran", s, 0, 0.5, commit=commit, code={"harness": "1"}) for s, commit in enumerate(("abc", "def"))]
    assert mixtures(coded) == [], "two commits may hold the same code"
    coded[0].code["harness"] = "2"
    assert mixtures(coded) == ["WARNING: the records of this suite differ in code of harness: 1, 2"]


def test_warnings_are_listed_once_with_their_cycles() -> None:
    records = [record("Ran", s, c, 0.5, warnings=["a worker died"]) for s in range(2) for c in range(3)]
    records[0].warnings.extend(["slow disk", "slow disk"])
    assert record_warnings(records) == [
        "warning: a worker died (Ran-0 cycle 0, Ran-0 cycle 1, Ran-0 cycle 2, Ran-1 cycle 0 and 2 more)",
        "warning: slow disk (Ran-0 cycle 0)",
    ]


# --- forms


def test_printed_text_fits_the_width_and_loses_no_column() -> None:
    import pandas as pd

    counts = [str(1000 * i) for i in range(1, 16)]
    shown = pd.DataFrame([{"method": m, **dict.fromkeys(counts, "81.20±0.31"), "n": "3"} for m in METHODS])
    text = as_text(shown)
    assert max(map(len, text.splitlines())) <= 120
    headers = [block.splitlines()[0].split() for block in text.split("\n\n")]
    assert len(headers) == 2
    assert [h[0] for h in headers] == ["method", "method"]
    assert [c for h in headers for c in h[1:]] == [*counts, "n"]
    assert as_text(shown, width=400).count("method") == 1


def test_latex_is_escaped() -> None:
    odd = suite(methods=["A_b & 50%"], trials={"A_b & 50%-0": {"method": "A_b & 50%", "seed": 0}})
    records = [record("A_b & 50%", s, 0, 0.5 + s / 10) for s in range(2)]
    table = tables(records, odd)["accuracy"]
    text = latex(table.shown, f"{table.caption} {SOURCE}", "digits_accuracy")
    assert r"A\_b \& 50\%" in text
    assert "{55.00 +- 7.07}" not in text and "55.00 +- 7.07" in text, "siunitx reads it"
    assert r"SGD, 100\% of 30\_000 steps" in text
    assert "±" not in text and NOTHING not in text
    assert not re.search(r"(?<!\\)%", text)
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("[x]", "{}[x]"),
        (" *", "{}*"),
        ("a [x] *", "a [x] *"),
        ("a|b", r"a\textbar{}b"),
        ("{}", r"\{\}"),
        ("\\input", r"\textbackslash{}input"),
        ("~^", r"\textasciitilde{}\^{}"),
        ("<a>", r"\textless{}a\textgreater{}"),
        ('"q"', r"\symbol{34}q\symbol{34}"),
        ("?`a'", r"?{}\symbol{96}a'"),
        ("&%$#_", r"\&\%\$\#\_"),
        ("a--b---c,,''", "a-{}-b-{}-{}-c,{},'{}'"),
        ("Größe±\N{EN DASH}é", r"Größe$\pm$--é"),
    ],
)
def test_latex_shows_a_label_as_it_is_written(label: str, shown: str) -> None:
    import pandas as pd

    text = latex(pd.DataFrame([{"method": label, "n": "1"}]), label, "t")
    row = text.splitlines()[-4]
    assert re.fullmatch(rf"{re.escape(shown)} & 1 \\\\", row) and f"\\caption{{{shown}}}" in text
    assert [line for line in text.splitlines() if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    body = "".join(
        latex(t.shown, t.caption, f"digits_{name}") for name, t in tables(all_records(device_share=2)).items()
    )
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{array,booktabs,siunitx}\\begin{document}\n" + body + "\\end{document}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]


# --- the whole report


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_the_printed_report_has_the_width_of_the_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir(tmp_path / "run", all_records(), [suite(recipe="SGD in small steps, " * 20)])
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = write(folder)
    files = {path.name: path.read_bytes() for path in (folder / "report").iterdir() if path.suffix != ".png"}
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = write(folder)
    assert files == {name: (folder / "report" / name).read_bytes() for name in files}
    assert files["digits_cost.txt"].decode().partition("\n\nDigits: ")[0] in piped, (
        "without a terminal it is that of the files"
    )
    widest = max(len(line) for line in printed.splitlines() if str(folder) not in line)
    assert columns - 20 < widest <= columns
    wider = [line for line in printed.splitlines() if len(line) > columns]
    assert all(line.startswith(str(folder)) for line in wider), "a path has a line of its own"


def test_whole_report(tmp_path: Path) -> None:
    skipped = suite(name="cifar10", title="CIFAR-10", skipped="the images are not there", trials={})
    folder = run_dir(tmp_path / "run", all_records(), [suite(), skipped])
    printed = write(folder)
    names = {p.name for p in (folder / "report").iterdir()}
    expected = {
        f"digits_{table}.{kind}"
        for table in (
            *("accuracy", "accuracy_reached", "comparisons", "cost", "seconds", "seconds_by_cycle", "selection"),
            "speed_up",
        )
        for kind in ("csv", "md", "tex", "txt")
    }
    expected |= {"digits_accuracy.png", "digits_accuracy.svg", "report.md", "report.html", "records.csv"}
    assert names == expected | {
        f"digits_{part}.csv"
        for part in ("accuracy_aubc", "accuracy_differences", "comparisons_by_seed", "speed_up_by_seed")
    }
    assert "9 of 9 trials and 27 of 27 cycles finished." in printed
    assert "CIFAR-10\n========\nNot run: the images are not there" in printed
    assert printed.endswith(str(folder / "report" / "report.md"))
    assert max(len(line) for line in printed.splitlines() if str(folder) not in line) <= 120
    assert re.search(r"^DAST-AL +55\.00±1\.00 +65\.00±1\.00 +75\.00±1\.00 +3 ", printed, re.MULTILINE)
    assert "registry_name" not in printed

    markdown = (folder / "report" / "report.md").read_text()
    assert "Not run: the images are not there" in markdown
    assert re.search(r"^\| DAST-AL +\| +55\.00±1\.00 \|", markdown, re.MULTILINE)
    for link in re.findall(r"\]\((.*?)\)", markdown):
        assert link in names
    assert "](digits_accuracy.png)" in markdown

    before = {p.name: p.read_bytes() for p in (folder / "report").iterdir()}
    assert write(folder) == printed
    assert {p.name: p.read_bytes() for p in (folder / "report").iterdir()} == before  # the SVG too


def test_pictures_are_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    folder = run_dir(tmp_path / "run", all_records(), [suite()])
    write(folder)
    pixels = imread(folder / "report" / "digits_accuracy.png")
    assert pixels.shape[0] >= 600 and pixels.shape[1] >= 1000
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # a curve of each method
        assert (np.abs(pixels[..., :3] * 255 - colour).max(axis=-1) < 1).sum() > 500
    svg = (folder / "report" / "digits_accuracy.svg").read_text()
    assert "<svg" in svg and "<dc:date>" not in svg


def test_bands_are_drawn_only_for_several_seeds() -> None:
    from harness.report.plots import learning_curves

    def filled(records: list[CycleRecord]) -> int:
        (axes,) = learning_curves(tables(records)["accuracy"].numbers[""], METHODS, "t", "c", "y").axes
        assert len(axes.lines) == len({r.method for r in records})
        return sum(bool(c.get_paths()) for c in axes.collections)

    assert filled(all_records()) == 3
    assert filled([r for r in all_records() if r.seed == 0]) == 0


def test_differences_are_those_of_equal_seeds_with_their_interval() -> None:
    from scipy.stats import ttest_1samp

    accuracies = {"Ran": (0.50, 0.60, 0.57), "DAST-AL": (0.52, 0.63, 0.58)}
    records = [
        record(m, s, c, a + 0.1 * c) for m, seeds in accuracies.items() for s, a in enumerate(seeds) for c in (0, 1)
    ]
    records.append(record("Ran+", 0, 0, 0.7))
    records.append(record("Ran+", 1, 1, 0.5))
    table = tables(records)["accuracy"]
    assert table.curves is not None
    rows = table.curves.differences.set_index(["method", "labelled"])
    assert [*rows.index] == [("Ran+", 100), ("Ran+", 200), ("DAST-AL", 100), ("DAST-AL", 200)]
    expected = ttest_1samp([2.0, 3.0, 1.0], 0).confidence_interval(0.95)
    for labelled in (100, 200):
        found = rows.loc[("DAST-AL", labelled)]
        assert (found["mean"], found["n"]) == (pytest.approx(2.0), 3)
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert rows.loc[("Ran+", 100)]["mean"] == pytest.approx(20.0)
    assert (rows["low"].loc["Ran+"] == -np.inf).all(), "one seed has no interval"


def test_the_axis_of_curves_has_the_share_of_the_training_set_and_a_panel_of_differences() -> None:
    from harness.report.plots import learning_curves

    table = tables(all_records())["accuracy"]
    assert table.curves is not None
    figure = learning_curves(
        table.numbers[""], METHODS, "t", "c", "y", pool=2000, differences=table.curves.differences, reference="Ran"
    )
    upper, lower = figure.axes
    assert [text.get_text() for text in lower.get_xticklabels()] == ["100\n5 %", "200\n10 %", "400\n20 %"]
    assert len(upper.lines) == 3
    assert lower.get_ylabel() == "difference to Ran, points"
    drawn = [line for line in lower.lines if line.get_marker() not in ("None", None)]
    assert [line.get_ydata() == pytest.approx([2.0] * 3) for line in drawn[:1]] == [True]
    assert len(drawn) == 2, "the reference has none"
    assert {*drawn[0].get_xdata()}.isdisjoint({*drawn[1].get_xdata()}), "methods stand apart"


def test_a_damaged_cycle_file_is_named_with_what_is_left_out(tmp_path: Path, at_once: None) -> None:
    (tmp_path / ("long" * 30)).mkdir()
    folder = run_dir(
        tmp_path / ("long" * 30) / "run", all_records(), [suite()]
    )  # its path fits no line, but stays whole
    trial = next(iter(suite().trials))
    method, seed = suite().trials[trial].method, suite().trials[trial].seed
    for cycle, make in ((2, os.mkfifo), (1, Path.mkdir), (0, Path.touch)):
        path = folder / "trials" / trial / f"cycle_00{cycle}.json"
        path.unlink()
        make(path)
        printed = " ".join(write(folder).split())
        sentence = (
            f"WARNING: {path} is damaged, or belongs to another trial or cycle: it is not used; the tables lack "
            f"{method}, seed {seed}, from cycle {cycle} on."
        )
        assert sentence in printed and printed.count("is damaged") == 1
        assert markdown(sentence) in (folder / "report" / "report.md").read_text()
        with pytest.warns(UserWarning, match=re.escape(sentence)):
            assert len(harness.load(folder)) == 24 + cycle
    for other in (folder / "trials").iterdir():
        (other / "cycle_000.json").unlink() if other.name != trial else None
    printed = " ".join(write(folder).split())
    assert "No results yet" in printed and sentence in printed
    assert printed.count("cycle_000.json is lost: later cycles are not used; the tables lack") == 8


def test_unfinished_run(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run", [], [suite()])
    assert "No results yet: 0 of 9 trials and 0 of 27 cycles finished." in write(folder)
    for count in (1, 2, 5):  # one point, a line, two seeds of which one is shorter
        printed = write(run_dir(folder, all_records()[:count], [suite()]))
        assert f"{count} of 27 cycles finished" in printed
    assert "unfinished trials: the cycles so far" in " ".join(printed.split())


def test_trials_that_run_json_does_not_name_do_not_count(tmp_path: Path) -> None:
    one = suite(trials={"Ran-0": {"method": "Ran", "seed": 0}})
    printed = write(run_dir(tmp_path / "run", all_records(), [one]))
    assert "1 of 1 trial and 3 of 3 cycles finished." in printed
    assert "±1.00" not in printed


def test_a_run_json_of_version_1_is_read(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run", all_records(), [suite()])
    printed = write(folder)
    entry = suite().model_dump(mode="json")
    entry["pairs"] = {"Ran": entry.pop("halves")}  # their name then; there was no schema_version, and no folders
    (folder / "run.json").write_text(json.dumps({"name": "quick", "suites": [entry]}))
    assert write(folder) == printed
    ((earlier, _),) = read(folder)[1]
    assert earlier.halves == {"Ran": {}}


# --- the command line


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness.report", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))


def test_wrong_folder_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = command_line(str(tmp_path))
    answer = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert answer == [f"error: {tmp_path}: not the results folder of a run: it has no run.json"]
    assert done.stdout == ""
    assert "argparse" in imported(done)
    assert not imported(done) & {"pandas", "matplotlib", "numpy", "torch", "ray"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"name": ', "not valid JSON"),
        ("[]", "not the manifest of a run"),
        ("{}", "not the manifest of a run"),
        ('{"name": "n", "suites": [1]}', "not the manifest of a run"),
        ('{"name": "n", "suites": [{"name": "s"}]}', "not the manifest of a run"),
        ('{"name": "n", "suites": [], "schema_version": 99}', "schema_version 99 is from a newer harness"),
    ],
)
def test_damaged_run_json_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    (tmp_path / "run.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'run.json'}: {sentence}") and error.count("\n") == 1


@pytest.mark.parametrize("where", ["trials", "full_data"])
@pytest.mark.parametrize("trial", ["a\n\x1b[2J", "a/b", "\u202ea"])
def test_the_id_of_a_trial_is_printable_and_no_path(where: str, trial: str, tmp_path: Path) -> None:
    found = {"trials": {trial: {"method": "Ran", "seed": 0}}, "full_data": {trial: 0}}[where]
    (tmp_path / "run.json").write_bytes(Manifest(name="n", suites=[suite(**{where: found})]).packed())
    with pytest.raises(UserError, match="is not the id of a trial"):
        Manifest.read(tmp_path)


def test_help_imports_nothing_heavy() -> None:
    done = command_line("--help")
    assert done.returncode == 0
    assert "RUN_DIR" in done.stdout
    assert "argparse" in imported(done)
    assert not imported(done) & {"pandas", "matplotlib", "numpy", "torch", "ray"}


def test_report_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    done = command_line(str(run_dir(tmp_path / "run", all_records(), [suite()])))
    assert done.returncode == 0
    assert "Digits\n======" in done.stdout
    assert "pandas" in imported(done)
    assert not imported(done) & {"torch", "ray"}


def test_a_legend_of_many_methods_ends_above_the_caption() -> None:
    import pandas as pd

    from harness.report.plots import learning_curves

    methods = [f"Method {number}" for number in range(30)]
    numbers = pd.DataFrame({"method": methods, "labelled": 100, "mean": 50.0, "std": float("nan")})
    curves = learning_curves(numbers, methods, "title", "caption " * 40, "accuracy (%)")
    curves.draw_without_rendering()
    (legend,), caption = curves.legends, curves._supxlabel
    assert legend.get_window_extent().y0 > caption.get_window_extent().y1


# --- labels

NASTY = [
    "a | b",
    "`code` *b* _i_ [x](y)",
    "<script>alert(1)</script> &amp; #1 ~x~",
    "=1+1",
    "+cmd",
    "-2",
    "@sum",
    "\uff1d1+1",
    "\uff0bcmd",
    "\uff0d2",
    "\uff20sum",
    "\x1b[31mred\x07\r\n\t\u202eevil",
    "$\\frac{1}{$ 50% \\input{x} {}",
    "_hidden",
    "漢字 👩‍🔬",
    "x" * 400,
    "..",
    "a/b",
]


EVIL = "cpu\n\\input{/etc/passwd}\x1b[2J"
RECORDED = {
    "device": EVIL,
    "commit": EVIL,
    "precision": EVIL,
    "data_fingerprint": EVIL,
    "versions": {"torch": EVIL, EVIL: "1"},
    "code": {"harness": EVIL, EVIL: "b"},
}


def nasty_run(folder: Path) -> Path:
    """Write a run whose names, titles, classes, warnings and recorded conditions are all hostile."""
    suites, records = [], []
    for number, name in enumerate(["a b", "a_b", "A_B", "a/c", "./.", "", *NASTY]):
        trials = {f"s{number}m{i}": {"method": method, "seed": 0} for i, method in enumerate(NASTY)}
        suites.append(suite(name=name, title=name, methods=NASTY, seeds=[0], labelled=[100, 200], trials=trials))
        for trial, entry in trials.items() if number in (0, 1, 2, 13) else ():
            changes = {"per_class": {n: 0.5 for n in NASTY}, "warnings": [name], **RECORDED}
            if trial == "s13m0":
                changes["metrics"] = {"accuracy": 0.5, EVIL: 0.5}
            elif trial == "s13m1":
                changes["versions"] = {"torch": "2"}
            records += [record(entry["method"], 0, cycle, 0.5, trial=trial, **changes) for cycle in range(2)]
    run_dir(folder, records, suites)
    for trial in ("s0m0", "s1m3"):
        pictures = replace(selected(False), classes=("$\\frac{$", "\x1b[31m", "c"))
        RunStore(folder).trial(trial).pictures_path.write_bytes(pictures.packed())
    return folder


def test_labels_are_escaped_in_every_form(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = nasty_run(tmp_path / "run")
    printed = write(folder)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed) and "\\x1b[31mred\\x07\\r\\n\\t" in printed
    report = folder / "report"
    for path in [*report.glob("*.md"), *report.glob("*.txt"), *report.glob("*.tex"), *report.glob("*.csv")]:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", path.read_text()), path
    table = next(line for line in (report / "a_b_accuracy.md").read_text().splitlines() if line.startswith("| a "))
    assert table.startswith(r"| a \| b ") and len(re.findall(r"(?<!\\)\|", table)) == 6
    text = (report / "report.md").read_text()
    assert r"\`code\` \*b\* \_i\_ \[x\](y)" in text and r"\<script\>" in text and r"\$\\frac" in text
    assert "<script" not in text.replace(r"\<script", "") and r"&amp;amp; \#1 \~x\~" in text
    rows = list(csv.DictReader(io.StringIO((report / "a_b_accuracy.csv").read_text())))
    first = {row["method"] for row in rows}
    assert {"'=1+1", "'+cmd", "'-2", "'@sum"} <= first and not any(m[:1] in "=+-@\t\r" for m in first)
    assert {"'\uff1d1+1", "'\uff0bcmd", "'\uff0d2", "'\uff20sum"} <= first, "full-width characters start formulas too"
    assert {float(row["mean"]) for row in rows} == {50.0}
    classes = {row["class"] for row in csv.DictReader(io.StringIO((report / "a_b_class_iou.csv").read_text()))}
    assert "'=1+1" in classes
    tex = (report / "a_b_accuracy.tex").read_text()
    assert r"\$\textbackslash{}frac\{1\}\{\$ 50\%" in tex
    for path in report.glob("*.tex"):
        assert not [line for line in path.read_text().splitlines() if r"\input" in line and line[0] != "%"], path
    assert re.search(r"^% .*cpu\\n\\input\{/etc/passwd\}\\x1b", tex, re.MULTILINE), "what the device is called"
    assert not [str(w.message) for w in recwarn if w.category is UserWarning], (
        "letters that a font lacks, and long names, are drawn without a word"
    )


@pytest.mark.long
def test_no_suite_overwrites_a_file_of_another(tmp_path: Path) -> None:
    folder = nasty_run(tmp_path / "run")
    write(folder)
    text = (folder / "report" / "report.md").read_text()
    links = re.findall(r"!\[accuracy of .*?\]\(([^()]*\.png)\)", text)
    assert len(links) == len({link.casefold() for link in links}) == 4
    names = [path.name for path in (folder / "report").iterdir()]
    assert len(names) == len({name.casefold() for name in names}) and all(len(name.encode()) < 200 for name in names)
    for link in re.findall(r"\]\(([^()]*\.(?:png|md))\)", text):
        assert (folder / "report" / link).is_file(), link
    assert {"a_b_accuracy.csv", "a_b_accuracy_2.csv", "A_B_accuracy_3.csv"} <= {*names}
    before = {path.name: path.read_bytes() for path in (folder / "report").iterdir()}
    write(folder)
    assert {path.name: path.read_bytes() for path in (folder / "report").iterdir()} == before


def test_files_of_one_table_do_not_meet_those_of_another() -> None:
    used: set[str] = set()
    assert own_file_name("a_accuracy", used, ["", "_aubc"]) == "a_accuracy"
    assert own_file_name("a accuracy_AUBC", used) == "a_accuracy_AUBC_2"
    assert own_file_name("a_accuracy", used, ["", "_aubc"]) == "a_accuracy_2"


def test_a_method_with_a_leading_underscore_is_in_the_legend() -> None:
    from harness.report.plots import learning_curves

    table = suite_tables(suite(methods=["_a", "$b$"]), [record(m, 0, c, 0.5) for m in ("_a", "$b$") for c in range(3)])
    figure = learning_curves(table[0].numbers[""], ["_a", "$b$"], "$\\x{", "$", "y")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_a", "$b$"]


def test_notebooks_get_printable_names(tmp_path: Path) -> None:
    import harness

    table = harness.load(nasty_run(tmp_path / "run"))
    assert "\\x1b[31mred\\x07\\r\\n\\t\\u202eevil" in set(table["method"]) and len(table) == 4 * 2 * len(NASTY)

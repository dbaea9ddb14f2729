"""Test metrics other than accuracy: equal to scikit-learn's, over heads and seeds, for images and label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support
from test_report import LABELLED, METHODS, all_records, record, run_dir, suite, tables

from harness.lazy import torch
from harness.learning.metrics import by_name
from harness.report.merge import sources
from harness.report.quality import (
    at_last_budget,
    by_class,
    class_quality_table,
    overall,
    quality_table,
    worst_and_best,
)
from harness.report.sources import LEFT_OUT, Sources, with_matrices
from harness.report.write import write
from harness.results.records import CycleRecord
from harness.results.store import RunStore

CLASSES = ("sky", "road", "=car", "never")


def counted(labels: np.ndarray, *heads: np.ndarray) -> list[dict[str, dict[str, int]]]:
    """Return the confusion of a record, by counting."""
    matrices = torch.zeros(len(heads), len(CLASSES), len(CLASSES), dtype=torch.int64)
    for matrix, predicted in zip(matrices, heads, strict=True):
        for label, answer in zip(labels, predicted, strict=True):
            matrix[label, answer] += 1
    return by_name(matrices, CLASSES)


def test_only_the_matrices_that_tables_show_are_kept(tmp_path: Path) -> None:
    """Those of 1000 classes would fill the memory."""

    def stored(folder: str, seed: int, cycles: int) -> Path:
        labels = np.arange(40) % 3
        heads = [np.minimum(labels, cycle) for cycle in range(cycles)]
        records = [record("Ran", seed, c, 0.5, confusion=counted(labels, head)) for c, head in enumerate(heads)]
        trials = {f"Ran-{seed}": {"method": "Ran", "seed": seed}}
        return run_dir(tmp_path / folder, records, [suite(seeds=[seed], trials=trials)])

    def kept(found: Sources) -> dict[tuple[str, int], bool]:
        ((_, records),) = found.suites
        return {(r.trial, r.cycle): len(r.confusion[0]) > 0 for r in records}

    one, two = stored("a", 0, 3), stored("b", 1, 2)
    assert kept(sources([one])) == {("Ran-0", 0): False, ("Ran-0", 1): False, ("Ran-0", 2): True}
    merged = sources([one, two])
    assert {key for key, there in kept(merged).items() if there} == {("Ran-0", 1), ("Ran-1", 1)}
    ((_, records),) = merged.suites
    whole = [r for folder, trial in ((one, "Ran-0"), (two, "Ran-1")) for r in RunStore(folder).trial(trial).records()]
    assert quality_table(records, ["Ran"]).equals(quality_table([replace(r, method="Ran") for r in whole], ["Ran"]))
    (two / "trials" / "Ran-1" / "cycle_001.json").unlink()
    again = with_matrices([replace(r, confusion=LEFT_OUT) for r in records], merged.store)
    assert [r.trial for r in at_last_budget(again) if r.confusion == LEFT_OUT] == ["Ran-1"], "its file is gone since"
    assert quality_table(again, ["Ran"])["n"].tolist() == [1, 1]


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels without the class 3, which one head predicts all the same, and no head the class 2."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    one = np.where(random.random(200) < 0.7, labels, 1)
    other = np.where(random.random(200) < 0.5, np.minimum(labels, 1), 3)
    return labels, np.minimum(one, 1), other


def with_confusion(drawn: tuple[np.ndarray, np.ndarray, np.ndarray], **changes: object) -> CycleRecord:
    return replace(record("Ran", 0, 0, 0.5), confusion=counted(*drawn), **changes)  # type: ignore[arg-type]


def test_quantities_are_those_of_scikit_learn(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, *heads = drawn
    found = by_class(with_confusion(drawn))
    assert [*found] == ["sky", "road", "=car"], "a class without labels has no recall"
    scores = [precision_recall_fscore_support(labels, head, labels=[0, 1, 2], zero_division=0) for head in heads]
    for number, (quantity, place) in enumerate((("precision (%)", 0), ("accuracy (%)", 1), ("F1 (%)", 2))):
        expected = 100 * np.mean([score[place] for score in scores], axis=0)
        assert [values[quantity] for values in found.values()] == pytest.approx(expected), number
    values = overall(with_confusion(drawn, calibration={"ece": 0.25, "nll": 1.5}))
    assert (values["ECE (%)"], values["NLL (nats)"]) == (25, 1.5)
    macro = 100 * np.mean([score[2].mean() for score in scores])
    assert values["F1 (%)"] == pytest.approx(macro)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = 100 * np.mean([balanced_accuracy_score(labels, head) for head in heads])
    assert values["balanced accuracy (%)"] == pytest.approx(balanced)


def test_a_record_without_matrices_has_none(tmp_path: Path) -> None:
    assert by_class(record("Ran", 0, 0, 0.5)) == {} and set(overall(record("Ran", 0, 0, 0.5)).values()) == {None}
    assert quality_table(all_records(), METHODS).empty
    folder = run_dir(tmp_path / "run", all_records(), [suite()])
    write(folder)
    assert not [path.name for path in (folder / "report").iterdir() if "quality" in path.name]


def test_of_many_classes_the_worst_and_the_best_are_shown() -> None:
    """Twelve classes; class i is right in 5 x i of 60 images of Ran, and in as many and 3 of Ran+."""
    names = [f"c{i}" for i in (5, 3, 11, 0, 7, 1, 9, 2, 10, 4, 8, 6)]  # in no order
    records = []
    for method, more in (("Ran", 0), ("Ran+", 3)):
        right = {name: 5 * int(name[1:]) + more for name in names}
        rows = {
            name: {other: 0 for other in names} | {name: n, "c0" if name != "c0" else "c1": 60 - n}
            for name, n in right.items()
        }
        records.append(replace(record(method, 0, 0, 0.5), confusion=[rows]))
    shown, number = worst_and_best(class_quality_table(records, METHODS))
    assert number == 12 and [*shown["quantity"].cat.categories] == [f"c{i}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]
    assert shown[(shown["method"] == "Ran+") & (shown["quantity"] == "c7")]["mean"].item() == pytest.approx(
        100 * 38 / 60
    )
    (table,) = (t for t in tables(records).values() if t.name == "class_accuracy")
    assert table.caption == (
        "Accuracy (%) of the 5 worst and the 5 best of 12 classes at 100 labelled images, by the mean over methods."
    )
    assert [*table.shown.columns] == ["method", *(f"c{i}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)), "n"]


def test_tables_are_means_over_seeds(drawn: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    labels, one, other = drawn
    records = [
        replace(r, confusion=counted(labels, one if r.seed else other), calibration={"nll": 1.0 + r.seed, "ece": 0.1})
        for r in all_records()
    ]
    table = quality_table(records, METHODS)
    assert {*table["labelled"]} == {max(r.labelled for r in records)}
    nll = table[(table["method"] == "Ran") & (table["quantity"] == "NLL (nats)")]
    assert nll[["mean", "std", "n"]].to_numpy().tolist() == [[2, 1, 3]]
    recall = [by_class(r)["road"]["accuracy (%)"] for r in records if r.method == "Ran" and r.cycle == 2]
    classes = class_quality_table(records, METHODS)
    row = classes[(classes["method"] == "Ran") & (classes["class"] == "road") & (classes["quantity"] == "accuracy (%)")]
    assert row["mean"].item() == pytest.approx(np.mean(recall)) and row["std"].item() == pytest.approx(
        np.std(recall, ddof=1)
    )
    folder = run_dir(tmp_path / "run", records, [suite()])
    printed = write(folder)
    assert f"Accuracy (%) of each class at {max(LABELLED)} labelled images." in " ".join(printed.split())
    cells = next(line for line in printed.splitlines() if line.startswith("Ran ") and line.count("±") == 3).split()
    assert f"{np.mean(recall):.2f}±{np.std(recall, ddof=1):.2f}" == cells[2], "road comes after sky"
    page = (folder / "report" / "report.html").read_text()
    assert 'data-table="class_accuracy"' in page and "=car" in page
    assert f"Other test metrics at {max(LABELLED)} labelled images" in " ".join(printed.split())
    assert "'=car" in (folder / "report" / "digits_quality_by_class.csv").read_text(), "no formula"

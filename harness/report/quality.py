"""Tables of test metrics other than accuracy and mIoU, from the confusion matrices and the calibration of records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import readable
from harness.lazy import np
from harness.report.tables import summary
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

OVERALL = ("balanced accuracy (%)", "F1 (%)", "ECE (%)", "NLL (nats)")
BY_CLASS = ("accuracy (%)", "precision (%)", "F1 (%)")
SHOWN = 10
"""Classes of the printed table; of more classes it has the worst and the best."""


def matrices(record: CycleRecord) -> NDArray[np.float64]:
    """Return the confusion matrices [heads, C, C] of a record: [h, i, j] counts label i predicted as class j by head h.

    They are [0, 0, 0] for a record without any.
    """
    classes = list(record.confusion[0]) if record.confusion else []
    place = {name: number for number, name in enumerate(classes)}
    found = np.zeros((len(record.confusion), len(classes), len(classes)))
    for head, rows in zip(found, record.confusion, strict=True):
        for name, row in rows.items():
            for predicted, count in row.items():
                head[place[name], place[predicted]] = count
    return found


def by_class(record: CycleRecord) -> dict[str, dict[str, float]]:
    """Return class -> quantity -> value in %, for the classes in the test set: means over heads.

    accuracy is the share of a class's labels that are predicted right (recall), precision the share of its predictions
    that are right, 0 without predictions, and F1 their harmonic mean.
    """
    if not record.confusion or not (counts := matrices(record)).size:
        return {}
    correct, labelled, predicted = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    values = {
        "accuracy (%)": correct / np.maximum(labelled, 1),
        "precision (%)": correct / np.maximum(predicted, 1),
        "F1 (%)": 2 * correct / np.maximum(labelled + predicted, 1),
    }
    means = {quantity: 100 * value.mean(0) for quantity, value in values.items()}
    present = labelled.any(0)
    return {
        name: {quantity: float(means[quantity][number]) for quantity in BY_CLASS}
        for number, name in enumerate(record.confusion[0])
        if present[number]
    }


def overall(record: CycleRecord) -> dict[str, float | None]:
    """Return quantity -> value; None where the record has none.

    balanced accuracy and F1 are means over the classes in the test set (macro averages).
    """
    classes, calibration = by_class(record), record.calibration
    means = {key: float(np.mean([value[key] for value in classes.values()])) for key in BY_CLASS if classes}
    ece, nll = calibration.get("ece"), calibration.get("nll")
    values = (means.get("accuracy (%)"), means.get("F1 (%)"), None if ece is None else 100 * ece, nll)
    return dict(zip(OVERALL, values, strict=True))


def at_last_budget(records: Sequence[CycleRecord]) -> list[CycleRecord]:
    """Return the records with matrices at the highest number of labelled images that all trials have reached."""
    with_matrix = [r for r in records if r.confusion]
    counts: dict[str, set[int]] = {r.trial: set() for r in records}
    for r in with_matrix:
        counts[r.trial].add(r.labelled)
    common = set.intersection(*counts.values()) if counts else set()
    return sorted((r for r in with_matrix if common and r.labelled == max(common)), key=lambda r: r.trial)


def quality_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return the table (method, labelled, quantity, mean, std, n) of OVERALL at the last budget, over the seeds."""
    import pandas as pd

    rows = [{"method": r.method, "labelled": r.labelled, **overall(r)} for r in at_last_budget(records)]
    return _over_seeds(pd.DataFrame(rows, columns=["method", "labelled", *OVERALL]), ["labelled"], OVERALL, methods)


def class_quality_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return the table (method, class, quantity, mean, std, n) of BY_CLASS at the last budget, over the seeds."""
    import pandas as pd

    rows = [
        {"method": r.method, "class": readable(name), **values}
        for r in at_last_budget(records)
        for name, values in by_class(r).items()
    ]
    table = pd.DataFrame(rows, columns=["method", "class", *BY_CLASS])
    table["class"] = pd.Categorical(table["class"], categories=list(dict.fromkeys(table["class"])), ordered=True)
    return _over_seeds(table, ["class"], BY_CLASS, methods)


def worst_and_best(by_class: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return (the accuracy of each class, or of the SHOWN // 2 worst and best by the mean over methods; all classes).

    ``by_class``: see ``class_quality_table``; here the class is the quantity. Few classes keep their order.
    """
    accuracy = by_class[by_class["quantity"] == BY_CLASS[0]].drop(columns="quantity")
    classes = [name for name in by_class["class"].cat.categories if name in set(accuracy["class"])]
    kept = classes
    if len(classes) > SHOWN:
        means = accuracy.groupby("class", observed=True)["mean"].mean()
        ordered = sorted(classes, key=lambda name: means[name])
        kept = [*ordered[: SHOWN // 2], *ordered[-(SHOWN // 2) :]]
    found = accuracy[accuracy["class"].isin(kept)].rename(columns={"class": "quantity"})
    found["quantity"] = found["quantity"].cat.set_categories(kept, ordered=True)
    return found, len(classes)


def _over_seeds(
    table: pd.DataFrame, others: list[str], quantities: Sequence[str], methods: Sequence[str]
) -> pd.DataFrame:
    import pandas as pd

    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    return summary(table.astype(dict.fromkeys(quantities, float)), ["method", *others], list(quantities))

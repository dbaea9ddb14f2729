"""What learning curves are drawn with: differences to a suite's reference, and the metric with all training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.report import statistics
from harness.report.captions import counted
from harness.report.tables import frame, metric_table, percent
from harness.results.manifest import SuiteEntry, full_data_row
from harness.results.records import CycleRecord
from harness.results.store import RunStore

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curves:
    """What the learning curves of a metric are drawn with, in addition to the numbers of its table."""

    metric: str
    """Name of the metric."""
    differences: pd.DataFrame
    """See ``differences_by_labelled``."""
    full: pd.DataFrame
    """See ``full_data_table``."""


def full_records(suite: SuiteEntry, store: RunStore) -> list[CycleRecord]:
    """Return the records of the trials on all training images, under the name of their row."""
    row = full_data_row(suite.pool)
    return [
        replace(record, method=row, trial=trial)
        for trial in suite.full_data
        for record in store.trial(trial).records()[:1]
    ]


def full_data_notes(suite: SuiteEntry, full: Sequence[CycleRecord]) -> list[str]:
    """Return a note if trials on all training images are not finished."""
    if len(full) == len(suite.full_data):
        return []
    return [f"{full_data_row(suite.pool)}: {len(full)} of {counted(len(suite.full_data), 'trial')} finished."]


def full_data_table(full: Sequence[CycleRecord], key: str, like: pd.DataFrame) -> pd.DataFrame:
    """Return the row (method, labelled, mean, std, n) of a metric in % with all training images; empty without them.

    ``like``: a metric's table, whose columns an empty one has.
    """
    records = [record for record in full if record.metrics.get(key) is not None]
    return metric_table(frame(records, [records[0].method]), key) if records else like.iloc[:0]


def with_full_data(numbers: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Return the table of a metric with the row of all training images at its end."""
    import pandas as pd

    if full.empty:
        return numbers
    methods = [*numbers["method"].cat.categories, *full["method"].cat.categories]
    both = pd.concat([numbers.astype({"method": object}), full.astype({"method": object})], ignore_index=True)
    both["method"] = pd.Categorical(both["method"], categories=methods, ordered=True)
    return both


def differences_by_labelled(table: pd.DataFrame, key: str, methods: Sequence[str], reference: str) -> pd.DataFrame:
    """Return the mean difference to the reference at each number of labelled images, over the seeds that both have.

    ``table`` is a ``frame`` of records. Columns: method, labelled, mean, low, high (95 % interval by Student's t, in
    points of the metric; infinite for one seed) and n. The reference has no rows; the table is empty without it.
    """
    import pandas as pd

    values = table.pivot_table(percent(key), ["method", "labelled"], "seed", observed=True)
    rows = []
    for method in methods:
        if method == reference or not {method, reference} <= {*values.index.unique("method")}:
            continue
        differences: Any = values.loc[method] - values.loc[reference]
        for labelled, by_seed in differences.iterrows():
            if len(found := by_seed.dropna()):
                rows.append((method, labelled, *statistics.interval(found), len(found)))
    return pd.DataFrame(rows, columns=["method", "labelled", "mean", "low", "high", "n"])

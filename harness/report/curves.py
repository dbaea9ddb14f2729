"""Learning curves as differences to a suite's reference, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report import statistics
from harness.report.tables import percent

if TYPE_CHECKING:
    import pandas as pd


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
        differences = values.loc[method] - values.loc[reference]
        for labelled, by_seed in differences.iterrows():
            if len(found := by_seed.dropna()):
                rows.append((method, labelled, *statistics.interval(found), len(found)))
    return pd.DataFrame(rows, columns=["method", "labelled", "mean", "low", "high", "n"])

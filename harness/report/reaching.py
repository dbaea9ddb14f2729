"""How long a method takes to reach the accuracy at which the reference ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.tables import percent

if TYPE_CHECKING:
    import pandas as pd

NEVER, UNKNOWN = "not reached", "not timed"


def reaching_table(table: pd.DataFrame, key: str, reference: str) -> pd.DataFrame:
    """Return (method, level, labelled, seconds): where each method's mean curve first is at the reference's last mean.

    ``table`` is a ``frame`` of records. seconds: of training, auxiliary training, scoring and selection in all cycles
    before, and of the training in that one, the mean over the seeds. Curves are not interpolated, because a network
    exists only once its cycle is trained. labelled and seconds are NaN for a method that does not reach the level, and
    seconds also if a cycle until then was not timed in any trial; a trial counts as long as all its cycles were. The
    table is empty if the reference has not reached the last number of labelled images, or if there is only one.
    """
    import pandas as pd

    columns = ["method", "level", "labelled", "seconds"]
    ordered = table.sort_values(["trial", "cycle"])
    training = ordered["train"] + ordered["auxiliary"]
    total, gap = ordered["total"].fillna(0.0), ordered["total"].isna().astype(int)
    gaps_before = gap.groupby(ordered["trial"]).cumsum() - gap
    before = (total.groupby(ordered["trial"]).cumsum() - total).where(gaps_before == 0)  # cumsum leaves gaps out
    means = (
        ordered.assign(seconds=before + training)
        .groupby(["method", "labelled"], observed=True)[[percent(key), "seconds"]]
        .mean()
        .dropna(subset=[percent(key)])
    )
    last = table["labelled"].max()
    if (reference, last) not in means.index or table["labelled"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    level = means.loc[(reference, last), percent(key)]
    rows = []
    for method in table["method"].cat.categories:
        if method in means.index.unique("method"):
            curve = means.loc[method]
            reached = curve[curve[percent(key)] >= level]
            first = (reached.index[0], reached["seconds"].iloc[0]) if len(reached) else (float("nan"),) * 2
            rows.append((method, level, *first))
    return pd.DataFrame(rows, columns=columns)


def wide_reaching(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    missing = numbers["labelled"].isna()
    return numbers[["method"]].assign(
        labelled=[NEVER if gap else f"{value:.0f}" for gap, value in zip(missing, numbers["labelled"], strict=True)],
        seconds=[
            NEVER if gap else UNKNOWN if value != value else f"{value:,.1f}"
            for gap, value in zip(missing, numbers["seconds"], strict=True)
        ],
    )


def reaching_caption(numbers: pd.DataFrame, key: str, reference: str) -> str:
    """Return what the table says, and then what its seconds are."""
    return (
        f"Labelled images, and seconds of a trial, until the mean {percent(key)} is at least "
        f"{numbers['level'][0]:.2f}, the last one of {reference}. of training, scoring and selection, their "
        "mean over seeds; the speed-up also counts labels between the budgets."
    )

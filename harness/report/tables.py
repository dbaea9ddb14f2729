"""Turns records into tables of numbers: a row per trial and cycle, then long tables of mean, std and n."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.comparisons import Comparison, kind_of
from harness.results.records import COST_PHASES, METRICS, MORE_METRICS, PHASES, CycleRecord

if TYPE_CHECKING:
    import pandas as pd


SECONDS = [*COST_PHASES, "total", "compile", "evaluate", "checkpoint"]  # columns of the tables of seconds


EXTRA = ["EP", "EP (MiB)"]  # extra parameters


COST = [
    *EXTRA,
    "TT (s)",
    "ST (s)",
    "total (min)",
    "memory (GiB)",
    "energy (Wh)",
]  # columns of the cost table; TT: training, ST: sampling


def frame(records: Iterable[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return a table with a row per record: metrics in %, seconds by phase, memory and so on.

    ``selected`` is whether the cycle selected images. A metric that is missing or None is NaN. The order of the records
    does not matter.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda r: (r.trial, r.cycle))  # fixes the order in which floats are summed
    columns: dict[str, list[Any]] = {
        "method": [r.method for r in ordered],
        "trial": [r.trial for r in ordered],
        "seed": [r.seed for r in ordered],
        "cycle": [r.cycle for r in ordered],
        "labelled": [r.labelled for r in ordered],
        "selected": [bool(r.selected) for r in ordered],
        "EP": [r.extra_parameters for r in ordered],
        "memory": [r.peak_memory() for r in ordered],
        "energy": [None if r.energy_joules is None or r.shared_from else r.energy_joules / 3600 for r in ordered],
        **{phase: [r.seconds.get(phase) for r in ordered] for phase in PHASES},
    }
    for key in metric_keys(ordered):
        values = [r.metrics.get(key) for r in ordered]
        columns[percent(key)] = [None if value is None else 100 * value for value in values]
    numbers = ["energy", *PHASES, *(percent(key) for key in metric_keys(ordered))]
    table = pd.DataFrame(columns).astype(dict.fromkeys(numbers, float))
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    table["total"] = table[list(COST_PHASES)].sum(axis=1, skipna=False)
    return table


def metric_keys(records: Iterable[CycleRecord]) -> list[str]:
    """Return the names of all metrics, sorted."""
    return sorted({key for r in records for key in r.metrics})


def percent(key: str) -> str:
    """Return the name of a metric's column, such as 'accuracy (%)'."""
    return f"{metric_name(key)} (%)"


def metric_name(key: str) -> str:
    """Return the name of a metric in reports."""
    return {**METRICS, **MORE_METRICS}.get(key, key)


def summary(table: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Return a long table with a row per group and quantity (a column of ``values``).

    Columns: ``by``, quantity, mean, std (sample standard deviation; NaN for one value) and n. A quantity without any
    value in a group has no row there.
    """
    import pandas as pd

    long = table.melt(id_vars=by, value_vars=values, var_name="quantity").dropna(subset=["value"])
    long["quantity"] = pd.Categorical(long["quantity"], categories=values, ordered=True)
    cells = long.groupby([*by, "quantity"], observed=True)["value"].agg(mean="mean", std="std", n="count")
    return cells.reset_index()


def metric_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the table (method, labelled, mean, std, n) of a metric in %, over the seeds."""
    return summary(table, ["method", "labelled"], [percent(key)]).drop(columns="quantity")


def aubc_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the table (method, mean, std, n) of AUBC, the area under the budget curve of a metric in %.

    The area, by the trapezoidal rule, is divided by the span of labelled images. Only trials with the metric at every
    number of labelled images of the table count, because areas over different spans are not comparable. The table is
    empty if there is only one number of labelled images.
    """
    curves = table.pivot(index=["method", "trial"], columns="labelled", values=percent(key))
    curves = curves.dropna(axis="columns", how="all").dropna()
    x, y = curves.columns.to_numpy(float), curves.to_numpy(float)
    areas = curves.index.to_frame(index=False)
    areas["AUBC"] = ((y[:, 1:] + y[:, :-1]) / 2 * (x[1:] - x[:-1])).sum(axis=1) / (x[-1] - x[0]) if len(x) > 1 else None
    return summary(areas.astype({"AUBC": float}), ["method"], ["AUBC"]).drop(columns="quantity")


def comparison_table(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return the table of a suite's comparisons, a row each, in points of AUBC.

    Columns: method, reference, primary, mean, std, n, p, adjusted (p), level (of adjusted p), seeds_needed (to find a
    difference as large as the mean), smallest_difference (that n seeds find) and claim.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "method": c.method,
                "reference": c.reference,
                "primary": c.primary,
                "mean": c.mean,
                "std": c.std,
                "n": len(c.values),
                "p": c.p,
                "adjusted": c.adjusted,
                "level": c.alpha,
                "seeds_needed": c.seeds_needed(),
                "smallest_difference": c.smallest_difference(),
                "claim": kind_of(c),
            }
            for c in found
        ]
    )


def difference_table(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return the table (method, reference, seed, difference in points of AUBC) of a suite's comparisons."""
    import pandas as pd

    rows = [(c.method, c.reference, seed, value) for c in found for seed, value in sorted(c.differences.items())]
    return pd.DataFrame(rows, columns=["method", "reference", "seed", "difference"])


def class_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return the table (method, labelled, quantity, mean, std, n) of the IoU of each class in %, over the seeds.

    quantity is the class; labelled is the highest number of labelled images that all trials have reached. The table is
    empty if there is none, or if labels are not maps.
    """
    import pandas as pd

    counts: dict[str, set[int]] = {}
    for r in records:
        reached = counts.setdefault(r.trial, set())
        if r.per_class:
            reached.add(r.labelled)
    common = set.intersection(*counts.values())
    compared = sorted((r for r in records if common and r.labelled == max(common)), key=lambda r: r.trial)
    classes = list(dict.fromkeys(name for r in compared for name in r.per_class))
    rows = [
        {"method": r.method, "labelled": r.labelled, **{name: 100 * iou for name, iou in r.per_class.items()}}
        for r in compared
    ]
    table = pd.DataFrame(rows, columns=["method", "labelled", *classes])
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    return summary(table, ["method", "labelled"], classes)


def seconds_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table (method, quantity, mean, std, n) of seconds per cycle: means of each trial's cycles, over seeds.

    quantity is one of SECONDS. Only cycles that selected images count, because the last cycle scores nothing; if there
    are none, all cycles count.
    """
    cycles = table[table["selected"]] if table["selected"].any() else table
    shown = shown_seconds(table)
    trials = cycles.groupby(["method", "trial"], observed=True)[shown].mean().reset_index()
    return summary(trials, ["method"], shown)


def seconds_by_cycle_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table (method, labelled, quantity, mean, std, n) of the seconds of every cycle, over the seeds."""
    return summary(table, ["method", "labelled"], shown_seconds(table))


def shown_seconds(table: pd.DataFrame) -> list[str]:
    """Return SECONDS, without ``compile`` if nothing was compiled."""
    return [name for name in SECONDS if name != "compile" or table["compile"].any()]


def cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table (method, quantity, mean, std, n) of COST in cycle 0, over the seeds; memory: in any cycle.

    energy is left out if there is none: no device reported it, or methods shared all first cycles.
    """
    first = table[table["cycle"] == 0]
    training = first["train"] + first["auxiliary"]
    sampling = first["score"] + first["select"]
    memory = first["trial"].map(table.groupby("trial")["memory"].max()) / 2**30
    costs = [first["EP"], first["EP"] * 4 / 2**20, training, sampling, (training + sampling) / 60, memory]
    costs.append(first["energy"])
    shown = [name for name in COST if name != COST[-1] or first["energy"].notna().any()]
    return summary(first[["method"]].assign(**dict(zip(COST, costs, strict=True))), ["method"], shown)

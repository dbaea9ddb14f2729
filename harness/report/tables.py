"""Records -> numbers: a row per trial and cycle, then long tables of mean, std and n."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from harness.results.records import COST_PHASES, FIGURES, PHASES, CycleRecord

if TYPE_CHECKING:
    import pandas as pd


SECONDS = [*COST_PHASES, "total", "compile", "evaluate", "checkpoint"]


EXTRA = ["EP", "EP (MiB)"]


COST = [*EXTRA, "TT (s)", "ST (s)", "total (min)", "memory (GiB)"]


@dataclass(frozen=True)
class Suite:
    """One suite as run.json describes it: what was planned, whether or not it is there yet."""

    name: str
    title: str
    dataset: str
    model: str
    recipe: str
    methods: list[str]
    """Labels, in display order."""
    seeds: list[int]
    labelled: list[int]
    """The number of labelled images of each cycle."""
    trials: dict[str, dict[str, Any]]
    """Trial id -> its ``method`` (label) and ``seed``."""
    skipped: str | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Suite:
        """Read a suite; keys that a report does not need are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


def frame(records: Iterable[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return one row per record: figures in %, seconds by phase, and ``bought``: whether images were chosen.

    The order of the records does not matter. A figure that a record lacks, or has as None, is NaN.
    """
    import pandas as pd

    ordered = sorted(records, key=lambda r: (r.trial, r.cycle))  # also the order in which floats are added up
    rows = [
        {
            "method": r.method,
            "trial": r.trial,
            "cycle": r.cycle,
            "labelled": r.labelled,
            "bought": bool(r.chosen),
            "EP": r.extra_parameters,
            "memory": r.peak_memory(),
            **{phase: r.seconds.get(phase) for phase in PHASES},
            **{_percent(key): None if value is None else 100 * value for key, value in r.figures.items()},
        }
        for r in ordered
    ]
    numbers = [*PHASES, *(_percent(key) for key in figure_keys(ordered))]
    table = pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    table["total"] = table[list(COST_PHASES)].sum(axis=1, skipna=False)
    return table


def figure_keys(records: Iterable[CycleRecord]) -> list[str]:
    """Return the names of all figures, sorted."""
    return sorted({key for r in records for key in r.figures})


def _percent(key: str) -> str:
    return f"{FIGURES.get(key, key)} (%)"


def summary(table: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Return a row per group and value column: ``by``, quantity, mean, std (sample; NaN for one value) and n.

    A group without any value of a column has no row for it.
    """
    import pandas as pd

    long = table.melt(id_vars=by, value_vars=values, var_name="quantity").dropna(subset=["value"])
    long["quantity"] = pd.Categorical(long["quantity"], categories=values, ordered=True)
    cells = long.groupby([*by, "quantity"], observed=True)["value"].agg(mean="mean", std="std", n="count")
    return cells.reset_index()


def figure_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return method, labelled, mean, std and n of a figure, in %, over the seeds."""
    return summary(table, ["method", "labelled"], [_percent(key)]).drop(columns="quantity")


def aubc_table(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return method, mean, std and n of the area under the budget curve (trapezoids) divided by the budget's span.

    Only trials that have the figure at every labelled count of the table enter: areas over different spans can't
    be compared. Empty if there is one labelled count only.
    """
    curves = table.pivot(index=["method", "trial"], columns="labelled", values=_percent(key))
    curves = curves.dropna(axis="columns", how="all").dropna()
    x, y = curves.columns.to_numpy(float), curves.to_numpy(float)
    areas = curves.index.to_frame(index=False)
    areas["AUBC"] = ((y[:, 1:] + y[:, :-1]) / 2 * (x[1:] - x[:-1])).sum(axis=1) / (x[-1] - x[0]) if len(x) > 1 else None
    return summary(areas.astype({"AUBC": float}), ["method"], ["AUBC"]).drop(columns="quantity")


def class_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return method, labelled, quantity (the class), mean, std and n over the seeds of the IoU of each class, in %.

    Of one labelled count: the last that all trials have. Empty if there is none, or pixels have no labels.
    """
    import pandas as pd

    counts = [{r.labelled for r in records if r.trial == trial and r.per_class} for trial in {r.trial for r in records}]
    common = set.intersection(*counts)
    of = sorted((r for r in records if common and r.labelled == max(common)), key=lambda r: r.trial)
    classes = list(dict.fromkeys(name for r in of for name in r.per_class))
    rows = [{"method": r.method, "labelled": r.labelled, **{k: 100 * v for k, v in r.per_class.items()}} for r in of]
    table = pd.DataFrame(rows, columns=["method", "labelled", *classes])
    table["method"] = pd.Categorical(table["method"], categories=list(methods), ordered=True)
    return summary(table, ["method", "labelled"], classes)


def seconds_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, quantity (SECONDS), mean, std and n over the seeds of each trial's mean over its cycles.

    The cycles that count are those that bought images, or all if none did: the last cycle has nothing to score.
    """
    counted = table[table["bought"]] if table["bought"].any() else table
    shown = _shown_seconds(table)
    trials = counted.groupby(["method", "trial"], observed=True)[shown].mean().reset_index()
    return summary(trials, ["method"], shown)


def seconds_by_cycle_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, labelled, quantity (SECONDS), mean, std and n over the seeds, of every cycle."""
    return summary(table, ["method", "labelled"], _shown_seconds(table))


def _shown_seconds(table: pd.DataFrame) -> list[str]:
    """Return SECONDS, without ``compile`` where nothing was compiled."""
    return [name for name in SECONDS if name != "compile" or table["compile"].any()]


def cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return method, quantity (COST), mean, std and n over the seeds, of the first cycle; memory: of any cycle."""
    first = table[table["cycle"] == 0]
    training = first["train"] + first["auxiliary"]
    sampling = first["score"] + first["select"]
    memory = first["trial"].map(table.groupby("trial")["memory"].max()) / 2**30
    costs = [first["EP"], first["EP"] * 4 / 2**20, training, sampling, (training + sampling) / 60, memory]
    return summary(first[["method"]].assign(**dict(zip(COST, costs, strict=True))), ["method"], COST)

"""Published values, from published/values.csv: what was reported, and under which keys.

Only that file names methods and datasets. A row belongs to a suite by the names and settings of its dataset, network
and halves, never by the name of a row in a report.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from math import nan
from statistics import fmean, stdev
from typing import Any, NamedTuple

from harness import registry


class Spec(NamedTuple):
    """A plug-in with the settings that differ from its defaults; in the file: 'NAME KEY=VALUE ...'."""

    name: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, written: str) -> Spec:
        """Return the plug-in of a cell of the file."""
        name, *settings = written.split()
        return cls(name, {key: typed(value) for key, _, value in (text.partition("=") for text in settings)})

    @classmethod
    def stored(cls, values: dict[str, Any]) -> Spec:
        """Return the plug-in of an entry of run.json."""
        return cls(values["name"], {key: value for key, value in values.items() if key != "name"})


@dataclass(frozen=True)
class Published:
    """What a source reports of a method at one number of labelled images."""

    source: str
    dataset: Spec
    network: Spec
    training: Spec
    acquisition: Spec
    keys: dict[str, Any]
    """Key of recipe or protocol, such as 'recipe.epochs' -> its value, where the source states it."""
    metric: str
    labelled: int
    trials: tuple[float, ...]
    """The values of single trials, in points; empty if they are not known."""
    mean: float
    sd: float
    """The sample standard deviation of the trials, or as stated; NaN: unknown."""
    n: int
    """How many trials; 0: unknown."""
    remark: str


def typed(text: str) -> Any:
    """Return a value of the file: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@cache
def published(dataset: str, network: str) -> tuple[Published, ...]:
    """Return the published values of a dataset and a network, by name. Trials of one source and protocol are one value.

    Rows without halves, whose method no plug-in stands for, stay in the file only.
    """
    grouped: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with (registry.home("published") / "values.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = [row[key].partition(" ")[0] for key in ("dataset", "network")]
            if names == [dataset, network] and row["acquisition"]:
                apart = [value for key, value in row.items() if key not in ("place", "trial", "value", "sd", "n")]
                grouped.setdefault((*apart, "" if row["trial"] else row["place"]), []).append(row)
    return tuple(_value(rows) for rows in grouped.values())


def is_method(halves: dict[str, Any], p: Published) -> bool:
    """Return whether a method has the published training and acquisition, with the same settings."""
    return all(half in halves and Spec.stored(halves[half]) == getattr(p, half) for half in ("training", "acquisition"))


def _value(rows: list[dict[str, str]]) -> Published:
    row, values = rows[0], [float(row["value"]) for row in rows]
    sd = float(row["sd"] or nan)
    known = bool(row["trial"])
    return Published(
        source=row["source"],
        **{key: Spec.of(row[key]) for key in ("dataset", "network", "training", "acquisition")},
        keys={key: typed(value) for key, value in row.items() if "." in key and value},
        metric=row["metric"],
        labelled=int(row["labelled"]),
        trials=tuple(values) if known else (),
        mean=fmean(values),
        sd=stdev(values) if len(values) > 1 else sd,
        n=len(values) if known else int(row["n"] or 0),
        remark=row["remark"],
    )

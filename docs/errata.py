"""Recomputes how the paper's Table 1 follows from its authors' logs, and checks Table 4's sums, for errata.md.

Every value is in published/values.csv. Arithmetic is exact (fractions), so that no cell agrees or differs by rounding.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

VALUES = Path(__file__).resolve().parent.parent / "published" / "values.csv"
LOGS, PAPER = "DAST-AL authors' logs", "DAST-AL paper"
CLOSE = Fraction(1, 100)
"""A printed cell agrees with a mean if they differ by at most this: rounded or cut off after two decimals."""


def rows() -> list[dict[str, str]]:
    """Return all published values."""
    with VALUES.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Row:
    """A row of Table 1 and the best explanation by the trials of its method in the logs."""

    method: str
    stated: int
    """The number of trials that the paper states."""
    logged: list[int]
    """The trials in the logs."""
    trials: tuple[int, ...]
    """Those whose means agree with the most printed cells."""
    ties: int
    """How many other sets of trials agree with as many cells."""
    agree: int
    next_best: int
    """The most cells that any other set agrees with; -1: there is no other set."""
    cells: list[tuple[int, Fraction, Fraction, bool]]
    """(labelled, printed, mean of the trials, whether they agree)"""
    copied: dict[int, list[str]]
    """Labelled -> methods with the same printed cell, for cells that do not agree."""


def table_1() -> list[Row]:
    """Return the rows of Table 1: for each, every set of trials of the logs is tried."""
    printed: dict[str, dict[int, Fraction]] = {}
    logged: dict[str, dict[int, dict[int, Fraction]]] = {}
    stated = {}
    for row in rows():
        if (row["dataset"], row["network"], row["metric"]) == ("cifar10", "resnet18_cifar_projection", "accuracy"):
            method, labelled, value = row["method"], int(row["labelled"]), Fraction(row["value"])
            if row["source"] == PAPER:
                printed.setdefault(method, {})[labelled] = value
                stated[method] = int(row["n"])
            elif row["source"] == LOGS:
                logged.setdefault(method, {}).setdefault(int(row["trial"]), {})[labelled] = value
    found = []
    for method, cells in printed.items():
        trials = logged[method]
        scores: Counter[tuple[int, ...]] = Counter()
        for size in range(1, len(trials) + 1):
            for some in combinations(sorted(trials), size):
                scores[some] = sum(abs(mean(trials, some, at) - value) <= CLOSE for at, value in cells.items())
        ranked = scores.most_common()
        best, agree = ranked[0]
        compared = [(at, value, mean(trials, best, at)) for at, value in cells.items()]
        checked = [(at, value, logs, abs(logs - value) <= CLOSE) for at, value, logs in compared]
        copied = {
            at: [other for other in printed if other != method and printed[other][at] == value]
            for at, value, _, agrees in checked
            if not agrees
        }
        ties = sum(score == agree for _, score in ranked) - 1
        next_best = ranked[1][1] if len(ranked) > 1 else -1
        found.append(Row(method, stated[method], sorted(trials), best, ties, agree, next_best, checked, copied))
    return found


def mean(trials: dict[int, dict[int, Fraction]], some: tuple[int, ...], labelled: int) -> Fraction:
    """Return the mean of some trials at a number of labelled images."""
    return sum((trials[trial][labelled] for trial in some), Fraction()) / len(some)


def table_4() -> list[tuple[str, Fraction, Fraction, Fraction, Fraction]]:
    """Return (method, TT, ST, printed total, computed total in minutes) of each row of Table 4."""
    printed: dict[str, dict[str, Fraction]] = {}
    for row in rows():
        if (row["source"], row["place"]) == (PAPER, "Table 4"):
            printed.setdefault(row["method"], {})[row["metric"]] = Fraction(row["value"])
    return [
        (method, row["TT (s)"], row["ST (s)"], row["ToT (min)"], (row["TT (s)"] + row["ST (s)"]) / 60)
        for method, row in printed.items()
    ]


def logged_tt() -> Fraction:
    """Return the seconds that the log of DAST-AL states for the training of the first cycle."""
    (value,) = (row["value"] for row in rows() if row["source"] == LOGS and row["metric"] == "TT (s)")
    return Fraction(value)


def shown(value: Fraction, decimals: int) -> str:
    """Return a number with so many decimals."""
    return f"{float(value):.{decimals}f}"


def signed(value: Fraction) -> str:
    """Return a number with three decimals and its sign."""
    return f"{float(value):+.3f}".replace("-", "\N{MINUS SIGN}")


def listed(numbers: tuple[int, ...] | list[int]) -> str:
    """Return '2-8' for consecutive numbers, else '1, 2, 5'."""
    consecutive = len(numbers) > 2 and [*numbers] == [*range(numbers[0], numbers[-1] + 1)]
    return f"{numbers[0]}-{numbers[-1]}" if consecutive else ", ".join(map(str, numbers))


def rows_of_table_1() -> list[tuple[str, ...]]:
    """Return the rows of errata.md's first table."""
    return [
        (
            row.method,
            str(row.stated),
            f"{len(row.logged)} ({listed(row.logged)})",
            f"{len(row.trials)} ({listed(row.trials)})" + (f", or {row.ties} other sets" if row.ties else ""),
            f"{row.agree} of {len(row.cells)}",
            "no other set" if row.next_best < 0 else str(row.next_best),
        )
        for row in table_1()
    ]


def cells_of_table_1() -> list[tuple[str, ...]]:
    """Return the cells that disagree with the mean of the trials that explain their row."""
    return [
        (
            row.method,
            f"{labelled} ({labelled * 100 // 50000} %)",
            shown(printed, 2),
            shown(logs, 3),
            signed(printed - logs),
            ", ".join(row.copied[labelled]),
        )
        for row in table_1()
        for labelled, printed, logs, agrees in row.cells
        if not agrees
    ]


def rows_of_table_4() -> list[tuple[str, ...]]:
    """Return the rows of Table 4 with their totals computed again, and that of the log."""
    found = [
        (method, f"{float(tt):g}", f"{float(st):g}", f"{float(total):g}", shown(computed, 2))
        for method, tt, st, total, computed in table_4()
    ]
    (st,) = (st for method, _, st, _, _ in table_4() if method == "DAST-AL")
    tt = logged_tt()
    return [*found, ("DAST-AL, TT of the log", f"{float(tt):g}", f"{float(st):g}", "", shown((tt + st) / 60, 2))]

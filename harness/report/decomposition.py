"""Splits a method's gain over a suite's reference into the parts of its training and of its selection.

Training counts as auxiliary if it trains more than the target network: a module with parameters of its own, as in LL4AL
and ADS, or further networks. What those do to the target shows in the row that has the method's training and the
reference's acquisition; a part that no row shows is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import TYPE_CHECKING

from harness.report.comparisons import areas, reference_of
from harness.report.formats import wide
from harness.report.tables import summary
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import pandas as pd

PARTS = ["gain", "training", "auxiliary", "selection"]


def between(suite: SuiteEntry) -> dict[str, str | None]:
    """Return method -> the method with its training and the reference's acquisition; None: the suite has none.

    That is the method itself if it selects as the reference does, and the reference if it trains as the reference does.
    """
    reference = reference_of(suite)
    methods = [m for m in suite.methods if {"training", "acquisition"} <= {*suite.halves.get(m, {})}]
    if reference not in methods:
        return {}
    acquisition = suite.halves[reference]["acquisition"]
    found = {}
    for method in methods:
        halves = {"training": suite.halves[method]["training"], "acquisition": acquisition}
        if method != reference:
            found[method] = next((other for other in methods if suite.halves[other] == halves), None)
    return found


def decomposition_caption(suite: SuiteEntry) -> str:
    """Return what the columns of the table are."""
    reference = reference_of(suite)
    return (
        f"Parts of the gain in AUBC over {reference}, in points, over the seeds; not tested. split by: the row that "
        f"has the method's training and the acquisition of {reference}; none: the suite has no such row, and the gain "
        f"is not split. training: that row minus {reference}; auxiliary: the same, of a method that trains parameters "
        "or networks in addition to the target, such as a loss module; selection: the method minus that row. The parts "
        "add up to the gain before rounding."
    )


def decomposition_table(suite: SuiteEntry, records: Sequence[CycleRecord], key: str) -> pd.DataFrame:
    """Return the table (method, quantity, mean, std, n) of gains in points of AUBC of a metric, by seed.

    quantity: ``gain`` over the reference, and its parts, which add up to it at each seed: ``training``, or
    ``auxiliary`` of a training with parameters or networks of its own (the row between, minus the reference), and
    ``selection`` (the method minus the row between). A method without a row between has its gain only. The table is
    empty unless a method has both parts.
    """
    import pandas as pd

    by_method, reference, middles = areas(suite, records, key), reference_of(suite), between(suite)
    more = {r.method for r in records if r.extra_parameters}
    rows = []
    for method, middle in middles.items() if any(m not in (k, reference, None) for k, m in middles.items()) else ():
        of = [by_method.get(name, {}) for name in (method, middle or reference, reference)]
        for seed in sorted({*of[0]} & {*of[1]} & {*of[2]}):
            own, trained, base = (values[seed] for values in of)
            parts = [nan] * 3
            if middle is not None:
                parts = [trained - base, nan, own - trained]
                if middle in more and middle != reference:
                    parts = [nan, trained - base, own - trained]
            rows.append((method, own - base, *parts))
    table = pd.DataFrame(rows, columns=["method", *PARTS])
    table["method"] = pd.Categorical(table["method"], categories=list(middles), ordered=True)
    return summary(table, ["method"], [part for part in PARTS if part != "auxiliary" or table[part].notna().any()])


def wide_decomposition(suite: SuiteEntry, numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the wide table of text, with the row that splits the gain of each method."""
    shown, middles = wide(numbers, ["method"], "quantity", "+"), between(suite)
    names = [middles[method] or "none" for method in shown["method"]]
    shown.insert(1, "split by", names)
    return shown

"""Splits a method's gain over a suite's reference into the parts of its training and of its selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.comparisons import areas, reference_of
from harness.report.tables import summary
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import pandas as pd

PARTS = ["gain", "training", "selection"]


def between(suite: SuiteEntry) -> dict[str, str]:
    """Return method -> the method with its training and the reference's acquisition, where the suite has one.

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
        middle = next((other for other in methods if suite.halves[other] == halves), None)
        if method != reference and middle is not None:
            found[method] = middle
    return found


def decomposition_caption(suite: SuiteEntry) -> str:
    """Return what the columns of the table are."""
    reference = reference_of(suite)
    return (
        f"Parts of the gain in AUBC over {reference}, in points, by seed. training: the method's training with the "
        f"acquisition of {reference}, minus {reference}; selection: the method minus that. The two add up to the gain. "
        "A method without a row of its training with that acquisition is left out."
    )


def decomposition_table(suite: SuiteEntry, records: Sequence[CycleRecord], key: str) -> pd.DataFrame:
    """Return the table (method, quantity, mean, std, n) of gains in points of AUBC of a metric, by seed.

    quantity: ``gain`` over the reference, and its two parts, which add up to it at each seed: ``training`` (the
    method's training with the reference's acquisition, minus the reference) and ``selection`` (the method minus that).
    The table is empty unless a method has both parts.
    """
    import pandas as pd

    by_method, reference, middles = areas(suite, records, key), reference_of(suite), between(suite)
    rows = []
    for method, middle in middles.items() if any(m not in (k, reference) for k, m in middles.items()) else ():
        of = [by_method.get(name, {}) for name in (method, middle, reference)]
        for seed in sorted({*of[0]} & {*of[1]} & {*of[2]}):
            own, trained, base = (values[seed] for values in of)
            rows.append((method, own - base, trained - base, own - trained))
    table = pd.DataFrame(rows, columns=["method", *PARTS])
    table["method"] = pd.Categorical(table["method"], categories=list(middles), ordered=True)
    return summary(table, ["method"], PARTS)

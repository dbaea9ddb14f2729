"""The win matrix of a suite: at how many budgets each method is better than each other one, with an exact test.

It is the penalty matrix of Ash et al. (2020, ICLR, BADGE, section 4) with two differences: the test is the exact one of
this report, and it has to hold for AUBC over all pairs of the suite (Holm) before any budget of a pair counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from harness.lazy import np
from harness.report import statistics
from harness.report.captions import counted
from harness.report.comparisons import compared_metric, curves
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd


@dataclass(frozen=True)
class Pair:
    """Two methods of a suite, compared by AUBC at their common seeds."""

    row: str
    column: str
    mean: float
    """Mean difference of AUBC, row minus column, in points."""
    n: int
    p: float
    adjusted: float
    """p by Holm over all pairs of the suite, with those that have no result yet."""
    wins: int
    """Budgets at which the better one has a p of at most 5 %; 0 if adjusted is above 5 %."""


def differences(suite: SuiteEntry, records: Sequence[CycleRecord]) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """Return the differences, [seeds, budgets] in points, of all pairs of methods with common seeds, each once."""
    key = compared_metric(records)
    found = curves(suite, records, key) if key else {}
    methods = [method for method in suite.methods if method in found]
    return {
        (row, column): np.array([found[row][s] for s in common]) - [found[column][s] for s in common]
        for row, column in combinations(methods, 2)
        if (common := sorted({*found[row]} & {*found[column]}))
    }


def pairs(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[Pair]:
    """Return all pairs of methods with common seeds, each once, in the order of the methods."""
    found = differences(suite, records)
    by_area = [statistics.area(suite.labelled, values) for values in found.values()]
    ps = [statistics.p_differ(values) for values in by_area]
    holm = statistics.holm([*ps, *[1.0] * (planned(suite) - len(ps))])
    result = []
    for (names, values), area, p, adjusted in zip(found.items(), by_area, ps, holm, strict=False):
        mean, wins = float(area.mean()), 0
        if adjusted <= statistics.LEVEL:
            same = values[:, values.mean(0) * mean > 0]
            wins = sum(statistics.p_differ(budget) <= statistics.LEVEL for budget in same.T)
        result.append(Pair(*names, mean, len(area), p, adjusted, wins))
    return result


def planned(suite: SuiteEntry) -> int:
    """Return how many pairs the methods of a suite make: a cell must not vanish once all have results."""
    return comb(len(suite.methods), 2)


def too_few(suite: SuiteEntry, seeds: Collection[int]) -> int:
    """Return how many seeds a win matrix needs if all its pairs have fewer; 0 if not. ``seeds``: of each pair."""
    level = statistics.LEVEL / max(planned(suite), 1)
    return statistics.seeds_for(level) if seeds and all(statistics.smallest_p(n) > level for n in {*seeds}) else 0


def no_matrix(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[str]:
    """Return a sentence if the seeds of a suite can't fill a win matrix of more than one pair."""
    seeds = [len(values) for values in differences(suite, records).values()]
    if len(seeds) < 2 or not (needed := too_few(suite, seeds)):
        return []
    most = counted(max(seeds), "seed")
    return [f"{most} can't fill a win matrix of {planned(suite)} pairs of methods; {needed} seeds can."]


def ranks(suite: SuiteEntry, records: Sequence[CycleRecord]) -> dict[str, float]:
    """Return method -> mean rank of AUBC over the seeds that all methods have; 1 is the best, ties share a rank."""
    from scipy.stats import rankdata

    key = compared_metric(records)
    found = curves(suite, records, key) if key else {}
    common = sorted(set.intersection(*({*by_seed} for by_seed in found.values()))) if found else []
    if not common:
        return {}
    areas = [[statistics.area(suite.labelled, by_seed[seed]) for seed in common] for by_seed in found.values()]
    return dict(zip(found, rankdata(-np.array(areas), axis=0).mean(1).tolist(), strict=True))


def win_table(
    suite: SuiteEntry, records: Sequence[CycleRecord]
) -> tuple[str, dict[str, pd.DataFrame], pd.DataFrame] | None:
    """Return (caption, long tables, wide table) of a suite's win matrix; None if its seeds can't fill one.

    Long tables: a row for each pair; '_ranks': a row for each method.
    """
    import pandas as pd

    found = pairs(suite, records)
    if len(found) < 2 or too_few(suite, [pair.n for pair in found]):
        return None
    differing = [pair for pair in found if pair.adjusted <= statistics.LEVEL]
    won = {(p.row, p.column) if p.mean > 0 else (p.column, p.row): p.wins for p in differing}
    mean_ranks = ranks(suite, records)
    methods = [m for m in suite.methods if any(m in (pair.row, pair.column) for pair in found)]
    budgets = len(suite.labelled)
    rows = []
    for row in methods:
        cells = {column: str(won.get((row, column), "")) or "\N{EN DASH}" for column in methods}
        total = sum(wins for (winner, _), wins in won.items() if winner == row)
        rank = f"{mean_ranks[row]:.2f}" if row in mean_ranks else "\N{EN DASH}"
        rows.append([row, *cells.values(), str(total), rank])
    losses = [sum(wins for (_, loser), wins in won.items() if loser == column) for column in methods]
    rows.append(["penalty (sum)", *map(str, losses), str(sum(losses)), ""])
    shown = pd.DataFrame(rows, columns=["method", *(f"vs {m}" for m in methods), "wins (sum)", "mean rank"])
    caption = (
        f"Win matrix: at how many of {counted(budgets, 'budget')} the row's method is significantly better than the "
        f"column's. \N{EN DASH}: their AUBC is not significantly different, or the column's is better (exact test by "
        f"seed, at most 5 % after Holm over {planned(suite)} pairs); else the budgets with p of at most 5 %. mean "
        "rank: of AUBC, over the seeds that all methods have; it changes with the methods compared, unlike the pairs."
    )
    long = pd.DataFrame([vars(pair) for pair in found])
    by_method = pd.DataFrame(list(mean_ranks.items()), columns=["method", "mean_rank"])
    return caption, {"": long, "_ranks": by_method}, shown

"""Speed-up factors: the labels that the reference needs for a method's metric, over the labels that the method used.

Above 1, the method saves labels. The name is that of Kath et al. (2026, TMLR). Each budget has a factor of its own,
because a method that saves labels at first need not do so later.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from harness.lazy import np
from harness.report import statistics
from harness.report.comparisons import compared_metric, curves, reference_of
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS, CycleRecord

if TYPE_CHECKING:
    import pandas as pd


def factor(labelled: Sequence[int], curve: Sequence[float], value: float, used: int) -> float:
    """Return the labels at which a curve first reaches a value, over the labels used; infinite if it never does.

    It is -inf if the curve starts above the value: then it takes fewer labels than the first budget. Of a curve that
    falls in between, the first crossing counts: labels that have reached the value once have been enough.
    """
    return -inf if curve[0] > value else statistics.labels_needed(labelled, curve, value) / used


def speed_up_table(
    suite: SuiteEntry, records: Sequence[CycleRecord]
) -> tuple[str, dict[str, pd.DataFrame], pd.DataFrame] | None:
    """Return (caption, long tables, wide table) of the speed-up of each method at each budget after the first.

    Long tables: columns method, labelled, factor, low, high, n; '_by_seed': method, labelled, seed, factor. A factor or
    a bound beyond the curve of the reference is infinite. None without two budgets or without common seeds.
    """
    import pandas as pd

    key, reference = compared_metric(records), reference_of(suite)
    found = curves(suite, records, key) if key else {}
    labelled = suite.labelled
    rows, by_seed, shown = [], [], []
    for method in suite.methods:
        common = sorted({*found.get(method, {})} & {*found.get(reference, {})})
        if method == reference or not common or len(labelled) < 2:
            continue
        theirs, ours = (np.array([found[name][seed] for seed in common]) for name in (reference, method))
        cells = {}
        for at, used in enumerate(labelled[1:], 1):
            mean = factor(labelled, theirs.mean(0).tolist(), float(ours[:, at].mean()), used)
            low, high = (bound / used for bound in statistics.labels_interval(labelled, theirs, ours[:, at]))
            rows.append((method, used, mean, low, high, len(common)))
            for seed, curve, value in zip(common, theirs.tolist(), ours[:, at].tolist(), strict=True):
                by_seed.append((method, used, seed, factor(labelled, curve, value, used)))
            ends = labelled[0] / used, labelled[-1] / used
            bounds = "" if len(common) < 2 else f" ({_shown(low, *ends)} to {_shown(high, *ends)})"
            cells[str(used)] = _shown(mean, *ends) + bounds
        shown.append({"method": method, **cells, "n": str(len(common))})
    if not shown or key is None:
        return None
    caption = (
        f"Speed-up: labels that {reference} needs to reach the method's {METRICS[key]} for the first time, over the "
        "labels that the method used, by number of labelled images; on the mean curves, between budgets linearly. < "
        f"and >: beyond the first or last budget of {reference}. In brackets: 95 % interval by Student's t of the "
        "differences by seed (Fieller), not adjusted for the number of methods and budgets."
    )
    long = pd.DataFrame(rows, columns=["method", "labelled", "factor", "low", "high", "n"])
    seeds = pd.DataFrame(by_seed, columns=["method", "labelled", "seed", "factor"])
    return caption, {"": long, "_by_seed": seeds}, pd.DataFrame(shown)


def _shown(value: float, lowest: float, highest: float) -> str:
    """Return a factor with two decimals, or as < or > than what the curve of the reference can show."""
    if value == inf:
        return f">{highest:.2f}"
    return f"<{lowest:.2f}" if value == -inf else f"{value:.2f}"

"""The table of a run that replays: what images gain with the network that selected them, and with that trained now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.lazy import np
from harness.report import statistics
from harness.report.captions import counted
from harness.report.comparisons import signed
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS, CycleRecord
from harness.results.source import SourceSuite, shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Transfer:
    """The gains of the methods of a suite over its reference, by seed, in points of AUBC."""

    source: SourceSuite
    network: str
    """The network trained now."""
    labelled: list[int]
    """The numbers of labelled images that all curves have."""
    gains: dict[str, dict[int, tuple[float, float]]]
    """Method -> seed -> (gain with the network that selected, gain with the network trained now)."""

    def rank_correlation(self) -> float | None:
        """Return Spearman's rank correlation of the methods' mean gains with both networks; None below 3 methods."""
        means = np.array([np.mean([*by_seed.values()], 0) for by_seed in self.gains.values()])
        if len(means) < 3 or (means == means[0]).all(0).any():
            return None
        from scipy.stats import spearmanr

        return float(spearmanr(means[:, 0], means[:, 1]).statistic)

    def caption(self) -> str:
        """Return what the table says, and the rank correlation."""
        metric, span = METRICS[self.source.metric], f"{self.labelled[0]} to {self.labelled[-1]}"
        area = f"AUBC from {span}" if len(self.labelled) > 1 else f"the metric at {self.labelled[0]}"
        found = self.rank_correlation()
        ranks = ""
        if found is not None:
            methods = counted(len(self.gains), "method")
            ranks = f"; rank correlation (Spearman) of the mean gains of {methods}: {signed(found)}"
        return (
            f"Transfer: gain over {self.source.reference} in points of {metric} ({area} labelled images){ranks}. The "
            "gain with the network that selected the images, and with the network trained on them now, of the same "
            "seeds and images."
        )


def transfer(suite: SuiteEntry, records: Sequence[CycleRecord], source: SourceSuite | None) -> Transfer | None:
    """Return the gains of a suite, or None if it replays no other run, or no method has results of both networks.

    ``source``: what was selected from, if it replays one.
    """
    if source is None:
        return None
    now: dict[str, dict[int, dict[int, float]]] = {}
    for r in records:
        if source.metric in r.metrics:
            now.setdefault(r.method, {}).setdefault(r.seed, {})[r.labelled] = r.metrics[source.metric]
    before = source.curves
    both = [(row, seed) for row in suite.methods for seed in {*before.get(row, {})} & {*now.get(row, {})}]
    # a seed counts if both networks have its whole curve, and a budget if any trial of this run has reached it
    reached = {labelled for row, seed in both for labelled in now[row][seed]}
    labelled = sorted(reached.intersection(*(before[row][seed] for row, seed in both)) if both else ())
    if not labelled:
        return None

    def area(curves: dict[str, dict[int, dict[int, float]]], row: str, seed: int) -> float:
        return float(statistics.area(labelled, [100 * curves[row][seed][count] for count in labelled]))

    whole = {(row, seed) for row, seed in both if {*labelled} <= {*now[row][seed]}}
    gains: dict[str, dict[int, tuple[float, float]]] = {}
    for row, seed in sorted(whole, key=lambda pair: pair[1]):
        if row != source.reference and (source.reference, seed) in whole:
            one, other = (area(curves, row, seed) - area(curves, source.reference, seed) for curves in (before, now))
            gains.setdefault(row, {})[seed] = one, other
    ordered = {row: gains[row] for row in suite.methods if row in gains}
    return Transfer(source, shown(suite), labelled, ordered) if ordered else None


def transfer_table(found: Transfer) -> pd.DataFrame:
    """Return the table (method, seed, gain of the source, gain now) in points of AUBC."""
    import pandas as pd

    rows = [(method, seed, *gains) for method, by_seed in found.gains.items() for seed, gains in by_seed.items()]
    return pd.DataFrame(rows, columns=["method", "seed", "gain_selected", "gain_trained_now"])


def wide_transfer(found: Transfer) -> pd.DataFrame:
    """Return the wide table of text: a row for each method, with its gains with both networks."""
    import pandas as pd

    def spread(values: list[float]) -> str:
        return signed(float(np.mean(values))) + (f"±{np.std(values, ddof=1):.2f}" if len(values) > 1 else "")

    heads = f"selected: {found.source.network}", f"trained now: {found.network}"
    rows = []
    for method, by_seed in found.gains.items():
        gains = zip(*by_seed.values(), strict=True)
        cells = {head: spread([*values]) for head, values in zip(heads, gains, strict=True)}
        rows.append({"method": method, **cells, "n": str(len(by_seed))})
    return pd.DataFrame(rows)

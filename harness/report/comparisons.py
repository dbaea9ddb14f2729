"""Compares the methods of a run by seed, and says only what the evidence carries.

Every method of a suite is compared with a reference, by the differences at equal seeds of the area under the budget
curve (AUBC), in points of the metric. The suite's primary comparison is tested at 5 %. The p-values of all other
comparisons of the report are adjusted together (Holm). They must be at most 5 % once their suite's primary comparison
is significant, or if the config names none, and at most BEFORE until then (the fallback procedure of Wiens 2003,
Pharmaceutical Statistics 2). With the claims on costs (costs.py), at most 5.5 % of suites whose methods do not differ
get any claim of a difference.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

from harness.lazy import np
from harness.report import statistics
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS, CycleRecord

BEFORE = statistics.BEFORE


@dataclass(frozen=True)
class Comparison:
    """A method minus the reference of a suite."""

    suite: str
    metric: str
    method: str
    reference: str
    differences: dict[int, float]
    """Seed -> difference in points of AUBC."""
    primary: bool = False
    margin: float | None = None
    """Points within which methods count as equal; None: equality is not claimed."""
    others: int = 1
    """How many comparisons are adjusted together, this one included; 1 for a primary one."""
    left: int = 1
    """How many of these Holm leaves to this one: without the others that are significant at alpha, if it is not."""
    alpha: float = statistics.LEVEL
    """The level of adjusted p-values."""
    adjusted: float = 1.0
    """Two-sided p that the methods do not differ, adjusted for the number of comparisons."""
    adjusted_equal: float = 1.0
    """p that they differ by more than the margin, adjusted alike."""

    @cached_property
    def values(self) -> list[float]:
        """The differences, in the order of the seeds."""
        return [self.differences[seed] for seed in sorted(self.differences)]

    @cached_property
    def p(self) -> float:
        """The exact two-sided p, not adjusted."""
        return statistics.p_differ(self.values)

    @property
    def level(self) -> float:
        """The level at which p has to be significant, next to the other comparisons of the report."""
        return self.alpha / self.left

    @property
    def mean(self) -> float:
        """The mean difference."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The sample standard deviation of the differences; NaN for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    def interval(self) -> str:
        """Return the interval of the mean as text, by the test that carries the claim; '' if the seeds are too few.

        It inverts the exact test at LEVEL / 2 on each side, or at LEVEL if equality is claimed, so that it does not
        contradict the claim. Above ``statistics.INVERTED`` seeds it is Student's t.
        """
        level = 2 * statistics.LEVEL if kind_of(self) == "equal" else statistics.LEVEL
        if exact := len(self.values) <= statistics.INVERTED:
            bounds = statistics.exact_interval(self.values, level)
        else:
            bounds = statistics.interval(self.values, level)[1:]
        name = f"{100 * (1 - level):g} % interval" + ("" if exact else " by Student's t")
        return f"{name} {signed(bounds[0])} to {signed(bounds[1])}" if bounds else ""

    def turned(self) -> Comparison:
        """Return the reference minus the method."""
        differences = {seed: -value for seed, value in self.differences.items()}
        return replace(self, method=self.reference, reference=self.method, differences=differences)

    def seeds_needed(self) -> float:
        """Return how many seeds would find a difference as large as the mean, at the level."""
        return statistics.seeds_needed(self.mean, self.std, self.level) if len(self.values) > 1 else float("nan")

    def seeds_for_equal(self) -> float:
        """Return how many seeds would show equality within the margin; NaN without a margin or a spread."""
        if self.margin is None or len(self.values) < 2:
            return float("nan")
        return statistics.seeds_for_equal(self.margin, self.std, self.alpha / self.others)

    def smallest_difference(self) -> float:
        """Return the smallest difference that so many seeds find, at the level; infinite if they can't find any."""
        if len(self.values) < 2:
            return inf
        return statistics.smallest_difference(self.std, len(self.values), self.level)


@dataclass(frozen=True)
class Claim:
    """A sentence that compares, with the evidence that carries it, or what evidence would."""

    kind: str
    """better, worse, equal, cheaper, or open: nothing is claimed."""
    text: str
    about: list[Comparison] = field(default_factory=list)


def curves(suite: SuiteEntry, records: Sequence[CycleRecord], key: str) -> dict[str, dict[int, list[float]]]:
    """Return method -> seed -> a metric in points at each budget of the suite, of the trials that have all of them."""
    values: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        if (value := r.metrics.get(key)) is not None:
            values.setdefault((r.method, r.seed), {})[r.labelled] = 100 * value
    found: dict[str, dict[int, list[float]]] = {}
    for (method, seed), curve in values.items():
        if {*suite.labelled} <= {*curve}:
            found.setdefault(method, {})[seed] = [curve[labelled] for labelled in suite.labelled]
    return found


def areas(suite: SuiteEntry, records: Sequence[CycleRecord], key: str) -> dict[str, dict[int, float]]:
    """Return method -> seed -> AUBC in points of a metric, of the trials with the metric at every budget of the suite.

    At one budget it is the metric itself.
    """
    return {
        method: {seed: float(statistics.area(suite.labelled, curve)) for seed, curve in by_seed.items()}
        for method, by_seed in curves(suite, records, key).items()
    }


def compared_metric(records: Sequence[CycleRecord]) -> str | None:
    """Return the key of the metric by which the methods of a suite are compared; None without one."""
    return next((key for key in METRICS if any(key in r.metrics for r in records)), None)


def reference_of(suite: SuiteEntry) -> str:
    """Return the method that all others of a suite are compared with: its name in the config."""
    return suite.primary[1] if suite.primary else next(iter(suite.trials.values())).method


def comparisons(suites: Sequence[tuple[SuiteEntry, Sequence[CycleRecord]]]) -> list[Comparison]:
    """Return the comparisons of a report, each method of a suite with its reference, if they have common seeds."""
    return together([suite for suite, _ in suites], [c for suite, records in suites for c in alone(suite, records)])


def alone(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[Comparison]:
    """Return the comparisons of a suite, whose p-values are not yet adjusted for those of other suites."""
    if (key := compared_metric(records)) is None:
        return []
    found, by_method, reference = [], areas(suite, records, key), reference_of(suite)
    for method in others_of(suite):
        if common := sorted({*by_method.get(method, {})} & {*by_method.get(reference, {})}):
            differences = {seed: by_method[method][seed] - by_method[reference][seed] for seed in common}
            primary = [method, reference] == suite.primary
            found.append(
                Comparison(suite.name, METRICS[key], method, reference, differences, primary, suite.equal_within)
            )
    return found


def together(suites: Sequence[SuiteEntry], found: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons of all suites of a report, adjusted.

    Those that have no result yet count as the others do: a claim must not vanish once they have one.
    """
    planned = sum([method, reference_of(suite)] != suite.primary for suite in suites for method in others_of(suite))
    return adjusted(found, {suite.name for suite in suites if suite.primary}, planned)


def others_of(suite: SuiteEntry) -> list[str]:
    """Return the methods of a suite that are compared with its reference; none if that has no row, or several."""
    if suite.skipped or not suite.trials or (reference := reference_of(suite)) not in suite.methods:
        return []
    return [method for method in suite.methods if method != reference]


def adjusted(found: Sequence[Comparison], primary: Collection[str] = (), planned: int = 0) -> list[Comparison]:
    """Return the comparisons with p-values adjusted for the number of those that are not primary.

    ``primary``: names of the suites whose config names a primary comparison, found or not; ``planned``: how many others
    there will be.
    """
    others = [c for c in found if not c.primary]
    open_ = [1.0] * max(0, planned - len(others))
    differ = statistics.holm([*(c.p for c in others), *open_])
    equal = statistics.holm([*map(p_equal, others), *open_])
    by_id = {id(c): ps for c, *ps in zip(others, differ, equal, strict=False)}
    shown = {c.suite for c in found if c.primary and c.p <= statistics.LEVEL}  # equality spends none of that level
    waiting = {*primary, *(c.suite for c in found if c.primary)} - shown
    changed = []
    for c in found:
        p, apart = by_id.get(id(c), [c.p, p_equal(c)])
        alpha = BEFORE if c.suite in waiting and not c.primary else statistics.LEVEL
        together = 1 if c.primary else len(differ)
        left = together - (0 if c.primary or p <= alpha else sum(other <= alpha for other in differ))
        changed.append(replace(c, alpha=alpha, others=together, left=left, adjusted=p, adjusted_equal=apart))
    return changed


def p_equal(comparison: Comparison) -> float:
    """Return the p that two methods differ by more than the margin; 1 if there is none."""
    return 1.0 if comparison.margin is None else statistics.p_equal(comparison.values, comparison.margin)


def kind_of(comparison: Comparison) -> str:
    """Return what the evidence carries: better, worse, equal or open.

    A difference that is significant and within the margin is equal: it is there, and too small to matter.
    """
    if comparison.adjusted_equal <= comparison.alpha:
        return "equal"
    if comparison.adjusted <= comparison.alpha:
        return "better" if comparison.mean > 0 else "worse"
    return "open"


def significantly_best(means: dict[str, float], found: Sequence[Comparison]) -> str | None:
    """Return the method with the highest mean if it is better than the reference; else None, whatever the means are."""
    best = max(means, key=lambda method: means[method], default=None)
    return best if any(c.method == best and kind_of(c) == "better" for c in found) else None


def signed(value: float) -> str:
    """Return a number with two decimals and its sign."""
    return "any" if abs(value) == inf else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def shown_p(p: float) -> str:
    """Return a p-value with two digits."""
    return f"{p:.2g}" if p >= 0.0001 else f"{p:.0e}"

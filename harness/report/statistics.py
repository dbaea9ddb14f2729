"""Exact tests on the differences of seeds, and what a number of seeds can and can't show.

Two methods of a suite share their seeds: initial set, initial weights and order of the data. Their differences by seed
are therefore tested, not their means. All tests are permutation tests, exact at any number of seeds: under the
hypothesis that two methods do not differ, the sign of each difference is a fair coin (Fisher 1935, The Design of
Experiments, section 21). No test chooses itself by looking at the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations
from math import comb, inf, sqrt
from typing import TYPE_CHECKING

from harness.lazy import np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
BEFORE = 0.0025
"""The level of other comparisons as long as the primary comparison of their suite is not significant."""
POWER = 0.8
"""The probability with which a difference is to be found, in what is said before a run."""
MOST = 10_000
"""Seeds beyond which none is said to be needed."""
FEW = 12
"""Seeds up to which power is simulated."""
FEW_SETS = 10
SIMULATED = 4000
EXACT = 40
"""Seeds up to which every sign is looked at: 2^20 sums are held then."""
INVERTED = 30
"""Seeds up to which an interval is that of the exact test; more would take seconds."""
RANDOM = 99_999
SPLITS = 10**6
TIES = 1e-9
"""Relative tolerance in which sums count as equal: their rounding differs by the order of the terms."""


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums [2^n] of all signs of values [n]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _share_above(values: NDArray[np.float64], bound: float) -> float:
    """Return the share of all signs of values [n] whose sum is at least a bound.

    The sums of both halves are sorted, so that 2^(n/2) numbers are held instead of 2^n. Beyond EXACT values the share
    is that of RANDOM random signs and the values' own, which makes a valid test, too (Phipson and Smyth 2010, Stat.
    Appl. Genet. Mol. Biol. 9). It is kept: several tables and claims of a report test the same differences.
    """
    return _kept_share(values.tobytes(), bound)


@lru_cache(maxsize=100_000)
def _kept_share(content: bytes, bound: float) -> float:
    values = np.frombuffer(content)
    if len(values) > EXACT:
        random, sums = np.random.default_rng(0), np.zeros(RANDOM)
        for value in values:
            sums += random.choice([-value, value], RANDOM)
        return (1 + int((sums >= bound).sum())) / (1 + RANDOM)
    one, other = _sums(values[: len(values) // 2]), np.sort(_sums(values[len(values) // 2 :]))
    return float((len(other) - np.searchsorted(other, bound - one)).sum() / (len(one) * len(other)))


def p_greater(differences: ArrayLike) -> float:
    """Return the exact one-sided p that the mean of differences [n] is not above 0: the share of signs as extreme.

    p is 1 without differences. Above EXACT seeds it is that of random signs.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        return 1.0
    return _share_above(np.abs(values), values.sum() - TIES * np.abs(values).sum())


def p_differ(differences: ArrayLike) -> float:
    """Return the exact two-sided p that the mean of differences [n] is 0."""
    values = np.asarray(differences, np.float64)
    sums = abs(values.sum())
    if sums <= TIES * np.abs(values).sum():
        return 1.0
    return min(1.0, 2 * _share_above(np.abs(values), sums - TIES * np.abs(values).sum()))


def p_two_samples(one: ArrayLike, other: ArrayLike) -> float:
    """Return the exact two-sided p that two independent samples have the same mean.

    It is the share of all ways to split the values whose means differ as much; of 100 000 random ways if there are more
    than SPLITS. Published trials share no seeds with ours, so that their differences by seed mean nothing.
    """
    ours, theirs = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if not len(ours) or not len(theirs):
        return 1.0
    both, size = np.concatenate([ours, theirs]), len(ours)
    if comb(len(both), size) > SPLITS:
        random = np.random.default_rng(0)
        chosen = np.stack([random.permutation(len(both))[:size] for _ in range(100_000)])
        chosen = np.concatenate([np.arange(size)[None], chosen])  # as it is, so that p is never 0
    else:
        chosen = np.array([*combinations(range(len(both)), size)])
    sums = both[chosen].sum(1)
    means = sums / size, (both.sum() - sums) / len(theirs)
    found = abs(ours.mean() - theirs.mean())
    return float((np.abs(means[0] - means[1]) >= found - TIES * np.abs(both).max()).mean())


def p_equal(differences: ArrayLike, margin: float) -> float:
    """Return the p that the mean of differences [n] is not within a margin: the larger of two one-sided tests.

    Raises ValueError for a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"a margin must be positive, got {margin}")
    values = np.asarray(differences, np.float64)
    return max(p_greater(margin - values), p_greater(margin + values))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979): each is at most a level if the step-down procedure rejects at it."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p that differences of so many seeds can have: all have one sign."""
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_for(level: float) -> int:
    """Return the fewest seeds whose differences can have a two-sided p of at most a level."""
    seeds = 1
    while smallest_p(seeds) > level:
        seeds += 1
    return seeds


@cache
def _critical(seeds: int, count: int) -> NDArray[np.float64]:
    """Return the true differences, in units of their sd, above which each of SIMULATED samples is significant, sorted.

    At a level of count / 2^(seeds - 1), a sample is if fewer than ``count`` sets of its values have a mean of at most
    0. So the difference must be above minus the mean of the set that is the count-th from below; the values of that set
    are among the ``count`` smallest ones.
    """
    few = min(seeds, count)
    lowest = np.sort(np.random.default_rng(0).standard_normal((SIMULATED, seeds)), 1)[:, :few]
    sets = np.array(_lowest_sets(few, count), np.float64).T
    sets /= sets.sum(0)
    parts = np.array_split(lowest, -(-SIMULATED * sets.shape[1] // 12_000))  # parts this small use memory again
    return np.sort(-np.concatenate([np.partition(part @ sets, count - 1)[:, count - 1] for part in parts]))


def _lowest_sets(size: int, count: int) -> list[list[bool]]:
    """Return the sets of ``size`` sorted values, as rows of bool, whose mean can be among the ``count`` lowest.

    A set's mean does not rise if one of its values is replaced by the next smaller one, if its largest is left out, or
    if the value next to its smallest one is added. So a set from which these steps lead to ``count`` others is not
    needed, nor is one from which they lead to such a set.
    """
    position: dict[int, int] = {}  # set, a bit for each value -> its place in the result
    below: dict[int, int] = {}  # set -> the sets that the steps lead to, a bit for each place

    def mean(bits: int) -> float:
        """Return the mean of the values' ranks, which each step lowers."""
        return sum(i for i in range(size) if bits >> i & 1) / bits.bit_count()

    for bits in sorted(range(1, 2**size), key=mean):
        steps = [bits - (1 << i) + (1 << i - 1) for i in range(1, size) if bits >> i & 1 and not bits >> i - 1 & 1]
        if bits & (bits - 1):
            steps.append(bits - (1 << bits.bit_length() - 1))
        if not bits & 1:
            steps.append(bits | (bits & -bits) >> 1)
        if any(step not in below for step in steps):
            continue
        reached = 0
        for step in steps:
            reached |= below[step] | 1 << position[step]
        if reached.bit_count() < count:
            position[bits], below[bits] = len(position), reached
    return [[bool(bits >> i & 1) for i in range(size)] for bits in position]


def power(difference: float, sd: float, seeds: int, level: float = LEVEL) -> float:
    """Return the probability that the exact test finds a true difference, if differences have a normal distribution.

    ``sd`` is that of the differences. It is simulated for up to FEW seeds, and where only the FEW_SETS most extreme
    signs are significant; else it is the power of the paired t-test, which the exact test comes close to.
    """
    if smallest_p(seeds) > level:
        return 0.0
    if sd == 0:
        return float(difference != 0)
    effect = abs(difference) / sd
    count = int(level * (1 + TIES) * 2.0 ** min(seeds - 1, 99))
    if seeds <= FEW or count <= FEW_SETS:
        return float(np.searchsorted(_critical(seeds, count), [effect, -effect]).sum()) / SIMULATED  # of both signs
    from scipy.special import nctdtr

    bound, shift = student(level, seeds - 1), effect * sqrt(seeds)
    above, below = 1 - nctdtr(seeds - 1, shift, bound), nctdtr(seeds - 1, shift, -bound)
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))  # NaN: 1 and 0 up to rounding


@cache
def seeds_needed(difference: float, sd: float, level: float = LEVEL, chance: float = POWER) -> float:
    """Return how many seeds find a true difference with a chance; infinite if not even MOST do."""
    low, high = seeds_for(level) - 1, seeds_for(level)
    while power(difference, sd, high, level) < chance:
        low, high = high, 2 * high
        if low > MOST:
            return inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, sd, middle, level) >= chance else (middle, high)
    return high


def seeds_for_equal(margin: float, sd: float, level: float = LEVEL) -> float:
    """Return how many seeds show with POWER that two methods of the same mean are equal within a margin.

    Each of the two one-sided tests, at ``level``, may fail in half of the other cases. Where both fail, that counts
    twice, so that this is at most a little more than what is needed.
    """
    return seeds_needed(margin, sd, 2 * level, (1 + POWER) / 2)


def smallest_difference(sd: float, seeds: int, level: float = LEVEL, chance: float = POWER) -> float:
    """Return the smallest true difference that so many seeds find with a chance; infinite if they can't find any."""
    if smallest_p(seeds) > level:
        return inf
    return sd * _smallest_effect(seeds, level, chance)


def largest_sd(margin: float, seeds: int, level: float = LEVEL) -> float:
    """Return the largest sd of the differences at which so many seeds show equality as in seeds_for_equal; 0: none."""
    return margin / smallest_difference(1.0, seeds, 2 * level, (1 + POWER) / 2)


@cache
def _smallest_effect(seeds: int, level: float, chance: float) -> float:
    """Return the smallest true difference, in units of its sd, that so many seeds find with a chance."""
    low, high = 0.0, 1.0
    while power(high, 1.0, seeds, level) < chance:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, 1.0, seeds, level) >= chance else (middle, high)
    return high


def area(labelled: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Return the area under curves [..., budgets] by the trapezoid rule, divided by the span of the budgets.

    One budget: the values themselves.
    """
    budgets, curves = np.asarray(labelled, np.float64), np.asarray(values, np.float64)
    if len(budgets) == 1:
        return curves[..., 0]
    return np.asarray(np.trapezoid(curves, budgets, axis=-1) / (budgets[-1] - budgets[0]))


def labels_needed(labelled: ArrayLike, curve: ArrayLike, value: float) -> float:
    """Return the labels at which a curve [budgets] first reaches a value, between budgets linearly; inf if never."""
    budgets, reached = np.asarray(labelled, np.float64), np.asarray(curve, np.float64)
    for at in range(len(budgets)):
        if reached[at] >= value:
            if at == 0 or reached[at] == value:
                return float(budgets[at])
            share = (value - reached[at - 1]) / (reached[at] - reached[at - 1])
            return float(budgets[at - 1] + share * (budgets[at] - budgets[at - 1]))
    return inf


def student(level: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t, as scipy.stats does, whose import takes half a second."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float, float]:
    """Return (mean, lower, upper bound) of values [n] by Student's t; the bounds are infinite for one value."""
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, -inf, inf
    half = float(student(level, len(found) - 1) * found.std(ddof=1) / sqrt(len(found)))
    return mean, mean - half, mean + half


def exact_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the bounds of the means that the exact test of values [n] does not reject, at level / 2 on each side.

    So it is on one side of 0 whenever the test finds a difference. None if so few values can't reject any mean.
    """
    found = np.asarray(values, np.float64)
    return None if smallest_p(len(found)) > level else (_lowest(found, level / 2), -_lowest(-found, level / 2))


def _lowest(values: NDArray[np.float64], level: float) -> float:
    """Return the lowest mean that the one-sided test does not reject: its p grows with the mean that is tested."""
    low, high = float(values.min()), float(values.mean())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_greater(values - middle) <= level else (low, middle)
    return low


def labels_interval(
    labelled: ArrayLike, curves: ArrayLike, values: ArrayLike, level: float = LEVEL
) -> tuple[float, float]:
    """Return the (lowest, highest) labels at which curves [seeds, budgets] may reach values [seeds], seed by seed.

    These are the labels, between budgets linearly, at which the mean of value - curve over the seeds is not
    significantly apart from 0 by Student's t: the interval of Fieller (1954, J. R. Stat. Soc. B 16). It needs no
    crossing in any single seed. A bound beyond the first or last budget is infinite; so are both for one seed.
    """
    budgets, apart = np.asarray(labelled, np.float64), np.asarray(values)[:, None] - np.asarray(curves, np.float64)
    if len(apart) < 2:
        return -inf, inf
    factor = student(level, len(apart) - 1) ** 2 / len(apart)

    def excess(differences: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is at most 0 where the mean is not apart from 0; along a segment it is quadratic."""
        return np.asarray(differences.mean(0) ** 2 - factor * differences.var(0, ddof=1))

    means, at_budgets = apart.mean(0), excess(apart)
    start, middle, end = at_budgets[:-1], excess((apart[:, :-1] + apart[:, 1:]) / 2), at_budgets[1:]
    crossing = means[:-1] / _or_nan(means[:-1] - means[1:])  # the mean is 0; the root may be double
    shares = np.array([*_roots(2 * (start + end) - 4 * middle, 4 * middle - 3 * start - end, start), crossing])
    labels = budgets[:-1] + shares * np.diff(budgets)
    within = [*budgets[at_budgets <= 0].tolist(), *labels[(shares >= 0) & (shares <= 1)].tolist()]
    if not within:
        return (inf, inf) if apart.mean() > 0 else (-inf, -inf)
    low, high = min(within), max(within)  # the crossing of the mean curves is always within
    return (
        -inf if low == budgets[0] or means[0] < 0 else low,
        inf if high == budgets[-1] or (means > 0).all() else high,
    )


def _roots(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the real roots of a x^2 + b x + c, in the form that doesn't cancel; NaN where there are none."""
    inside = b**2 - 4 * a * c
    double = (inside < 0) & (np.sqrt(np.abs(inside)) < 2 * np.abs(a) * TIES)  # by rounding only
    root = np.sqrt(np.where(double, 0.0, np.where(inside < 0, np.nan, inside)))
    larger = -(b + np.copysign(root, b)) / 2
    return larger / _or_nan(a), c / _or_nan(larger)


def _or_nan(divisors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return divisors with NaN for 0, so that what they divide is NaN without a warning."""
    return np.where(divisors == 0, np.nan, divisors)


def in_order(ps: Sequence[float], order: Sequence[float]) -> list[float]:
    """Return p-values adjusted by a fixed sequence: each is the largest of its own and of those before it.

    ``order``: the sequence goes from its highest value to its lowest. It may come from the data if flips of signs leave
    it as it is, such as the sum of squares (Kropf et al. 2004, J. Stat. Plan. Inference 125). No p-value is multiplied,
    so that few seeds show many large differences; a small one hides those after it.
    """
    adjusted, highest = [1.0] * len(ps), 0.0
    for index in sorted(range(len(ps)), key=lambda i: -order[i]):
        highest = max(highest, ps[index])
        adjusted[index] = highest
    return adjusted

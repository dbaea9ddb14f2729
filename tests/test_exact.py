"""The tests of the report against brute force, scipy and numbers worked out by hand."""

from __future__ import annotations

from itertools import pairwise, product
from math import inf, nan

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.report import statistics

DIFFERENCES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=9)


def every_sign(differences: list[float]) -> np.ndarray:
    """Return the sums of all signs of the differences, as a table would list them."""
    return np.array([np.dot(signs, differences) for signs in product([-1, 1], repeat=len(differences))])


@given(DIFFERENCES)
def test_p_is_the_share_of_signs_that_are_as_extreme(differences: list[float]) -> None:
    sums, found = every_sign(differences), sum(differences)
    assert statistics.p_differ(differences) == pytest.approx((abs(sums) >= abs(found)).mean())
    assert statistics.p_greater(differences) == pytest.approx((sums >= found).mean())
    assert statistics.p_differ([-d for d in differences]) == statistics.p_differ(differences)


@given(st.lists(st.floats(-5, 5).filter(lambda d: abs(d) > 1e-3), min_size=2, max_size=8, unique=True))
def test_p_is_that_of_scipy(differences: list[float]) -> None:
    def mean(sample: np.ndarray, axis: int) -> np.ndarray:
        return sample.mean(axis)

    near = abs(abs(every_sign(differences)) - abs(sum(differences))) < 1e-9
    assume(near.sum() == 2)  # scipy does not count ties that its rounding hides
    for alternative, ours in (("two-sided", statistics.p_differ), ("greater", statistics.p_greater)):
        theirs = stats.permutation_test(
            (np.array(differences),), mean, permutation_type="samples", n_resamples=inf, alternative=alternative
        )
        assert ours(differences) == pytest.approx(theirs.pvalue)


def test_p_by_hand() -> None:
    # the quickstart: LC and DAST-AL minus Ran, in points of the area under the curve, seeds 0 to 2
    assert statistics.p_differ([1.48, 2.39, 2.71]) == 0.25
    assert statistics.p_differ([-2.32, 5.14, 4.65]) == 0.5
    assert statistics.p_differ([1.0] * 5) == 0.0625
    assert statistics.p_differ([0.1 + 0.2, -0.3]) == 1.0, "they are equal up to rounding"
    assert statistics.p_differ([]) == statistics.p_differ([0.0, 0.0]) == 1.0
    assert statistics.p_two_samples([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    assert statistics.p_two_samples([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert statistics.p_two_samples([], [1.0]) == 1.0
    assert statistics.p_two_samples([1.0] * 12, [2.0] * 12) == pytest.approx(0, abs=1e-4), "of random splits"


def test_many_seeds_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statistics.p_differ([1.0] * 40) == 2.0**-39
    assert statistics.p_differ([1.0] * 1000) == 2e-5, "the values' own signs, among 100 000"
    differences = np.random.default_rng(1).normal(0.2, 1, 100)
    assert statistics.p_differ(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    exact = statistics.p_greater(differences[:20])
    monkeypatch.setattr(statistics, "EXACT", 10)
    assert statistics.p_greater(differences[:20]) == pytest.approx(exact, abs=0.01)


@given(
    st.lists(st.integers(0, 3).map(float), min_size=1, max_size=4),
    st.lists(st.integers(0, 3).map(float), min_size=1, max_size=4),
)
def test_two_samples_are_split_in_every_way(one: list[float], other: list[float]) -> None:
    everything = np.array(one + other)
    found = abs(np.mean(one) - np.mean(other))
    splits = [
        abs(everything[list(chosen)].mean() - np.delete(everything, list(chosen)).mean())
        for chosen in product(range(len(everything)), repeat=len(one))
        if list(chosen) == sorted(set(chosen))
    ]
    expected = np.mean([each >= found - 1e-9 for each in splits])
    assert statistics.p_two_samples(one, other) == pytest.approx(expected)


def test_equality_needs_a_margin() -> None:
    close = [0.1, -0.1, 0.2, 0.0, -0.2]
    assert statistics.p_equal(close, 1.0) == 1 / 32 == statistics.p_greater([1.0 - d for d in close])
    assert statistics.p_equal([0.9, 1.2, 1.1], 1.0) > 0.5
    assert statistics.p_equal([5.0] * 5, 1.0) == 1.0
    with pytest.raises(ValueError, match="a margin must be positive, got 0"):
        statistics.p_equal(close, 0)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_rejects_what_the_steps_reject(ps: list[float]) -> None:
    adjusted = statistics.holm(ps)
    for level in (0.01, 0.05, 0.3):
        rejected = []
        for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
            if ps[index] * (len(ps) - rank) > level:
                break
            rejected.append(index)
        assert sorted(i for i, p in enumerate(adjusted) if p <= level) == sorted(rejected)


def test_what_seeds_can_show() -> None:
    assert [statistics.smallest_p(n) for n in (1, 3, 5, 6)] == [1.0, 0.25, 0.0625, 0.03125]
    assert statistics.seeds_for(0.05) == 6 and statistics.seeds_for(0.05 / 10) == 9
    assert statistics.power(100.0, 0.1, 3) == 0.0, "three seeds can't show anything"
    assert statistics.power(0.0, 1.0, 10) == pytest.approx(0.05, abs=0.01), "the level"
    assert statistics.power(0.0, 0.0, 10) == 0.0 and statistics.power(1.0, 0.0, 10) == 1.0
    assert statistics.seeds_needed(2.0, 2.0) in (10, 11), "10 by the t-test"
    assert statistics.seeds_needed(100.0, 0.1) == 6
    assert statistics.seeds_needed(0.0, 1.0) == inf == statistics.smallest_difference(1.0, 5)
    for sd, seeds in ((0.4, 6), (2.0, 10)):
        found = statistics.smallest_difference(sd, seeds)
        assert statistics.power(found, sd, seeds) == pytest.approx(0.8, abs=1e-6)
        assert statistics.seeds_needed(found * 1.001, sd) == seeds
    assert statistics.smallest_difference(0.0, 6) == 0.0


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=7).map(sorted), st.data())
def test_the_sets_of_values_that_are_tried_have_the_lowest_means(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 2 ** len(values) - 1))
    every = np.array([*product([False, True], repeat=len(values))])[1:]
    tried = np.array(statistics._lowest_sets(len(values), count))
    means, found = (sorted(sets @ values / sets.sum(1)) for sets in (every, tried))
    assert found[:count] == means[:count] and len({*map(tuple, tried)}) == len(tried)


def test_few_of_all_sets_are_tried() -> None:
    assert statistics._lowest_sets(12, 1) == [[True] + [False] * 11], "the smallest value alone"
    assert len(statistics._lowest_sets(12, 20)) < 200 < len(statistics._lowest_sets(12, 102)) < 2**12 / 3


def test_power_is_how_often_the_exact_test_finds_a_difference() -> None:
    random = np.random.default_rng(0)
    for difference, seeds in ((1.5, 6), (1.5, 10), (0.8, 15)):
        found = [statistics.p_differ(random.normal(difference, 1.0, seeds)) <= 0.05 for _ in range(4000)]
        assert np.mean(found) == pytest.approx(statistics.power(difference, 1.0, seeds), abs=0.03)


@pytest.mark.parametrize("level", [0.05, 0.05 / 12, 0.0025 / 4, 0.0025 / 9])
@pytest.mark.parametrize("seeds", [13, 14, 20, 30])
def test_power_is_a_number_and_grows_with_the_difference(seeds: int, level: float) -> None:
    """The noncentral t has no value far from its mean, where a power is 1 or 0."""
    found = [statistics.power(effect, 1.0, seeds, level) for effect in np.linspace(0, 12, 121)]
    assert all(b >= a - 1e-9 for a, b in pairwise(found)) and found[0] <= level + 1e-3 and found[-1] > 0.999


def test_power_where_few_signs_are_significant() -> None:
    """At 13 seeds and 0.25 % / 9 all signs must agree: Phi(2)^13 = 0.74, where the t-test has 0.94."""
    assert statistics.power(2.0, 1.0, 13, 0.0025 / 9) == pytest.approx(stats.norm.cdf(2.0) ** 13, abs=0.02)
    random = np.random.default_rng(1)
    for seeds, level, effect in ((13, 0.0025 / 4, 1.2), (14, 0.0025 / 4, 1.2), (13, 0.0025, 1.2), (13, 0.05, 0.8)):
        found = [statistics.p_differ(random.normal(effect, 1.0, seeds)) <= level for _ in range(1000)]
        assert statistics.power(effect, 1.0, seeds, level) == pytest.approx(np.mean(found), abs=0.045)
    assert statistics.smallest_difference(1, 20, 0.0025 / 4) == pytest.approx(1.13, abs=0.03)
    assert statistics.smallest_difference(1, 20, 0.05 / 30) == pytest.approx(1.03, abs=0.03)
    needed = [statistics.seeds_needed(*of) for of in ((1.6, 1, 0.0025 / 4), (1.7, 1, 0.0025 / 3), (1.9, 1, 0.0025 / 4))]
    assert needed == [14, 13, 13], "16 to 22, where a power that was no number was taken for too small"


def test_seeds_for_equality_show_it() -> None:
    random = np.random.default_rng(0)
    for margin, sd in ((1.0, 1.0), (1.0, 0.5)):
        needed = statistics.seeds_for_equal(margin, sd)
        one_less, enough = (
            np.mean([statistics.p_equal(random.normal(0, sd, seeds), margin) <= 0.05 for _ in range(1000)])
            for seeds in (int(needed) - 1, int(needed))
        )
        assert one_less < 0.83 and enough > 0.77
        assert statistics.largest_sd(margin, int(needed)) >= sd > statistics.largest_sd(margin, int(needed) - 1)
    assert statistics.largest_sd(1.0, 4) == 0, "2^-4 is above 5 %"


def test_area_is_the_mean_height() -> None:
    assert statistics.area([10, 20, 40], [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]).tolist() == [8 / 3, 2.0]
    assert statistics.area([10], [[1.0], [2.0]]).tolist() == [1.0, 2.0]


def test_labels_needed() -> None:
    budgets, curve = [100, 200, 300], [0.5, 0.7, 0.6]
    assert statistics.labels_needed(budgets, curve, 0.4) == 100
    assert statistics.labels_needed(budgets, curve, 0.6) == pytest.approx(150)
    assert statistics.labels_needed(budgets, curve, 0.7) == 200
    assert statistics.labels_needed(budgets, curve, 0.8) == inf


@settings(max_examples=25)
@given(st.lists(st.integers(-6, 6).map(float), min_size=6, max_size=7), st.sampled_from([0.05, 0.1]))
def test_the_exact_interval_has_the_means_that_the_test_does_not_reject(values: list[float], level: float) -> None:
    low, high = statistics.exact_interval(values, level) or (nan, nan)
    for mean in np.arange(-7, 7, 1.37):  # which no mean of a set is
        sums, found = every_sign([value - mean for value in values]), sum(values) - mean * len(values)
        rejected = min((sums >= found - 1e-9).mean(), (sums <= found + 1e-9).mean())
        assert (low <= mean <= high) == (rejected > level / 2), (mean, low, high)


def test_exact_intervals_by_hand() -> None:
    assert statistics.exact_interval([1.0, 1.0, 1.0, 1.0, 1.0, 20.0]) == pytest.approx((1, 20)), "the extremes"
    assert statistics.exact_interval([1.0] * 5) is None and statistics.exact_interval([1.0] * 5, 0.1) == (1, 1)
    values = np.random.default_rng(0).normal(1, 1, 20)
    assert statistics.exact_interval(values) == pytest.approx(statistics.interval(values)[1:], abs=0.05)


def test_intervals_are_student_s() -> None:
    values = [1.0, 2.0, 4.0]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.interval(values) == pytest.approx((7 / 3, theirs.low, theirs.high))
    assert statistics.interval([2.0]) == (2.0, -inf, inf)

"""How often the report claims something that is not true: vectorised simulations of whole grids of equal methods."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from test_verdict import entry as table1
from test_verdict import of_log, records

from harness.report import costs, statistics, verdict
from harness.report.comparisons import BEFORE, Comparison, adjusted, kind_of
from harness.report.over_suites import over_suites
from harness.report.verdict import Beside
from harness.results.manifest import SuiteEntry

GRIDS = 10_000
PROMISED = 0.055
Array = NDArray[np.float64]


def all_ps(differences: Array, margin: float | None) -> tuple[Array, Array]:
    """Return (p of a difference, p of equality) [...] of differences [..., n], as p_differ and p_equal do."""
    n = differences.shape[-1]
    signs = np.concatenate([np.ones((2 ** (n - 1), 1)), [*product([-1.0, 1.0], repeat=n - 1)]], 1)
    differ, equal = [], []
    for values in np.array_split(differences.reshape(-1, n), max(1, differences.size // 20_000)):
        found = values.sum(1, keepdims=True) * (1 - 1e-12)
        differ.append((np.abs(values @ signs.T) >= np.abs(found)).mean(1))
        shares = np.zeros(len(values))
        for each in (margin - values, margin + values) if margin else ():
            sums, sum_ = each @ signs.T, each.sum(1, keepdims=True) - 1e-12
            shares = np.maximum(shares, ((sums >= sum_).mean(1) + (-sums >= sum_).mean(1)) / 2)
        equal.append(shares if margin else np.ones(len(values)))
    return np.concatenate(differ).reshape(differences.shape[:-1]), np.concatenate(equal).reshape(differences.shape[:-1])


def all_holm(ps: Array) -> Array:
    """Return p-values [grids, m] adjusted by Holm within each grid."""
    order = ps.argsort(1)
    factors = ps.shape[1] - np.arange(ps.shape[1])
    steps = np.minimum(1, np.maximum.accumulate(np.take_along_axis(ps, order, 1) * factors, 1))
    return np.take_along_axis(steps, order.argsort(1), 1)


def all_kinds(differences: Array, primary: bool, margin: float | None) -> Array:
    """Return the claims [grids, m] on differences [grids, m, n]: 0 open, 1 better or worse, 2 equal."""
    differ, equal = all_ps(differences, margin)
    alpha = np.full(differ.shape, statistics.LEVEL)
    first = int(primary)
    if primary:
        alpha[differ[:, 0] > statistics.LEVEL, 1:] = BEFORE
    differ[:, first:], equal[:, first:] = all_holm(differ[:, first:]), all_holm(equal[:, first:])
    return np.where(equal <= alpha, 2, np.where(differ <= alpha, 1, 0))


def all_cheaper(differences: Array) -> NDArray[np.bool_]:
    """Return whether any claim on costs is made [grids, m] of differences of seconds [grids, m, n]."""
    ps, _ = all_ps(differences, None)
    order = (-(differences**2).sum(-1)).argsort(1)
    steps = np.maximum.accumulate(np.take_along_axis(ps, order, 1), 1)
    return np.take_along_axis(steps, order.argsort(1), 1) <= costs.LEVEL


def grids(random: np.random.Generator, methods: int, seeds: int, number: int = GRIDS) -> Array:
    """Return the differences [grids, methods - 1, seeds] of equal methods to the first of them."""
    values = random.normal(0, 1, (number, methods, seeds))
    return values[:, 1:] - values[:, :1]


def skewed(random: np.random.Generator, methods: int, seeds: int, number: int = GRIDS) -> Array:
    """Return differences of seconds of methods that cost the same; a few trials take much longer."""
    values = random.lognormal(0, 1, (number, methods, seeds))
    return values[:, 1:] - values[:, :1]


def compared(differences: Array, primary: bool, margin: float | None, suite: str = "s") -> list[Comparison]:
    found = [
        Comparison(suite, "accuracy", f"M{i}", "Ran", dict(enumerate(values)), primary and i == 0, margin)
        for i, values in enumerate(differences.tolist())
    ]
    return adjusted(found)


@pytest.mark.parametrize(("primary", "margin"), [(True, None), (False, None), (True, 1.0), (False, 1.0)])
def test_the_simulation_does_what_the_report_does(primary: bool, margin: float | None) -> None:
    random, numbers = np.random.default_rng(0), {"open": 0, "better": 1, "worse": 1, "equal": 2}
    differences = grids(random, 5, 10, 60) + random.choice([0.0, 1.5], (60, 4, 1))
    expected = [[numbers[kind_of(c)] for c in compared(each, primary, margin)] for each in differences]
    assert all_kinds(differences, primary, margin).tolist() == expected
    assert {0, 1, *({2} if margin else ())} == set(np.ravel(expected))
    seconds = skewed(random, 5, 10, 60) + random.choice([0.0, 3.0], (60, 4, 1))
    cheaper = [[p <= costs.LEVEL for p in costs.adjusted_costs(each)] for each in seconds.tolist()]
    assert all_cheaper(seconds).tolist() == cheaper
    assert 0 < np.mean(cheaper) < 1


@pytest.mark.parametrize("primary", [True, False])
@pytest.mark.parametrize(
    ("seeds", "methods", "margin"),
    [
        *((seeds, 5, margin) for seeds in (3, 6, 10) for margin in (None, 1.0)),
        pytest.param(13, 13, 1.0, marks=pytest.mark.long),
    ],
)
def test_of_suites_of_equal_methods_at_most_5_5_percent_get_any_claim_of_a_difference(
    seeds: int, methods: int, margin: float | None, primary: bool
) -> None:
    random = np.random.default_rng(seeds)
    wrong = (all_kinds(grids(random, methods, seeds), primary, margin) == 1).any(1)
    wrong |= all_cheaper(skewed(random, methods, seeds)).any(1)
    assert wrong.mean() <= PROMISED
    assert wrong.any() == (seeds >= (6 if primary else 8)), "fewer can't show anything among 4 comparisons"


def test_of_methods_that_cost_the_same_few_are_called_cheaper_also_among_others() -> None:
    random = np.random.default_rng(1)
    for sample in (grids, skewed):
        seconds = sample(random, 7, 10)
        seconds[:, :3] += np.array([50.0, 5.0, 0.5])[:, None]  # these cost more; the other three do not
        found = all_cheaper(seconds)
        assert found[:, 3:].any(1).mean() <= costs.LEVEL + 0.001
        assert found[:, 0].mean() > 0.99


def two_sample_ps(ours: Array, theirs: Array) -> Array:
    """Return the exact p [...] that ours [..., m] and theirs [..., n] have the same mean, as p_two_samples does."""
    m, n = ours.shape[-1], theirs.shape[-1]
    both = np.concatenate([ours, theirs], -1).reshape(-1, m + n)
    splits = np.full((comb(m + n, m), m + n), -1 / n)
    for split, chosen in zip(splits, combinations(range(m + n), m), strict=True):
        split[list(chosen)] = 1 / m
    ps = []
    for values in np.array_split(both, max(1, both.size // 20_000)):
        found = np.abs(values[:, :m].mean(1) - values[:, m:].mean(1))[:, None] * (1 - 1e-9)
        ps.append((np.abs(values @ splits.T) >= found).mean(1))
    return np.concatenate(ps).reshape(ours.shape[:-1])


def all_verdicts(ours: Array, theirs: Array) -> Array:
    """Return the verdict [grids, methods] of trials [..., budgets, seeds]: 0 open, 1 deviates, 2 reproduces."""
    ps = two_sample_ps(ours, theirs)
    deviates = (all_holm(ps.reshape(len(ps), -1)).reshape(ps.shape) <= statistics.LEVEL).any(2)
    n, m = theirs.shape[-1], ours.shape[-1]
    apart = np.abs(ours.mean(-1) - theirs.mean(-1)) / (theirs.std(-1, ddof=1) * np.sqrt(1 / n + 1 / m))
    of_range = np.sort(2 * stats.t.sf(apart, n - 1), -1)
    outside = (of_range <= statistics.LEVEL * np.arange(1, ps.shape[2] + 1) / ps.shape[2]).any(2)
    return np.where(deviates, 1, np.where(outside, 0, 2))


def repeated(random: np.random.Generator, shift: float, noise: float = 1.0) -> tuple[Array, Array]:
    """Return (ours, published) [grids, 2 methods, 4 budgets, 6 trials]; the budgets of a trial depend on each other."""
    found = [random.normal(0, 0.7, (GRIDS, 2, 1, 6)) + random.normal(0, 0.7, (GRIDS, 2, 4, 6)) for _ in range(2)]
    return noise * found[0] + shift, found[1]


def test_of_suites_that_repeat_their_sources_at_most_5_percent_have_any_method_that_deviates() -> None:
    kinds = all_verdicts(*repeated(np.random.default_rng(4), 0.0))
    assert 0.01 < (kinds == 1).any(1).mean() <= statistics.LEVEL
    assert (kinds == 2).mean() > 0.9, "a repetition is mostly told as one"


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_of_methods_that_are_two_sd_off_few_reproduce_their_sources(noise: float) -> None:
    """Noise of ours hides a deviation from the exact test, and helps nothing."""
    kinds = all_verdicts(*repeated(np.random.default_rng(5), 2.0, noise))
    assert (kinds == 2).mean() < 0.25


def test_the_simulated_verdicts_are_those_of_the_report() -> None:
    entry_, known = table1(labelled=(2500, 5000, 7500, 10000)), of_log("Ran", 2500)
    made, words = records(entry_), {"open": 0, "deviates from": 1, "reproduces": 2}
    expected = []
    for shift in (0.0, 1.0, 2.0):
        ours, theirs = (each[:20] for each in repeated(np.random.default_rng(6), shift))
        for mine, published in zip(ours, theirs, strict=True):
            cells = [
                Beside(
                    method,
                    labelled,
                    mine[i, j].tolist(),
                    replace(known, trials=(*values,), mean=float(values.mean()), sd=float(values.std(ddof=1)), n=6),
                    [],
                    [],
                )
                for i, method in enumerate(entry_.methods)
                for j, (labelled, values) in enumerate(zip(entry_.labelled, published[i], strict=True))
            ]
            said = {c.text.split(":")[0].split(" ")[0]: c.kind for c in verdict.verdicts(entry_, made, cells)}
            expected.append([words[said.get(method, "open")] for method in entry_.methods])
        assert all_verdicts(ours, theirs).tolist() == expected[-20:]
    assert {0, 1, 2} == set(np.ravel(expected))


def entry(name: str, dataset: str) -> SuiteEntry:
    halves = {name: {"training": {"name": name}} for name in ("Ran", "M0", "M1", "M2", "M3")}
    return SuiteEntry(
        name=name, title=name, dataset=dataset, model="m", recipe="r", methods=[*halves], seeds=[], labelled=[1],
        halves=halves, trials={},
    )  # fmt: skip


@pytest.mark.parametrize("primary", [True, False])
def test_of_reports_of_equal_methods_at_most_5_5_percent_get_any_claim_over_suites(primary: bool) -> None:
    random = np.random.default_rng(2)
    one, other = grids(random, 5, 6), 3 * grids(random, 5, 4)
    both = np.concatenate([one / 6, other / 4], 2)
    wrong = all_kinds(both, primary, None) == 1
    assert 0.02 < wrong.any(1).mean() <= PROMISED
    entries = [entry("a", "digits"), entry("b", "scenes")]
    for number in range(30):
        each = compared(one[number], primary, None, "a") + compared(other[number], primary, None, "b")
        found = [kind_of(c) != "open" for c in over_suites(entries, each)]
        assert found == wrong[number].tolist()


@pytest.mark.parametrize("dataset", ["digits", "scenes"])
def test_suites_on_one_dataset_share_the_sign_of_a_seed(dataset: str) -> None:
    random, wrong = np.random.default_rng(3), 0
    entries = [entry("a", "digits"), entry("b", dataset)]
    for _ in range(600):  # what a seed does to a method, it does in both suites
        seed = random.normal(0, 1, (1, 8))
        each = [compared(seed + random.normal(0, 0.2, (1, 8)), False, None, name) for name in "ab"]
        wrong += any(kind_of(c) != "open" for c in over_suites(entries, each[0] + each[1]))
    assert (wrong / 600 <= PROMISED + 0.02) == (dataset == "digits"), "as if independent, it would be wrong too often"

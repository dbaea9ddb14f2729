"""The other statistics of the report against scipy and numbers by hand: wins, speed-up, costs, several suites."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_report import LABELLED, METHODS, record, run_dir, suite

from harness.report import statistics
from harness.report.cautions import cautions
from harness.report.comparisons import BEFORE, Comparison, areas, comparisons, kind_of, significantly_best
from harness.report.costs import cost_claims, costs, not_comparable
from harness.report.formats import NOTHING
from harness.report.over_suites import claims_over_suites, over_suites
from harness.report.speed_up import factor, speed_up_table
from harness.report.wins import no_matrix, pairs, ranks, too_few, win_table
from harness.report.write import write
from harness.results.manifest import SuiteEntry
from harness.results.records import COST_PHASES, CycleRecord

NAMES = ("Ran", "A", "B")
HALVES = {"training": {"name": "cross_entropy"}, "acquisition": {"name": "random"}}


def many(seeds: int = 10, name: str = "digits", **changes: Any) -> tuple[SuiteEntry, list[CycleRecord]]:
    """Return a suite and its records: A is 4 points above Ran, B 3 points below; A takes twice as long."""
    random = np.random.default_rng(len(name))
    records = []
    for at, method in enumerate(NAMES):
        for seed in range(seeds):
            for cycle in range(len(LABELLED)):
                value = 0.5 + 0.1 * cycle + (0.0, 0.04, -0.03)[at] + float(random.normal(0, 0.003))
                phases = dict.fromkeys(COST_PHASES, 0.0) | {"train": (10.0, 20.0, 10.0)[at] + random.normal(0, 0.1)}
                r = record(method, seed, cycle, value, trial=f"{name}-{method}-{seed}", suite=name, dataset=name)
                records.append(replace(r, seconds=r.seconds | phases))
    entry = suite(
        name=name, dataset=name, methods=[*NAMES], seeds=[*range(seeds)],
        halves={m: HALVES | ({"acquisition": {"name": m}} if m != "Ran" else {}) for m in NAMES},
        trials={f"{name}-{m}-{s}": {"method": m, "seed": s} for m in NAMES for s in range(seeds)}, **changes,
    )  # fmt: skip
    return entry, records


# --------------------------------------------------------------------------------------------------------- win matrix


def test_pairs_have_scipy_s_p_and_wins_are_budgets() -> None:
    entry, records = many(7)
    found = pairs(entry, records)
    assert [(p.row, p.column, p.n) for p in found] == [("Ran", "A", 7), ("Ran", "B", 7), ("A", "B", 7)]
    by_method = areas(entry, records, "accuracy")
    for pair in found:
        theirs = stats.permutation_test(
            (np.subtract([*by_method[pair.row].values()], [*by_method[pair.column].values()]),),
            np.mean,
            permutation_type="samples",
            n_resamples=inf,
        )
        assert pair.p == pytest.approx(theirs.pvalue) == 2 / 128
        assert pair.adjusted == pytest.approx(3 * pair.p) and pair.wins == len(LABELLED)
    assert ranks(entry, records) == {"Ran": 2.0, "A": 1.0, "B": 3.0}
    caption, long, shown = win_table(entry, records) or ("", {}, None)
    assert shown is not None and shown.to_numpy().tolist() == [
        ["Ran", NOTHING, NOTHING, "3", "3", "2.00"],
        ["A", "3", NOTHING, "3", "6", "1.00"],
        ["B", NOTHING, NOTHING, NOTHING, "0", "3.00"],
        ["penalty (sum)", "3", "0", "6", "9", ""],
    ]
    assert "at most 5 % after Holm over 3 pairs" in caption and len(long[""]) == 3


def test_no_budget_of_a_pair_counts_unless_aubc_differs() -> None:
    entry, records = many(7)
    for at, r in enumerate(records):  # A is above Ran at 100 images in every seed, and as far below at the others
        if r.method == "A":
            ran = next(o for o in records if (o.method, o.seed, o.cycle) == ("Ran", r.seed, r.cycle))
            sign = 1 if r.seed % 2 else -1
            value = ran.metrics["accuracy"] + (0.05 if r.cycle == 0 else 0.05 * sign)
            records[at] = replace(r, metrics={"accuracy": value})
    (pair, *_) = pairs(entry, records)
    assert pair.adjusted > 0.05 and pair.wins == 0


def test_few_seeds_fill_no_matrix() -> None:
    entry, records = many(6)
    assert win_table(entry, records) is None and too_few(entry, [pair.n for pair in pairs(entry, records)]) == 7
    assert no_matrix(entry, records) == ["6 seeds can't fill a win matrix of 3 pairs of methods; 7 seeds can."]
    assert no_matrix(*many(7)) == [] == no_matrix(entry, [r for r in records if r.method != "B"])
    assert pairs(entry, []) == [] and ranks(entry, []) == {}
    more = entry.model_copy(update={"methods": [*NAMES, "C"]})  # which has no results yet
    assert no_matrix(more, records) == ["6 seeds can't fill a win matrix of 6 pairs of methods; 8 seeds can."]
    assert {p.adjusted for p in pairs(*many(7))} == {3 * 2 / 128} and {p.adjusted for p in pairs(more, many(7)[1])} == {
        6 * 2 / 128
    }


def test_ranks_share_ties() -> None:
    entry, records = many(1)
    same = [replace(r, metrics={"accuracy": 0.5 if r.method != "B" else 0.6}) for r in records]
    assert ranks(entry, same) == {"Ran": 2.5, "A": 2.5, "B": 1.0}


# ----------------------------------------------------------------------------------------------------------- speed-up


def test_a_factor_by_hand() -> None:
    budgets, curve = [100, 200, 400], [50.0, 60.0, 70.0]
    assert factor(budgets, curve, 65.0, 200) == 1.5  # 300 labels
    assert factor(budgets, curve, 70.0, 200) == 2.0 and factor(budgets, curve, 70.1, 200) == inf
    assert factor(budgets, curve, 50.0, 200) == 0.5 and factor(budgets, curve, 49.9, 200) == -inf
    assert factor(budgets, [50.0, 65.0, 60.0], 62.0, 200) == pytest.approx(0.9), "the first crossing"


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_the_interval_is_where_student_s_test_finds_no_difference(seeds: int, number: int) -> None:
    random = np.random.default_rng(number)
    budgets = np.array([10.0, 20.0, 40.0, 80.0])
    curves = np.array([1.0, 2.0, 3.0, 4.0]) + random.normal(0, 0.6, (seeds, 4))
    values = random.choice([0.0, 2.3, 5.0]) + random.normal(0, 0.4, seeds)
    low, high = statistics.labels_interval(budgets, curves, values)
    grid = np.linspace(10, 80, 1401)
    at = np.array([np.interp(grid, budgets, curve) for curve in curves])
    accepted = grid[stats.ttest_1samp(values[:, None] - at, 0).pvalue > 0.05]
    if len(accepted) == 0:  # but perhaps between two points of the grid
        assert low == high or abs(high - low) < 0.05
        return
    assert max(low, 10.0) == pytest.approx(accepted[0], abs=0.051) or max(low, 10.0) < accepted[0]
    assert min(high, 80.0) == pytest.approx(accepted[-1], abs=0.051) or min(high, 80.0) > accepted[-1]
    for bound in (low, high):  # exactly where the test turns
        if abs(bound) < inf:
            differences = values - [np.interp(bound, budgets, curve) for curve in curves]
            assert stats.ttest_1samp(differences, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_intervals_without_noise_or_without_seeds() -> None:
    budgets, curve = [100, 200, 400], [50.0, 60.0, 70.0]
    assert statistics.labels_interval(budgets, [curve] * 3, [65.0] * 3) == pytest.approx((300, 300))
    assert statistics.labels_interval(budgets, [curve] * 3, [80.0] * 3) == (inf, inf)
    assert statistics.labels_interval(budgets, [curve] * 3, [40.0] * 3) == (-inf, -inf)
    assert statistics.labels_interval(budgets, [curve], [65.0]) == (-inf, inf)
    noisy = [[50.0, 69.0, 70.0], [50.0, 73.0, 70.0], [50.0, 65.0, 70.0]]  # may reach 71 at 200, but not at 400
    low, high = statistics.labels_interval(budgets, noisy, [71.0] * 3)
    assert 100 < low < 200 and high == inf, "the mean curve does not reach it"


def test_the_interval_covers_the_true_factor() -> None:
    random, covered = np.random.default_rng(0), 0
    budgets, curve = np.array([100.0, 200.0, 400.0]), np.array([50.0, 60.0, 70.0])
    for _ in range(500):
        low, high = statistics.labels_interval(
            budgets, curve + random.normal(0, 1, (3, 3)), 65 + random.normal(0, 1, 3)
        )
        covered += low <= 300 <= high
    assert 0.93 < covered / 500 < 1, "at three seeds"


def test_the_table_of_speed_ups() -> None:
    _, long, shown = speed_up_table(*many()) or ("", {}, None)
    # A has 64 and 74 % where Ran has 60 and 70 %: Ran needs 280 labels for the former and never reaches the latter
    assert shown is not None and shown["method"].tolist() == ["A", "B"] and [*shown.columns[1:]] == ["200", "400", "n"]
    rows = long[""].set_index(["method", "labelled"])
    assert rows.loc[("A", 200), "factor"] == pytest.approx(1.4, abs=0.05)
    assert rows.loc[("A", 200), "low"] < rows.loc[("A", 200), "factor"] < rows.loc[("A", 200), "high"]
    assert rows.loc[("A", 400), "factor"] == inf == rows.loc[("A", 400), "low"]
    assert shown["400"][0] == ">1.00 (>1.00 to >1.00)"
    by_seed = long["_by_seed"]
    assert len(by_seed) == 2 * 2 * 10 and (by_seed["factor"][by_seed["labelled"] == 400][:10] == inf).all()
    entry, records = many()
    assert speed_up_table(entry, [r for r in records if r.method != "Ran"]) is None
    assert speed_up_table(entry.model_copy(update={"labelled": [100]}), records) is None


# -------------------------------------------------------------------------------------------------------------- costs


def test_costs_are_training_and_selection_of_all_cycles() -> None:
    entry, records = many(1)
    seconds = [sum(r.seconds[p] for p in COST_PHASES) for r in records if r.method == "A"]
    assert costs(entry, records)["A"] == {0: pytest.approx(sum(seconds))}
    scored = [replace(r, seconds=r.seconds | {"score": 5.0, "select": 5.0}) for r in records]
    assert costs(entry, scored)["A"] == {0: pytest.approx(sum(seconds) + 20)}, "the last cycle selects nothing"
    assert costs(entry, records[1:]).keys() == {"A", "B"}
    records[0].seconds.pop("train")
    assert costs(entry, records).keys() == {"A", "B"}


def test_cheaper_is_claimed_with_what_is_known_of_aubc() -> None:
    entry, records = many()
    one, other = cost_claims(entry, records, comparisons([(entry, records)]))
    assert (one.kind, other.kind) == ("cheaper", "open") and [c.method for c in one.about] == ["A"]
    assert re.fullmatch(
        r"Ran is cheaper than A, but worse: its trials take 30\.\d s, the other's (1\.99|2\.00) times as long; "
        r"p = 0\.002, 10 seeds\.",
        one.text,
    )
    assert re.fullmatch(
        r"B: no difference of cost to Ran shown \(p = 0\.\d+, which must be at most 0\.0025; 10 seeds\): a trial takes "
        r"1\.00 times as long; (about \d+|no number of) seeds would find one of this size\.",
        other.text,
    )
    swapped = entry.model_copy(update={"primary": ["B", "A"]})
    (one,) = cost_claims(swapped, records, comparisons([(swapped, records)]))
    assert one.text.startswith("Ran, B are cheaper than A, but worse: a trial takes 0.50 times the ")
    equal = entry.model_copy(update={"equal_within": 10.0})
    (one, _) = cost_claims(equal, records, comparisons([(equal, records)]))
    assert one.text.startswith("Ran is cheaper than A and equal within 10:")


def test_times_that_are_not_comparable_are_not_compared() -> None:
    entry, records = many()
    found = comparisons([(entry, records)])
    for change, reason in (
        ({"device": "H100"}, "the trials ran on different devices (H100, cpu)"),
        ({"device_share": 3}, "between 1 and 3 trials shared a device"),
        ({"threads": 4}, "the trials had between 1 and 4 threads"),
    ):
        mixed = [replace(records[0], **change), *records[1:]]
        assert not_comparable(mixed) == reason
        assert [c.text for c in cost_claims(entry, mixed, found)] == [f"Costs are not compared: {reason}."]
    assert not_comparable([replace(r, device_share=3) for r in records]) is None
    few = [r for r in records if r.seed < 9]
    (claim,) = cost_claims(entry, few, comparisons([(entry, few)]))
    assert claim.text == "9 seeds can't show that a method is cheaper; 10 seeds can."
    assert cost_claims(entry, records, []) == [] == cost_claims(entry, [], found)


def test_a_method_with_few_seeds_keeps_no_other_from_being_compared() -> None:
    entry, records = many()
    some = [r for r in records if (r.method, r.seed) != ("B", 0)]
    one, few = cost_claims(entry, some, comparisons([(entry, some)]))
    assert one.text.startswith("Ran is cheaper than A") and one.text.endswith("p = 0.002, 10 seeds.")
    assert few.text == "B: 9 seeds can't show that a method is cheaper; 10 seeds can."


def test_seconds_of_the_reference_are_those_of_each_methods_seeds() -> None:
    entry, records = many(12, equal_within=50.0)
    slower = {(m, s): {"train": 50.0, "score": 9.0 * (m == "B")} for m in ("Ran", "B") for s in range(12)}
    for at, r in enumerate(records):  # the last two seeds of Ran and B are slow, and A has none of them
        phases = slower[r.method, r.seed] if r.seed > 9 and r.method != "A" else {"score": 9.0 * (r.method == "B")}
        records[at] = replace(r, seconds=r.seconds | phases)
    some = [r for r in records if r.method != "A" or r.seed < 10]
    (one,) = cost_claims(entry, some, comparisons([(entry, some)]))
    assert re.search(
        r"cheaper than A, B and equal within 50: its trials take 30\.\d to 50\.\d s, the others' ", one.text
    )


def test_a_fixed_sequence_by_hand() -> None:
    assert statistics.in_order([0.01, 0.2, 0.001], [1.0, 2.0, 3.0]) == [0.2, 0.2, 0.001]
    assert statistics.in_order([], []) == []


# -------------------------------------------------------------------------------------------------------- over suites


def test_three_seeds_of_two_suites_show_what_one_can_t() -> None:
    suites = [many(4, "digits"), many(4, "scenes")]
    compared = comparisons(suites)
    assert {c.mean > 0 for c in compared if c.method == "A"} == {True}
    found = over_suites([entry for entry, _ in suites], compared)
    assert [(c.method, len(c.values), [*c.by_suite]) for c in found] == [
        ("A", 8, ["digits", "scenes"]),
        ("B", 8, ["digits", "scenes"]),
    ]
    of_a = [c for c in compared if c.method == "A"]
    assert found[0].mean == pytest.approx(np.mean([c.mean for c in of_a]))
    assert found[0].p == 2 / 256
    better, worse = claims_over_suites(found)
    assert better.text == (
        f"Over 2 suites of 4 seeds, A (+{found[0].mean:.2f}) is better than Ran, in mean points of accuracy's AUBC; "
        "p = 0.016."
    )
    assert (better.kind, worse.kind) == ("better", "worse")


def test_p_over_suites_is_scipy_s() -> None:
    """Five seeds of one suite and three of another: each suite counts alike, whatever its seeds and its spread."""
    random = np.random.default_rng(0)
    samples = random.normal(1, 1, 5), random.normal(1, 3, 3)

    def mean(sample: Any, axis: int) -> Any:
        return sample[..., :5].mean(axis) + sample[..., 5:].mean(axis)

    theirs = stats.permutation_test((np.concatenate(samples),), mean, permutation_type="samples", n_resamples=inf)
    entries = [many(1, name)[0] for name in ("digits", "scenes")]
    compared = [
        Comparison(entry.name, "accuracy", "A", "Ran", dict(enumerate(sample.tolist())))
        for entry, sample in zip(entries, samples, strict=True)
    ]
    (found,) = over_suites(entries, compared)
    assert found.p == pytest.approx(theirs.pvalue)


def test_others_wait_over_suites_for_a_primary_comparison_without_results() -> None:
    suites = [many(4, "digits", primary=["A", "Ran"]), many(4, "scenes", primary=["A", "Ran"])]
    entries = [entry for entry, _ in suites]
    found = over_suites(entries, comparisons(suites))
    assert [(c.method, c.primary, c.alpha) for c in found] == [("A", True, 0.05), ("B", False, 0.05)]
    (one, of_one), (other, of_other) = suites
    found = over_suites(entries, comparisons([(one, of_one), (other, [r for r in of_other if r.method != "A"])]))
    assert [(c.method, c.alpha) for c in found] == [("B", BEFORE)]
    third = one.model_copy(update={"name": "c", "primary": ["B", "Ran"]})  # A is not primary in all its suites
    found = over_suites([*entries, third], comparisons(suites))
    assert [(c.method, c.alpha) for c in found] == [("A", 0.05), ("B", 0.05)]


def test_only_what_is_the_same_is_averaged() -> None:
    (one, of_one), (other, of_other) = many(4, "digits"), many(4, "scenes")
    as_miou = [replace(r, metrics={"miou": r.metrics["accuracy"]}) for r in of_other]
    assert over_suites([one, other], comparisons([(one, of_one), (other, as_miou)])) == [], "another metric"
    changed = other.model_copy(update={"halves": other.halves | {"A": {"training": {"name": "y"}}}})
    found = over_suites([one, changed], comparisons([(one, of_one), (changed, of_other)]))
    assert [c.method for c in found] == ["B"], "another training"
    swapped = other.model_copy(update={"primary": ["Ran", "A"]})
    assert over_suites([one, swapped], comparisons([(one, of_one), (swapped, of_other)])) == [], "another reference"
    assert over_suites([one], comparisons([(one, of_one)])) == []


def test_what_is_not_shown_over_suites_is_said() -> None:
    suites = [many(2, "digits"), many(2, "scenes")]
    found = over_suites([entry for entry, _ in suites], comparisons(suites))
    (claim,) = claims_over_suites(found)
    assert claim.text == (
        "Over 2 suites of 2 seeds, no difference of A, B to Ran can be shown among 2 comparisons: the smallest "
        "possible p is 0.12; 7 seeds over all suites can."
    )
    waiting = [replace(c, alpha=BEFORE) for c in found]
    assert claims_over_suites(waiting)[0].text.endswith(
        "is 0.12, and it must be at most 0.0013 as the primary comparison is not significant; 11 seeds over all suites "
        "can, or 7 once it is significant."
    )
    equal = [replace(c, differences=dict(enumerate([1.0, -1.0] * 6)), adjusted=1.0) for c in found]
    assert claims_over_suites(equal)[0].text.endswith(
        "no difference to Ran shown: A, B (p of at least 1); no number of seeds over all suites would find differences "
        "of this size."
    )


# ------------------------------------------------------------------------------------------------------- the documents


def test_warnings() -> None:
    entry, records = many()
    found = comparisons([(entry, records)])
    assert cautions(entry, found) == ["WARNING: weak baseline: B is significantly below Ran; check recipe and keys."]
    assert cautions(entry, [c for c in found if c.method == "A"]) == []
    against_a = entry.model_copy(update={"primary": ["B", "A"]})
    found = comparisons([(against_a, records)])
    assert {kind_of(c) for c in found} == {"worse"} and cautions(against_a, found) == [], "Ran is below A, as it may be"
    trained = entry.model_copy(update={"halves": entry.halves | {"Ran": HALVES | {"training": {"name": "y"}}}})
    assert cautions(trained, comparisons([(trained, records)])) == [], "a training that others lack"
    primary = entry.model_copy(update={"primary": ["B", "Ran"]})
    assert cautions(primary, comparisons([(primary, records)])) == [], "it is what the suite is made for"
    one_set = entry.model_copy(update={"settings": {"protocol": {"initial_set": "per_run"}}})
    (sentence,) = cautions(one_set, [])
    assert sentence.startswith("WARNING: all seeds have one initial set")
    assert cautions(one_set.model_copy(update={"seeds": [0]}), []) == []


@pytest.mark.long
def test_only_what_is_significant_is_bold(tmp_path: Path) -> None:
    entry, records = many()
    found = comparisons([(entry, records)])
    assert significantly_best({"Ran": 1.0, "A": 2.0}, found) == "A"
    assert significantly_best({"Ran": 3.0, "A": 2.0}, found) is None is significantly_best({}, [])
    two = [(entry, records), many(10, "scenes")]
    folder = run_dir(tmp_path / "run", [r for _, each in two for r in each], [each for each, _ in two])
    text = " ".join(write(folder).split())
    report = folder / "report"
    page, tex = (report / "digits_accuracy.md").read_text(), (report / "digits_accuracy.tex").read_text()
    assert page.count("**") == 2 and tex.count(r"\bfseries") == 1
    (bold,) = [line for line in page.splitlines() if "**" in line]
    assert bold.startswith("| A ") and bold.rstrip(" |").endswith("**"), "AUBC of A"
    assert "bold: the highest AUBC" in (report / "report.md").read_text().replace("\\", "")
    assert "bold:" not in text + (report / "digits_accuracy.txt").read_text(), "nothing is bold in plain text"
    assert "Over 2 suites of 10 seeds, A (" in text and "weak baseline: B" in text
    for name in ("digits_wins", "digits_speed_up", "over_suites"):
        for ending in ("txt", "md", "tex", "csv"):
            assert (report / f"{name}.{ending}").stat().st_size
    assert not any("**" in path.read_text() for path in report.glob("*_speed_up.md"))


def test_nothing_is_bold_at_three_seeds(tmp_path: Path) -> None:
    entry, records = many(3)
    text = write(run_dir(tmp_path / "run", records, [entry]))
    assert "**" not in (tmp_path / "run" / "report" / "report.md").read_text()
    assert "Bold" not in text and "3 seeds can't show that a method is cheaper" in text
    assert "win matrix of 3 pairs" in text and METHODS[0] == "Ran"

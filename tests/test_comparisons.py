"""What the report claims of methods, and how often it does so wrongly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import inf, isnan
from pathlib import Path

import numpy as np
import pytest
from test_report import LABELLED, METHODS, all_records, record, run_dir, suite

from harness import run
from harness.config.load import load_config
from harness.config.only import only
from harness.report import statistics
from harness.report.claims import claims, foreseen, not_compared
from harness.report.comparisons import BEFORE, Comparison, adjusted, areas, comparisons, kind_of, signed
from harness.report.write import write
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord


def compared(*differences: list[float], primary: bool = False, margin: float | None = None) -> list[Comparison]:
    """Return the comparisons of methods A, B, ... with Ran; the first may be primary."""
    return adjusted(
        [
            Comparison("s", "accuracy", "ABCDEFGHIJ"[i], "Ran", dict(enumerate(values)), primary and i == 0, margin)
            for i, values in enumerate(differences)
        ]
    )


# ---------------------------------------------------------------------------------------------- how often it is wrong


def test_equality_of_methods_that_differ_by_the_margin_is_rarely_claimed() -> None:
    random, grids, wrong = np.random.default_rng(0), 5000, 0
    for _ in range(grids):
        (found,) = compared(random.normal(1.0, 0.5, 6).tolist(), margin=1.0)
        wrong += kind_of(found) == "equal"
    assert 0.02 < wrong / grids < 0.06


# -------------------------------------------------------------------------------------------------------- what it says


def test_only_what_is_carried_is_claimed() -> None:
    (better,) = compared([2.0, 2.1, 2.2, 2.3, 2.4, 2.5], primary=True)
    (claim,) = claims([better])
    assert claim.kind == "better"
    assert claim.text == (
        "A is better than Ran: +2.25 points of AUBC (95 % interval +2.00 to +2.50); p = 0.031, 6 seeds."
    )
    (worse,) = compared([-2.0, -2.1, -2.2, -2.3, -2.4, -2.5], primary=True)
    assert claims([worse])[0].text.startswith("A is worse than Ran: \N{MINUS SIGN}2.25 points")
    (equal,) = compared([0.1, -0.1, 0.2, 0.0, -0.2, 0.1], primary=True, margin=0.5)
    assert claims([equal])[0].text.startswith("A equals Ran within 0.5: +0.02 points")
    assert kind_of(replace(equal, margin=None, adjusted_equal=1.0)) == "open"


@pytest.mark.parametrize("values", [[1.0] * 5 + [20.0], [0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 9.0], [-20.0] + [-1.0] * 5])
def test_the_interval_is_that_of_the_test(values: list[float]) -> None:
    """Student's t of the first goes from -3.97 to +12.31, though the sentence says that A is better."""
    (found,) = compared(values, primary=True)
    low, high = statistics.exact_interval(values) or (0.0, 0.0)
    assert kind_of(found) in ("better", "worse") and low * high > 0
    assert f"(95 % interval {signed(low)} to {signed(high)}); p = 0.0" in claims([found])[0].text


def test_the_interval_of_equal_methods_is_within_the_margin() -> None:
    """Two one-sided tests at 5 % belong to an interval of 90 %; that of 95 % by Student's t goes to -0.52 and +0.70."""
    (found,) = compared([-0.44, 0.45, 0.3, 0.0, 0.14], primary=True, margin=0.5)
    assert claims([found])[0].text == (
        "A equals Ran within 0.5: +0.09 points of AUBC (90 % interval \N{MINUS SIGN}0.44 to +0.45); p = 0.031, 5 seeds."
    )


def test_what_equality_needs_is_said() -> None:
    """A margin in the config asks for equality; without it nothing is said of that."""
    noisy = [1.0, -2.0, 3.0, 4.0, -1.0, 2.0]
    (with_margin,), (without,) = compared(noisy, margin=0.5), compared(noisy)
    needed = with_margin.seeds_for_equal()
    assert claims([with_margin])[0].text == (
        f"{claims([without])[0].text} About {needed:.0f} seeds would show equality within 0.5 points, if "
        "nothing differs."
    )
    few = compared([1.48, 2.39, 2.71], [-2.32, 5.14, 4.65], margin=2.0)
    low, high = sorted(c.seeds_for_equal() for c in few)
    assert claims(few)[0].text.endswith(
        f"; 7 seeds can. About {low:.0f} to {high:.0f} seeds would show equality within 2 points, if nothing differs."
    )
    assert isnan(compared([1.0], margin=2.0)[0].seeds_for_equal())
    said = [text for text in foreseen(0, 10, 1, "LC", "Ran", 0.5) if "equality" in text]
    (sd,) = re.findall(r"10 seeds show equality within 0\.5 points .* is at most (0\.\d\d) points$", *said)
    assert float(sd) == pytest.approx(statistics.largest_sd(0.5, 10), abs=0.005)
    assert foreseen(0, 4, 1, "LC", "Ran", 0.5)[1].endswith("4 seeds can't show equality within 0.5 points; 5 seeds can")


def test_few_seeds_have_no_interval_and_many_name_student() -> None:
    (few,), (many,) = compared([1.0] * 5), compared([1.0 + 0.01 * i for i in range(31)])
    assert few.interval() == "" and many.interval() == "95 % interval by Student's t +1.12 to +1.18"
    assert many.turned().interval().endswith(" \N{MINUS SIGN}1.18 to \N{MINUS SIGN}1.12")


def test_what_is_not_carried_says_what_would() -> None:
    few = compared([1.48, 2.39, 2.71], [-2.32, 5.14, 4.65], [0.1, -4.0, 3.0])
    (claim,) = claims(few)
    assert claim.kind == "open" and claim.about == few
    assert claim.text == (
        "A, B, C: 3 seeds can't show a difference to Ran among 3 comparisons: the smallest possible p is 0.25; "
        "7 seeds can."
    )
    (noisy,) = compared([1.0, -2.0, 3.0, 4.0, -1.0, 2.0], primary=True)
    (claim,) = claims([noisy])
    assert re.fullmatch(
        r"A minus Ran: \+1\.17 points, no difference shown \(p = 0\.\d+\); about \d+ seeds would find one of this "
        r"size, 6 seeds one of \d\.\d\d points\.",
        claim.text,
    )
    (zero,) = compared([1.0, -1.0] * 3, primary=True)
    assert "no number of seeds would find one of this size" in claims([zero])[0].text


def test_the_primary_comparison_comes_first() -> None:
    primary, other = compared([1.0, -1.0] * 8, [1.0 + 0.1 * i for i in range(16)], primary=True)
    kinds = [(claim.kind, claim.about) for claim in claims([other, primary])]
    assert kinds == [("open", [primary]), ("better", [other])]


def test_others_wait_for_the_primary_comparison() -> None:
    strong, weak = [1.0 + 0.1 * i for i in range(8)], [1.0, -1.0] * 4
    for first, alpha in ((strong, 0.05), (weak, BEFORE)):
        one, other = compared(first, strong, primary=True)
        assert (one.alpha, other.alpha) == (0.05, alpha)
        assert kind_of(other) == ("better" if alpha == 0.05 else "open"), "p = 2/256"
    elsewhere = replace(other, suite="another")
    assert [c.alpha for c in adjusted([one, elsewhere])] == [0.05, 0.05]


def test_the_level_of_others_that_wait_is_said() -> None:
    """Their table shows p = 0.002, and 0.0078 after Holm: both would do if the primary comparison were significant."""
    weak, strong = [1.0, -1.0] * 5, [1.0 + 0.1 * i for i in range(10)]
    found = compared(weak, *[strong] * 4, primary=True)
    assert [c.adjusted for c in found[1:]] == [8 / 1024] * 4
    assert claims(found)[1].text == (
        "B, C, D, E: 10 seeds can't show a difference to Ran among 4 comparisons: the smallest possible p is 0.002, "
        "and it must be at most 0.00063 as the primary comparison is not significant; 12 seeds can, or 8 once it is "
        "significant."
    )
    (_, alone) = claims(compared(weak, [*strong[:9], -1.0], primary=True))
    assert re.search(
        r"no difference shown \(p = 0\.00\d+, which must be at most 0\.0025 as the primary comparison is not signif",
        alone.text,
    )
    assert "must be" not in "".join(claim.text for claim in claims(compared(strong, *[strong[:6]] * 4, primary=True)))


def test_others_wait_also_for_a_primary_comparison_without_results() -> None:
    """Else they are claimed at 5 %, and no longer once the primary method is trained."""
    entry = suite(primary=["DAST-AL", "Ran"])
    found = comparisons([(entry, [r for r in all_records() if r.method != "DAST-AL"])])
    assert [(c.method, c.alpha) for c in found] == [("Ran+", BEFORE)]
    rows = entry.model_copy(update={"methods": ["Ran", "Ran+", "DAST-AL [code a]", "DAST-AL [code b]"]})
    records = [
        r if r.method != "DAST-AL" else replace(r, method=f"DAST-AL [code {'ab'[r.seed % 2]}]") for r in all_records()
    ]
    found = comparisons([(rows, records)])
    assert {c.alpha for c in found} == {BEFORE} and len(found) == 3
    assert not_compared(rows, records, found)[0] == (
        "The primary comparison is not made, and all others need a p of at most 0.0025: DAST-AL has the rows DAST-AL "
        "[code a], DAST-AL [code b]."
    )


def test_comparisons_without_results_count() -> None:
    """A p that is adjusted for them stays significant when they have results."""
    found = comparisons([(suite(), [r for r in all_records() if r.method != "DAST-AL"])])
    assert [(c.method, c.others, c.adjusted) for c in found] == [("Ran+", 2, 0.5)] and found[0].p == 0.25
    skipped = suite(name="b", skipped="no data")
    assert {c.others for c in comparisons([(suite(), all_records()), (skipped, [])])} == {2}


def test_what_holm_leaves_is_what_few_seeds_can_show() -> None:
    """Once A is significant, B is tested at 5 %, and six seeds can have a p of 3.1 %."""
    strong, weak = [1.0 + 0.1 * i for i in range(10)], [1.0, -1.0] * 5
    six = compared(strong, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert [kind_of(c) for c in six] == ["better", "better"] and six[1].p == six[1].adjusted == 2 / 64
    (_, other) = compared(strong, [1.0, 2.0, -3.0, 4.0, 5.0, 6.0])
    assert (other.others, other.left, other.level) == (2, 1, 0.05)
    assert "no difference shown" in claims([other])[0].text and "can't" not in claims([other])[0].text
    assert claims(compared(weak, strong[:6]))[1].text.startswith(
        "B: 6 seeds can't show a difference to Ran among 2 comp"
    )
    (*_, last) = claims(compared(strong, weak, [1.0] * 5))
    assert last.text.startswith(
        "C: 5 seeds can't show a difference to Ran among 2 comparisons that are not significant: "
    )
    (said,) = foreseen(1, 6, 2, None, "Ran")
    assert said.startswith(
        "each other method minus Ran: 6 seeds can't show a difference unless others are significant: "
    )


def test_the_number_of_comparisons_of_the_whole_report_counts() -> None:
    found = compared(*([[1.0] * 6] * 4), primary=True)
    assert [c.others for c in found] == [1, 3, 3, 3]
    assert [c.adjusted for c in found] == [2 / 64] + [6 / 64] * 3
    assert found[1].level == 0.05 / 3


# ------------------------------------------------------------------------------------------------------ from records


def test_areas_are_of_trials_with_all_budgets() -> None:
    records = [r for r in all_records() if (r.method, r.seed, r.cycle) != ("Ran+", 1, 1)]
    records[0] = replace(records[0], metrics={"accuracy": None})
    found = areas(suite(), records, "accuracy")
    assert found["Ran"].keys() == {1, 2} and found["Ran+"].keys() == {0, 2}
    # 51, 61, 71 % at 100, 200 and 400 images
    assert found["Ran"][1] == pytest.approx((56 * 100 + 66 * 200) / 300)


def test_methods_are_compared_at_equal_seeds_with_the_reference() -> None:
    records = [r for r in all_records() if (r.method, r.seed) != ("DAST-AL", 2)]
    found = comparisons([(suite(), records)])
    assert [(c.method, c.reference, c.primary, [*c.differences]) for c in found] == [
        ("Ran+", "Ran", False, [0, 1, 2]),
        ("DAST-AL", "Ran", False, [0, 1]),
    ]
    assert found[0].values == pytest.approx([2.0] * 3) and found[1].values == pytest.approx([4.0] * 2)
    found = comparisons([(suite(primary=["DAST-AL", "Ran+"]), all_records())])
    assert [(c.method, c.reference, c.primary) for c in found] == [("Ran", "Ran+", False), ("DAST-AL", "Ran+", True)]
    assert comparisons([(suite(), [])]) == [] == comparisons([(suite(primary=["DAST-AL", "Gone"]), all_records())])
    one_seed = comparisons([(suite(), [r for r in all_records() if r.seed == 0])])[0]
    assert isnan(one_seed.std) and isnan(one_seed.seeds_needed()) and one_seed.smallest_difference() == inf


def test_the_report_says_it_first_and_has_the_numbers(tmp_path: Path) -> None:
    text = write(run_dir(tmp_path / "run", all_records(), [suite(primary=["DAST-AL", "Ran"])]))
    flat = " ".join(text.split())
    assert "DAST-AL: 3 seeds can't show a difference to Ran: the smallest possible p is 0.25; 6 seeds can." in flat
    assert flat.index("can't show a difference") < flat.index("accuracy (%)")
    assert "DAST-AL \N{MINUS SIGN} Ran (primary)" in text
    report = tmp_path / "run" / "report"
    rows = (report / "digits_comparisons.csv").read_text().splitlines()
    assert rows[0] == ("method,reference,primary,mean,std,n,p,adjusted,level,seeds_needed,smallest_difference,claim")
    assert rows[1].startswith("Ran+,Ran,False,") and len(rows) == 3
    by_seed = (report / "digits_comparisons_by_seed.csv").read_text().splitlines()
    assert by_seed[0] == "method,reference,seed,difference" and len(by_seed) == 1 + 6
    assert r"DAST-AL $-$ Ran" in (report / "digits_comparisons.tex").read_text()
    assert "3 seeds can't show" in (report / "report.md").read_text()


def test_what_is_not_compared_is_said() -> None:
    """Silence is read as a comparison without a result."""
    entry, records = suite(), all_records()

    def said(keep: Callable[[CycleRecord], bool], entry: SuiteEntry = entry) -> list[str]:
        some = [r for r in records if keep(r)]
        return not_compared(entry, some, comparisons([(entry, some)]))

    assert said(lambda r: True) == []
    assert said(lambda r: (r.method, r.cycle) != ("Ran", 2)) == [
        "Nothing is compared yet: Ran, the reference, has no finished trial."
    ]
    assert said(lambda r: (r.method == "Ran") == (r.seed == 0)) == [
        "Ran+, DAST-AL: not compared, because no finished trial shares a seed with Ran."
    ]
    assert said(lambda r: r.method != "Ran+") == ["Ran+: not compared yet, because no trial is finished."]
    part = suite(primary=["DAST-AL", "Random"])
    assert said(lambda r: True, part) == ["The methods are not compared: Random, their reference, is not among them."]
    assert said(lambda r: r.method == "Ran", suite(methods=["Ran"])) == []


def test_rows_that_are_kept_apart_are_not_compared(tmp_path: Path) -> None:
    records = [replace(r, code={"harness": str(r.seed // 2)}) for r in all_records()]
    text = " ".join(write(run_dir(tmp_path / "run", records, [suite()])).split())
    assert re.search(r"The methods are not compared: Ran has the rows Ran \[code \w+\], Ran \[code \w+\]\.", text)
    assert "can't show" not in text and "Differences of AUBC" not in text


def test_nothing_is_compared_where_a_row_is_missing(tmp_path: Path) -> None:
    text = write(run_dir(tmp_path / "run", [record("Ran", 0, c, 0.5) for c in range(len(LABELLED))], [suite()]))
    assert "points" not in text


# ------------------------------------------------------------------------------------------------------- from configs

CONFIG = """
dataset: digits
model: {name: resnet_small, width: 4}
recipe: {epochs: 1}
protocol: {initial: 20, budget: 20, cycles: 2, start: warm}
methods: {Ran: random, LC: least_confidence, Margin: margin}
seeds: [0, 1, 2]
"""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("primary: {method: Lc, reference: Ran}", "primary.method: no method is called 'Lc'; did you mean 'LC'?"),
        ("primary: {method: LC, reference: LC}", "primary.reference: must be another method than primary.method"),
        ("primary: LC", "primary: "),
        ("primary: {method: LC}", "primary.reference: this key is required"),
        ("equal_within: 0", "equal_within: must be above 0"),
        ("equal_within: 101", "equal_within: must be at most 100"),
    ],
)
def test_mistakes(line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG + line)
    assert run.main([str(tmp_path / "c.yaml"), "--plan"]) == 2
    assert f"c.yaml:8: {sentence}" in capsys.readouterr().err


@pytest.mark.long
def test_the_keys_reach_run_json_and_a_part_of_a_run_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{CONFIG}primary: {{method: LC, reference: Ran}}\nequal_within: 0.5\n")
    output = tmp_path / "run"
    common = [str(tmp_path / "c.yaml"), "where.trials=in_process", f"where.output={output}", "seeds=[0]"]
    assert run.main(common) == 0
    for arguments in ([], ["--only", "method=Margin"]):
        assert run.main([*common, *arguments, *(["--resume"] if arguments else [])]) in (0, 2)
        (entry,) = json.loads((output / "run.json").read_text())["suites"]
        assert (entry["primary"], entry["equal_within"]) == (["LC", "Ran"], 0.5)
    benchmark = load_config(tmp_path / "c.yaml")
    assert only(benchmark, ["method=LC,Ran"]).suites[0].primary is not None
    assert only(benchmark, ["method=Margin,Ran"]).suites[0].primary is not None, "Margin waits for LC"


def test_the_plan_says_what_seeds_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(f"{CONFIG}primary: {{method: LC, reference: Ran}}\n")
    assert run.main([str(tmp_path / "c.yaml"), "--plan"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "c: Ran, LC, Margin; 3 seeds LC minus Ran (primary): 3 seeds can't show a difference" in out
    assert "6 seeds can. each other method minus Ran once that is significant: 3 seeds can't" in out
    (sentence,) = foreseen(1, 10, 1, None, "Ran")
    assert re.fullmatch(
        r"each other method minus Ran: 10 seeds find a difference of 1\.\d times the standard deviation of the "
        r"differences over seeds in 80 % of runs",
        sentence,
    )
    assert len(foreseen(0, 10, 1, "LC", "Ran")) == 1 and not foreseen(0, 3, 1, None, "Ran")
    for part, comparison in (("method=Margin,Ran", "each other method minus Ran: 3 seeds"), ("method=LC,Margin", "")):
        assert run.main([str(tmp_path / "c.yaml"), "--plan", "--only", part]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert comparison in out and ("can't show" in out) == bool(comparison)


def test_signs() -> None:
    assert [signed(1.234), signed(-0.5), signed(inf)] == ["+1.23", "\N{MINUS SIGN}0.50", "any"]
    assert METHODS[0] == "Ran", "which the suites of these tests start with"

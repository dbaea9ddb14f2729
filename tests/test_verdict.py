"""Our cells and published values: the file, the rule by hand, the keys that differ, and what may be claimed."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from test_report import all_records, record, run_dir
from test_report import suite as digits

from harness import registry
from harness.config.load import load_config
from harness.config.suite import Benchmark
from harness.data.dataset import DatasetInfo
from harness.experiment.grid import Grid, manifest
from harness.report import published_table, verdict
from harness.report.contents import suite_tables
from harness.report.published import Published, Spec, published
from harness.report.verdict import Beside
from harness.report.write import write
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord
from harness.settings import Protocol, Recipe, Where

ROOT = Path(__file__).resolve().parent.parent
LOGS = "DAST-AL authors' logs"
KNOWN = {
    "dataset": {"name": "cifar10"},
    "model": {"name": "resnet18_cifar_projection"},
    "recipe": {"epochs": 200, "milestones": [160]},
    "protocol": {"initial": 2500, "budget": 2500, "candidates": 10000, "start": "warm"},
}
"""The settings of a suite as in the authors' logs, as run.json holds them, in float32."""
HALVES = {
    "Ran": {"training": {"name": "cross_entropy"}, "acquisition": {"name": "random"}},
    "DAST-AL": {"training": {"name": "isda"}, "acquisition": {"name": "epmcm"}},
}


def entry(seeds: int = 6, labelled: tuple[int, ...] = (2500, 5000), **changes: Any) -> SuiteEntry:
    """Return a suite of Table 1; ``changes`` may name a group of settings, of which keys are changed."""
    settings = {group: {**keys, **changes.pop(group, {})} for group, keys in KNOWN.items()}
    halves = changes.pop("halves", HALVES)
    values: dict[str, Any] = {
        "name": "table1",
        "title": "Table 1",
        "dataset": "cifar10",
        "model": "resnet18_cifar_projection",
        "recipe": "in words",
        "settings": settings,
        "methods": [*halves],
        "halves": halves,
        "seeds": [*range(seeds)],
        "labelled": [*labelled],
        "official_data": True,
        "trials": {f"{m}-{s}": {"method": m, "seed": s} for m in halves for s in range(seeds)},
    }
    return SuiteEntry(**(values | changes))


def of_log(method: str, labelled: int) -> Published:
    """Return the value of the authors' logs that a method of HALVES has."""
    halves = tuple(HALVES[method][half]["name"] for half in ("training", "acquisition"))
    (found,) = (
        p
        for p in published("cifar10", "resnet18_cifar_projection")
        if (p.source, p.labelled, p.metric) == (LOGS, labelled, "accuracy")
        and (p.training.name, p.acquisition.name) == halves
    )
    return found


def records(suite: SuiteEntry, shift: float = 0.0, **changes: Any) -> list[CycleRecord]:
    """Return records with the mean and the spread of the logs, shifted by points."""
    made = []
    for trial, each in suite.trials.items():
        for cycle, labelled in enumerate(suite.labelled):
            spread = np.linspace(-1, 1, len(suite.seeds))[each.seed] if len(suite.seeds) > 1 else 0.0
            known = of_log(each.method if each.method in HALVES else "DAST-AL", labelled)
            accuracy = (known.mean + shift + known.sd * spread) / 100
            r = record(each.method, each.seed, 0, accuracy, labelled=labelled, trial=trial, **changes)
            made.append(replace(r, cycle=cycle))
    return made


def sentences(suite: SuiteEntry, made: list[CycleRecord]) -> list[str]:
    return [claim.text for claim in verdict.verdicts(suite, made, verdict.beside(suite, made))]


# ---------------------------------------------------------------------------------------------------------- the file


def rows() -> list[dict[str, str]]:
    with (ROOT / "published" / "values.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_of_the_file_is_typed_and_names_what_there_is() -> None:
    """A typo in a name or a key would silently match nothing."""
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows():
        seen[tuple(value for key, value in row.items() if key not in ("value", "sd", "n"))] += 1
        assert float(row["value"]) >= 0 and (not row["sd"] or float(row["sd"]) > 0)
        keys = {key: value for key, value in row.items() if "." in key and value}
        for key in keys:
            group, _, name = key.partition(".")
            assert name in {"recipe": Recipe, "protocol": Protocol}[group].model_fields
        for half in ("training", "acquisition"):
            name = Spec.of(row[half]).name if row[half] else "random"
            assert name in (*registry.names("methods"), "badge"), row
    assert set(seen.values()) == {1}
    names = {name for row in rows() for name in [row["dataset"].split()[0]]}
    assert names == {"cifar10", "cifar100", "imagenet"}


def test_the_authors_trials_are_there() -> None:
    assert [of_log("Ran", labelled).n for labelled in (2500, 25000)] == [10, 10]
    assert [of_log("DAST-AL", labelled).n for labelled in (2500, 17500, 20000)] == [8, 8, 7], "one log ends at 17 500"
    ran = of_log("Ran", 2500)
    assert f"{ran.mean:.2f} {ran.sd:.2f}" == "67.86 2.30" and ran.mean == fmean(ran.trials)
    assert of_log("DAST-AL", 5000).keys["protocol.candidates"] == 10000
    assert "recipe.precision" not in ran.keys, "the logs do not state it"


def test_settings_of_a_method_are_part_of_it() -> None:
    found = published("cifar100", "vgg16_bn_cifar")
    assert {str(p.training) for p in found} == {str(Spec("isda", {"lambda_0": 5}))}
    assert {str(p.network.settings) for p in found} == {"{'initialisation': 'pytorch'}"}


# ---------------------------------------------------------------------------------------------------- a cell by hand


def cell(ours: list[float], trials: tuple[float, ...] = (90.0, 92.0, 94.0), **changes: Any) -> Beside:
    sd = stdev(trials) if len(trials) > 1 else nan
    values = {"trials": trials, "mean": fmean(trials or [nan]), "sd": sd, "n": len(trials)}
    known = replace(of_log("Ran", 2500), **(values | changes))
    return Beside("Ran", 2500, ours, known, [], [])


def test_a_cell_by_hand() -> None:
    """Mean 92, sd 2, n = 3; four seeds: t(0.975, 2) = 4.3027, so 4.3027 x 2 x sqrt(1/3 + 1/4) = 6.572."""
    found = cell([95.0, 96.0, 97.0, 96.0])
    assert found.difference == pytest.approx(4.0) and found.in_sd == pytest.approx(2.0)
    assert found.reach == pytest.approx(6.572, abs=0.001)
    assert found.word == "inside"
    assert cell([98.56] * 4).word == "inside" and cell([98.58] * 4).word == "above"
    assert cell([85.44] * 4).word == "inside" and cell([85.42] * 4).word == "below"
    both = [95.0, 96.0, 97.0, 96.0, 90.0, 92.0, 94.0]
    extreme = [abs(sum(c) / 4 - (sum(both) - sum(c)) / 3) >= 4 - 1e-9 for c in combinations(both, 4)]
    assert found.p == pytest.approx(sum(extreme) / 35) and found.smallest_p == 1 / 35


def test_what_is_not_known_gives_no_range() -> None:
    assert cell([92.0, 93.0], trials=(91.0,)).word == "no range", "one published trial"
    printed = cell([92.0, 93.0], trials=(), mean=92.0, sd=nan, n=3)
    assert printed.word == "no range" and isnan(printed.p) and isnan(printed.in_sd)
    band = cell([92.0, 93.0], trials=(), mean=92.0, sd=1.0, n=3)
    assert band.word == "inside" and isnan(band.p), "a stated sd has a range, and no exact p"


def test_95_percent_of_means_of_the_same_distribution_are_inside() -> None:
    random = np.random.default_rng(0)
    words = [cell([*random.normal(size=4)], (*random.normal(size=3),)).word for _ in range(1000)]
    assert 0.93 <= words.count("inside") / 1000 <= 0.97


# ------------------------------------------------------------------------------------------------------- what matches


def test_a_method_is_what_it_does_and_not_its_name() -> None:
    renamed = entry(halves={"Ran": HALVES["DAST-AL"], "mine": HALVES["Ran"]})
    made = records(entry(halves={"Ran": HALVES["Ran"], "mine": HALVES["Ran"]}))
    found = {(c.method, c.published.acquisition.name) for c in verdict.beside(renamed, made)}
    assert found == {("Ran", "epmcm"), ("mine", "random")}
    other = entry(halves={"DAST-AL": {"training": {"name": "isda", "lambda_0": 0}, "acquisition": {"name": "epmcm"}}})
    assert verdict.beside(other, records(other)) == [], "it is another method with lambda_0 = 0"


def test_what_the_paper_prints_stands_next_to_its_authors_trials() -> None:
    """Their logs have other means than Table 1, which a reader looks for."""
    suite = entry()
    cells = verdict.beside(suite, records(suite))
    assert {(c.published.source, c.printed and c.printed.source) for c in cells} == {(LOGS, "DAST-AL paper")}
    shown = published_table.wide(cells).set_index(["method", "labelled"])
    assert (
        shown.loc[("Ran", "2500"), "printed"] == "67.13"
        and shown.loc[("Ran", "2500"), "published"] == "67.86±2.30 (10)"
    )
    assert "printed: what DAST-AL paper prints for them." in published_table.caption(cells)
    assert published_table.numbers(cells)["printed"][0] == 67.13
    late = entry(labelled=(2500, 25000), halves={"Ran": HALVES["Ran"]})
    assert [*published_table.wide(verdict.beside(late, records(late)))["printed"]] == ["67.13", "\N{EN DASH}"]
    alone = [replace(c, printed=None) for c in cells]
    assert "printed" not in published_table.wide(alone) and "printed" not in published_table.caption(alone)


def test_budgets_without_a_published_value_have_no_cell() -> None:
    suite = entry()
    made = [r if r.labelled == 2500 else replace(r, labelled=5001) for r in records(suite)]
    assert {c.labelled for c in verdict.beside(suite, made)} == {2500}


def test_single_trials_come_before_a_printed_mean_of_the_same_protocol() -> None:
    assert {c.published.source for c in verdict.beside(entry(), records(entry()))} == {LOGS}
    other = entry(model={"name": "resnet18_cifar"}, protocol={"initial": 1000, "budget": 1000})
    other = other.model_copy(update={"model": "resnet18_cifar", "labelled": [5000]})
    made = [r for r in records(entry(labelled=(5000,))) if r.method == "Ran"]
    (found,) = verdict.beside(other, made)
    assert (found.published.source, found.differing) == ("ADS paper", []), "eval-al ranks the whole pool"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": {"epochs": 15}}, "epochs 15, published 200"),
        ({"recipe": {"milestones": []}}, "milestones [], published [160]"),
        ({"recipe": {"batch_size": 64}}, "batch_size 64, published 128"),
        ({"recipe": {"learning_rate": 0.01}}, "learning_rate 0.01, published 0.1"),
        ({"recipe": {"momentum": 0.0}}, "momentum 0.0, published 0.9"),
        ({"recipe": {"weight_decay": 0.0}}, "weight_decay 0.0, published 0.0005"),
        ({"protocol": {"start": "fresh"}}, "start fresh, published warm"),
        ({"protocol": {"initial": 1000}}, "initial 1000, published 2500"),
        ({"protocol": {"budget": 1000}}, "budget 1000, published 2500"),
        ({"protocol": {"candidates": 5000}}, "candidates 5000, published 10000"),
        ({"protocol": {"candidates": None}}, "candidates all, published 10000"),
        ({"dataset": {"limit": 30000}}, "dataset.limit 30000, published the default"),
    ],
)
def test_every_key_that_differs_is_named_and_nothing_is_claimed(changes: dict[str, Any], named: str) -> None:
    suite = entry(**changes)
    made = records(suite, shift=5.0)
    found = verdict.beside(suite, made)
    assert {c.word for c in found} == {"other protocol"} and all(c.differing == [named] for c in found)
    assert all(isnan(c.p) for c in found) and found[0].difference == pytest.approx(5.0), "the value is still shown"
    assert sentences(suite, made) == [f"Ran, DAST-AL: open whether they reproduce {LOGS}: other protocol: {named}."]
    assert f"other protocol: {named}." in published_table.caption(found)


def test_a_key_that_the_source_does_not_state_is_open_only_if_it_is_not_the_default() -> None:
    """float32 is what a source means that says nothing; bfloat16 is not."""
    ours = entry(labelled=(5000,))
    assert all(text.split(" ")[1] == "reproduces" for text in sentences(ours, records(ours)))
    half = entry(labelled=(5000,), recipe={"precision": "bfloat16"})
    found = verdict.beside(half, records(half))
    assert {c.word for c in found} == {"inside"}, "the cell has its verdict"
    assert sentences(half, records(half)) == [
        f"Ran, DAST-AL: open whether they reproduce {LOGS}: the source does not state precision (ours bfloat16)."
    ]
    other = entry(labelled=(5000,), model={"initialisation": "pytorch"}, halves={"Ran": HALVES["Ran"]})
    assert {c.word for c in verdict.beside(other, records(other))} == {"inside"}, "no source says how it initialises"
    assert sentences(other, records(other)) == [
        f"Ran: open whether it reproduces {LOGS}: the source does not state model.initialisation (ours pytorch)."
    ]
    far = records(half, shift=-4.0)
    assert all("; precision (ours bfloat16) is not stated there" in text for text in sentences(half, far))


def test_data_that_is_not_official_gets_the_reason_and_no_verdict() -> None:
    other = entry(official_data=False)
    made = records(other)
    assert verdict.beside(other, made) == []
    (reason,) = verdict.reasons(other, made)
    assert reason == (
        f"No verdict on the published values ({LOGS}): dataset cifar10 is not known to be read from its official files."
    )
    assert verdict.reasons(entry(), made) == []
    two = [*made[:-1], replace(made[-1], data_fingerprint="another")]
    assert verdict.beside(entry(), two) == [] and "2 versions of the data" in verdict.reasons(entry(), two)[0]


# --------------------------------------------------------------------------------------------------------- the claim


def test_what_reproduces_says_how_and_what_deviates_says_where() -> None:
    suite = entry()
    reproduced, dast = sentences(suite, records(suite))
    assert reproduced.startswith(
        f"Ran reproduces {LOGS} at 2 numbers of labelled images: no deviation is shown (exact p"
    )
    assert "2 are inside" in reproduced and "Holm over 4" in reproduced, "two methods at two numbers"
    assert dast.endswith(
        "; in the source, images are scored augmented, and join the class statistics with predicted labels."
    )
    ran, _ = sentences(suite, records(suite, shift=2.5))
    assert ran.startswith(
        f"Ran deviates from {LOGS} at 2 of 2 numbers of labelled images (exact p at most 0.05, Holm over 4)"
    )
    assert ran.endswith(": +2.50 points at 2500, +2.50 at 5000.")


def test_a_deviation_at_one_of_several_budgets_counts_after_holm() -> None:
    suite = entry(labelled=(2500, 5000, 7500, 10000), halves={"Ran": HALVES["Ran"]})
    made = [
        r if r.labelled != 7500 else replace(r, metrics={"accuracy": r.metrics["accuracy"] + 0.01})
        for r in records(suite)
    ]
    (text,) = sentences(suite, made)
    assert text == (
        f"Ran deviates from {LOGS} at 1 of 4 numbers of labelled images (exact p at most 0.05, Holm over 4): "
        "+1.00 points at 7500."
    )


def test_what_is_missing_for_the_claim() -> None:
    one = entry(seeds=1, halves={"Ran": HALVES["Ran"]})
    (text,) = sentences(one, records(one))
    assert "1 seed and 10 published trials can't show a deviation at 2 numbers of labelled images" in text
    assert text.endswith("(smallest possible p 0.091, it must be at most 0.025); 2 seeds can."), "1/66"
    suite = entry(halves={"Ran": HALVES["Ran"]})
    assert sentences(suite, records(suite)[:-1]) == [
        f"Ran: open whether it reproduces {LOGS}: not all cycles of all seeds are there."
    ]
    printed = [replace(c, published=replace(c.published, trials=())) for c in verdict.beside(suite, records(suite))]
    (claim,) = verdict.verdicts(suite, records(suite), printed)
    assert (claim.kind, claim.text.endswith("its single trials are not known.")) == ("open", True)


def test_noise_does_not_reproduce_what_is_outside_the_range() -> None:
    """The more our seeds differ, the less the test shows; all ten means are below the range."""
    suite = entry(halves={"Ran": HALVES["Ran"]}, labelled=tuple(range(2500, 25001, 2500)))
    made = []
    for r in records(suite):
        known = of_log("Ran", r.labelled)
        far = known.mean + known.sd * (-1.6 + 6 * np.linspace(-1, 1, 6)[r.seed])
        made.append(replace(r, metrics={"accuracy": far / 100}))
    assert {c.word for c in verdict.beside(suite, made)} == {"below"}
    (claim,) = verdict.verdicts(suite, made, verdict.beside(suite, made))
    assert (claim.kind, claim.text) == (
        "open",
        f"Ran: open whether it reproduces {LOGS}: at 10 of 10 numbers of labelled images our mean is outside the range "
        "of further published trials, but no exact p shows it (p at least 1, Holm over 10).",
    )
    one = [replace(c, ours=[c.published.mean] * 299) for c in verdict.beside(suite, made)]
    one = [replace(c, published=replace(c.published, trials=(c.published.mean,), n=1, sd=nan)) for c in one]
    assert verdict.verdicts(suite, made, one)[0].text.endswith("a single published trial has no range.")


# -------------------------------------------------------------------------------------------------------- the report


def test_the_report_has_the_table_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    suite = entry()
    printed = write(run_dir(tmp_path, records(suite), [suite]))
    assert "Ran reproduces DAST-AL authors' logs" in " ".join(printed.split())
    (line,) = (line for line in printed.splitlines() if line.startswith("Ran ") and "67.86±2.30 (10)" in line)
    assert line.split()[:4] == ["Ran", "2500", "inside", "67.86±1.72"] and len(line) <= 80
    with (tmp_path / "report" / "table1_published.csv").open(newline="") as file:
        first, *_ = csv.DictReader(file)
    assert (first["verdict"], first["source"], first["published_n"], first["n"]) == ("inside", LOGS, "10", "6")
    assert float(first["reach"]) == pytest.approx(2.262157 * of_log("Ran", 2500).sd * (1 / 10 + 1 / 6) ** 0.5, rel=1e-5)


def test_the_report_of_table_4_has_the_costs_that_the_paper_prints() -> None:
    """TT is training, ST sampling; ours are those of the first cycle, mean over seeds."""
    halves = {
        "mine": {"training": {"name": "isda"}, "acquisition": {"name": "epmcm"}},
        "LL4AL": {"training": {"name": "ll4al"}, "acquisition": {"name": "ll4al"}},
        "Ran": HALVES["Ran"],
    }
    suite = entry(seeds=2, labelled=(1000, 2000), halves=halves, official_data=False)
    made = [
        record(
            each.method, each.seed, cycle, 0.5, labelled=labelled, trial=trial, device="NVIDIA H100",
            extra_parameters=123_905 if each.method == "LL4AL" else 0,
        )
        for trial, each in suite.trials.items() for cycle, labelled in enumerate(suite.labelled)
    ]  # fmt: skip
    (table,) = (t for t in suite_tables(suite, made) if t.name == "published_costs")
    seconds = made[0].seconds
    training, sampling = seconds["train"] + seconds["auxiliary"], seconds["score"] + seconds["select"]
    total = (training + sampling) / 60
    rows = table.shown.to_numpy().tolist()
    assert [row[:3] for row in rows] == [
        ["mine, TT (s)", "138.3", f"{training:.3f}"],  # of a log
        ["mine, TT (s)", "128.3", f"{training:.3f}"],
        ["mine, ST (s)", "7.59", f"{sampling:.3f}"],
        ["mine, total (min)", "2.26", f"{total:.3f}"],
        ["LL4AL, EP (MiB)", "0.2", "0.473"],
        ["LL4AL, TT (s)", "120.72", f"{training:.3f}"],
        ["LL4AL, ST (s)", "2.97", f"{sampling:.3f}"],
        ["LL4AL, total (min)", "2.06", f"{total:.3f}"],
    ], "the paper prints nothing of random selection"
    assert rows[0][-1] == f"{LOGS}: first cycle; ours NVIDIA H100, bfloat16"
    assert rows[1][-1] == "DAST-AL paper: first cycle, NVIDIA TITAN Xp; ours NVIDIA H100, bfloat16"
    assert rows[4][-1] == "DAST-AL paper: 0.2 fits neither MiB nor millions of the reference code's module"
    other = entry(seeds=2, labelled=(2500, 5000), halves=halves)
    assert "published_costs" not in [
        t.name for t in suite_tables(other, [replace(r, labelled=2500 + r.labelled) for r in made])
    ]


def test_a_suite_without_published_values_is_as_before(tmp_path: Path) -> None:
    printed = write(run_dir(tmp_path, all_records(), [digits(official_data=True)]))
    assert "ublished values" not in printed
    assert not list((tmp_path / "report").glob("*published*"))


def test_run_json_says_whether_the_data_is_official() -> None:
    benchmark = load_config(ROOT / "configs" / "cifar10_table1.yaml")
    from harness.data.dataset import DatasetInfo

    info = DatasetInfo(50000, 10000, 10, 3, (32, 32), "archive", official=True)
    for known, expected in (({s.name: info for s in benchmark.suites}, True), ({}, False)):
        grid = object.__new__(Grid)
        object.__setattr__(grid, "skipped", {})
        object.__setattr__(grid, "info", known)
        assert {suite.official_data for suite in manifest(benchmark, grid).suites} == {expected}


# ------------------------------------------------------------------------------------------------------------ Fig. 2(c)


def test_the_suite_of_fig_2c_is_compared_with_vaals_arrays() -> None:
    """Its network, methods and numbers of labelled images are those of the rows, which else would match nothing."""
    suite = next(s for s in load_config(ROOT / "configs" / "full_benchmark.yaml").suites if s.name == "fig2c")
    info = DatasetInfo(1_281_167, 50_000, 1000, 3, (256, 256), "", from_files=True)
    entry = manifest(Benchmark("it", [suite], Where()), Grid([], {"fig2c": info}, {})).suites[0]
    found = [
        record(e.method, e.seed, 0, 0.5, trial=trial, labelled=labelled)
        for trial, e in entry.trials.items()
        for labelled in suite.protocol.labelled()
    ]
    cells = verdict._matched(entry, found)
    assert {(cell.method, cell.labelled) for cell in cells} == {
        (method, labelled) for method in ("Ran", "Core-set", "VAAL") for labelled in (192180, 256240, 320300, 384360)
    }
    assert {len(cell.published.trials) for cell in cells} == {2} and not any(cell.differing for cell in cells)
    assert "recipe" not in "".join(cells[0].published.keys), "the arrays come without a recipe"
    assert suite.protocol.labelled() == [128120, 192180, 256240, 320300, 384360] and suite.optional
    (reason,) = verdict.reasons(entry, found)
    assert reason == (
        "No verdict on the published values (VAAL authors' arrays): dataset imagenet is not known to be read from "
        "its official files."
    )
    assert verdict.beside(entry, found) == []

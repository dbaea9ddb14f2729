"""Acquisitions one by one, and every method that a config accepts from end to end. A new file is found by itself."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import changed, cut, make_trial, outcomes, run, same, state_of
from harness_of import cycle_of
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.config.load import load
from harness.config.suite import Part, Trial
from harness.data.dataset import Problem
from harness.data.images import Images
from harness.errors import UserError
from harness.learning import scoring
from harness.learning.contract import Acquisition, Training, highest
from harness.learning.scoring import describe_batches
from harness.networks.network import Outputs
from harness.results.records import CycleRecord
from harness.results.store import RunStore
from harness.seeds import stream
from harness.trial import Runner, Surroundings, peak_memory, reset_peak_memory

core_set = registry.load("methods", "core_set")

ACQUISITIONS = [n for n in registry.names("methods") if registry.find("methods", n, Acquisition)]
TRAININGS = [n for n in registry.names("methods") if registry.find("methods", n, Training)]
OPTIONS: list[Any] = [
    {"acquisition": {"name": "epmcm", "statistics": "fresh"}, "training": "isda"},
    {"acquisition": {"name": "epmcm", "statistics": "fresh", "form": "sampled", "samples": 70}, "training": "plain"},
    {"acquisition": {"name": "epmcm", "form": "sampled", "samples": 70}, "training": "isda"},
    {"acquisition": {"name": "epmcm", "pseudo_labels": True}, "training": "isda"},
    {"acquisition": "epmcm", "training": {"name": "isda", "covariance": "full"}},
    {"acquisition": {"name": "epmcm", "resolution": "image"}, "training": "isda"},
]


def small(name: str) -> Any:
    """Return a plug-in as written in a config, with what makes it long cut down."""
    plugin: Any = registry.find("methods", name, Acquisition) or registry.find("methods", name, Training)
    return {"name": name, **cut(plugin)} if cut(plugin) else name


def refuses_plain(name: str) -> bool:
    """Return whether an acquisition needs more than the plain training."""
    plugin: Any = registry.find("methods", name, Acquisition)
    try:
        plugin.check(plugin.Settings(), registry.find("methods", "plain", Training), Training.Settings())
    except ValueError:
        return True
    return False


def accepted() -> dict[str, tuple[Part, Part]]:
    """Every pair (training, acquisition) with default settings that a config accepts, and some with options."""
    # every acquisition with the trainings that touch nothing else, or all if it refuses these; and every training with
    # random and with itself
    written: list[Any] = [
        {"acquisition": small(a), "training": small(t)}
        for a in ACQUISITIONS
        for t in TRAININGS
        if t in ("plain", a) or a == "random" or (t == "isda" and small(a) == a) or refuses_plain(a)
    ]
    found: dict[str, tuple[Part, Part]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.yaml"
        for method in [*map(small, ACQUISITIONS), *written, *OPTIONS]:
            values = {
                "dataset": "digits",
                "model": {"name": "resnet_small", "width": 4},
                "recipe": {"epochs": 1},
                "protocol": {"initial": 40, "budget": 20, "cycles": 3, "start": "warm"},
                "methods": {"it": method},
                "seeds": [0],
                "where": {"shards": 1},
            }
            path.write_text(yaml.safe_dump(values))
            try:
                pair = load(path).suites[0].methods["it"]
            except UserError:
                assert method not in OPTIONS
                continue
            if pair not in found.values():
                label = "-".join(dict.fromkeys(part.name for part in pair))
                if method in OPTIONS:
                    label += f"-option{OPTIONS.index(method)}"
                found[label] = pair
    return found


METHODS = accepted()
each_method = pytest.mark.parametrize("method", METHODS)


def describes(method: str) -> bool:
    """Return whether a method describes images in batches that may be shared out."""
    part = METHODS[method][1]
    plugin: Any = registry.find("methods", part.name, Acquisition)
    return plugin.uses_images and not plugin.sequential(plugin.Settings(**part.settings))


def test_every_file_is_a_method_that_is_tested() -> None:
    assert {training.name for training, _ in METHODS.values()} == set(TRAININGS)
    assert {acquisition.name for _, acquisition in METHODS.values()} == set(ACQUISITIONS)
    assert set(TRAININGS) | set(ACQUISITIONS) == set(registry.names("methods"))
    assert "plain-epmcm" not in METHODS, "refused: nothing collects its statistics"
    assert "plain-mc_dropout" not in METHODS, "refused: it was not trained with dropout"
    assert {"plain-random", "isda-random", "isda-epmcm", "isda-epmcm-option3", "dropout-bald"} <= set(METHODS)


class Stop(Exception):
    """The process ends here."""


def run_with_stops(trial: Trial, problem: Problem, folder: Path) -> list[CycleRecord]:
    """Run a trial in as many processes' worth of runners as it has cycles."""
    for last in range(trial.protocol.cycles - 1):
        seen = []

        def stop(record: CycleRecord, last: int = last, seen: Any = seen) -> None:
            seen.append(record.cycle)
            if record.cycle == last:
                raise Stop

        with pytest.raises(Stop):
            run(trial, problem, folder, stop)
        assert seen == list(range(last + 1)), "finished cycles are reported again, and are not run again"
    return run(trial, problem, folder)


def set_global_streams(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.fixture(scope="module")
def first_run(digits: Problem, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Give a method's trial, the folder of its run, and its records; each is run once."""

    @cache
    def get(method: str) -> Any:
        set_global_streams(1)
        trial, folder = make_trial(*METHODS[method]), tmp_path_factory.mktemp(method)
        return trial, folder, run(trial, digits, folder)

    return get


@each_method
def test_end_to_end_twice_and_resumed(
    method: str, first_run: Callable[[str], Any], digits: Problem, folders: Callable[[], Path]
) -> None:
    trial, folder, first = first_run(method)
    assert [r.labelled for r in first] == [40, 60, 80]
    assert [len(r.chosen) for r in first] == [20, 20, 0]
    assert all(0 <= r.figures["accuracy"] <= 1 and math.isfinite(r.final_loss or 0.0) for r in first)
    assert len({r.final_loss for r in first}) == 3
    end = state_of(trial, folder)
    set_global_streams(2)
    for again in (run, run_with_stops):
        folder = folders()
        assert outcomes(again(trial, digits, folder)) == outcomes(first)
        assert same(state_of(trial, folder)["network"], end["network"])
        assert same(state_of(trial, folder)["training"], end["training"])


@each_method
def test_end_to_end_with_fresh_weights(
    method: str, first_run: Callable[[str], Any], digits: Problem, folders: Callable[[], Path]
) -> None:
    warm = first_run(method)[2]
    trial = make_trial(*METHODS[method], start="fresh")
    first = run(trial, digits, folders())
    assert outcomes(first)[:1] == outcomes(warm)[:1], "both start from the same weights"
    assert first[1].final_loss != warm[1].final_loss
    assert outcomes(run_with_stops(trial, digits, folders())) == outcomes(first)


@each_method
def test_end_to_end_on_colour_images(method: str, colours: Problem, folders: Callable[[], Path]) -> None:
    trial = make_trial(*METHODS[method], dataset=Part("colours", {}), crop_padding=2, cycles=2, candidates=70)
    first = run(trial, colours, folders())
    assert [len(set(r.chosen)) for r in first] == [20, 0]
    assert outcomes(run_with_stops(trial, colours, folders())) == outcomes(first)


@pytest.mark.parametrize("method", ["isda-epmcm", "plain-core_set"])
def test_end_to_end_in_bfloat16(method: str, colours: Problem, folders: Callable[[], Path]) -> None:
    trial = make_trial(*METHODS[method], dataset=Part("colours", {}), cycles=2)
    half = changed(trial, precision="bfloat16")
    folder = folders()
    first = run(half, colours, folder)
    assert outcomes(run_with_stops(half, colours, folders())) == outcomes(first)
    assert outcomes(run(trial, colours, folders())) != outcomes(first)
    state = state_of(half, folder)
    assert {v.dtype for v in [*state["network"].values(), *state["training"].values()]} <= {
        torch.float32,
        torch.int64,
    }


def test_a_trial_does_not_depend_on_the_one_before(digits: Problem, folders: Callable[[], Path]) -> None:
    one, other = make_trial("isda", "epmcm"), make_trial("plain", "core_set", seed=9)
    alone = outcomes(run(one, digits, folders()))
    run(other, digits, folders())
    assert outcomes(run(one, digits, folders())) == alone


@each_method
def test_labels_of_the_pool_are_out_of_reach(
    method: str, first_run: Callable[[str], Any], digits: Problem, folders: Callable[[], Path]
) -> None:
    first = first_run(method)[2]
    trial = make_trial(*METHODS[method], cycles=2)
    initial = Runner(trial, digits, RunStore(folders()), Surroundings()).labelled
    labels = np.random.Generator(np.random.PCG64(1)).integers(0, 10, len(digits.train_labels))
    labels[initial] = digits.train_labels[initial]
    assert (labels != digits.train_labels).sum() > 200
    second = run(trial, replace(digits, train_labels=labels), folders())
    assert second[0].chosen == first[0].chosen
    assert second[0].figures == first[0].figures
    assert second[1].final_loss != first[1].final_loss, "bought labels are used"


@pytest.mark.parametrize("method", [method for method in METHODS if describes(method)])
def test_the_number_of_groups_of_batches_does_not_matter(
    method: str, digits: Problem, folders: Callable[[], Path]
) -> None:
    runner = Runner(make_trial(*METHODS[method]), digits, RunStore(folders()), Surroundings())
    cycle, asking = runner._begin(0), runner.acquisition
    runner.training.fit(cycle)
    prepared = asking.prepare(cycle)
    batches = scoring.cut(cycle.candidates, cycle.recipe)
    assert len(batches) == 3

    def describe(groups: list[Any]) -> dict[str, torch.Tensor]:
        parts = [describe_batches(cycle.network, cycle.images, asking, prepared, group, 17) for group in groups]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    whole = describe([batches])
    assert torch.equal(whole["index"], cycle.candidates)
    assert same(whole, describe([[batch] for batch in batches]))
    backwards = describe([[batches[2]], [batches[1], batches[0]]])
    first, second = whole["index"].argsort(), backwards["index"].argsort()
    assert same({k: v[first] for k, v in whole.items()}, {k: v[second] for k, v in backwards.items()})


@pytest.mark.parametrize("training", ["plain", "isda"])
def test_a_network_learns(training: str, digits: Problem, folders: Callable[[], Path]) -> None:
    recipe = {"epochs": 12, "milestones": [9], "learning_rate": 0.1, "flip": False, "crop_padding": 0}
    trial = make_trial(training, width=8, initial=250, cycles=1, **recipe)
    (record,) = run(trial, digits, folders())
    assert record.figures["accuracy"] > 0.8
    assert record.chosen == []


# ----------------------------------------------------------------------------------------- scores of the logits


def described(name: str, logits: torch.Tensor) -> torch.Tensor:
    """Return the scores of images whose logits are given, through the method's own ``describe``."""
    asking = acquisition(name, logits.shape[1])
    network: Any = lambda images: Outputs(images, images, [])  # noqa: E731
    return asking.describe(network, logits, {}, torch.Generator())["score"]


def acquisition(name: str, classes: int = 10) -> Any:
    plugin = registry.find("methods", name, Acquisition)
    assert plugin is not None
    return plugin(plugin.Settings(), classes)


def bought(name: str, logits: torch.Tensor, budget: int) -> list[int]:
    columns = {"index": torch.arange(len(logits)), "score": described(name, logits)}
    return acquisition(name).choose(columns, dict, budget, torch.Generator()).tolist()


PROBABILITIES = torch.tensor(
    [[0.50, 0.25, 0.25], [0.45, 0.44, 0.11], [0.98, 0.01, 0.01], [0.08, 0.51, 0.41], [1 / 3, 1 / 3, 1 / 3]],
    dtype=torch.float64,
)
BY_HAND = {
    "entropy": [1.5 * math.log(2), None, None, None, math.log(3)],
    "margin": [-0.25, -0.01, -0.97, -0.10, 0.0],
    "least_confidence": [math.log(0.5), math.log(0.55), math.log(0.02), math.log(0.49), math.log(2 / 3)],
    "maxp": [-math.log(0.5), -math.log(0.55), -math.log(0.02), -math.log(0.49), -math.log(2 / 3)],
}
ORDER = {
    "entropy": [4, 0, 1, 3, 2],  # 1.0986, 1.0397, 0.9634, 0.9111, 0.1119
    "margin": [4, 1, 3, 0, 2],
    "least_confidence": [4, 1, 0, 3, 2],
    "maxp": [2, 3, 0, 1, 4],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_by_hand(name: str) -> None:
    logits = PROBABILITIES.log() + torch.tensor([[5.0], [-3.0], [0.0], [100.0], [0.0]])  # softmax sees no shift
    for found, wanted in zip(described(name, logits).tolist(), BY_HAND[name], strict=True):
        assert wanted is None or found == pytest.approx(wanted, abs=1e-9)
    assert bought(name, PROBABILITIES.log(), 5) == ORDER[name]


@pytest.mark.parametrize("name", BY_HAND)
def test_ties_go_to_the_lowest_index(name: str) -> None:
    rows = torch.tensor([0, 1, 0, 2, 1, 0, 2, 1] * 40)
    logits = torch.tensor([[2.0, 1.0, 0.0], [5.0, 1.0, 0.0], [9.0, 1.0, 0.0]])[rows]
    order = [0, 1, 2] if name != "maxp" else [2, 1, 0]
    wanted = [int(row) for kind in order for row in (rows == kind).nonzero()[:, 0]]
    assert bought(name, logits, 320) == wanted
    assert bought(name, logits, 7) == wanted[:7]


def test_maxp_is_least_confidence_backwards() -> None:
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 3
    assert bought("maxp", logits, 200) == bought("least_confidence", logits, 200)[::-1]
    confidence = logits.softmax(1).amax(1)
    assert bought("maxp", logits, 200) == confidence.argsort(descending=True).tolist()


def test_least_confidence_does_not_tie_confident_images() -> None:
    logits = torch.stack([torch.linspace(40, 41, 50), torch.zeros(50)], 1)
    assert bought("least_confidence", logits, 50) == list(range(50))
    assert described("entropy", torch.tensor([[500.0, 0.0], [0.0, 0.0]])).tolist() == pytest.approx([0, math.log(2)])


def test_random_is_uniform_and_without_replacement() -> None:
    asking, counts = acquisition("random"), torch.zeros(6)
    columns = {"index": torch.arange(6)}
    first = torch.zeros(6)
    for seed in range(1200):
        rows = asking.choose(columns, dict, 3, stream("test", seed))
        assert rows.tolist() == asking.choose(columns, dict, 3, stream("test", seed)).tolist()
        assert len(set(rows.tolist())) == 3
        counts[rows] += 1
        first[rows[0]] += 1
    assert ((counts - 600).abs() < 5 * (1200 * 0.25) ** 0.5).all()
    assert ((first - 200).abs() < 5 * (1200 * 5 / 36) ** 0.5).all()
    assert asking.uses_images is False


def test_highest_is_stable() -> None:
    assert highest(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 4).tolist() == [1, 2, 4, 3]


# ----------------------------------------------------------------------------------------------------- core-set


def brute_force(points: torch.Tensor, centers: torch.Tensor, budget: int) -> list[int]:
    """The greedy choice, with all distances of all pairs at each step."""
    picks: list[int] = []
    for _ in range(budget):
        all_centers = torch.cat([centers, points[picks]])
        nearest = (points[:, None] - all_centers).square().sum(2).amin(1).tolist()
        picks.append(max((row for row in range(len(points)) if row not in picks), key=lambda row: nearest[row]))
    return picks


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 24),
    centers=st.integers(1, 9),
    distinct=st.integers(1, 24),
    width=st.integers(1, 20),
    at_once=st.integers(1, 9),
    ahead=st.integers(1, 9),
    memory=st.integers(1, 20_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    offset=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0, 10**6),
    budget=st.integers(1, 24),
)
def test_k_center_is_the_brute_force(
    count: int,
    centers: int,
    distinct: int,
    width: int,
    at_once: int,
    ahead: int,
    memory: int,
    dtype: torch.dtype,
    offset: float,
    seed: int,
    budget: int,
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    few = offset + torch.randn(distinct, width, dtype=dtype, generator=drawn)
    points = few[torch.randint(distinct, (count,), generator=drawn)]  # often with copies, of each other
    labelled = few[torch.randint(distinct, (centers,), generator=drawn)]  # and of centers
    budget = min(budget, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_set, "CENTERS_AT_ONCE", at_once)
        patch.setattr(core_set, "AHEAD", ahead)
        found = core_set.k_center(points, labelled, budget, memory / 1e9).tolist()
    assert found == brute_force(points, labelled, budget)
    assert len(set(found)) == budget


def test_k_center_of_one_point_many_times() -> None:
    points = torch.full((7, 3), 0.3)
    assert core_set.k_center(points, points[:1], 7).tolist() == list(range(7))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_k_center_does_not_depend_on_its_blocks(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.Generator().manual_seed(0)
    sides = torch.randint(2, (300, 1), generator=drawn) * 2 - 1  # two groups far from their mean, where squares cancel
    points = offset * sides + torch.randn(300, 67, generator=drawn).round(decimals=1)
    points[150:] = points[torch.randint(150, (150,), generator=drawn)]
    expected = brute_force(points, points[::9], 40)
    for at_once, ahead, memory in [(1024, 256, 1e9), (13, 256, 0), (50, 1, 5e5), (1024, 40, 3e7)]:
        monkeypatch.setattr(core_set, "CENTERS_AT_ONCE", at_once)
        monkeypatch.setattr(core_set, "AHEAD", ahead)
        assert core_set.k_center(points, points[::9], 40, memory / 1e9).tolist() == expected


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_k_center_keeps_to_its_memory(spread: float) -> None:
    points = spread * torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    core_set.k_center(points[:100], points[:10], 2)
    reset_peak_memory(cpu)
    before = peak_memory(cpu)["host"]
    core_set.k_center(points, points[:1024].clone(), 2, 0.004)
    # 5000 x 1024 bounds are 20 MB; the pairs that matter, which are all where the rows are equal, 82
    assert peak_memory(cpu)["host"] - before < 4_000_000 + 100 * len(points) + 2**23


def test_core_set_asks_for_the_labelled_images(digits: Problem, folders: Callable[[], Path]) -> None:
    trial = make_trial("plain", "core_set", cycles=2)
    (first, _) = run(trial, digits, folders())
    runner = Runner(trial, digits, RunStore(folders()), Surroundings())
    cycle = runner._begin(0)
    runner.training.fit(cycle)
    with torch.no_grad():
        candidates = cycle.candidates.sort().values
        features = [runner.network(runner.images.plain(some)).features for some in (candidates, cycle.labelled)]
    picks = brute_force(features[0].double(), features[1].double(), 20)
    assert first.chosen == candidates[picks].tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_counts_the_images_that_a_method_trains_on(
    digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    training, acquisition = METHODS[name]
    # in whole batches, as a plan counts
    trial = make_trial(training, acquisition, initial=32, candidates=96, epochs=2, batch_size=16)
    runner, cycle = cycle_of(trial, digits, tmp_path)
    taken = 0
    window = Images._window  # of every batch that is trained on

    def counted(self: Images, shape: torch.Size, *arguments: Any, **keys: Any) -> Any:
        nonlocal taken
        taken += shape[0]
        return window(self, shape, *arguments, **keys)

    monkeypatch.setattr(Images, "_window", counted)
    runner.training.fit(cycle)
    assert taken == trial.training_images()[0] + trial.fitting_images(len(cycle.images.pixels))[0]
    taken = 0
    runner.acquisition.prepare(cycle)
    assert taken == trial.preparation_images()[0]
    assert trial.preparation_images()[-1] == 0, "the last cycle chooses nothing"

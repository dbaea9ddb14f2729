from __future__ import annotations

import ast
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import changed, make_trial, nothing, opened, outcomes, run, same, share, spec, state_of
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness import trial as trial_module
from harness.config.suite import PluginSpec
from harness.data import host
from harness.data.dataset import DatasetSettings, LoadedData
from harness.data.oracle import TrueLabels
from harness.errors import NonFiniteLoss, OutOfMemory
from harness.learning import fit as fit_module
from harness.learning import pool
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.fit import batches, final_loss, fit, learning_rate
from harness.learning.inference import evaluating, tally
from harness.learning.labels import cross_entropy
from harness.learning.metrics import by_name, calibration, summary
from harness.learning.process import Placement, limit_memory
from harness.learning.scoring import InProcess, warm_up
from harness.networks.network import Network, Outputs
from harness.report.captions import record_warnings
from harness.results import clock as clock_module
from harness.results.clock import Clock
from harness.results.records import PHASES, CycleRecord
from harness.results.store import RunStore, TrialStore
from harness.seeds import key, stream
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner, run_trial

Folders = Callable[[], Path]


def follows_cross_entropy(name: str) -> bool:
    """Return whether a file is an acquisition that follows the default training with its default settings."""
    plugin = registry.find("methods", name, Acquisition)
    if plugin is None or registry.find("methods", name, Training) is not None:
        return False
    return plugin.needed(plugin.Settings()) <= CrossEntropy.gives


CrossEntropy: Any = registry.find("methods", "cross_entropy", Training)
AFTER_CROSS_ENTROPY = [name for name in registry.names("methods") if follows_cross_entropy(name)]


def fit_with(cycle: Cycle, loss: Callable[[Outputs, torch.Tensor, float], torch.Tensor]) -> float:
    """Train a cycle's network with another loss than that of its training."""
    training = Training(Training.Settings(), 10)
    training.loss = loss  # type: ignore[method-assign]
    return fit(cycle, training)


# ----------------------------------------------------------------------------------------------------- one start


@pytest.mark.long
def test_methods_of_one_training_start_alike(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(AFTER_CROSS_ENTROPY) >= 6
    seen: list[Any] = []
    real = Training.fit

    def spy(self: Training, cycle: Cycle) -> float:
        seen.append((cycle.labelled.tolist(), cycle.labels.tolist(), cycle.candidates.tolist()))
        return real(self, cycle)

    monkeypatch.setattr(Training, "fit", spy)
    for acquisition in AFTER_CROSS_ENTROPY:
        seen.clear()
        records = run(make_trial("cross_entropy", acquisition, cycles=2), digits, folders())
        start = (records[0].metrics, records[0].final_loss, seen[0])
        if acquisition == AFTER_CROSS_ENTROPY[0]:
            first = start
        assert start == first
    labelled, labels, candidates = first[2]
    assert labels == digits.train_labels[labelled].tolist()
    assert len(labelled) == 40
    assert len(candidates) == 150
    assert not set(labelled) & set(candidates)


def test_a_cycle_knows_labelled_and_unlabelled_images(digits: LoadedData) -> None:
    _, cycle = opened(make_trial(), digits)
    assert sorted([*cycle.labelled.tolist(), *cycle.unlabelled.tolist()]) == list(range(300))
    assert (cycle.unlabelled.diff() > 0).all()
    assert not any(isinstance(value, LoadedData | TrueLabels) for value in vars(cycle).values())


def test_selected_images_are_trained_on_next(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Training.fit

    def spy(self: Training, cycle: Cycle) -> float:
        seen.append((cycle.labelled.tolist(), cycle.labels.tolist()))
        return real(self, cycle)

    monkeypatch.setattr(Training, "fit", spy)
    records = run(make_trial("cross_entropy", "entropy"), digits, folders())
    for number in (1, 2):
        labelled, labels = seen[number]
        assert labelled == seen[number - 1][0] + records[number - 1].selected
        assert labels == digits.train_labels[labelled].tolist()


@pytest.mark.parametrize(("training", "acquisition"), [("cross_entropy", "entropy"), ("isda", "epmcm")])
@pytest.mark.parametrize("start", ["warm", "fresh"])
def test_a_shared_first_cycle_is_the_cycle_itself(
    training: str, acquisition: str, start: str, digits: LoadedData, folders: Folders
) -> None:
    trial = make_trial(training, acquisition, start=start)
    alone_in, folder = folders(), folders()
    alone = run(trial, digits, alone_in)
    reported: list[CycleRecord] = []
    share(make_trial(training, "random", start=start), digits, folder, reported.append)
    shared = RunStore(folder).shared(trial.sharing_key).records()
    assert [(r.cycle, r.selected, r.scoring["path"]) for r in shared] == [(0, [], "none")]
    records = run(trial, digits, folder)
    assert outcomes(records) == outcomes(alone)
    assert same(state_of(trial, folder)["network"], state_of(trial, alone_in)["network"])
    assert same(state_of(trial, folder)["training"], state_of(trial, alone_in)["training"])
    assert [r.shared_from for r in records] == [trial.sharing_key, None, None]
    assert [r.shared_from for r in alone] == [None] * 3
    for r in (records[0], alone[0]):
        assert (r.confusion, r.calibration) == (shared[0].confusion, shared[0].calibration) and r.confusion
    for phase in ("train", "evaluate"):
        assert records[0].seconds[phase] == shared[0].seconds[phase] > 0
    assert records[0].seconds["score"] > 0
    assert records[0].wall_seconds < sum(records[0].seconds.values())
    before = RunStore(folder).shared(trial.sharing_key).records()
    share(trial, digits, folder, reported.append)  # finished: not trained again
    assert RunStore(folder).shared(trial.sharing_key).records() == before
    assert reported == [shared[0], shared[0]]
    assert records[0].peak_memory_bytes["host"] >= shared[0].peak_memory_bytes["host"] > 0


def test_auxiliary_seconds_of_a_shared_training_are_its_cost(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Training.fit

    def with_another_network(self: Training, cycle: Cycle) -> float:
        with cycle.clock.phase("auxiliary"):
            time.sleep(0.05)
        return real(self, cycle)

    monkeypatch.setattr(Training, "fit", with_another_network)
    folder, trial = folders(), make_trial("cross_entropy", "entropy", cycles=2)
    share(trial, digits, folder)
    shared = RunStore(folder).shared(trial.sharing_key).records()[0]
    records = run(trial, digits, folder)
    assert records[0].seconds["auxiliary"] == shared.seconds["auxiliary"] >= 0.05
    assert records[1].seconds["auxiliary"] >= 0.05


def test_sharing_needs_the_same_training() -> None:
    trial = make_trial()
    alike = [
        make_trial("cross_entropy", "entropy"),
        make_trial(budget=5),
        make_trial(cycles=9),
        make_trial(start="fresh"),
    ]
    others = [
        make_trial("isda"),
        make_trial(seed=4),
        make_trial(epochs=2),
        make_trial(initial=41),
        make_trial(candidates=None),
        make_trial(width=6),
        make_trial(dataset=PluginSpec("digits", DatasetSettings(limit=9))),
    ]
    assert {t.sharing_key for t in alike} == {trial.sharing_key}
    assert trial.sharing_key not in {t.sharing_key for t in others}
    assert len({t.id for t in [trial, *alike, *others]}) == 11
    assert make_trial(cycles=9).id == trial.id, "no cycle depends on how many follow"


# ------------------------------------------------------------------------------------------------- what is not done


def test_nothing_is_selected_after_the_last_cycle(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin: Any = registry.find("methods", "core_set", Acquisition)
    calls: list[str] = []
    for name in ("prepare", "describe", "select"):
        real = getattr(plugin, name)

        def spy(self: Any, *arguments: Any, name: str = name, real: Any = real) -> Any:
            calls.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(plugin, name, spy)
    records = run(make_trial("cross_entropy", "core_set"), digits, folders())
    assert calls == ["prepare", "describe", "describe", "describe", "select", "describe"] * 2
    assert [r.scoring["path"] for r in records] == ["in_process", "in_process", "none"]
    assert [[s["images"] for s in r.scoring["shards"]] for r in records] == [[150], [150], []]
    assert [len(r.selected) for r in records] == [20, 20, 0]
    assert records[2].seconds["score"] == records[2].seconds["select"] == 0
    assert min(records[1].seconds["score"], records[1].seconds["select"]) > 0


def test_random_looks_at_no_image(digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("nothing is to be described")

    monkeypatch.setattr(InProcess, "describe", never)
    records = run(make_trial("cross_entropy", "random"), digits, folders())
    assert [r.scoring for r in records] == [{"path": "none", "shards": []}] * 3
    assert len(set(records[0].selected + records[1].selected)) == 40


def test_the_whole_pool_can_be_selected(digits: LoadedData, folders: Folders) -> None:
    records = run(make_trial("cross_entropy", "margin", initial=280, budget=10, candidates=None), digits, folders())
    assert [r.labelled for r in records] == [280, 290, 300]


# -------------------------------------------------------------------------------------------------------- training


def test_a_loss_that_is_not_finite_stops_the_trial(digits: LoadedData, folders: Folders) -> None:
    trial, folder = make_trial(learning_rate=1e6, epochs=3), folders()
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, epoch \d, training step \d: .* (nan|inf).*learning_rate"):
        run(trial, digits, folder)
    assert RunStore(folder).trial(trial.id).records() == []


def test_the_step_of_a_loss_that_is_not_finite_is_named(digits: LoadedData) -> None:
    cycle = replace(opened(make_trial(epochs=4), digits)[1], number=5)
    steps = []

    def loss(outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        steps.append(progress)
        return outputs.logits.square().mean() * (float("inf") if len(steps) == 3 + 2 else 1.0)

    with pytest.raises(NonFiniteLoss, match="cycle 5, epoch 1, training step 1: the loss is inf"):
        fit_with(cycle, loss)
    assert len(steps) == 6, "the epoch in which it happened is the last"


@pytest.mark.parametrize("name", ["cross_entropy", "isda", "ll4al", "ads"])
def test_a_network_that_the_last_step_breaks_fails_the_cycle(name: str, digits: LoadedData, folders: Folders) -> None:
    # one step, so that no loss can show what it did; random selection reads no score
    trial, folder = make_trial(name, learning_rate=1e6, batch_size=64), folders()
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, after the last step: the class scores .* NaN; .*learning rate"):
        run(trial, digits, folder)
    assert RunStore(folder).trial(trial.id).records() == []


@pytest.mark.parametrize(
    ("training", "acquisition", "where", "part"),
    [
        ("cross_entropy", "random", "the target network", "parameter"),
        ("cross_entropy", "random", "the target network", "buffer"),
        ("ll4al", "random", "the training's module 1", "parameter"),
        ("ads", "random", "the training's module 1", "parameter"),
        ("cross_entropy", "vaal", "the acquisition's module 1", "buffer"),
        ("cross_entropy", "sraal", "the acquisition's module 1", "parameter"),
        ("cross_entropy", "qbc", "the acquisition's module 1", "buffer"),
    ],
)
def test_every_network_is_finite_after_its_training(
    training: str, acquisition: str, where: str, part: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, cycle = opened(make_trial(training, acquisition), digits)
    half, hook = (learner.acquisition, "prepare") if "acquisition" in where else (learner.training, "fit")
    real = getattr(half, hook)

    def broken(cycle: Cycle) -> Any:
        found = real(cycle)
        module = cycle.network if "target" in where else half.module
        tensors = dict(module.named_buffers() if part == "buffer" else module.named_parameters())
        name, tensor = next((name, t) for name, t in reversed(tensors.items()) if t.is_floating_point())
        tensor.data.flatten()[-1] = float("inf")
        broken.name = name  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(half, hook, broken)
    with pytest.raises(NonFiniteLoss) as caught:
        learner.train(cycle)
        learner.select(cycle)
    said = f"cycle 0, after the last step: {broken.name!r} of {where} has NaN or infinite values"  # type: ignore[attr-defined]
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("name", "rate"), [("cross_entropy", -0.1), ("ads", -0.5)])
def test_a_loss_that_exploded_is_a_warning(
    name: str, rate: float, digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fit_module, sys.modules[type(opened(make_trial(name), digits)[0].training).__module__]):
        monkeypatch.setattr(module, "learning_rate", lambda *_, **__: rate, raising=False)  # uphill
    trial, folder = make_trial(name, "random", epochs=4, cycles=1), folders()
    share(trial, digits, folder)
    records = run(trial, digits, folder)
    warning = records[0].warnings[0]
    assert warning.startswith("the loss exploded: in the last epoch it is over 10 times that of the first step")
    assert record_warnings(records)[0] == f"warning: {warning} ({trial.id} cycle 0)"
    if name != "ads":
        committee = run(changed(trial, acquisition=spec("qbc", Acquisition), cycles=2), digits, folders())
        assert any(w.startswith("qbc, member 1: the loss exploded") for w in committee[0].warnings)


@pytest.mark.parametrize(
    ("start", "last", "exploded"),
    [(2.4, 23.9, False), (2.4, 24.1, True), (30.0, 299.0, False), (30.0, 301.0, True)],
)
def test_what_counts_as_exploded(start: float, last: float, exploded: bool, digits: LoadedData) -> None:
    _, cycle = opened(make_trial(), digits)
    assert final_loss(torch.tensor([last - 1, last + 1]), start, cycle) == pytest.approx(last)
    assert [w.startswith("the loss exploded") for w in cycle.warnings] == [True] * exploded


def test_a_low_loss_that_a_warm_network_starts_from_is_no_measure(digits: LoadedData) -> None:
    values = iter([0.001, *[2.0] * 5])

    def loss(outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        return outputs.logits.sum() * 0 + next(values)

    _, cycle = opened(make_trial(epochs=2), digits)
    assert fit_with(cycle, loss) == 2
    assert not cycle.warnings


def test_a_warm_network_that_has_exploded_warns_again(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    for own in (False, True):
        _, cycle = opened(make_trial(learning_rate=1e-6), digits)
        cycle.network.classifier.weight.data *= 1e4
        training = Training(Training.Settings(), 10)
        if own:  # nobody knows what its loss is for guesses
            monkeypatch.setattr(training, "loss", lambda outputs, labels, _: cross_entropy(outputs.logits, labels))
        assert fit(cycle, training) > 100
        assert len(cycle.warnings) == (not own)


@pytest.mark.parametrize("initial", [33, 17, 16, 5])
def test_a_last_batch_of_one_image(initial: int, digits: LoadedData, folders: Folders) -> None:
    (record,) = run(make_trial(initial=initial, cycles=1), digits, folders())
    assert record.training_images == initial
    assert np.isfinite(record.final_loss or 0.0)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(2, 20))
def test_an_epoch_has_every_image_once(count: int, size: int) -> None:
    drawn = torch.Generator().manual_seed(1)
    parts = batches(count, Recipe(epochs=1, batch_size=size), drawn, torch.device("cpu"))
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(len(part) == size for part in parts[:-1])
    assert 1 < len(parts[-1]) <= size + 1 or count == 1
    again = batches(count, Recipe(epochs=1, batch_size=size), drawn, torch.device("cpu"))
    assert count < 8 or torch.cat(again).tolist() != torch.cat(parts).tolist(), "the next epoch has another order"


def test_learning_rate_schedule(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=6, learning_rate=0.2, milestones=[2, 5], gamma=0.1)
    expected = [0.2, 0.2, 0.02, 0.02, 0.02, 0.002]
    assert [learning_rate(recipe, epoch) for epoch in range(6)] == pytest.approx(expected)
    used: list[Any] = []
    real = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        used.append({k: self.param_groups[0][k] for k in ("lr", "momentum", "weight_decay")})
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    keys = {"epochs": 6, "learning_rate": 0.2, "milestones": [2, 5], "momentum": 0.8, "weight_decay": 0.01}
    learner, cycle = opened(make_trial(**keys), digits)
    learner.training.fit(cycle)
    assert [group["lr"] for group in used] == pytest.approx([lr for lr in expected for _ in range(3)])
    assert {(group["momentum"], group["weight_decay"]) for group in used} == {(0.8, 0.01)}


@pytest.mark.parametrize("name", ["cross_entropy", "ll4al", "ads"])
def test_the_learning_rate_warms_up_step_by_step(
    name: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 images are 3 steps an epoch; ADS trains the first epoch twice. Milestones count from the first epoch."""
    used: list[float] = []
    real = torch.optim.Optimizer.zero_grad

    def spy(self: torch.optim.Optimizer, *arguments: Any, **keys: Any) -> Any:
        if self.param_groups[0]["momentum"]:  # the recipe's optimizer: ADS has two others
            used.append(self.param_groups[0]["lr"])
        return real(self, *arguments, **keys)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", spy)
    keys = {"epochs": 4, "learning_rate": 0.06, "warmup_epochs": 2, "milestones": [3]}
    learner, cycle = opened(make_trial(name, **keys), digits)
    learner.training.fit(cycle)
    ahead = name != "cross_entropy"  # their code steps the scheduler before an epoch
    first, third = [0.01, 0.02, 0.03], 0.006 if ahead else 0.06
    expected = [*(first if name == "ads" else []), *first, 0.04, 0.05, 0.06, *[third] * 3, *[0.006] * 3]
    assert used == pytest.approx(expected)


def test_without_warm_up_every_step_has_the_full_rate() -> None:
    recipe = Recipe(epochs=6, learning_rate=0.2, milestones=[2])
    assert learning_rate(recipe, 1, 1 / 3) == 0.2 == learning_rate(recipe, 0, 0.0)
    with pytest.raises(ValueError, match=r"must be at most epochs \(6\), got 7"):
        Recipe(epochs=6, warmup_epochs=7)


def test_the_loss_of_the_last_epoch_is_returned(digits: LoadedData) -> None:
    _, cycle = opened(make_trial(epochs=3), digits)
    values: list[float] = []

    def loss(outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        assert cycle.network.training
        value = F.cross_entropy(outputs.logits, labels)
        values.append(float(value.detach()))
        return value

    assert fit_with(cycle, loss) == pytest.approx(sum(values[-3:]) / 3, rel=1e-6)
    assert not cycle.network.training


@pytest.mark.parametrize("heads", [1, 2])
def test_top_5_accuracy_counts_labels_among_the_five_highest_scores(heads: int, digits: LoadedData) -> None:
    learner, _ = opened(make_trial(), digits)
    scores = torch.randn(heads, 100, 10, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def predict(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
        start = sum(asked)
        asked.append(len(images))
        if len(images) > 30:  # the batch is halved, and nothing is counted twice
            asked.pop()
            raise torch.OutOfMemoryError
        return [*scores[:, start : start + len(images)]]

    labels = learner.test_labels
    found = tally(
        learner.network, learner.test_images, labels, 10, learner.trial.recipe, predict, logits=heads == 1, top=True
    )
    rank = (scores > scores.gather(2, labels.expand(heads, -1)[..., None])).sum(2)
    assert found.in_top == int((rank < 5).sum()) and int(found.confusion.sum()) == heads * 100


def test_top_5_accuracy_is_in_the_record_if_the_dataset_asks_for_it(digits: LoadedData, folders: Folders) -> None:
    asked = make_trial(cycles=1, dataset=PluginSpec("digits", DatasetSettings(top5=True)))
    (record,), (plain,) = run(asked, digits, folders()), run(make_trial(cycles=1), digits, folders())
    assert record.metrics["accuracy"] == plain.metrics["accuracy"] <= record.metrics["top5"] <= 1
    assert {*plain.metrics} == {"accuracy"} and asked.id != make_trial(cycles=1).id


def test_accuracy_counts_right_answers(digits: LoadedData) -> None:
    learner, _ = opened(make_trial(), digits)
    learner.network.train()
    answers = torch.eye(10)[learner.test_labels].clone()
    answers[::4] = answers[::4].roll(1, 1)
    asked: list[int] = []

    def predict(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
        assert not network.training
        assert not torch.is_grad_enabled()
        start = sum(asked)
        asked.append(len(images))
        right = torch.eye(10)[learner.test_labels][start : start + len(images)]
        return [answers[start : start + len(images)], right]  # two heads: one is wrong on every fourth image

    counts = tally(
        learner.network, learner.test_images, learner.test_labels, 10, learner.trial.recipe, predict, logits=False
    ).confusion
    assert summary(counts, (), per_pixel=False) == ({"accuracy": (0.75 + 1) / 2}, {})
    assert summary(counts, (), per_pixel=False, in_top=150)[0] == {"accuracy": (0.75 + 1) / 2, "top5": 0.75}
    assert counts[1].equal(torch.diag(learner.test_labels.bincount(minlength=10)))
    assert asked == [64, 36]
    assert learner.network.training, "left as it was"
    with pytest.raises(ZeroDivisionError), evaluating(learner.network):
        _ = 1 / 0
    assert learner.network.training


def test_calibration_is_that_of_the_definitions(digits: LoadedData) -> None:
    learner, _ = opened(make_trial(), digits)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(len(digits.test_labels), 10, generator=generator)
    logits[torch.arange(len(logits)), learner.test_labels] += 2
    logits[0] = torch.eye(10)[3] * 1000  # a confidence of 1 belongs to the last bin
    asked: list[int] = []

    def predict(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
        asked.append(len(images))
        return [logits[sum(asked) - len(images) : sum(asked)]]

    found = tally(learner.network, learner.test_images, learner.test_labels, 10, learner.trial.recipe, predict)
    likely = logits.double().softmax(1)
    confidence, predicted = likely.max(1)
    right = (predicted == learner.test_labels).double()
    ece = 0.0
    for number in range(15):  # each bin without its lower bound
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            ece += float(inside.double().mean() * (right[inside].mean() - confidence[inside].mean()).abs())
    values = calibration(found)
    assert values["ece"] == pytest.approx(ece, abs=1e-6)
    assert values["nll"] == pytest.approx(float(F.cross_entropy(logits.double(), learner.test_labels)), rel=1e-5)
    counts = by_name(found.confusion, digits.classes)
    assert len(counts) == 1 and [*counts[0]] == [*digits.classes]
    for label, row in enumerate(counts[0].values()):
        for answer, name in enumerate(digits.classes):
            together = (learner.test_labels == label) & (predicted == answer)
            assert row.get(name, 0) == together.sum() and row.get(name) != 0


def test_scores_that_are_no_logits_have_no_calibration(digits: LoadedData, folders: Folders) -> None:
    plain, heads = (run(make_trial(*halves), digits, folders()) for halves in ((), ("ads", "ads")))
    assert all({*record.calibration} == {"nll", "ece"} and len(record.confusion) == 1 for record in plain)
    assert all(not record.calibration and len(record.confusion) == 2 for record in heads)
    for record in [*plain, *heads]:
        right = sum(row.get(name, 0) for head in record.confusion for name, row in head.items())
        every = sum(count for head in record.confusion for row in head.values() for count in row.values())
        assert record.metrics["accuracy"] == right / every


def test_warm_start_carries_the_weights(digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(cycle: Cycle, training: Training) -> float:
        for step in (lambda: 0.0, lambda: fit(cycle, training)):
            loss = step()
            seen.append({k: v.clone() for k, v in cycle.network.state_dict().items()})
        return loss

    monkeypatch.setattr("harness.learning.contract.fit", spy)
    for start in ("warm", "fresh"):
        seen.clear()
        run(make_trial(start=start), digits, folders())
        assert same(seen[2], seen[1]) is same(seen[4], seen[3]) is (start == "warm")
        assert not same(seen[0], seen[2])


def test_what_draws_from_torchs_global_stream_is_reproduced(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dropout does."""

    def loss(self: Training, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(F.dropout(outputs.logits), labels)

    monkeypatch.setattr(Training, "loss", loss)
    trial, folder = make_trial("cross_entropy", "entropy"), folders()
    torch.manual_seed(1)
    first = run(trial, digits, folder)
    torch.manual_seed(2)
    assert outcomes(run(trial, digits, folders())) == outcomes(first)
    for path in RunStore(folder).trial(trial.id).folder.glob("*_002.*"):
        path.unlink()
    torch.manual_seed(3)
    assert outcomes(run(trial, digits, folder)) == outcomes(first), "also from its last cycle on"


# ------------------------------------------------------------------------------------------------------------ pool


def protocol(**keys: Any) -> Protocol:
    return Protocol(**{"initial": 20, "budget": 5, "cycles": 3, "start": "warm", **keys})


def test_initial_set() -> None:
    drawn = pool.initial_set(protocol(), 100, 1)
    assert drawn.tolist() == pool.initial_set(protocol(candidates=50, budget=7), 100, 1).tolist()
    assert len(set(drawn.tolist())) == 20
    assert drawn.max() < 100
    assert drawn.tolist() != sorted(drawn.tolist()), "in the order they were drawn"
    assert set(drawn) != set(pool.initial_set(protocol(), 100, 2))
    assert drawn.tolist() == pool.initial_set(protocol(initial=30), 100, 1)[:20].tolist()
    for_all = [pool.initial_set(protocol(initial_set="per_run"), 100, seed).tolist() for seed in range(3)]
    assert for_all[0] == for_all[1] == for_all[2]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), cycle=st.integers(0, 5), labelled=st.integers(0, 60), count=st.integers(1, 60))
def test_candidates_are_the_first_unlabelled_of_one_permutation(
    seed: int, cycle: int, labelled: int, count: int
) -> None:
    subset = protocol(candidates=count, budget=1)
    order = pool.candidates(protocol(), 60, np.array([], dtype=np.int64), seed, cycle)
    assert sorted(order.tolist()) == list(range(60))
    selected = pool.initial_set(protocol(initial=60), 60, seed)[:labelled]
    candidates = pool.candidates(subset, 60, selected, seed, cycle)
    assert candidates.tolist() == [index for index in order if index not in selected][:count]


def test_candidates_are_mostly_shared_between_methods() -> None:
    one, other = np.arange(0, 300), np.arange(300, 600)
    subset = protocol(candidates=500)
    candidates = [set(pool.candidates(subset, 5000, labelled, 1, 2).tolist()) for labelled in (one, other)]
    assert len(candidates[0] & candidates[1]) > 400
    assert candidates[0] != set(pool.candidates(subset, 5000, one, 1, 3).tolist()), "another cycle draws others"
    assert candidates[0] != set(pool.candidates(subset, 5000, one, 2, 2).tolist())


def test_streams_are_named() -> None:
    assert key(1, "order", 2) == key(1, "order", 2)
    assert len({key(1, "order", 2), key(12, "order"), key(1, "order", 3), key(1, "augmentation", 2)}) == 4
    drawn = [torch.rand(3, generator=stream(0, "x", n)).tolist() for n in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


# ---------------------------------------------------------------------------------------------------------- memory


def give_memory_for(images_at_once: int, training: bool, patch: pytest.MonkeyPatch) -> None:
    """Let a network's forward pass, while it trains or while it does not, fail on more images."""
    real = Network.forward

    def forward(self: Network, images: torch.Tensor, stages: bool = False) -> Outputs:
        if self.training == training and len(images) > images_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images, stages)

    patch.setattr(Network, "forward", forward)


@pytest.mark.parametrize("method", ["cross_entropy entropy", "cross_entropy core_set", "dropout mc_dropout"])
def test_inference_goes_on_with_the_batches_that_fit(
    method: str, digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(*method.split(), cycles=2)
    whole = run(trial, digits, folders())
    assert [r.warnings for r in whole] == [[], []]
    give_memory_for(20, training=False, patch=monkeypatch)
    first, last = run(trial, digits, folders())
    assert last.warnings[0] == "evaluation: 64 images at a time did not fit into the device's memory, 16 did"
    scoring = "scoring: 64 images at a time did not fit into the device's memory, 16 did"
    assert first.metrics == whole[0].metrics and len(set(first.selected)) == 20
    if method == "dropout mc_dropout":
        other = "; the method's random numbers therefore differ from those for whole batches"
        assert first.warnings[1] == scoring + other
    else:
        assert first.warnings[1] == scoring and first.selected == whole[0].selected


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (("cross_entropy", "sraal"), "sraal's pass over the unlabelled images"),
        (("isda", spec("epmcm", Acquisition, statistics="fresh")), "the labelled images' logits"),
    ],
)
def test_passes_before_scoring_go_on_with_the_batches_that_fit(
    method: tuple[Any, Any], what: str, digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(*method, cycles=2, inference_batch_size=32)
    whole = run(trial, digits, folders())
    give_memory_for(20, training=False, patch=monkeypatch)
    divided = run(trial, digits, folders())
    assert f"{what}: 32 images at a time did not fit into the device's memory, 16 did" in divided[0].warnings
    assert outcomes(divided) == outcomes(whole)


def test_an_image_that_does_not_fit_stops_the_trial(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory_for(0, training=False, patch=monkeypatch)
    with pytest.raises(OutOfMemory, match=r"evaluation: .*recipe\.inference_batch_size .*image.*where\.gpus_per_trial"):
        run(make_trial("cross_entropy", "entropy"), digits, folders())


@pytest.mark.parametrize("pseudo_labels", [False, True])
def test_scoring_that_does_not_fit_stops_the_trial(
    pseudo_labels: bool, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, cycle = opened(make_trial("isda", spec("epmcm", Acquisition, pseudo_labels=pseudo_labels)), digits)
    learner.train(cycle)
    give_memory_for(0, training=False, patch=monkeypatch)
    with pytest.raises(OutOfMemory, match=r"scoring: .*recipe\.inference_batch_size"):
        learner.select(cycle)


def test_pseudo_labels_enter_whole_batches_where_images_are_described_in_parts(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch's scores depend on the batches before it: these stay those of the recipe."""
    trial = make_trial("isda", spec("epmcm", Acquisition, pseudo_labels=True))
    whole = run(trial, digits, folders())
    other = run(changed(trial, inference_batch_size=20), digits, folders())
    assert other[0].metrics == whole[0].metrics and other[0].selected != whole[0].selected
    give_memory_for(20, training=False, patch=monkeypatch)
    divided = run(trial, digits, folders())
    assert "scoring: 64 images at a time did not fit into the device's memory, 16 did" in divided[0].warnings
    assert outcomes(divided) == outcomes(whole)


def test_a_training_that_does_not_fit_stops_the_trial(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory_for(15, training=True, patch=monkeypatch)
    message = r"training of cycle 0: .*recipe\.batch_size, recipe\.crop_size .*where\.gpus_per_trial"
    with pytest.raises(OutOfMemory, match=message):
        run(make_trial("cross_entropy", "entropy"), digits, folders())


def test_a_training_that_does_not_fit_into_the_hosts_memory_is_a_sentence(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "fit", lambda *_: torch.empty(10**13))  # no system gives 40 TB
    with pytest.raises(OutOfMemory) as refused:
        run(make_trial("cross_entropy", "entropy"), digits, folders())
    assert str(refused.value) == (
        "training of cycle 0: this machine's memory is full: 40000.0 GB more were needed; lower recipe.batch_size, "
        "recipe.crop_size or the method's own batch_size, or run fewer trials at once (where.max_concurrent)"
    )


def test_peak_memory_is_a_cycles_own(digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Training.fit

    def fit_with_much(self: Training, cycle: Cycle) -> float:
        if cycle.number == 0:
            torch.ones(2**26)  # 256 MiB
        return real(self, cycle)

    monkeypatch.setattr(Training, "fit", fit_with_much)
    first, second, _ = (
        r.peak_memory_bytes["host"] for r in run(make_trial("cross_entropy", "entropy"), digits, folders())
    )
    assert first - second > 2**27


def test_a_process_takes_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limits: asked.append(limits))
    monkeypatch.setattr(host, "sharing", 1)
    monkeypatch.setattr(host, "free_memory", lambda: 1000)
    limit_memory(torch.device("cpu"), Placement(gpu_share=0.25))
    limit_memory(torch.device("cuda"), Placement(gpu_share=0.25, sharing=4))
    assert asked == [(0.25, None)], "the current GPU: torch refuses a device without an index"
    assert host.own_memory() == 250


# ----------------------------------------------------------------------------------------------------------- clock


def test_clock_books_nested_phases_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    clock = Clock(torch.device("cpu"))
    wait(1000)  # no phase is open
    with clock.phase("setup"):
        wait(1)
        with clock.phase("train"):
            wait(2)
            with clock.phase("auxiliary"):
                wait(4)
            wait(8)
        with pytest.raises(ZeroDivisionError), clock.phase("score"):
            wait(16)
            _ = 1 / 0
        wait(32)
    wait(1000)
    with clock.phase("train"):
        wait(64)
    expected = {"setup": 33, "train": 74, "auxiliary": 4, "score": 16}
    assert clock.seconds == {phase: expected.get(phase, 0) for phase in PHASES}
    with pytest.raises(AssertionError, match="not a phase"), clock.phase("lunch"):
        pass


def test_every_part_of_a_cycle_has_its_phase(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    core_set: Any = registry.find("methods", "core_set", Acquisition)
    parts = [
        ("setup", 1, pool, "candidates"),
        ("train", 2, Training, "fit"),
        (
            "evaluate",
            4,
            Training,
            "predict",
        ),  # twice: 100 images, 64 at once; once more for the pictures of a checkpoint
        ("evaluate", 8, trial_module, "summary"),
        ("score", 16, core_set, "prepare"),
        ("score", 32, core_set, "describe"),  # four times: 150 and 40 images
        ("select", 64, core_set, "select"),
        ("checkpoint", 128, TrialStore, "save_state"),
        ("checkpoint", 256, trial_module, "commit"),
        ("checkpoint", 512, ActiveLearner, "count_parameters"),
    ]
    for _, seconds, owner, name in parts:
        real = getattr(owner, name)

        def wait(*arguments: Any, seconds: int = seconds, real: Any = real) -> Any:
            now[0] += seconds
            return real(*arguments)

        monkeypatch.setattr(owner, name, wait)
    first = run(make_trial("cross_entropy", "core_set", cycles=2), digits, folders())[0]
    expected = {
        "setup": 1,
        "train": 2,
        "evaluate": 2 * 4 + 8,
        "score": 16 + 4 * 32,
        "select": 64,
        "checkpoint": 896 + 4,
    }
    assert first.seconds == {phase: expected.get(phase, 0) for phase in PHASES}
    assert first.wall_seconds == sum(expected.values())


@pytest.mark.parametrize("start", ["warm", "fresh"])
@pytest.mark.parametrize(
    "method", ["cross_entropy core_set", "isda epmcm", "ll4al ll4al", "cross_entropy vaal", "cross_entropy qbc"]
)
def test_phases_of_a_record_make_up_its_wall_time(
    method: str,
    start: str,
    digits: LoadedData,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The clock stands still while other processes have the cores, which may be longer than a whole cycle."""
    gc.disable()  # so does the collection of other tests' garbage
    request.addfinalizer(gc.enable)
    trial, elsewhere = make_trial(*method.split(), epochs=2, start=start), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: time.process_time() + elsewhere[0])

    def report(record: CycleRecord) -> None:
        elsewhere[0] += 10.0  # what is done with a record is no cycle's time

    folder = folders()
    records = run(trial, digits, folder, report)
    (RunStore(folder).trial(trial.id).folder / "cycle_002.json").unlink()
    records = [*records, run(trial, digits, folder, report)[2]]  # resumed: two reports before it
    assert len(records) == 4
    for record in records:
        assert record.seconds.keys() == set(PHASES)
        total = sum(record.seconds.values())
        assert total <= record.wall_seconds
    assert sum(sum(r.seconds.values()) for r in records) > 0.999 * sum(r.wall_seconds for r in records)


def test_a_record_says_what_was_run(digits: LoadedData, folders: Folders) -> None:
    folder, trial = folders(), changed(make_trial("isda", "epmcm"), epochs=2)
    store = RunStore(folder)
    run_trial(ActiveLearner(trial, digits, Placement(device_share=3)), store, "suite", "name", nothing)
    record = store.trial(trial.id).records()[1]
    assert (record.suite, record.method, record.dataset, record.model) == ("suite", "name", "digits", "resnet_small")
    assert (record.trial, record.seed, record.cycle, record.labelled) == (trial.id, 3, 1, 60)
    assert (record.device, record.device_share, record.threads) == ("cpu", 3, 1)
    assert record.training_images == 120
    assert record.extra_parameters == 0
    assert record.target_parameters == sum(
        value.numel()
        for name, value in state_of(trial, folder)["network"].items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert record.peak_memory_bytes["host"] > 2**20
    assert record.data_fingerprint == digits.fingerprint
    assert {"torch", "timm", "python"} <= record.versions.keys()


# ---------------------------------------------------------------------------------------------------------- oracle


def test_labels_of_images_that_are_never_selected_change_nothing(digits: LoadedData, folders: Folders) -> None:
    trial = make_trial("isda", "epmcm")
    before = run(trial, digits, folders())
    selected = pool.initial_set(trial.protocol, len(digits.train_labels), trial.seed).tolist()
    selected += [index for record in before for index in record.selected]
    labels = np.random.default_rng(0).integers(0, 10, len(digits.train_labels))
    labels[selected] = digits.train_labels[selected]
    after = run(trial, replace(digits, train_labels=labels), folders())
    assert [(r.metrics, r.selected) for r in before] == [(r.metrics, r.selected) for r in after]


class Spy(TrueLabels):
    """An oracle that keeps what it is asked."""

    def __init__(self, data: LoadedData) -> None:
        super().__init__(data)
        self.asked: list[list[int]] = []

    def labels(self, indices: Any, device: torch.device) -> Any:
        self.asked.append(indices.tolist())
        return super().labels(indices, device)


@pytest.mark.parametrize(
    "method", ["cross_entropy entropy", "isda epmcm", "cross_entropy sraal", "cross_entropy qbc", "ads ads"]
)
def test_the_oracle_is_asked_for_labelled_images_alone(method: str, digits: LoadedData) -> None:
    oracle = Spy(digits)
    learner = ActiveLearner(make_trial(*method.split()), digits, oracle=oracle)
    known = learner.labelled.tolist()
    assert oracle.asked == [] and len(known) == 40
    for number in range(3):
        cycle = learner.open_cycle(number)
        assert cycle.labels[torch.arange(len(known))].tolist() == digits.train_labels[known].tolist()
        learner.train(cycle)
        selection = learner.select(cycle)
        assert oracle.asked.pop() == known == cycle.labelled.tolist() and oracle.asked == []
        learner.label(selection.indices)
        known += selection.indices
    assert len(set(known)) == 40 + 3 * 20


def test_the_oracle_decides_the_labels_that_are_trained_on(digits: LoadedData) -> None:
    class Wrong(TrueLabels):
        def labels(self, indices: Any, device: torch.device) -> Any:
            return 9 - torch.as_tensor(super().labels(indices, device))

    learner = ActiveLearner(make_trial(), digits, oracle=Wrong(digits))
    labels = learner.open_cycle(0).labels[torch.arange(40)]
    assert labels.tolist() == (9 - digits.train_labels[learner.labelled]).tolist()


def test_labels_of_the_training_set_reach_a_trial_through_the_oracle_alone() -> None:
    """Only the data's own code, which also takes the fingerprint, and --check-data read them; others may count them."""
    read = set()
    for folder in ("harness", "methods", "examples"):
        for path in (registry.ROOT / folder).rglob("*.py"):
            if path.parent.name == "checking":  # looks at a plug-in from outside
                continue
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                named = getattr(node, "attr", None) == "train_labels" or getattr(node, "value", None) == "train_labels"
                if named:
                    read.add(path.relative_to(registry.ROOT).as_posix())
    assert read == {"harness/data/dataset.py", "harness/data/oracle.py", "harness/experiment/data_check.py"}


# -------------------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    ("training", "acquisition"), [("cross_entropy", "core_set"), ("isda", "epmcm"), ("ads", "ads")]
)
def test_a_warm_up_before_the_first_scoring_changes_no_result(
    training: str, acquisition: str, digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, warm, cold = make_trial(training, acquisition), folders(), folders()
    phases: list[tuple[str, int]] = []
    real = trial_module.warm_up

    def warm_up(network: Network, images: Any, recipe: Recipe) -> None:
        def forward(inputs: torch.Tensor, *_: Any) -> Any:
            phases.append((learner.clock._open[-1], len(inputs)))
            assert not network.training and not torch.is_grad_enabled()
            return Network.forward(network, inputs)

        monkeypatch.setattr(network, "forward", forward)
        before = torch.get_rng_state()
        real(network, images, recipe)
        monkeypatch.delattr(network, "forward")
        assert torch.equal(torch.get_rng_state(), before)

    monkeypatch.setattr(trial_module, "warm_up", warm_up)
    learner = ActiveLearner(trial, digits)
    run_trial(learner, RunStore(warm), "suite", "method", nothing)
    assert phases == [("setup", trial.recipe.inference_batch_size)], "once per trial, and not timed as scoring"
    monkeypatch.setattr(trial_module, "warm_up", lambda *_: None)
    assert outcomes(run(trial, digits, cold)) == outcomes(RunStore(warm).trial(trial.id).records())
    for part in ("network", "training"):
        assert same(state_of(trial, warm)[part], state_of(trial, cold)[part])


def test_no_warm_up_where_no_image_is_scored(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "warm_up", lambda *_: pytest.fail("random selection scores no image"))
    learner, cycle = opened(make_trial(), digits)
    learner.select(cycle)


def test_a_warm_up_that_does_not_fit_into_memory_leaves_the_matter_to_scoring(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cycle = opened(make_trial(), digits)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cycle.network, "forward", full)
    warm_up(cycle.network, cycle.images, cycle.recipe)


def test_the_energy_of_a_later_selection_counts(
    digits: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = count(0, 7)  # joules, at each look
    monkeypatch.setattr(trial_module, "joules", lambda device: next(meter))
    (first,) = run(make_trial(cycles=1, acquisition="random"), digits, tmp_path)
    assert first.energy_joules == 7
    first, last = run(make_trial(cycles=2, acquisition="random"), digits, tmp_path)
    assert first.energy_joules == 14 and last.energy_joules == 7
    monkeypatch.setattr(trial_module, "joules", lambda device: None)
    *_, second, _ = run(make_trial(cycles=3, acquisition="random"), digits, tmp_path)
    assert second.energy_joules is None, "a part of it is not known"

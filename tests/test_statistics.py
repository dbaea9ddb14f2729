"""The maths: ISDA's loss, class statistics, EPMCM's forms; each against a slow and plain reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import generator, make_trial, outcomes, run, same, spec, state_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.config.suite import Trial
from harness.data.dataset import LoadedData
from harness.learning.contract import IMAGES, MAPS, Acquisition, Training, highest
from harness.learning.scoring import InProcess, Scored, Scorer, ascending, cut, describe_batches
from harness.networks.network import Outputs
from harness.trial import ActiveLearner, build_half

epmcm = registry.load("methods", "epmcm")
isda = registry.load("methods", "isda")
statistics = import_module("harness.methods._class_statistics")
ClassStatistics = statistics.ClassStatistics

KINDS = ["diagonal", "full"]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def covariance_of(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The full matrices, class by class; 0 for a class without samples."""
    width = features.shape[1]
    found = torch.zeros(classes, width, width, dtype=features.dtype)
    for label in range(classes):
        rows = features[labels == label]
        if len(rows):
            found[label] = torch.cov(rows.T, correction=0).reshape(width, width)
    return found


def table_of(weight: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    difference = weight[None] - weight[:, None]  # [y, j]: w_j - w_y
    return torch.einsum("yja,yab,yjb->yj", difference, covariance, difference)


def filled(kind: str, covariance: torch.Tensor) -> Any:
    """Statistics that hold the given full matrices."""
    found = ClassStatistics(len(covariance), kind)
    diagonal = covariance.diagonal(dim1=1, dim2=2).clone()
    found.load_state(
        {
            "count": torch.full((len(covariance),), 9),
            "mean": torch.zeros_like(diagonal),
            "covariance": covariance if kind == "full" else diagonal,
        }
    )
    return found


def random_covariance(classes: int, width: int, seed: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(classes, width, rank or width, generator=generator(seed))
    return root @ root.mT / width


# ------------------------------------------------------------------------------------------------- statistics


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    kind=st.sampled_from(KINDS),
    loop=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_running_statistics_are_the_covariance_of_everything_fed(
    sizes: list[int], kind: str, loop: bool, seed: int
) -> None:
    classes, random = 4, generator(seed)
    found = ClassStatistics(classes, kind)
    features, labels = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_may_loop", lambda features: loop)
        for size in sizes:
            features.append(3 + 2 * torch.randn(size, 3, generator=random))
            some = torch.randperm(classes, generator=random)[: 1 + seed % classes]  # others are absent
            labels.append(some[torch.randint(len(some), (size,), generator=random)])
            found.update(features[-1], labels[-1])
    everything, of_class = torch.cat(features), torch.cat(labels)
    expected = covariance_of(everything, of_class, classes)
    if kind == "diagonal":
        expected = expected.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.covariance, expected, **CLOSE)
    assert found.count.dtype == torch.int64
    assert found.count.tolist() == torch.bincount(of_class, minlength=classes).tolist()
    for label in of_class.unique():
        torch.testing.assert_close(found.mean[label], everything[of_class == label].mean(0), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", [True, False])
def test_an_absent_class_is_unchanged_and_one_sample_has_no_covariance(
    kind: str, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_may_loop", lambda features: loop)
    found = ClassStatistics(3, kind)
    found.update(torch.randn(8, 2, generator=generator(0)), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1]))
    assert found.covariance[0].abs().sum() > 0
    assert not found.covariance[1].any(), "one sample"
    assert not found.covariance[2].any(), "no sample"
    before = {k: v.clone() for k, v in found.state().items()}
    found.update(torch.randn(5, 2, generator=generator(1)), torch.tensor([1, 1, 2, 2, 2]))
    for name, value in found.state().items():
        assert torch.equal(value[0], before[name][0]), name
        assert not torch.equal(value[1], before[name][1]), name


def test_float32_counters_would_stop_but_these_do_not() -> None:
    found = ClassStatistics(1, "diagonal")
    found.update(torch.ones(2, 1, dtype=torch.float32), torch.zeros(2, dtype=torch.int64))
    found.count = torch.tensor([2**24])
    found.update(torch.ones(1, 1, dtype=torch.float32), torch.zeros(1, dtype=torch.int64))
    assert found.count.tolist() == [2**24 + 1]
    assert found.covariance.dtype == torch.float32


def test_statistics_hold_no_graph() -> None:
    found = ClassStatistics(2, "full")
    found.update(torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 0, 1]))
    assert not any(value.requires_grad for value in found.state().values())


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_where_it_was_saved(kind: str) -> None:
    straight, resumed = ClassStatistics(3, kind), ClassStatistics(3, kind)
    assert straight.state() == {}
    resumed.load_state({})
    batches = [(torch.randn(9, 4, generator=generator(s)), torch.arange(9) % 3) for s in range(3)]
    for features, labels in batches[:2]:
        straight.update(features, labels)
    resumed.load_state({k: v.clone() for k, v in straight.state().items()})
    for found in (straight, resumed):
        found.update(*batches[2])
    assert same(straight.state(), resumed.state())


# ------------------------------------------------------------------------------------------------------ table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", [True, False])
def test_table_is_the_quadratic_form(kind: str, loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_may_loop", lambda tensor: loop)
    monkeypatch.setattr(statistics, "BLOCK", 2 * 5 * 7)  # two classes at once: 2 + 2 + 1
    covariance, weight = random_covariance(5, 7, 0), torch.randn(5, 7, generator=generator(1))
    expected = covariance if kind == "full" else torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    found = filled(kind, covariance)
    table = found.table(weight)
    torch.testing.assert_close(table, table_of(weight, expected), **CLOSE)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(found.table(weight, some)[some], table[some], **CLOSE)
    assert found.table(weight, torch.tensor([], dtype=torch.long)).shape == (5, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_table_keeps_its_digits_under_a_large_common_part(kind: str) -> None:
    random = generator(2)
    weight = (1000 * torch.randn(1, 64, generator=random) + 0.1 * torch.randn(10, 64, generator=random)).float()
    covariance = random_covariance(10, 64, 3).float()
    expected = filled(kind, covariance.double()).table(weight.double())
    error = (filled(kind, covariance).table(weight).double() - expected).abs()
    assert (error / expected.clamp(min=1e-3)).max() < 1e-4


def test_logit_covariance_is_that_of_the_logits_less_their_mean() -> None:
    covariance, weight = random_covariance(4, 6, 0), torch.randn(4, 6, generator=generator(1))
    centred = weight - weight.mean(0)
    full = filled("full", covariance).logit_covariance(weight)
    torch.testing.assert_close(full, torch.stack([centred @ s @ centred.T for s in covariance]), **CLOSE)
    diagonal = filled("diagonal", covariance).logit_covariance(weight)
    of_diagonal = [centred @ torch.diag(s.diagonal()) @ centred.T for s in covariance]
    torch.testing.assert_close(diagonal, torch.stack(of_diagonal), **CLOSE)
    # what softmax sees, the variance of each difference of two logits, is the table's
    own = full.diagonal(dim1=1, dim2=2)
    variance = own[:, :, None] + own[:, None, :] - 2 * full
    classes = torch.arange(4)
    torch.testing.assert_close(variance[classes, classes], table_of(weight, covariance), **CLOSE)


def labelled_features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = generator(seed)
    features = 1 + torch.randn(40, 6, generator=random) * torch.rand(6, generator=random)
    labels = torch.tensor([0, 1, 3])[torch.randint(3, (40,), generator=random)]  # class 2 has no sample
    labels[7] = 4  # class 4 has one
    labels[labels.eq(4) & (torch.arange(40) != 7)] = 0
    return features, labels, torch.randn(5, 6, generator=random)


def test_fresh_table_is_the_full_table_of_the_same_features() -> None:
    features, labels, weight = labelled_features()
    found = ClassStatistics(5, "full")
    found.update(features, labels)
    logits = F.linear(features, weight, torch.randn(5, generator=generator(9)))
    torch.testing.assert_close(statistics.fresh_table(logits, labels, 5), found.table(weight), rtol=1e-8, atol=1e-8)
    assert not statistics.fresh_table(logits, labels, 5)[[2, 4]].any()


def test_logit_covariance_from_logits_is_w_sigma_w() -> None:
    features, labels, weight = labelled_features(1)
    covariance = covariance_of(features, labels, 5)
    logits = F.linear(features, weight, torch.randn(5, generator=generator(9)))
    expected = torch.stack([weight @ sigma @ weight.T for sigma in covariance])
    torch.testing.assert_close(statistics.logit_covariance(logits, labels, 5), expected, **CLOSE)


# ------------------------------------------------------------------------------------------------------- ISDA


def naive_isda(
    features: torch.Tensor, layer: torch.nn.Linear, labels: torch.Tensor, covariance: torch.Tensor, strength: float
) -> torch.Tensor:
    """The loss with one A x A matrix for each sample and class."""
    difference = layer.weight[None] - layer.weight[labels][:, None]  # [N, C, A]
    matrices = covariance[labels][:, None].expand(-1, len(layer.weight), -1, -1)  # [N, C, A, A]
    quadratic = torch.einsum("nca,ncab,ncb->nc", difference, matrices, difference)
    return F.cross_entropy(layer(features) + strength / 2 * quadratic, labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("present", [[0, 1, 2, 3, 4], [1, 4], [2]])
def test_isda_loss_and_gradients_are_the_naive_ones(
    kind: str, loop: bool, present: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_may_loop", lambda features: loop)
    random, classes, width = generator(4), 5, 6
    training = isda.ISDA(isda.ISDA.Settings(covariance=kind, lambda_0=1.5), classes)
    layer = torch.nn.Linear(width, classes)
    training.network = SimpleNamespace(classifier=layer)
    seen_features, seen_labels = [], []
    for progress, of in ((0.25, [0, 1, 2, 3, 4]), (0.5, present), (0.75, present)):
        labels = torch.tensor(of)[torch.randint(len(of), (16,), generator=random)]
        features = (2 * torch.randn(16, width, generator=random)).requires_grad_()
        seen_features.append(features.detach())
        seen_labels.append(labels)
        covariance = covariance_of(torch.cat(seen_features), torch.cat(seen_labels), classes)
        if kind == "diagonal":
            covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        inputs = (layer.weight, layer.bias, features)
        expected = naive_isda(features, layer, labels, covariance, 1.5 * progress)
        expected_gradients = torch.autograd.grad(expected, inputs)
        loss = training.loss(Outputs(layer(features), features, []), labels, progress)
        gradients = torch.autograd.grad(loss, inputs)
        cross_entropy = F.cross_entropy(layer(features), labels)
        assert loss > cross_entropy + 1e-3, "the covariance has a part in it"
        torch.testing.assert_close(loss, expected, **CLOSE)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, **CLOSE)


def test_strength_grows_with_the_epoch_and_restarts_in_each_cycle(
    digits: LoadedData, folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    isda = registry.load("methods", "isda").ISDA
    seen: list[float] = []
    true_loss = isda.loss

    def loss(self: Any, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(progress)
        return true_loss(self, outputs, labels, progress)  # type: ignore[no-any-return]

    monkeypatch.setattr(isda, "loss", loss)
    run(make_trial(spec("isda", Training, lambda_0=2.0), epochs=4), digits, folders())
    steps = (3, 4, 5)  # 40, 60 and 80 images, 16 in a batch
    assert seen == [epoch / 4 for batches in steps for epoch in range(4) for _ in range(batches)]


def test_the_loss_takes_lambda_from_the_progress(digits: LoadedData) -> None:
    torch.set_default_dtype(torch.float32)
    learner, cycle = trained(make_trial(spec("isda", Training, lambda_0=2.0)), digits)
    training: Any = learner.training
    outputs = cycle.network(cycle.images.unaugmented(cycle.labelled))
    for progress in (0.0, 0.25, 0.75):
        found = training.loss(outputs, cycle.labels, progress)
        table = training.statistics.table(cycle.network.classifier.weight)  # after the update
        expected = F.cross_entropy(outputs.logits + 2.0 * progress / 2 * table[cycle.labels], cycle.labels)
        assert torch.allclose(found, expected, atol=1e-6)


def test_lambda_0_of_zero_is_cross_entropy_to_the_bit(digits: LoadedData, folders: Callable[[], Path]) -> None:
    torch.set_default_dtype(torch.float32)
    found = []
    for training in ("cross_entropy", spec("isda", Training, lambda_0=0.0), spec("isda", Training, lambda_0=3.0)):
        trial, folder = make_trial(training, epochs=2), folders()
        found.append((outcomes(run(trial, digits, folder)), state_of(trial, folder)))
    cross_entropy, collecting, strong = found
    assert cross_entropy[0] == collecting[0]
    assert same(cross_entropy[1]["network"], collecting[1]["network"])
    assert not same(cross_entropy[1]["network"], strong[1]["network"])
    assert int(collecting[1]["training"]["count"].sum()) == 2 * (40 + 60 + 80)
    assert collecting[1]["training"]["covariance"].any()
    assert cross_entropy[1]["training"] == {}


def test_statistics_are_new_with_fresh_weights(digits: LoadedData, folders: Callable[[], Path]) -> None:
    torch.set_default_dtype(torch.float32)
    trial, folder = make_trial("isda", start="fresh"), folders()
    run(trial, digits, folder)
    assert int(state_of(trial, folder)["training"]["count"].sum()) == 80


# ------------------------------------------------------------------------------------------------------ EPMCM


def instance(seed: int, largest: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias, full covariances whose largest Q is given, and three features."""
    random = generator(seed)
    weight, bias = torch.randn(5, 6, generator=random), torch.randn(5, generator=random)
    covariance = random_covariance(5, 6, seed + 100)
    covariance *= largest / table_of(weight, covariance).max()
    return weight, bias, covariance, torch.randn(3, 6, generator=random)


def in_feature_space(
    weight: torch.Tensor, bias: torch.Tensor, covariance: torch.Tensor, feature: torch.Tensor, draws: int, seed: int
) -> torch.Tensor:
    """Draws of p(yhat) for features a~ ~ N(a, Sigma_yhat)."""
    predicted = int((weight @ feature + bias).argmax())
    root = torch.linalg.cholesky(covariance[predicted])
    drawn = feature + torch.randn(draws, len(feature), generator=generator(seed)) @ root.T
    return (drawn @ weight.T + bias).softmax(1)[:, predicted]


@pytest.mark.parametrize(("seed", "largest"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 4.0)])
def test_the_closed_form_is_the_expectation_it_stands_for(seed: int, largest: float) -> None:
    weight, bias, covariance, features = instance(seed, largest)
    table = filled("full", covariance).table(weight)
    closed = epmcm.log_change(features @ weight.T + bias, table).exp()
    for number, feature in enumerate(features):
        p = in_feature_space(weight, bias, covariance, feature, 100_000, 7 + number)
        odds = 1 / p - 1
        assert abs(closed[number] - odds.mean()) < 4 * odds.std() / len(p) ** 0.5
        assert closed[number] > (1 - p).mean() - 4 * (1 - p).std() / len(p) ** 0.5


def test_sampling_logits_is_sampling_features() -> None:
    weight, bias, covariance, features = instance(5, 4.0)
    logits = features @ weight.T + bias
    root = epmcm.matrix_root(filled("full", covariance).logit_covariance(weight))
    draws = 20_000
    found = epmcm.sampled(logits, root, draws, generator(1))
    without = 1 - logits.softmax(1).amax(1)
    for number, feature in enumerate(features):
        change = 1 - in_feature_space(weight, bias, covariance, feature, draws, 11 + number)
        noise = change.std() * (2 / draws) ** 0.5
        assert abs(found[number] - change.mean()) < 4 * noise
        assert abs(without[number] - change.mean()) > 5 * noise, "the covariance has a part in it"
    assert torch.equal(found, epmcm.sampled(logits, root, draws, generator(1)))
    assert not torch.equal(found, epmcm.sampled(logits, root, draws, generator(2)))


def test_sampled_takes_as_many_samples_as_it_says() -> None:
    weight, bias, covariance, features = instance(5, 4.0)
    logits = (features @ weight.T + bias)[:1].expand(400, -1)
    root = epmcm.matrix_root(filled("full", covariance).logit_covariance(weight))
    spread = [float(epmcm.sampled(logits, root, samples, generator(1)).std()) for samples in (1, 100, 130)]
    assert 7 < spread[0] / spread[1] < 14  # 1 / sqrt(M), and 100 is no multiple of what is drawn at once
    assert 9 < spread[0] / spread[2] < 15
    torch.testing.assert_close(
        epmcm.sampled(logits[:2], torch.zeros_like(root), 130, generator(1)), 1 - logits[:2].softmax(1).amax(1)
    )


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_matrix_root_squares_back(rank: int) -> None:
    covariance = random_covariance(4, 6, rank, rank)
    root = epmcm.matrix_root(covariance)
    torch.testing.assert_close(root @ root.mT, covariance, **CLOSE)
    single = epmcm.matrix_root(covariance.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single @ single.mT, covariance.float(), rtol=1e-5, atol=1e-5)


def test_log_change_does_not_overflow() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [200.0, 199.0, -1e4]], dtype=torch.float32)
    table = torch.tensor([[0.0, 2e3, 1e3], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float32)
    found = epmcm.log_change(logits, table)
    assert found.isfinite().all()
    torch.testing.assert_close(found, torch.tensor([-3e4 + 500, 999.0], dtype=torch.float32))


def test_log_change_does_not_tie_confident_images() -> None:
    gaps = torch.linspace(40, 41, 50, dtype=torch.float32)
    logits = torch.stack([gaps, torch.zeros(50), torch.full((50,), -1.0)], 1).float()
    found = epmcm.log_change(logits, torch.zeros(3, 3, dtype=torch.float32))
    assert (found.diff() < 0).all(), "each more confident image scores lower"


def test_log_change_ranks_like_the_naive_sum() -> None:
    random = generator(6)
    logits = 3 * torch.randn(500, 7, generator=random)
    table = 4 * torch.rand(7, 7, generator=random)
    table.fill_diagonal_(0)
    predicted = logits.argmax(1)
    naive = (logits - logits.amax(1, keepdim=True) + table[predicted] / 2).exp().sum(1) - 1
    found = epmcm.log_change(logits, table)
    torch.testing.assert_close(found.exp(), naive, rtol=1e-9, atol=1e-9)
    assert found.argsort(descending=True).tolist() == naive.argsort(descending=True).tolist()


def test_what_scores_are_computed_from(digits: LoadedData) -> None:
    torch.set_default_dtype(torch.float32)
    for settings_ in ({}, {"statistics": "fresh"}, {"form": "sampled"}, {"statistics": "fresh", "form": "sampled"}):
        learner, cycle = trained(make_trial("isda", spec("epmcm", Acquisition, **settings_)), digits)
        training: Any = learner.training
        with torch.no_grad():
            outputs = learner.network(learner.images.unaugmented(cycle.labelled))
            weight, running = learner.network.classifier.weight, training.statistics
            fresh = ClassStatistics(10, "full")
            fresh.update(outputs.features.double(), cycle.labels)
            table = fresh.table(weight.double()) if "statistics" in settings_ else running.table(weight).double()
            prepared = learner.acquisition.prepare(cycle)
        assert not any(value.requires_grad for value in prepared.values())
        if "form" not in settings_:
            found = prepared["table"].double()
        else:
            square = prepared["root"].double() @ prepared["root"].double().mT
            own, label = square.diagonal(dim1=1, dim2=2), torch.arange(10)
            found = own + own[label, label][:, None] - 2 * square[label, label]
        torch.testing.assert_close(found, table, rtol=1e-3, atol=1e-4)


def test_pseudo_labels_change_the_statistics_batch_by_batch(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    learner, cycle = trained(make_trial("isda", spec("epmcm", Acquisition, pseudo_labels=True)), digits)
    training: Any = learner.training
    before = {k: v.clone() for k, v in training.state().items()}
    mine = ClassStatistics(10, "diagonal")
    mine.load_state({k: v.clone() for k, v in before.items()})
    expected = {}
    with torch.no_grad():
        for batch in cycle.candidates.split(64):
            outputs = learner.network(learner.images.unaugmented(batch))
            mine.update(outputs.features, outputs.logits.argmax(1))
            table = mine.table(learner.network.classifier.weight)
            scores = epmcm.log_change(outputs.logits, table)
            expected.update(zip(batch.tolist(), scores.tolist(), strict=True))
    scored: list[torch.Tensor] = []

    def kept(score: torch.Tensor, budget: int) -> torch.Tensor:
        scored.append(score)
        return highest(score, budget)

    monkeypatch.setattr(epmcm, "highest", kept)
    prepared = learner.acquisition.prepare(cycle)
    columns = InProcess().describe(cycle, learner.acquisition, prepared, cycle.candidates, "describe").columns
    assert same(training.state(), before), "describing changes nothing"
    with torch.no_grad():
        rows = learner.acquisition.select(columns, dict, 20, generator(0))
    index, (score,) = columns["index"].tolist(), scored
    assert dict(zip(index, score.tolist(), strict=True)) == expected
    ranked = sorted(expected, key=lambda image: (-expected[image], image))
    assert [index[row] for row in rows.tolist()] == ranked[:20]
    assert same(training.state(), mine.state())


class Workers:
    """Scores on several workers that know nothing of the trial, as harness/on_ray/scoring.py does."""

    def __init__(self, trial: Trial, count: int) -> None:
        self.trial, self.count = trial, count

    def describe(self, cycle: Any, acquisition: Any, prepared: Any, indices: torch.Tensor, purpose: str) -> Scored:
        batches, parts = cut(indices, cycle.recipe), []
        for first in reversed(range(self.count)):
            there = cycle.new_network(0).to_device(cycle.device, cycle.recipe)
            there.load_state_dict({k: v.clone() for k, v in cycle.network.state_dict().items()})
            asked = build_half(self.trial.acquisition, Acquisition, 10)
            if mine := batches[first :: self.count]:
                parts.append(describe_batches(there, cycle.images, asked, prepared, mine, cycle.key(purpose)))
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Scored(ascending(columns), f"{self.count} workers")

    def start(self) -> None: ...

    def close(self) -> None: ...


def test_pseudo_labels_select_the_same_images_on_any_number_of_shards(digits: LoadedData) -> None:
    torch.set_default_dtype(torch.float32)
    trial = make_trial("isda", spec("epmcm", Acquisition, pseudo_labels=True), inference_batch_size=32)

    def cycles(scorer: Scorer) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        learner, indices = ActiveLearner(trial, digits, scorer=scorer), []
        for number in range(3):
            cycle = learner.open_cycle(number)
            learner.train(cycle)
            indices.append(learner.select(cycle).indices)
            learner.label(indices[-1])
        return indices, learner.state()["training"]

    expected, statistics_at_end = cycles(InProcess())
    assert len({i for some in expected for i in some}) == 60
    assert int(statistics_at_end["count"].sum()) == 40 + 60 + 80 + 3 * 150
    for count in (1, 2, 3, 7):
        found, at_end = cycles(Workers(trial, count))
        assert found == expected and same(at_end, statistics_at_end)


@pytest.mark.parametrize("pseudo_labels", [False, True])
def test_statistics_after_scoring_are_carried_on(
    pseudo_labels: bool, digits: LoadedData, folders: Callable[[], Path]
) -> None:
    torch.set_default_dtype(torch.float32)
    trial, folder = make_trial("isda", spec("epmcm", Acquisition, pseudo_labels=pseudo_labels)), folders()
    run(trial, digits, folder)
    seen = 40 + 60 + 80 + (2 * 150 if pseudo_labels else 0)
    assert int(state_of(trial, folder)["training"]["count"].sum()) == seen


def test_scoring_leaves_the_statistics_alone(digits: LoadedData) -> None:
    torch.set_default_dtype(torch.float32)
    for settings_ in ({}, {"statistics": "fresh"}, {"form": "sampled"}):
        learner, cycle = trained(make_trial("isda", spec("epmcm", Acquisition, **settings_)), digits)
        before = {k: v.clone() for k, v in learner.training.state().items()}
        selection = learner.select(cycle)
        assert selection.scored is not None and len(selection.scored.columns["score"]) == 150
        assert same(learner.training.state(), before)


def test_running_statistics_need_a_training_that_collects_them() -> None:
    cross_entropy, isda_training = (registry.find("methods", name, Training) for name in ("cross_entropy", "isda"))
    assert cross_entropy is not None and isda_training is not None
    needed = epmcm.EPMCM.needed(epmcm.EPMCM.Settings())
    assert needed and needed <= isda_training.gives and not needed & cross_entropy.gives
    assert epmcm.EPMCM.needed(epmcm.EPMCM.Settings(statistics="fresh")) == {"a trained classifier"}
    for wrong in ({"statistics": "fresh"}, {"form": "sampled"}):
        with pytest.raises(ValueError, match="pseudo_labels"):
            epmcm.EPMCM.Settings(pseudo_labels=True, **wrong)
    with pytest.raises(ValueError, match="samples: 7 needs form: sampled, form: closed draws none"):
        epmcm.EPMCM.Settings(samples=7)
    with pytest.raises(ValueError, match="resolution: image needs form: closed"):
        epmcm.EPMCM.Settings(resolution="image", form="sampled")


def test_pseudo_labels_are_for_images_with_labels() -> None:
    assert epmcm.EPMCM.labels(epmcm.EPMCM.Settings(pseudo_labels=True)) == {IMAGES}
    assert epmcm.EPMCM.labels(epmcm.EPMCM.Settings()) == {IMAGES, MAPS}

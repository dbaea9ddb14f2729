"""Labels for each pixel: losses, statistics, scores and metrics against loops, and every method end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HALF, batch_of, changed, make_street_trial, noise, opened, outcomes, run, same, state_of
from measure import peak
from test_methods import METHODS, describes, run_with_stops

from harness import registry
from harness.data.dataset import DatasetInfo, LoadedData
from harness.data.files import IGNORED
from harness.data.images import Images
from harness.data.rows import Streamed, on_device
from harness.errors import UserError
from harness.learning import boundary, scoring
from harness.learning.contract import MAPS, Acquisition, Batch, Training
from harness.learning.inference import evaluating, tally
from harness.learning.labels import as_rows, at_labels, at_positions, cross_entropy
from harness.learning.metrics import iou, summary
from harness.learning.scoring import describe_batches
from harness.networks.building import build
from harness.networks.names import spec as net
from harness.networks.network import Network, Outputs
from harness.seeds import stream

C = 3
CPU = torch.device("cpu")
Folders = Callable[[], Path]
epmcm = registry.load("methods", "epmcm")
isda = registry.load("methods", "isda")
ll4al = registry.load("methods", "ll4al")
sraal = registry.load("methods", "sraal")
statistics = import_module("harness.methods._class_statistics")


def maps(*shape: int, ignored: float = 0.2) -> torch.Tensor:
    """Return random labels of C classes, some of them IGNORED."""
    labels = torch.randint(0, C, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels[torch.rand(shape, generator=torch.Generator().manual_seed(2)) < ignored] = IGNORED
    return labels


# -------------------------------------------------------------------------------------------------- images, labels


@pytest.mark.parametrize(("padding", "crop_size"), [(0, None), (3, None), (0, (8, 12)), (2, (10, 16))])
def test_a_label_map_moves_with_its_image(padding: int, crop_size: Any, streets: LoadedData) -> None:
    trial = make_street_trial(crop_size=crop_size)
    recipe = changed(trial, crop_padding=padding).recipe
    values = np.random.default_rng(0).integers(1, 200, (5, 16, 20), dtype=np.uint8)
    data = LoadedData(
        np.repeat(values[..., None], 3, 3), values % 2, values[..., None].repeat(3, 3), values % 2,
        ("a", "b"), (0.0,) * 3, (1 / 255,) * 3,
    )  # fmt: skip
    images = Images(torch.from_numpy(data.train_images), data, recipe)
    pairs = images.pairs([torch.arange(5)], [torch.from_numpy(values)], torch.Generator().manual_seed(0))
    ((seen, moved),) = pairs
    assert seen.shape[2:] == moved.shape[1:] == (crop_size or (16, 20))
    pixels = seen[:, 0].round().to(torch.uint8)  # normalised to the pixels themselves
    outside = moved == IGNORED
    assert torch.equal(pixels[~outside], moved[~outside]) and (pixels[outside] == 0).all()
    assert bool(outside.any()) == bool(padding)
    again = images.augmented(torch.arange(5), torch.Generator().manual_seed(0))
    assert torch.equal(again, seen), "the same window, with or without labels"


def test_streamed_rows_are_those_of_a_tensor() -> None:
    array = np.arange(7 * 4, dtype=np.uint8).reshape(7, 2, 2)
    whole = on_device(array, CPU)
    streamed = Streamed(array, CPU)
    some = Streamed(array, CPU, np.array([5, 1, 3]))
    assert streamed.shape == (7, 2, 2) and some.shape == (3, 2, 2) and len(some) == 3
    assert torch.equal(streamed[torch.tensor([2, 0])], whole[torch.tensor([2, 0])])
    assert torch.equal(some[torch.tensor([2, 0])], whole[torch.tensor([3, 5])])


# ------------------------------------------------------------------------------------------------------- losses


def test_the_loss_is_that_of_known_pixels_at_the_labels_size() -> None:
    logits, labels = noise(2, C, 3, 4), maps(2, 20, 32)
    large = torch.nn.functional.interpolate(logits, (24, 32), mode="bilinear", align_corners=False)[:, :, :20]
    expected = [
        -float(large[b, :, y, x].log_softmax(0)[int(labels[b, y, x])])
        for b in range(2) for y in range(20) for x in range(32) if labels[b, y, x] != IGNORED
    ]  # fmt: skip
    assert float(cross_entropy(logits, labels)) == pytest.approx(np.mean(expected), rel=1e-5)
    each = cross_entropy(logits, labels, per_image=True)
    first = int((labels[0] != IGNORED).sum())
    assert each.tolist() == pytest.approx([np.mean(expected[:first]), np.mean(expected[first:])], rel=1e-5)
    unknown = torch.full_like(labels, IGNORED)
    assert float(cross_entropy(logits, unknown)) == 0
    assert cross_entropy(logits, unknown, per_image=True).tolist() == [0, 0]


def test_a_position_has_the_label_at_its_centre() -> None:
    labels = torch.arange(20 * 32).view(1, 20, 32).to(torch.int64)
    expected = [[min(8 * y + 4, 19) * 32 + 8 * x + 4 for x in range(4)] for y in range(3)]
    assert at_positions(labels, noise(1, C, 3, 4))[0].tolist() == expected


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_isda_is_the_loss_of_rows_brought_to_the_labels_size(
    covariance: str, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics and Q are those of the known positions; nothing is added to the logits of the others."""
    monkeypatch.setattr(statistics, "_may_loop", lambda features: loop)
    method = isda.ISDA(isda.ISDA.Settings(covariance=covariance, lambda_0=2.0), C)
    layer = torch.nn.Linear(5, C).double()
    method.network = SimpleNamespace(classifier=layer)
    features, labels = noise(2, 5, 3, 4).double(), maps(2, 24, 32)
    logits = torch.nn.functional.conv2d(features, layer.weight[:, :, None, None], layer.bias)
    loss = method.loss(Outputs(logits, features, []), labels, 0.5)
    positions, added = at_positions(labels, logits), torch.zeros_like(logits)
    rows = {c: torch.stack([features[b, :, y, x] for b, y, x in (positions == c).nonzero().tolist()]) for c in range(C)}
    for b, y, x in (positions != IGNORED).nonzero().tolist():
        label = int(positions[b, y, x])
        sigma = torch.cov(rows[label].T, correction=0)
        sigma = sigma.diag().diag() if covariance == "diagonal" else sigma
        for j in range(C):
            difference = layer.weight[j] - layer.weight[label]
            added[b, j, y, x] = difference @ sigma @ difference / 2  # lambda = 2 x 0.5
    assert bool((positions == IGNORED).any())
    assert float(loss.detach()) == pytest.approx(float(cross_entropy(logits + added, labels).detach()), rel=1e-9)
    assert method.statistics.count.tolist() == [len(rows[c]) for c in range(C)]


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_isda_of_a_batch_without_a_known_position_is_0_and_teaches_nothing(covariance: str) -> None:
    method = isda.ISDA(isda.ISDA.Settings(covariance=covariance), C)
    layer = torch.nn.Linear(5, C)
    method.network = SimpleNamespace(classifier=layer)
    features = noise(2, 5, 3, 4)
    logits = torch.nn.functional.conv2d(features, layer.weight[:, :, None, None], layer.bias)
    loss = method.loss(Outputs(logits, features, []), maps(2, 24, 32, ignored=1.1), 0.5)
    loss.backward()
    assert float(loss.detach()) == 0 and not layer.weight.grad.any() and not method.statistics.count.any()


def test_ll4al_trains_the_target_on_all_known_pixels_alike() -> None:
    method = ll4al.LL4AL(ll4al.LL4AL.Settings(), C)
    method.module, method._ranked = lambda stages: torch.zeros(2), []
    logits, labels = noise(2, C, 3, 4), maps(2, 24, 32)
    labels[1] = IGNORED
    labels[1, 12, 12] = 0  # a nearly void crop: one pixel of many
    ranking = method.settings.margin  # of one pair whose losses are predicted alike
    expected = float(cross_entropy(logits, labels)) + ranking
    assert float(method.loss(Outputs(logits, logits, []), labels, 0.0)) == pytest.approx(expected)


def test_sraals_label_of_an_image_is_which_classes_it_shows(streets: LoadedData) -> None:
    _, cycle = opened(make_street_trial("cross_entropy", "sraal"), streets)
    shown = sraal.targets(cycle, len(streets.classes))
    assert shown.shape == (6, len(streets.classes))
    for row, index in zip(shown.tolist(), cycle.labelled.tolist(), strict=True):
        present = set(np.unique(streets.train_labels[np.array([index])]).tolist()) - {IGNORED}
        assert {label for label, there in enumerate(row) if there} == present


# ------------------------------------------------------------------------------------------------------- scores


class Fixed:
    """A network that gives fixed maps."""

    def __init__(self, logits: torch.Tensor, features: torch.Tensor | None = None) -> None:
        self.outputs = Outputs(logits, logits if features is None else features, [])

    def __call__(self, images: torch.Tensor, stages: bool = False) -> Outputs:
        return self.outputs


def made(name: str, classes: int = C, **settings: Any) -> Acquisition:
    plugin: Any = registry.find("methods", name, Acquisition)
    acquisition: Acquisition = plugin(plugin.Settings(**settings), classes)
    return acquisition


def described(acquisition: Acquisition, network: Any, images: torch.Tensor, prepared: Any = None) -> Any:
    """Return an acquisition's columns with one score for each image, as scoring reduces score maps."""
    return boundary.describe(acquisition, network, batch_of(images), prepared or {})


def score(name: str, logits: torch.Tensor, prepared: Any = None, **settings: Any) -> torch.Tensor:
    acquisition = made(name, logits.shape[1], **settings)
    scores: torch.Tensor = described(acquisition, Fixed(logits), torch.zeros(len(logits), 3, 8, 8), prepared)["score"]
    assert scores.shape == (len(logits),)
    return scores


@pytest.mark.parametrize("name", ["entropy", "margin", "least_confidence", "maxp"])
def test_an_images_uncertainty_is_the_mean_over_its_positions(name: str) -> None:
    logits = 3 * noise(4, C, 3, 5)
    expected = []
    for image in logits:
        values = []
        for position in image.flatten(1).T:
            p = position.softmax(0).sort(descending=True).values
            values.append(
                {
                    "entropy": -(p * p.log()).sum(),
                    "margin": p[1] - p[0],
                    "least_confidence": 1 - p[0],
                    "maxp": 1 - p[0],
                }[name]
            )
        expected.append(torch.stack(values).mean())
    means = torch.stack(expected)
    if name == "least_confidence":
        means = means.log()
    if name == "maxp":
        means = -means.log()
    torch.testing.assert_close(score(name, logits), means, rtol=1e-4, atol=1e-5)


def test_epmcm_is_the_mean_of_eq_7_over_positions() -> None:
    logits, table = 2 * noise(4, C, 3, 5), noise(C, C).abs()
    table.fill_diagonal_(0)
    expected = []
    for image in logits:
        total = 0.0
        for z in image.flatten(1).T:
            top = int(z.argmax())
            total += sum(float((z[j] - z[top] + table[top, j] / 2).exp()) for j in range(C)) - 1
        expected.append(np.log(total / 15))
    assert score("epmcm", logits, {"table": table}).tolist() == pytest.approx(expected, rel=1e-4)
    root = torch.linalg.cholesky(torch.stack([torch.eye(C)] * C))
    drawn = score("epmcm", logits, {"root": root}, form="sampled", samples=64)
    assert drawn.shape == (4,) and bool((drawn > 0).all() and (drawn < 1).all())


@pytest.mark.parametrize("rows", [1, 6, 8, 64])
def test_epmcm_at_the_images_resolution_is_the_mean_of_eq_7_over_pixels(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epmcm, "ROWS_AT_ONCE", rows)
    logits, table, images = 2 * noise(2, C, 3, 5), noise(C, C).abs(), torch.zeros(2, 3, 21, 37)
    table.fill_diagonal_(0)
    large = torch.nn.functional.interpolate(logits, scale_factor=8, mode="bilinear")[:, :, :21, :37]
    expected = torch.zeros(2, 21, 37, dtype=torch.float64)
    for b, y, x in np.ndindex(2, 21, 37):
        z = large[b, :, y, x].tolist()
        top = int(np.argmax(z))
        expected[b, y, x] = sum(np.exp(z[j] - z[top] + float(table[top, j]) / 2) for j in range(C)) - 1
    acquisition, network = made("epmcm", resolution="image"), Fixed(logits)
    score_map = acquisition.describe(network, batch_of(images), {"table": table})["score"]  # type: ignore[arg-type]
    torch.testing.assert_close(score_map.double(), expected.log(), rtol=0, atol=1e-5)
    scores = described(acquisition, network, images, {"table": table})["score"]
    torch.testing.assert_close(scores.double(), expected.mean((1, 2)).log(), rtol=0, atol=1e-5)
    difference = scores - score("epmcm", logits, {"table": table})
    assert difference.abs().min() > 1e-3, "other than the mean over positions"


def test_an_image_without_positions_has_one_score_at_any_resolution() -> None:
    logits, prepared = noise(4, C), {"table": noise(C, C).abs()}
    assert torch.equal(score("epmcm", logits, prepared, resolution="image"), score("epmcm", logits, prepared))


@pytest.mark.parametrize("name", ["entropy", "margin", "least_confidence", "maxp", "epmcm"])
def test_the_score_map_of_an_image_has_its_score_as_its_mean(name: str) -> None:
    logits, prepared = 2 * noise(4, C, 3, 5), {"table": noise(C, C).abs()}
    network: Any = Fixed(logits)
    score_map = made(name).describe(network, batch_of(torch.zeros(4, 3, 24, 40)), prepared)["score"]
    assert score_map.shape == (4, 3, 5)
    mean = score_map.mean((1, 2))
    if name in ("least_confidence", "epmcm"):
        mean = score_map.exp().mean((1, 2)).log()
    if name == "maxp":
        mean = -(-score_map).exp().mean((1, 2)).log()
    torch.testing.assert_close(score(name, logits, prepared), mean)


@pytest.mark.parametrize(
    "method", [("dropout", "mc_dropout"), ("dropout", "bald"), ("cross_entropy", "qbc"), ("ads", "ads")]
)
def test_methods_with_several_predictions_show_where_they_score(method: tuple[str, str], streets: LoadedData) -> None:
    learner, cycle = opened(make_street_trial(*method), streets)
    learner.train(cycle)
    acquisition, indices = learner.acquisition, cycle.candidates[:3]
    acquisition.ready(cycle)
    prepared, images = acquisition.prepare(cycle), cycle.images.unaugmented(indices)
    with evaluating(cycle.network):
        score_map = acquisition.describe(cycle.network, Batch(images, indices, stream(17, 0)), prepared)["score"]
    assert score_map.shape == (3, 4, 5) and len(score_map.unique()) == score_map.numel()
    columns = describe_batches(cycle.network, cycle.images, acquisition, prepared, [(0, indices)], 17)
    torch.testing.assert_close(columns["score"], score_map.flatten(1).mean(1))


def test_core_set_sees_the_mean_feature_of_an_image() -> None:
    features = noise(4, 6, 3, 5)
    network = Fixed(noise(4, C, 3, 5), features)
    columns = described(made("core_set"), network, torch.zeros(4, 3, 8, 8))
    torch.testing.assert_close(columns["features"], features.mean((2, 3)))


# ------------------------------------------------------------------------------------------------------- memory


def test_the_memory_within_an_operation_is_counted() -> None:
    rows = torch.zeros(1000, 100)
    inner = rows.nbytes  # of exp(row - highest)
    assert inner <= peak(lambda: rows.logsumexp(1), CPU) < 1.1 * inner
    assert 2 * inner <= peak(lambda: (rows + 1) + 1, CPU) < 2.1 * inner


CITYSCAPES = DatasetInfo(1, 1, 19, 3, (1024, 2048), "", per_pixel=True)


@cache
def of_a_city() -> tuple[Network, torch.Tensor, int]:
    """Return a network, an image, and the peak of a forward pass.

    The leanest network is the strictest measure: for others only logits and scores are as small, and float32 is larger.
    """
    network = build(net("drn_small"), CITYSCAPES, 0).to_device(CPU, HALF)
    image = noise(1, 3, *CITYSCAPES.size)
    with evaluating(network):
        return network, image, peak(lambda: network(image), CPU)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("epmcm", {}),
        ("epmcm", {"resolution": "image"}),
        *[(name, {}) for name in ("entropy", "margin", "least_confidence", "maxp", "core_set", "mc_dropout", "bald")],
    ],
)
def test_scoring_a_large_image_needs_the_memory_of_its_forward_pass(name: str, settings: dict[str, str]) -> None:
    network, image, forward = of_a_city()
    acquisition = made(name, CITYSCAPES.num_classes, **settings)
    prepared = {"table": noise(19, 19).abs(), "dropout": torch.tensor(0.25)}
    with evaluating(network):
        assert peak(lambda: described(acquisition, network, image, prepared), CPU) < 1.1 * forward


# ------------------------------------------------------------------------------------------------------- metrics


def test_mean_iou_by_hand() -> None:
    one = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])  # the third class is in no label and no prediction
    by_hand = iou(torch.stack([one]))
    assert by_hand[:2].tolist() == pytest.approx([3 / 6, 4 / 7]) and by_hand[2].isnan()
    metrics, by_class = summary(torch.stack([one]), ("a", "b", "c"), per_pixel=True)
    assert metrics == {"miou": pytest.approx((3 / 6 + 4 / 7) / 2)} and by_class.keys() == {"a", "b"}
    wrong = torch.tensor([[3, 1, 5], [2, 4, 0], [0, 0, 0]])  # predicted, though in no label: costs the others
    assert iou(torch.stack([wrong]))[:2].tolist() == pytest.approx([3 / 11, 4 / 7])
    with pytest.raises(UserError, match="no pixel of the test set has a class"):
        summary(torch.zeros(1, 3, 3, dtype=torch.int64), ("a", "b", "c"), per_pixel=True)
    heads, _ = summary(torch.stack([one, wrong]), ("a", "b", "c"), per_pixel=True)
    assert heads["miou"] == pytest.approx(((3 / 6 + 3 / 11) / 2 + 4 / 7) / 2)


def test_the_confusion_matrix_is_an_independent_count(streets: LoadedData) -> None:
    learner, _ = opened(make_street_trial(), streets)
    classes = len(streets.classes)
    args = learner.network, learner.test_images, learner.test_labels, classes, learner.trial.recipe
    counts = tally(*args, learner.training.predict).confusion
    expected = np.zeros((classes, classes), dtype=int)
    learner.network.eval()
    with torch.no_grad():
        for i in range(len(streets.test_labels)):
            logits = learner.network(learner.test_images.unaugmented(torch.tensor([i]))).logits
            large = torch.nn.functional.interpolate(logits, scale_factor=8, mode="bilinear")[0]
            predicted = large[:, :28, :40].argmax(0).numpy()
            for label, answer in zip(streets.test_labels[i].ravel(), predicted.ravel(), strict=True):
                if label != IGNORED:
                    expected[label, answer] += 1
    assert np.abs(counts[0].numpy() - expected).sum() <= 2, "rounding breaks a tie or two"
    assert expected.sum() == (streets.test_labels != IGNORED).sum()


def test_test_images_may_have_another_size(streets: LoadedData, folders: Folders) -> None:
    wide = replace(streets, test_images=streets.test_images.repeat(2, 2), test_labels=streets.test_labels.repeat(2, 2))
    trial = make_street_trial("isda", "epmcm")
    one, other = run(trial, streets, folders()), run(trial, wide, folders())
    assert [r.selected for r in one] == [r.selected for r in other]
    assert all(0 < r.metrics["miou"] < 1 for r in other)


def test_labels_larger_than_the_images_are_predicted_at_their_own_size(streets: LoadedData) -> None:
    twice = streets.test_labels.repeat(2, 1).repeat(2, 2)
    learner, cycle = opened(make_street_trial(), replace(streets, test_labels=twice))
    rows = torch.arange(2)
    logits = cycle.network(learner.test_images.unaugmented(rows)).logits
    large = at_labels(logits, learner.test_labels[rows])
    assert large.shape[2:] == (56, 80)
    expected = torch.nn.functional.interpolate(logits, scale_factor=16, mode="bilinear", align_corners=False)
    torch.testing.assert_close(large, expected[:, :, :56, :80], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- every method


def is_for_maps(method: str) -> bool:
    """Return whether both halves of a method are for label maps: others are refused before a run (test_config.py)."""
    halves = zip(METHODS[method], (Training, Acquisition), strict=True)
    plugins = [(registry.find("methods", half.name, contract), half.settings) for half, contract in halves]
    return all(plugin is not None and MAPS in plugin.labels(settings) for plugin, settings in plugins)


FOR_MAPS = [method for method in METHODS if is_for_maps(method)]


def test_only_pseudo_labels_are_not_for_label_maps() -> None:
    others = [METHODS[method][1] for method in METHODS if method not in FOR_MAPS]
    assert [(acquisition.name, acquisition.written()["pseudo_labels"]) for acquisition in others] == [("epmcm", True)]


@pytest.mark.parametrize(
    "method", [m if m in ("isda-epmcm", "ll4al") else pytest.param(m, marks=pytest.mark.long) for m in FOR_MAPS]
)
def test_every_method_runs_on_label_maps_twice_resumed_and_in_groups(
    method: str, streets: LoadedData, folders: Folders
) -> None:
    trial, folder = make_street_trial(*METHODS[method]), folders()
    first = run(trial, streets, folder)
    assert [r.labelled for r in first] == [6, 10, 14]
    assert [len(set(r.selected)) for r in first] == [4, 4, 0]
    assert all(0 <= r.metrics["miou"] <= 1 and r.per_class for r in first)
    assert outcomes(run_with_stops(trial, streets, folders())) == outcomes(first)
    if describes(method):
        learner, cycle = opened(trial, streets)
        learner.train(cycle)
        learner.acquisition.ready(cycle)
        prepared = learner.acquisition.prepare(cycle)
        batches = scoring.cut(cycle.candidates, cycle.recipe)
        assert len(batches) == 3

        def describe(groups: list[Any]) -> dict[str, torch.Tensor]:
            args = cycle.network, cycle.images, learner.acquisition, prepared
            parts = [describe_batches(*args, group, 17) for group in groups]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        whole = describe([batches])
        assert len(whole) > 1 and same(whole, describe([[batch] for batch in batches]))


@pytest.mark.long
@pytest.mark.parametrize("method", [("isda", "epmcm"), ("ads", "ads"), ("cross_entropy", "sraal")])
def test_files_that_do_not_fit_are_streamed_with_the_same_metrics_and_weights(
    method: tuple[str, str], streets: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoded:
        """Stands for files: rows are made when they are taken."""

        def __init__(self, array: np.ndarray[Any, Any]) -> None:
            self.array = array
            self.shape, self.dtype, self.ndim, self.nbytes = array.shape, array.dtype, array.ndim, array.nbytes

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, rows: Any) -> np.ndarray[Any, Any]:
            read.add(self.array.ndim)
            return self.array[rows].copy()

    read: set[int] = set()
    trial, held, streamed = make_street_trial(*method), folders(), folders()
    expected = outcomes(run(trial, streets, held))
    monkeypatch.setattr("harness.trial.on_device", lambda array, device: Streamed(Decoded(array), device))
    monkeypatch.setattr(
        "harness.data.oracle.rows_on_device", lambda array, rows, device: Streamed(Decoded(array), device, rows)
    )
    assert outcomes(run(trial, streets, streamed)) == expected
    assert read == {4, 3}, "images and label maps"
    assert same(state_of(trial, streamed)["network"], state_of(trial, held)["network"])


@pytest.mark.long
def test_a_dense_network_learns_streets(streets: LoadedData, folders: Folders) -> None:
    keys = {"epochs": 30, "optimizer": "adam", "learning_rate": 5e-3, "initial": 26, "cycles": 1, "budget": 1}
    trial = changed(make_street_trial("isda", **keys), model=net("drn_small", width=8))
    (record,) = run(trial, streets, folders())
    (start,) = run(changed(trial, epochs=1), streets, folders())
    assert record.metrics["miou"] > 0.22 > start.metrics["miou"]
    assert record.per_class["sky"] > 0.6


def test_rows_of_vectors_are_themselves() -> None:
    vectors = noise(4, 3)
    assert torch.equal(as_rows(vectors), vectors)

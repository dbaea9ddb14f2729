"""The images that a trial keeps for the report's pictures: what is in them, and that nothing depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_street_trial, make_trial, opened, outcomes, run, same, share, state_of
from test_methods import run_with_stops

from harness import registry
from harness.config.suite import Trial
from harness.data.dataset import LoadedData
from harness.data.files import IGNORED
from harness.data.oracle import TrueLabels
from harness.learning import pictures
from harness.learning.contract import Acquisition, Batch
from harness.learning.cycle import Cycle
from harness.learning.inference import evaluating
from harness.learning.labels import at_labels
from harness.results.pictures import SelectedImages
from harness.results.store import RunStore

Folders = Callable[[], Path]


def patches(height: int, width: int) -> LoadedData:
    """Return 30 images of noise and as many maps of noise, in three classes and none."""
    random = np.random.Generator(np.random.PCG64(7))
    images = random.integers(0, 256, (30, height, width, 3), dtype=np.uint8)
    labels = random.choice(np.array([0, 1, 2, IGNORED], dtype=np.uint8), (30, height, width))
    return LoadedData(images, labels, images[:4], labels[:4], ("road", "sky", "car"), (0.5,) * 3, (0.3,) * 3)


@pytest.fixture(scope="module")
def noise() -> LoadedData:
    return patches(20, 28)


def name_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let entropy give a score that names the image and the position."""

    def describe(self: Any, network: Any, batch: Batch, prepared: Any) -> dict[str, torch.Tensor]:
        positions = torch.arange(3 * 4).view(1, 3, 4)
        return {"score": positions + 100 * network(batch.images).logits.mean((1, 2, 3), keepdim=True)[:, 0]}

    monkeypatch.setattr(entropy(), "describe", describe)


def draw_while_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let entropy draw from the stream that it gets (no other is allowed), and score as it does without."""
    real = entropy().describe

    def describe(self: Any, network: Any, batch: Batch, prepared: Any) -> dict[str, torch.Tensor]:
        torch.rand(3, generator=batch.generator)
        columns: dict[str, torch.Tensor] = real(self, network, batch, prepared)
        return columns

    monkeypatch.setattr(entropy(), "describe", describe)


def entropy() -> Any:
    return registry.find("methods", "entropy", Acquisition)


def path_of(trial: Trial, folder: Path) -> Path:
    return RunStore(folder).trial(trial.id).pictures_path


def kept(trial: Trial, folder: Path) -> SelectedImages:
    selected = SelectedImages.read(path_of(trial, folder))
    assert selected is not None
    return selected


def test_what_is_kept_is_what_was_selected_first(
    noise: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_positions(monkeypatch)
    trial, folder = make_street_trial("cross_entropy", "entropy", cycles=2, budget=6, inference_batch_size=3), folders()
    records = run(trial, noise, folder)
    selected = kept(trial, folder)
    assert path_of(trial, folder).name == "selected_000.npz"
    assert selected.indices.tolist() == records[0].selected[:4]
    assert np.array_equal(selected.images, noise.train_images[selected.indices])
    assert np.array_equal(selected.labels, noise.train_labels[selected.indices])
    assert selected.classes == noise.classes

    learner, cycle = opened(trial, noise)  # predicted by the network of that moment, one by one
    path = RunStore(folder).trial(trial.id).folder / "state_000.pt"
    learner.load_state(torch.load(path, weights_only=True))
    with evaluating(learner.network):
        for number, index in enumerate(selected.indices):
            logits = learner.network(cycle.images.unaugmented(torch.tensor([index]))).logits
            large = torch.nn.functional.interpolate(logits, scale_factor=8, mode="bilinear")[0, :, :20, :28]
            different = large.argmax(0).numpy() != selected.predictions[number]
            assert different.mean() < 0.01, "rounding breaks ties"
            assert selected.score_map is not None and selected.score_map.dtype == np.float16
            for y, x in ((0, 0), (7, 8), (19, 27)):
                score = (y // 8) * 4 + x // 8 + 100 * float(logits.mean())
                assert selected.score_map[number, y, x] == pytest.approx(score, rel=2e-3, abs=0.02)


def test_large_images_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    large = patches(16, 1100)
    learner, cycle = opened(make_street_trial("cross_entropy", "entropy"), large)
    score_map = torch.arange(2 * 138).view(1, 2, 138)
    monkeypatch.setattr(learner.acquisition, "describe", lambda *_: {"score": score_map})
    selected = pictures.look(cycle, large, TrueLabels(large), learner.training, learner.acquisition, {}, [9, 4, 7])
    assert selected.images.shape == (3, 7, 512, 3) and selected.images.dtype == np.uint8
    rows = [int((y + 0.5) * 16 / 7) for y in range(7)]
    columns = [int((x + 0.5) * 1100 / 512) for x in range(512)]
    assert np.array_equal(selected.labels, large.train_labels[[9, 4, 7]][:, rows][:, :, columns])
    with evaluating(learner.network):
        batch = cycle.images.unaugmented(torch.tensor([9, 4, 7]))
        predicted = at_labels(learner.network(batch).logits, batch[:, 0]).argmax(1).numpy()
    assert np.array_equal(selected.predictions, predicted[:, rows][:, :, columns])
    assert selected.score_map is not None and selected.score_map.shape == (3, 7, 512)
    for image in selected.score_map:
        assert image[6, 511] == 138 + columns[511] // 8 and image[0, 100] == columns[100] // 8
    whole = large.train_images[[9, 4, 7]]
    assert abs(selected.images.mean() - whole.mean()) < 1
    assert selected.images.std() < 0.8 * whole.std(), "no pixels skipped"


def test_scores_of_whole_images_are_not_shown(noise: LoadedData) -> None:
    for name in ("core_set", "vaal"):
        learner, cycle = opened(make_street_trial("cross_entropy", name), noise)
        learner.train(cycle)
        selection = learner.select(cycle)
        halves = learner.training, learner.acquisition
        selected = pictures.look(cycle, noise, learner.oracle, *halves, selection.prepared, selection.indices)
        assert selected.score_map is None and selected.indices.tolist() == selection.indices


def test_labels_are_those_of_the_oracle(noise: LoadedData) -> None:
    asked: list[list[int]] = []

    class Wrong(TrueLabels):
        def labels(self, indices: Any, device: torch.device) -> Any:
            asked.append(indices.tolist())
            return super().labels(indices, device) * 0 + 1

    learner, cycle = opened(make_street_trial("cross_entropy", "random"), noise)
    halves = learner.training, learner.acquisition
    selected = pictures.look(cycle, noise, Wrong(noise), *halves, {}, [3, 20, 8, 1, 2, 5])
    assert (selected.labels == 1).all() and asked == [[3, 20, 8, 1]], "and of the images that are shown alone"


def test_a_gallery_is_kept_where_images_have_labels(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, folder, trial = folders(), folders(), make_trial("isda", "least_confidence", cycles=2, budget=20)
    monkeypatch.setattr("harness.trial._keep_pictures", lambda *_: None)
    expected = run(trial, digits, without)
    monkeypatch.undo()
    records = run(trial, digits, folder)
    assert outcomes(records) == outcomes(expected), "nothing depends on it"
    selected = kept(trial, folder)
    assert selected.indices.tolist() == records[0].selected[:16]
    assert np.array_equal(selected.images, digits.train_images[selected.indices])
    assert np.array_equal(selected.labels, digits.train_labels[selected.indices])
    assert path_of(trial, folder).stat().st_size < 10_000
    learner, cycle = opened(trial, digits)
    learner.load_state(torch.load(RunStore(folder).trial(trial.id).folder / "state_000.pt", weights_only=True))
    with evaluating(learner.network):
        logits = learner.network(cycle.images.unaugmented(torch.from_numpy(selected.indices))).logits
    assert selected.predictions.tolist() == logits.argmax(1).tolist()
    assert selected.scores is not None
    assert np.exp(selected.scores) == pytest.approx(1 - logits.softmax(1).max(1).values.numpy(), abs=1e-5)
    assert (np.diff(selected.scores) <= 0).all(), "best first"
    counts = np.bincount(digits.train_labels[records[0].selected], minlength=10)
    assert records[0].selected_classes == counts.tolist() and records[1].selected_classes == []


def test_it_is_kept_once_and_only_where_something_is_selected(
    noise: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_phases = []
    real = pictures.look

    def spy(cycle: Cycle, *arguments: Any) -> SelectedImages:
        open_phases.append(cycle.clock._open[-1])
        return real(cycle, *arguments)

    monkeypatch.setattr(pictures, "look", spy)
    trial, folder = make_street_trial("cross_entropy", "random"), folders()
    share(trial, noise, folder)
    assert open_phases == [], "nothing is selected there"
    run(trial, noise, folder)
    first = path_of(trial, folder).read_bytes()
    assert kept(trial, folder).score_map is None
    for name in ("state_001.pt", "state_002.pt"):
        (RunStore(folder).trial(trial.id).folder / name).unlink()
    run(trial, noise, folder)  # all cycles are computed again
    assert open_phases == ["checkpoint"]
    assert path_of(trial, folder).read_bytes() == first
    bare = make_street_trial("cross_entropy", "entropy", cycles=1)
    run(bare, noise, folder)
    assert not list(RunStore(folder).trial(bare.id).folder.glob("*.npz"))


def test_nothing_depends_on_it(noise: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, without, folder = make_street_trial("isda", "entropy", start="warm"), folders(), folders()
    monkeypatch.setattr("harness.trial._keep_pictures", lambda *_: None)
    expected = run(trial, noise, without)
    assert not path_of(trial, without).exists()
    monkeypatch.undo()
    draw_while_scoring(monkeypatch)
    records = run(trial, noise, folder)
    assert kept(trial, folder).score_map is not None
    assert outcomes(records) == outcomes(expected)
    assert [r.metrics for r in records] == [r.metrics for r in expected]
    assert same(state_of(trial, folder)["network"], state_of(trial, without)["network"])
    assert same(state_of(trial, folder)["training"], state_of(trial, without)["training"])
    resumed = folders()
    assert outcomes(run_with_stops(trial, noise, resumed)) == outcomes(expected)
    assert path_of(trial, resumed).read_bytes() == path_of(trial, folder).read_bytes()


def test_a_run_continues_without_it(noise: LoadedData, folders: Folders) -> None:
    trial, folder = make_street_trial("cross_entropy", "entropy"), folders()
    expected = outcomes(run(trial, noise, folder))
    path = path_of(trial, folder)
    path.unlink()
    RunStore(folder).trial(trial.id)._path("cycle", 2, "json").unlink()
    assert outcomes(run(trial, noise, folder)) == expected
    assert not path.exists(), "its moment has passed"


def test_what_is_absent_or_damaged_is_not_read(tmp_path: Path) -> None:
    whole = SelectedImages(
        np.arange(1), np.zeros((1, 2, 2, 3), np.uint8), *[np.zeros((1, 2, 2), np.uint8)] * 2, ("a", "b")
    )
    path = tmp_path / "selected_000.npz"
    assert SelectedImages.read(path) is None
    data = whole.packed()
    path.write_bytes(data)
    again = SelectedImages.read(path)
    assert again is not None and again.classes == ("a", "b") and again.score_map is None
    for damaged in (b"", b"PK", data[:-40], data[: len(data) // 2], data[:100] + bytes([data[100] ^ 255]) + data[101:]):
        path.write_bytes(damaged)
        assert SelectedImages.read(path) is None


def test_what_version_1_kept_is_read(tmp_path: Path) -> None:
    store = RunStore(tmp_path, {}).trial("t")
    assert store.pictures_path.name == "selected_000.npz"
    arrays = dict.fromkeys(("labels", "predictions"), np.ones((1, 2, 2), np.uint8))
    images, heat = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2), 0.5, np.float16)
    path = store.folder / "queried_000.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, indices=np.arange(1), images=images, classes=("a", "b"), heat=heat, **arrays)
    assert store.pictures_path == path
    selected = SelectedImages.read(path)
    assert selected is not None and selected.classes == ("a", "b")
    assert selected.score_map is not None and (selected.score_map == 0.5).all()


def test_pictures_are_kept_after_a_shared_first_cycle_of_two_heads(
    streets: LoadedData, folders: Callable[[], Path]
) -> None:
    """The heads predict the pictures although this trial has not fitted them."""
    trial, folder = make_street_trial("ads", "ads"), folders()
    share(trial, streets, folder)
    assert run(trial, streets, folder)[0].shared_from == trial.sharing_key
    assert SelectedImages.read(RunStore(folder).trial(trial.id).pictures_path) is not None

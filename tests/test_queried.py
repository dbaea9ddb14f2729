"""The images that a trial keeps for the report's pictures: what is in them, and that nothing depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_street_trial, make_trial, nothing, outcomes, run, same, state_of
from harness_of import cycle_of
from test_methods import run_with_stops

from harness import registry
from harness.config.suite import Trial
from harness.data.dataset import Problem
from harness.data.files import IGNORED
from harness.learning import queried
from harness.learning.contract import Acquisition
from harness.learning.cycle import Cycle
from harness.learning.inference import evaluating
from harness.learning.labels import at_labels
from harness.learning.queried import Queried
from harness.results.store import RunStore
from harness.trial import Runner, Surroundings

Folders = Callable[[], Path]


def patches(height: int, width: int) -> Problem:
    """Return 30 images of noise and as many maps of noise, in three classes and none."""
    random = np.random.Generator(np.random.PCG64(7))
    images = random.integers(0, 256, (30, height, width, 3), dtype=np.uint8)
    labels = random.choice(np.array([0, 1, 2, IGNORED], dtype=np.uint8), (30, height, width))
    return Problem(images, labels, images[:4], labels[:4], ("road", "sky", "car"), (0.5,) * 3, (0.3,) * 3)


@pytest.fixture(scope="module")
def noise() -> Problem:
    return patches(20, 28)


def heat(self: Any, network: Any, images: torch.Tensor, prepared: Any, generator: Any) -> torch.Tensor:
    """Return a score of each place that names the image and the place, and draw from the global streams."""
    torch.rand(3), np.random.rand()  # noqa: NPY002
    places = torch.arange(3 * 4).view(1, 3, 4)
    return places + 100 * network(images).logits.mean((1, 2, 3), keepdim=True)[:, 0]


def give_heat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let entropy show ``heat``, and score as it does without."""
    plugin: Any = registry.find("methods", "entropy", Acquisition)
    real = plugin.heat

    def describe(self: Any, network: Any, images: torch.Tensor, *others: Any) -> Any:
        return {"score": self.over_places(real(self, network, images, *others).view(len(images), -1))}

    monkeypatch.setattr(plugin, "describe", describe)
    monkeypatch.setattr(plugin, "heat", heat)


def path_of(trial: Trial, folder: Path) -> Path:
    return RunStore(folder).trial(trial.id).queried_path


def kept(trial: Trial, folder: Path) -> Queried:
    found = Queried.read(path_of(trial, folder))
    assert found is not None
    return found


def test_what_is_kept_is_what_was_bought_first(
    noise: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_heat(monkeypatch)
    trial, folder = make_street_trial("plain", "entropy", cycles=2, budget=6, inference_batch_size=3), folders()
    records = run(trial, noise, folder)
    found = kept(trial, folder)
    assert found.indices.tolist() == records[0].chosen[:4]
    assert np.array_equal(found.images, noise.train_images[found.indices])
    assert np.array_equal(found.labels, noise.train_labels[found.indices])
    assert found.classes == noise.classes

    runner, cycle = cycle_of(trial, noise, folders())  # predicted by the network of that moment, one by one
    path = RunStore(folder).trial(trial.id).folder / "state_000.pt"
    runner._load(torch.load(path, weights_only=True))
    with evaluating(runner.network):
        for number, index in enumerate(found.indices):
            logits = runner.network(cycle.images.plain(torch.tensor([index]))).logits
            large = torch.nn.functional.interpolate(logits, scale_factor=8, mode="bilinear")[0, :, :20, :28]
            assert (large.argmax(0).numpy() != found.predictions[number]).mean() < 0.01, "but for ties by rounding"
            assert found.heat is not None and found.heat.dtype == np.float16
            for y, x in ((0, 0), (7, 8), (19, 27)):
                score = (y // 8) * 4 + x // 8 + 100 * float(logits.mean())
                assert found.heat[number, y, x] == pytest.approx(score, rel=2e-3, abs=0.02)


def test_large_images_are_made_smaller(monkeypatch: pytest.MonkeyPatch, folders: Folders) -> None:
    large = patches(16, 1100)
    runner, cycle = cycle_of(make_street_trial("plain", "entropy"), large, folders())
    monkeypatch.setattr(runner.acquisition, "heat", lambda *_: torch.arange(2 * 138).view(1, 2, 138).expand(3, 2, 138))
    found = queried.look(cycle, large, runner.training, runner.acquisition, {}, [9, 4, 7])
    assert found.images.shape == (3, 7, 512, 3) and found.images.dtype == np.uint8
    rows = [int((y + 0.5) * 16 / 7) for y in range(7)]
    columns = [int((x + 0.5) * 1100 / 512) for x in range(512)]
    assert np.array_equal(found.labels, large.train_labels[[9, 4, 7]][:, rows][:, :, columns])
    with evaluating(runner.network):
        batch = cycle.images.plain(torch.tensor([9, 4, 7]))
        predicted = at_labels(runner.network(batch).logits, batch[:, 0]).argmax(1).numpy()
    assert np.array_equal(found.predictions, predicted[:, rows][:, :, columns])
    assert found.heat is not None
    assert found.heat[0, 6, 511] == 138 + columns[511] // 8 and found.heat[0, 0, 100] == columns[100] // 8
    whole = large.train_images[[9, 4, 7]]
    assert abs(found.images.mean() - whole.mean()) < 1 and found.images.std() < 0.8 * whole.std(), "no pixels skipped"


def test_it_is_kept_once_and_only_where_labels_are_maps(
    noise: Problem, digits: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_phases = []
    real = queried.look

    def spy(cycle: Cycle, *arguments: Any) -> Queried:
        open_phases.append(cycle.clock._open[-1])
        return real(cycle, *arguments)

    monkeypatch.setattr(queried, "look", spy)
    trial, folder = make_street_trial("plain", "random"), folders()
    Runner(trial, noise, RunStore(folder), Surroundings()).run_shared(nothing)
    assert open_phases == [], "nothing is bought there"
    run(trial, noise, folder)
    first = path_of(trial, folder).read_bytes()
    assert kept(trial, folder).heat is None
    for name in ("state_001.pt", "state_002.pt"):
        (RunStore(folder).trial(trial.id).folder / name).unlink()
    run(trial, noise, folder)  # all cycles are computed again
    assert open_phases == ["checkpoint"]
    assert path_of(trial, folder).read_bytes() == first
    for bare in (make_trial("plain", "entropy"), make_street_trial("plain", "entropy", cycles=1)):
        problem = digits if bare.dataset.name == "digits" else noise
        run(bare, problem, folder)
        assert not list(RunStore(folder).trial(bare.id).folder.glob("*.npz"))


def test_nothing_depends_on_it(noise: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, without, folder = make_street_trial("isda", "entropy", start="warm"), folders(), folders()
    monkeypatch.setattr(Runner, "_keep_queried", lambda *_: None)
    expected = run(trial, noise, without)
    assert not path_of(trial, without).exists()
    monkeypatch.undo()
    give_heat(monkeypatch)
    found = run(trial, noise, folder)
    assert kept(trial, folder).heat is not None
    assert outcomes(found) == outcomes(expected)
    assert [r.figures for r in found] == [r.figures for r in expected]
    assert same(state_of(trial, folder)["network"], state_of(trial, without)["network"])
    assert same(state_of(trial, folder)["training"], state_of(trial, without)["training"])
    resumed = folders()
    assert outcomes(run_with_stops(trial, noise, resumed)) == outcomes(expected)
    assert path_of(trial, resumed).read_bytes() == path_of(trial, folder).read_bytes()


def test_a_run_goes_on_without_it(noise: Problem, folders: Folders) -> None:
    trial, folder = make_street_trial("plain", "entropy"), folders()
    expected = outcomes(run(trial, noise, folder))
    path = path_of(trial, folder)
    path.unlink()
    RunStore(folder).trial(trial.id)._cycle_path(2).unlink()
    assert outcomes(run(trial, noise, folder)) == expected
    assert not path.exists(), "its moment has passed"


def test_what_is_absent_or_damaged_is_not_read(tmp_path: Path) -> None:
    whole = Queried(np.arange(1), np.zeros((1, 2, 2, 3), np.uint8), *[np.zeros((1, 2, 2), np.uint8)] * 2, ("a", "b"))
    path = tmp_path / "queried_000.npz"
    assert Queried.read(path) is None
    data = whole.packed()
    path.write_bytes(data)
    again = Queried.read(path)
    assert again is not None and again.classes == ("a", "b") and again.heat is None
    for damaged in (b"", b"PK", data[:-40], data[: len(data) // 2], data[:100] + bytes([data[100] ^ 255]) + data[101:]):
        path.write_bytes(damaged)
        assert Queried.read(path) is None

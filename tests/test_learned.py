"""LL4AL, VAAL, SRAAL and ADS: sizes, losses on hand-made tensors, and that each learns what it claims."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import changed, make_trial, nothing, outcomes, run, same
from harness_of import cycle_of

from harness import registry
from harness.config.load import load
from harness.config.suite import Part
from harness.data.dataset import DataPlace, Dataset, Problem
from harness.errors import NonFiniteLoss, UserError
from harness.learning import pool
from harness.learning.contract import Acquisition
from harness.learning.inference import evaluating
from harness.results.store import RunStore
from harness.settings import Model
from harness.trial import Runner, Surroundings

ll4al = registry.load("methods", "ll4al")
sraal = registry.load("methods", "sraal")
vaal = registry.load("methods", "vaal")
ads = registry.load("methods", "ads")
modules = importlib.import_module("harness.methods._modules")
adversarial = importlib.import_module("harness.methods._adversarial")

Folders = Callable[[], Path]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def own(name: str, **settings: Any) -> Part:
    """Return a method with its own defaults, not cut down."""
    plugin: Any = registry.find("methods", name, Acquisition)
    return Part(name, plugin.Settings(**settings).model_dump())


@pytest.fixture(scope="session")
def all_digits() -> Problem:
    plugin = registry.find("datasets", "digits", Dataset)
    assert plugin is not None
    return plugin(plugin.Settings(), DataPlace(Path(), False)).load()


# ------------------------------------------------------------------------------------------------------- sizes


def test_the_sizes_are_the_published_ones() -> None:
    assert count(modules.LossModule([64, 128, 256, 512], 128)) == 123_905
    assert count(modules.Autoencoder(3, 128, 32, 32)) == 22_835_139
    assert count(modules.discriminator(32, 3)) == 280_065
    with torch.device("meta"):
        assert count(sraal.SRAAL(sraal.SRAAL.Settings(), 10).networks(3)) == 23_660_750
        assert 2 * count(modules.PrototypeHead(512, 10, 3, 0.05)) == 555_008
        assert 2 * count(modules.PrototypeHead(512, 100, 3, 0.05)) == 831_488


@pytest.mark.parametrize(
    ("name", "extra"), [("ll4al", 123_905), ("vaal", 23_115_204), ("sraal", 23_660_750), ("ads", 549_878)]
)
def test_extra_parameters_are_the_system_less_the_plain_network(
    name: str, extra: int, colours: Problem, tmp_path: Path
) -> None:
    """On ResNet-18 with ten classes, as in Table 4."""
    ten = replace(colours, classes=tuple(map(str, range(10))))
    method = own(name, **({"iterations": 1, "batch_size": 2} if name in ("vaal", "sraal") else {}))
    training = method if name in ("ll4al", "ads") else "plain"
    trial = make_trial(training, method, initial=4, budget=2, candidates=8, cycles=1, batch_size=4)
    trial = replace(trial, model=Model(name="resnet18_cifar"))
    runner, cycle = cycle_of(trial, ten, tmp_path)
    if name in ("ll4al", "ads"):
        runner.training.fit(cycle)
    halves: set[Any] = {runner.training, runner.acquisition}
    assert sum(half.extra_parameters(cycle) for half in halves) == extra


# ------------------------------------------------------------------------------------------------------- LL4AL


def test_ranking_loss_by_hand() -> None:
    predicted = torch.tensor([0.0, 3.0, 1.0, 2.0])  # pairs (0, 3) and (1, 2)
    losses = torch.tensor([1.0, 5.0, 4.0, 2.0])
    loss, right = ll4al.ranking_loss(predicted, losses, 1.0)
    # pair (0, 3): s = -1, difference -2: max(0, 1 - 2) = 0; pair (1, 2): s = +1, difference 2: 0
    assert loss == 0 and right == 1
    loss, right = ll4al.ranking_loss(predicted.flip(0), losses, 1.0)
    # differences 2 and -2 against s = -1 and +1: both 1 + 2
    assert loss == 3 and right == 0
    tied, _ = ll4al.ranking_loss(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.0]), 1.0)
    assert tied == 1.5  # a tie counts as s = -1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_batch_size_has_a_ranking_loss(size: int) -> None:
    predicted = torch.arange(size).float().requires_grad_()
    loss, _ = ll4al.ranking_loss(predicted, torch.rand(size), 1.0)
    loss.backward()
    assert loss.isfinite() and predicted.grad is not None
    if size % 2:  # the middle image has no partner
        assert predicted.grad[size // 2] == 0


def test_the_target_gets_no_gradient_of_the_loss_module_late_in_training(digits: Problem, tmp_path: Path) -> None:
    method = own("ll4al")
    runner, cycle = cycle_of(make_trial(method, method), digits, tmp_path)
    runner.training.fit(cycle)
    images, labels = cycle.images.plain(cycle.labelled), cycle.labels

    def target_gradient(progress: float, weight: float) -> torch.Tensor:
        runner.training.settings = method_settings(weight)
        cycle.network.zero_grad()
        runner.training.loss(cycle.network(images, stages=True), labels, progress).backward()
        return torch.cat([p.grad.flatten() for p in cycle.network.parameters() if p.grad is not None]).clone()

    def method_settings(weight: float) -> Any:
        return ll4al.LL4AL.Settings(weight=weight)

    for progress, moved in ((0.0, True), (0.6, True), (0.61, False)):  # 0.6: epoch 120 of 200 still has it
        changed_by = target_gradient(progress, 5.0) - target_gradient(progress, 1e-9)
        assert bool(changed_by.abs().max() > 1e-6) == moved


def test_the_loss_module_ranks_the_true_losses_of_unseen_images(all_digits: Problem, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    method = own("ll4al")
    trial = make_trial(method, method, initial=300, epochs=25, width=8, batch_size=32, learning_rate=0.05, cycles=2)
    trial = changed(trial, milestones=[20])
    runner, cycle = cycle_of(trial, all_digits, tmp_path)
    runner.training.fit(cycle)
    unseen = cycle.unlabelled[:600]
    with evaluating(cycle.network):
        images = cycle.images.plain(unseen)
        labels = torch.from_numpy(all_digits.train_labels)[unseen]
        true = F.cross_entropy(cycle.network(images).logits, labels, reduction="none")
        score = runner.acquisition.describe(cycle.network, images, runner.acquisition.prepare(cycle), torch.Generator())
    assert spearmanr(true.numpy(), score["score"].numpy()).statistic > 0.5
    assert cycle.health["ranking_accuracy"] > 0.6 and not cycle.warnings


# -------------------------------------------------------------------------------------------------- VAAL, SRAAL


def test_kl_divergence_by_hand() -> None:
    zero = torch.zeros(2, 3)
    assert adversarial.kl_divergence(zero, zero).tolist() == [0, 0]
    # N(1, 1) against N(0, 1) in three entries: 3 x 1/2; variance e: (e - 1 - 1) / 2 each
    assert torch.allclose(adversarial.kl_divergence(zero + 1, zero), torch.full((2,), 1.5))
    assert torch.allclose(adversarial.kl_divergence(zero, zero + 1), torch.full((2,), 1.5 * (math.e - 2)))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.6, 0.4], 0.6032),
        ([0.6, *[0.4 / 9] * 9], 0.4),
        ([0.9, 0.1], 0.1111),
        ([0.9, *[0.1 / 9] * 9], 0.1),
        ([0.5, 0.5], 0.7778),
        ([1.0], 0.0),
        ([0.2] * 5, 0.9778),
        ([0.1] * 10, 1.0),
    ],
)
def test_the_uncertainty_indicator_has_the_known_values(probabilities: list[float], expected: float) -> None:
    padded = torch.tensor([probabilities + [0.0] * (10 - len(probabilities))])
    assert float(sraal.uncertainty(padded)) == pytest.approx(expected, abs=6e-5)


def test_endless_batches_see_every_image_once_a_pass() -> None:
    found = adversarial.endless(torch.arange(100, 110), 5, torch.Generator())
    for _ in range(3):
        one = torch.cat([next(found), next(found)])
        assert sorted(one.tolist()) == list(range(100, 110))
    few = adversarial.endless(torch.arange(3), 8, torch.Generator())
    assert sorted(next(few).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("losses", "targets", "words"),
    [
        ([math.log(2)] * 3, [0.0, 1.0], "tells nothing"),
        ([0.0] * 3, [0.0, 1.0], "tells everything"),
        ([0.4] * 3, [0.0, 1.0], ""),
        # soft targets: half at 1, half at 0.5; a constant answer of 0.75 costs 0.562, a perfect one 0.347
        ([0.56] * 3, [1.0, 0.5], "tells nothing"),
        ([0.35] * 3, [1.0, 0.5], "tells everything"),
        ([0.45] * 3, [1.0, 0.5], ""),
        ([0.55] * 3, [1.0, 0.5], ""),  # little, but of the little there is to tell
    ],
)
def test_a_stuck_discriminator_is_reported(
    losses: list[float], targets: list[float], words: str, digits: Problem, tmp_path: Path
) -> None:
    _, cycle = cycle_of(make_trial(), digits, tmp_path)
    adversarial.check_discriminator(cycle, "it", losses, torch.tensor(targets))
    assert cycle.health["discriminator_loss"] == pytest.approx(losses[0])
    assert (words in cycle.warnings[0]) if words else not cycle.warnings


def shifted(problem: Problem, dark: np.ndarray[Any, Any]) -> Problem:
    """Return the problem with some training images made much darker."""
    images = problem.train_images.copy()
    images[dark] //= 4
    return replace(problem, train_images=images)


def test_vaal_tells_two_shifted_pools_apart_and_buys_the_unknown_one(digits: Problem, tmp_path: Path) -> None:
    method = own("vaal", width=4, iterations=80, batch_size=32, kl="per_dimension", learning_rate=4e-3)
    trial = make_trial("plain", method, initial=60, budget=40, candidates=200, cycles=2)
    _, plain_cycle = cycle_of(trial, digits, tmp_path / "a")
    strange = plain_cycle.unlabelled[::2].numpy()  # every other unlabelled image looks like no labelled one
    runner, cycle = cycle_of(trial, shifted(digits, strange), tmp_path / "b")
    chosen, _ = runner._choose(cycle)
    assert np.isin(chosen, strange).mean() > 0.9
    assert 0.02 < cycle.health["discriminator_loss"] < math.log(2) - 0.02


def test_the_autoencoder_explains_real_images(all_digits: Problem, tmp_path: Path) -> None:
    """With a weak adversary: at its published weight of 1 it alone shapes the latent of images as small as these."""
    settings = {"kl": "per_dimension", "learning_rate": 4e-3, "adversary": 0.01}
    method = own("vaal", width=8, iterations=150, batch_size=32, **settings)
    runner, cycle = cycle_of(make_trial("plain", method, initial=200), all_digits, tmp_path)
    runner.acquisition.prepare(cycle)
    assert cycle.health["explained_variance"] > 0.3
    assert cycle.health["kl_nats"] > adversarial.COLLAPSED


def test_a_collapsed_autoencoder_is_reported(digits: Problem, tmp_path: Path) -> None:
    method = own("vaal", width=4, latent=4, iterations=150, batch_size=32, kl="batch_sum", learning_rate=5e-3)
    runner, cycle = cycle_of(make_trial("plain", method), digits, tmp_path)
    runner.acquisition.prepare(cycle)
    assert any("collapsed" in warning for warning in cycle.warnings), cycle.health


def test_relabelling_by_uncertainty_changes_the_picks(
    digits: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = own("sraal", width=4, latent=6, iterations=60, batch_size=16)
    trial = make_trial("plain", method, cycles=2, epochs=4)
    with_it = run(trial, digits, folders())
    monkeypatch.setattr(sraal, "uncertainty", lambda p: torch.zeros(len(p)))
    without = run(trial, digits, folders())
    assert with_it[0].figures == without[0].figures
    assert set(with_it[0].chosen) != set(without[0].chosen)


def test_sraal_may_start_from_k_center_in_latent_space(
    digits: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"width": 4, "latent": 6, "iterations": 30, "batch_size": 16}
    common = make_trial("plain", own("sraal", **settings), initial=30, cycles=2)
    trial = make_trial("plain", own("sraal", **settings, initial_set="k_center"), initial=30, cycles=2)
    assert common.sharing_key == make_trial("plain", "random", initial=30, cycles=2).sharing_key
    assert trial.sharing_key != common.sharing_key
    first, second = run(trial, digits, folders())
    shared = pool.initial_set(trial.protocol, len(digits.train_labels), trial.seed).tolist()
    assert first.own_initial_set[:10] == shared[:10] and len(set(first.own_initial_set)) == 30
    assert set(first.own_initial_set) != set(shared) and not set(first.chosen) & set(first.own_initial_set)
    assert "an initial set of its own" in first.warnings[0] and not second.own_initial_set
    assert first.seconds["auxiliary"] > 0 and run(common, digits, folders())[0].own_initial_set == []
    # spread in latent space: the smallest distance between two of its images is larger than between random ones
    runner, cycle = cycle_of(trial, digits, folders())
    latents = adversarial.Game(runner.acquisition, cycle, "sraal initial set").latents()
    assert torch.pdist(latents[first.own_initial_set]).min() > torch.pdist(latents[shared]).min()
    # resumed, it is read from cycle 0 and not drawn again
    folder = folders()
    run(trial, digits, folder)
    for path in (folder / "trials" / trial.id).glob("*_001.*"):
        path.unlink()
    monkeypatch.setattr(sraal.SRAAL, "initial_set", None)
    assert outcomes(run(trial, digits, folder)) == outcomes([first, second])


def test_an_initial_set_of_its_own_is_drawn_once_for_trials_that_share_it(
    digits: Problem, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = own("sraal", width=4, latent=6, iterations=10, batch_size=16, initial_set="k_center")
    trial = make_trial("plain", method, initial=30, cycles=1)
    folder = folders()
    Runner(trial, digits, RunStore(folder), Surroundings()).run_shared(nothing)
    monkeypatch.setattr(sraal.SRAAL, "initial_set", None)
    (record,) = run(trial, digits, folder)
    assert record.shared_from == trial.sharing_key and len(record.own_initial_set) == 30
    assert sum("an initial set of its own" in warning for warning in record.warnings) == 1


def game_of(name: str, problem: Problem, folder: Path, **settings: Any) -> tuple[Any, Any, Any]:
    """Return (method, cycle, game) on a trained network."""
    method = own(name, **({"width": 4, "latent": 6, "iterations": 2, "batch_size": 16} | settings))
    runner, cycle = cycle_of(make_trial("plain", method), problem, folder)
    runner.training.fit(cycle)
    return runner.acquisition, cycle, adversarial.Game(runner.acquisition, cycle, "test")


def test_sraal_relabels_by_one_less_the_uncertainty(digits: Problem, tmp_path: Path) -> None:
    _, cycle, game = game_of("sraal", digits, tmp_path)
    game.play()
    assert (game.target_of[cycle.labelled] == 1).all()
    with evaluating(cycle.network):
        p = cycle.network(cycle.images.plain(cycle.unlabelled)).logits.softmax(1).double()
    highest = p.amax(1)
    u = 1 - highest * ((highest - 0.1) ** 2 / 9) / ((p - 0.1) ** 2).mean(1)
    torch.testing.assert_close(game.target_of[cycle.unlabelled].double(), 1 - u, rtol=1e-3, atol=1e-4)
    assert torch.equal(game.supervision_of[cycle.labelled], cycle.labels)


def test_vaal_holds_the_pools_for_one_and_zero(digits: Problem, tmp_path: Path) -> None:
    _, cycle, game = game_of("vaal", digits, tmp_path)
    game.play()
    assert (game.target_of[cycle.labelled] == 1).all() and (game.target_of[cycle.unlabelled] == 0).all()
    assert game.supervision_of is None


def test_sraal_learns_the_labels_of_the_batch_from_the_second_half(
    digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, cycle, game = game_of("sraal", digits, tmp_path)
    game.play()
    latent, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 4])
    expected = 5 * F.cross_entropy(game.networks["labels"](latent[:, 3:]), labels)
    torch.testing.assert_close(method.supervised(game.networks, latent, labels), expected)
    changed_half = torch.cat([latent[:, :3], torch.randn(5, 3)], 1)
    autoencoder = game.autoencoder.eval()
    assert torch.equal(autoencoder.decode(latent), autoencoder.decode(changed_half))
    assert not torch.equal(autoencoder.decode(latent), autoencoder.decode(latent.flip(1)))
    seen: list[torch.Tensor] = []
    real = method.supervised

    def supervised(networks: Any, latent: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        seen.append(known)
        return real(networks, latent, known)

    monkeypatch.setattr(method, "supervised", supervised)
    rows = torch.tensor([7, 3, 11, 0])
    for _ in range(2):
        game.generator_step(cycle.labelled[rows], cycle.unlabelled[:4])
    assert all(torch.equal(known, cycle.labels[rows]) for known in seen) and len(seen) == 2


def test_each_iteration_is_two_generator_steps_and_one_of_the_discriminator_on_the_last_pair(
    digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, game = game_of("vaal", digits, tmp_path, iterations=3)
    steps: list[tuple[str, torch.Tensor, float]] = []

    def note(name: str) -> Any:
        def one(labelled: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
            steps.append((name, torch.cat([labelled, unlabelled]), game.generator_optimiser.param_groups[0]["lr"]))
            return torch.zeros(())

        return one

    monkeypatch.setattr(game, "generator_step", note("g"))
    monkeypatch.setattr(game, "discriminator_step", note("d"))
    game.play()
    assert "".join(name for name, _, _ in steps) == "ggd" * 3
    for first, second, third in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
        assert torch.equal(second[1], third[1]) and not torch.equal(first[1], second[1])
    assert {rate for _, _, rate in steps} == {5e-4}


def test_kl_weights_and_decay_are_the_published_ones(digits: Problem, tmp_path: Path) -> None:
    for kl, weight in (("per_image", 2.0), ("batch_sum", 2.0 * 20), ("per_dimension", 2.0 / 6)):
        _, _, game = game_of("vaal", digits, tmp_path, kl=kl, beta=2.0)
        assert game.kl_weight(20) == pytest.approx(weight)
    method = sraal.SRAAL(sraal.SRAAL.Settings(), 10)
    rates = [method.decay(iteration) for iteration in range(20000)]
    assert rates[0] == rates[665] == 1 and rates[666] == 0.85 and rates[-1] == pytest.approx(0.85**30)
    assert len(set(rates)) == 31


@pytest.mark.parametrize("name", ["vaal", "sraal"])
def test_the_first_cycle_is_the_plain_networks(name: str, digits: Problem, tmp_path: Path) -> None:
    method = own(name, width=4, latent=6, iterations=5, batch_size=16)
    runner, cycle = cycle_of(make_trial("plain", method), digits, tmp_path)
    runner.training.fit(cycle)
    before = {k: v.clone() for k, v in cycle.network.state_dict().items()}
    runner.acquisition.prepare(cycle)
    assert same(before, cycle.network.state_dict())  # batch-norm statistics included
    assert make_trial("plain", method).sharing_key == make_trial("plain", "random").sharing_key


def test_a_broken_adversarial_loop_stops_and_says_where(digits: Problem, tmp_path: Path) -> None:
    method = own("vaal", width=4, latent=4, iterations=40, batch_size=16, learning_rate=1e30)
    runner, cycle = cycle_of(make_trial("plain", method), digits, tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, vaal, adversarial step \d+"):
        runner.acquisition.prepare(cycle)


def test_the_time_of_the_adversarial_loop_is_auxiliary(digits: Problem, folders: Folders) -> None:
    method = own("vaal", width=8, latent=6, iterations=30, batch_size=16)
    first, second = run(make_trial("plain", method, cycles=2), digits, folders())
    assert first.seconds["auxiliary"] > first.seconds["score"]
    assert second.seconds["auxiliary"] == 0  # nothing is bought after the last cycle
    assert {"discriminator_loss", "explained_variance", "kl_nats"} <= first.health.keys()


# --------------------------------------------------------------------------------------------------------- ADS


def test_entropy_and_difference_by_hand() -> None:
    one, other = torch.tensor([[0.5, 0.5], [0.9, 0.0]]), torch.tensor([[0.2, 0.2], [0.3, 0.3]])
    # scores are normalised first: 1 bit each; then 0 and 1 bit
    assert torch.allclose(ads.entropy([one, other]), torch.tensor([1.0, 0.5]))
    assert torch.allclose(ads.difference([one, other]), torch.tensor([0.3, 0.45]))


def test_agreement_and_discrepancy_by_hand() -> None:
    one, other = torch.tensor([[0.5, 0.5], [0.9, 0.0]]), torch.tensor([[0.2, 0.2], [0.3, 0.3]])
    # entropies 1 and 0.5 bits, differences 0.3 and 0.45; weights by the sigmoid of entropy - tau, over the batch size

    def unsure(bits: float) -> float:
        return 1 / (1 + math.exp(0.1 - bits))

    agreeing = ((1 - unsure(1)) * 0.3 + (1 - unsure(0.5)) * 0.45) / 2 / 2
    differing = (unsure(1) * (1 - 0.3) + unsure(0.5) * (1 - 0.45)) / 2 / 2
    assert float(ads.agreement([one, other], 0.1, 2)) == pytest.approx(agreeing)
    assert float(ads.discrepancy([one, other], 0.1, 2)) == pytest.approx(differing)


def test_the_order_and_rates_of_adss_steps(digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One labelled pass before the first epoch; then agreement, discrepancy, labelled; the adversarial rate stays."""
    method = own("ads")
    trial = changed(make_trial(method, method, epochs=2, initial=40, candidates=50), milestones=[1])
    runner, cycle = cycle_of(trial, digits, tmp_path)
    steps: list[tuple[int, float]] = []
    real = modules.step

    def step(optimiser: Any, loss: torch.Tensor) -> torch.Tensor:
        group = optimiser.param_groups[0]
        steps.append((len(group["params"]), round(group["lr"], 6)))
        return real(optimiser, loss)

    monkeypatch.setattr(modules, "step", step)
    runner.training.fit(cycle)
    heads = len(list(runner.training.module.parameters()))  # type: ignore[attr-defined]
    backbone = len(list(cycle.network.parameters())) - 2
    labelled, unlabelled = 3, 4  # batches of 16
    agree, differ = [(backbone, 0.1)] * unlabelled, [(heads, 0.1)] * unlabelled
    first, second = [(backbone + heads, 0.05)] * labelled, [(backbone + heads, 0.005)] * labelled
    assert steps == [*first, *agree, *differ, *first, *agree, *differ, *second]


def test_adss_score_is_the_heads_entropy_and_the_highest_is_bought(digits: Problem, tmp_path: Path) -> None:
    method = own("ads")
    runner, cycle = cycle_of(make_trial(method, method), digits, tmp_path)
    runner.training.fit(cycle)
    images = cycle.images.plain(cycle.candidates[:50])
    with evaluating(cycle.network):
        found = runner.acquisition.describe(cycle.network, images, runner.acquisition.prepare(cycle), torch.Generator())
        heads = [h(cycle.network(images).features).sigmoid() for h in runner.training.module]  # type: ignore[attr-defined]
    bits = sum(-(p * p.log2()).sum(1) for p in (h / h.sum(1, keepdim=True) for h in heads)) / 2
    torch.testing.assert_close(found["score"], bits)
    rows = runner.acquisition.choose(found, dict, 3, torch.Generator())
    assert rows.tolist() == bits.argsort(descending=True)[:3].tolist()


@pytest.mark.parametrize(("settings", "rate"), [({"adversarial_learning_rate": 1e30}, 0.05), ({}, 1e25)])
def test_a_loss_of_ads_that_is_not_finite_stops_and_says_where(
    settings: Any, rate: float, digits: Problem, tmp_path: Path
) -> None:
    method = own("ads", **settings)
    runner, cycle = cycle_of(make_trial(method, method, learning_rate=rate), digits, tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, epoch 0, (labelled|agreement|discrepancy) step \d+"):
        runner.training.fit(cycle)


@pytest.mark.parametrize("left", [0, 1])
def test_ads_trains_on_labels_alone_where_no_candidates_are_left(left: int, digits: Problem, folders: Folders) -> None:
    method, total = own("ads"), len(digits.train_labels)
    trial = make_trial(method, method, initial=total - 20 - left, budget=20, cycles=2, candidates=None)
    first, last = run(trial, digits, folders())
    assert not first.warnings and last.labelled == total - left
    assert any("labelled steps only" in warning for warning in last.warnings)


def test_the_labelled_loss_is_both_heads_cross_entropy_summed_over_classes(digits: Problem, tmp_path: Path) -> None:
    method = own("ads")
    runner, cycle = cycle_of(make_trial(method, method), digits, tmp_path)
    runner.training.fit(cycle)
    with evaluating(cycle.network):
        outputs = cycle.network(cycle.images.plain(cycle.labelled))
        expected = 0.0
        for scores in runner.training.scores(outputs):  # type: ignore[attr-defined]
            for row, label in zip(scores, cycle.labels, strict=True):
                for c, score in enumerate(row):
                    expected -= math.log(score) if c == label else math.log(1 - score)
        loss = runner.training.loss(outputs, cycle.labels, 0.0)
    assert float(loss) == pytest.approx(expected / len(cycle.labels), rel=1e-4)


def test_agreement_moves_the_backbone_and_discrepancy_the_heads(digits: Problem, tmp_path: Path) -> None:
    method = own("ads")
    runner, cycle = cycle_of(make_trial(method, method, width=8), digits, tmp_path)
    training: Any = runner.training
    training.fit(cycle)
    network, heads = cycle.network, training.module
    images, labels = cycle.images.plain(cycle.candidates[:64]), torch.arange(8)
    network.train()
    classifier = {id(p) for p in network.classifier.parameters()}
    backbone = [p for p in network.parameters() if id(p) not in classifier]

    def apart() -> float:
        with torch.no_grad():
            return float(ads.difference(training.scores(network(images))).mean())

    def snapshot() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {k: v.clone() for k, v in network.named_parameters()}, {
            k: v.clone() for k, v in heads.named_parameters()
        }

    before, start = snapshot(), apart()
    agree = torch.optim.SGD(backbone, 20.0)
    for _ in range(5):
        training.agreement_step(network, images, agree)
    after, agreed = snapshot(), apart()
    assert not same(before[0], after[0]) and same(before[1], after[1])
    assert agreed < start
    differ = torch.optim.SGD(heads.parameters(), 20.0)
    for _ in range(5):
        training.discrepancy_step(network, images, differ, images[:8], labels)
    last = snapshot()
    assert same(after[0], last[0]) and not same(after[1], last[1])
    assert apart() > agreed


def test_accuracy_is_the_mean_of_both_heads(digits: Problem, tmp_path: Path) -> None:
    method = own("ads")
    trial = make_trial(method, method, epochs=3)
    runner, cycle = cycle_of(trial, digits, tmp_path)
    runner.training.fit(cycle)
    with evaluating(cycle.network):
        heads = runner.training.predict(cycle.network, runner.test_images.plain(torch.arange(100)))
    right = [float((head.argmax(1) == runner.test_labels).float().mean()) for head in heads]
    figure = run(trial, digits, tmp_path / "again")[0].figures["accuracy"]
    assert figure == pytest.approx(sum(right) / 2)


def test_the_replaced_classifier_is_not_trained(digits: Problem, tmp_path: Path) -> None:
    method = own("ads")
    runner, cycle = cycle_of(make_trial(method, method), digits, tmp_path)
    before = cycle.network.classifier.weight.clone()
    runner.training.fit(cycle)
    assert torch.equal(before, cycle.network.classifier.weight)


# ------------------------------------------------------------------------------------------------------- all four


@pytest.mark.parametrize("name", ["ll4al", "ads"])
def test_a_method_that_brings_both_refuses_another_training(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = """
dataset: digits
model: {name: resnet_small}
recipe: {epochs: 1}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
seeds: [0]
methods: {it: METHOD}
"""
    path.write_text(text.replace("METHOD", f"{{acquisition: {name}, training: plain}}"))
    with pytest.raises(UserError, match=f"{name} ranks by what its own training learns"):
        load(path)
    path.write_text(text.replace("METHOD", f"{{acquisition: random, training: {name}}}"))  # an honest ablation
    assert load(path).suites[0].methods["it"][0].name == name


@pytest.mark.parametrize("name", ["ll4al", "vaal", "sraal", "ads"])
@pytest.mark.parametrize("model", ["resnet18_cifar", "vgg16_bn_cifar"])
def test_all_four_run_on_the_papers_networks(name: str, model: str, digits: Problem, folders: Folders) -> None:
    settings = {"iterations": 1, "batch_size": 4, "width": 4} if name in ("vaal", "sraal") else {}
    method = own(name, **settings)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    problem = Problem(images, labels, images[:6], labels[:6], ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    training = method if name in ("ll4al", "ads") else "plain"
    trial = make_trial(training, method, initial=6, budget=2, candidates=8, cycles=2, batch_size=4, crop_padding=4)
    trial = replace(trial, model=Model(name=model))
    for start in ("warm", "fresh"):
        assert [record.labelled for record in run(changed(trial, start=start), problem, folders())] == [6, 8]

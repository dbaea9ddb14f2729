"""LL4AL, VAAL, SRAAL and ADS: sizes, losses on hand-made tensors, and that each learns what it claims."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, changed, make_trial, opened, outcomes, run, same, share, trained

from harness import registry
from harness.config.load import load_config
from harness.config.suite import PluginSpec
from harness.data.dataset import DataRoot, Dataset, LoadedData
from harness.errors import NonFiniteLoss, UserError
from harness.learning import pool
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.inference import evaluating
from harness.networks.names import spec as net

ll4al = registry.load("methods", "ll4al")
sraal = registry.load("methods", "sraal")
vaal = registry.load("methods", "vaal")
ads = registry.load("methods", "ads")
modules = importlib.import_module("harness.methods._modules")
adversarial = importlib.import_module("harness.methods._adversarial")

Folders = Callable[[], Path]
ROOT = Path(__file__).parent.parent


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def own(name: str, contract: type[Any] = Acquisition, **settings: Any) -> PluginSpec:
    """Return a half of a method with its own defaults, not cut down."""
    plugin: Any = registry.find("methods", name, contract)
    return PluginSpec(name, plugin.Settings(**settings))


def both(name: str, **settings: Any) -> tuple[PluginSpec, PluginSpec]:
    """Return the training, with these settings, and the acquisition of a method that has both."""
    return own(name, Training, **settings), own(name)


@pytest.fixture(scope="session")
def all_digits() -> LoadedData:
    plugin = registry.find("datasets", "digits", Dataset)
    assert plugin is not None
    return plugin(plugin.Settings(), DataRoot(Path(), False)).load()


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
    ("name", "network", "extra", "mebibytes"),
    [
        ("ll4al", "resnet18_cifar_projection", 123_905, "0.473"),
        ("vaal", "resnet18_cifar_projection", 23_115_204, "88.178"),
        ("sraal", "resnet18_cifar_projection", 23_660_750, "90.259"),
        ("ads", "resnet18_cifar_projection", 287_734, "1.098"),
        ("ads", "resnet18_cifar", 549_878, ""),
        ("ads", "vgg16_bn_cifar", 549_878, ""),
    ],
)
def test_extra_parameters_are_the_system_less_the_network_of_cross_entropy(
    name: str, network: str, extra: int, mebibytes: str, colours: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten classes; on the network of Table 4 they are those that docs/results.md compares with the paper's."""
    monkeypatch.setattr(adversarial.Game, "play", lambda *_: None)  # the networks are made, that is enough
    arrays = {key: getattr(colours, key)[:12] for key in ("train_images", "train_labels", "test_images", "test_labels")}
    arrays |= {key: array.repeat(2, 1).repeat(2, 2) for key, array in arrays.items() if array.ndim == 4}  # 32 x 32
    ten = replace(colours, classes=tuple(map(str, range(10))), **arrays)
    of_training = name in ("ll4al", "ads")
    trial = make_trial(*(both(name) if of_training else ("cross_entropy", own(name))), initial=4, cycles=1)
    learner, cycle = opened(replace(trial, model=net(network)), ten)
    assert learner.count_parameters() == (extra if of_training else 0)
    learner.acquisition.ready(cycle)
    learner.acquisition.prepare(cycle)
    assert learner.count_parameters() == extra
    if mebibytes:
        assert f"{4 * extra / 2**20:.3f}" == mebibytes
        page = (ROOT / "docs" / "results.md").read_text().partition("## Table 4")[2]
        row = next(line for line in page.splitlines() if line.startswith(f"| {name.upper()} |"))
        with (ROOT / "published" / "values.csv").open() as file:
            (printed,) = {
                line["value"]
                for line in csv.DictReader(file)
                if (line["place"], line["method"], line["metric"]) == ("Table 4", name.upper(), "EP (MiB)")
            }
        assert row.split(" | ")[1] == printed
        assert row.split(" | ")[2] == mebibytes and row.split(" | ")[3] == f"{extra:,}".replace(",", " ")


def test_the_parts_of_all_methods_start_as_in_the_authors_code() -> None:
    """Kaiming inside of a Sequential of VAAL's and SRAAL's code; PyTorch's initialisation everywhere else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for decoded in (32, 16):  # VAAL, SRAAL
            autoencoder = modules.Autoencoder(3, 128, 32, decoded)
            for layer in (autoencoder.mean, autoencoder.log_variance):
                assert float(layer.weight.detach().std()) == pytest.approx(0.0090, abs=1e-4)
                assert layer.bias.detach().abs().min() > 0
            assert float(autoencoder.spread.weight.detach().std()) == pytest.approx((2 / decoded) ** 0.5, rel=0.01)
            assert not autoencoder.spread.bias.any()
            first = autoencoder.encoder[0].weight.detach()
            assert float(first.std()) == pytest.approx((2 / 48) ** 0.5, rel=0.03)
        # uniform within 1 / sqrt(inputs): PyTorch's
        head = modules.PrototypeHead(512, 10, 3, 0.05)
        assert float(head.conv.weight.detach().std()) == pytest.approx((1 / 512 / 3) ** 0.5, rel=0.01)
        assert float(head.prototypes.detach().std()) == pytest.approx(1, rel=0.02)
        stages = modules.LossModule([64, 128, 256, 512], 128)
        for layer in (*stages.stages, stages.head):
            assert float(layer.weight.detach().abs().max()) == pytest.approx(layer.in_features**-0.5, rel=0.01)
            assert layer.bias.any()


def test_the_heads_of_ads_replace_a_projection(colours: LoadedData) -> None:
    """Pool, then the heads: backbone 11 168 832 and heads 555 008 parameters are in use, and only these are trained."""
    ten = replace(colours, classes=tuple(map(str, range(10))))
    trial = replace(make_trial(*both("ads"), initial=16), model=net("resnet18_cifar_projection"))
    learner, cycle = opened(trial, ten)
    assert learner.network.num_parameters() + learner.count_parameters() == 11_168_832 + 555_008
    training: Any = learner.training
    images = cycle.images.unaugmented(cycle.labelled)
    with evaluating(cycle.network):
        outputs = cycle.network(images)
        pooled = cycle.network.body.forward_head(cycle.network.body.forward_features(images), pre_logits=True)
        assert torch.equal(outputs.body_features, pooled) and not torch.equal(outputs.features, pooled)
        scores = training.scores(outputs)
        found = learner.acquisition.describe(cycle.network, batch_of(images), training.state())
        torch.testing.assert_close(found["score"], ads.entropy(scores))
        torch.testing.assert_close(scores[0], training.module[0](pooled).sigmoid())
    replaced = [p.clone() for p in training.replaced(cycle.network)]
    cycle.candidates = cycle.candidates[:16]
    learner.train(cycle)
    assert all(torch.equal(before, now) for before, now in zip(replaced, training.replaced(cycle.network), strict=True))


@pytest.mark.parametrize("name", ["ll4al", "ads"])
def test_the_learning_rate_falls_as_in_code_that_steps_its_scheduler_before_an_epoch(
    name: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the authors' code of 200 epochs and milestone 160, at index 159: here PyTorch's own scheduler says where."""
    trial = make_trial(*both(name), epochs=5, milestones=[3], candidates=40, learning_rate=0.05, batch_size=40)
    rates: list[float] = []
    real = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        if self.param_groups[0]["momentum"]:  # not the adversarial steps of ADS
            rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    trained(trial, digits)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 0.05)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones=[3])
    expected = []
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        for _ in range(5):
            scheduler.step()
            expected.append(scheduler.get_last_lr()[0])
    assert expected == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.005])
    assert rates[-5:] == pytest.approx(expected)  # ADS has one more pass before the first epoch


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


def test_the_target_gets_no_gradient_of_the_loss_module_late_in_training(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial(*both("ll4al")), digits)
    images, labels = cycle.images.unaugmented(cycle.labelled), cycle.labels

    def target_gradient(progress: float, weight: float) -> torch.Tensor:
        learner.training.settings = ll4al.LL4AL.Settings(weight=weight)
        cycle.network.zero_grad()
        learner.training.loss(cycle.network(images, stages=True), labels, progress).backward()
        return torch.cat([p.grad.flatten() for p in cycle.network.parameters() if p.grad is not None]).clone()

    for progress, moved in ((0.0, True), (0.6, True), (0.61, False)):  # 0.6: epoch 120 of 200 still has it
        changed_by = target_gradient(progress, 5.0) - target_gradient(progress, 1e-9)
        assert bool(changed_by.abs().max() > 1e-6) == moved


@pytest.mark.long
def test_the_loss_module_ranks_the_true_losses_of_unseen_images(all_digits: LoadedData) -> None:
    from scipy.stats import spearmanr

    recipe = {"epochs": 25, "milestones": [20], "batch_size": 32, "learning_rate": 0.05}
    trial = make_trial(*both("ll4al"), initial=300, width=8, cycles=2, **recipe)
    learner, cycle = trained(trial, all_digits)
    unseen = cycle.unlabelled[:600]
    with evaluating(cycle.network):
        images = cycle.images.unaugmented(unseen)
        labels = torch.from_numpy(all_digits.train_labels)[unseen]
        true = F.cross_entropy(cycle.network(images).logits, labels, reduction="none")
        prepared = learner.acquisition.prepare(cycle)
        score = learner.acquisition.describe(cycle.network, batch_of(images), prepared)
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


@pytest.mark.parametrize("name", ["vaal", "sraal"])
def test_only_the_unlabelled_batches_keep_the_last_partial_one(
    name: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loaders of both public codes."""
    _, cycle, game = new_game(name, digits, iterations=14, batch_size=19)  # 40 and 260 images
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(labelled: torch.Tensor, unlabelled: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append((labelled, unlabelled))
        return torch.zeros(())

    monkeypatch.setattr(game, "generator_step", note)
    monkeypatch.setattr(game, "discriminator_step", lambda *_: torch.zeros(()))
    game.play(torch.zeros(len(cycle.unlabelled)))
    assert {len(labelled) for labelled, _ in seen} == {19}
    assert [len(unlabelled) for _, unlabelled in seen] == [*[19] * 13, 13] * 2
    assert torch.equal(torch.cat([unlabelled for _, unlabelled in seen[:14]]).sort().values, cycle.unlabelled)


def test_endless_batches_may_keep_the_last_one() -> None:
    one_left = adversarial.Endless(torch.arange(9), 4, torch.Generator(), keep_last=True)
    assert [len(next(one_left)) for _ in range(4)] == [4] * 4  # batch norm can't normalise a single image
    alone = adversarial.Endless(torch.arange(1), 4, torch.Generator(), keep_last=True)
    assert next(alone).tolist() == [0]


def test_endless_batches_see_every_image_once_a_pass() -> None:
    found = adversarial.Endless(torch.arange(100, 110), 5, torch.Generator())
    for _ in range(3):
        one = torch.cat([next(found), next(found)])
        assert sorted(one.tolist()) == list(range(100, 110))
    few = adversarial.Endless(torch.arange(3), 8, torch.Generator())
    assert sorted(next(few).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("losses", "targets", "words"),
    [
        ([math.log(2)] * 3, [0.0, 1.0], "at chance"),
        ([0.0] * 3, [0.0, 1.0], "perfect"),
        ([0.4] * 3, [0.0, 1.0], ""),
        # soft targets: half at 1, half at 0.5; a constant prediction of 0.75 costs 0.562, a perfect one 0.347
        ([0.56] * 3, [1.0, 0.5], "at chance"),
        ([0.35] * 3, [1.0, 0.5], "perfect"),
        ([0.45] * 3, [1.0, 0.5], ""),
        ([0.55] * 3, [1.0, 0.5], ""),  # near chance, but the span from chance to perfect is small
    ],
)
def test_a_stuck_discriminator_is_reported(
    losses: list[float], targets: list[float], words: str, digits: LoadedData
) -> None:
    _, cycle = opened(make_trial(), digits)
    adversarial.check_discriminator(cycle, "it", losses, torch.tensor(targets))
    assert cycle.health["discriminator_loss"] == pytest.approx(losses[0])
    assert (words in cycle.warnings[0]) if words else not cycle.warnings


def shifted(data: LoadedData, dark: np.ndarray[Any, Any]) -> LoadedData:
    """Return the data with some training images made much darker."""
    images = data.train_images.copy()
    images[dark] //= 4
    return replace(data, train_images=images)


@pytest.mark.long
def test_vaal_separates_two_shifted_pools_and_selects_the_unknown_one(digits: LoadedData) -> None:
    method = own("vaal", width=4, iterations=80, batch_size=32, kl="per_dimension", learning_rate=4e-3)
    trial = make_trial("cross_entropy", method, initial=60, budget=40, candidates=200, cycles=2)
    _, unchanged = opened(trial, digits)
    strange = unchanged.unlabelled[::2].numpy()  # every other unlabelled image looks like no labelled one
    learner, cycle = opened(trial, shifted(digits, strange))
    selected = learner.select(cycle).indices
    assert np.isin(selected, strange).mean() > 0.9
    assert 0.02 < cycle.health["discriminator_loss"] < math.log(2) - 0.02


@pytest.mark.long
def test_the_autoencoder_explains_real_images(all_digits: LoadedData) -> None:
    """With a weak adversary: at its published weight of 1 it alone shapes the latent of images as small as these."""
    settings = {"kl": "per_dimension", "learning_rate": 4e-3, "adversary": 0.01}
    method = own("vaal", width=8, iterations=150, batch_size=32, **settings)
    learner, cycle = opened(make_trial("cross_entropy", method, initial=200), all_digits)
    learner.acquisition.prepare(cycle)
    assert cycle.health["explained_variance"] > 0.3
    assert cycle.health["kl_nats"] > adversarial.COLLAPSED


@pytest.mark.long
def test_a_collapsed_autoencoder_is_reported(digits: LoadedData) -> None:
    method = own("vaal", width=4, latent=4, iterations=150, batch_size=32, kl="batch_sum", learning_rate=5e-3)
    learner, cycle = opened(make_trial("cross_entropy", method), digits)
    learner.acquisition.prepare(cycle)
    assert any("collapsed" in warning for warning in cycle.warnings), cycle.health


@pytest.mark.long
def test_relabelling_by_uncertainty_changes_the_selection(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = own("sraal", width=4, latent=6, iterations=60, batch_size=16)
    trial = make_trial("cross_entropy", method, cycles=2, epochs=4)
    with_it = run(trial, digits, folders())
    monkeypatch.setattr(sraal, "uncertainty", lambda p: torch.zeros(len(p)))
    without = run(trial, digits, folders())
    assert with_it[0].metrics == without[0].metrics
    assert set(with_it[0].selected) != set(without[0].selected)


@pytest.mark.long
def test_sraal_may_start_from_k_center_in_latent_space(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"width": 4, "latent": 6, "iterations": 30, "batch_size": 16}
    common = make_trial("cross_entropy", own("sraal", **settings), initial=30, cycles=2)
    trial = make_trial("cross_entropy", own("sraal", **settings, initial_set="k_center"), initial=30, cycles=2)
    assert common.sharing_key == make_trial("cross_entropy", "random", initial=30, cycles=2).sharing_key
    assert trial.sharing_key != common.sharing_key
    first, second = run(trial, digits, folders())
    shared = pool.initial_set(trial.protocol, len(digits.train_labels), trial.seed).tolist()
    assert first.initial_set[:10] == shared[:10] and len(set(first.initial_set)) == 30
    assert set(first.initial_set) != set(shared) and not set(first.selected) & set(first.initial_set)
    assert "its own initial set" in first.warnings[0] and not second.initial_set
    assert first.seconds["auxiliary"] > 0 and run(common, digits, folders())[0].initial_set == []
    # spread in latent space: the smallest distance between two of its images is larger than between random ones
    learner, cycle = opened(trial, digits)
    acquisition: Any = learner.acquisition
    latents = acquisition._game(cycle, "sraal initial set").latents()
    assert torch.pdist(latents[first.initial_set]).min() > torch.pdist(latents[shared]).min()
    # resumed, it is read from cycle 0 and not drawn again
    folder = folders()
    run(trial, digits, folder)
    for path in (folder / "trials" / trial.id).glob("*_001.*"):
        path.unlink()
    monkeypatch.setattr(sraal.SRAAL, "first", not_again)
    assert outcomes(run(trial, digits, folder)) == outcomes([first, second])


def not_again(self: Any, cycle: Cycle) -> torch.Tensor:
    """Stand in for a hook that must not be called."""
    raise AssertionError("the initial set is drawn again")


def test_its_own_initial_set_is_drawn_once_for_trials_that_share_it(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = own("sraal", width=4, latent=6, iterations=10, batch_size=16, initial_set="k_center")
    trial = make_trial("cross_entropy", method, initial=30, cycles=1)
    folder = folders()
    share(trial, digits, folder)
    monkeypatch.setattr(sraal.SRAAL, "first", not_again)
    (record,) = run(trial, digits, folder)
    assert record.shared_from == trial.sharing_key and len(record.initial_set) == 30
    assert sum("its own initial set" in warning for warning in record.warnings) == 1


SMALL_GAME = {"width": 4, "latent": 6, "iterations": 2, "batch_size": 16}


def new_game(name: str, data: LoadedData, **settings: Any) -> tuple[Any, Cycle, Any]:
    """Return (acquisition, cycle, game) on a trained network; the game has not been played."""
    learner, cycle = trained(make_trial("cross_entropy", own(name, **SMALL_GAME | settings)), data)
    acquisition: Any = learner.acquisition
    networks = acquisition.networks(cycle.images.pixels.shape[3])
    return acquisition, cycle, adversarial.Game(cycle, acquisition.settings, networks, "test")


@dataclass
class Played:
    """A game that an acquisition has played in ``prepare``, and what it was given."""

    acquisition: Any
    cycle: Cycle
    game: Any
    target_of: torch.Tensor
    """What the discriminator should say of each image of the training set."""
    supervision: Any


def played(name: str, data: LoadedData, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Played:
    learner, cycle = trained(make_trial("cross_entropy", own(name, **SMALL_GAME | settings)), data)
    generator, discriminator = adversarial.Game.generator_step, adversarial.Game.discriminator_step
    seen: dict[str, Any] = {"supervision": set(), "target_of": set(), "game": set()}

    def generator_step(self: Any, labelled: torch.Tensor, unlabelled: torch.Tensor, supervision: Any = None) -> Any:
        seen["game"].add(self)
        seen["supervision"].add(supervision)
        return generator(self, labelled, unlabelled, supervision)

    def discriminator_step(self: Any, labelled: torch.Tensor, unlabelled: torch.Tensor, target_of: Any) -> Any:
        seen["target_of"].add(target_of)
        return discriminator(self, labelled, unlabelled, target_of)

    monkeypatch.setattr(adversarial.Game, "generator_step", generator_step)
    monkeypatch.setattr(adversarial.Game, "discriminator_step", discriminator_step)
    learner.acquisition.prepare(cycle)
    ((game,), (target_of,), (supervision,)) = (seen[key] for key in ("game", "target_of", "supervision"))
    return Played(learner.acquisition, cycle, game, target_of, supervision)


def test_sraal_relabels_by_one_less_the_uncertainty(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = played("sraal", digits, monkeypatch)
    cycle = found.cycle
    assert (found.target_of[cycle.labelled] == 1).all()
    with evaluating(cycle.network):
        p = cycle.network(cycle.images.unaugmented(cycle.unlabelled)).logits.softmax(1).double()
    highest = p.amax(1)
    u = 1 - highest * ((highest - 0.1) ** 2 / 9) / ((p - 0.1) ** 2).mean(1)
    torch.testing.assert_close(found.target_of[cycle.unlabelled].double(), 1 - u, rtol=1e-3, atol=1e-4)
    assert torch.equal(sraal.targets(cycle, 10), cycle.labels[torch.arange(len(cycle.labels))])


def test_vaals_targets_of_the_pools_are_one_and_zero(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = played("vaal", digits, monkeypatch)
    assert (found.target_of[found.cycle.labelled] == 1).all()
    assert (found.target_of[found.cycle.unlabelled] == 0).all()
    assert found.supervision is None


def test_sraal_learns_the_labels_of_the_batch_from_the_second_half(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = played("sraal", digits, monkeypatch)
    acquisition, cycle, game = found.acquisition, found.cycle, found.game
    latent, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 4])
    expected = 5 * F.cross_entropy(game.networks["labels"](latent[:, 3:]), labels)
    torch.testing.assert_close(acquisition.label_loss(latent, labels), expected)
    changed_half = torch.cat([latent[:, :3], torch.randn(5, 3)], 1)
    autoencoder = game.autoencoder.eval()
    assert torch.equal(autoencoder.decode(latent), autoencoder.decode(changed_half))
    assert not torch.equal(autoencoder.decode(latent), autoencoder.decode(latent.flip(1)))
    seen: list[torch.Tensor] = []
    real = acquisition.label_loss

    def label_loss(latent: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        seen.append(known)
        return real(latent, known)

    monkeypatch.setattr(acquisition, "label_loss", label_loss)
    rows = torch.tensor([7, 3, 11, 0])
    for _ in range(2):
        game.generator_step(cycle.labelled[rows], cycle.unlabelled[:4], found.supervision)
    assert all(torch.equal(known, cycle.labels[rows]) for known in seen) and len(seen) == 2


def test_each_iteration_is_two_generator_steps_and_one_of_the_discriminator_on_the_last_pair(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cycle, game = new_game("vaal", digits, iterations=3)
    steps: list[tuple[str, torch.Tensor, float]] = []

    def note(name: str) -> Any:
        def one(labelled: torch.Tensor, unlabelled: torch.Tensor, given: Any) -> torch.Tensor:
            steps.append((name, torch.cat([labelled, unlabelled]), game.generator_optimiser.param_groups[0]["lr"]))
            return torch.zeros(())

        return one

    monkeypatch.setattr(game, "generator_step", note("g"))
    monkeypatch.setattr(game, "discriminator_step", note("d"))
    game.play(torch.zeros(len(cycle.unlabelled)))
    assert "".join(name for name, _, _ in steps) == "ggd" * 3
    for first, second, third in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
        assert torch.equal(second[1], third[1]) and not torch.equal(first[1], second[1])
    assert {rate for _, _, rate in steps} == {5e-4}


def test_the_learning_rate_of_both_networks_decays_by_iterations(
    digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cycle, game = new_game("sraal", digits, iterations=3)
    rates: list[list[float]] = []

    def note(*_: Any) -> torch.Tensor:
        optimisers = game.generator_optimiser, game.discriminator_optimiser
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in optimisers])
        return torch.zeros(())

    monkeypatch.setattr(game, "generator_step", note)
    monkeypatch.setattr(game, "discriminator_step", note)
    game.play(torch.zeros(len(cycle.unlabelled)), lambda iteration: 0.5**iteration)
    assert rates == [[5e-4 * 0.5**iteration] * 2 for iteration in range(3) for _ in range(3)]


def test_kl_weights_and_decay_are_the_published_ones(digits: LoadedData) -> None:
    for kl, weight in (("per_image", 2.0), ("batch_sum", 2.0 * 20), ("per_dimension", 2.0 / 6)):
        _, _, game = new_game("vaal", digits, kl=kl, beta=2.0)
        assert game.kl_weight(20) == pytest.approx(weight)
    method = sraal.SRAAL(sraal.SRAAL.Settings(), 10)
    rates = [method.decay(iteration) for iteration in range(20000)]
    assert rates[0] == rates[665] == 1 and rates[666] == 0.85 and rates[-1] == pytest.approx(0.85**30)
    assert len(set(rates)) == 31


@pytest.mark.parametrize("name", ["vaal", "sraal"])
def test_the_first_cycle_is_that_of_cross_entropy(name: str, digits: LoadedData) -> None:
    method = own(name, width=4, latent=6, iterations=5, batch_size=16)
    learner, cycle = trained(make_trial("cross_entropy", method), digits)
    before = {k: v.clone() for k, v in cycle.network.state_dict().items()}
    learner.acquisition.prepare(cycle)
    assert same(before, cycle.network.state_dict())  # batch-norm statistics included
    assert make_trial("cross_entropy", method).sharing_key == make_trial("cross_entropy", "random").sharing_key


def test_a_broken_adversarial_loop_stops_and_says_where(digits: LoadedData) -> None:
    method = own("vaal", width=4, latent=4, iterations=40, batch_size=16, learning_rate=1e6)
    learner, cycle = opened(make_trial("cross_entropy", method), digits)
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, vaal, adversarial step \d+"):
        learner.acquisition.prepare(cycle)


def test_the_time_of_the_adversarial_loop_is_auxiliary(digits: LoadedData, folders: Folders) -> None:
    method = own("vaal", width=8, latent=6, iterations=30, batch_size=16)
    first, second = run(make_trial("cross_entropy", method, cycles=2), digits, folders())
    assert first.seconds["auxiliary"] > first.seconds["score"]
    assert second.seconds["auxiliary"] == 0  # nothing is selected after the last cycle
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


def test_the_order_and_rates_of_adss_steps(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """One labelled pass before the first epoch; then agreement, discrepancy, labelled; the adversarial rate stays."""
    learner, cycle = opened(make_trial(*both("ads"), epochs=3, initial=40, candidates=50, milestones=[2]), digits)
    steps: list[tuple[int, float]] = []
    real = ads.step

    def step(optimiser: Any, loss: torch.Tensor) -> torch.Tensor:
        group = optimiser.param_groups[0]
        steps.append((len(group["params"]), round(group["lr"], 6)))
        return real(optimiser, loss)

    monkeypatch.setattr(ads, "step", step)
    learner.training.fit(cycle)
    heads = len(list(learner.training.module.parameters()))
    backbone = len(list(cycle.network.parameters())) - 2
    labelled, unlabelled = 3, 4  # batches of 16
    agree, differ = [(backbone, 0.1)] * unlabelled, [(heads, 0.1)] * unlabelled
    first, second = [(backbone + heads, 0.05)] * labelled, [(backbone + heads, 0.005)] * labelled
    assert steps == [*first, *agree, *differ, *first, *agree, *differ, *second, *agree, *differ, *second]


def test_adss_score_is_the_heads_entropy_and_the_highest_is_selected(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial(*both("ads")), digits)
    images = cycle.images.unaugmented(cycle.candidates[:50])
    with evaluating(cycle.network):
        prepared = learner.acquisition.prepare(cycle)
        found = learner.acquisition.describe(cycle.network, batch_of(images), prepared)
        heads = [head(cycle.network(images).features).sigmoid() for head in learner.training.module]
    bits = sum(-(p * p.log2()).sum(1) for p in (h / h.sum(1, keepdim=True) for h in heads)) / 2
    torch.testing.assert_close(found["score"], bits)
    rows = learner.acquisition.select(found, dict, 3, torch.Generator())
    assert rows.tolist() == bits.argsort(descending=True)[:3].tolist()


@pytest.mark.parametrize(("settings", "rate"), [({"adversarial_learning_rate": 1e6}, 0.05), ({}, 1e6)])
def test_a_loss_of_ads_that_is_not_finite_stops_and_says_where(settings: Any, rate: float, digits: LoadedData) -> None:
    learner, cycle = opened(make_trial(*both("ads", **settings), learning_rate=rate), digits)
    with pytest.raises(NonFiniteLoss, match=r"cycle 0, epoch 0, (labelled|agreement|discrepancy) step \d+"):
        learner.train(cycle)


@pytest.mark.parametrize("left", [0, 1])
def test_ads_trains_on_labels_alone_where_no_candidates_are_left(
    left: int, digits: LoadedData, folders: Folders
) -> None:
    total = len(digits.train_labels)
    trial = make_trial(*both("ads"), initial=total - 20 - left, budget=20, cycles=2, candidates=None)
    first, last = run(trial, digits, folders())
    assert not first.warnings and last.labelled == total - left
    assert any("labelled steps only" in warning for warning in last.warnings)


def test_the_labelled_loss_is_both_heads_cross_entropy_summed_over_classes(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial(*both("ads")), digits)
    training: Any = learner.training
    with evaluating(cycle.network):
        outputs = cycle.network(cycle.images.unaugmented(cycle.labelled))
        expected = 0.0
        for scores in training.scores(outputs):
            for row, label in zip(scores, cycle.labels, strict=True):
                for c, score in enumerate(row):
                    expected -= math.log(score) if c == label else math.log(1 - score)
        loss = training.loss(outputs, cycle.labels, 0.0)
    assert float(loss) == pytest.approx(expected / len(cycle.labels), rel=1e-4)


def test_agreement_updates_the_backbone_and_discrepancy_the_heads(digits: LoadedData) -> None:
    learner, cycle = trained(make_trial(*both("ads"), width=8), digits)
    training: Any = learner.training
    network, heads = cycle.network, training.module
    images, labels = cycle.images.unaugmented(cycle.candidates[:64]), torch.arange(8)
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


@pytest.mark.long
def test_accuracy_is_the_mean_of_both_heads(digits: LoadedData, tmp_path: Path) -> None:
    trial = make_trial(*both("ads"), epochs=3)
    learner, cycle = trained(trial, digits)
    with evaluating(cycle.network):
        heads = learner.training.predict(cycle.network, learner.test_images.unaugmented(torch.arange(100)))
    right = [float((head.argmax(1) == learner.test_labels).float().mean()) for head in heads]
    accuracy = run(trial, digits, tmp_path)[0].metrics["accuracy"]
    assert accuracy == pytest.approx(sum(right) / 2)


def test_the_replaced_classifier_is_not_trained(digits: LoadedData) -> None:
    learner, cycle = opened(make_trial(*both("ads")), digits)
    before = cycle.network.classifier.weight.clone()
    learner.train(cycle)
    assert torch.equal(before, cycle.network.classifier.weight)


# ------------------------------------------------------------------------------------------------------- all four


@pytest.mark.parametrize(
    ("name", "needed", "settings"),
    [("ll4al", "loss module", {"margin": 2.0, "width": 64}), ("ads", "two heads", {"prototypes": 2})],
)
def test_an_acquisition_that_needs_its_own_training_refuses_another(
    name: str, needed: str, settings: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    text = """
dataset: digits
model: {name: resnet_small}
recipe: {epochs: 1}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
seeds: [0]
methods: {it: METHOD}
"""

    def load(method: Any) -> tuple[PluginSpec, PluginSpec]:
        path.write_text(text.replace("METHOD", json.dumps(method)))
        return load_config(path).suites[0].methods["it"]

    refused = f"{name} needs a training with {needed}, and cross_entropy has none; allowed trainings: {name}"
    with pytest.raises(UserError, match=refused):
        load({"acquisition": name, "training": "cross_entropy"})
    assert load({"acquisition": "random", "training": name})[0].name == name  # an honest ablation
    # the name alone means both halves, and each setting is that of one half
    training, acquisition = load({"name": name, **settings})
    assert (training.name, acquisition.name) == (name, name)
    assert settings.items() <= training.settings.model_dump().items()
    assert not acquisition.settings.model_dump()


@pytest.mark.parametrize(("name", "settings"), [("ll4al", {"width": 16}), ("ads", {"prototypes": 2})])
def test_an_acquisition_scores_with_the_module_that_its_training_made(
    name: str, settings: Any, digits: LoadedData
) -> None:
    """Both halves are classes of their own: sizes come from the training's state, not from settings."""
    learner, cycle = trained(make_trial(*both(name, **settings)), digits)
    assert learner.acquisition is not learner.training and learner.acquisition.state() == {}
    scored = learner.select(cycle).scored
    assert scored is not None and learner.acquisition.module is None
    index, score = (scored.columns[column] for column in ("index", "score"))
    with evaluating(cycle.network):
        outputs = cycle.network(cycle.images.unaugmented(index), stages=True)
        if name == "ll4al":
            expected = learner.training.module(outputs.stages)
        else:
            expected = ads.entropy([head(outputs.features).sigmoid() for head in learner.training.module])
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ll4al", "vaal", "sraal", "ads"])
@pytest.mark.parametrize("model", ["resnet18_cifar", "vgg16_bn_cifar"])
def test_all_four_run_on_the_papers_networks(name: str, model: str, digits: LoadedData, folders: Folders) -> None:
    if name in ("ll4al", "ads"):
        halves = both(name)
    else:
        halves = own("cross_entropy", Training), own(name, iterations=1, batch_size=4, width=4)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    data = LoadedData(images, labels, images[:6], labels[:6], ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    trial = make_trial(*halves, initial=6, budget=2, candidates=8, cycles=2, batch_size=4, crop_padding=4)
    trial = replace(trial, model=net(model))
    for start in ("warm", "fresh"):
        assert [record.labelled for record in run(changed(trial, start=start), data, folders())] == [6, 8]

"""MC-Dropout, BALD and QBC: their scores by hand, their random streams, and what they leave untouched."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import HALF, changed, make_trial, nothing, outcomes, part, run, same
from harness_of import cycle_of

from harness import registry
from harness.config.load import load
from harness.config.suite import Part
from harness.data.dataset import Facts, Problem
from harness.errors import UserError
from harness.learning.contract import Acquisition, Training
from harness.learning.fit import fit
from harness.learning.inference import evaluating
from harness.learning.labels import as_rows
from harness.learning.scoring import InProcess, cut, describe_batches
from harness.networks.maps import upsampled
from harness.networks.network import Network
from harness.networks.zoo import build
from harness.results.store import RunStore
from harness.seeds import key
from harness.settings import Model
from harness.trial import Runner, Surroundings, build_method

dropout = registry.load("methods", "dropout")
bald = registry.load("methods", "bald")
committee = importlib.import_module("harness.methods._committee")

Folders = Callable[[], Path]
DROPOUT = {"dropout": torch.tensor(0.25)}


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_for(labels: str) -> tuple[Network, torch.Tensor]:
    """Return a network in evaluation mode, of images with a label each or with maps of them, and images."""
    facts = Facts(10, 10, 5, 3, (16, 20), "", labels == "maps")
    model = Model(name="drn_small" if labels == "maps" else "resnet_small", width=4)
    return build(model, facts, 0).eval(), noise(6, 3, 16, 20)


# ------------------------------------------------------------------------------------------------------- scores


def test_entropies_by_hand() -> None:
    half, sure, other = [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    predictions = [logits_of(half, half, sure, half), logits_of(half, sure, other, other)]
    of_mean, mean = committee.entropies(iter(predictions))
    two = math.log(2)
    three_quarters = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert of_mean.tolist() == pytest.approx([two, three_quarters, two, 1.5 * two])
    assert mean.tolist() == pytest.approx([two, two / 2, 0, two / 2])
    assert (of_mean - mean).tolist() == pytest.approx([0, three_quarters - two / 2, two, two])


class Several(committee.Committee):  # type: ignore[name-defined,misc]
    """Has the predictions that it is given."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        self.logits = logits

    def predictions(self, *_: Any) -> Any:
        yield from self.logits


def test_an_images_disagreement_is_the_mean_over_its_places() -> None:
    predictions = [3 * noise(4, 3, 2, 5, seed=seed) for seed in range(3)]
    found = Several(predictions).describe(None, torch.zeros(4, 3, 8, 8), {}, generator())["score"]
    p = torch.stack(predictions).double().softmax(2)
    divergence = (p * (p / p.mean(0)).log()).sum(2).mean(0)  # of each place: mean KL to the mean prediction
    torch.testing.assert_close(found, divergence.mean((1, 2)))
    one = Several([predictions[0]] * 3).describe(None, torch.zeros(4, 3, 8, 8), {}, generator())["score"]
    assert one.tolist() == pytest.approx([0] * 4, abs=1e-14)


def test_a_small_disagreement_still_ranks() -> None:
    """Logits that differ little: the square of that is lost in float32."""
    step = torch.arange(1, 9)[:, None] * 1e-4
    of_mean, mean = committee.entropies(sign * step * torch.tensor([1.0, 0.0, 0.0]) for sign in (1, -1))
    assert bool(((of_mean - mean).diff() > 0).all())


# ------------------------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_the_expectation() -> None:
    features, masks = torch.tensor([[1.0, -2.0, 0.5, 4.0]]), generator()
    draws = torch.stack([dropout.dropped(features, 0.3, masks) for _ in range(20_000)])
    assert (draws == 0).float().mean((0, 1)).tolist() == pytest.approx([0.3] * 4, abs=0.02)
    torch.testing.assert_close(draws.mean(0), features, rtol=0.03, atol=0)
    first, second = (dropout.dropped(torch.ones(3, 4, 2, 2), 0.5, masks) for _ in range(2))
    assert not torch.equal(first, second) and set(first.unique().tolist()) == {0.0, 2.0}
    assert first.flatten(2).std(2).max() > 0, "entries of a map are dropped one by one"


@pytest.mark.parametrize("labels", ["images", "maps"])
@pytest.mark.parametrize("name", ["mc_dropout", "bald"])
def test_one_pass_through_the_backbone_is_as_good_as_many(name: str, labels: str) -> None:
    """Against whole passes of a network whose features are dropped on their way to its classifier."""
    network, images = network_for(labels)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plugin: Any = registry.find("methods", name, Acquisition)
    calls = []
    counting = network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = plugin(plugin.Settings(passes=7), 5).describe(network, images, DROPOUT, generator())["score"]
        counting.remove()
        masks, whole = generator(), network.classified
        network.classified = lambda features: whole(dropout.dropped(features, 0.25, masks))  # type: ignore[method-assign]
        p = torch.stack([network(images).logits for _ in range(7)]).double().softmax(2)
    assert calls == [1]
    entropy = torch.special.entr(p.mean(0)).sum(1)
    if name == "bald":
        entropy = entropy - torch.special.entr(p).sum(2).mean(0)
    torch.testing.assert_close(found, entropy.view(6, -1).mean(1))
    assert found.shape == (6,) and bool((found > 0).all()) and len(found.unique()) == 6
    assert same(dict(network.state_dict()), before), "batch norm is in evaluation mode"


def test_masks_come_from_the_batchs_generator_alone() -> None:
    network, images = network_for("images")
    asking = bald.BALD(bald.BALD.Settings(), 5)

    def scores(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 100)
        with torch.no_grad():
            return asking.describe(network, images, DROPOUT, generator(seed))["score"]

    torch.manual_seed(0)
    first = scores(1)
    assert torch.equal(first, scores(1)) and not torch.equal(first, scores(2))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        asking.describe(network, images, DROPOUT, generator(1))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("labels", ["images", "maps"])
def test_the_target_trains_on_dropped_features(labels: str) -> None:
    network, images = network_for(labels)
    method = dropout.Dropout(dropout.Dropout.Settings(dropout=0.4), 5)
    method._network, method._masks = network, generator()
    targets = torch.randint(0, 5, (6, 16, 20) if labels == "maps" else (6,), generator=generator())
    outputs = network(images)
    loss = method.loss(outputs, targets, 0.0)
    kept = torch.rand(outputs.features.shape, generator=generator()) >= 0.4
    logits = network.classified(outputs.features * kept / 0.6)
    if labels == "maps":
        logits = upsampled(logits, (16, 20))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    (gradient,) = torch.autograd.grad(loss, outputs.features)
    assert bool((gradient[~kept] == 0).all()) and bool((gradient[kept] != 0).any())


def test_dropout_is_trained_with_masks_of_the_cycle_and_tested_without(digits: Problem, tmp_path: Path) -> None:
    training = part("dropout", Training, dropout=0.5)
    trial = make_trial(training, part("mc_dropout", Acquisition), epochs=2)
    weights = []
    for seed in (1, 2):
        runner, cycle = cycle_of(trial, digits, tmp_path)
        torch.manual_seed(seed)  # of no use to it
        runner.training.fit(cycle)
        weights.append(runner.network.state_dict())
    assert same(weights[0], weights[1])
    images = cycle.images.plain(cycle.candidates[:50])
    with evaluating(cycle.network):
        assert torch.equal(runner.training.predict(cycle.network, images)[0], cycle.network(images).logits)
    assert runner.acquisition.prepare(cycle)["dropout"] == 0.5, "scored with what it was trained with"
    plain, same_cycle = cycle_of(make_trial(epochs=2), digits, tmp_path)
    plain.training.fit(same_cycle)
    assert not same(plain.network.state_dict(), weights[0])


# ------------------------------------------------------------------------------------------------------- committee


def test_the_plain_first_cycle_is_the_committees(digits: Problem, folders: Folders) -> None:
    method = part("qbc", Acquisition, members=3)
    folder, plain_in = folders(), folders()
    committees, plain = make_trial(method, method, cycles=2), make_trial("plain", "entropy", cycles=2)
    found, expected = run(committees, digits, folder), run(plain, digits, plain_in)
    assert found[0].figures == expected[0].figures and found[0].final_loss == expected[0].final_loss
    assert found[0].chosen != expected[0].chosen
    assert [r.extra_parameters for r in found] == [2 * r.target_parameters for r in found]
    assert found[0].seconds["auxiliary"] > 0 and found[1].seconds["auxiliary"] == 0


def test_members_differ_and_leave_the_target_alone(colours: Problem, tmp_path: Path) -> None:
    method = part("qbc", Acquisition, members=4)
    runner, cycle = cycle_of(make_trial(method, method, epochs=2), colours, tmp_path)
    runner.training.fit(cycle)
    before = {k: v.clone() for k, v in cycle.network.state_dict().items()}
    seconds = dict(cycle.clock.seconds)
    prepared = runner.acquisition.prepare(cycle)
    assert {k for k, v in cycle.clock.seconds.items() if v != seconds[k]} == {"auxiliary"}, "a cost of its own"
    assert same(dict(cycle.network.state_dict()), before), "weights and batch norm's statistics"
    assert not cycle.network.training
    members = [{k: prepared[f"{i}.{k}"] for k in before} for i in range(3)]
    assert len(prepared) == 3 * len(before)
    for k in before:
        if k.endswith(("conv1.weight", "running_mean", "running_var", "fc.weight")):
            values = [before[k], *(member[k] for member in members)]
            assert len({tuple(v.flatten().tolist()) for v in values}) == 4, k
    steps = cycle.network.state_dict()["body.bn1.num_batches_tracked"]
    assert all(torch.equal(member["body.bn1.num_batches_tracked"], steps) for member in members), "the same recipe"
    # the second member by itself: first weights and streams are its own, whatever was trained before
    seed = cycle.key("member 2")
    alone = replace(cycle, seed=seed, network=cycle.build(seed))
    fit(alone, Training(None, 5).loss)
    assert same(dict(alone.network.state_dict()), members[1])
    # their scores are those of whole networks
    images = cycle.images.plain(cycle.candidates[:40])
    with evaluating(cycle.network), evaluating(alone.network):
        found = runner.acquisition.describe(cycle.network, images, prepared, generator())["score"]
        logits = [cycle.network(images).logits]
        for member in members:
            alone.network.load_state_dict(member)
            logits.append(alone.network(images).logits)
    p = torch.stack([as_rows(each) for each in logits]).double().softmax(2)
    torch.testing.assert_close(found, (p * (p / p.mean(0)).log()).sum(2).mean(0))


@pytest.mark.parametrize("start", ["warm", "fresh"])
def test_members_start_as_the_target_does(start: str, digits: Problem, tmp_path: Path) -> None:
    method = part("qbc", Acquisition, members=3)
    trial = make_trial(method, method, start=start, learning_rate=1e-9)  # weights stay what they are at first
    runner, cycle = cycle_of(trial, digits, tmp_path)
    for number in (0, 1):
        cycle = runner._begin(number)
        runner.training.fit(cycle)
        prepared = runner.acquisition.prepare(cycle)
    for i in (0, 1):
        first = cycle.build(key(trial.seed, f"member {i + 1}", 0 if start == "warm" else 1)).state_dict()
        torch.testing.assert_close(prepared[f"{i}.body.fc.weight"], first["body.fc.weight"], rtol=0, atol=1e-6)
        steps = "body.bn1.num_batches_tracked"
        assert torch.equal(prepared[f"{i}.{steps}"], cycle.network.state_dict()[steps])


def test_a_shared_first_training_is_the_committees_own(digits: Problem, folders: Folders) -> None:
    method = part("qbc", Acquisition)
    trial, folder = make_trial(method, method), folders()
    alone = run(trial, digits, folders())
    Runner(make_trial(method, "random"), digits, RunStore(folder), Surroundings()).run_shared(nothing)
    records = run(trial, digits, folder)
    assert records[0].shared_from == trial.sharing_key
    assert outcomes(records) == outcomes(alone)


@pytest.mark.parametrize("name", ["mc_dropout", "bald", "qbc"])
def test_a_worker_without_the_trials_objects_scores_the_same(name: str, colours: Problem, tmp_path: Path) -> None:
    asked = part(name, Acquisition)
    trained = asked if name == "qbc" else part("dropout", Training)
    trial = make_trial(trained, asked, dataset=Part("colours", {}), candidates=70, inference_batch_size=32)
    runner, cycle = cycle_of(changed(trial, precision="bfloat16"), colours, tmp_path)
    runner.training.fit(cycle)
    prepared = runner.acquisition.prepare(cycle)
    here = InProcess().describe(cycle, runner.acquisition, prepared, cycle.candidates, "describe").columns
    # as harness/on_ray/scoring.py: arrays go over, networks are rebuilt there, and the batches come in any order
    there = cycle.build(0).to_place(cycle.device, HALF)
    there.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in cycle.network.state_dict().items()})
    shipped = {k: torch.from_numpy(v.numpy().copy(order="C")) for k, v in prepared.items()}
    asking = build_method(trial.training, trial.acquisition, 5)[1]
    batches = cut(cycle.candidates, cycle.recipe)
    assert len(batches) == 3
    parts = [
        describe_batches(there, cycle.images, asking, shipped, [batch], cycle.key("describe"))
        for batch in reversed(batches)
    ]
    index, score = (torch.cat([found[column] for found in parts]) for column in ("index", "score"))
    assert torch.equal(score[index.argsort()], here["score"])
    assert len(score.unique()) > 60


# ------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("mc_dropout", "mc_dropout needs a network that was trained with dropout: training: dropout"),
        ({"acquisition": "bald", "training": "isda"}, "bald needs a network that was trained with dropout"),
        ({"acquisition": "qbc", "training": "isda"}, "write just qbc, without another training"),
        ({"acquisition": "random", "training": {"name": "dropout", "dropout": 0}}, "must be above 0"),
        ({"acquisition": "random", "training": {"name": "dropout", "dropout": 1.0}}, "must be below 1"),
        ({"name": "qbc", "members": 1}, "must be at least 2"),
        ({"acquisition": {"name": "bald", "passes": 1}, "training": "dropout"}, "must be at least 2"),
        ({"acquisition": {"name": "bald", "dropout": 0.5}, "training": "dropout"}, "unknown key 'dropout'"),
        ({"acquisition": "mc_dropout", "training": "dropout"}, None),
        ("qbc", None),
    ],
)
def test_what_a_config_may_combine(method: Any, sentence: str | None, tmp_path: Path) -> None:
    values = {
        "dataset": "digits",
        "model": {"name": "resnet_small"},
        "recipe": {"epochs": 1},
        "protocol": {"initial": 40, "budget": 20, "cycles": 2, "start": "warm"},
        "methods": {"it": method},
        "seeds": [0],
    }
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(values))
    if sentence is None:
        training, acquisition = load(path).suites[0].methods["it"]
        assert (training.name, acquisition.name) in {("dropout", "mc_dropout"), ("qbc", "qbc")}
        assert {"dropout": 0.25}.items() <= training.settings.items() or training.settings == {"members": 5}
        return
    with pytest.raises(UserError, match=sentence):
        load(path)

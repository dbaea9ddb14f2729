"""Configs: merging, overrides, ids, the resolved config, and the names and sizes of networks."""

from __future__ import annotations

import json
import random
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.load import load
from harness.config.only import only as the_part
from harness.config.source import Source
from harness.config.suite import Benchmark, Trial
from harness.errors import UserError
from harness.networks import names as network_names
from harness.registry import ROOT
from harness.settings import Model, Where

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
    return load(path, overrides)


def base(**changes: Any) -> dict[str, Any]:
    return deepcopy(BASE) | changes


def trials(benchmark: Benchmark) -> list[tuple[str, str, Trial]]:
    return [(suite.name, label, trial) for suite in benchmark.suites for label, trial in suite.trials()]


def first(folder: Path, values: dict[str, Any], *overrides: str) -> Trial:
    return trials(loaded(folder, values, *overrides))[0][2]


# -------------------------------------------------------------------------------------------------------- merging


def test_keys_at_the_top_level_are_defaults_of_all_suites(tmp_path: Path) -> None:
    suites = {"a": {}, "b": {"recipe": {"epochs": 9}, "protocol": {"start": "fresh"}, "seeds": [4], "title": "B"}}
    a, b = loaded(tmp_path, base(suites=suites, title="all")).suites
    assert (a.recipe.epochs, a.protocol.start, a.seeds, a.title) == (5, "warm", [0], "all")
    assert (b.recipe.epochs, b.protocol.start, b.seeds, b.title) == (9, "fresh", [4], "B")
    assert b.recipe.milestones == [3] and b.protocol.initial == 20 and b.model.width == 8


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
    assert other.dataset.written() == {"name": "cifar10", "limit": None, "test_limit": 7}
    assert other.model == Model(name="vgg16_bn_cifar")
    assert same.dataset.written() == {"name": "digits", "limit": 50, "test_limit": 7}
    assert same.model == Model(name="resnet_small", width=16)
    assert bare.dataset.written() == {"name": "digits", "limit": None, "test_limit": None}


def test_the_methods_of_a_suite_are_its_own(tmp_path: Path) -> None:
    methods = {"Ran": "random", "LC": "least_confidence"}
    suites = {"a": {}, "b": {"methods": {"Ran": "maxp"}}}
    a, b = loaded(tmp_path, base(methods=methods, suites=suites)).suites
    assert {label: pair[1].name for label, pair in a.methods.items()} == methods
    assert {label: pair[1].name for label, pair in b.methods.items()} == {"Ran": "maxp"}


def test_an_override_holds_in_every_suite(tmp_path: Path) -> None:
    suites = {
        "a": {},
        "b": {"recipe": {"epochs": 9}, "dataset": "cifar10", "methods": {"LC": "least_confidence"}},
        "c": {"recipe": {"gamma": 0.5}, "dataset": {"name": "cifar100", "limit": 9}, "seeds": [5]},
    }
    overrides = ["recipe.epochs=7", "dataset.limit=60", "seeds=[1, 2]", "recipe.milestones=[4, 6]", "where.retries=0"]
    benchmark = loaded(tmp_path, base(suites=suites), *overrides)
    for suite in benchmark.suites:
        assert (suite.recipe.epochs, suite.recipe.milestones, suite.seeds) == (7, [4, 6], [1, 2])
        assert suite.dataset.settings["limit"] == 60
    assert [s.dataset.name for s in benchmark.suites] == ["digits", "cifar10", "cifar100"]
    assert benchmark.suites[2].recipe.gamma == 0.5 and benchmark.where.retries == 0


def test_an_override_of_one_suite_leaves_the_others(tmp_path: Path) -> None:
    overrides = ["suites.b.recipe.epochs=7", "suites.b.dataset.limit=60", "suites.b.methods.LC.training=isda"]
    methods = {"Ran": "random", "LC": "least_confidence"}
    a, b = loaded(tmp_path, base(methods=methods, suites={"a": {}, "b": {}}), *overrides).suites
    assert (a.recipe.epochs, b.recipe.epochs) == (5, 7)
    assert (a.dataset.settings["limit"], b.dataset.settings["limit"]) == (None, 60)
    assert [a.methods[label][0].name for label in a.methods] == ["plain", "plain"]
    assert [b.methods[label][0].name for label in b.methods] == ["plain", "isda"], "the others are still there"


def test_a_suite_may_give_an_inherited_dataset_settings(tmp_path: Path) -> None:
    a, b = loaded(tmp_path, base(suites={"a": {}, "b": {"dataset": {"limit": 60}}})).suites
    assert (a.dataset.written()["limit"], b.dataset.written()["limit"]) == (None, 60)


def test_overrides_give_bare_names_settings_and_trainings(tmp_path: Path) -> None:
    methods = {"Ran": "random", "E": {"acquisition": "epmcm", "training": "isda"}}
    overrides = ["methods.Ran.training=isda", "methods.E.training.lambda_0=3", "methods.E.acquisition.form=sampled"]
    suite = loaded(tmp_path, base(methods=methods), *overrides).suites[0]
    assert [part.name for part in suite.methods["Ran"]] == ["isda", "random"]
    training, acquisition = suite.methods["E"]
    assert training.settings["lambda_0"] == 3 and acquisition.settings["form"] == "sampled"


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "0.001", ".1e-2", "1.0e-3", "10e-4"])
def test_numbers_with_exponents_are_numbers(tmp_path: Path, written: str) -> None:
    text = yaml.safe_dump(base()).replace("epochs: 5", f"epochs: 5\n  learning_rate: {written}")
    found = loaded(tmp_path, text)
    assert found.suites[0].recipe.learning_rate == 0.001
    assert Source(tmp_path / "c.yaml").values["recipe"]["learning_rate"] == 0.001
    assert first(tmp_path, base(), f"recipe.weight_decay={written}").recipe.weight_decay == 0.001


def test_names_that_look_like_numbers_stay_labels(tmp_path: Path) -> None:
    text = yaml.safe_dump(base()).replace("Ran:", "1e-3:")
    assert list(loaded(tmp_path, text).suites[0].methods) == ["1e-3"]


def test_aliases_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(base()) + "suites:\n  a: &a\n    recipe: {epochs: 6}\n  b: *a\n"
    assert [s.recipe.epochs for s in loaded(tmp_path, text).suites] == [6, 6]
    a, b = loaded(tmp_path, text, "suites.b.recipe.epochs=8").suites
    assert (a.recipe.epochs, b.recipe.epochs) == (6, 8), "an override of one leaves the other"


def test_text_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes((yaml.safe_dump(base()) + "title: Übersicht\n").encode())
    assert load(tmp_path / "c.yaml").suites[0].title == "Übersicht"


@pytest.mark.parametrize("where", ["where:\n", "where: {}\n", ""])
def test_where_may_be_empty(tmp_path: Path, where: str) -> None:
    assert loaded(tmp_path, yaml.safe_dump(base()) + where).where == Where()


# ------------------------------------------------------------------------------------------------------------ ids


CHANGES: list[tuple[str, str]] = [
    ("dataset.limit=60", "data"),
    ("dataset.test_limit=60", "data"),
    ("dataset=cifar10", "data"),
    ("model.width=16", "network"),
    ("model.initialisation=pytorch", "network"),
    ("model={name: resnet18}", "network"),
    ("recipe.epochs=6", "recipe"),
    ("recipe.batch_size=64", "recipe"),
    ("recipe.learning_rate=0.2", "recipe"),
    ("recipe.milestones=[2]", "recipe"),
    ("recipe.gamma=0.2", "recipe"),
    ("recipe.momentum=0.8", "recipe"),
    ("recipe.weight_decay=0", "recipe"),
    ("recipe.crop_padding=3", "recipe"),
    ("recipe.crop_size=[4, 4]", "recipe"),
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
    ("protocol.cycles=4", "later"),
    ("protocol.start=fresh", "later"),
    ("methods.E.acquisition.form=sampled", "later"),
    ("methods.E.acquisition=random", "later"),
]
PAIRED = base(methods={"E": {"acquisition": "epmcm", "training": "isda"}})


@pytest.mark.parametrize(("override", "what"), CHANGES)
def test_what_is_measured_decides_the_id(tmp_path: Path, override: str, what: str) -> None:
    before, after = first(tmp_path, PAIRED), first(tmp_path, PAIRED, override)
    assert before.id != after.id
    assert json.loads(json.dumps(after.measured())) == after.measured(), "what is stored is compared on --resume"
    assert (before.sharing_key == after.sharing_key) == (what == "later"), "what the first training depends on"


def test_every_measured_setting_is_among_the_changes(tmp_path: Path) -> None:
    changed = {override.split("=")[0] for override, _ in CHANGES}
    measured = first(tmp_path, PAIRED).measured()
    for part in ("recipe", "protocol"):
        assert {f"{part}.{key}" for key in measured[part]} <= changed, "a new setting: say what it changes"


@pytest.mark.parametrize(
    "override",
    [
        "where.output=x",
        "where.trials=in_process",
        "where.cpus_per_trial=2",
        "where.retries=0",
        "where.warm_workers=true",
        "where.gpus_per_trial=0.5",
        "title=T",
        "optional=true",
        "on_request=true",
        "exclusive=true",
        "seeds=[0, 1]",
        "methods.X=random",
    ],
)
def test_what_is_not_measured_leaves_the_id(tmp_path: Path, override: str) -> None:
    before, after = first(tmp_path, PAIRED), first(tmp_path, PAIRED, override)
    assert (before.id, before.sharing_key) == (after.id, after.sharing_key)


def test_labels_suite_names_order_and_spelling_leave_the_id(tmp_path: Path) -> None:
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
    methods = {"Ran": "random", "E": {"acquisition": "epmcm", "training": "isda"}}
    ran, e = [trial.id for _, _, trial in trials(loaded(tmp_path, base(methods=methods, seeds=[7])))]
    assert re.fullmatch(r"digits\.resnet_small\.plain-random\.s7\.[0-9a-f]{8}", ran)
    assert re.fullmatch(r"digits\.resnet_small\.isda-epmcm\.s7\.[0-9a-f]{8}", e)


def test_methods_with_one_training_share_their_first_cycle(tmp_path: Path) -> None:
    isda = {"training": "isda"}
    methods = {"R": "random", "L": "least_confidence", "R+": {"acquisition": "random"} | isda, "M": "maxp"}
    methods["E"] = {"acquisition": "epmcm"} | isda
    found = trials(loaded(tmp_path, base(methods=methods, seeds=[0, 1])))
    groups: dict[str, list[str]] = {}
    for _, label, trial in found:
        groups.setdefault(trial.sharing_key, []).append(f"{label}{trial.seed}")
    assert sorted(sorted(group) for group in groups.values()) == [
        ["E0", "R+0"],
        ["E1", "R+1"],
        ["L0", "M0", "R0"],
        ["L1", "M1", "R1"],
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
        {"name": st.just("epmcm")},
        optional={"form": st.sampled_from(["closed", "sampled"]), "samples": st.integers(1, 99)},
    )
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
        "methods": {draw(st.text("abAB +-.", min_size=1, max_size=5)): draw(method)},
        "seeds": draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    }


@settings(max_examples=60, deadline=None)
@given(written=st.lists(suites(), min_size=2, max_size=4), shuffle=st.randoms())
def test_ids_stand_for_what_is_measured(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], shuffle: random.Random
) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = trials(loaded(folder, {"suites": {f"s{i}": suite for i, suite in enumerate(written)}}))
    by_id: dict[str, dict[str, Any]] = {}
    by_key: dict[str, Any] = {}
    for _, _, trial in found:
        measured = trial.measured()
        again = Trial.from_measured(yaml.safe_load(yaml.safe_dump(measured)))
        assert again == trial and again.id == trial.id and again.measured() == measured
        mixed = list(measured.items())
        shuffle.shuffle(mixed)
        assert Trial.from_measured(dict(mixed)).id == trial.id
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


# ----------------------------------------------------------------------------------------------- the configs here


def test_there_are_configs() -> None:
    assert "quickstart" in {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_survives_being_written(tmp_path: Path, path: Path) -> None:
    once = load(path)  # every dataset, method and network of it is known, else this raises
    again = loaded(tmp_path, once.written())
    assert trials(again) == trials(once) and trials(once)
    assert [t.id for _, _, t in trials(again)] == [t.id for _, _, t in trials(once)]
    assert again.where == once.where
    assert again.suites == once.suites, "titles, flags and seeds too"
    assert again.written() == once.written()
    for suite in once.suites:
        assert network_names.problem(suite.model) is None


# --------------------------------------------------------------------------------------------------------- --only


def test_only_takes_the_parts_that_are_named(tmp_path: Path) -> None:
    methods = {"R": "random", "L": "least_confidence"}
    values = base(methods=methods, seeds=[0, 1, 2], suites={"a": {}, "b": {"dataset": "cifar10"}, "c": {"seeds": [5]}})
    benchmark = loaded(tmp_path, values)

    def kept(*filters: str) -> list[str]:
        return [f"{s} {m} {t.seed}" for s, m, t in trials(the_part(benchmark, filters))]

    assert len(kept()) == 14
    assert kept("suite=a", "method=L") == ["a L 0", "a L 1", "a L 2"]
    assert kept("seed=5,1", "method=R") == ["a R 1", "b R 1", "c R 5"]
    assert kept("dataset=cifar10", "seed=2") == ["b R 2", "b L 2"]
    with pytest.raises(UserError, match="no seed is called '5'"):
        kept("suite=a", "seed=5")
    whole = {trial.id for _, _, trial in trials(benchmark)}
    assert {t.id for _, _, t in trials(the_part(benchmark, ["seed=1"]))} < whole


def test_a_suite_on_request_runs_only_where_it_is_named(tmp_path: Path) -> None:
    benchmark = loaded(tmp_path, base(suites={"a": {}, "b": {"on_request": True}}))

    def kept(*filters: str) -> set[str]:
        return {s.name for s in the_part(benchmark, filters).suites}

    assert kept() == kept("seed=0") == {"a"}
    assert kept("suite=b") == kept("seed=0", "suite=b") == {"b"}
    assert kept("suite=a,b") == {"a", "b"}
    own = loaded(tmp_path, base(suites={"a": {}, "b": {"on_request": True, "methods": {"Other": "random"}}}))
    with pytest.raises(UserError, match="no method is called 'Other'; suite=b has it, which runs on request"):
        the_part(own, ["method=Other"])
    alone = loaded(tmp_path, base(suites={"b": {"on_request": True}}))
    with pytest.raises(UserError, match=r"its suites run on request: add --only suite=... \(b\)"):
        the_part(alone, [])


# ------------------------------------------------------------------------------------------------------- networks


def test_our_networks_are_those_that_can_be_built() -> None:
    from harness.networks.zoo import BUILDERS

    assert set(BUILDERS) == set(network_names.OURS)


@pytest.mark.parametrize("name", network_names.OURS)
@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 7)])
def test_networks_have_as_many_parameters_as_the_plan_says(name: str, channels: int, classes: int) -> None:
    from harness.data.dataset import Facts
    from harness.networks.zoo import build

    model = Model(name=name)
    built = build(model, Facts(9, 9, classes, channels, (32, 32), ""), 0)
    assert network_names.num_parameters(model, channels, classes) == built.num_parameters()


@pytest.mark.parametrize("width", [2, 8, 10])
def test_width_counts(width: int) -> None:
    from harness.data.dataset import Facts
    from harness.networks.zoo import build

    model = Model(name="resnet_small", width=width)
    built = build(model, Facts(9, 9, 10, 1, (8, 8), ""), 0)
    assert network_names.num_parameters(model, 1, 10) == built.num_parameters()


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
    assert network_names.num_parameters(Model(name=name), 3, 10) == parameters


def test_the_names_of_timms_models_are_timms() -> None:
    import timm

    assert network_names.timm_names() == set(timm.list_models())

"""YAML -> strict settings -> trials. Every mistake is found here, before anything starts, and named by file and line.

A config has two parts. What is measured: ``suites``, each a grid of methods x seeds on one dataset, model, recipe and
protocol; keys of a suite written at the top level are defaults for all suites, and a config without ``suites`` is one
suite. Where it runs: ``where``. Only the first part enters a trial's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness import registry
from harness.config.messages import _sentence
from harness.config.source import PAIR, Source, _merge, _override, _shown
from harness.config.suite import Benchmark, Part, Suite
from harness.data.dataset import Dataset
from harness.errors import did_you_mean
from harness.learning.contract import Acquisition, Training
from harness.networks import names as network_names
from harness.settings import SuiteKeys, Where


def _validate(model: type[BaseModel], values: Any, source: Source, place: tuple[str, ...], suite: str | None) -> Any:
    try:
        # as JSON, because there strict means "no true for a number", but not "no list for a tuple"
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        # a misspelt key is also a missing one: its own sentence tells more
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where, problem = _sentence(model, first)
        raise source.error((*place, *where), problem, suite) from None


def _part(
    written: Any, folder: str, contract: type[Any], source: Source, place: tuple[str, ...], suite: str
) -> tuple[Part, type[Any]]:
    """Return a plug-in's name and full settings from ``name`` or ``{name: ..., setting: ...}``."""
    values = {"name": written} if isinstance(written, str) else written
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise source.error(place, f"must be a name or a mapping with a name, got {_shown(written)}", suite)
    name, kind = values["name"], contract.__name__.lower()
    plugin = registry.find(folder, name, contract) if name in registry.names(folder) else None
    if plugin is None:
        others = [n for n in registry.names(folder) if registry.find(folder, n, contract)]
        problem = f"unknown {kind} {name!r}{did_you_mean(name, others)}"
        if name in registry.names(folder):
            article = "an" if kind[0] in "aeiou" else "a"
            problem = f"{name!r} is not {article} {kind}; allowed: {', '.join(others)}"
        raise source.error((*place, "name") if values is written else place, problem, suite)
    settings = _validate(plugin.Settings, {k: v for k, v in values.items() if k != "name"}, source, place, suite)
    return Part(name, settings.model_dump(mode="json")), plugin


def _method(written: Any, label: str, source: Source, suite: str) -> tuple[Part, Part]:
    """Return (training, acquisition) of one entry of ``methods``."""
    place: tuple[str, ...] = ("methods", label)
    if isinstance(written, dict) and PAIR & written.keys():
        if unknown := written.keys() - PAIR:
            key = min(unknown)
            raise source.error((*place, key), f"unknown key {key!r}{did_you_mean(key, PAIR)}", suite)
        if "acquisition" not in written:
            raise source.error((*place, "acquisition"), "this key is required", suite)
        acquired, trained = written["acquisition"], written.get("training", "plain")
        places = [(*place, "acquisition"), (*place, "training")]
    else:
        acquired, trained, places = written, "plain", [place, place]
    acquisition, acquisition_class = _part(acquired, "methods", Acquisition, source, places[0], suite)
    if acquired is written and issubclass(acquisition_class, Training):
        training, training_class = acquisition, acquisition_class  # a method that brings both
    else:
        training, training_class = _part(trained, "methods", Training, source, places[1], suite)
    try:
        acquisition_class.check(
            acquisition_class.Settings(**acquisition.settings),
            training_class,
            training_class.Settings(**training.settings),
        )
    except ValueError as error:
        raise source.error(place, str(error), suite) from None
    return training, acquisition


def _suite(name: str, values: dict[str, Any], source: Source, where: Where) -> Suite:
    keys: SuiteKeys = _validate(SuiteKeys, values, source, (), name)
    dataset, _ = _part(keys.dataset, "datasets", Dataset, source, ("dataset",), name)
    if problem := network_names.problem(keys.model):
        raise source.error(("model", problem[0]), problem[1], name)
    model = keys.model
    if model.weights is not None:
        model = model.model_copy(update={"weights_sha256": network_names.sha256(model.weights)})
    methods = {label: _method(written, label, source, name) for label, written in keys.methods.items()}
    for label, (training, acquisition) in methods.items():
        twin = next(other for other in methods if methods[other] == (training, acquisition))
        if twin != label:
            raise source.error(
                ("methods", label), f"is the same method as {twin!r}; change a setting or leave it out", name
            )
        plugin = registry.find("methods", acquisition.name, Acquisition)
        assert plugin is not None
        if plugin.sequential(plugin.Settings(**acquisition.settings)) and (
            where.scoring == "ray_data" or where.shards != 1
        ):
            raise source.error(
                ("methods", label),
                f"{acquisition.name} scores batch after batch here, so it needs where.shards: 1 and where.scoring: "
                f"in_process or auto, got shards: {where.shards}, scoring: {where.scoring}",
                name,
            )
    return Suite(
        name,
        keys.title or name,
        dataset,
        model,
        keys.recipe,
        keys.protocol,
        methods,
        keys.seeds,
        keys.optional,
        keys.on_request,
        keys.exclusive,
        lambda key: source.at(key.split("."), name),
    )


def load(path: Path, overrides: Iterable[str] = ()) -> Benchmark:
    """Read and check a config. Raises UserError: one sentence with file, line, key, value and what is allowed."""
    source = Source(path)
    _override(source, overrides)
    values = source.values
    top_level = {"suites", "where", *SuiteKeys.model_fields}
    for key in values:
        if key not in top_level:
            raise source.error((key,), f"unknown key {key!r}{did_you_mean(key, top_level)}")
    where = _validate(Where, {} if values.get("where") is None else values["where"], source, ("where",), None)
    defaults = {k: v for k, v in values.items() if k in SuiteKeys.model_fields}
    written = values.get("suites", {path.stem: {}})
    if not isinstance(written, dict) or not written:
        raise source.error(("suites",), f"must be a mapping of suite names to suites, got {_shown(written)}")
    for name, suite in written.items():
        if not isinstance(suite, dict):
            raise source.error(("suites", name), f"must be a mapping of keys, got {_shown(suite)}")
        if isinstance(suite.get("dataset"), dict) and isinstance(defaults.get("dataset"), str):
            defaults["dataset"] = {"name": defaults["dataset"]}  # so that the suite can give it settings
    suites = []
    for name, suite in written.items():
        # a suite's methods are a list of their own: merged with the defaults, none could ever be left out
        own = {"methods": suite["methods"]} if "methods" in suite else {}
        suites.append(_suite(name, {**_merge(defaults, suite), **own}, source, where))
    return Benchmark(path.stem, suites, where)

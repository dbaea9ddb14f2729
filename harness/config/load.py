"""Loads a config: YAML -> checked settings -> suites of trials. Errors name the file, the line and the key.

A config has two parts. ``suites`` defines the experiments: each suite is a grid of methods x seeds on one dataset,
model, recipe and protocol. Keys of a suite at the top level are defaults for all suites; a config without ``suites`` is
one suite. ``where`` defines folders, devices and processes. Trial ids depend on the first part only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness import file_settings, registry
from harness.config.source import PAIR, TOP_LEVEL, Source, apply_overrides, merged
from harness.config.suite import DEFAULT_TRAINING, Benchmark, Suite, open_dataset
from harness.data.dataset import Dataset, LoadedData, check_dataset, facts, fetch, loaded
from harness.errors import UNPRINTABLE, UserError, did_you_mean, expanded
from harness.faults import PluginFault
from harness.learning import boundary
from harness.learning.contract import Acquisition, Training
from harness.messages import sentence, shown_value
from harness.networks import names
from harness.networks.architecture import check_architecture
from harness.settings import LONGEST_NAME, PluginSpec, SuiteKeys, Where


def _validate(model: type[BaseModel], values: Any, source: Source, path: tuple[str, ...], suite: str | None) -> Any:
    """Return the settings ``model`` with these values, written at the key path ``path``. Raises UserError."""
    try:
        # as JSON: strict mode then rejects true for a number, but still accepts a list for a tuple
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        # a misspelt required key gives two errors, unknown and missing; "unknown" comes with a suggestion
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        inner_path, problem = sentence(model, first)
        raise source.error((*path, *inner_path), problem, suite) from None


def _plugin(
    written: Any, folder: str, contract: type[Any], source: Source, path: tuple[str, ...], suite: str
) -> PluginSpec:
    """Return a plug-in's name and settings, written as ``NAME`` or ``{name: NAME, setting: value}``."""
    name, values, name_path = _named(written, source, path, suite)
    try:
        plugin = registry.find(folder, name, contract) if registry.known(folder, name) else None
        problem = registry.unknown(folder, name, contract) if plugin is None else ""
    except UserError as error:
        raise source.error(name_path, str(error), suite) from error
    if plugin is None:
        raise source.error(name_path, problem, suite)
    if contract is Dataset:
        check_dataset(plugin, name)
    else:
        boundary.check_class(plugin, name, contract)
    settings = _validate(plugin.Settings, values, source, path, suite)
    try:
        return PluginSpec(name, file_settings.resolved(settings))
    except UserError as error:
        key, problem = str(error).split(": ", 1)
        raise source.error((*path, key), problem, suite) from None


def _named(
    written: Any, source: Source, path: tuple[str, ...], suite: str
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return (name, unchecked settings, key path of the name) of a plug-in."""
    values = {"name": written} if isinstance(written, str) else written
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise source.error(path, f"must be a name or a mapping with a name, got {shown_value(written)}", suite)
    settings = {key: value for key, value in values.items() if key != "name"}
    if not 1 <= len(values["name"]) <= LONGEST_NAME:
        problem = f"must be a name of 1 to {LONGEST_NAME} characters, got {shown_value(values['name'])}"
        raise source.error(path, problem, suite)
    return values["name"], settings, (*path, "name") if values is written else path


MOST_CYCLES = 10**5
"""Most cycles of all trials of a config."""
EARLIER = {"width", "output_stride"}
"""Keys that the resolved configs of earlier versions have for every network, as null where it has no such key."""


def _network(written: Any, source: Source, suite: str, download: bool) -> PluginSpec:
    """Return a suite's network and its settings, with the SHA-256 of its pretrained weights."""
    name, values, name_path = _named(written, source, ("model",), suite)
    try:
        architecture = names.architecture(name)
        if not names.shipped(name):
            check_architecture(architecture, name)
        settings_class = architecture.Settings
    except PluginFault:
        raise
    except UserError as error:
        raise source.error(name_path, str(error), suite) from None
    known = settings_class.model_fields
    values = {k: v for k, v in values.items() if k in known or k not in EARLIER or v is not None}
    spec = PluginSpec(name, _validate(settings_class, values, source, ("model",), suite))
    try:
        return names.resolved(spec, download)
    except UserError as error:
        key, problem = str(error).split(": ", 1)
        raise source.error(key.split("."), problem, suite) from None


def _method(written: Any, name: str, source: Source, suite: str) -> tuple[PluginSpec, PluginSpec]:
    """Return (training, acquisition) of one entry of ``methods``."""
    path: tuple[str, ...] = ("methods", name)
    if isinstance(written, dict) and PAIR & written.keys():
        if unknown := written.keys() - PAIR:
            key = min(unknown)
            raise source.error((*path, key), f"unknown key {key!r}{did_you_mean(key, PAIR)}", suite)
        if "acquisition" not in written:
            raise source.error((*path, "acquisition"), "this key is required", suite)
        written_training = written.get("training", DEFAULT_TRAINING)
        written_acquisition = written["acquisition"]
        training_path, acquisition_path = (*path, "training"), (*path, "acquisition")
    else:
        written_training, written_acquisition = _both(written, source, path, suite)
        training_path = acquisition_path = path
    acquisition = _plugin(written_acquisition, "methods", Acquisition, source, acquisition_path, suite)
    training = _plugin(written_training, "methods", Training, source, training_path, suite)
    acquisition_class = registry.find("methods", acquisition.name, Acquisition)
    training_class = registry.find("methods", training.name, Training)
    assert acquisition_class is not None and training_class is not None
    if missing := boundary.needed(acquisition_class, acquisition.name, acquisition.settings) - training_class.gives:
        trainings = [name for name, cls in registry.every("methods", Training).items() if missing <= cls.gives]
        raise source.error(
            path,
            f"{acquisition.name} needs a training with {' and '.join(sorted(missing))}, and {training.name} has none; "
            f"allowed trainings: {', '.join(trainings)}",
            suite,
        )
    return training, acquisition


def _both(written: Any, source: Source, path: tuple[str, ...], suite: str) -> tuple[Any, Any]:
    """Return (training, acquisition), both as written in YAML, of a method written as one plug-in with settings.

    The name of a file that defines a training and an acquisition means both, and each gets its own settings. The name
    of any other acquisition means this acquisition with cross-entropy training.
    """
    name, values, name_path = _named(written, source, path, suite)
    if not registry.known("methods", name):
        return DEFAULT_TRAINING, written
    try:
        training, acquisition = (registry.find("methods", name, half) for half in (Training, Acquisition))
    except UserError as error:
        raise source.error(name_path, str(error), suite) from error
    if training is None or acquisition is None:
        return DEFAULT_TRAINING, written
    of_training, of_acquisition = training.Settings.model_fields, acquisition.Settings.model_fields
    training_settings = {k: value for k, value in values.items() if k in of_training or k not in of_acquisition}
    acquisition_settings = {k: value for k, value in values.items() if k in of_acquisition}
    return {"name": name, **training_settings}, {"name": name, **acquisition_settings}


def _check_name(name: str, kind: str, source: Source, path: tuple[str, ...], suite: str) -> None:
    """Raise UserError if the name of a suite or a method is empty, too long, or has a space at an end."""
    if not name or len(name) > LONGEST_NAME or name != name.strip():
        problem = f"the name of a {kind} must have 1 to {LONGEST_NAME} characters and no space at its ends"
        raise source.error(path, f"{problem}, got {shown_value(name)}", suite)


def _suite(name: str, values: dict[str, Any], source: Source, download: bool) -> Suite:
    """Return a checked suite from its keys, defaults included. Raises UserError.

    ``download``: pretrained weights may be downloaded, because trial ids depend on their content.
    """
    keys: SuiteKeys = _validate(SuiteKeys, values, source, (), name)
    dataset = _plugin(keys.dataset, "datasets", Dataset, source, ("dataset",), name)
    model = _network(keys.model, source, name, download)
    methods = {method: _method(written, method, source, name) for method, written in keys.methods.items()}
    decisive = {method: [half.decisive() for half in halves] for method, halves in methods.items()}
    for method, halves in decisive.items():
        _check_name(method, "method", source, ("methods", method), name)
        twin = next(other for other in decisive if decisive[other] == halves)
        if twin != method:
            duplicate = f"is the same method as {twin!r}; change a setting or remove it"
            raise source.error(("methods", method), duplicate, name)
    for role, method in keys.primary.model_dump().items() if keys.primary else ():
        if method not in methods:
            problem = f"no method is called {shown_value(method)}{did_you_mean(method, methods)}"
            raise source.error(("primary", role), problem, name)
    if keys.primary and keys.primary.method == keys.primary.reference:
        raise source.error(("primary", "reference"), "must be another method than primary.method", name)
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
        keys.full_data,
        keys.primary,
        keys.equal_within,
        lambda key: source.at(key.split("."), name),
    )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Benchmark:
    """Return a config, read and checked: a file, or the name of a config of the harness.

    Raises UserError, with file, line, key, value and what is allowed.
    """
    source = _source(path, overrides)
    path, values = source.path, source.values
    plugins = _plugins(source)
    where = _where(source)
    defaults = {k: v for k, v in values.items() if k in SuiteKeys.model_fields}
    written = values.get("suites", {path.stem: {}})
    if not isinstance(written, dict) or not written:
        raise source.error(("suites",), f"must be a mapping of suite names to suites, got {shown_value(written)}")
    for name, suite in written.items():
        _check_name(name, "suite", source, ("suites", name), name)
        if not isinstance(suite, dict):
            raise source.error(("suites", name), f"must be a mapping of keys, got {shown_value(suite)}")
        for key in ("dataset", "model"):
            if isinstance(suite.get(key), dict) and isinstance(defaults.get(key), str):
                defaults[key] = {"name": defaults[key]}  # so that the suite's settings can be merged in
    suites = []
    for name, suite in written.items():
        # a suite's methods replace the default ones: merging could not remove any
        own = {"methods": suite["methods"]} if "methods" in suite else {}
        suites.append(_suite(name, {**merged(defaults, suite), **own}, source, where.download))
        if (cycles := sum(len(s.methods) * len(s.seeds) * s.protocol.cycles for s in suites)) > MOST_CYCLES:
            problem = f"the config's methods x seeds x cycles must be at most {MOST_CYCLES} (more would take months)"
            raise source.error(("protocol", "cycles"), f"{problem}, got {cycles}", name)
    return Benchmark(path.stem, suites, where, plugins)


def load_where(path: str | Path, overrides: Iterable[str] = ()) -> Benchmark:
    """Return a config's name and its key ``where``, without any suite: no plug-in is imported. Raises UserError."""
    source = _source(path, overrides)
    return Benchmark(source.path.stem, [], _where(source), [])


def _source(path: str | Path, overrides: Iterable[str]) -> Source:
    path = config_path(str(path))
    if UNPRINTABLE.search(path.name):
        raise UserError(f"{path}: the name of a config must be printable text")
    source = Source(path)
    apply_overrides(source, overrides)
    for key in source.values:
        if key not in TOP_LEVEL:
            raise source.error((key,), f"unknown key {shown_value(key)}{did_you_mean(key, TOP_LEVEL)}")
    return source


def _where(source: Source) -> Where:
    written = source.values.get("where")
    where: Where = _validate(Where, {} if written is None else written, source, ("where",), None)
    for key in ("output", "data", "prepared"):
        try:
            expanded(str(getattr(where, key)))
        except UserError as error:
            raise source.error(("where", key), str(error)) from None
    return where


def _plugins(source: Source) -> list[str]:
    """Make the plug-ins under the key ``plugins`` known; return their folders and files, as absolute paths."""
    written = [] if source.values.get("plugins") is None else source.values["plugins"]
    if not isinstance(written, list) or not all(isinstance(path, str) for path in written):
        raise source.error(("plugins",), f"must be a list of folders or .py files, got {shown_value(written)}")
    base = Path.cwd() if ("plugins",) in source.overridden else source.path.parent
    paths = []
    for number, path in enumerate(written):
        try:
            paths.append((base / expanded(path)).resolve())
            registry.add(paths[-1])
        except UserError as error:
            raise source.error(("plugins", str(number)), str(error)) from None
    return [str(path) for path in paths]


class _Argument(Source):
    """The value of an argument in Python, which is on no line."""

    def at(self, path: Iterable[Any], suite: str | None = None) -> str:
        """Return the key alone."""
        return ".".join(map(str, path))


def load_dataset(
    spec: str | dict[str, Any],
    data: str | Path | None = None,
    download: bool = False,
    plugins: Iterable[str | Path] = (),
) -> LoadedData:
    """Return a loaded dataset: its name, or a mapping of its name and settings, as in a config.

    ``data`` is the folder that holds all datasets (where.data), ``download`` whether missing data may be downloaded,
    ``plugins`` the folders or files with plug-ins of one's own. Raises UserError, and DataMissing if files are missing.
    """
    for path in plugins:
        registry.add(Path(path))
    source = _Argument(Path("dataset"), json.dumps({"dataset": spec}, default=str))
    plugin = _plugin(spec, "datasets", Dataset, source, ("dataset",), "")
    where = {"data": None if data is None else str(data), "download": download}
    dataset = open_dataset(plugin, Where.model_validate(where))
    info = facts(dataset)
    fetch(dataset)
    return loaded(dataset, info)


def config_path(written: str) -> Path:
    """Return the file of a config: a path, or the name of a config of the harness, such as ``quickstart``.

    Raises UserError if there is neither.
    """
    path, folder = expanded(written), registry.home("configs")
    if path.suffix or len(path.parts) != 1 or len(written) > LONGEST_NAME or path.exists():
        return path
    if not (named := folder / f"{written}.yaml").is_file():
        configs = [file.stem for file in folder.glob("*.yaml")]
        raise UserError(f"there is no file and no config {shown_value(written)}{did_you_mean(written, configs)}")
    return named

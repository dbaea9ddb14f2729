"""YAML -> strict settings -> trials. Every mistake is found here, before anything starts, and named by file and line.

A config has two parts. What is measured: ``suites``, each a grid of methods x seeds on one dataset, model, recipe and
protocol; keys of a suite written at the top level are defaults for all suites, and a config without ``suites`` is one
suite. Where it runs: ``where``. Only the first part enters a trial's id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from harness import network_names, registry
from harness.data import Dataset
from harness.errors import UserError, did_you_mean
from harness.method import Acquisition, Training
from harness.settings import SuiteKeys, Where
from harness.suite import Benchmark, Part, Suite

LONGEST_VALUE = 60  # characters of a value in a message
PAIR = {"acquisition", "training"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 and 1.5e3 are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Source:
    """The file's values, and the line of each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        self.overridden: dict[tuple[str, ...], str] = {}
        self.values: Any = None
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is not None:
                self.values = self._read(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = error.problem or error.context or ""
            problem = f"{error.context}, {problem}" if problem.startswith("but ") else problem
            raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
        except yaml.reader.ReaderError as error:
            line = f":{text.count(chr(10), 0, error.position) + 1}"
            raise UserError(f"{path}{line}: not valid YAML: {error.reason}") from None
        except RecursionError:
            raise UserError(f"{path}: not valid YAML: values are nested too deeply") from None
        if not isinstance(self.values, dict):
            got = "the file is empty" if node is None else f"got {_shown(self.values)}"
            raise UserError(f"{path}:1: a config is a mapping of keys (dataset, model, recipe, ...), {got}")

    def _read(self, node: yaml.Node, place: tuple[str, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)  # the line of its key, where it has one
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise UserError(f"{self.path}:{line}: a key must be a word, got a list or a mapping")
                key = str(key_node.value)
                if key in found:
                    raise UserError(f"{self.path}:{line}: key {'.'.join((*place, key))!r} is there twice")
                self.lines[(*place, key)] = line
                found[key] = self._read(value_node, (*place, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*place, str(i))) for i, item in enumerate(node.value)]
        try:
            return _Loader("").construct_object(node, deep=True)
        except ValueError as error:  # such as a date with a 13th month
            problem = f"{node.value!r} can't be read: {error}"
            raise UserError(f"{self.path}:{line}: {'.'.join(place)}: {problem}") from None

    def at(self, place: Iterable[Any], suite: str | None = None) -> str:
        """Return where a value was written: its override, or its file, line and keys."""
        keys = tuple(map(str, place))
        candidates = ([("suites", suite, *keys)] if suite is not None else []) + [keys]
        if keys[:1] == ("methods",) and candidates[0][:3] in self.lines:
            candidates = candidates[:1]  # a suite's methods replace the top level's
        for candidate in candidates:
            for length in range(len(candidate), 0, -1):
                if (text := self.overridden.get(candidate[:length])) is not None:
                    inside = f": {'.'.join(keys)}" if length < len(candidate) else ""
                    return f"{text} (command line){inside}"
        inside = ""
        if below := [t for p, t in self.overridden.items() if any(p[: len(c)] == c for c in candidates if c)]:
            inside = f" (with {', '.join(dict.fromkeys(below))})"
        for left_out in range(len(keys)):  # the most exact place that was written; a suite's before the top level's
            for candidate in candidates:
                if (line := self.lines.get(candidate[: len(candidate) - left_out])) is not None:
                    return f"{self.path}:{line}: {'.'.join(candidate)}{inside}"
        found = candidates[0] if ("suites", suite) in self.lines else keys
        line = self.lines.get(("suites", suite or ""), self.lines[()])
        return ": ".join([f"{self.path}:{line}", *([f"{'.'.join(found)}{inside}"] if found else [])])

    def error(self, place: Iterable[Any], problem: str, suite: str | None = None) -> UserError:
        """Return the one sentence for a problem at a place, with the line it was written in."""
        return UserError(f"{self.at(place, suite)}: {problem}")


def _shown(value: Any) -> str:
    """Return a value as a user would write it, cut short if it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _model_at(model: Any, place: Iterable[Any]) -> type[BaseModel] | None:
    """Return the settings class at a place inside a settings class."""
    for key in place:
        field = model.model_fields.get(key) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return None
        model = field.annotation
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _literals(annotation: Any) -> list[str]:
    """Return the allowed words of a type such as Literal["warm", "fresh"] | None."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _literals(part)]


NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, such as [0, 1, 2]",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
}
"""What must be, by the type of a pydantic error without what follows its first part: int_type and int_parsing."""


def _sentence(model: type[BaseModel], error: Any) -> tuple[tuple[Any, ...], str]:
    """Return (place, problem) of a pydantic error in words that name the value and what is allowed."""
    place, kind, value = tuple(error["loc"]), error["type"], error["input"]
    if kind == "extra_forbidden":
        parent = _model_at(model, place[:-1]) or model
        allowed = did_you_mean(str(place[-1]), parent.model_fields) or "; it has no settings"
        return place, f"unknown key {str(place[-1])!r}{allowed}"
    if kind == "missing":
        return place, "this key is required"
    if kind == "value_error":
        return place, error["msg"].removeprefix("Value error, ")
    # a union such as "int | str" adds the tried type to the place: of no use to a reader
    place = tuple(p for p in place if not (isinstance(p, str) and ("[" in p or p in ("str", "int", "float", "bool"))))
    parent = (_model_at(model, place[:-1]) or model) if place else model
    if kind == "literal_error" and place and place[-1] in parent.model_fields:
        allowed = did_you_mean(str(value), _literals(parent.model_fields[place[-1]].annotation))
        return place, f"{_shown(value)} is not allowed{allowed}"
    needed = NEEDED.get(kind) or NEEDED.get(kind.split("_")[0])
    if needed is None:
        return place, f"{error['msg'][0].lower()}{error['msg'][1:]}, got {_shown(value)}"
    return place, f"must be {needed.format(**error.get('ctx', {}))}, got {_shown(value)}"


def _validate(model: type[BaseModel], values: Any, source: Source, place: tuple[str, ...], suite: str | None) -> Any:
    try:
        # as JSON, because there strict means "no true for a number", but not "no list for a tuple"
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        # a misspelt key is also a missing one: its own sentence tells more
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where, problem = _sentence(model, first)
        raise source.error((*place, *where), problem, suite) from None


def _merge(defaults: Any, values: Any) -> Any:
    """Return values over defaults: mappings key by key, anything else whole.

    A mapping that names a plug-in (``name``) other than the default's replaces it whole: its settings are its own.
    """
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    if "name" in values and values["name"] != defaults.get("name"):
        return values
    return {k: _merge(defaults.get(k), values[k]) if k in values else defaults[k] for k in {**defaults, **values}}


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, text: str) -> None:
    part = keys[2] if keys[0] == "suites" else keys[0]
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if isinstance(inner, str) and part in ("dataset", "methods"):
            # a bare plug-in name that now gets a setting, or a method that now is a pair
            inner = {"acquisition" if part == "methods" and keys[depth + 1] in PAIR else "name": inner}
        elif not isinstance(inner, dict | None):
            raise UserError(f"{text} (command line): {'.'.join(keys[: depth + 1])} is {_shown(inner)}, not a mapping")
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value


def _override(source: Source, overrides: Iterable[str]) -> None:
    """Apply ``key.path=value``; a key of a suite without ``suites.`` before it holds for every suite."""
    for text in overrides:
        path, equals, written = text.partition("=")
        keys = tuple(path.split("."))
        if not equals or not all(keys):
            raise UserError(f"{text} (command line): an override is written key.path=value, e.g. recipe.epochs=2")
        if keys[0] not in {"suites", "where", *SuiteKeys.model_fields}:
            raise UserError(
                f"{text} (command line): unknown key {keys[0]!r}"
                f"{did_you_mean(keys[0], ['suites', 'where', *SuiteKeys.model_fields])}"
            )
        try:
            value = yaml.load(written, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{text} (command line): {_shown(written)} is not valid YAML") from None
        suites = source.values.get("suites")
        suites = suites if isinstance(suites, dict) else {}
        if keys[0] == "suites" and len(keys) < 3:
            raise UserError(f"{text} (command line): write suites.NAME.key=value, e.g. suites.NAME.recipe.epochs=2")
        if keys[0] == "suites" and keys[1] not in suites:
            raise UserError(
                f"{text} (command line): unknown suite {keys[1]!r}"
                f"{did_you_mean(keys[1], suites) or ', the config has no suites'}"
            )
        if keys[0] == "suites" and keys[2] == "methods" and len(keys) > 3 and isinstance(suites[keys[1]], dict):
            suites[keys[1]].setdefault("methods", deepcopy(source.values.get("methods")))  # they replace the defaults
        targets = [keys]
        if keys[0] in SuiteKeys.model_fields:
            for name, suite in suites.items():
                if isinstance(suite, dict) and keys[0] in suite:
                    targets.append(("suites", name, *keys))
        for target in targets:
            _set(source.values, target, deepcopy(value), text)
            source.overridden[target] = text
        source.overridden[keys] = text


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


def only(benchmark: Benchmark, filters: Iterable[str]) -> Benchmark:
    """Return the part of a benchmark that ``--only suite=..., dataset=..., method=..., seed=...`` names.

    Values separated by commas are alternatives. Suites that run on request are left out unless ``suite=`` names them.
    Raises UserError for a value that nothing has.
    """
    filters = list(filters)
    suites = benchmark.suites
    if not any(text.startswith("suite=") for text in filters):
        suites = [s for s in suites if not s.on_request]
        if not suites:
            names = ", ".join(s.name for s in benchmark.suites)
            raise UserError(f"{benchmark.name}: its suites run on request: add --only suite=... ({names})")
    for text in filters:
        key, equals, written = text.partition("=")
        wanted = written.split(",")
        if key not in ("suite", "dataset", "method", "seed") or not equals:
            raise UserError(f"--only {text}: write suite=..., dataset=..., method=... or seed=...")
        have = {
            "suite": {s.name for s in suites},
            "dataset": {s.dataset.name for s in suites},
            "method": {label for s in suites for label in s.methods},
            "seed": {str(seed) for s in suites for seed in s.seeds},
        }[key]
        if unknown := [w for w in wanted if w not in have]:
            elsewhere = [s.name for s in benchmark.suites if s.on_request and unknown[0] in s.methods]
            hint = f"; suite={elsewhere[0]} has it, which runs on request" if elsewhere else ""
            raise UserError(f"--only {text}: no {key} is called {unknown[0]!r}{hint or did_you_mean(unknown[0], have)}")
        kept = []
        for s in suites:
            methods = {m: v for m, v in s.methods.items() if key != "method" or m in wanted}
            seeds = [seed for seed in s.seeds if key != "seed" or str(seed) in wanted]
            named = {"suite": s.name, "dataset": s.dataset.name}.get(key, wanted[0]) in wanted
            if methods and seeds and named:
                kept.append(Suite(**{**vars(s), "methods": methods, "seeds": seeds}))
        suites = kept
    return Benchmark(benchmark.name, suites, benchmark.where)

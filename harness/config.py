"""YAML -> strict settings -> trials. Every mistake is found here, before anything starts, and named by file and line.

A config has two parts. What is measured: ``suites``, each a grid of methods x seeds on one dataset, model, recipe and
protocol; keys of a suite written at the top level are defaults for all suites, and a config without ``suites`` is one
suite. Where it runs: ``where``. Only the first part enters a trial's id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness import network_names, registry
from harness.data import DataPlace, Dataset
from harness.errors import UserError, did_you_mean
from harness.method import Acquisition, Training
from harness.settings import Strict


class Model(Strict):
    """The target network."""

    name: str = Field(description="one of harness/networks.py (resnet18_cifar, ...), else any timm model")
    initialisation: Literal["kaiming", "kaiming_zero_last", "pytorch"] = Field(
        "kaiming", description="timm's, timm's with a zero last gamma in each residual block, or PyTorch's default"
    )
    width: PositiveInt | None = Field(None, description="channels of the first stage; resnet_small only")


class Recipe(Strict):
    """How every network of a suite is trained and run: the same for all methods."""

    epochs: PositiveInt
    batch_size: int = Field(128, ge=2, description="at least 2: batch norm can't normalise a single image")
    learning_rate: PositiveFloat = 0.1
    milestones: list[PositiveInt] = Field([], description="epochs at which the learning rate is multiplied by gamma")
    gamma: PositiveFloat = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    crop_padding: NonNegativeInt = Field(4, description="zero padding of the random crop, pixels; 0: no crop")
    flip: bool = Field(True, description="random horizontal flip")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast and channels_last; losses, class statistics and scores stay float32",
    )
    inference_batch_size: PositiveInt = 500

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, milestones: list[int], before: ValidationInfo) -> list[int]:
        epochs = before.data.get("epochs")
        if epochs and (milestones != sorted(set(milestones)) or any(m >= epochs for m in milestones)):
            raise ValueError(f"must ascend and stay below epochs ({epochs}), got {milestones}")
        return milestones


class Protocol(Strict):
    """The active-learning loop: the same for all methods."""

    initial: int = Field(ge=2, description="labelled images of cycle 0")
    budget: PositiveInt = Field(description="images bought after each cycle but the last")
    cycles: PositiveInt = Field(description="trainings; the last one has initial + (cycles - 1) x budget labels")
    candidates: PositiveInt | None = Field(
        None, description="size of the random subset that is ranked; null: all unlabelled images"
    )
    start: Literal["warm", "fresh"] = Field(
        description="warm: weights are carried from cycle to cycle; fresh: new weights"
    )
    initial_set: Literal["per_seed", "per_run"] = "per_seed"

    def labelled(self) -> list[int]:
        """Return the number of labelled images of each cycle."""
        return [self.initial + cycle * self.budget for cycle in range(self.cycles)]

    @field_validator("candidates")
    @classmethod
    def _budget_fits(cls, candidates: int | None, before: ValidationInfo) -> int | None:
        budget = before.data.get("budget")
        if candidates and budget and candidates < budget:
            raise ValueError(f"must be at least budget ({budget}), got {candidates}")
        return candidates


class Where(Strict):
    """Where and how a config runs on this machine or cluster; never part of what is measured."""

    output: str | None = Field(None, description="results folder; default runs/<name of the config>")
    data: str | None = Field(None, description="folder of the datasets; default $HARNESS_DATA, else ./data")
    download: bool = Field(False, description="download datasets that may be downloaded")
    trials: Literal["ray", "in_process"] = Field("ray", description="in_process: one after another, without Ray")
    address: str | None = Field(None, description="Ray cluster; default $RAY_ADDRESS, else a local Ray is started")
    dashboard: bool = Field(True, description="dashboard of a local Ray, on the loopback address")
    gpus_per_trial: NonNegativeFloat | None = Field(None, description="default: 1 where there are GPUs, else 0")
    cpus_per_trial: PositiveInt = Field(1, description="also the number of torch threads of a trial")
    max_concurrent: PositiveInt | None = Field(None, description="trials at once; default: as many as fit")
    retries: NonNegativeInt = Field(2, description="how often a crashed trial goes on from its last finished cycle")
    scoring: Literal["auto", "in_process", "ray_data"] = Field(
        "auto", description="auto: Ray Data when the measured forward time makes it the faster way"
    )
    warm_workers: bool = Field(
        False,
        description="one process runs many trials: saves seconds per trial; the dashboard then names workers",
    )
    shards: PositiveInt = Field(2, description="workers of the Ray Data path, for each trial")

    @model_validator(mode="after")
    def _ray_data_needs_ray(self) -> Where:
        if self.trials == "in_process" and self.scoring == "ray_data":
            raise ValueError("scoring: ray_data needs trials: ray, got trials: in_process")
        return self


class SuiteKeys(Strict):
    """The keys of a suite as they are written; datasets and methods are checked against their plug-ins."""

    title: str = ""
    dataset: Any
    model: Model
    recipe: Recipe
    protocol: Protocol
    methods: dict[str, Any] = Field(min_length=1, description="label -> method")
    seeds: list[NonNegativeInt] = Field(min_length=1)
    optional: bool = Field(False, description="skip the suite, by name, where its data is missing")
    exclusive: bool = Field(False, description="one trial per device, so that seconds can be compared")

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"must differ, got {seeds}")
        return seeds


@dataclass(frozen=True)
class Part:
    """A plug-in by name, with all of its settings."""

    name: str
    settings: dict[str, Any]

    def written(self) -> dict[str, Any]:
        """Return it as it is written in YAML."""
        return {"name": self.name, **self.settings}


@dataclass(frozen=True)
class Trial:
    """One cell of the grid: (dataset, model, recipe, protocol, training, acquisition, seed)."""

    dataset: Part
    model: Model
    recipe: Recipe
    protocol: Protocol
    training: Part
    acquisition: Part
    seed: int

    def measured(self) -> dict[str, Any]:
        """Return everything that decides the trial's figures, as plain values."""
        return {
            "dataset": self.dataset.written(),
            "model": self.model.model_dump(),
            "recipe": self.recipe.model_dump(),
            "protocol": self.protocol.model_dump(),
            "training": self.training.written(),
            "acquisition": self.acquisition.written(),
            "seed": self.seed,
        }

    @classmethod
    def from_measured(cls, values: dict[str, Any]) -> Trial:
        """Return the trial whose ``measured()`` is ``values``."""

        def part(written: dict[str, Any]) -> Part:
            return Part(written["name"], {k: v for k, v in written.items() if k != "name"})

        return cls(
            dataset=part(values["dataset"]),
            model=Model(**values["model"]),
            recipe=Recipe(**values["recipe"]),
            protocol=Protocol(**values["protocol"]),
            training=part(values["training"]),
            acquisition=part(values["acquisition"]),
            seed=values["seed"],
        )

    @property
    def id(self) -> str:
        """A readable name that ends in a hash of ``measured()``."""
        method = (
            self.training.name
            if self.training.name == self.acquisition.name
            else (f"{self.training.name}-{self.acquisition.name}")
        )
        return f"{self.dataset.name}.{self.model.name}.{method}.s{self.seed}.{_hash(self.measured())}".replace("/", "_")

    @property
    def sharing_key(self) -> str:
        """Equal for trials whose first cycle is one and the same training.

        It holds all that decides that training: data, network, recipe, labelled set, candidate subset (which a
        training may look at), loss and seed.
        """
        decides = self.measured()
        del decides["acquisition"]
        decides["protocol"] = {k: decides["protocol"][k] for k in ("initial", "initial_set", "candidates")}
        return f"{self.dataset.name}.{self.model.name}.{self.training.name}.s{self.seed}.{_hash(decides)}".replace(
            "/", "_"
        )

    def training_images(self) -> int:
        """Return the image passes of all trainings."""
        return sum(self.protocol.labelled()) * self.recipe.epochs

    def scores_images(self) -> bool:
        """Return whether the acquisition looks at images at all."""
        acquisition = registry.find("methods", self.acquisition.name, Acquisition)
        assert acquisition is not None
        return acquisition.uses_images and self.protocol.cycles > 1

    def scoring_images(self, num_train: int) -> int:
        """Return the image passes of the scoring of candidates (0 if the acquisition looks at no image)."""
        if not self.scores_images():
            return 0
        pools = [num_train - labelled for labelled in self.protocol.labelled()[:-1]]
        return sum(min(pool, self.protocol.candidates or pool) for pool in pools)


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Suite:
    """A checked suite and its trials."""

    name: str
    title: str
    dataset: Part
    model: Model
    recipe: Recipe
    protocol: Protocol
    methods: dict[str, tuple[Part, Part]]
    """label -> (training, acquisition)"""
    seeds: list[int]
    optional: bool
    exclusive: bool
    protocol_at: str = ""
    """Where its protocol is written, for messages."""

    def trials(self) -> Iterator[tuple[str, Trial]]:
        """Yield (label, trial), methods in the order of the config and seeds within."""
        for label, (training, acquisition) in self.methods.items():
            for seed in self.seeds:
                yield (
                    label,
                    Trial(self.dataset, self.model, self.recipe, self.protocol, training, acquisition, seed),
                )

    def written(self) -> dict[str, Any]:
        """Return the suite as it would be written in YAML, with nothing left to defaults."""
        return {
            "title": self.title,
            "dataset": self.dataset.written(),
            "model": self.model.model_dump(),
            "recipe": self.recipe.model_dump(),
            "protocol": self.protocol.model_dump(),
            "methods": {
                label: {"training": training.written(), "acquisition": acquisition.written()}
                for label, (training, acquisition) in self.methods.items()
            },
            "seeds": self.seeds,
            "optional": self.optional,
            "exclusive": self.exclusive,
        }

    def open_dataset(self, where: Where) -> Dataset:
        """Return the suite's dataset on this machine."""
        return open_dataset(self.dataset, where)


def open_dataset(part: Part, where: Where) -> Dataset:
    """Return a dataset, not yet loaded."""
    dataset = registry.find("datasets", part.name, Dataset)
    assert dataset is not None
    return dataset(dataset.Settings(**part.settings), DataPlace.of(where.data, where.download))


@dataclass(frozen=True)
class Benchmark:
    """A whole config, checked."""

    name: str
    suites: list[Suite]
    where: Where

    @property
    def output(self) -> Path:
        """The results folder."""
        return Path(self.where.output or Path("runs") / self.name)

    def written(self) -> str:
        """Return the resolved config as YAML."""
        values = {"suites": {s.name: s.written() for s in self.suites}, "where": self.where.model_dump()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------------------------------------------- reading

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
    return Part(name, settings.model_dump()), plugin


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
        keys.model,
        keys.recipe,
        keys.protocol,
        methods,
        keys.seeds,
        keys.optional,
        keys.exclusive,
        source.at(("protocol",), name),
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

    Values separated by commas are alternatives. Raises UserError for a value that nothing has.
    """
    suites = benchmark.suites
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
            raise UserError(f"--only {text}: no {key} is called {unknown[0]!r}{did_you_mean(unknown[0], have)}")
        kept = []
        for s in suites:
            methods = {m: v for m, v in s.methods.items() if key != "method" or m in wanted}
            seeds = [seed for seed in s.seeds if key != "seed" or str(seed) in wanted]
            named = {"suite": s.name, "dataset": s.dataset.name}.get(key, wanted[0]) in wanted
            if methods and seeds and named:
                kept.append(Suite(**{**vars(s), "methods": methods, "seeds": seeds}))
        suites = kept
    return Benchmark(benchmark.name, suites, benchmark.where)


def json_schema() -> dict[str, Any]:
    """Return a JSON schema of a config, for editors, with every plug-in's settings."""

    def plugin(folder: str, contract: type[Any]) -> list[dict[str, Any]]:
        found = []
        for name in registry.names(folder):
            cls = registry.find(folder, name, contract)
            if cls is not None:
                schema = cls.Settings.model_json_schema()
                schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
                schema.pop("required", None)
                found += [{"const": name}, schema]
        return found

    suite = SuiteKeys.model_json_schema(ref_template="#/$defs/{model}")
    definitions = suite.pop("$defs", {})
    suite["properties"]["dataset"] = {"anyOf": plugin("datasets", Dataset)}
    acquisition = {"anyOf": plugin("methods", Acquisition)}
    pair = {
        "type": "object",
        "properties": {"acquisition": acquisition, "training": {"anyOf": plugin("methods", Training)}},
        "additionalProperties": False,
    }
    suite["properties"]["methods"]["additionalProperties"] = {"anyOf": [pair, acquisition]}
    # nothing is required: a suite and the top level may each hold a part of a mapping
    for schema in (suite, *definitions.values()):
        schema.pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "type": "object",
        "properties": {
            **suite["properties"],
            "where": Where.model_json_schema(),
            "suites": {"type": "object", "additionalProperties": suite},
        },
        "additionalProperties": False,
    }

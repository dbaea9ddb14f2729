"""A checked config: its suites and their trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from harness import file_settings, registry
from harness.data.dataset import DataRoot, Dataset, opened
from harness.errors import expanded
from harness.learning import boundary
from harness.learning.contract import Acquisition, Half, Training
from harness.networks import names
from harness.results.code import code_of, harness_code
from harness.results.manifest import DEFAULT_TRAINING as DEFAULT_TRAINING
from harness.results.manifest import UNUSED_ACQUISITION
from harness.results.records import SCHEMA_VERSION
from harness.settings import PluginSpec, Primary, Protocol, Recipe, Where, decisive

LONGEST_READABLE = 220  # bytes of an id before the seed: it names a folder, of at most 255


@dataclass(frozen=True)
class Trial:
    """One cell of the grid: (dataset, model, recipe, protocol, training, acquisition, seed)."""

    dataset: PluginSpec
    model: PluginSpec
    recipe: Recipe
    protocol: Protocol
    training: PluginSpec
    acquisition: PluginSpec
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone: a worker that unpickles a trial must find the code of its own machine."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def spec(self) -> dict[str, Any]:
        """Return all settings that affect the trial's results and differ from the defaults of this schema version.

        Files, such as pretrained weights, enter by their SHA-256, not by their path. The number of cycles is left out,
        because no cycle depends on how many follow.
        """
        protocol = decisive(self.protocol)
        del protocol["cycles"]
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": self.dataset.decisive(),
            "model": self.model.decisive(),
            "recipe": decisive(self.recipe),
            "protocol": protocol,
            "training": self.training.decisive(),
            "acquisition": self.acquisition.decisive(),
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        """The trial's id: a readable name that ends in a hash of ``spec()``."""
        method = f"{self.training.name}-{self.acquisition.name}"
        if self.training.name == self.acquisition.name:
            method = self.training.name
        return self._named(method, self.spec())

    @cached_property
    def sharing_key(self) -> str:
        """The key of the first cycle's training: trials with equal keys run the identical training in cycle 0.

        It depends on all that affects this training: dataset, model, recipe, initial set (and the acquisition, if that
        draws the initial set), candidate subset (which a training may use), training and seed.
        """
        return self._named(self.training.name, self._shared_spec())

    def _shared_spec(self) -> dict[str, Any]:
        spec = self.spec()
        if not self.draws_first():
            del spec["acquisition"]
        kept = ("initial", "initial_set", "candidates")
        spec["protocol"] = {key: value for key, value in spec["protocol"].items() if key in kept}
        return spec

    def sharing_key_in_version_2(self) -> str:
        """Return ``sharing_key`` as schema version 2 computed it; see harness.experiment.upgrade."""
        return self._named(self.training.name, {**self._shared_spec(), "schema_version": 2})

    def _named(self, method: str, spec: dict[str, Any]) -> str:
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
        readable = f"{self.dataset.name}.{self.model.name}.{method}".encode()[:LONGEST_READABLE].decode(errors="ignore")
        return f"{readable}.s{self.seed}.{digest}".replace("/", "_")

    @cached_property
    def code(self) -> dict[str, str]:
        """Part, such as 'acquisition random' -> hash of its code: all code that decides the trial's results."""
        halves = ("training", self.training, Training), ("acquisition", self.acquisition, Acquisition)
        plugins: list[tuple[str, str, Any]] = [
            ("network", self.model.name, names.architecture(self.model.name)),
            *((half, spec.name, registry.find("methods", spec.name, contract)) for half, spec, contract in halves),
        ]
        if registry.known("datasets", self.dataset.name):  # else a notebook made the data itself
            plugins.append(("dataset", self.dataset.name, registry.find("datasets", self.dataset.name, Dataset)))
        parts = {f"{part} {name}": code_of(plugin.__module__) for part, name, plugin in plugins}
        return {"harness": harness_code(), **parts}

    @property
    def shared_code(self) -> dict[str, str]:
        """The part of ``code`` that decides the training of cycle 0."""
        if self.draws_first():
            return self.code
        return {part: hash_ for part, hash_ in self.code.items() if not part.startswith("acquisition ")}

    def draws_first(self) -> bool:
        """Return whether the acquisition draws the initial set, instead of the one that all methods share."""
        return boundary.draws_first(self._acquisition, self.acquisition.name, self.acquisition.settings)

    def training_images(self) -> list[int]:
        """Return the image passes of the target network's training, for each cycle: labelled images x epochs."""
        return [labelled * self.recipe.epochs for labelled in self.protocol.labelled()]

    def extra_passes(self, num_train: int) -> tuple[list[int], list[int]]:
        """Return the image passes of (training, acquisition) in addition to the target's training, for each cycle.

        Those of the acquisition are 0 in the last cycle, which selects nothing.
        """
        training = registry.find("methods", self.training.name, Training)
        assert training is not None
        counts = [(labelled, self._candidates(num_train - labelled)) for labelled in self.protocol.labelled()]

        def passes(plugin: type[Half], spec: PluginSpec, count: tuple[int, int]) -> int:
            return boundary.extra_passes(plugin, spec.name, spec.settings, self.recipe, *count)

        of_training = [passes(training, self.training, count) for count in counts]
        return of_training, [*(passes(self._acquisition, self.acquisition, count) for count in counts[:-1]), 0]

    def scores_images(self) -> bool:
        """Return whether the trial scores images in any cycle."""
        return self._acquisition.scores_images and self.protocol.cycles > 1

    def scoring_images(self, num_train: int) -> list[int]:
        """Return the image passes of scoring candidates, for each cycle; the last one scores none."""
        scoring = [self._candidates(num_train - labelled) for labelled in self.protocol.labelled()[:-1]]
        return [*(scoring if self.scores_images() else [0] * len(scoring)), 0]

    def _candidates(self, unlabelled: int) -> int:
        return min(unlabelled, self.protocol.candidates or unlabelled)

    @property
    def _acquisition(self) -> type[Acquisition]:
        acquisition = registry.find("methods", self.acquisition.name, Acquisition)
        assert acquisition is not None
        return acquisition


def _plain(contract: type[Any], name: str) -> PluginSpec:
    """Return a half of a method with its default settings."""
    plugin = registry.find("methods", name, contract)
    assert plugin is not None
    return PluginSpec(name, plugin.Settings())


@dataclass(frozen=True)
class Suite:
    """A checked suite, which defines trials: methods x seeds."""

    name: str
    title: str
    dataset: PluginSpec
    model: PluginSpec
    recipe: Recipe
    protocol: Protocol
    methods: dict[str, tuple[PluginSpec, PluginSpec]]
    """Name -> (training, acquisition)."""
    seeds: list[int]
    optional: bool
    on_request: bool
    exclusive: bool
    full_data: bool
    primary: Primary | None
    equal_within: float | None
    at: Callable[[str], str] = field(compare=False)
    """Returns where a key of the suite, such as recipe.crop_size, was written: the beginning of an error message."""

    def trials(self) -> Iterator[tuple[str, Trial]]:
        """Yield (method name, trial): methods in the order of the config, and all seeds of a method in turn."""
        model = names.located(self.model)
        for name, pair in self.methods.items():
            training, acquisition = (PluginSpec(half.name, file_settings.located(half.settings)) for half in pair)
            for seed in self.seeds:
                yield name, Trial(self.dataset, model, self.recipe, self.protocol, training, acquisition, seed)

    def full_trials(self, pool: int) -> list[Trial]:
        """Return the trials on all training images, ``pool`` of them: one per seed if ``full_data``, else none.

        They have one cycle and the suite's recipe. All suites with the same dataset, network and recipe share them.
        """
        if not self.full_data:
            return []
        training, acquisition = _plain(Training, DEFAULT_TRAINING), _plain(Acquisition, UNUSED_ACQUISITION)
        protocol = Protocol(initial=pool, budget=1, candidates=None, cycles=1, start="fresh", initial_set="per_seed")
        model = names.located(self.model)
        return [Trial(self.dataset, model, self.recipe, protocol, training, acquisition, seed) for seed in self.seeds]

    def written(self) -> dict[str, Any]:
        """Return the suite as a mapping for YAML, with all defaults filled in."""
        return {
            "title": self.title,
            "dataset": self.dataset.written(),
            "model": self.model.written(),
            "recipe": self.recipe.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "methods": {
                name: {"training": training.written(), "acquisition": acquisition.written()}
                for name, (training, acquisition) in self.methods.items()
            },
            "seeds": self.seeds,
            "optional": self.optional,
            "on_request": self.on_request,
            "exclusive": self.exclusive,
            "full_data": self.full_data,
            "primary": self.primary.model_dump() if self.primary else None,
            "equal_within": self.equal_within,
        }

    def open_dataset(self, where: Where) -> Dataset:
        """Return the suite's dataset, not yet loaded, with the folders of this machine."""
        return open_dataset(self.dataset, where)


def open_dataset(spec: PluginSpec, where: Where) -> Dataset:
    """Return a dataset, not yet loaded, with the folders of this machine."""
    dataset = registry.find("datasets", spec.name, Dataset)
    assert dataset is not None
    return opened(dataset, spec.name, spec.settings, DataRoot.of(where.data, where.download, where.prepared))


def with_same_data(suites: Iterable[Suite]) -> Iterator[tuple[Suite, str]]:
    """Yield each suite, with the name of an earlier one that has the same dataset, or ''."""
    first: dict[str, str] = {}
    for suite in suites:
        key = json.dumps(suite.dataset.written(), sort_keys=True)
        yield suite, first.get(key, "")
        first.setdefault(key, suite.name)


@dataclass(frozen=True)
class Benchmark:
    """A whole config, checked: suites, and where they run."""

    name: str
    suites: list[Suite]
    where: Where
    plugins: list[str] = field(default_factory=list)
    """Folders and files of the user's plug-ins, absolute."""

    @property
    def output(self) -> Path:
        """The results folder: ``where.output``, else runs/NAME."""
        return expanded(self.where.output or Path("runs") / self.name)

    def written(self) -> str:
        """Return the config as YAML, with all defaults filled in."""
        values: dict[str, Any] = {"plugins": self.plugins} if self.plugins else {}
        values |= {"suites": {s.name: s.written() for s in self.suites}, "where": self.where.model_dump()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

"""A checked config: suites, and the trials they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness import registry
from harness.data.dataset import DataPlace, Dataset
from harness.learning.contract import Acquisition, Training
from harness.settings import Model, Protocol, Recipe, Where


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
        """Return all that decides the trial's figures, as JSON gives it back: not where a file of weights lies."""
        return {
            "dataset": self.dataset.written(),
            "model": self.model.model_dump(mode="json", exclude={"weights"}),
            "recipe": self.recipe.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "training": self.training.written(),
            "acquisition": self.acquisition.written(),
            "seed": self.seed,
        }

    @classmethod
    def from_measured(cls, values: dict[str, Any]) -> Trial:
        """Return the trial whose ``measured()`` is ``values``; it can be trained on, but not begun from a file."""

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

        It holds all that decides that training: data, network, recipe, labelled set (with an acquisition that draws
        its own), candidate subset (which a training may look at), loss and seed.
        """
        decides = self.measured()
        if not self.has_own_initial_set():
            del decides["acquisition"]
        decides["protocol"] = {k: decides["protocol"][k] for k in ("initial", "initial_set", "candidates")}
        return f"{self.dataset.name}.{self.model.name}.{self.training.name}.s{self.seed}.{_hash(decides)}".replace(
            "/", "_"
        )

    def has_own_initial_set(self) -> bool:
        """Return whether the acquisition draws its initial set itself."""
        acquisition, settings = self._acquisition()
        return acquisition.own_initial_set(settings)

    def training_images(self) -> list[int]:
        """Return the image passes of each cycle's training."""
        return [labelled * self.recipe.epochs for labelled in self.protocol.labelled()]

    def fitting_images(self, num_train: int) -> list[int]:
        """Return the image passes that each cycle's training makes beside those of the target network."""
        training = registry.find("methods", self.training.name, Training)
        assert training is not None
        settings = training.Settings(**self.training.settings)
        return [
            training.auxiliary_images(settings, self.recipe, labelled, self._candidates(num_train - labelled))
            for labelled in self.protocol.labelled()
        ]

    def preparation_images(self) -> list[int]:
        """Return the image passes of what each cycle trains for its choice; the last cycle chooses nothing."""
        acquisition, settings = self._acquisition()
        chosen = self.protocol.labelled()[:-1]
        return [*(acquisition.preparation_images(settings, self.recipe, labelled) for labelled in chosen), 0]

    def scores_images(self) -> bool:
        """Return whether the acquisition looks at images at all."""
        return self._acquisition()[0].uses_images and self.protocol.cycles > 1

    def scoring_images(self, num_train: int) -> int:
        """Return the image passes of the scoring of candidates (0 if the acquisition looks at no image)."""
        if not self.scores_images():
            return 0
        return sum(self._candidates(num_train - labelled) for labelled in self.protocol.labelled()[:-1])

    def _candidates(self, unlabelled: int) -> int:
        return min(unlabelled, self.protocol.candidates or unlabelled)

    def _acquisition(self) -> tuple[type[Acquisition], Any]:
        acquisition = registry.find("methods", self.acquisition.name, Acquisition)
        assert acquisition is not None
        return acquisition, acquisition.Settings(**self.acquisition.settings)


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
    on_request: bool
    exclusive: bool
    at: Callable[[str], str] = field(compare=False)
    """Returns where a key of it, such as recipe.crop_size, was written: what a message begins with."""

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
            "model": self.model.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "methods": {
                label: {"training": training.written(), "acquisition": acquisition.written()}
                for label, (training, acquisition) in self.methods.items()
            },
            "seeds": self.seeds,
            "optional": self.optional,
            "on_request": self.on_request,
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

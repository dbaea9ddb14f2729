"""The grid of a run: its trials, the first cycles that several of them share, and the order they start in."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from harness.config.suite import Benchmark, Suite, Trial
from harness.data.dataset import Facts
from harness.errors import DataMissing, UserError
from harness.networks import names as network_names


@dataclass(frozen=True)
class Unit:
    """A unit of work: a whole trial, or the first cycle that several trials share."""

    trial: Trial
    suite: str
    label: str
    exclusive: bool
    shared: bool
    """True: only the training of cycle 0, for all trials with this sharing key."""
    after: str | None
    """Sharing key of the unit that must have ended first."""
    training: list[int]
    """Image passes of the target's training in each of its cycles."""
    auxiliary: list[int]
    """Image passes of what is trained beside it."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"{self.suite} / {self.label} / seed {self.trial.seed}"

    @property
    def cycles(self) -> int:
        """How many cycles it runs."""
        return 1 if self.shared else self.trial.protocol.cycles

    @property
    def passes(self) -> list[int]:
        """Image passes of each cycle: what its length is judged by."""
        return [training + auxiliary for training, auxiliary in zip(self.training, self.auxiliary, strict=True)]


@dataclass(frozen=True)
class Grid:
    """What a run will do, and what it will skip."""

    units: list[Unit]
    """Shared first cycles first, then trials; longest first within both."""
    facts: dict[str, Facts]
    """By suite."""
    skipped: dict[str, str]
    """Suite -> reason."""


def expand(benchmark: Benchmark, fetch: bool = False, planning: bool = False) -> Grid:
    """Check the data of every suite and return the grid.

    ``fetch``: also download what is absent and may be downloaded. Raises UserError (DataMissing for data) for the
    first suite that can't run, unless only its data is missing and it is optional or this is for ``planning``.
    """
    facts: dict[str, Facts] = {}
    skipped: dict[str, str] = {}
    known: dict[str, Facts] = {}  # suites with the same data: its checksums are taken once
    for suite in benchmark.suites:
        data = json.dumps(suite.dataset.written(), sort_keys=True)
        try:
            if data not in known:
                dataset = suite.open_dataset(benchmark.where)
                known[data] = dataset.facts()
                if fetch:
                    dataset.fetch()
        except DataMissing as missing:
            if not (suite.optional or planning):
                raise DataMissing(f"suite {suite.name}: {missing}") from None
            skipped[suite.name] = str(missing)
            continue
        facts[suite.name] = known[data]
        _check_size(suite, facts[suite.name])
        if problem := network_names.misfit(suite.model, facts[suite.name].per_pixel, suite.dataset.name):
            raise UserError(f"{suite.at(f'model.{problem[0]}')}: {problem[1]}")
    running = [suite for suite in benchmark.suites if suite.name not in skipped]
    groups: dict[str, list[str]] = defaultdict(list)
    trials: dict[str, tuple[Suite, str, Trial]] = {}
    for suite in sorted(running, key=lambda suite: not suite.exclusive):
        for label, trial in suite.trials():
            if trial.id not in trials:  # two suites may have a trial in common: it is run as the stricter asks
                trials[trial.id] = (suite, label, trial)
                groups[trial.sharing_key].append(trial.id)
    units = []
    for key, members in groups.items():
        if len(members) > 1:
            suite, _, trial = trials[members[0]]
            name = f"first cycle of {len(members)} methods ({trial.training.name})"
            fitting = trial.fitting_images(facts[suite.name].num_train)
            first = trial.training_images()[:1], fitting[:1]
            units.append(Unit(trial, suite.name, name, suite.exclusive, True, None, *first))
        for member in members:
            suite, label, trial = trials[member]
            after = key if len(members) > 1 else None
            training, fitting = trial.training_images(), trial.fitting_images(facts[suite.name].num_train)
            if after:
                training[0] = fitting[0] = 0
            auxiliary = [sum(both) for both in zip(fitting, trial.preparation_images(), strict=True)]
            units.append(Unit(trial, suite.name, label, suite.exclusive, False, after, training, auxiliary))
    units.sort(key=lambda unit: (not unit.shared, -sum(unit.passes)))
    return Grid(units, facts, skipped)


def _check_size(suite: Suite, facts: Facts) -> None:
    most = suite.protocol.labelled()[-1]
    if most > facts.num_train:
        raise UserError(
            f"{suite.at('protocol')}: asks for {most} labelled images (initial {suite.protocol.initial} + "
            f"{suite.protocol.cycles - 1} x budget {suite.protocol.budget}), but {suite.dataset.name} has "
            f"{facts.num_train} training images"
        )
    crop, padding = suite.recipe.crop_size, suite.recipe.crop_padding
    if crop and any(asked > side + 2 * padding for asked, side in zip(crop, facts.size, strict=True)):
        height, width = facts.size
        raise UserError(
            f"{suite.at('recipe.crop_size')}: must fit into the images of {suite.dataset.name}, {height} x "
            f"{width} pixels{f' and {padding} of padding on each side' if padding else ''}, got {list(crop)}"
        )


SETTINGS = ("dataset", "model", "recipe", "protocol")  # of a suite: equal where trials may share a table


def with_earlier(earlier: dict[str, Any], listed: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest that still lists what earlier runs in its folder did and this one does not (--only).

    Earlier trials stay in a suite's tables only if they were made with its settings and, under the label of one of
    its methods, with that method: a table row never mixes two experiments.
    """
    suites = {suite["name"]: suite for suite in earlier["suites"]}
    for suite in listed["suites"]:
        old = suites.get(suite["name"])
        if old is not None and suite["skipped"] and not old["skipped"]:
            continue  # its data is gone, its results are not
        if old is not None and old["settings"] == suite["settings"]:
            pairs = {**old["pairs"], **suite["pairs"]}
            same = {label for label, pair in old["pairs"].items() if pair == pairs[label]}
            kept = {trial: what for trial, what in old["trials"].items() if what["method"] in same}
            suite["methods"] = list(dict.fromkeys([*old["methods"], *suite["methods"]]))
            suite["seeds"] = sorted({*old["seeds"], *suite["seeds"]})
            suite["trials"] = {**kept, **suite["trials"]}
            suite["pairs"] = pairs
        suites[suite["name"]] = suite
    return {**listed, "suites": list(suites.values())}


def manifest(benchmark: Benchmark, grid: Grid) -> dict[str, Any]:
    """Return run.json: what the report needs to know of a run beside its records."""
    suites = []
    for suite in benchmark.suites:
        protocol, recipe = suite.protocol, suite.recipe
        candidates = f"subset of {protocol.candidates}" if protocol.candidates else "whole pool"
        start = {"warm": "warm start", "fresh": "fresh weights each cycle"}[protocol.start]
        suites.append(
            {
                "name": suite.name,
                "title": suite.title,
                "settings": {k: v for k, v in suite.written().items() if k in SETTINGS},
                "dataset": suite.dataset.name,
                "model": suite.model.name,
                "recipe": f"{suite.model.name}, {recipe.epochs} epochs, batch {recipe.batch_size}, "
                f"{recipe.precision}, {start}, {candidates}",
                "methods": list(suite.methods),
                "seeds": suite.seeds,
                "labelled": protocol.labelled(),
                "exclusive": suite.exclusive,
                "skipped": grid.skipped.get(suite.name),
                "pairs": suite.written()["methods"],
                "trials": {t.id: {"method": label, "seed": t.seed} for label, t in suite.trials()},
            }
        )
    return {"name": benchmark.name, "suites": suites}

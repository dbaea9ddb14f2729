"""The manifest of a run, run.json: its suites and trials, finished or not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from harness.errors import UNPRINTABLE, UserError, printable, reason
from harness.messages import sentence
from harness.results import disk
from harness.results.records import SCHEMA_VERSION
from harness.settings import Protocol, Recipe

MOST_BYTES = 200_000_000  # of run.json


DEFAULT_TRAINING = "cross_entropy"
"""The training of a method that names an acquisition only."""

UNUSED_ACQUISITION = "random"
"""The acquisition that looks at no image; also that of a trial that has all labels, and selects nothing."""

FOLDER = re.compile(r"(trials|shared)/(?!\.\.?$)[^/\0\ud800-\udfff]{1,255}")


CHECKED: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "recipe": (Recipe, {"epochs": 10**6}),
    "protocol": (Protocol, {"initial": 2, "budget": 1, "cycles": 1, "start": "fresh"}),
}
"""Settings of a suite whose values are checked, with those that a config must have; other versions may have others."""


class NoManifest(UserError):
    """A folder has no run.json, or its run.json can't be read."""


def full_data_row(pool: int | None) -> str:
    """Return the name of the row of the trials on all training images, ``pool`` of them."""
    return f"all {pool} images"


class TrialEntry(BaseModel):
    """The method and the seed of a trial."""

    model_config = ConfigDict(frozen=True)

    method: str = Field(description="name of the method in the config")
    seed: int = Field(ge=0, description="seed of the trial")


class SuiteEntry(BaseModel):
    """A suite as planned, i.e. with all of its trials, finished or not."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="name of the suite in the config")
    title: str = Field(description="title in reports")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="what decides results and differs from the defaults in dataset, model, recipe and protocol"
    )
    dataset: str = Field(description="name of the dataset")
    model: str = Field(description="name of the target network")
    recipe: str = Field(description="model, recipe and protocol in words, for captions")
    methods: list[str] = Field(description="names of the methods, in the order of the tables")
    halves: dict[str, dict[str, Any]] = Field({}, description="name of the method -> its training and its acquisition")
    seeds: list[NonNegativeInt] = Field(description="seeds of each method")
    labelled: list[NonNegativeInt] = Field(description="number of labelled images in each cycle")
    pool: NonNegativeInt | None = Field(
        None, description="number of training images; null: not known, or the suite is skipped"
    )
    exclusive: bool = Field(False, description="whether trials ran one per device at a time")
    primary: list[str] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="names of the method and the reference of the suite's primary comparison",
    )
    equal_within: float | None = Field(
        None, gt=0, description="difference in points of AUBC within which methods count as equal; null: none does"
    )
    full_data: dict[str, int] = Field({}, description="id of each trial on all training images -> its seed")
    skipped: str | None = Field(None, description="why the suite is skipped; null: it is not")
    data_notes: list[str] = Field(
        [], description="what a user must know of the data, such as files that were left out: a sentence each"
    )
    official_data: bool = Field(
        False, description="whether the dataset's files are the published ones, by their published checksums"
    )
    trials: dict[str, TrialEntry] = Field(description="id of the trial -> its method and seed")
    code: dict[str, dict[str, str]] = Field(
        {},
        description="for readers: name of the method -> part -> hash of the code at the last start that computed "
        "something of it; see `code` of a record",
    )

    def every_trial(self) -> dict[str, tuple[TrialEntry, int]]:
        """Return id -> (row and seed, number of cycles) of all trials, with those on all training images."""
        row = full_data_row(self.pool)
        return {trial: (entry, len(self.labelled)) for trial, entry in self.trials.items()} | {
            trial: (TrialEntry(method=row, seed=seed), 1) for trial, seed in self.full_data.items()
        }


class Manifest(BaseModel):
    """The manifest of a run."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(1, description="version of the schema of run.json and records")
    name: str = Field(description="name of the run: that of its config")
    suites: list[SuiteEntry] = Field(description="all suites, in the order of the config")
    folders: dict[str, str] = Field(
        {}, description="'trials/ID' or 'shared/KEY' -> its folder, if an earlier schema version gave it another name"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, values: Any) -> Any:
        """Return the values of run.json with current names: the halves of a suite were called pairs."""
        suites = values.get("suites") if isinstance(values, dict) else None
        for suite in suites if isinstance(suites, list) else ():
            if isinstance(suite, dict) and "pairs" in suite:
                suite.setdefault("halves", suite.pop("pairs"))
        return values

    @classmethod
    def read(cls, run_dir: Path) -> Manifest:
        """Return RUN_DIR/run.json, of this or an earlier schema version.

        Raises NoManifest if it is missing or invalid, UserError if its schema version is newer, and StorageError.
        """
        path = run_dir / "run.json"
        with disk.answering(path, "read"):
            try:
                data = disk.read(path, MOST_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise NoManifest(f"{run_dir}: not the results folder of a run: it has no run.json") from error
            except IsADirectoryError as error:
                raise NoManifest(f"{path}: not the manifest of a run: {reason(error)}") from error
        try:
            if len(data) > MOST_BYTES:
                raise NoManifest(f"{path}: not the manifest of a run: it has more than {MOST_BYTES} bytes")
            values = json.loads(data.decode())
        except RecursionError:
            raise NoManifest(f"{path}: not the manifest of a run: its values are nested too deeply") from None
        except UnicodeDecodeError as error:
            raise NoManifest(f"{path}: not valid JSON: not UTF-8 ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise NoManifest(f"{path}: not valid JSON: {error}") from error
        except ValueError:
            raise NoManifest(f"{path}: not the manifest of a run: a number has too many digits") from None
        if not isinstance(values, dict):
            raise NoManifest(f"{path}: not the manifest of a run: it must be a mapping")
        version = values.get("schema_version", 1)
        if isinstance(version, int) and version < 1:
            raise NoManifest(f"{path}: not the manifest of a run: schema_version: must be at least 1, got {version:d}")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version {version} is from a newer harness; this one reads 1 to {SCHEMA_VERSION}"
            )
        try:
            manifest = cls.model_validate(values, strict=True)
        except ValidationError as error:
            keys, problem = sentence(cls, error.errors()[0])
            raise NoManifest(f"{path}: not the manifest of a run: {'.'.join(map(str, keys)):.300}: {problem}") from None
        for number, suite in enumerate(manifest.suites):
            for part, (kind, needed) in CHECKED.items():
                known = {key: v for key, v in suite.settings.get(part, {}).items() if key in kind.model_fields}
                try:  # as JSON, like a config
                    kind.model_validate_json(json.dumps({**needed, **known}), strict=True)
                except ValidationError as error:
                    keys, problem = sentence(kind, error.errors()[0])
                    at = ".".join(map(str, ("suites", number, "settings", part, *keys)))
                    raise NoManifest(f"{path}: not the manifest of a run: {at:.300}: {problem}") from None
        for name in (*manifest.folders.keys(), *manifest.folders.values()):
            if not FOLDER.fullmatch(name):  # a run writes there
                raise NoManifest(
                    f"{path}: not the manifest of a run: folders: {name!r:.100} is not trials/ID or shared/KEY"
                )
        names = [suite.name for suite in manifest.suites]
        if twice := [name for name in names if names.count(name) > 1]:
            raise NoManifest(f"{path}: not the manifest of a run: the suite {twice[0]!r:.100} occurs twice")
        for suite in manifest.suites:
            for trial in (*suite.trials, *suite.full_data):
                if not FOLDER.fullmatch(f"trials/{trial}") or UNPRINTABLE.search(trial):
                    raise NoManifest(f"{path}: not the manifest of a run: {trial!r:.100} is not the id of a trial")
            if unknown := {entry.method for entry in suite.trials.values()} - {*suite.methods}:
                problem = f"a trial of suite {suite.name!r} has the unknown method {min(unknown)!r}"
                raise NoManifest(f"{path}: not the manifest of a run: {problem}")
        return manifest

    def readable(self) -> Manifest:
        """Return the manifest with texts that can be printed, for reports."""
        return type(self).model_validate(printable(self.model_dump()))

    def packed(self) -> bytes:
        """Return the bytes of run.json."""
        return self.model_dump_json(indent=2).encode()

    def with_earlier(self, earlier: Manifest, running: Collection[tuple[str, str]] | None = None) -> Manifest:
        """Return this manifest with the suites and trials that earlier runs in the same folder added (see --only).

        Earlier trials of a suite are kept only if its settings are unchanged and their method's name still stands for
        the same method, so that no row of a table mixes two experiments. ``running``: (suite, method) of which anything
        is left to compute; None: all.
        """
        suites = {suite.name: suite for suite in earlier.suites}
        for suite in self.suites:
            old = suites.get(suite.name)
            if old is None:
                suites[suite.name] = suite
            elif suite.skipped and not old.skipped:
                continue  # keep the earlier results although the data is missing now
            elif old.settings == suite.settings:
                idle = {m for m in suite.code if running is not None and (suite.name, m) not in running}
                suites[suite.name] = _merged(old, suite, idle)
            else:
                suites[suite.name] = suite
        folders = {**earlier.folders, **self.folders}
        return self.model_copy(update={"suites": list(suites.values()), "folders": folders})


def _merged(old: SuiteEntry, new: SuiteEntry, idle: Collection[str]) -> SuiteEntry:
    """Return the suite ``new`` with the trials of ``old`` whose methods did not change; idle ones keep their code."""
    halves = {**old.halves, **new.halves}
    unchanged = {name for name, pair in old.halves.items() if pair == halves[name]}
    kept = {trial: entry for trial, entry in old.trials.items() if entry.method in unchanged} | new.trials
    renamed = {*_renamed(old, new)} - {*new.methods}
    again = {*new.full_data.values()}
    return new.model_copy(
        update={
            "methods": [name for name in dict.fromkeys([*old.methods, *new.methods]) if name not in renamed],
            "halves": halves,
            "seeds": sorted({*old.seeds, *new.seeds}),
            "code": {**old.code, **new.code, **{m: old.code[m] for m in idle if m in old.code}},
            "full_data": {t: seed for t, seed in old.full_data.items() if seed not in again} | new.full_data,
            "trials": kept,
        }
    )


def _renamed(old: SuiteEntry, new: SuiteEntry) -> dict[str, str]:
    """Return the new name of each method that no longer has any of its trials, because all have another name now."""
    names: dict[str, set[str | None]] = {}
    for trial, entry in old.trials.items():
        now = new.trials.get(trial)
        names.setdefault(entry.method, set()).add(now.method if now else None)
    return {was: str(*now) for was, now in names.items() if len(now) == 1 and now.isdisjoint({was, None})}


SHOWN = 5
"""Rows that a sentence names."""


def leaving(earlier: Manifest, merged: Manifest) -> list[str]:
    """Return a sentence for each suite of which trials leave the tables, with what changed.

    ``merged``: the manifest that replaces ``earlier``; see ``with_earlier``.
    """
    after = {suite.name: suite for suite in merged.suites}
    sentences = []
    for old in earlier.suites:
        new = after[old.name]
        gone = [entry.method for trial, entry in old.trials.items() if trial not in new.trials]
        changed = changes(old.settings, new.settings)
        for method in [method for method in old.methods if method in new.halves]:
            changed += [f"{method}: {change}" for change in changes(old.halves[method], new.halves[method])]
        if gone:
            trials = "1 trial leaves" if len(gone) == 1 else f"{len(gone)} trials leave"
            rows = [*dict.fromkeys(gone)]
            named = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
            sentences.append(f"suite {old.name}: {trials} its tables ({named}), because {'; '.join(changed)}")
        renamed = _renamed(old, new)
        moved = Counter((e.method, new.trials[t].method) for t, e in old.trials.items() if t in new.trials)
        for (was, now), count in moved.items():
            if was in renamed:
                sentences.append(f"suite {old.name}: the row {was} is now called {now}; its trials are the same")
            elif was != now:
                trials = "1 trial" if count == 1 else f"{count} trials"
                sentences.append(f"suite {old.name}: {trials} of the row {was} went to the row {now}, the same method")
        if len(old.labelled) > len(new.labelled):
            lost = f"its tables end after {new.labelled[-1]} labelled images, before {old.labelled[-1]}"
            sentences.append(f"suite {old.name}: {lost}; the records of later cycles are kept")
    return sentences


def changes(old: dict[str, Any], new: dict[str, Any], words: str = "was {}, now {}", path: str = "") -> list[str]:
    """Return, for example, 'recipe.epochs was 2, now 3' for each value that differs between two nested mappings."""
    found = []
    for key in {**old, **new}:
        was, now = old.get(key, "the default"), new.get(key, "the default")
        if isinstance(was, dict) and isinstance(now, dict):
            found += changes(was, now, words, f"{path}{key}.")
        elif was != now:
            found.append(f"{path}{key} {words.format(was, now)}")
    return found

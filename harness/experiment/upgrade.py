"""Reads runs of earlier schema versions: maps the current ids of their trials to the folders that hold the results.

In version 1, a trial's id was a hash of all its settings, including defaults, and a method with its own training had
one set of settings for training and acquisition. In version 2, the id depended on the number of cycles. Of such a run's
folder, only run.json is rewritten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import registry
from harness.config.suite import DEFAULT_TRAINING, Benchmark, Trial
from harness.data.dataset import Dataset
from harness.errors import UserError, readable
from harness.experiment.grid import HALVES, SETTINGS
from harness.learning.contract import Acquisition, Training
from harness.networks import names
from harness.results.manifest import Manifest, NoManifest, SuiteEntry, TrialEntry
from harness.results.records import SCHEMA_VERSION
from harness.results.store import RunStore, names_in
from harness.settings import PluginSpec, Protocol, Recipe

SHOWN = 6  # trials that a sentence names


def open_run(folder: Path) -> tuple[Manifest | None, RunStore]:
    """Return the manifest of the run in a folder, with current ids, or None if there is none, and the store."""
    try:
        earlier = upgraded(Manifest.read(folder), folder)
    except NoManifest:
        return None, RunStore(folder, {})
    return earlier, RunStore(folder, earlier.folders)


def lost(benchmark: Benchmark, full: Iterable[str]) -> list[str]:
    """Return what a run says of a damaged run.json in its results folder, and of the trials that only that file named.

    ``full``: ids of the trials of the config on all training images. Empty if there is no run.json, or an intact one.
    """
    output = benchmark.output
    earlier, store = open_run(output)
    if earlier is not None or not (output / "run.json").exists():
        return []
    sentences = [f"{output / 'run.json'} is damaged: it is written again, with the suites of this config alone"]
    own = {*(trial.id for suite in benchmark.suites for _, trial in suite.trials()), *full}
    others = sorted({*names_in(output / "trials")} - own)
    first = [records[0] for name in others if (records := store.trial(name).records())]
    if first:
        shown = ", ".join(readable(f"{r.suite} / {r.method} / seed {r.seed}") for r in first[:SHOWN])
        more = f" and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
        leave = (
            "1 trial that this config does not name leaves"
            if len(first) == 1
            else (f"{len(first)} trials that this config does not name leave")
        )
        sentences.append(f"{leave} the tables, and keep{'s' * (len(first) == 1)} the files: {shown}{more}")
    return sentences


def upgraded(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest of a run's folder in the current schema version: current ids and their folders."""
    if manifest.schema_version >= SCHEMA_VERSION:
        return manifest
    folders: dict[str, str] = dict(manifest.folders)
    suites = list(manifest.suites)
    for suite in sorted(manifest.suites, key=lambda suite: len(suite.labelled)):  # the longest of equal trials is kept
        ids: dict[str, TrialEntry] = {}
        halves, settings = dict(suite.halves), suite.settings
        for name, entry in suite.trials.items():
            try:
                trial = _trial(suite, entry)
                assert trial.id not in ids, "another trial that differs only in a setting that no longer counts"
                shared = trial.sharing_key_in_version_2()
                if manifest.schema_version == 1:
                    shared = _sharing_key(suite, entry, trial.draws_first())
            except (UserError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
                ids[name] = (
                    entry  # such a trial, or one whose plug-in no longer exists, is reported but can't be resumed
                )
                continue
            ids[trial.id] = entry
            earlier = {f"trials/{trial.id}": f"trials/{name}", f"shared/{trial.sharing_key}": f"shared/{shared}"}
            for current, old in earlier.items():  # a run of version 2 may itself have begun in version 1
                old = manifest.folders.get(old, old)
                if (folder / old).is_dir():
                    folders[current] = old
            spec = trial.spec()
            halves[entry.method] = {half: spec[half] for half in HALVES}
            settings = {key: spec[key] for key in SETTINGS}
        upgraded = suite.model_copy(update={"trials": ids, "halves": halves, "settings": settings})
        suites[manifest.suites.index(suite)] = upgraded
    return manifest.model_copy(update={"schema_version": SCHEMA_VERSION, "suites": suites, "folders": folders})


def _trial(suite: SuiteEntry, entry: TrialEntry) -> Trial:
    """Return the trial of an entry of a version 1 suite, with current plug-ins and settings."""
    settings, halves = suite.settings, suite.halves[entry.method]
    training = halves["training"]
    if halves["training"] == halves["acquisition"] and not registry.find("methods", training["name"], Training):
        training = {"name": DEFAULT_TRAINING}  # the method was one plug-in and is now an acquisition only
    return Trial(
        dataset=_plugin("datasets", settings["dataset"], Dataset),
        model=_network(settings["model"]),
        recipe=Recipe(**settings["recipe"]),
        protocol=Protocol(**settings["protocol"]),
        training=_plugin("methods", training, Training),
        acquisition=_plugin("methods", halves["acquisition"], Acquisition),
        seed=entry.seed,
    )


def _network(written: dict[str, Any]) -> PluginSpec:
    """Return a network with the settings that it has; in version 1, every network had the keys of all."""
    settings_class = names.architecture(written["name"]).Settings
    settings = {key: value for key, value in written.items() if key in settings_class.model_fields}
    return PluginSpec(written["name"], settings_class(**settings))


def _plugin(folder: str, written: dict[str, Any], contract: type[Any]) -> PluginSpec:
    """Return a plug-in under its current name, with the settings that its class for ``contract`` has."""
    name = written["name"]
    if name not in registry.names(folder):
        name = registry.now_called(folder, name) or name
    plugin = registry.find(folder, name, contract)
    assert plugin is not None
    settings_class: Any = plugin.Settings
    settings = {key: value for key, value in written.items() if key in settings_class.model_fields}
    return PluginSpec(name, settings_class(**settings))


def _sharing_key(suite: SuiteEntry, entry: TrialEntry, draws_first: bool) -> str:
    """Return the sharing key of a trial as computed in version 1."""
    settings, halves = suite.settings, suite.halves[entry.method]
    spec = {
        "dataset": settings["dataset"],
        "model": {key: value for key, value in settings["model"].items() if key != "weights"},
        "recipe": settings["recipe"],
        "protocol": {key: settings["protocol"][key] for key in ("initial", "initial_set", "candidates")},
        "training": halves["training"],
        "seed": entry.seed,
    }
    if draws_first:
        spec["acquisition"] = halves["acquisition"]
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    names = settings["dataset"]["name"], settings["model"]["name"], halves["training"]["name"]
    return f"{'.'.join(names)}.s{entry.seed}.{digest}".replace("/", "_")

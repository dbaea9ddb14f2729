"""Runs that an earlier version stored, and the ids of trials, survive every change of the code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness import registry, run
from harness.config.load import load_config
from harness.config.suite import decisive
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.experiment.grid import expand
from harness.experiment.upgrade import open_run
from harness.learning.contract import Acquisition, Training
from harness.networks.architecture import Architecture
from harness.networks.timm_model import TimmModel
from harness.report.write import read, write
from harness.results.manifest import Manifest
from harness.results.records import SCHEMA_VERSION
from harness.settings import Protocol, Recipe, is_inert

STORED = Path(__file__).parent / "stored"
VERSIONS = sorted(path.name for path in STORED.glob("version*") if path.is_dir())
DEFAULTS = STORED / "defaults.json"
"""The default of every key that may be part of a trial's id, by schema version 2."""


def config_of(folder: Path) -> Path:
    """Write the config that the stored runs were made from, in today's words, for a folder."""
    values = yaml.safe_load((STORED / "stored.yaml").read_text())
    values["where"]["output"] = str(folder)
    path = folder.parent / "stored.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def copy_of(version: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / version, tmp_path / version))


def cycle_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json") if "cycle_" in path.name
    }


def test_there_is_a_stored_run_of_every_schema_version() -> None:
    expected = [f"version{number}" for number in range(1, SCHEMA_VERSION + 1)]
    assert expected == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stored_run_is_reported(version: str, tmp_path: Path) -> None:
    folder = copy_of(version, tmp_path)
    text = write(folder)
    assert "1 of 8 trials and 15 of 24 cycles finished" in text
    name, suites = read(folder)
    assert name == "stored"
    for record in suites[0][1]:
        assert record.metrics["accuracy"] >= 0 and record.seconds["train"] > 0
        assert len(record.selected) == (0 if record.cycle == 2 else 10)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stored_run_is_resumed_and_not_retrained(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(version, tmp_path)
    config, before = config_of(folder), cycle_files(folder)
    fitted: list[tuple[str, int, dict[str, torch.Tensor]]] = []
    for name in registry.names("methods"):
        training = registry.find("methods", name, Training)
        if training is not None and "fit" in vars(training):
            monkeypatch.setattr(training, "fit", spied(training.fit, name, fitted))
    monkeypatch.setattr(Training, "fit", spied(Training.fit, "", fitted))
    if version in ("version1", "version2"):
        assert run.main([str(config), "--resume"]) == 2, "they do not say which code computed their cycles"
        assert cycle_files(folder) == before
    assert run.main([str(config), "--resume", "--accept-changes"]) == 0
    after = cycle_files(folder)
    assert all(after[path] == content for path, content in before.items()), "no finished cycle is written again"
    earlier, store = open_run(folder)
    assert earlier is not None and earlier.schema_version == SCHEMA_VERSION
    units = expand(load_config(config)).units
    trials = {unit.method: unit.trial for unit in units if not unit.shared}
    assert len(trials) == 8 and all(len(store.trial(trial.id).records()) == 3 for trial in trials.values())
    # LC begins with the stored shared first cycle; the six others go on with their last cycle
    assert sorted({number for _, number, _ in fitted}) == [1, 2], "no first cycle is trained"
    assert store.trial(trials["LC"].id).records()[0].shared_from == trials["LC"].sharing_key
    (weights,) = (weights for name, number, weights in fitted if name == "ll4al" and number == 2)
    (state,) = (STORED / version).glob("trials/*ll4al*/state_001.pt")
    stored = torch.load(state, weights_only=True)["network"]
    assert all(torch.equal(weights[key], stored[key]) for key in stored), "training goes on from the stored weights"
    assert "8 of 8 trials and 24 of 24 cycles finished" in write(folder)
    assert Manifest.read(folder).schema_version == SCHEMA_VERSION


def test_the_resolved_config_of_an_earlier_version_is_read() -> None:
    """It has width and output_stride for every network, as null where they meant nothing."""
    earlier = load_config(STORED / "version2" / "config.yaml")
    written = (STORED / "version2" / "config.yaml").read_text()
    assert "output_stride: null" in written and "output_stride" not in earlier.written()
    upgraded, _ = open_run(STORED / "version2")
    assert upgraded is not None
    assert {trial.id for _, trial in earlier.suites[0].trials()} == set(upgraded.suites[0].trials)


def spied(fit: Any, name: str, seen: list[Any]) -> Any:
    """Return ``fit`` that also keeps the cycle's number and the weights that it starts from."""

    def spy(self: Any, cycle: Any) -> float:
        seen.append((name, cycle.number, {k: v.clone() for k, v in cycle.network.state_dict().items()}))
        return float(fit(self, cycle))

    return spy


def test_a_stored_run_is_planned_with_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of("version1", tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run.main([str(config_of(folder)), "--plan"]) == 0
    assert "with 15 finished cycles" in " ".join(capsys.readouterr().out.split())
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, "a plan writes nothing"


def test_a_run_that_stopped_in_a_shared_first_cycle_is_resumed(tmp_path: Path) -> None:
    folder = copy_of("version1", tmp_path)
    for path in folder.glob("shared/*/*_000.*"):
        path.unlink()
    for trial in folder.glob("trials/*plain*"):
        shutil.rmtree(trial)
    assert run.main([str(config_of(folder)), "--resume", "--accept-changes", "--only", "method=LC,Ran"]) == 0


def test_a_trial_whose_plug_in_is_gone_is_reported_and_left_alone(tmp_path: Path) -> None:
    folder = copy_of("version1", tmp_path)
    text = (folder / "run.json").read_text().replace('"core_set"', '"gone"')
    (folder / "run.json").write_text(text)
    earlier, _ = open_run(folder)
    assert earlier is not None
    names = {trial for trial, entry in earlier.suites[0].trials.items() if entry.method == "Core-set"}
    assert names == {"digits.resnet_small.plain-core_set.s0.ef508cfe"}


def test_a_later_schema_version_is_refused(tmp_path: Path) -> None:
    folder = copy_of("version1", tmp_path)
    manifest = json.loads((folder / "run.json").read_text()) | {"schema_version": SCHEMA_VERSION + 1}
    (folder / "run.json").write_text(json.dumps(manifest))
    message = r"run.json: schema_version \d+ is from a newer harness; this one reads 1 to"
    for work in (read, open_run):
        with pytest.raises(UserError, match=message):
            work(folder)
    assert run.main([str(config_of(folder)), "--resume"]) == 2


def settings_classes() -> dict[str, Any]:
    """Return every class whose keys decide a trial, by a name of its own."""
    classes: dict[str, Any] = {"networks/timm": TimmModel.Settings, "recipe": Recipe, "protocol": Protocol}
    kinds = {"methods": (Training, Acquisition), "datasets": (Dataset,), "networks": (Architecture,)}
    for folder, contracts in kinds.items():
        for name in registry.names(folder):
            for contract in contracts:
                plugin: Any = registry.find(folder, name, contract)
                if plugin is not None:
                    classes[f"{folder}/{name}/{contract.__name__.lower()}"] = plugin.Settings
    return classes


def defaults() -> dict[str, dict[str, Any]]:
    """Return the default of every key that has one and decides results."""
    return {
        name: {
            key: json.loads(json.dumps(field.get_default(), default=str))
            for key, field in cls.model_fields.items()
            if not field.is_required() and not is_inert(cls, key)
        }
        for name, cls in settings_classes().items()
    }


def test_no_default_changes_within_a_schema_version() -> None:
    """A trial's id leaves defaults out, so another default would give another experiment the same id.

    A new key with a default is fine; write it into the file: python tests/test_stored.py
    """
    kept = json.loads(DEFAULTS.read_text())
    today = defaults()
    for name, values in kept.items():
        assert values.items() <= today[name].items(), f"{name}: a default changed: raise SCHEMA_VERSION"
    missing = {name: values.keys() - kept.get(name, {}).keys() for name, values in today.items()}
    assert not any(missing.values()), f"new keys, run python tests/test_stored.py: {missing}"


def test_a_key_added_later_changes_no_id() -> None:
    class Later(Recipe):
        added: int = 3

    recipe = Recipe(epochs=2, momentum=0.9, flip=False)
    assert decisive(recipe) == decisive(Later(**recipe.model_dump())) == {"epochs": 2, "flip": False}
    assert decisive(Later(epochs=2, added=4)) == {"epochs": 2, "added": 4}


if __name__ == "__main__":
    DEFAULTS.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")

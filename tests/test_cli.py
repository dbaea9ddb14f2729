"""The command line: one sentence for every mistake; --plan, --schema, run.json, the display, and small runs."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from harness import registry, run
from harness.config.load import load_config
from harness.config.only import only
from harness.config.source import Source
from harness.config.suite import Benchmark
from harness.errors import DataMissing, UserError
from harness.experiment import display, grid, runner
from harness.experiment.grid import Unit
from harness.learning.contract import Acquisition, Training
from harness.registry import ROOT
from harness.results.manifest import Manifest
from harness.results.progress import Progress
from harness.results.records import SCHEMA_VERSION, CycleRecord
from harness.results.store import RunStore
from harness.settings import Where

HEAVY = ["torch", "timm", "ray", "pandas", "sklearn", "torchvision", "matplotlib"]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

# lines count from 1: dataset 1, model 2, recipe 3 .. 6, protocol 7 .. 12, methods 13 .. 17, seeds 18, where 19 .. 20
VALID = """\
dataset: digits
model: {name: resnet_small, width: 4}
recipe:
  epochs: 2
  batch_size: 50
  milestones: [1]
protocol:
  initial: 20
  budget: 10
  cycles: 3
  candidates: 100
  start: warm
methods:
  Ran: random
  LC: least_confidence
  Ran+: {acquisition: random, training: isda}
  DAST: {acquisition: epmcm, training: isda}
seeds: [0, 1]
where:
  trials: in_process
"""

# lines: model 1, recipe 2, protocol 3, methods 4, seeds 5, suites 6, a 7, b 8 .. 11
SUITES = """\
model: {name: resnet_small, width: 4}
recipe: {epochs: 3}
protocol: {initial: 20, budget: 10, cycles: 3, start: warm}
methods: {Ran: random}
seeds: [0]
suites:
  a: {dataset: digits}
  b:
    recipe:
      batch_size: 5
    dataset: {name: digits, limit: 100}
where: {trials: in_process}
"""

ACQUISITIONS = "allowed: " + ", ".join(n for n in registry.names("methods") if registry.find("methods", n, Acquisition))
TRAININGS = "allowed: " + ", ".join(n for n in registry.names("methods") if registry.find("methods", n, Training))
KEYS = [
    "dataset",
    "exclusive",
    "full_data",
    "methods",
    "model",
    "on_request",
    "optional",
    "plugins",
    "protocol",
    "recipe",
    "seeds",
]
TOP_LEVEL = f"allowed: {', '.join(sorted([*KEYS, 'equal_within', 'primary', 'suites', 'title', 'where']))}"
EMPTY = "a config is a mapping of keys (dataset, model, recipe, ...), "
NO_CHANGE = ("", "")
DAST = "DAST: {acquisition: epmcm, training: isda}"
RAN = "Ran+: {acquisition: random, training: isda}"
SMALL = "name: resnet_small, width: 4"
STREETS = VALID.replace("dataset: digits", "dataset: {name: scenes, train: 60}").replace("resnet_small", "drn_small")
"""A config for label maps, with the lines of VALID."""

Change = str | tuple[str, str]
"""A whole config, or (a part of VALID, what to write in its place)."""

# name -> (change, command line after the config, the sentence or its beginning)
MISTAKES: dict[str, tuple[Change, list[str], str]] = {
    # YAML
    "not yaml": (("epochs: 2", "epochs: : 2"), [], "c.yaml:4: not valid YAML: mapping values are not allowed here"),
    "tab": (("  epochs: 2", "\tepochs: 2"), [], "c.yaml:4: not valid YAML: found character '\\t' that cannot start"),
    "control": (("epochs: 2", "epochs: \x01"), [], "c.yaml:4: not valid YAML: special characters are not allowed"),
    "date": (("digits", "2020-13-45"), [], "c.yaml:1: dataset: '2020-13-45' can't be read: month must be in 1..12"),
    "alias of itself": ("recipe: &a\n  b: *a\n", [], "c.yaml:2: not valid YAML: values are nested too deeply"),
    "two documents": ("a: 1\n---\nb: 2\n", [], "c.yaml:2: not valid YAML: expected a single document in the stream"),
    "empty": ("# nothing\n", [], f"c.yaml:1: {EMPTY}the file is empty"),
    "list": ("- 1\n- 2\n", [], f"c.yaml:1: {EMPTY}got [1, 2]"),
    "text": ("hello\n", [], f"c.yaml:1: {EMPTY}got 'hello'"),
    "list as key": (("epochs: 2", "[a, b]: 2"), [], "c.yaml:4: a key must be a single word, got a list or a mapping"),
    "twice": (("epochs: 2", "epochs: 2\n  epochs: 3"), [], "c.yaml:5: recipe.epochs: this key appears twice"),
    # keys
    "key": (("seeds:", "seed:"), [], f"c.yaml:18: seed: unknown key 'seed'; did you mean 'seeds'? {TOP_LEVEL}"),
    "nested key": (
        ("epochs: 2", "epochz: 2"),
        [],
        "c.yaml:4: recipe.epochz: unknown key 'epochz'; did you mean 'epochs'? allowed: batch_size, center_crop, comp",
    ),
    "where key": (("trials:", "trails:"), [], "c.yaml:20: where.trails: unknown key 'trails'; did you mean 'trials'?"),
    "missing key": (("  start: warm\n", ""), [], "c.yaml:7: protocol.start: this key is required"),
    "missing part": (("seeds: [0, 1]\n", ""), [], "c.yaml:1: seeds: this key is required"),
    # values
    "type": (("epochs: 2", "epochs: many"), [], "c.yaml:4: recipe.epochs: must be a whole number, got 'many'"),
    "true": (("epochs: 2", "epochs: yes"), [], "c.yaml:4: recipe.epochs: must be a whole number, got true"),
    "half": (("epochs: 2", "epochs: 2.5"), [], "c.yaml:4: recipe.epochs: must be a whole number, got 2.5"),
    "negative": (("epochs: 2", "epochs: -2"), [], "c.yaml:4: recipe.epochs: must be above 0, got -2"),
    "null": (("epochs: 2", "epochs:"), [], "c.yaml:4: recipe.epochs: must be a whole number, got null"),
    "nan": (
        ("batch_size: 50", "learning_rate: .nan"),
        [],
        "c.yaml:5: recipe.learning_rate: must be a finite number, got NaN",
    ),
    "literal": (
        ("start: warm", "start: warn"),
        [],
        "c.yaml:12: protocol.start: 'warn' is not allowed; did you mean 'warm'? allowed: fresh, warm",
    ),
    "model": ((f"{{{SMALL}}}", "[resnet_small]"), [], "c.yaml:2: model: must be a name or a mapping with a name, got"),
    "model's name": ((f"{{{SMALL}}}", "resnet_smal"), [], "c.yaml:2: model: unknown network 'resnet_smal'; did you"),
    "milestones": (
        ("[1]", "[1, 2]"),
        [],
        "c.yaml:6: recipe.milestones: must ascend and stay below epochs (2), got [1, 2]",
    ),
    "milestones, epochs": (
        NO_CHANGE,
        ["recipe.epochs=1"],
        "c.yaml:6: recipe.milestones: must ascend and stay below epochs (1), got [1]",
    ),
    "candidates": (
        ("candidates: 100", "candidates: 5"),
        [],
        "c.yaml:11: protocol.candidates: must be at least budget (10), got 5",
    ),
    "seeds": (("[0, 1]", "[0, 1, 0]"), [], "c.yaml:18: seeds: must differ, got [0, 1, 0]"),
    "no seeds": (("[0, 1]", "[]"), [], "c.yaml:18: seeds: must be at least 1 long, got []"),
    "where": (
        ("trials: in_process", "{trials: in_process, scoring: ray_data}"),
        [],
        "c.yaml:19: where: scoring: ray_data needs trials: ray, got trials: in_process",
    ),
    "no GPU for trials": (
        ("trials: in_process", "{device: cpu, gpus_per_trial: 0.5}"),
        [],
        "c.yaml:19: where: gpus_per_trial must be 0 with device: cpu, got 0.5\n",
    ),
    "device": (
        ("trials: in_process", "device: gpu"),
        [],
        "c.yaml:20: where.device: 'gpu' is not allowed; did you mean 'cpu'? allowed: auto, cpu, cuda\n",
    ),
    # plug-ins
    "dataset": (
        ("digits", "digit"),
        [],
        "c.yaml:1: dataset: unknown dataset 'digit'; did you mean 'digits'? allowed: cifar10, cifar100, citysca",
    ),
    "dataset, number": (("digits", "5"), [], "c.yaml:1: dataset: must be a name or a mapping with a name, got 5"),
    "dataset setting": (
        ("digits", "{name: digits, limitt: 3}"),
        [],
        "c.yaml:1: dataset.limitt: unknown key 'limitt'; did you mean 'limit'? allowed: limit, test_limit",
    ),
    "method": (
        ("least_confidence", "least_confidenc"),
        [],
        "c.yaml:15: methods.LC: unknown acquisition 'least_confidenc'; did you mean 'least_confidence'? allowed:",
    ),
    "training": (
        (RAN, RAN.replace("isda", "isdaa")),
        [],
        f"c.yaml:16: methods.Ran+.training: unknown training 'isdaa'; did you mean 'isda'? {TRAININGS}",
    ),
    "half of a pair": (
        (RAN, RAN.replace("training", "trainin")),
        [],
        "c.yaml:16: methods.Ran+.trainin: unknown key 'trainin'; did you mean 'training'? allowed: acquisition, train",
    ),
    "no acquisition": (
        (RAN, "Ran+: {training: isda}"),
        [],
        "c.yaml:16: methods.Ran+.acquisition: this key is required",
    ),
    "method setting": (
        (DAST, DAST.replace("epmcm", "{name: epmcm, statistic: fresh}")),
        [],
        "c.yaml:17: methods.DAST.acquisition.statistic: unknown key 'statistic'; did you mean 'statistics'? allowed:",
    ),
    "method value": (
        (DAST, DAST.replace("isda", "{name: isda, lambda_0: -1}")),
        [],
        "c.yaml:17: methods.DAST.training.lambda_0: must be at least 0, got -1",
    ),
    "no settings": (
        ("LC: least_confidence", "LC: {name: least_confidence, power: 2}"),
        [],
        "c.yaml:15: methods.LC.power: unknown key 'power'; this plug-in has no settings",
    ),
    "not an acquisition": (
        ("LC: least_confidence", "LC: cross_entropy"),
        [],
        f"c.yaml:15: methods.LC: 'cross_entropy' is not an acquisition; {ACQUISITIONS}",
    ),
    "epmcm alone": (
        (DAST, "DAST: epmcm"),
        [],
        "c.yaml:17: methods.DAST: epmcm needs a training with covariance, and cross_entropy has none; "
        "allowed trainings: isda\n",
    ),
    "dropout": (
        ("LC: least_confidence", "LC: mc_dropout"),
        [],
        "c.yaml:15: methods.LC: mc_dropout needs a training with dropout, and cross_entropy has none; "
        "allowed trainings: dropout\n",
    ),
    "half of a method": (
        ("LC: least_confidence", "LC: {acquisition: ll4al, training: isda}"),
        [],
        "c.yaml:15: methods.LC: ll4al needs a training with loss module, and isda has none; allowed trainings: ll4al\n",
    ),
    "renamed": (
        (RAN, RAN.replace("isda", "plain")),
        [],
        "c.yaml:16: methods.Ran+.training: 'plain' is now called 'cross_entropy'\n",
    ),
    "same method": (("LC: least_confidence", "LC: random"), [], "c.yaml:15: methods.LC: is the same method as 'Ran'"),
    "pseudo-labels": (
        STREETS.replace(DAST, DAST.replace("epmcm", "{name: epmcm, pseudo_labels: true}")),
        ["where.shards=2"],
        "c.yaml:17: methods.DAST: epmcm with these settings supports only image labels, but scenes has label maps\n",
    ),
    "pseudo-labels, fresh": (
        (DAST, DAST.replace("epmcm", "{name: epmcm, pseudo_labels: true, statistics: fresh}")),
        [],
        "c.yaml:17: methods.DAST.acquisition: pseudo_labels: true needs statistics: running and form: closed\n",
    ),
    "methods list": (
        re.sub(r"methods:\n(  .*\n)+", "methods: [random]\n", VALID),
        [],
        'c.yaml:13: methods: must be a mapping of keys, got ["random"]',
    ),
    "no methods": (
        re.sub(r"methods:\n(  .*\n)+", "methods: {}\n", VALID),
        [],
        "c.yaml:13: methods: must be at least 1 long, got {}",
    ),
    # networks
    "network": (
        (SMALL, "name: resnet18_cifr"),
        [],
        "c.yaml:2: model.name: unknown network 'resnet18_cifr'; did you mean 'resnet18_cifar'? allowed: drn_c_26, dr",
    ),
    "timm's": ((SMALL, "name: resnet500"), [], "c.yaml:2: model.name: unknown network 'resnet500'; did you mean 'res"),
    "timm's tag": (
        (SMALL, "name: resnet18.a1_in1k"),
        [],
        "c.yaml:2: model.name: unknown network 'resnet18.a1_in1k'; did you mean 'resnet18'? allowed:",
    ),
    "width": (
        (SMALL, "name: resnet18_cifar, width: 8"),
        [],
        "c.yaml:2: model.width: unknown key 'width'; did you mean 'weights'? allowed: initialisation, input_size, we",
    ),
    "odd width": (("width: 4", "width: 5"), [], "c.yaml:2: model.width: must be even, got 5"),
    # suites
    "in the defaults": (
        SUITES.replace("epochs: 3", "epochs: many"),
        [],
        "c.yaml:2: recipe.epochs: must be a whole number, got 'many'",
    ),
    "in a suite": (
        SUITES.replace("batch_size: 5", "batch_size: five"),
        [],
        "c.yaml:10: suites.b.recipe.batch_size: must be a whole number, got 'five'",
    ),
    "missing in a suite": (
        SUITES.replace("    dataset: {name: digits, limit: 100}\n", ""),
        [],
        "c.yaml:8: suites.b.dataset: this key is required",
    ),
    "unknown in a suite": (
        SUITES.replace("    dataset:", "    datase:"),
        [],
        "c.yaml:11: suites.b.datase: unknown key 'datase'; did you mean 'dataset'? allowed: dataset, equal_within, ",
    ),
    "a suite's own methods": (
        SUITES.replace("    recipe:", "    methods: {Ran: {training: isda}}\n    recipe:").replace(
            "{Ran: random}", "{Ran: {acquisition: random}}"
        ),
        [],
        "c.yaml:9: suites.b.methods.Ran.acquisition: this key is required",
    ),
    "suite without keys": (
        SUITES.replace("{dataset: digits}", ""),
        [],
        "c.yaml:7: suites.a: must be a mapping of keys, got null",
    ),
    "suites list": (
        SUITES.split("suites:")[0] + "suites: [a]\n",
        ["recipe.epochs=4"],
        'c.yaml:6: suites: must be a mapping of suite names to suites, got ["a"]',
    ),
    # overrides
    "no equals": (NO_CHANGE, ["recipe.epochs"], "recipe.epochs (command line): an override is written key.path=value"),
    "override key": (
        NO_CHANGE,
        ["recipes.epochs=3"],
        "recipes.epochs=3 (command line): unknown key 'recipes'; did you mean 'recipe'? allowed:",
    ),
    "override nested key": (
        SUITES,
        ["recipe.epochz=3"],
        "recipe.epochz=3 (command line): unknown key 'epochz'; did you mean 'epochs'? allowed:",
    ),
    "override value": (
        SUITES,
        ["recipe.epochs=many"],
        "recipe.epochs=many (command line): must be a whole number, got 'many'",
    ),
    "override mapping": (
        NO_CHANGE,
        ["recipe={epochs: many}"],
        "recipe={epochs: many} (command line): recipe.epochs: must be a whole number, got 'many'",
    ),
    "override YAML": (NO_CHANGE, ["seeds=[1"], "seeds=[1 (command line): not valid YAML: expected ',' or ']'"),
    "through a scalar": (
        NO_CHANGE,
        ["recipe.epochs.x=3"],
        "recipe.epochs.x=3 (command line): recipe.epochs is 2, not a mapping",
    ),
    "override suite": (
        SUITES,
        ["suites.c.recipe.epochs=3"],
        "suites.c.recipe.epochs=3 (command line): unknown suite 'c'; allowed: a, b",
    ),
    "no suites": (
        NO_CHANGE,
        ["suites.a.seeds=[3]"],
        "suites.a.seeds=[3] (command line): unknown suite 'a', the config has no suites",
    ),
    "after an option": (
        NO_CHANGE,
        ["--plan", "recipe.epochs=x"],
        "recipe.epochs=x (command line): must be a whole number, got 'x'",
    ),
    # the rest of the command line
    "option": (NO_CHANGE, ["--plann"], "unknown option '--plann'; did you mean '--plan'? allowed: "),
    "only what": (NO_CHANGE, ["--only", "LC"], "--only LC: write suite=..., dataset=..., method=... or seed=..."),
    "only suite": (SUITES, ["--only", "suite=c"], "--only suite=c: no suite is called 'c'; allowed: a, b"),
    "only dataset": (NO_CHANGE, ["--only", "dataset=x"], "--only dataset=x: no dataset is called 'x'; allowed: digits"),
    "only method": (
        NO_CHANGE,
        ["--only", "method=Ran,LCC"],
        "--only method=Ran,LCC: no method is called 'LCC'; did you mean 'LC'? allowed: DAST, LC, Ran, Ran+",
    ),
    "only seed": (NO_CHANGE, ["--only", "seed=7"], "--only seed=7: no seed is called '7'; allowed: 0, 1"),
    # data and results
    "too many labels": (
        ("cycles: 3", "cycles: 300"),
        [],
        "c.yaml:7: protocol: needs 3010 labelled images (initial 20 + 299 x budget 10), but digits has 1442 train",
    ),
    "too many, overridden": (
        NO_CHANGE,
        ["protocol.cycles=300"],
        "c.yaml:7: protocol (with protocol.cycles=300): needs 3010 labelled images",
    ),
    "images for pixels": (
        ("dataset: digits", "dataset: scenes"),
        [],
        "c.yaml:2: model.name: scenes labels pixels, but resnet_small has one output per image; allowed: drn_c_26, ",
    ),
    "images for pixels, in a suite": (
        SUITES.replace("a: {dataset: digits}", "a: {dataset: scenes}"),
        [],
        "c.yaml:1: model.name: scenes labels pixels, but resnet_small has",
    ),
    "pixels for images": (
        (SMALL, "name: drn_small"),
        [],
        "c.yaml:2: model.name: digits labels images, but this network has one output per position, got drn_small; ",
    ),
    "pixels for images, overridden": (
        NO_CHANGE,
        ["model.name=drn_small"],
        "model.name=drn_small (command line): digits labels images, but this network",
    ),
    "stride for images": (
        (SMALL, "name: resnet18, output_stride: 8"),
        [],
        "c.yaml:2: model.output_stride: digits labels images, but this network has one output per position, got 8; ",
    ),
    "crop": (
        ("epochs: 2", "epochs: 2\n  crop_size: [17, 8]"),
        [],
        "c.yaml:5: recipe.crop_size: must fit into the images of digits, 8 x 8 pixels and 4 of padding on each side, "
        "got [17, 8]\n",
    ),
    "no data": (
        ("dataset: digits", "dataset: cifar10"),
        ["where.data=there"],
        "suite c: CIFAR-10 is not in there: get",
    ),
    "results there": (
        NO_CHANGE,
        ["where.output=used"],
        "where.output: used already holds results; add --resume to continue that run, or where.output=OTHER_FOLDER",
    ),
    "results below a file": (
        NO_CHANGE,
        ["where.output=c.yaml/results"],
        "where.output: c.yaml/results can't be written to: Not a directory",
    ),
}

MANY = """
import contextlib, io, json, pathlib, sys
from harness import run
answers = {}
for name, (text, arguments) in json.load(sys.stdin).items():
    pathlib.Path("c.yaml").write_text(text)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(arguments)
    answers[name] = code, out.getvalue(), err.getvalue(), [m for m in %r if m in sys.modules]
print(json.dumps(answers))
""" % (HEAVY,)  # noqa: UP031 (the code has braces)


def python(*arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HARNESS_DATA"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, input=text, capture_output=True, text=True, env=environment, timeout=120
    )


def changed(change: Change) -> str:
    if isinstance(change, str):
        return change
    assert change[0] in VALID
    return VALID.replace(*change, 1)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line answers to each mistake, all in one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "used").mkdir()
    (folder / "used" / "run.json").write_text("{}")
    asked = {name: (changed(change), ["c.yaml", *rest]) for name, (change, rest, _) in MISTAKES.items()}
    asked["no config"] = (VALID, [])
    asked["no file"] = (VALID, ["nope.yaml"])
    asked["a folder"] = (VALID, ["used"])
    before = sorted(p.name for p in folder.rglob("*"))
    done = python("-c", MANY, cwd=folder, text=json.dumps(asked))
    assert done.returncode == 0, done.stderr
    assert sorted({*before, "c.yaml"}) == sorted(p.name for p in folder.rglob("*")), "a mistake left files behind"
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_immediately(answers: dict[str, Any], name: str) -> None:
    code, out, err, heavy = answers[name]
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {MISTAKES[name][2]}")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert heavy == [], "imported before the answer: seconds of waiting"
    for jargon in ("Input should", "input should", "None", "<class '", "typing", "Error", "valid integer"):
        assert jargon not in err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no config", "error: a config is needed, e.g. quickstart; --help lists the options\n"),
        ("no file", "error: nope.yaml: can't be read: No such file or directory\n"),
        ("a folder", "error: used: is a folder; a config is a YAML file\n"),
    ],
)
def test_a_config_that_is_not_there(answers: dict[str, Any], name: str, sentence: str) -> None:
    assert answers[name] == [2, "", sentence, []]


def test_the_process_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(changed(("epochs: 2", "epochz: 2")))
    done = python("-m", "harness.run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: c.yaml:4: recipe.epochz: ") and done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from harness import run
try:
    run.main(["--help"])
except SystemExit as end:
    assert end.code == 0
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    done = python("-c", code, cwd=tmp_path)
    assert "--resume" in done.stdout and "key.path=value" in done.stdout
    assert done.stdout.endswith("[]\n")


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def expanded(folder: Path, text: str, *overrides: str) -> tuple[Benchmark, grid.Grid]:
    benchmark = load_config(write(folder, text), overrides)
    return benchmark, grid.expand(benchmark)


# ------------------------------------------------------------------------------------------------------- the grid


def test_a_crop_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    expanded(tmp_path, SUITES, "recipe.crop_size=[16, 16]")  # digits are 8 x 8, and 4 are added on each side
    with pytest.raises(UserError, match=r"crop_size.*: must fit into the images of digits, 8 x 8 pixels, got \[9, 8\]"):
        expanded(tmp_path, SUITES, "recipe.crop_size=[9, 8]", "recipe.crop_padding=0")


def test_a_network_that_can_not_take_the_images_is_named_with_its_line(tmp_path: Path) -> None:
    benchmark, whole = expanded(tmp_path, VALID.replace(SMALL, "name: vit_tiny_patch16_224"))
    with pytest.raises(
        UserError, match=r"c\.yaml:2: model\.name: 'vit_tiny.*' can't process images of size \(8, 8\): "
    ):
        runner.check_networks(benchmark, whole)


def test_shared_first_cycles_come_first_and_the_longest_before_the_others(tmp_path: Path) -> None:
    text = SUITES.replace("methods: {Ran: random}", "methods: {Ran: random, LC: least_confidence, DAST: {x}}").replace(
        "{x}", "{acquisition: epmcm, training: isda}"
    )
    _, whole = expanded(tmp_path, text, "suites.b.recipe.epochs=7", "suites.a.protocol.initial=30")
    rows = [(u.suite, u.method, u.shared, bool(u.after), u.cycles, sum(u.passes)) for u in whole.units]
    first = "first cycle of 2 methods (cross_entropy)"
    assert rows == [
        ("b", first, True, False, 1, 20 * 7),
        ("a", first, True, False, 1, 30 * 3),
        ("b", "DAST", False, False, 3, (20 + 30 + 40) * 7),
        ("b", "Ran", False, True, 3, (30 + 40) * 7),
        ("b", "LC", False, True, 3, (30 + 40) * 7),
        ("a", "DAST", False, False, 3, (30 + 40 + 50) * 3),
        ("a", "Ran", False, True, 3, (40 + 50) * 3),
        ("a", "LC", False, True, 3, (40 + 50) * 3),
    ]
    shared = {u.trial.sharing_key for u in whole.units if u.shared}
    assert {u.after for u in whole.units if u.after} == shared
    assert whole.units[0].name == f"b / {first} / seed 0"


def test_a_trial_of_two_suites_is_run_once(tmp_path: Path) -> None:
    text = (
        SUITES.split("suites:")[0]
        + "suites: {a: {dataset: digits}, b: {dataset: digits, methods: {R2: maxp, R1: random}}}\n"
    )
    benchmark, whole = expanded(tmp_path, text)
    assert [(u.suite, u.method) for u in whole.units if not u.shared] == [("a", "Ran"), ("b", "R2")]
    a, b = grid.manifest(benchmark, whole).suites
    assert set(a.trials) < set(b.trials), "both suites report it"
    assert [entry.method for entry in b.trials.values()] == ["R2", "R1"]


def test_optional_suites_are_skipped_by_name_and_others_refused(tmp_path: Path) -> None:
    text = SUITES.replace("    dataset: {name: digits, limit: 100}", "    dataset: cifar10\n    optional: true")
    data = f"where.data={tmp_path}"
    benchmark, whole = expanded(tmp_path, text, data)
    assert list(whole.skipped) == ["b"] and "CIFAR-10 is not in" in whole.skipped["b"]
    assert {u.suite for u in whole.units} == {"a"} and list(whole.info) == ["a"]
    assert [s.skipped for s in grid.manifest(benchmark, whole).suites] == [None, whole.skipped["b"]]
    with pytest.raises(DataMissing, match=r"^suite b: CIFAR-10 is not in"):
        expanded(tmp_path, text.replace("optional: true", "optional: false"), data)


# --------------------------------------------------------------------------------------------------------- --plan


def row_of(plan: str, suite: str) -> list[str]:
    """Return a suite's cells of both tables."""
    lines = [line for line in plan.splitlines() if re.match(rf"{suite}\s{{2,}}(\d|no data)", line)]
    first, second = (re.split(r"\s{2,}", line.strip()) for line in lines)
    return [*first, *second[1:]]


def test_the_plan_counts_what_a_hand_counts_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, VALID)
    assert run.main(["c.yaml", "--plan"]) == 0
    plan = capsys.readouterr().out
    # cross_entropy and isda: a shared first cycle each, for both seeds; 4 methods x 2 seeds then have 30 and 40 labels
    training = 2 * 2 * 20 * 2 + 8 * (30 + 40) * 2
    scored = 4 * (100 + 100)  # LC and DAST on two seeds, two rankings of 100 candidates; random scores nothing
    row = row_of(plan, "c")
    assert row[1:5] == ["4 x 2 = 8", "3", "20 to 40 by 10", f"{training:,}"] and row[5:7] == ["0", f"{scored:,}"]
    assert row[-1] == "unknown"
    assert "Nothing is started" in plan and "1442 training and 355 test images" in plan
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_the_plan_ranks_the_whole_pool_without_candidates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = VALID.replace("  candidates: 100\n", "").replace("dataset: digits", "dataset: {name: digits, limit: 200}")
    write(tmp_path, text)
    assert run.main(["c.yaml", "--plan", "--only", "method=LC,Ran", "seed=1"]) == 0
    row = row_of(capsys.readouterr().out, "c")
    assert row[1:5] == ["2 x 1 = 2", "3", "20 to 40 by 10", str(20 * 2 + 2 * 70 * 2)]
    assert row[5:7] == ["0", str(180 + 170)]


@pytest.mark.parametrize(("optional", "words"), [("true", "will be SKIPPED"), ("false", "CAN'T RUN")])
def test_the_plan_names_missing_data_and_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, optional: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    other = f"    dataset: cifar10\n    optional: {optional}"
    write(tmp_path, SUITES.replace("    dataset: {name: digits, limit: 100}", other))
    assert run.main(["c.yaml", "--plan"]) == 0
    plan = capsys.readouterr().out
    assert f"b {words}: CIFAR-10 is not in" in plan and "get cifar-10-python.tar.gz" in plan
    assert row_of(plan, "b")[-1] == "no data"
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


# ------------------------------------------------------------------------------------------------------- --schema


def printed_schema(*arguments: str) -> dict[str, Any]:
    captured = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", captured)
        assert run.main(["--schema", *arguments]) == 0
    schema: dict[str, Any] = json.loads(captured.getvalue())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return printed_schema()


def test_the_schema_is_that_of_configs_unless_another_is_named(
    schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed_schema("config") == schema
    assert printed_schema("run") != schema != printed_schema("record")
    assert run.main(["--schema", "trial"]) == 2
    assert capsys.readouterr().err.startswith("error: argument --schema: invalid choice: 'trial'")


@pytest.mark.parametrize("name", ["run", "record"])
def test_the_documented_schemas_are_printed(name: str) -> None:
    documented = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    assert documented == printed_schema(name), f"python -m harness.run --schema {name} > docs/schemas/{name}.json"


def test_the_schema_accepts_both_halves_settings_under_one_name(schema: dict[str, Any], tmp_path: Path) -> None:
    for written, accepted in (("width: 64", True), ("tau: 0.2", False)):
        text = VALID.replace("LC: least_confidence", f"LC: {{name: ll4al, {written}}}")
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(Source(write(tmp_path, text)).values))
        assert bool(errors) != accepted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_config(schema: dict[str, Any], path: Path) -> None:
    jsonschema.validate(Source(path).values, schema)


@pytest.mark.parametrize("text", [VALID, SUITES, SUITES.replace("dataset: {name: digits, ", "dataset: {")])
def test_the_schema_accepts_parts_of_mappings(schema: dict[str, Any], tmp_path: Path, text: str) -> None:
    jsonschema.validate(Source(write(tmp_path, text)).values, schema)


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "nested key",
        "where key",
        "type",
        "true",
        "negative",
        "literal",
        "dataset",
        "dataset setting",
        "method",
        "training",
        "method setting",
        "method value",
        "no settings",
        "not an acquisition",
        "in a suite",
        "no seeds",
    ],
)
def test_the_schema_refuses_mistakes(schema: dict[str, Any], tmp_path: Path, name: str) -> None:
    values = Source(write(tmp_path, changed(MISTAKES[name][0]))).values
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)


# ------------------------------------------------------------------------------------------------------- run.json


def listed(folder: Path, text: str, *filters: str) -> Manifest:
    benchmark = only(load_config(write(folder, text)), filters)
    return grid.manifest(benchmark, grid.expand(benchmark))


def merged(*manifests: Manifest) -> Manifest:
    """Return the manifest after runs with these manifests, one after another."""
    earlier, *others = manifests
    for manifest in others:
        earlier = manifest.with_earlier(Manifest.model_validate_json(earlier.packed()))
    return earlier


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = listed(tmp_path, VALID)
    (tmp_path / "run.json").write_bytes(whole.packed())
    assert Manifest.read(tmp_path) == whole
    assert whole.schema_version == SCHEMA_VERSION
    (suite,) = whole.suites
    halves = {"training": {"name": "cross_entropy"}, "acquisition": {"name": "random"}}
    assert suite.halves["Ran"] == halves and list(suite.halves) == suite.methods == ["Ran", "LC", "Ran+", "DAST"]
    assert suite.labelled == [20, 30, 40] and not suite.exclusive and suite.skipped is None


def test_parts_run_one_after_another_give_the_run_json_of_the_whole(tmp_path: Path) -> None:
    parts = [
        listed(tmp_path, VALID, *filters) for filters in (["method=Ran", "seed=1"], ["method=LC,Ran+"], ["seed=0,1"])
    ]
    assert merged(*parts) == listed(tmp_path, VALID)


def test_a_later_part_keeps_what_earlier_ones_did(tmp_path: Path) -> None:
    first, second = listed(tmp_path, SUITES, "suite=a"), listed(tmp_path, SUITES, "suite=b")
    assert [s.name for s in merged(first, second).suites] == ["a", "b"]
    again = merged(listed(tmp_path, VALID, "seed=1"), listed(tmp_path, VALID, "method=LC", "seed=0"))
    suite = next(s for s in again.suites if s.name == "c")
    assert suite.methods == ["Ran", "LC", "Ran+", "DAST"] and suite.seeds == [0, 1]
    assert len(suite.trials) == 4 + 1
    assert list(suite.halves) == suite.methods


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol.budget", "11"),
        ("protocol.initial_set", "per_run"),
        ("recipe.learning_rate", "0.011"),
        ("recipe.flip", "false"),
        ("model.initialisation", "pytorch"),
        ("dataset.limit", "99"),
    ],
)
def test_other_settings_in_the_same_folder_replace_a_suite(tmp_path: Path, key: str, value: str) -> None:
    """A row of a table must never mix two experiments."""
    path = write(tmp_path, VALID)
    benchmark = load_config(path, [f"{key}={value}"])
    other = grid.manifest(benchmark, grid.expand(benchmark))
    assert merged(listed(tmp_path, VALID), other) == other


def test_another_method_under_the_same_name_replaces_it(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    name = next(iter(load_config(path).suites[0].methods))
    benchmark = only(load_config(path, [f"methods.{name}=margin"]), [f"method={name}"])
    (whole,) = listed(tmp_path, VALID).suites
    (suite,) = merged(listed(tmp_path, VALID), grid.manifest(benchmark, grid.expand(benchmark))).suites
    assert suite.methods == whole.methods
    trials = [trial for trial, entry in suite.trials.items() if entry.method == name]
    assert len(trials) == len(whole.seeds) and all("cross_entropy-margin" in trial for trial in trials)
    assert suite.halves[name]["acquisition"] == {"name": "margin"}


def test_a_suite_whose_data_has_gone_keeps_its_results(tmp_path: Path) -> None:
    before = listed(tmp_path, VALID)
    skipped = [suite.model_copy(update={"skipped": "its folder is empty", "trials": {}}) for suite in before.suites]
    assert merged(before, before.model_copy(update={"suites": skipped})) == before


def test_folders_of_an_earlier_version_stay_known(tmp_path: Path) -> None:
    before, after = listed(tmp_path, VALID, "seed=0"), listed(tmp_path, VALID, "seed=1")
    upgraded = before.model_copy(update={"folders": {"trials/now": "trials/then"}})
    assert merged(upgraded, after).folders == {"trials/now": "trials/then"}
    assert merged(before, after).folders == {}


# ---------------------------------------------------------------------------------------------------- the display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TERM", "xterm")  # of a terminal that shows a live table
    for name in ("TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    class Clock:
        now = 1000.0

        def time(self) -> float:
            return self.now

        def strftime(self, form: str) -> str:
            return "12:00:00"

    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    monkeypatch.setattr(display, "here", Progress())  # that of this process may be of another test
    return clock


@pytest.fixture
def units(tmp_path: Path) -> list[Unit]:
    """One shared first cycle (40 image passes), then Ran and LC (60 + 80 passes each), whose scoring costs nothing."""
    text = VALID.replace(f"  {RAN}\n  {DAST}\n", "").replace("[0, 1]", "[0]")
    return [replace(unit, scoring=[0] * unit.cycles) for unit in expanded(tmp_path, text)[1].units]


def cycle(number: int) -> dict[str, Any]:
    """Return the event of a cycle whose training takes 0.1 s for each of its image passes."""
    labelled = 20 + 10 * number
    return {
        "cycle": number,
        "labelled": labelled,
        "cost": 1.25,
        "accuracy": 0.5,
        "own_seconds": {"train": 0.2 * labelled},
    }


def test_one_line_per_cycle_where_there_is_no_terminal(clock: Any, units: list[Unit]) -> None:
    shared, ran, _ = units
    output = io.StringIO()
    show = display.Display(units, output)
    show("start", shared, {})
    clock.now += 4
    show("cycle", shared, cycle(0))
    show("end", shared, {})
    show("start", ran, {})
    for number, seconds in ((0, 0), (1, 6), (2, 8)):
        clock.now += seconds
        show("cycle", ran, cycle(number))
    show("end", ran, {})
    show.close()
    # a batch of 50 holds all labelled images, so that all cycles cost as much: the mean is 4 s after the shared one,
    # 5 s after one of 6 s more, and 6 s at the end; the shared cycle 0 of Ran and LC costs nothing
    assert output.getvalue().splitlines() == [
        "12:00:00 c / first cycle of 2 methods (cross_entropy) / seed 0: cycle 0/0, 20 labelled: accuracy 50.00 %"
        "  (1.2 s; 0/3 done, elapsed 4 s, about 16 s remaining)",
        *(
            f"12:00:00 c / Ran / seed 0: cycle {number}/2, {labelled} labelled: accuracy 50.00 %"
            f"  (1.2 s; 1/3 done, elapsed {elapsed} s, about {left} s remaining)"
            for number, labelled, elapsed, left in ((0, 20, 4, 16), (1, 30, 10, 15), (2, 40, 18, 12))
        ),
    ]


def test_nothing_is_expected_before_anything_is_measured(clock: Any, units: list[Unit]) -> None:
    show = display.Display(units, io.StringIO())
    assert show.seconds_left() is None
    show("start", units[0], {})
    assert show.seconds_left() is None


def test_a_run_whose_only_trial_fails_before_its_first_cycle_says_so(clock: Any, units: list[Unit]) -> None:
    output = io.StringIO()
    show = display.Display(units[-1:], output)
    show("failed", units[-1], {"failure": "the device's memory is full"})
    assert show.seconds_left() == 0 and "FAILED: the device's memory is full" in output.getvalue()


def test_cycles_of_an_earlier_run_and_of_a_retry_count_once_and_take_no_time(clock: Any, units: list[Unit]) -> None:
    _, ran, lc = units
    output = io.StringIO()
    show = display.Display([ran, lc], output, finished=[2, 0])
    show("start", ran, {})
    show("cycle", ran, cycle(0))
    show("cycle", ran, cycle(1))
    assert show.seconds_left() is None, "nothing was done in this run yet"
    clock.now += 8
    show("cycle", ran, cycle(2))  # 8 s; two such cycles of LC are left
    assert show.seconds_left() == pytest.approx(16)
    show("end", ran, {})
    show("start", lc, {})
    show("cycle", lc, cycle(0))
    clock.now += 6
    show("cycle", lc, cycle(1))
    assert show.seconds_left() == pytest.approx(7)
    show("retry", lc, {"cause": "its process died"})
    show("start", lc, {})
    lines = output.getvalue().count("\n")
    show("cycle", lc, cycle(0))
    show("cycle", lc, cycle(1))
    assert output.getvalue().count("\n") == lines
    assert show.seconds_left() == pytest.approx(7)
    assert "its process died; it goes on from its last checkpoint or finished cycle" in output.getvalue()


def test_a_failed_unit_is_over(clock: Any, units: list[Unit]) -> None:
    shared, ran, lc = units
    output = io.StringIO()
    show = display.Display(units, output)
    show("start", shared, {})
    clock.now += 4
    show("cycle", shared, cycle(0))
    show("end", shared, {})
    show("start", ran, {})
    show("failed", ran, {"failure": "the loss is not finite"})
    assert "c / Ran / seed 0: FAILED: the loss is not finite" in output.getvalue()
    assert show.seconds_left() == pytest.approx(8), "only LC is left"
    show("end", ran, {})  # in-process runs report the end too
    assert not show.running and len(show.over) == 2
    show("failed", lc, {"failure": "the loss is not finite"})
    assert show.seconds_left() == 0
    assert output.getvalue().splitlines()[-1] == "12:00:00 c / LC / seed 0: FAILED like c / Ran / seed 0"


def test_failures_with_one_cause_are_grouped() -> None:
    shared, ran, lc, other = (
        display.Failure("first cycle", "it raises x; the traceback is in logs/a.log"),
        display.Failure("Ran", "it raises x; the traceback is in logs/b.log"),
        display.Failure("LC", "it raises x"),
        display.Failure("BALD", "it raises y; the traceback is in logs/b.log"),
    )
    assert display.grouped([shared, other, ran, lc]) == [[shared, ran, lc], [other]]


def test_every_suite_whose_data_is_bad_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        for part in ("train", "test"):
            for each in ("one", "two"):
                (tmp_path / "data" / name / part / each).mkdir(parents=True)
                (tmp_path / "data" / name / part / each / "0.png").write_text("no image")
    (tmp_path / "c.yaml").write_text("""
model: {name: resnet_small, width: 4}
recipe: {epochs: 1}
protocol: {initial: 2, budget: 1, cycles: 1, start: warm}
methods: {Ran: random}
seeds: [0]
suites:
  first: {dataset: {name: image_folder, folder: a, image_size: 8}}
  second: {dataset: {name: image_folder, folder: b, image_size: 8}}
  third: {dataset: {name: image_folder, folder: c, image_size: 8}}
""")
    monkeypatch.chdir(tmp_path)
    assert run.main(["c.yaml", "where.trials=in_process"]) == 2
    assert capsys.readouterr().err.startswith("error: suite third: there is no folder ")
    shutil.rmtree(tmp_path / "data" / "a")
    assert run.main(["c.yaml", "where.trials=in_process"]) == 2
    sentence = capsys.readouterr().err
    assert "suite first: there is no folder" in sentence and "suite third: there is no folder" in sentence
    shutil.copytree(tmp_path / "data" / "b", tmp_path / "data" / "a")
    shutil.copytree(tmp_path / "data" / "b", tmp_path / "data" / "c")
    assert run.main(["c.yaml", "where.trials=in_process"]) == 2
    sentence = capsys.readouterr().err
    assert all(f"suite {name}: 4 of 4 files can't be used" in sentence for name in ("first", "second", "third"))


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TTY_COMPATIBLE", "0")])
def test_a_dumb_terminal_gets_lines(
    clock: Any, units: list[Unit], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: True)
    show = display.Display(units, output)
    show("cycle", units[1], cycle(0))
    assert "c / Ran / seed 0: cycle 0/2" in output.getvalue()


def test_the_terminal_gets_a_live_view(clock: Any, units: list[Unit]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    show = display.Display(units, output)
    show("start", units[1], {})
    show("cycle", units[1], cycle(0))
    show("cycle", units[1], cycle(1))
    show.close()
    assert "Ran" in output.getvalue() and "2/2" in output.getvalue()
    assert "accuracy" in output.getvalue() and "mIoU" not in output.getvalue()


def test_mean_iou_is_shown_by_its_name(clock: Any, units: list[Unit], monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"cycle": 0, "labelled": 20, "cost": 1.0, "miou": 0.25}
    for terminal in (False, True):
        output = io.StringIO()
        monkeypatch.setattr(output, "isatty", lambda terminal=terminal: terminal)
        show = display.Display(units, output)
        show("start", units[1], {})
        show("cycle", units[1], values)
        show.close()
        assert "mIoU" in output.getvalue() and "25.00 %" in output.getvalue() and "accuracy" not in output.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (59.7, "1 min 00 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert display.duration(seconds) == shown


# ------------------------------------------------------------------------------------------------------ small runs


@pytest.mark.long
def test_a_run_in_parts_then_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = VALID.replace("dataset: digits", "dataset: {name: digits, limit: 120, test_limit: 40}")
    write(
        tmp_path, text.replace("epochs: 2", "epochs: 2\n  crop_padding: 0").replace("candidates: 100", "candidates: 40")
    )
    assert run.main(["c.yaml", "--only", "method=Ran", "seed=0"]) == 0
    first = capsys.readouterr().out
    assert "To run: 1 trial; results go to runs/c" in first
    assert first.count(" labelled: accuracy ") == 3
    assert run.main(["c.yaml"]) == 2
    assert "runs/c already holds results; add --resume" in capsys.readouterr().err
    assert run.main(["c.yaml", "--resume", "--only", "method=Ran,LC", "seed=0"]) == 0
    second = capsys.readouterr().out
    assert "To run: 1 trial and 1 shared first cycle (1 trial already finished)" in second
    assert "c / LC / seed 0: cycle 2/2" in second
    written = (tmp_path / "runs" / "c" / "run.json").read_bytes()
    raw, manifest = json.loads(written), Manifest.model_validate_json(written)
    assert raw["schema_version"] == SCHEMA_VERSION
    assert manifest.packed() == written, "nothing in it is unknown to its schema"
    assert manifest == Manifest.read(tmp_path / "runs" / "c")
    jsonschema.validate(raw, printed_schema("run"))
    (suite,) = manifest.suites
    assert suite.methods == ["Ran", "LC"] and len(suite.trials) == 2
    store, schema = RunStore(tmp_path / "runs" / "c"), jsonschema.Draft202012Validator(printed_schema("record"))
    for trial in suite.trials:
        lines = (store.trial(trial).folder / "records.jsonl").read_text().splitlines()
        assert len(lines) == 3
        for line in map(json.loads, lines):
            schema.validate(line)
            assert line["schema_version"] == SCHEMA_VERSION
    assert run.main(["c.yaml", "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "with 6 finished cycles" in planned and row_of(planned, "c")[-1] != "unknown"
    assert "GPU memory" not in planned
    monkeypatch.setattr(CycleRecord, "peak_memory", lambda record, where: 0 if "host" in where else 3 * 2**30)
    assert run.main(["c.yaml", "--plan"]) == 0
    assert re.search(r"GPU memory: no process used more than 3\.00 GiB", capsys.readouterr().out)
    again = load_config(tmp_path / "runs" / "c" / "config.yaml")
    whole = load_config(tmp_path / "c.yaml")  # config.yaml is the whole config, whatever part was run
    assert [t.id for _, t in again.suites[0].trials()] == [t.id for _, t in whole.suites[0].trials()]


def test_a_gpu_that_is_not_there_is_refused_in_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write(tmp_path, VALID.replace("dataset: digits", "dataset: {name: digits, limit: 120, test_limit: 40}"))
    assert run.main(["c.yaml", "where.device=cuda"]) == 2
    sentence = "error: where.device: cuda: torch sees no GPU on this machine; allowed here: auto, cpu\n"
    assert capsys.readouterr().err == sentence
    assert not (tmp_path / "runs" / "c" / "run.json").exists(), "nothing is begun"


@pytest.mark.parametrize(("precision", "emulated"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_a_processor_that_only_emulates_bfloat16_is_named_at_the_start(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    emulated: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("harness.learning.process.emulates_bfloat16", lambda: emulated)
    write(tmp_path, VALID.replace("dataset: digits", "dataset: {name: digits, limit: 120, test_limit: 40}"))
    small = ["recipe.epochs=1", "recipe.milestones=[]", "--only", "method=Ran", "seed=0"]
    assert run.main(["c.yaml", f"recipe.precision={precision}", *small]) == 0
    warned = "this processor only emulates bfloat16" in capsys.readouterr().out
    assert warned == (precision == "bfloat16" and emulated)


def test_a_gpu_that_is_not_there_is_refused_on_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.on_ray import before, session

    sentence = "where.device: cuda: no node of the cluster has a GPU; allowed here: auto, cpu"
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 0.0}]
    for exclusive in (False, True):
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            session.resources(Where(device="cuda"), exclusive, nodes)
        assert session.resources(Where(device="cuda"), exclusive, [*nodes, {"CPU": 4.0, "GPU": 1.0}]).gpus == 1
        assert session.resources(Where(device="cpu"), exclusive, [{"CPU": 4.0, "GPU": 1.0}]).gpus == 0
        assert session.resources(Where(), exclusive, nodes).gpus == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(before, "prepare", lambda where: None)
    monkeypatch.setattr(session, "start", lambda where: "Ray: a cluster of CPUs")
    monkeypatch.setattr(session, "stop", lambda ours: None)
    monkeypatch.setattr(session, "nodes", lambda: nodes)
    write(tmp_path, VALID.replace("dataset: digits", "dataset: {name: digits, limit: 120, test_limit: 40}"))
    assert run.main(["c.yaml", "where.device=cuda", "where.trials=ray"]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not (tmp_path / "runs" / "c").exists(), "nothing is left behind that asks for --resume"


@pytest.mark.long
def test_what_decides_nothing_may_change_between_the_parts_of_a_run(tmp_path: Path) -> None:
    """With another memory_gb the trials of seed 0 stay in the table: their ids are the same."""
    text = VALID.replace("LC: least_confidence", "CS: {name: core_set, memory_gb: 0.25}").replace(
        "dataset: digits", "dataset: {name: digits, limit: 120, test_limit: 40}"
    )
    path, output = write(tmp_path, text), f"where.output={tmp_path / 'run'}"
    assert run.main([str(path), output, "--only", "method=CS", "seed=0"]) == 0
    more = ["methods.CS.memory_gb=2", output, "--resume", "--only", "method=CS", "seed=1"]
    assert run.main([str(path), *more]) == 0
    (suite,) = Manifest.read(tmp_path / "run").suites
    assert {entry.seed for entry in suite.trials.values()} == {0, 1}

"""A row of a table is one experiment: its code, data, versions, precision and device are the same for all seeds."""

from __future__ import annotations

import ast
import hashlib
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import a_record, flat
from matplotlib.text import Text
from PIL import Image
from test_report import all_records, run_dir
from test_report import suite as entry_of

from harness import load, registry, run
from harness.config import suite as suite_module
from harness.experiment import runner
from harness.registry import ROOT
from harness.report import plots
from harness.report.captions import differing_seeds
from harness.report.rows import kept_apart
from harness.report.write import read, write
from harness.results import code
from harness.results.code import APART, DECIDING, code_of, harness_code, without_docstrings
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.records import CycleRecord, differing
from harness.results.store import RunStore

OWN = '''"""Selects where the network is least sure."""

from harness import Acquisition

from ._shared import SIGN


class Own(Acquisition):
    """Least confidence."""

    def describe(self, network, batch, prepared):
        """Return the scores."""
        return {"score": SIGN * -network(batch.images).logits.softmax(1).max(1).values}
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own method in a folder of its own; what is cached of it is forgotten."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    (folder / "_shared.py").write_text("SIGN = 1\n")
    (folder / "unused.py").write_text("VALUE = 1\n")
    for name in ("_added", "_used"):
        monkeypatch.setattr(registry, name, type(getattr(registry, name))())
    forget()
    return folder


def forget() -> None:
    """Let the next look at code read the files, as a new process does."""
    for cached in (code_of, harness_code, code._source, code._location, code._package):
        cached.cache_clear()


def own_code(folder: Path) -> str:
    """Return the hash of the code of the method in the folder."""
    registry.add(folder)
    return code_of(registry.load("methods", "own").__name__)


def tree(source: str) -> Any:
    return without_docstrings(ast.parse(source))


# ------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    "source",
    [
        'def f(x):\n    """Twice x."""\n    return 2 * x  # fast\n',
        "def f(x):\n\n    return (\n        2 *\n        x)\n",
        "# a comment\ndef f(x): return 2*x\n",
        '"""A module."""\ndef f(x):\n    return 0b10 * x\n',
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(source: str) -> None:
    assert tree(source) == tree("def f(x):\n    return 2 * x\n")


def test_a_string_below_an_attribute_or_a_constant_does_not_count() -> None:
    plain = "X = 1\nclass A:\n    x: int = 0\n    def f(self):\n        self.y = 'a'\n        return 'b'\n"
    described = (
        "X = 1\n'Of X.'\nclass A:\n    'Of A.'\n    x: int = 0\n    'Of x.'\n    def f(self):\n        'Of f.'\n"
        "        self.y = 'a'\n        'Of y.'\n        return 'b'\n"
    )
    assert tree(described) == tree(plain)
    for old, new in (("'a'", "'c'"), ("'b'", "'c'"), ("= 0", "= 1")):
        assert old in described and tree(described.replace(old, new)) != tree(plain)
    assert tree("X = 1\nf'{g()}'\n") != tree("X = 1\n"), "it calls g"


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return -2 * x\n",
        "def f(x):\n    return 2.0 * x\n",
        "def f(x):\n    return 2 + x\n",
        "def f(x, y=0):\n    return 2 * x\n",
        "def f(x):\n    'not a docstring' ''\n    x = ''\n    return 2 * x\n",
        "def f(x):\n    return True * x\n",
    ],
)
def test_whatever_code_does_counts(source: str) -> None:
    assert tree(source) != tree("def f(x):\n    return 2 * x\n")
    assert tree("x = ''") != tree("x = None") != tree("x = 0") != tree("x = False") != tree("x = ''")


def test_the_code_of_a_plug_in_is_its_file_and_what_it_imports_of_its_own(plugin: Path) -> None:
    registry.add(plugin)
    module = registry.load("methods", "own").__name__
    hashes = {"": code_of(module)}
    for file, old, new in (
        ("own.py", "SIGN * -", "SIGN * "),
        ("_shared.py", "1", "-1"),
        ("own.py", '"""Least confidence."""', '"""Least confidence, described better."""  # and a comment'),
        ("unused.py", "1", "2"),
    ):
        before = (plugin / file).read_text()
        assert old in before
        (plugin / file).write_text(before.replace(old, new))
        forget()
        hashes[f"{file}: {new}"] = code_of(module)
        (plugin / file).write_text(before)
    assert len(set(hashes.values())) == 3
    assert [name for name, value in hashes.items() if value == hashes[""]][1:] == [
        'own.py: """Least confidence, described better."""  # and a comment',
        "unused.py: 2",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "import importlib\nimportlib.import_module('.part.unused', __package__)",
        "from importlib import import_module as load",
        "import pkgutil",
        "__import__(f'{__package__}.part.unused')",
        "exec('from .part import unused')",
    ],
)
def test_the_whole_package_counts_for_code_that_imports_by_other_means(line: str, plugin: Path) -> None:
    before = own_code(plugin)
    (plugin / "own.py").write_text((plugin / "own.py").read_text() + f"\n{line}\n")
    found = []
    (plugin / "part").mkdir()
    (plugin / "part" / "__init__.py").write_text("raise SystemExit('a look at code imports nothing')")
    (plugin / "part" / "template.py").write_text("{{ no Python }}")
    for source in ("X = 1\n", "X = 2\n"):
        (plugin / "part" / "unused.py").write_text(source)
        forget()
        found.append(own_code(plugin))
    assert len({before, *found}) == 3


def test_installed_packages_do_not_count_wherever_they_are(plugin: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = own_code(plugin)
    for place, metadata in (("site-packages", False), ("dist-packages", False), ("anywhere", True)):
        package = tmp_path / "elsewhere" / place / f"installed_in_{place[:4]}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('a package that is only found is not imported')\n")
        if metadata:
            (package.parent / "installed-1.0.dist-info").mkdir()
        monkeypatch.syspath_prepend(str(package.parent))
        text = (plugin / "own.py").read_text()
        (plugin / "own.py").write_text(f"{text}\nif 0:\n    from {package.name}.inside import x\n")
        forget()
        after = own_code(plugin)
        assert after != before
        (package / "inside.py").write_text("x = 1\n")
        forget()
        assert own_code(plugin) == after
        before = after


def test_a_shipped_method_counts_for_those_that_inherit_from_it(plugin: Path) -> None:
    path = plugin / "own.py"
    path.write_text(f"{path.read_text()}\nfrom harness.methods.least_confidence import LeastConfidence\n")
    code.known.clear()
    own_code(plugin)
    shipped = Path(importlib.import_module("harness.methods.least_confidence").__file__ or "")
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() in code.known


def test_the_folder_of_a_plug_in_does_not_count(plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for folder in (plugin, Path(shutil.copytree(plugin, tmp_path / "elsewhere"))):
        monkeypatch.setattr(registry, "_added", {})
        registry.add(folder)
        found.append(code_of(registry.load("methods", "own").__name__))
    assert found[0] == found[1]


def test_shared_code_of_the_methods_counts_where_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: code_of(f"harness.methods.{name}") for name in registry.shipped("methods")}
    real = code._source
    changed = tmp_path / "_k_center.py"
    original = real("harness.methods._k_center")
    assert original is not None
    changed.write_text(original.read_text() + "\nX = 1\n")
    forget()
    monkeypatch.setattr(code, "_source", lambda name: changed if name.endswith("._k_center") else real(name))
    code_of.cache_clear()
    after = {name: code_of(f"harness.methods.{name}") for name in registry.shipped("methods")}
    users = {name for name in found if found[name] != after[name]}
    imports = {p.stem for p in registry.home("methods").glob("*.py") if "_k_center import" in p.read_text()}
    assert users >= imports - {"_k_center"} and "core_set" in users and "random" not in users


NOT_DECIDING = {
    "harness.__init__",
    "harness.check",
    "harness.checking",
    "harness.config",
    "harness.data.host",
    "harness.data.remembered",
    "harness.errors",
    "harness.experiment",
    "harness.faults",
    "harness.file_settings",
    "harness.forked",
    "harness.lazy",
    "harness.learning.pictures",
    "harness.list",
    "harness.messages",
    "harness.networks.zoo",
    "harness.on_ray",
    "harness.prepare",
    "harness.private",
    "harness.registry",
    "harness.replay",
    "harness.report",
    "harness.results",
    "harness.run",
    "harness.status",
    "harness.tracking",
}
"""What checks, stores, schedules or prints, and does not compute. Networks of the zoo are hashed as plug-ins."""


def test_every_module_of_the_harness_is_said_to_decide_results_or_not() -> None:
    root = registry.ROOT / "harness"
    modules = {".".join(path.relative_to(registry.ROOT).with_suffix("").parts) for path in root.rglob("*.py")}
    decide = {m for m in modules if code._inside(m, DECIDING) and not code._inside(m, APART)}
    do_not = {m for m in modules if code._inside(m, tuple(NOT_DECIDING))} - decide
    assert decide | do_not == modules, "add the module to DECIDING or to NOT_DECIDING"
    assert {"harness.trial", "harness.learning.fit", "harness.seeds", "harness.on_ray.scoring"} <= decide
    assert all(
        registry.ROOT.joinpath(*name.split(".")).with_suffix("").exists() or f"{name}" in modules for name in DECIDING
    )


# ------------------------------------------------------------------------------------------------------------- runs

CONFIG: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 120, "test_limit": 40},
    "model": {"name": "resnet_small", "width": 2},
    "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 1, "inference_batch_size": 50},
    "protocol": {"initial": 20, "budget": 10, "cycles": 2, "start": "warm"},
    "methods": {"Ran": "random", "LC": "least_confidence"},
    "seeds": [0],
}

Go = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Run CONFIG, changed by keys, in one results folder, with options."""

    def go(*options: str, **keys: Any) -> int:
        where = {"trials": "in_process", "output": str(tmp_path / "run")}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, **keys, "where": where}, sort_keys=False))
        return run.main([str(tmp_path / "c.yaml"), *options])

    return go


def rows(tmp_path: Path) -> dict[str, int]:
    """Return the names of the rows of the report, and the number of seeds of each."""
    _, suites = read(tmp_path / "run")
    (suite, records) = suites[0]
    return {method: len({r.seed for r in records if r.method == method}) for method in suite.methods}


def test_a_method_edited_between_two_seeds_is_refused(
    plugin: Path, go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"plugins": [str(plugin)], "methods": {"Ran": "random", "Own": "own"}}
    assert go(**own) == 0
    path, text = plugin / "own.py", (plugin / "own.py").read_text()
    path.write_text("# a comment\n" + text)
    forget()
    assert go("--resume", seeds=[0, 1], **own) == 0
    assert rows(tmp_path) == {"Ran": 2, "Own": 2}
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("cycle_*.json")}
    (tmp_path / "plugins" / "_shared.py").write_text("SIGN = -1\n")
    forget()
    capsys.readouterr()
    assert go("--resume", "--plan", seeds=[0, 1, 2], **own) == 0
    assert (
        "--resume refuses suite c, Own: its finished cycles were computed with other code of" in capsys.readouterr().out
    )
    assert go("--resume", "--plan", "--accept-changes", seeds=[0, 1, 2], **own) == 0
    assert "--resume refuses" not in capsys.readouterr().out
    assert go("--resume", seeds=[0, 1, 2], **own) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "suite c, Own: its finished cycles were computed with other code of" in error
    assert "acquisition own (" in error and "--accept-changes" in error and "Ran" not in error
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("cycle_*.json")}, "nothing was started"
    codes = Manifest.read(tmp_path / "run").suites[0].code
    assert go("--resume", seeds=[0, 1], **own) == 0, "nothing is left to compute"
    assert Manifest.read(tmp_path / "run").suites[0].code == codes, "the code of what is there"
    assert go("--resume", "--accept-changes", seeds=[0, 1, 2], **own) == 0
    said = flat(capsys.readouterr().out)
    (one, other) = [name for name in rows(tmp_path) if name.startswith("Own [code ")]
    for ending in ("txt", "md", "tex"):  # a table that is read alone
        table = next((tmp_path / "run" / "report").glob(f"*_accuracy.{ending}")).read_text()
        assert "the rows have different seeds" in flat(table)
    assert rows(tmp_path) == {"Ran": 3, one: 2, other: 1}
    assert f"so that their means differ by these, too: Ran: 0, 1, 2; {one}: 0, 1; {other}: 2." in said
    assert set(load(tmp_path / "run")["method"]) == {"Ran", one, other}, "a notebook can't average them either"
    kept = Manifest.read(tmp_path / "run").suites[0].code
    record = RunStore(tmp_path / "run").trial(trial_of(tmp_path, "Own", 2)).records()[0]
    assert kept["Own"] == record.code and set(record.code) == {
        "harness",
        "dataset digits",
        "network resnet_small",
        "training cross_entropy",
        "acquisition own",
    }


@pytest.mark.parametrize("how", ["lost", "foreign"])
def test_an_extended_run_says_which_state_it_can_t_go_on_from(
    how: str, go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {"Ran": "random"}
    assert go(methods=methods) == 0
    folder = next((tmp_path / "run" / "trials").iterdir())
    path = max(folder.glob("state_*.pt"))
    path.unlink() if how == "lost" else path.write_bytes(min(folder.glob("state_*.pt")).read_bytes())
    longer = {**CONFIG["protocol"], "cycles": CONFIG["protocol"]["cycles"] + 1}
    assert go("--resume", methods=methods, protocol=longer) == 0
    said = f"{path} is {'not there (only the last 2 are kept)' if how == 'lost' else 'damaged'}: its cycle, and each"
    assert said in capsys.readouterr().out
    assert len(RunStore(tmp_path / "run").trial(folder.name).records()) == longer["cycles"]


def trial_of(tmp_path: Path, method: str, seed: int) -> str:
    """Return the id of a trial of the run."""
    (suite,) = Manifest.read(tmp_path / "run").suites
    return next(name for name, entry in suite.trials.items() if (entry.method, entry.seed) == (method, seed))


@pytest.mark.long
def test_a_trial_that_goes_on_with_other_code_has_a_row_of_its_own(plugin: Path, go: Go, tmp_path: Path) -> None:
    own = {"plugins": [str(plugin)], "methods": {"Ran": "random", "Own": "own"}, "seeds": [0, 1]}
    assert go(**own) == 0
    folder = RunStore(tmp_path / "run").trial(trial_of(tmp_path, "Own", 1)).folder
    for file in folder.glob("*_001.*"):
        file.unlink()
    (plugin / "_shared.py").write_text("SIGN = -1\n")
    forget()
    assert go("--resume", **own) == 2
    assert go("--resume", "--accept-changes", **own) == 0
    names = [name for name in rows(tmp_path) if name.startswith("Own")]
    assert len(names) == 2 and " > " not in names[0] and " > " in names[1]


@pytest.fixture
def code_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Change the hash of the harness's code."""
    return lambda hash_: monkeypatch.setattr(suite_module, "harness_code", lambda: hash_ * 12)


def test_a_shared_first_cycle_of_other_code_is_refused_for_a_part_of_the_methods_too(
    go: Go, tmp_path: Path, code_is: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    code_is("a")
    assert go() == 0
    shutil.rmtree(tmp_path / "run" / "trials")
    code_is("b")
    assert go("--resume") == 2
    assert go("--resume", "--only", "method=LC") == 2
    assert capsys.readouterr().err.count("with other code of harness (aaaaaaaaaaaa, now bbbbbbbbbbbb)") == 2
    assert go("--resume", methods={"LC": "least_confidence"}) == 2


@pytest.mark.long
def test_a_later_selection_keeps_what_the_training_was_made_under(
    go: Go, tmp_path: Path, code_is: Callable[[str], None]
) -> None:
    protocol = {**CONFIG["protocol"], "cycles": 1}
    code_is("a")
    assert go(protocol=protocol) == 0
    shutil.rmtree(tmp_path / "run" / "trials")
    code_is("b")
    assert go("--resume", "--accept-changes", protocol=protocol) == 0
    assert go("--resume", "--accept-changes", seeds=[0, 1]) == 0
    assert list(rows(tmp_path)) == [
        f"{method} [code {name}]" for method in ("Ran", "LC") for name in ("aaaaaa > bbbbbb", "bbbbbb")
    ]


@pytest.mark.long
def test_data_that_changed_between_two_seeds_is_refused(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 8, 8, 3), dtype=np.uint8)
    for split, name in enumerate(("train", "test")):
        for label in range(2):
            (folder := tmp_path / "images" / name / f"class{label}").mkdir(parents=True)
            for number, image in enumerate(pixels[split, label]):
                Image.fromarray(image).save(folder / f"{number}.png")
    own = {
        "dataset": {"name": "image_folder", "folder": str(tmp_path / "images"), "image_size": 8},
        "protocol": {"initial": 8, "budget": 4, "cycles": 1, "start": "warm"},
    }
    assert go(**own) == 0
    own["protocol"]["cycles"] = 2
    assert go("--resume", **own) == 0
    assert load(tmp_path / "run").selected_files.map(len).tolist() == [4, 0, 4, 0], "of a selection made later, too"
    Image.fromarray(255 - pixels[0, 0, 0]).save(tmp_path / "images" / "train" / "class0" / "0.png")
    capsys.readouterr()
    for keys in ({"seeds": [0, 1]}, {"methods": {**CONFIG["methods"], "Entropy": "entropy"}}):
        assert go("--resume", **own, **keys) == 2, "another seed, or another method, would be compared with other data"
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "suite c: its finished cycles were computed with other data (" in error
    assert go("--resume", **own) == 0, "nothing is left to compute"
    assert go("--resume", "--accept-changes", seeds=[0, 1], **own) == 0
    names = list(rows(tmp_path))
    assert len(names) == 4 and all(" [data " in name for name in names)
    assert set(rows(tmp_path).values()) == {1}
    own["protocol"]["cycles"] = 3
    assert go("--resume", seeds=[0, 1], **own) == 2
    assert go("--resume", "--accept-changes", seeds=[0, 1], **own) == 0, "it selects from the data of now"
    names = list(rows(tmp_path))
    assert len(names) == 4 and sum(" > " in name for name in names) == 2
    assert load(tmp_path / "run").groupby("method").cycle.max().tolist() == [2] * 4


@pytest.mark.long
@pytest.mark.parametrize("change", ["more", "renamed", "class"])
def test_a_trial_does_not_go_on_with_data_in_which_its_indices_name_other_images(
    change: str, go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for split in ("train", "test"):
        for label in range(2):
            (folder := images / split / f"class{label}").mkdir(parents=True)
            for number in range(16):
                Image.new("RGB", (8, 8), (100 * label, 10 * number, 0)).save(folder / f"{number:02}.png")
    own: dict[str, Any] = {
        "dataset": {"name": "image_folder", "folder": str(images), "image_size": 8},
        "protocol": {"initial": 8, "budget": 8, "cycles": 2, "start": "warm"},
    }
    assert go(**own) == 0
    own["protocol"]["cycles"] = 3
    first = images / "train" / "class0"
    if change == "more":
        shutil.copy(first / "00.png", first / "20.png")
        said = "it had 32 training images, now 33"
    elif change == "renamed":
        (first / "00.png").rename(images / "train" / "class1" / "99.png")
        said = " was training image "
    else:
        for split in ("train", "test"):
            (images / split / "class2").mkdir()
            Image.new("RGB", (8, 8)).save(images / split / "class2" / "00.png")
        (first / "00.png").unlink()
        said = "it had 2 classes, now 3"
    before = (tmp_path / "run" / "run.json").read_bytes()
    capsys.readouterr()
    assert go("--resume", "--accept-changes", **own) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "can't go on with the data as they are now: " in error and said in error
    assert (tmp_path / "run" / "run.json").read_bytes() == before, "nothing was started"
    assert go("--resume", "--accept-changes", seeds=[1], **own) == 0, "a trial that has not begun may"


@pytest.mark.long
@pytest.mark.parametrize("what", ["torch", "pillow"])
def test_another_version_of_a_library_is_refused(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from harness import trial
    from harness.results.provenance import versions

    assert go() == 0
    monkeypatch.setattr(runner, "versions", lambda: {**versions(), what: "99.1"})
    monkeypatch.setattr(trial, "versions", lambda: {**versions(), what: "99.1"})
    assert go("--resume", seeds=[0, 1]) == 2
    assert f"with other {what} ({versions()[what]}, now 99.1);" in capsys.readouterr().err
    assert go("--resume", "--accept-changes", seeds=[0, 1]) == 0
    assert sorted(rows(tmp_path)) == sorted(
        f"{method} [{what} {version}]" for method in ("Ran", "LC") for version in (versions()[what], "99.1")
    )


@pytest.mark.long
def test_a_version_that_decides_nothing_is_not_asked_for(go: Go, tmp_path: Path, monkeypatch: Any) -> None:
    from harness import trial
    from harness.results.provenance import versions

    assert go() == 0
    for place in (runner, trial):
        monkeypatch.setattr(place, "versions", lambda: {**versions(), "ray": "99.1", "python": "4.0"})
    monkeypatch.setattr(trial, "commit", lambda: "another")
    assert go("--resume", seeds=[0, 1]) == 0
    assert rows(tmp_path) == {"Ran": 2, "LC": 2}, "nor does a commit alone split a row"


@pytest.mark.long
def test_another_kind_of_device_is_refused(
    go: Go, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go() == 0
    monkeypatch.setattr(runner, "_devices", lambda where: {"NVIDIA H100 80GB HBM3"})
    assert go("--resume", seeds=[0, 1]) == 2
    assert "with other device (cpu, now NVIDIA H100 80GB HBM3);" in capsys.readouterr().err


def test_a_worker_with_other_code_fails_its_unit(
    go: Go, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.replace

    def other(value: Any, **keys: Any) -> Any:
        return real(value, **({**keys, "code": {**keys["code"], "harness": "0" * 12}} if "code" in keys else keys))

    monkeypatch.setattr(runner, "replace", other)
    assert go() == 1
    assert "the code of harness has changed on this machine since the run started" in capsys.readouterr().out


def test_accept_changes_needs_resume(go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("--accept-changes") == 2
    assert "--accept-changes needs --resume" in capsys.readouterr().err


@pytest.mark.long
def test_a_damaged_manifest_is_said_with_the_trials_that_leave_the_tables(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(seeds=[0, 1]) == 0
    path = tmp_path / "run" / "run.json"
    path.write_text('{"name": 3}')
    names = ", ".join(f"c / {method} / seed 1" for method in sorted(CONFIG["methods"]))
    said = (
        f"{path} is damaged: it is written again, with the suites of this config alone\n"
        f"2 trials that this config does not name leave the tables, and keep the files: {names}\n"
    )
    for options in (["--resume", "--plan"], ["--resume"]):
        capsys.readouterr()
        assert go(*options) == 0
        assert capsys.readouterr().out.startswith(said)
    assert go("--resume", seeds=[0, 1]) == 0
    out = capsys.readouterr().out
    assert "is damaged" not in out and "To run: 0 trials" in out and "leave the tables" not in out


@pytest.mark.long
def test_a_foreign_cycle_file_is_told_and_computed_again(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(seeds=[0, 1]) == 0
    run_store = RunStore(tmp_path / "run")
    one, other = (run_store.trial(trial_of(tmp_path, "LC", seed)) for seed in (0, 1))
    before = one.records()
    shutil.copy(other.folder / "cycle_001.json", one.folder / "cycle_001.json")
    capsys.readouterr()
    assert go("--resume", seeds=[0, 1]) == 0
    said = capsys.readouterr().out
    assert f"{one.folder / 'cycle_001.json'} is damaged, or belongs to another trial or cycle: it is not used" in said
    assert [r.outcome() for r in one.records()] == [r.outcome() for r in before]


# -------------------------------------------------------------------------------------------------------- extending


def outcomes(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return what decides each cycle of each trial of a run."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for suite, records in read(folder)[1]:
        for r in records:
            kept = {
                **r.outcome(),
                "loss": r.final_loss,
                "health": r.health,
                "warnings": r.warnings,
                "EP": r.extra_parameters,
            }
            found.setdefault((f"{suite.name} {r.method}", r.seed), []).append(kept)
    return found


def final_states(folder: Path) -> dict[str, Any]:
    store = RunStore(folder)
    (suite,) = Manifest.read(folder).suites
    return {trial: store.trial(trial).resume_point()[1] for trial in suite.trials}


def same_tensors(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def check_extended(tmp_path: Path, values: dict[str, Any], steps: list[int]) -> None:
    """Run a config step by step and at once; both must be equal, and no cycle may be trained twice."""
    for name, cycles in (("steps", steps), ("whole", steps[-1:])):
        for number in cycles:
            config = {**values, "protocol": {**values["protocol"], "cycles": number}}
            config["where"] = {"trials": "in_process", "output": str(tmp_path / name)}
            (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
            before = {p: p.stat().st_mtime_ns for p in (tmp_path / name).rglob("cycle_*.json")}
            assert run.main([str(tmp_path / "c.yaml"), *(["--resume"] if before else [])]) == 0
            assert before.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / name).rglob("cycle_*.json")}.items()
    assert outcomes(tmp_path / "steps") == outcomes(tmp_path / "whole")
    assert same_tensors(final_states(tmp_path / "steps"), final_states(tmp_path / "whole"))


def smoke(dataset: str) -> dict[str, Any]:
    """Return every method of the smoke run on a small problem."""
    import golden

    config = yaml.safe_load((registry.home("configs") / "smoke.yaml").read_text())
    return {**golden.DATASETS[dataset], "methods": config["methods"], "seeds": [0]}


@pytest.mark.long
def test_an_extended_run_equals_a_long_one(tmp_path: Path) -> None:
    values = smoke("digits")
    chosen = ["Ran", "LL4AL", "QBC", "DAST-AL"]
    few = {name: spec for name, spec in values["methods"].items() if name in chosen}
    assert len(few) == 4
    check_extended(tmp_path, {**values, "methods": few}, [1, 2, 3])


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["digits", "scenes"])
@pytest.mark.parametrize("start", ["warm", "fresh"])
def test_an_extended_run_equals_a_long_one_for_every_method(tmp_path: Path, dataset: str, start: str) -> None:
    values = smoke(dataset)
    values["protocol"] = {**values["protocol"], "start": start}
    check_extended(tmp_path, values, [1, 3] if start == "warm" else [2, 3])


def test_a_new_seed_or_method_computes_only_what_is_new(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go() == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*_00*")}
    capsys.readouterr()
    assert go("--resume", methods={**CONFIG["methods"], "Entropy": "entropy"}, seeds=[0, 1]) == 0
    # the first cycle of seed 0 is shared with the new method; that of seed 1 is new
    assert "To run: 4 trials and 1 shared first cycle (2 trials already finished)" in capsys.readouterr().out
    assert before.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*_00*")}.items()


@pytest.mark.long
def test_a_shortened_run_keeps_its_later_cycles(go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def long() -> dict[str, Any]:
        return {"protocol": {**CONFIG["protocol"], "cycles": 3}}

    assert go(**long()) == 0
    whole = outcomes(tmp_path / "run")
    capsys.readouterr()
    assert go("--resume") == 0
    said = flat(capsys.readouterr().out)
    assert "suite c: its tables end after 30 labelled images, before 40; the records of later cycles are kept" in said
    assert "2 of 2 trials and 4 of 4 cycles finished" in said
    assert "0 trials" in said or "To run: 0 trials" in said
    assert {len(cycles) for cycles in outcomes(tmp_path / "run").values()} == {2}
    assert go("--resume", **long()) == 0
    assert outcomes(tmp_path / "run") == whole


@pytest.mark.long
def test_a_changed_config_says_which_rows_leave_the_tables(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go() == 0
    assert go("--resume", recipe={**CONFIG["recipe"], "epochs": 2}) == 0
    said = capsys.readouterr().out
    assert "suite c: 2 trials leave its tables (Ran, LC), because recipe.epochs was 1, now 2\n" in said
    changed = {"Ran": "random", "LC": {"acquisition": "least_confidence", "training": "isda"}}
    assert go("--resume", recipe={**CONFIG["recipe"], "epochs": 2}, methods=changed) == 0
    said = capsys.readouterr().out
    assert "suite c: 1 trial leaves its tables (LC), because LC: training.name was cross_entropy, now isda\n" in said


@pytest.mark.long
def test_another_precision_continues_no_trial(go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trials are others, so that a row of one precision never goes on with the other."""
    assert go(recipe={**CONFIG["recipe"], "precision": "float32"}) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "trials").rglob("*") if path.is_file()}
    assert go("--resume", recipe={**CONFIG["recipe"], "precision": "bfloat16"}) == 0
    said = capsys.readouterr().out
    why = "because recipe.precision was the default, now bfloat16"
    assert f"suite c: 2 trials leave its tables (Ran, LC), {why}\n" in said
    assert before and all(path.read_bytes() == data for path, data in before.items())
    assert {r.precision for _, records in read(tmp_path / "run")[1] for r in records} == {"bfloat16"}


@pytest.mark.long
def test_a_renamed_method_keeps_its_trials_in_a_row_of_the_new_name(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(seeds=[0, 1]) == 0
    capsys.readouterr()
    shorter = {"protocol": {**CONFIG["protocol"], "cycles": 1}}
    assert go("--resume", seeds=[0, 1], methods={"Random": "random", "LC": "least_confidence"}, **shorter) == 0
    said = flat(capsys.readouterr().out)
    assert "suite c: the row Ran is now called Random; its trials are the same" in said
    assert "suite c: its tables end after 20 labelled images, before 30" in said
    assert rows(tmp_path) == {"LC": 2, "Random": 2}
    assert go("--resume", methods={"Chance": "random"}) == 0
    assert "suite c: 1 trial of the row Random went to the row Chance, the same method" in flat(capsys.readouterr().out)
    assert rows(tmp_path) == {"LC": 2, "Random": 1, "Chance": 1}


@pytest.mark.long
def test_a_trial_of_two_suites_runs_once_for_the_longer_one(tmp_path: Path) -> None:
    short, long = ({**CONFIG["protocol"], "cycles": cycles} for cycles in (1, 3))
    values = {**CONFIG, "suites": {"cost": {"protocol": short, "exclusive": True}, "curve": {"protocol": long}}}
    values["where"] = {"trials": "in_process", "output": str(tmp_path / "run")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert run.main([str(tmp_path / "c.yaml")]) == 0
    assert len(list((tmp_path / "run" / "trials").iterdir())) == 2
    counts = [{r.cycle for r in records} for _, records in read(tmp_path / "run")[1]]
    assert counts == [{0}, {0, 1, 2}]


# ----------------------------------------------------------------------------------------------------------- report


def record(method: str, seed: int, cycle: int, **changes: Any) -> CycleRecord:
    own = {
        "method": method,
        "trial": f"{method}-{seed}",
        "seed": seed,
        "cycle": cycle,
        "labelled": 10 + cycle,
        "code": {"harness": "aaaaaaaaaaaa", f"acquisition {method}": "cccccccccccc"},
        "versions": {"torch": "2.11"},
        "data_fingerprint": "dddddddddddd",
    }
    return a_record(**{**own, **changes})


def suite_of(*methods: str) -> SuiteEntry:
    values = {"name": "s", "title": "S", "dataset": "d", "model": "m", "recipe": "r", "seeds": [0, 1]}
    return SuiteEntry(**values, methods=list(methods), labelled=[10, 11], trials={})


def names(*records: CycleRecord) -> list[str]:
    return kept_apart(suite_of("A", "B"), records)[0].methods


def both(method: str, seed: int, **changes: Any) -> list[CycleRecord]:
    return [record(method, seed, cycle, **changes) for cycle in range(2)]


def test_rows_with_the_same_conditions_keep_their_names() -> None:
    assert names(*both("A", 0), *both("A", 1), *both("B", 0)) == ["A", "B"]
    assert names() == ["A", "B"], "methods without results too"


def test_what_differs_within_a_suite_is_in_the_names_of_its_rows() -> None:
    assert names(*both("A", 0), *both("A", 1, device="H100")) == ["A [device cpu]", "A [device H100]", "B"]
    assert names(*both("A", 0), *both("B", 0, data_fingerprint="e" * 12)) == ["A [data dddddd]", "B [data eeeeee]"]
    own = {"harness": "aaaaaaaaaaaa", "acquisition A": "b" * 12}
    assert names(*both("A", 0), *both("A", 1, code=own), *both("B", 0)) == ["A [code cccccc]", "A [code bbbbbb]", "B"]
    assert names(*both("A", 0), *both("A", 1, code={})) == ["A [code " + n + "]" for n in (TWO, "unknown")] + ["B"]


TWO = code.hashlib.sha256(repr(["c" * 12, "a" * 12]).encode()).hexdigest()[:6]


def test_trials_that_changed_on_the_way_have_rows_of_their_own() -> None:
    changed = [record("A", 1, 0), record("A", 1, 1, versions={"torch": "2.12"})]
    assert names(*both("A", 0), *changed) == ["A [torch 2.11]", "A [torch 2.11 > 2.12]", "B"]
    later = record("A", 1, 0, trained_under=record("A", 1, 0, device="H100").conditions())
    assert names(*both("A", 0), later) == ["A [device cpu]", "A [device H100 > cpu]", "B"]


def test_trials_that_changed_at_different_cycles_share_no_row() -> None:
    def changed(seed: int, *at: str, cycles: int = 4) -> list[CycleRecord]:
        return [record("A", seed, cycle, versions={"torch": at[cycle]}) for cycle in range(cycles)]

    late, early = changed(0, "1", "1", "2", "2"), changed(1, "1", "2", "2", "2")
    assert names(*late, *early) == ["A [torch 1 > 2 from cycle 2]", "A [torch 1 > 2 from cycle 1]", "B"]
    assert names(*late, *changed(1, "1", "1", "2", "1")) == ["A [torch 1 > 2]", "A [torch 1 > 2 > 1]", "B"]
    suite, records = kept_apart(suite_of("A"), [*late, *changed(1, "1", "1", "2", cycles=3)])
    assert suite.methods == ["A [torch 1 > 2]"], "they agree in every cycle that both have"
    _, records = kept_apart(suite_of("A"), [*late, *early])
    assert len({(r.method, r.cycle) for r in records}) == len(records), "no mean is formed"


def test_no_mean_is_formed_over_differing_records() -> None:
    suite, records = kept_apart(suite_of("A"), [*both("A", 0), *both("A", 1, precision="bfloat16")])
    assert {r.method for r in records} == set(suite.methods) == {"A [precision float32]", "A [precision bfloat16]"}


def test_what_an_earlier_version_did_not_record_is_unknown() -> None:
    old, new = record("A", 0, 0, code={}, versions={}, data_fingerprint=""), record("A", 0, 0)
    assert differing(old.conditions(), old.conditions()) == []
    assert differing(old.conditions(), new.conditions()) == [
        "data",
        "torch",
        "code of harness",
        "code of acquisition A",
    ]


def test_rows_with_different_seeds_say_so() -> None:
    suite = suite_of("A", "B")
    assert differing_seeds(suite, [*both("A", 0), *both("B", 0)]) == []
    assert differing_seeds(suite, [*both("A", 0), *both("A", 1), *both("B", 0)]) == [
        "WARNING: the rows have different seeds, so that their means differ by these, too: A: 0, 1; B: 0. "
        "Differences to the reference are those of common seeds."
    ]


def test_the_picture_says_that_rows_have_different_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = []
    original = plots.learning_curves

    def learning_curves(*arguments: Any, **keys: Any) -> Any:
        figure = original(*arguments, **keys)
        captions.append(" ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text)))
        return figure

    monkeypatch.setattr(plots, "learning_curves", learning_curves)
    records = [r for r in all_records() if (r.method, r.seed) != ("Ran+", 2)]
    write(run_dir(tmp_path / "run", records, [entry_of()]))
    write(run_dir(tmp_path / "same", all_records(), [entry_of()]))
    assert "the rows have different seeds" in captions[0] and "Ran+: 0, 1" in captions[0]
    assert "different seeds" not in captions[1]


@pytest.mark.parametrize("module", ["harness/trial.py", "harness/learning/fit.py", "harness/networks/network.py"])
def test_a_module_of_the_harness_that_decides_results_counts(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    before = hash_now()
    monkeypatch.setattr(code, "ROOT", tmp_path)
    assert hash_now() == before
    path = tmp_path / module
    path.write_text(f"# a comment\n{path.read_text()}")
    assert hash_now() == before
    path.write_text(f"{path.read_text()}\nEDITED = True\n")
    assert hash_now() != before
    aside = tmp_path / "harness" / "report" / "lead.py"  # decides no result
    after = hash_now()
    aside.write_text(f"{aside.read_text()}\nEDITED = True\n")
    assert hash_now() == after


def hash_now() -> str:
    """Return the hash of the harness's files as they are now, and keep none."""
    harness_code.cache_clear()
    try:
        return harness_code()
    finally:
        harness_code.cache_clear()

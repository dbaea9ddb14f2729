"""The documents: examples run, messages are printed, generated parts are up to date, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed, flat, make_street_trial, make_trial, opened, run

import harness
import harness.check
from harness import registry
from harness.data.dataset import MAPS, DataRoot, Dataset, LoadedData
from harness.learning.contract import Acquisition, Training
from harness.learning.inference import evaluating
from harness.networks import names
from harness.networks.names import spec as net
from harness.results.records import PHASES
from harness.run import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
EXAMPLE = re.compile(r'```python title="(\w+)\.py"\n(.*?)```', re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    """Return the fenced blocks of a kind in a page of docs/."""
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def loaded(name: str, source: str) -> ModuleType:
    """Return the module with this source, as the registry would load it."""
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def defined(module: ModuleType, contract: type[Any]) -> Any:
    """Return the class with this contract that a module defines, or None."""
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return next((c for c in classes if issubclass(c, contract)), None)


# -------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(("name", "source"), EXAMPLE.findall((DOCS / "method.md").read_text()))
def test_every_example_of_a_method_runs(name: str, source: str, digits: LoadedData) -> None:
    module = loaded(name, source)
    learner, cycle = opened(changed(make_trial(), epochs=2), digits)
    if training := defined(module, Training):
        learner.training = training(training.Settings(), 10)
    if acquisition := defined(module, Acquisition):
        learner.acquisition = acquisition(acquisition.Settings(), 10)
    assert training or acquisition
    assert learner.train(cycle).final_loss > 0
    selected = learner.select(cycle).indices
    assert len(set(selected)) == 20 and set(selected) <= set(cycle.candidates.tolist())


def test_the_fifteen_lines_rank_by_the_highest_logit(digits: LoadedData) -> None:
    module = loaded(*EXAMPLE.findall((ROOT / "README.md").read_text())[0])
    learner, cycle = opened(make_trial(), digits)
    learner.acquisition = module.LowestLogit(module.LowestLogit.Settings(), 10)
    learner.train(cycle)
    selection = learner.select(cycle)
    assert selection.scored is not None and len(selection.indices) == 20
    columns = selection.scored.columns
    highest = columns["score"].sort(descending=True, stable=True).indices[:20]
    assert selection.indices == columns["index"][highest].tolist()
    with evaluating(learner.network):
        logits = learner.network(cycle.images.unaugmented(columns["index"])).logits
    torch.testing.assert_close(columns["score"], -logits.max(1).values)


def test_the_same_fifteen_lines_everywhere() -> None:
    pages = [ROOT / "README.md", DOCS / "tutorial.md", DOCS / "method.md"]
    first = {EXAMPLE.findall(page.read_text())[0] for page in pages}
    assert len(first) == 1
    assert len([line for line in first.pop()[1].splitlines() if line]) <= 15


def test_the_example_of_a_dataset_runs(tmp_path: Path) -> None:
    module = loaded(*EXAMPLE.findall((DOCS / "dataset.md").read_text())[0])
    random = np.random.default_rng(0)
    arrays = {
        f"{split}_{part}": values
        for split, count in (("train", 30), ("test", 9))
        for part, values in (
            ("images", random.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)),
            ("labels", np.arange(count) % 3),
        )
    }
    np.savez(tmp_path / "cells.npz", **arrays)
    settings = module.Npz.Settings(file="cells.npz", limit=18)
    dataset = module.Npz(settings, DataRoot(tmp_path, download=False))
    info, data = dataset.info(), dataset.load()
    assert (info.num_train, info.num_test, info.num_classes, info.channels, info.size) == (18, 9, 3, 3, (6, 5))
    assert data.train_images.shape == (18, 6, 5, 3) and len(data.classes) == 3
    learner, cycle = opened(make_trial(initial=9, budget=3, candidates=6), data)
    assert cycle.images.unaugmented(cycle.labelled).dtype == torch.float32
    assert learner.train(cycle).final_loss > 0 and len(learner.select(cycle).indices) == 3
    with pytest.raises(module.DataMissing, match="save the arrays there"):
        module.Npz(module.Npz.Settings(file="none.npz"), DataRoot(tmp_path, download=False)).info()


@pytest.mark.parametrize(("name", "source"), EXAMPLE.findall((DOCS / "network.md").read_text()))
def test_every_example_of_a_network_passes_its_check_and_trains(
    name: str, source: str, digits: LoadedData, streets: LoadedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    assert harness.check.main([name, "--kind", "network", "--plugins", str(tmp_path)]) == 0
    assert f"{name}: all 11 checks passed" in capsys.readouterr().out
    model = net(name)
    of_maps = MAPS in names.of(model).labels
    trial, data = (make_street_trial(), streets) if of_maps else (make_trial(), digits)
    records = run(replace(trial, model=model), data, tmp_path / "run")
    metric = "miou" if of_maps else "accuracy"
    assert len(records) == 3 and all(0 < record.metrics[metric] <= 1 for record in records)


def test_the_example_of_a_notebook_runs() -> None:
    ((name, source),) = EXAMPLE.findall((DOCS / "notebook.md").read_text())
    found = vars(loaded(name, source))
    assert 0 < found["accuracy"] <= 1 and len(found["selected"]) == 40
    assert isinstance(found["cycle"], harness.Cycle) and len(found["cycle"].labelled) == 80


def test_the_page_of_the_face_names_all_of_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (DOCS / "notebook.md").read_text(), re.M)
    assert [name for name, _ in rows] == harness.__all__ and all(line.strip() for _, line in rows)


def imports(source: str) -> dict[str, set[str]]:
    """Return the modules of the harness that a source imports from -> the names."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness":
            found.setdefault(str(node.module), set()).update(name.name for name in node.names)
        elif isinstance(node, ast.Import):
            found |= {name.name: set() for name in node.names if name.name.startswith("harness.")}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_import_from_harness_what_it_exports_and_nothing_below_it(page: Path) -> None:
    """A rule of method.md. Examples of code that a reader copies are blocks; those of folders are files."""
    sources = re.findall(r"```python.*?\n(.*?)```", page.read_text(), re.DOTALL)
    if page.name == "README.md":
        sources += [path.read_text() for path in (ROOT / "examples").glob("own_*/*.py")]
    for source in sources:
        found = imports(source)
        assert set(found) <= {"harness"}
        assert found.get("harness", set()) <= set(harness.__all__)


@pytest.mark.parametrize("page", ["method.md", "dataset.md", "network.md"])
def test_what_a_page_calls_is_exported(page: str) -> None:
    """Names in the text, such as ``Files(paths, size)``, that the modules behind the contracts define."""
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`(\w+)(?=[(`])", text))
    contracts = {module for module in harness._FACE.values() if module != "harness.trial"}
    hooks = {*dir(Dataset), *dir(Training), *dir(Acquisition)}
    public = {name for module in contracts for name in defined_in(module) if name in named - hooks}
    assert public and public <= set(harness.__all__)


def defined_in(module: str) -> set[str]:
    """Return the classes and functions that a module of the harness defines."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}


# -------------------------------------------------------------------------------------------------------- messages


IN_PROCESS = "where: {trials: in_process}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tutorial's config, cut down to seconds."""
    (config,) = re.findall(r'```yaml title="mine.yaml"\n(.*?)```', (DOCS / "tutorial.md").read_text(), re.DOTALL)
    for old, new in (("epochs: 20", "epochs: 1"), ("[15]", "[]"), ("[0, 1, 2]", "[0]")):
        assert old in config
        config = config.replace(old, new)
    (tmp_path / "mine.yaml").write_text(config + IN_PROCESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    return tmp_path


SESSIONS = blocks("faq.md", "console")
ON_RAY = [session for session in SESSIONS if "cluster" in session]


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("session", ON_RAY)
def test_every_message_of_ray_is_printed_by_its_very_command(session: str, folder: Path) -> None:
    """The other messages come before Ray starts, or from trials that need no Ray."""
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace(IN_PROCESS, ""))
    command, _, expected = session.removeprefix("$ ").partition("\n")
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.endswith(expected)


def test_two_messages_come_from_ray() -> None:
    assert len(ON_RAY) == 2


@pytest.mark.parametrize("session", [session for session in SESSIONS if session not in ON_RAY])
def test_every_message_of_the_questions_is_printed(
    session: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in session and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    for part in session.removeprefix("$ ").split("\n$ "):
        command, _, expected = part.partition("\n")
        assert command.startswith("python -m harness.run ")
        code = main(shlex.split(command)[3:])
        printed = flat("".join(capfd.readouterr()))
        for words in flat(expected).split("..."):
            assert words.strip() in printed
        assert code == (0 if not expected else 1 if expected.startswith("FAILED") else 2)


def sentences() -> list[str]:
    """Return every text in the sources, with ``...`` for what is filled in."""
    texts = []
    for path in [p for room in ("harness", "methods", "datasets") for p in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values))
    return texts


@pytest.mark.parametrize("message", blocks("faq.md", "output"))
def test_every_other_message_of_the_questions_is_in_the_code(message: str) -> None:
    assert any(flat(message) in flat(text) for text in sentences())


# ----------------------------------------------------------------------------------------------------------- pages


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_column_of_load_is_listed() -> None:
    lines = (DOCS / "records.md").read_text().partition("\n| columns |")[2].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    listed = [word for row in rows for word in re.findall("`([^`]+)`", row.split(" | ")[0])]
    columns = [*harness.load(ROOT / "tests" / "stored" / "version3")]
    assert {*columns} - {*listed} == {f"seconds_{phase}" for phase in PHASES if phase not in ("setup", "train")}
    assert {*listed} <= {*columns}


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in (DOCS / "keys.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if not row.split("|")[-2].strip()] == []


def test_every_method_is_described() -> None:
    text = (DOCS / "methods.md").read_text()
    assert [name for name in registry.names("methods") if f"\n## {name}\n" not in text] == []


def test_the_greedy_core_set_is_said_to_be_a_shortcut_of_its_authors() -> None:
    """Their code also runs the mixed-integer program; the page, which is made from the method's head, says so."""
    said = flat((DOCS / "methods.md").read_text().partition("\n## core_set\n")[2].partition("\n## ")[0])
    assert "The selection is only greedy. The authors' code also runs the robust mixed-integer program" in said


@pytest.mark.parametrize("path", [*PAGES, *ROOT.glob("*.md"), ROOT / "results" / "README.md"], ids=lambda p: p.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_readme_is_short() -> None:
    words = [word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]  # no bars of tables
    assert len(words) < 600

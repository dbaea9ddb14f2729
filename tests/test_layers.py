"""Who may import whom: the layers of the harness, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BASE = {"errors", "file_settings", "faults", "forked", "lazy", "messages", "private", "seeds", "settings", "registry"}
PLUGINS = {"methods", "datasets"}
ALLOWED = {
    "results": {*BASE, "results"},
    "data": {*BASE, "results", "data"},
    "networks": {*BASE, "results", "data", "networks"},
    "learning": {*BASE, "results", "data", "networks", "learning"},
    "methods": {*BASE, "results", "data", "networks", "learning", "methods"},
    "datasets": {*BASE, "data", "datasets"},
    "config": {*BASE, "results", "data", "networks", "learning", "config"},
    "trial": {*BASE, "results", "data", "networks", "learning", "config"},
    "experiment": {
        *BASE,
        "results",
        "data",
        "networks",
        "learning",
        "config",
        "trial",
        "report",
        "tracking",
        "experiment",
    },
    "on_ray": {*BASE, "results", "data", "networks", "learning", "config", "trial", "experiment", "on_ray"},
    "checking": {*BASE, "data", "networks", "learning", "config", "trial", "checking"},
    "tracking": {*BASE, "results", "tracking"},
    "report": {*BASE, "results", "data", "report"},
    **{name: BASE for name in BASE},
}
"""Room -> the rooms that it may import."""

COMMANDS = {"run", "replay", "check", "list", "prepare", "status"}
"""The command lines, which tie all together and may import any room."""


def sources() -> dict[str, Path]:
    """Return every module of the harness and of the plug-ins, by its name after ``harness.``."""
    files = [*(ROOT / "harness").rglob("*.py"), *(file for name in PLUGINS for file in (ROOT / name).glob("*.py"))]
    names = {}
    for file in files:
        path = file.relative_to(ROOT).with_suffix("")
        parts = [part for part in path.parts if part != "__init__"]
        names[".".join(parts[1:] if parts[0] == "harness" else parts)] = file
    return names


def imported(name: str, file: Path, known: set[str]) -> Iterator[str]:
    """Yield the modules of ours that a file imports when it runs, wherever in the file that is."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return  # for the type checker only
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("harness.") for alias in node.names if alias.name.startswith("harness.")
            )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"harness.{name.rsplit('.', node.level)[0]}.{module}".rstrip(".")
            if module == "harness" or module.startswith("harness."):
                inside = module.removeprefix("harness").removeprefix(".")
                for alias in node.names:
                    whole = f"{inside}.{alias.name}".removeprefix(".")
                    yield whole if whole in known else inside
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from (target for target in visit(ast.parse(file.read_text())) if target)


def graph() -> dict[str, set[str]]:
    names = sources()
    return {name: set(imported(name, file, set(names))) - {name} for name, file in names.items() if name}


def test_each_room_imports_only_what_lies_below_it() -> None:
    wrong = []
    for name, targets in graph().items():
        room = name.split(".")[0]
        if room in COMMANDS:
            continue
        wrong += [f"{name} imports {t}" for t in sorted(targets) if t.split(".")[0] not in {*ALLOWED[room], "__init__"}]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_layer() -> None:
    rooms = {name.split(".")[0] for name in sources()} - {"", *COMMANDS}
    assert rooms == set(ALLOWED)


def test_no_circle_of_imports() -> None:
    edges = graph()
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in sorted(edges.get(name, ())):
                walk(target, (*path, name))
            done.add(name)

    for name in sorted(edges):
        walk(name, ())


def test_ray_is_imported_in_one_room_only() -> None:
    for name, file in sources().items():
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(module.split(".")[0] == "ray" for module in modules):
                assert name.startswith("on_ray"), f"{name} imports Ray"


def test_the_harness_names_no_plug_in() -> None:
    """Only defaults of the config language may name one: what an acquisition without a training follows."""
    plugins = {file.stem for folder in PLUGINS for file in (ROOT / folder).glob("[a-z]*.py")}
    allowed = {"cross_entropy"}
    for name, file in sources().items():
        if name.split(".")[0] in PLUGINS:
            continue
        words = {
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if name == "replay":
            words -= {"replay"}  # the command that exists for this one method
        # words that are also plug-ins' names
        assert not (words & plugins) - allowed - {"dropout", "entropy", "margin", "random", "scenes"}, name


def test_the_harness_names_no_network_outside_the_zoo() -> None:
    zoo = {file.stem for file in (ROOT / "harness" / "networks" / "zoo").glob("[a-z]*.py")}
    assert zoo
    for name, file in sources().items():
        if not name.startswith(("networks.zoo", "checking.")):  # the checks run on the smallest networks
            text = file.read_text()
            assert not [network for network in zoo if network in text], name


@pytest.mark.parametrize("folder", [*sorted(PLUGINS), "networks.zoo"])
def test_plug_ins_import_no_other_plug_in(folder: str) -> None:
    """What plug-ins share lies in files with a leading underscore."""
    for name, targets in graph().items():
        if name.startswith(f"{folder}."):
            foreign = {t for t in targets if t.startswith(f"{folder}.") and not t.split(".")[-1].startswith("_")}
            assert not foreign, f"{name} imports {foreign}"

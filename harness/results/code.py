"""Hashes of code: they change with what the code does, not with comments, docstrings or formatting."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.registry import ROOT, is_installed

DECIDING = (
    "harness.data",
    "harness.learning",
    "harness.networks",
    "harness.on_ray.scoring",
    "harness.seeds",
    "harness.settings",
    "harness.trial",
)
"""Modules, and packages with all of their modules, that decide the results of every trial."""

APART = ("harness.data.host", "harness.data.remembered", "harness.learning.pictures", "harness.networks.zoo")
"""What DECIDING contains and does not decide the results of every trial."""

SHIPPED = ("harness.methods", "harness.datasets", "harness.networks.zoo")
"""Packages of the shipped plug-ins."""

LATE = ("importlib", "pkgutil", "runpy", "__import__", "exec", "eval")
"""Modules and functions that import modules which no statement names."""

DIGITS = 12


@cache
def harness_code() -> str:
    """Return the hash, 12 hex digits, of the harness's modules that decide results."""
    files: dict[str, Path] = {}
    for name in DECIDING:
        path = ROOT.joinpath(*name.split("."))
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if not _inside(module, APART):
                files[module] = file
    return _hash(files)


@cache
def code_of(module: str) -> str:
    """Return the hash, 12 hex digits, of a plug-in's module and of the modules of its own that it imports.

    Its own modules are those of its package, and those of the user outside Python's folders of packages. If one of them
    can import by other means than ``import`` statements, all modules of its package count.
    """
    files: dict[str, Path] = {}
    places: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in files or not _is_own(name, module) or (file := places.get(name) or _source(name)) is None:
            continue
        files[name] = file
        parents = name.split(".")[:-1]
        waiting += [".".join(parents[: end + 1]) for end in range(len(parents))]  # their __init__.py runs first
        waiting += _imports(name, file)
        if _read(file).imports_late:
            places |= _package(parents[0] if parents else name)
            waiting += places
    return _hash(files)


@cache
def _package(top: str) -> dict[str, Path]:
    """Return the modules of a package, found without an import, and their files; none for a module that is one file."""
    found = {}
    loaded = sys.modules.get(top)
    spec = None if loaded else importlib.util.find_spec(top)
    for folder in getattr(loaded, "__path__", None) or (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([top, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = file
    return found


def _inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_own(name: str, plugin: str) -> bool:
    """Return whether the module ``name``, which the module ``plugin`` imports, belongs to the plug-in."""
    if plugin.startswith("harness."):
        return _inside(name, (plugin.rpartition(".")[0],))
    top = name.split(".")[0]
    if top == "harness":  # what a user's plug-in takes from a shipped one decides its results too
        return _inside(name, SHIPPED)
    if top == plugin.split(".")[0]:
        return True
    location = _location(top)  # of the top alone: to find a submodule imports its package
    return location is not None and not is_installed(location)


@cache
def _location(top: str) -> Path | None:
    """Return the file of a top-level module, or the first folder of a package without one; None: it is built in."""
    loaded = sys.modules.get(top)
    try:
        spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin in ("built-in", "frozen"):
        return None
    where = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    return Path(where) if where else None


@cache
def _source(name: str) -> Path | None:
    """Return the source file of a module, or None if it has none or can't be found."""
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (Exception, SystemExit):  # a package may raise anything: its import is guarded, or failed before
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


class _File(NamedTuple):
    """What is kept of a source file."""

    tree: str
    """Hash of the syntax tree."""
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    """(level, module, names) of each ``from`` statement; ``import a`` is (0, 'a', ())."""
    imports_late: bool
    """Whether the file names a way to import what no statement names."""


known: dict[str, _File] = {}
"""SHA-256 of a source file -> what is kept of it, so that workers need not parse what the run's process has parsed."""


def _read(file: Path) -> _File:
    source = file.read_bytes()
    key = hashlib.sha256(source).hexdigest()
    if key not in known:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # a template, or code of another Python, which nothing can import
            known[key] = _File(key, (), False)
            return known[key]
        imports: list[tuple[int, str, tuple[str, ...]]] = []
        late = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports += [(0, alias.name, ()) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
            elif isinstance(node, ast.Name):
                late |= node.id in LATE
        late |= any(_inside(module, LATE) for _, module, _ in imports)
        known[key] = _File(hashlib.sha256(repr(without_docstrings(tree)).encode()).hexdigest(), tuple(imports), late)
    return known[key]


def of_file(file: Path) -> str:
    """Return the hash, 12 hex digits, of the code of one file."""
    return _read(file).tree[:DIGITS]


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield the modules that import statements anywhere in a file may name; those of ``from`` may also be no module."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for level, module, names in _read(file).imports:
        base = package[: len(package) - level + 1] if level else []
        start = ".".join([*base, *([module] if module else [])])
        yield start
        yield from (f"{start}.{imported}" for imported in names)


def _hash(files: dict[str, Path]) -> str:
    # the folder of a plug-in's file has a name that depends on the machine
    shown = {n.split(".", 1)[-1] if n.startswith("harness_plugins_") else n: _read(f).tree for n, f in files.items()}
    return hashlib.sha256(repr(sorted(shown.items())).encode()).hexdigest()[:DIGITS]


def without_docstrings(tree: ast.AST) -> Any:
    """Return a syntax tree as nested tuples, equal for every version of Python, without docstrings.

    A docstring is every statement that is only a string, so also one below an attribute.
    """
    return _nested(tree)


def _is_docstring(value: Any) -> bool:
    return isinstance(value, ast.Expr) and isinstance(value.value, ast.Constant) and isinstance(value.value.value, str)


def _nested(value: Any) -> Any:
    if isinstance(value, ast.Constant):
        return type(value.value).__name__, repr(value.value)
    if isinstance(value, ast.AST):
        # an absent field equals an empty one: later versions of Python add fields
        fields = ((name, _nested(child)) for name, child in ast.iter_fields(value) if child not in (None, [], ""))
        return (type(value).__name__, *fields)
    if isinstance(value, list):
        return tuple(_nested(child) for child in value if not _is_docstring(child))
    return value

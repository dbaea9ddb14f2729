"""Finds plug-ins: those of the harness by file name, those of the user by module, entry point or folder.

A plug-in is one module with at most one class of each contract. Its name is

- of the harness: the file name; methods/<name>.py is imported as harness.methods.<name>, datasets/ likewise;
- of the user: a module, such as ``my_package.badge``; the name of an entry point in the groups harness.methods and
  harness.datasets; or the name of a file in a folder that the config lists under ``plugins``.

A folder of plug-ins is a package of its own: its files import shared code with ``from ._shared import ...``.
``luggage`` packs the user's source files, and ``unpack`` makes them importable in a process on any machine.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from harness import faults
from harness.errors import UserError, did_you_mean, expanded
from harness.private import private_folder

ROOT = Path(__file__).resolve().parent.parent
Plugin = TypeVar("Plugin")

KINDS = {"methods": "method", "datasets": "dataset", "networks": "network"}
FOLDERS = {"networks": "networks/zoo"}
"""Folder of the harness's own plug-ins of a kind, where it is not the kind's own name."""
MOST_BYTES = 50_000_000
"""Largest plug-in, and largest package that is sent to the workers, in bytes."""


def home(folder: str) -> Path:
    """Return the folder of the harness's own plug-ins or configs: in a checkout, or inside the installed package."""
    inside = ROOT / "harness" / FOLDERS.get(folder, folder)
    return inside if inside.is_dir() else ROOT / folder


@cache
def shipped(folder: str) -> tuple[str, ...]:
    """Return the names of the harness's own plug-ins. Files with a leading underscore hold shared code."""
    return tuple(sorted(p.stem for p in home(folder).glob("*.py") if not p.stem.startswith("_")))


@cache
def installed(folder: str) -> dict[str, str]:
    """Return the name and the module of every plug-in that an installed package offers as an entry point."""
    return {point.name: point.module for point in entry_points(group=f"harness.{folder}")}


_added: dict[str, str] = {}
"""Name -> module of the plug-ins in the folders given to ``add``."""
_used: set[str] = set()
"""Modules of the user that were loaded."""


def add(path: Path) -> None:
    """Make the plug-ins of a folder, or of one file, known by their file names. Raises UserError."""
    path = expanded(path).resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of .py files, or one .py file")
    if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
        raise UserError(f"{path} is neither a folder nor a .py file; give a folder of .py files, or one .py file")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not (files := [file for file in files if file.is_file() and not file.stem.startswith("_")]):
        raise UserError(f"{path} has no .py files without a leading underscore")
    for file in files:
        if (size := file.stat().st_size) > MOST_BYTES:
            most = f"a plug-in has at most {MOST_BYTES / 1e6:.0f} MB"
            raise UserError(f"{file} has {size / 1e6:.0f} MB, and {most}; keep data out of .py files")
    folder = path if path.is_dir() else path.parent
    package = f"harness_plugins_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    for file in files:
        if folders := [kind for kind in KINDS if file.stem in shipped(kind)]:
            raise UserError(f"{file}: the harness has a {KINDS[folders[0]]} {file.stem!r}; rename the file")
        module = f"{package}.{file.stem}"
        if _added.get(file.stem, module) != module:
            raise UserError(f"{file}: another plug-in has the name {file.stem!r}; rename one of the files")
        _added[file.stem] = module
    _package(package, folder)


def _package(name: str, folder: Path) -> None:
    """Make a folder importable as the package ``name``."""
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def names(folder: str) -> list[str]:
    """Return the names of all plug-ins that can be listed: all but modules named with a dot."""
    return sorted({*shipped(folder), *installed(folder), *_added})


def known(folder: str, name: str) -> bool:
    """Return whether ``name`` may be a plug-in: it can be listed, or it names a module."""
    return "." in name.strip(".") or name in names(folder)


def load(folder: str, name: str) -> ModuleType:
    """Import a plug-in. Raises UserError if there is none with this name, or if it can't be imported."""
    if name in shipped(folder):
        return importlib.import_module(f"harness.{FOLDERS.get(folder, folder).replace('/', '.')}.{name}")
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        raise UserError(
            f"{name!r} is a path; a plug-in goes by the name of its file, {path.stem!r}, with its folder in plugins, "
            f"{str(path.parent)!r}"
        )
    module = _added.get(name) or installed(folder).get(name) or (name if known(folder, name) else None)
    if module is None:
        raise UserError(f"unknown {KINDS[folder]} {name!r}{did_you_mean(name, names(folder))}")
    return _import(module, f"{KINDS[folder]} {name!r}")


@cache
def _import(module: str, what: str) -> ModuleType:
    """Import a module of the user. Raises UserError, which names file and line of a mistake."""
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    try:
        with faults.unmoved():
            loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"{what}: there is no module {error.name!r}; it must be installed, or lie in the current folder, "
                f"{Path.cwd()}"
            ) from None
        raise UserError(f"{what} can't be imported: {_where(error)}: {error}") from error
    except ImportError as error:
        said = str(error)
        if wanted := re.match(r"cannot import name '(\w+)' from 'harness' ", said):
            face = importlib.import_module("harness").__all__
            said = f"harness has no {wanted[1]!r}{did_you_mean(wanted[1], face)}"
        raise UserError(f"{what} can't be imported: {_where(error)}: {said}") from error
    except SyntaxError as error:
        if error.filename is None:  # Python names no file for one with null bytes
            error.filename, error.lineno = getattr(importlib.util.find_spec(module), "origin", None) or module, 1
        raise UserError(f"{what} can't be imported: {_where(error)}: SyntaxError: {error.msg}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything
        raise UserError(f"{what} can't be imported: {_where(error)}: {type(error).__name__}: {error}") from error
    _used.add(module)
    return loaded


def _where(error: BaseException) -> str:
    """Return file and line of an error: that of the last frame that is no file of Python's import system."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def find(folder: str, name: str, contract: type[Plugin]) -> type[Plugin] | None:
    """Return the subclass of ``contract`` that a plug-in defines, or None. Raises UserError if it defines several."""
    module = load(folder, name)
    classes = [cls for cls in _classes(module) if issubclass(cls, contract)]
    if len(classes) > 1:
        both = " and ".join(cls.__name__ for cls in classes)
        problem = f"{len(classes)} classes of {contract.__name__}, {both}; allowed: one in each file"
        raise UserError(f"{name} ({faults.place(classes[1])}) has {problem}")
    return classes[0] if classes else None


def place(module: ModuleType) -> str:
    """Return "file.py:LINE" of the first class that a module defines, or of its first line."""
    own = _classes(module)
    return faults.place(own[0]) if own else f"{Path(module.__file__ or '?').name}:1"


def every(folder: str, contract: type[Plugin]) -> dict[str, type[Plugin]]:
    """Return all plug-ins with a class of ``contract``, by name, without those that can't be imported."""
    found = {}
    for name in names(folder):
        try:
            if (plugin := find(folder, name, contract)) is not None:
                found[name] = plugin
        except UserError:
            continue  # another file of a folder must not stand in the way
    return found


def broken() -> list[str]:
    """Return why plug-ins in the added folders, or entry points, can't be imported, a sentence for each."""
    found = [(module, repr(name)) for name, module in sorted(_added.items())]
    for folder, kind in KINDS.items():
        found += [(module, f"{kind} {name!r}") for name, module in sorted(installed(folder).items())]
    problems = []
    for module, what in found:
        try:
            _import(module, what)
        except UserError as error:
            problems.append(str(error))
    return problems


def unknown(folder: str, name: str, contract: type[Any]) -> str:
    """Return a message that says why ``name`` is no plug-in with this contract, and which names are allowed."""
    kind = contract.__name__.lower()
    article = "an" if kind[0] in "aeiou" else "a"
    if "." in name or name in _added:
        file = place(load(folder, name))
        return f"{name!r} is not {article} {kind}: no class in {file} is a subclass of harness.{contract.__name__}"
    allowed = [*every(folder, contract)]
    if name in names(folder):
        return f"{name!r} is not {article} {kind}; allowed: {', '.join(allowed)}"
    if renamed := now_called(folder, name):
        return f"{name!r} is now called {renamed!r}" + (
            "" if renamed in allowed else f", which is not {article} {kind}"
        )
    if Path(f"{name}.py").is_file():
        return f"unknown {kind} {name!r}; to use {name}.py, add its folder to the config: plugins: [FOLDER]"
    return f"unknown {kind} {name!r}{did_you_mean(name, allowed)}{yours()}"


def yours() -> str:
    """Return the end of a message about an unknown name: the names of the user's files, and the classes in them."""
    shown = []
    for name, module in sorted(_added.items()):
        try:
            loaded = _import(module, repr(name))
            classes = [cls.__name__ for cls in _classes(loaded)]
            shown.append(f"{name} ({' and '.join(classes) or 'no class'} in {place(loaded)})")
        except UserError as error:
            shown.append(f"{name} ({str(error).partition(': ')[2]})")
    return f"; a plug-in goes by the name of its file, yours are: {', '.join(shown)}" if shown else ""


def _classes(module: ModuleType) -> list[type[Any]]:
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]


def now_called(folder: str, earlier: str) -> str | None:
    """Return the current name of the harness's plug-in that was called ``earlier``, if there is one."""
    for name in shipped(folder) if earlier else ():
        if any(
            isinstance(c, type) and getattr(c, "formerly", "") == earlier for c in vars(load(folder, name)).values()
        ):
            return name
    return None


@dataclass(frozen=True)
class Luggage:
    """The user's source files, for a process that may run on another machine."""

    added: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Path -> content; the first folder, or the file, is a top-level package or module."""
    homes: dict[str, str] = field(default_factory=dict)
    """This folder, or file -> where the user has it."""


_carried: Luggage | None = None
"""What ``unpack`` unpacked in this process."""
_unpacked: Path | None = None
"""Where."""


def luggage() -> Luggage:
    """Return the source files of the added folders and of the modules in use.

    Packages in Python's own folders of packages are left out: like the harness, they are installed on each machine.
    """
    if _carried is not None:
        return _carried
    paths: dict[str, Path] = {}
    at: dict[str, str] = {}
    for top in sorted({module.split(".")[0] for module in (*_added.values(), *_used)} - {"harness"}):
        package = sys.modules[top]
        if (homes := [Path(p) for p in getattr(package, "__path__", [])]) and not is_installed(homes[0]):
            at[top] = str(homes[0])
            for path in sorted(homes[0].rglob("*")):
                inside = path.relative_to(homes[0])
                hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
                wanted = path.suffix == ".py" or not top.startswith("harness_plugins_")
                if wanted and not hidden and path.is_file():
                    paths[f"{top}/{inside}"] = path
        elif not homes and package.__file__ and not is_installed(Path(package.__file__)):
            paths[f"{top}.py"] = Path(package.__file__)
            at[f"{top}.py"] = package.__file__
    if (size := sum(path.stat().st_size for path in paths.values())) > MOST_BYTES:
        raise UserError(
            f"the packages of the plug-ins have {size / 1e6:.0f} MB, and at most {MOST_BYTES / 1e6:.0f} MB are sent to "
            "the workers; keep data out of them, or install them on each machine"
        )
    return Luggage(dict(_added), {name: path.read_bytes() for name, path in paths.items()}, at)


def is_installed(path: Path) -> bool:
    """Return whether a file lies in a folder of installed packages: Python's own, or any other that has metadata."""
    path = path.resolve()
    stdlib = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")]
    return any(map(path.is_relative_to, stdlib)) or any(map(_holds_packages, path.parents))


@cache
def _holds_packages(folder: Path) -> bool:
    return folder.name in ("site-packages", "dist-packages") or next(folder.glob("*.dist-info"), None) is not None


def unpack(given: Luggage) -> None:
    """Make the user's plug-ins importable in this process. Call it before anything that refers to them is unpickled."""
    global _carried, _unpacked
    if _carried == given or not (given.files or given.added):
        return
    digest = hashlib.sha256(repr(sorted(given.files.items())).encode()).hexdigest()[:16]
    folder = private_folder("harness-plugins") / digest
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            whole = Path(temporary) / "whole"
            for name, content in given.files.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).write_bytes(content)
            try:
                whole.rename(folder)  # whole or not at all: several workers may unpack at the same time
            except OSError:
                assert folder.is_dir(), f"{folder} can't be written"
    sys.path.insert(0, str(folder))
    _added.update(given.added)
    for module in given.added.values():
        package = module.split(".")[0]
        _package(package, folder / package)
    _carried, _unpacked = given, folder


def at_home(trace: str) -> str:
    """Return a traceback with the user's files where the user has them, and not where ``unpack`` has put them."""
    if _carried is not None and _unpacked is not None:
        for name, home in _carried.homes.items():
            trace = trace.replace(str(_unpacked / name), home)
    return trace

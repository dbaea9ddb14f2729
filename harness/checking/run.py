"""Finds the plug-in that a name means, and checks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import registry
from harness.checking.text import wrapped, written
from harness.data.dataset import DataRoot, Dataset
from harness.errors import UserError, did_you_mean
from harness.faults import PluginFault
from harness.learning import boundary
from harness.learning.contract import Acquisition, Training
from harness.networks import names
from harness.networks.architecture import Architecture, check_architecture
from harness.networks.timm_model import TimmModel

SUITES: dict[str, tuple[str, tuple[type[Any], ...]]] = {
    "method": ("methods", (Training, Acquisition)),
    "dataset": ("datasets", (Dataset,)),
    "network": ("networks", (Architecture,)),
}
"""Kind of plug-in -> (its name in the registry, its contracts)."""


def add_plugins(paths: Sequence[str]) -> None:
    """Make the plug-ins in these files and folders known. Raises UserError."""
    for path in paths:
        registry.add(Path(path))


def kind_of(name: str, kind: str | None) -> str:
    """Return the kind of the plug-in with this name, which must be ``kind`` unless that is None. Raises UserError."""
    if kind == "network" or (kind is None and _is_network(name)):
        names.architecture(name)
        return "network"
    kinds = [kind] if kind else [*SUITES]
    possible = [some for some in kinds if registry.known(SUITES[some][0], name)]
    known = [some for some in possible if any(registry.find(SUITES[some][0], name, c) for c in SUITES[some][1])]
    if possible and not known:
        if "network" in possible and any(own.startswith(f"{name}.") for own in names.every()):
            names.architecture(name)  # says which of its functions are registered with timm
        contracts = " or ".join(f"harness.{c.__name__}" for some in kinds for c in SUITES[some][1])
        file = registry.place(registry.load(SUITES[possible[0]][0], name))
        raise UserError(f"{name} ({file}): no class in it is a subclass of {contracts}")
    if not known:
        allowed = {n for some in kinds for c in SUITES[some][1] for n in registry.every(SUITES[some][0], c)}
        allowed |= {*names.every()} if "network" in kinds else set()
        raise UserError(f"unknown {kind or 'plug-in'} {name!r}{did_you_mean(name, allowed)}{registry.yours()}")
    if len(known) > 1:
        raise UserError(f"{name!r} is a {' and a '.join(known)}; add --kind {known[0]} or --kind {known[1]}")
    return known[0]


def _is_network(name: str) -> bool:
    """Return whether a name is that of a model of timm, or can only be that of one that a plug-in registers there."""
    module = name.rpartition(".")[0]
    if module in registry.names("networks"):
        return True
    if not module and registry.known("networks", name):
        return False  # a plug-in, whose classes say what it is
    try:
        return issubclass(names.architecture(name), TimmModel)
    except UserError:
        return False


def check(name: str, pairs: Sequence[str], kind: str | None, data: str | None, plugins: Sequence[str] = ()) -> int:
    """Check a plug-in with settings KEY=VALUE, print a line for each check, and return 0, or 1 if one failed.

    Raises UserError.
    """
    values, kind = written(pairs), kind_of(name, kind)

    def say(line: str) -> None:
        print(line, flush=True)

    folder, contracts = SUITES[kind]
    try:
        for contract in contracts if kind == "method" else ():
            if (cls := registry.find(folder, name, contract)) is not None:
                boundary.check_class(cls, name, contract)
        if kind == "network":
            check_architecture(names.architecture(name), name)
    except PluginFault as wrong:
        say(wrapped("WRONG", str(wrong)))
        say(f"{name}: the class breaks its contract; nothing else was checked")
        return 1
    if kind == "method":
        from harness.checking import methods

        failed, ran = methods.check(name, values, say)
    elif kind == "dataset":
        from harness.checking import datasets

        failed, ran = datasets.check(name, values, DataRoot.of(data, download=False), say, [*plugins])
    else:
        from harness.checking import networks

        failed, ran = networks.check(name, names.architecture(name), values, say)
    verdict = f"{failed} of {ran} checks failed" if failed else f"all {ran} checks passed"
    say(wrapped("", f"{name}: {verdict}").strip())
    return 1 if failed else 0

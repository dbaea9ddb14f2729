"""Checks, before anything starts, that every node of a cluster sees and is what the command's own process does."""

from __future__ import annotations

import os
import pickle
import secrets
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness import registry
from harness.config.suite import Trial
from harness.data.dataset import LoadedData
from harness.errors import UserError, readable
from harness.experiment.grid import Unit
from harness.results import code, disk
from harness.results.records import DECIDING_VERSIONS

ANSWER_SECONDS = 30.0
"""How long the nodes have for their answers: a node starts a process for it."""
SAMPLED = (0.0, 0.5, 1.0)
"""Which files of a list are looked at: the first, the middle and the last one."""
SHOWN = 5
"""Other nodes that a message names."""

Facts = dict[str, dict[str, str]]
"""Kind -> name -> what was found: equal on all nodes of a sound cluster."""


class Difference(NamedTuple):
    """What differs between a node and this process."""

    kind: str
    name: str
    our: str
    their: str


def look(wanted: dict[str, Any]) -> Facts:
    """Return what this process sees. It runs on nodes without a harness, too, so it refers to nothing of this module.

    ``wanted``: ``packages``; ``files``, kind -> paths; ``folder`` (of the results) and ``seen``, a file in it;
    ``gpus``, whether to name the node's GPUs; and, pickled, ``plugins``, ``known`` code, and ``trials`` in which each
    plug-in of the run occurs.
    """
    import pickle
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: Facts = {"version": {"python": platform.python_version()}, "code": {}}
    for name in wanted["packages"]:
        try:
            found["version"][name] = version(name)
        except PackageNotFoundError:
            found["version"][name] = "missing"
    for kind, paths in wanted["files"].items():
        found[kind] = {}
        for path in paths:
            try:
                found[kind][path] = f"has {os.stat(path).st_size} bytes"  # noqa: PTH116 (it may be Python's only)
            except OSError as error:
                found[kind][path] = "is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    try:
        with open(wanted["seen"]) as file:  # noqa: PTH123
            seen = file.read()
        found["output"] = {wanted["folder"]: seen if os.access(wanted["folder"], os.W_OK | os.X_OK) else "is read-only"}
    except OSError:
        found["output"] = {wanted["folder"]: "is missing"}
    try:
        from harness import registry
        from harness.networks import names
        from harness.results import code, provenance

        registry.unpack(pickle.loads(wanted["plugins"]))
        code.known.update(pickle.loads(wanted["known"]))
        for trial in pickle.loads(wanted["trials"]):  # only now: they refer to the plug-ins
            found["code"].update(trial.code)
            if trial.model.settings.weights == names.PRETRAINED:
                weights = names.architecture(trial.model.name).pretrained(download=False)
                size = f"has {weights.path.stat().st_size} bytes" if weights else "is missing"
                found["weights"][f"pretrained of {trial.model.name}"] = size
        found["commit"] = {"harness": provenance.commit()}
        if wanted["gpus"]:
            import torch

            found["gpus"] = {torch.cuda.get_device_name(number): "" for number in range(torch.cuda.device_count())}
    except Exception as error:  # whatever another version of the harness, or none, raises
        found["failure"] = {"harness": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found


def check(
    units: list[Unit], folder: Path, data: dict[str, LoadedData], least: float | None = None
) -> tuple[list[str], set[str]]:
    """Compare each living node with this process; return a note for each that does not answer, and the names of GPUs.

    ``least``: the GPUs are named of nodes with so many processors, which can hold a trial; None: of no node. If a node
    does not answer, there are no names. Raises UserError, which names the first node that differs, how, and the others
    that differ.
    """
    folder = folder.resolve()
    with ExitStack() as stack:
        with disk.answering(folder):
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", dir=folder, prefix=".seen-by-all-nodes-"))
            Path(file.name).chmod(0o644)  # nodes may run as another user
            file.write(secrets.token_hex(8))
            file.flush()
        wanted = {
            "packages": [name for name in (*DECIDING_VERSIONS, "ray") if name not in ("cuda", "cudnn")],
            "files": {"data": _sampled(data), "weights": _weights(units)},
            "folder": str(folder),
            "seen": file.name,
            "gpus": False,
            "plugins": pickle.dumps(registry.Luggage()),  # here they are known
            "trials": pickle.dumps(_distinct(units)),
            "known": pickle.dumps({}),
        }
        ours = look(wanted)
        wanted |= {"plugins": pickle.dumps(registry.luggage()), "known": pickle.dumps(code.known)}
        answers, notes = _ask(wanted, least)
    wrong = [(node, found) for node, theirs in answers if (found := _difference(ours, theirs))]
    if not wrong:
        return notes, set() if notes else {name for _, theirs in answers for name in theirs.get("gpus", {})}
    first, *others = wrong
    more = ""
    if others:
        named = ", ".join(node for node, _ in others[:SHOWN])
        more = f"; {len(others)} more {'nodes differ' if len(others) > 1 else 'node differs'}: {named}"
    raise UserError(readable(_sentence(*first) + more))


def _distinct(units: list[Unit]) -> list[Trial]:
    """Return trials in which each plug-in of the units occurs."""
    trials = [unit.trial for unit in units]
    return list({(t.dataset.name, t.model.name, t.training.name, t.acquisition.name): t for t in trials}.values())


def _sampled(data: dict[str, LoadedData]) -> list[str]:
    """Return some of the files that trials decode; data in memory has none."""
    found: dict[str, None] = {}
    for loaded in data.values():
        for files in loaded.decoded:
            found |= {str(files.paths[round(part * (len(files) - 1))]): None for part in SAMPLED}
    return list(found)


def _weights(units: list[Unit]) -> list[str]:
    """Return the files of pretrained weights that the config names."""
    from harness.networks.names import PRETRAINED

    paths = {unit.trial.model.settings.weights for unit in units} - {None, PRETRAINED}
    return sorted(paths)


def _ask(wanted: dict[str, Any], least: float | None) -> tuple[list[tuple[str, Facts]], list[str]]:
    """Return ((node, what it sees) of each, a note for each node that does not answer). Names may occur twice.

    ``least``: see ``check``.
    """
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes may have another harness, or none
    try:
        task: Any = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(look)  # a trial there would see all GPUs
        asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                {**wanted, "gpus": least is not None and _holds_gpu_trials(node["Resources"], least)}
            ): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            for node in ray.nodes()
            if node["Alive"]
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    answers, notes = [], []
    for reference in done:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except ray.exceptions.RayTaskError as error:
            raise UserError(f"node {asked[reference]} can't be checked: {error.cause}") from None
        except ray.exceptions.RayError:  # the node has died since Ray listed it, maybe seconds ago
            notes.append(f"note: node {asked[reference]} has died, and is left out")
    for reference in late:
        notes.append(f"note: node {asked[reference]} has not answered in {ANSWER_SECONDS:.0f} s, and is not checked")
        with suppress(ray.exceptions.RayError):
            ray.cancel(reference)
    if not answers:
        raise UserError(f"no node of the cluster answers; {'; '.join(note.removeprefix('note: ') for note in notes)}")
    return answers, notes


def _holds_gpu_trials(node: dict[str, float], least: float) -> bool:
    return node.get("GPU", 0) > 0 and node.get("CPU", 0) >= least


def _difference(ours: Facts, theirs: Facts) -> Difference | None:
    """Return how a node differs first, or None."""
    for kind, facts in ours.items():
        for name, our in facts.items():
            their = theirs.get(kind, {}).get(name, "is missing")
            if our == their or (kind == "commit" and "unknown" in (our, their)):  # installed without git
                continue
            if kind not in ("code", "commit"):
                return Difference(kind, name, our, their)
            if failure := theirs.get("failure"):
                return Difference("failure", "", "", failure["harness"])
            our, their = (found.get("commit", {}).get("harness", "unknown") for found in (ours, theirs))
            return Difference("code", name, our, their)
    return None


def _sentence(node: str, it: Difference) -> str:
    """Return what differs on a node, and what helps."""
    if it.kind == "data":
        return (
            f"where.data: {it.name} {it.their} on node {node}, and {it.our} here: the data must be under the same path "
            "on every node, such as in a folder that all nodes share"
        )
    if it.kind == "weights":
        return (
            f"model.weights: {it.name} {it.their} on node {node}, and {it.our} here: the file must be under the same "
            "path on every node"
        )
    if it.kind == "output":
        return (
            f"where.output: {it.name} is not visible to node {node}, or read-only there: use a folder that all nodes "
            "share and can write to"
        )
    if it.kind == "code":
        return (
            f"node {node} has other code of {it.name} (commit {it.their}, here {it.our}): bring every node to the same "
            "commit"
        )
    if it.kind == "failure":
        return f"node {node} can't use the harness ({it.their}): install this version of it on every node"
    return f"node {node} has {it.name} {it.their}, and this process {it.our}: install the same version on every node"

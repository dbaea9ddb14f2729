"""Starts or joins Ray for a run, and computes how many units of work fit on its nodes."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import, also in workers

# ruff: isort: split
from harness.lazy import importing

with importing():
    import ray

from harness.errors import UserError
from harness.experiment.grid import Unit
from harness.settings import Where


@dataclass(frozen=True)
class Resources:
    """The resources that one unit of work reserves, and the number of units that run at the same time."""

    cpus: int
    threads: int
    gpus: float
    concurrent: int
    device_share: int
    processors: int
    """Cores of the largest node, as Ray counts them; in a container they may be fewer than the host's."""

    def bundle(self) -> dict[str, float]:
        """Return the reservation: one bundle, so that a trial and its scoring workers are on one node and one GPU."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def start(where: Where) -> str:
    """Start a local Ray or join a cluster; return one line about it for the user."""
    address = where.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"where.address: can't join the Ray cluster at {address!r} (a token goes into RAY_AUTH_TOKEN): {reason}"
            ) from None
        return f"Ray: joined the cluster at {address}"
    os.environ.pop("RAY_ADDRESS", None)
    local = {"address": "local", "dashboard_host": "127.0.0.1", **common}
    missing = ""
    try:
        context = ray.init(include_dashboard=where.dashboard, **local)
    except Exception as error:
        if "dashboard" not in str(error):
            raise
        context, missing = (
            ray.init(include_dashboard=False, **local),
            "; install ray[default] for dashboard and metrics",
        )
    if context.dashboard_url:
        return f"Ray: dashboard at http://{context.dashboard_url} (this machine only; token: `ray get-auth-token`)"
    return f"Ray: without dashboard{missing}"


def stop() -> None:
    """Leave the cluster, or stop the local Ray."""
    ray.shutdown()


def resources(where: Where, exclusive: bool, nodes: list[dict[str, float]]) -> Resources:
    """Return what each unit of work reserves on a cluster of ``nodes`` (CPU and GPU of each).

    Raises UserError if no single node can hold a unit, because the unit would wait forever.
    """
    have_gpus = any(node.get("GPU", 0) for node in nodes)
    if where.device == "cuda" and not have_gpus:
        raise UserError("where.device: cuda: no node of the cluster has a GPU; allowed here: auto, cpu")
    default = float(have_gpus and where.device != "cpu")
    gpus = where.gpus_per_trial if where.gpus_per_trial is not None else default
    threads = cpus = where.cpus_per_trial
    if exclusive and gpus:
        gpus = 1.0
    elif exclusive:  # without a GPU, the device is a whole node
        cpus = max(threads, *(int(node.get("CPU", 0)) for node in nodes))

    def capacity(node: dict[str, float]) -> int:
        """Return how many units fit on a node; no unit spans two GPUs."""
        by_cpu = int(node.get("CPU", 0) // cpus)
        return min(by_cpu, int(node.get("GPU", 0)) * int(1 / gpus)) if gpus else by_cpu

    fitting = sum(map(capacity, nodes))
    if not fitting:
        largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes) or "none"
        raise UserError(
            f"one trial needs {cpus} CPUs and {gpus:g} GPUs on one node (where.cpus_per_trial, where.gpus_per_trial), "
            f"but the cluster's nodes have {largest}"
        )
    concurrent = min(fitting, where.max_concurrent or fitting)
    share = int(1 / gpus) if gpus else max(map(capacity, nodes))
    processors = max(int(node.get("CPU", 0)) for node in nodes)
    return Resources(cpus, threads, gpus, concurrent, min(share, concurrent), processors)


def nodes() -> list[dict[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check(where: Where, units: list[Unit], folder: Path) -> None:
    """Raise UserError if the cluster can't hold a unit, or if a node does not see the results folder."""
    for exclusive in {unit.exclusive for unit in units}:
        resources(where, exclusive, nodes())
    living = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(living) == 1:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with tempfile.NamedTemporaryFile(dir=folder.resolve(), prefix=".seen-by-all-nodes-") as file:
        exists: Any = ray.remote(num_cpus=0)(os.path.exists)
        strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in living]
        visible = ray.get([exists.options(scheduling_strategy=strategy).remote(file.name) for strategy in strategies])
    if not all(visible):
        raise UserError(f"where.output: {folder} is not visible on all {len(living)} nodes; use a shared folder")

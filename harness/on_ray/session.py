"""Starts or joins Ray for a run, and computes how many units of work fit on its nodes."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import, also in workers

# ruff: isort: split
from harness.lazy import importing

with importing():
    import ray

from harness.data.dataset import LoadedData
from harness.errors import UserError, reason
from harness.experiment.grid import Unit
from harness.experiment.holding import gpus_per_trial
from harness.on_ray import before, node_check
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
    node_share: int
    """The number of units that may run on one node at the same time."""

    def bundle(self) -> dict[str, float]:
        """Return the reservation: one bundle, so that a trial and its scoring workers are on one node and one GPU."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def start(where: Where) -> str:
    """Start a local Ray or join a cluster; return one line about it. ``before.prepare`` comes first. Raises UserError.

    It may take minutes if a cluster hangs: whoever started this process ends it after ``before.START_SECONDS``.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if found := where.cluster():
        return _join(*found, common)
    # a local GCS that has died does not come back: Ray would wait for it for a minute
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    folder = str(before.ray_folder())
    local = {"address": "local", "dashboard_host": "127.0.0.1", "_temp_dir": folder, **common}
    missing = ""
    with _on_loopback():
        try:
            context = ray.init(include_dashboard=where.dashboard, **local)
        except Exception as error:
            if "dashboard" not in str(error):
                raise _not_started(error) from None
            ray.shutdown()
            try:
                context = ray.init(include_dashboard=False, **local)
            except Exception as again:
                raise _not_started(again) from None
            missing = "; install ray[default] for dashboard and metrics"
    return "\n".join(filter(None, (_about_dashboard(context, missing), _about_ports(context))))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the node that starts here have the loopback address, to which Ray's processes then bind all their ports.

    With an address of the network they would listen on every one. Ray has a variable for this, but reads it only when
    it is imported, and replaces a loopback address that it is given.
    """
    from ray._private import ray_constants

    before_it = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before_it


def _with_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE") == "token"


def _about_ports(context: Any) -> str:
    """Return a line about what is open to others, or "" if nothing is."""
    if not ip_address(context.address_info["node_ip_address"]).is_loopback:
        closed = "closed by the token, except that of its metrics" if _with_token() else "and need no token"
        return f"Ray: its ports listen on all addresses of this machine, {closed}: keep it behind a firewall"
    return (
        "" if _with_token() else "Ray: needs no token (RAY_AUTH_MODE): every user of this machine can run commands here"
    )


def _about_dashboard(context: Any, missing: str) -> str:
    if context.dashboard_url:
        token = f"; token: {os.environ.get('RAY_AUTH_TOKEN_PATH', '`ray get-auth-token`')}" if _with_token() else ""
        return f"Ray: dashboard at http://{context.dashboard_url} (this machine only{token})"
    return f"Ray: without dashboard{missing}"


def _not_started(error: Exception) -> UserError:
    """Return the sentence for what Ray raises when it can't start on this machine; what it started is ended."""
    ray.shutdown()
    text = _said(error)
    if "AF_UNIX path length" in text:
        return before.too_long()
    if "token" in text:
        return UserError(f"Ray can't start: {reason(error)}; see RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH")
    if any(part in text for part in ("timed out", "GCS", "raylet")):
        return UserError(
            "Ray did not start in time: this machine is overloaded or out of memory, or its processes are being ended; "
            f"try again when it is less busy, {before.INSTEAD} ({reason(error)})"
        )
    return UserError(f"Ray can't start on this machine: {reason(error)}; correct that, {before.INSTEAD}")


def _join(address: str, name: str, common: dict[str, Any]) -> str:
    """Join a cluster; return one line about it. ``name``: what names the address. Raises UserError."""
    origin = ""
    try:
        if address == "auto":
            from ray._private.services import canonicalize_bootstrap_address

            address = canonicalize_bootstrap_address(address) or address
            origin = f"; auto found this address in {_origin()}"
            before.check_answer(address, name)
        ray.init(address=address, **common)
    except UserError as error:
        raise UserError(f"{error}{origin}") from None
    except Exception as error:
        ray.shutdown()
        raise UserError(f"{name}: can't join the Ray cluster at {address}: {_why(error)}{origin}") from None
    return f"Ray: joined the cluster at {address}{origin}"


def _origin() -> str:
    """Return where Ray finds the address that ``auto`` stands for: processes come first, unless they are several."""
    from ray._private import services, utils

    file = Path(utils.get_ray_address_file(None))
    processes = services.find_gcs_addresses()
    if processes and not (len(processes) > 1 and file.exists()):
        return "the processes of this machine"
    return f"{file}, which `ray start` wrote"


def _why(error: Exception) -> str:
    """Return why a cluster can't be joined, and what helps."""
    text = _said(error)
    if "Version mismatch" in text:
        cluster, here = (
            dict(zip(("Ray", "Python"), re.findall(r"(?:Ray|Python): (\S+)", part), strict=False))
            for part in text.partition("This process")[::2]
        )
        differing = [key for key in cluster if cluster[key] != here.get(key)]
        return (
            f"it runs {' and '.join(f'{key} {cluster[key]}' for key in differing)}, and this process "
            f"{' and '.join(f'{key} {here.get(key)}' for key in differing)}; use the same versions"
        )
    if "token" in text or "nauthenticated" in text or "UNAUTHENTICATED" in text:
        given = "another token" if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) else "a token"
        return (
            f"it asks for {given}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, such as "
            "~/.ray/auth_token of the user who started it"
        )
    if "Could not find any running Ray" in text:
        return "no Ray runs on this machine: start it with `ray start --head`, or give HOST:PORT"
    if "resolve node to connect to" in text or "node info" in text:
        return "this machine is no node of it: run the command on a node, or add this machine with `ray start`"
    if "Failed to connect to Ray cluster" in text:
        return (
            "what answers there is no Ray, for example a proxy that answers in the place of others, or a Ray that does "
            "not work (see `ray status`)"
        )
    return reason(error)


def _said(error: BaseException | None) -> str:
    """Return the messages of an error and of those that caused it."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def agents() -> set[int]:
    """Return the agents of the Ray that this process has started."""
    return {agent for raylet in _children(os.getpid(), b"raylet") for agent in _children(raylet, b"Agent")}


def servers() -> dict[str, int]:
    """Return the GCS and the raylet of the Ray that this process has started, as far as they can be found."""
    found = {"GCS": _children(os.getpid(), b"gcs_server"), "raylet": _children(os.getpid(), b"raylet/raylet")}
    return {name: pids[0] for name, pids in found.items() if pids}


def stop(ours: Collection[int]) -> None:
    """Leave the cluster, or stop the local Ray with its agents, which would outlive it by a minute."""
    try:
        ray.shutdown()
    finally:  # the parent may end it
        for pid in ours:
            with suppress(OSError):
                if b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


def _children(parent: int, name: bytes) -> list[int]:
    """Return the processes with this parent and this word in their command line; none where there is no /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and name in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def resources(where: Where, exclusive: bool, nodes: list[dict[str, float]]) -> Resources:
    """Return what each unit of work reserves on a cluster of ``nodes`` (CPU and GPU of each).

    Raises UserError if no single node can hold a unit, because the unit would wait forever.
    """
    have_gpus = any(node.get("GPU", 0) for node in nodes)
    if where.device == "cuda" and not have_gpus:
        raise UserError("where.device: cuda: no node of the cluster has a GPU; allowed here: auto, cpu")
    gpus = gpus_per_trial(where, exclusive, have_gpus)
    threads = cpus = where.cpus_per_trial
    if exclusive and not gpus:  # the device is a whole node
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
    on_node = max(map(capacity, nodes))
    share = int(1 / gpus) if gpus else on_node
    processors = max(int(node.get("CPU", 0)) for node in nodes)
    return Resources(cpus, threads, gpus, concurrent, min(share, concurrent), processors, min(on_node, concurrent))


def nodes() -> list[dict[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check(where: Where, units: list[Unit], folder: Path, data: dict[str, LoadedData]) -> tuple[list[str], set[str]]:
    """Check that the cluster can hold each unit and that its nodes see what this process sees.

    Return notes, and the names of the devices that trials may run on, as in records; none for a local Ray, whose
    device this machine has, and where a node does not answer. Raises UserError, which names the first node that
    differs.
    """
    found = [resources(where, exclusive, nodes()) for exclusive in {unit.exclusive for unit in units}]
    if not where.cluster():
        return [], set()
    if not any(share.gpus for share in found):
        return node_check.check(units, folder, data)[0], {"cpu"}
    resumed = (folder / "run.json").exists()  # else no record names a device
    least = min(share.cpus for share in found)
    return node_check.check(units, folder, data, least if resumed else None)


def kill(node: str, pid: int) -> None:
    """Kill a process on a node; it may be stopped, so that Ray could not end it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    end: Any = ray.remote(num_cpus=0)(_kill)
    end.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(pid)


def check_alive() -> None:
    """Raise what Ray raises, or TimeoutError, if it can't run a task."""
    ready: Any = ray.remote(num_cpus=0)(_nothing)
    ray.get(ready.remote(), timeout=30)


def _nothing() -> None:
    pass


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGABRT)  # its log then says where it was, unless it is stopped
        time.sleep(1.0)
        os.kill(pid, signal.SIGKILL)

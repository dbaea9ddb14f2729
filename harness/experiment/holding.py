"""Where a trial will hold its images, by the rules of harness/data, as --plan foresees it on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

from harness.data import host, prepared, rows
from harness.data.dataset import DatasetInfo
from harness.data.host import in_units
from harness.data.prepared import Place
from harness.settings import Where

ANSWER_SECONDS = 10


def gpu_memory() -> list[int]:
    """Return the bytes of memory of each NVIDIA GPU that this process may use, without starting CUDA."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
        return _visible([line.split(", ") for line in answer.splitlines()], os.environ.get("CUDA_VISIBLE_DEVICES"))
    return []


def _visible(gpus: list[list[str]], named: str | None) -> list[int]:
    """Return the bytes of those of ``gpus`` (index, UUID, MiB) that CUDA_VISIBLE_DEVICES names; None: of all."""
    if named is None:
        return [int(mebibytes) * 2**20 for _, _, mebibytes in gpus]
    found = []
    for name in map(str.strip, named.split(",")):
        fitting = [int(m) * 2**20 for index, uuid, m in gpus if name and (name == index or uuid.startswith(name))]
        if not fitting:  # CUDA sees none of those that follow
            break
        found.append(fitting[0])
    return found


def gpus_per_trial(where: Where, exclusive: bool, present: bool) -> float:
    """Return how many GPUs a trial has, on Ray by its reservation; ``present``: whether there are any."""
    default = float(present and where.device != "cpu")
    if where.trials == "in_process" or where.gpus_per_trial is None:
        return default
    return 1.0 if exclusive and where.gpus_per_trial else where.gpus_per_trial


def scoring_workers(where: Where) -> int:
    """Return how many workers score images for a trial, in addition to its own process."""
    with_workers = where.scoring == "ray_data" or (where.scoring == "auto" and where.shards > 1)
    return where.shards if where.trials == "ray" and with_workers else 0


def at_once(where: Where, exclusive: bool, units: int, present: int, share: float) -> int:
    """Return how many trials, of ``units``, may run at the same time on this machine with ``present`` GPUs.

    ``share``: GPUs of each; 0: it runs on CPUs.
    """
    if where.trials == "in_process":
        return 1
    fitting = 1 if exclusive and not share else host.processors() // where.cpus_per_trial
    if share:
        fitting = min(fitting, present * int(1 / share))  # no trial spans two GPUs
    return max(1, min(fitting, where.max_concurrent or fitting, units))


def _kept(info: DatasetInfo, where: Where) -> tuple[Place | None, str]:
    """Return the place from which a run will read prepared images, or None, and why they are not kept there, or ""."""
    place = prepared.place(where.prepared)
    if place is None or not info.resized:
        return None, ""
    shapes = {(number, *info.size) for number in (info.num_train, info.num_test)}
    there = sum(
        size
        for _, about, size, _ in prepared.sets(place.folder)
        if (about["rows"], about["height"], about["width"]) in shapes
    )
    problem = prepared.refusal(info.resized, max(0, info.resized - there), place)
    return (None, f"; prepared images {problem}") if problem else (place, "")


def sentence(info: DatasetInfo, where: Where, units: int, exclusive: bool = False) -> str:
    """Return where each of ``units`` trials holds the training images, with the bytes that decide it."""
    height, width = info.size
    needed = info.num_train * height * width * info.channels
    present = [] if where.device == "cpu" else gpu_memory()
    share = gpus_per_trial(where, exclusive, bool(present)) if present else 0.0
    workers = scoring_workers(where)
    processes = at_once(where, exclusive, units, len(present), share) * (1 + workers)
    free = host.free_memory()
    memory = None if free is None else free // processes
    if not share and not info.from_files:
        return f"training images: {in_units(needed)}, held in memory, once for all trials"
    kept, problem = _kept(info, where)
    lies = kept is not None or not info.from_files
    if share:
        own = int(min(present) * share / (1 + workers))
        found = rows.without_copy(rows.held(needed, own, memory or 0), lies)
        room = f"{in_units(own)} of GPU memory, or {in_units(memory or 0)} of the host's"
    elif memory is None:
        return f"training images: {in_units(needed)} decoded; this system does not tell how much memory is free"
    else:
        found = rows.without_copy(rows.held(needed, memory, None).replace(rows.ON_DEVICE, rows.IN_MEMORY), lies)
        room = f"{in_units(memory)} of memory"
    others = f", its share with {processes - 1} others" if processes > 1 else ""
    if found != rows.STREAMED:
        found, problem = f"held {found}", ""
    elif not info.from_files:
        found += " from the host's memory, where all trials share them"
    else:
        found += f" from prepared images in {kept.folder}" if kept else " from the files"
    return (
        f"training images: {in_units(needed)} decoded, {found}; they may fill {rows.HELD_SHARE:.0%} of what a process "
        f"may take{others}: {room}{problem}"
    )

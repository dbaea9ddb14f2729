"""Where a trial will hold its images, by the rule of harness/data/rows.py, as --plan foresees it on this machine."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress

from harness.data import host, rows
from harness.data.dataset import DatasetInfo
from harness.data.host import in_units
from harness.data.prepared import place
from harness.settings import Where

ANSWER_SECONDS = 10


def gpu_memory() -> list[int]:
    """Return the bytes of memory of each NVIDIA GPU of this machine, without starting CUDA."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
        return [int(line) * 2**20 for line in answer.splitlines()]
    return []


def at_once(where: Where, units: int, gpus: int) -> int:
    """Return how many trials, of ``units``, may run on this machine at the same time on this many GPUs; 0: on CPUs."""
    if where.trials == "in_process":
        return 1
    fitting = host.processors() // where.cpus_per_trial
    if gpus:
        fitting = min(fitting, int(gpus / (where.gpus_per_trial or 1)))
    return max(1, min(fitting, where.max_concurrent or fitting, units))


def sentence(info: DatasetInfo, where: Where, units: int) -> str:
    """Return where each of ``units`` trials holds the training images, with the bytes that decide it."""
    height, width = info.size
    needed = info.num_train * height * width * info.channels
    gpus = [] if where.device == "cpu" or where.gpus_per_trial == 0 else gpu_memory()
    workers = where.shards if where.trials == "ray" and where.scoring != "in_process" and where.shards > 1 else 0
    processes = at_once(where, units, len(gpus)) * (1 + workers)
    free = host.free_memory()
    memory = None if free is None else free // processes
    if not gpus and not info.from_files:
        return f"training images: {in_units(needed)}, held in memory, once for all trials"
    if gpus:
        own = int(min(gpus) * (where.gpus_per_trial or 1) / (1 + workers))
        found = rows.held(needed, own, memory or 0)
        room = f"{in_units(own)} of GPU memory, or {in_units(memory or 0)} of the host's"
    elif memory is None:
        return f"training images: {in_units(needed)} decoded; this system does not tell how much memory is free"
    else:
        found = rows.held(needed, memory, None).replace(rows.ON_DEVICE, rows.IN_MEMORY)
        room = f"{in_units(memory)} of memory"
    share = f", its share with {processes - 1} others" if processes > 1 else ""
    if found == rows.STREAMED:
        kept = place(where.prepared)
        found += f" from prepared images in {kept.folder}" if kept else " from the files"
    else:
        found = f"held {found}"
    return (
        f"training images: {in_units(needed)} decoded, {found}; they may fill {rows.HELD_SHARE:.0%} of what a process "
        f"may take{share}: {room}"
    )

"""The memory and the processors of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = (
    ("", ".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""For versions 2 and 1 of Linux's cgroups: controller, folder of its root, files of limit and use, key of memory.stat.

Limit and use are in bytes. The key is that of the cached files of a group and of all groups below it.
"""

CPU_GROUPS = (("", ".", ("cpu.max",)), ("cpu", "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")))
"""The same for processors: controller, folder, files with microseconds of processor time and of the period."""


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process can still take, or None where the system does not tell.

    It is what the machine has available, or what is left of the limit of a container, of a job or of a service that the
    process belongs to, whichever is least. Cached files count as free.
    """
    found = []
    with suppress(OSError, ValueError, KeyError):
        found.append(_table(proc / "meminfo")["MemAvailable:"] * 1024)
    for controller, root, limit, used, cached in CGROUPS:
        for group in _groups(proc, controller):
            folder = cgroup / root / group
            with suppress(OSError, ValueError):  # "max" is no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                with suppress(OSError, ValueError, KeyError):
                    left += _table(folder / "memory.stat")[cached]
                found.append(left)
    return max(0, min(found)) if found else None


sharing = 1
"""Processes of the run that may be on this machine at the same time."""


def own_memory() -> int:
    """Return the bytes of memory that this process may still take: its share of what is free."""
    if (free := free_memory()) is None:  # macOS knows only how much there is in all
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return free // sharing


def processors(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of processors that this process may use, at most the time that its groups have, rounded up."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for controller, root, files in CPU_GROUPS:
        for group in _groups(proc, controller):
            with suppress(OSError, ValueError):  # "max" is no limit
                quota, period = map(int, " ".join((cgroup / root / group / name).read_text() for name in files).split())
                if quota > 0 and period > 0:  # -1 is no limit
                    found.append(-(-quota // period))
    return min(found)


def _groups(proc: Path, controller: str) -> Iterator[PurePosixPath]:
    """Yield the root of the groups, the group of this process, and those in between.

    In a container the kernel may name groups of the host, which are not found there; the container's own is the root.
    """
    yield PurePosixPath()
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = PurePosixPath(path.lstrip("/"))
            if controller in controllers.split(",") and ".." not in group.parts:
                yield from (group, *group.parents[:-1])


def _table(path: Path) -> dict[str, int]:
    """Return the first number after each word that starts a line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def in_units(count: int) -> str:
    """Return a number of bytes as text, such as '193.1 GB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


SAID_AFTER, SAID_EVERY = 10.0, 30.0
"""Seconds of a pass over many files after which a line says how far it is, and between two such lines."""


class Said:
    """Says how far a long pass over many files is; ``what``: the start of its lines, which has their number."""

    def __init__(self, what: str) -> None:
        self.what, self.done = what, 0
        self.began = time.monotonic()
        self.said = self.began + SAID_AFTER - SAID_EVERY

    def add(self, count: int) -> None:
        """Count files."""
        self.done += count
        now = time.monotonic()
        if now - self.said > SAID_EVERY:
            self.said = now
            rate = self.done / (now - self.began)
            print(f"{self.what}: {rate:.0f} a second, {self.done} done", flush=True)

"""The memory of this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Files of a container's limit and use, in bytes, of both versions of Linux's cgroups."""


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process can still take, or None where the system does not tell.

    It is what the machine has available, or what is left of its container's limit if that is less. Cached files count
    as free.
    """
    found = []
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        found.append(int({key: value for key, value in lines}["MemAvailable"].split()[0]) * 1024)
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no limit
            most, now = (int((cgroup / name).read_text()) for name in (limit, used))
            stat = (line.split() for line in ((cgroup / used).parent / "memory.stat").read_text().splitlines())
            found.append(most - now + sum(int(count) for key, count in stat if key == "inactive_file"))
    return max(0, min(found)) if found else None


def in_units(count: int) -> str:
    """Return a number of bytes as text, such as '193.1 GB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"

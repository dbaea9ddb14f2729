"""One writer for a results folder: a lock file that names the process that holds it.

A lock is stale if its process is dead, where that can be known, i.e. on the same machine. A process elsewhere touches
the file every HEARTBEAT seconds, and its lock is stale once the file is older than STALE, by the file system's clock.
The lock is created by a hard link, which is atomic on shared file systems too. Should two processes still take over the
same stale lock, the last one holds it: every commit checks the lock, and the others stop.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import UserError, reason

HEARTBEAT = 30.0  # seconds
STALE = 600.0  # seconds
NAME = "lock.json"


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a lock file, {} if it is damaged, or None if there is none."""
    try:
        holder = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _machine() -> str:
    """Return what is equal only for processes that see each other: host, boot and container."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # not Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(process: int) -> str | None:
    """Return when a process of this machine started, in ticks since boot; '' if unknown, None if it is dead."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it exists and belongs to somebody else
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _is_stale(holder: dict[str, Any], age: float) -> bool:
    """Return whether the holder of a lock is gone; ``age``: seconds since it last touched the lock."""
    if holder.get("machine") == _machine() and isinstance(holder.get("process"), int):
        return _born(holder["process"]) != holder.get("born")
    return age > STALE


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process')} on {holder.get('host')}, started {holder.get('since')}"


def check(folder: Path, token: str) -> None:
    """Raise UserError if the run that took the lock of a results folder with ``token`` no longer holds it."""
    holder = _read(folder / NAME)
    if holder is None or holder.get("token") != token:
        other = "its lock is gone" if holder is None else f"it was taken over by {_named(holder)}"
        raise UserError(f"{folder}: {other}; this run writes no more cycles")


@contextmanager
def taken(folder: Path, force: bool = False) -> Iterator[str]:
    """Hold the lock of a results folder in a ``with`` block; yield its token, for ``check``.

    Raises UserError if another process holds the lock, unless the lock is stale or ``force`` is given.
    """
    token, path = secrets.token_hex(8), folder / NAME
    own = {
        "token": token,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "born": _born(os.getpid()),
    }
    temporary = folder / f"{NAME}.{token}.tmp"
    try:
        temporary.write_text(json.dumps(own, indent=2))
        try:
            while not _linked(temporary, path):
                _remove(path, temporary, force)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the lock of the results folder can't be written: {reason(error)}") from None
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, token, ended), daemon=True).start()
    try:
        yield token
    finally:
        ended.set()
        if (holder := _read(path)) is not None and holder.get("token") == token:
            path.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    """Create the lock; return False if there is one."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS may repeat a link whose answer was lost
        return path.is_file() and path.stat().st_ino == temporary.stat().st_ino
    return True


def _remove(path: Path, temporary: Path, force: bool) -> None:
    """Remove a lock that is stale. Raises UserError if it is not, unless ``force`` is given."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; the results folder's lock file has this name: remove or rename it")
    try:
        age = temporary.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return  # released meanwhile
    holder = _read(path)
    if holder is None:
        return
    stale = _is_stale(holder, age)
    if not (stale or force):
        raise UserError(
            f"where.output: {path.parent} is being written by another run, {_named(holder)}; wait until it ends, or "
            "set another where.output; if that run is dead, add --force"
        )
    aside = path.with_name(f"{temporary.stem}.aside")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
        if _read(aside) != holder:  # it is the fresh lock of a process that was faster
            with suppress(FileExistsError):
                os.link(aside, path)
        else:
            print(f"{path}: removed the lock of {_named(holder)}" + (", which is gone" if stale else ""), flush=True)
        aside.unlink(missing_ok=True)


def _beat(path: Path, token: str, ended: threading.Event) -> None:
    """Touch the lock until ``ended``, while it is held."""
    while not ended.wait(HEARTBEAT):
        holder = _read(path)
        if holder is None or holder.get("token") != token:
            return
        with suppress(OSError):
            os.utime(path)

"""The lock of a results folder: one run at a time writes there.

The file ``lock.N`` names the process that holds the folder. Who takes the folder over first creates ``lock.N+1``, then
removes ``lock.N``: a file is created only once, also on NFS, so that of several processes exactly one succeeds, and the
earlier holder sees a higher number. A process that holds the folder, or works for one that does, checks that before
each write (``check``).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from harness.errors import StorageError, UserError, reason
from harness.results import disk

HEARTBEAT = 20.0
"""Seconds after which a run renews its lock."""
LEFT_BEHIND = 300.0
"""Seconds without renewal after which a lock counts as left behind, where its process can't be looked up."""
STARTING = 2.0
"""Seconds that a process may take from creating the file of its lock to writing its content."""


class LockLost(RuntimeError):
    """Another run has taken the results folder over."""


class Holder(BaseModel):
    """The process that holds a results folder, as its lock names it."""

    host: str
    pid: int = Field(gt=0, lt=2**31)
    started: str
    """When the run started, for readers."""
    machine: str
    """What host, boot and namespace the id of the process belongs to, or '' if unknown."""
    birth: str
    """When the process started, in the kernel's words, or '' if unknown: ids of processes are used again."""
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds, or that the process that it works for holds. It can be pickled."""

    folder: Path
    number: int
    token: str

    @property
    def path(self) -> Path:
        """The file of the lock."""
        return self.folder / f"lock.{self.number}"

    def check(self) -> None:
        """Raise LockLost if another run has taken the folder over, or if the file of the lock is gone.

        Raises StorageError if the folder is gone or can't be read.
        """
        newer = None
        with disk.answering(self.folder, "read"):
            numbers = _numbers(self.folder)
            with suppress(FileNotFoundError, IndexError, UserError):
                newer = _read(self.folder / f"lock.{numbers[-1]}")
                if numbers[-1] == self.number and newer and newer.token == self.token:
                    return
            if not numbers and not (self.folder / "run.json").exists():  # moved away, and made again by a worker
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        cause = f"was taken over by {newer}" if newer else f"is no longer locked by this run ({self.path} is gone)"
        raise LockLost(f"{self.folder} {cause}; this run writes nothing more, and its finished cycles are kept")

    def create(self) -> bool:
        """Create the file; return whether it was not there. Raises OSError."""
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        pid, birth = _named()
        holder = Holder(
            host=socket.gethostname(), pid=pid, started=now, machine=_machine(), birth=birth, token=self.token
        )
        try:
            disk.write(self.path, holder.model_dump_json().encode(), new=True)
        except FileExistsError:
            return False
        return True

    def release(self) -> None:
        """Remove the file, if it is still this lock's."""
        with suppress(OSError, UserError):
            holder = _read(self.path)
            if holder and holder.token == self.token:
                disk.remove(self.path)


_held: Lock | None = None
"""The lock that this process checks before each write in its folder."""


command: int | None = None
"""The process that locks name: that of the command, if this one is its only child; None: this process."""


def _named() -> tuple[int, str]:
    """Return the process that locks name, and when it started, in the kernel's words."""
    pid = command or os.getpid()
    return pid, (_status(pid) or ("", ""))[1]


def _of_earlier_child(holder: Holder | None) -> bool:
    """Return whether a lock is of a child that the command had before this one."""
    return holder is not None and command is not None and (holder.pid, holder.birth) == _named()


def held_here() -> Lock | None:
    """Return the lock of this process, for the processes that work for it."""
    return _held


def work_under(lock: Lock | None) -> None:
    """Check this lock before each write of this process from now on. Raises LockLost."""
    global _held
    _held = lock
    if lock is not None:
        lock.check()


def check(path: Path) -> None:
    """Raise LockLost if the file is to be written into a results folder that this process has lost."""
    if _held is None:
        return
    # one by one: trials/ may be a link to another disk, and the path as a whole then leads out of the results folder
    above = {folder.resolve() for folder in path.absolute().parents}
    if _held.folder in above.union(path.resolve().parents):
        _held.check()


@contextmanager
def held(folder: Path, force: bool = False) -> Iterator[None]:
    """Hold the results folder, which is created if it is missing; ``force``: take it from a run that holds it.

    Temporary files that dead processes left there are removed. After a user error a folder that was created is removed,
    if it is empty. Raises UserError if another run holds it, or if it can't
    be written to, and LockLost if it was taken over when the block was interrupted.
    """
    missing = [part for part in (folder, *folder.parents) if not _there(part)]
    refused = False
    lock = _take(folder, force)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, ended), daemon=True)
    renewal.start()
    try:
        work_under(lock)
        disk.sweep(folder)
        yield
    except KeyboardInterrupt:
        with suppress(StorageError):
            lock.check()
        raise
    except UserError:
        refused = True
        raise
    finally:
        ended.set()
        renewal.join(HEARTBEAT)
        work_under(None)
        lock.release()
        for part in missing if refused else ():
            with suppress(OSError):  # it holds something
                part.rmdir()


def _there(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # a name that is too long, for example: _take says so
        return False


def _renew(lock: Lock, ended: threading.Event) -> None:
    """Renew the lock until the end, and interrupt the main thread if the lock is lost."""
    while not ended.wait(HEARTBEAT):
        with suppress(OSError, StorageError):  # a file system may be away for a while
            try:
                lock.check()
            except LockLost:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            disk.renew(lock.path)


def _take(folder: Path, force: bool) -> Lock:
    """Return a lock on the folder. Raises UserError."""
    try:
        deadline = time.monotonic() + STARTING
        while True:
            disk.make(folder)  # again, if a refused run has just removed it
            numbers = _numbers(folder)
            earlier = numbers[-1:]
            if force or not earlier or _left_behind(folder, earlier[0], time.monotonic() > deadline):
                lock = Lock(folder.resolve(), (earlier or [0])[0] + 1, secrets.token_hex(8))
                try:
                    created = lock.create()
                except FileNotFoundError:
                    if time.monotonic() > deadline:
                        raise
                    continue
                if created:
                    found = _numbers(folder)
                    # without the earlier lock, another run has taken the folder over, and left it, in the meantime
                    if found[-1:] == [lock.number] and {*earlier} <= {*found}:
                        lock.check()
                        for path in (folder / f"lock.{number}" for number in numbers):
                            with suppress(OSError, UserError):
                                holder = _read(path)
                                disk.remove(path)
                                if not _of_earlier_child(holder):
                                    print(f"{folder}: taken over from {holder or path}", flush=True)
                        return lock
                    lock.release()
            time.sleep(0.02)
    except (OSError, StorageError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        remedy = disk.REMEDIES.get(getattr(cause, "errno", None) or 0)
        remedy = f"{remedy}, or set where.output=OTHER_FOLDER" if remedy else "set where.output=OTHER_FOLDER"
        raise UserError(f"where.output: {folder} can't be written to: {reason(cause)}; {remedy}") from None


def _left_behind(folder: Path, number: int, waited: bool) -> bool:
    """Return whether a run has left the lock of this number behind. Raises UserError if the run still goes on.

    Return False if the lock has just been removed, or, unless ``waited``, if its content is still to come.
    """
    path = folder / f"lock.{number}"
    try:
        holder, age = _read(path), _age(path)
    except FileNotFoundError:
        return False
    alive = _alive(holder) if holder else None
    if _of_earlier_child(holder) or alive is False or (alive is None and age > LEFT_BEHIND):
        return True
    if holder is None and not waited:
        return False
    who = str(holder) if holder else f"a process that {path} does not name"
    if alive is None:
        who += f" (renewed {age:.0f} s ago; without renewal for {LEFT_BEHIND / 60:.0f} minutes it counts as gone)"
    raise UserError(
        f"where.output: {folder} is in use by {who}; wait for its end, set another where.output, or take the folder "
        "over with --force"
    )


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the locks in the folder, ascending."""
    return sorted(int(name[5:]) for name in disk.names(folder) if re.fullmatch("lock[.][0-9]{1,9}", name))


def _read(path: Path) -> Holder | None:
    """Return whom a lock names, or None if that can't be read. Raises UserError if it is not a file, and OSError."""
    try:
        return Holder.model_validate_json(disk.read(path))
    except IsADirectoryError:
        raise UserError(f"{path}: must be a file, the lock of a run; remove it") from None
    except ValueError:
        return None


def _age(path: Path) -> float:
    """Return the seconds since the file was written or renewed, by the clock of the file system: hosts' differ."""
    now = path.with_name(f".clock-{secrets.randbits(64)}")
    try:
        disk.write(now, b"", new=True)
        return abs(disk.changed(now) - disk.changed(path))
    finally:
        disk.remove(now)


ENDED = ("Z", "X")
"""States of a process that has ended, in the kernel's words."""


def _alive(holder: Holder) -> bool | None:
    """Return whether the process of a lock runs, or None if that can't be known here."""
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    found = _status(holder.pid)
    return found[0] not in ENDED and found[1] == holder.birth if found and holder.birth else None


def is_alive(pid: int) -> bool:
    """Return whether a process runs, where there is a /proc; one that has ended may wait for its parent to see it."""
    found = _status(pid)
    return found is not None and found[0] not in ENDED


def _status(pid: int) -> tuple[str, str] | None:
    """Return (state, start) of a process in the kernel's words, or None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def _machine() -> str:
    """Return what ids of processes on this machine belong to: containers on one host may have the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "" if sys.platform == "linux" else socket.gethostname()


def seen(folder: Path) -> tuple[Holder, bool | None, float] | None:
    """Return (holder, whether its process lives, seconds since it renewed the lock), or None if no lock can be read.

    For readers: it writes nothing, so the seconds are by this machine's clock, and a holder on another machine counts
    as alive (None: not known) or gone by them. Raises StorageError.
    """
    with disk.answering(folder, "read"):
        for number in reversed(_numbers(folder)):
            path = folder / f"lock.{number}"
            with suppress(FileNotFoundError, UserError):
                if holder := _read(path):
                    age = max(0.0, time.time() - disk.changed(path))
                    alive = _alive(holder)
                    return holder, False if alive is None and age > LEFT_BEHIND else alive, age
    return None

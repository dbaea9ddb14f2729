"""The calls that read and change the folder of a run. There are no others, so that tests can put a failing disk below.

All raise OSError; ``answering`` makes one sentence of it. What ``make`` and ``move`` have done lasts after a power
loss; what ``write`` and ``remove`` have done may be lost until the next ``move`` in the same folder.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import StorageError, UserError, no_pipe, reason

KINDS = {errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}
"""A file stands where a folder should be, or the other way round: the disk itself works."""

REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "remove files of yours or raise your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "mount its disk writable",
    errno.EACCES: "allow this user to read and write there",
    errno.EPERM: "allow this user to read and write there",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files of the machine",
    errno.ENOMEM: "free memory",
}
FAILING = "check its disk, or the connection to it"
"""The remedy for EIO, ESTALE and whatever else a file system says."""

TEMPORARY = re.compile(r".+\.[0-9]+\.tmp|\.clock-[0-9]+|\.seen-by-all-nodes-.+")
"""Names of files that only a process that died leaves behind."""

WITHIN = re.compile(r"within_((?:cycle|selection)_[0-9]{3,9})\.pt")
"""Names of states within a cycle; the group, with ``.json``, is the file that ends their use."""


SHARED = ("report", "index", "track")
"""The folders of a run that reports and trackers write to without holding the run."""


@contextmanager
def answering(path: Path, done: str = "written") -> Iterator[None]:
    """Raise StorageError for an OSError of the block, in which this file is written (or what ``done`` says).

    Raises UserError instead for a file in the place of a folder, a folder in the place of a file and a name too long.
    """
    try:
        yield
    except OSError as error:
        problem = f"{path}: can't be {done}: {reason(error)}"
        if error.errno in KINDS:
            raise UserError(problem) from error
        if error.errno == errno.ENOENT:
            remedy = "if its folder is moved back, --resume continues the run; if it is lost, start the run again"
        else:
            remedy = (
                f"{REMEDIES.get(error.errno or 0, FAILING)}; finished cycles are kept, and --resume continues the run"
            )
        raise StorageError(f"{problem}; {remedy}") from error


def read(path: Path, most: int | None = None) -> bytes:
    """Return the content of a file, or its first ``most`` bytes. A pipe or a device is refused like a folder."""
    file = os.open(no_pipe(path), os.O_RDONLY)
    try:
        parts, size = [], 0
        left = os.fstat(file).st_size + 1  # so that one part holds it all, and no copy is made
        while part := os.read(file, left if most is None else min(left, most - size)):
            parts.append(part)
            size += len(part)
            left = max(left - len(part), 2**16)
        return b"".join(parts)
    finally:
        os.close(file)


def names(folder: Path) -> list[str]:
    """Return the names of the files and folders in a folder."""
    return os.listdir(folder)


def exists(path: Path) -> bool:
    """Return whether a file or a folder is there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def changed(path: Path) -> float:
    """Return when a file was written or renewed, by the clock of the file system."""
    return os.stat(path).st_mtime


def signatures(folder: Path, pattern: re.Pattern[str]) -> dict[str, tuple[int, ...] | None]:
    """Return the signature of each file in a folder whose name matches: it differs once the file has been changed.

    A signature is (bytes, time of the last change of the content, of the file, inode), with times in ns: who restores
    the time of the content changes that of the file. None: what has that name is not a regular file.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:  # removed, or whoever reads it says what is wrong
            found[name] = None
            continue
        signature = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        found[name] = signature if stat.S_ISREG(status.st_mode) else None
    return found


def renew(path: Path) -> None:
    """Give a file the current time of the file system's clock."""
    os.utime(path)


def make(folder: Path) -> None:
    """Make a folder, and those above it that are missing. The folder lasts even if an earlier process made it."""
    if not exists(folder):
        make(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
    with suppress(PermissionError):  # it need not be the user's
        sync(folder.parent)


def sync(folder: Path) -> None:
    """Let what was created, renamed and removed in a folder last."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does this by itself
            raise
    finally:
        os.close(file)


def write(path: Path, data: bytes | memoryview, new: bool = False) -> None:
    """Write a file in place; its content lasts if its name does.

    ``new``: raise FileExistsError if the file is there, and remove it if it can't be written.
    """
    file = os.open(path, os.O_CREAT | os.O_WRONLY | (os.O_EXCL if new else os.O_TRUNC), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        if new:
            remove(path)
        raise
    finally:
        os.close(file)


def move(path: Path, to: Path) -> None:
    """Give a file another name in its folder; one that has that name already is replaced."""
    os.replace(path, to)
    sync(to.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def temporary(path: Path) -> Path:
    """Return the name that this process writes a file under before the file gets its own."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def sweep(folder: Path) -> None:
    """Remove what dead processes left in the folder of a run, as far as possible; only who holds it may do that.

    In some folders, the files of processes that live on this host stay: see SHARED.
    """
    folders = [folder, *(folder / name for name in (*SHARED, "logs", "index_sets"))]
    for name in ("trials", "shared"):
        folders += [folder / name / each for each in _names_if_any(folder / name)]
    for each in folders:
        names_here = _names_if_any(each)
        left = [n for n in names_here if TEMPORARY.fullmatch(n) and (each.name not in SHARED or not _writing(n))]
        left += [n for n in names_here if (match := WITHIN.fullmatch(n)) and f"{match[1]}.json" in names_here]
        for name in left:
            with suppress(OSError):
                remove(each / name)


def _names_if_any(folder: Path) -> list[str]:
    try:
        return names(folder)
    except OSError:
        return []


def _writing(name: str) -> bool:
    """Return whether another process of this host that may write a temporary file is alive."""
    host, pid = name.removesuffix(".tmp").rpartition(".")[::2]
    if not host.endswith(f".{socket.gethostname()}") or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True

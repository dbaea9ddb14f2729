"""What was found out about files, remembered from run to run: reading 140 GB at every start would take an hour.

A file's entry holds while its size and both of its times (of content and of status) are unchanged. Entries are in the
user's cache folder, one JSON file for each folder of files. A cache that can't be read or written costs time, no more.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from harness.errors import BadFile, no_pipe, reason

SETTLED_SECONDS = 2.0
"""A file whose status changed later is not remembered: it could change again without a change of its times."""
AT_ONCE = 256
"""Files whose sizes and times one thread asks for at a time."""
WRITTEN_EVERY = 30.0
"""Seconds between two writes while many files are read, so that a stopped run does not start from nothing."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_entries: dict[str, dict[str, dict[str, Any]]] = {}
"""Folder -> name of a file -> what is known of it, with its ``stamp``; as far as this process has asked."""
_forgetting = False


def cache_folder() -> Path:
    """Return the folder of the entries, $HARNESS_CACHE or in the user's caches. It may be removed at any time."""
    if given := os.environ.get("HARNESS_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "deep-al-harness"


@contextmanager
def afresh() -> Iterator[None]:
    """Find out everything again in a ``with`` block, and remember that."""
    global _forgetting
    _entries.clear()
    _forgetting = True
    try:
        yield
    finally:
        _forgetting = False


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """Yield the results in the order of the items. An error, or Ctrl-C, does not wait for the items that are left."""
    pool = ThreadPoolExecutor(threads or max(4, os.cpu_count() or 1))  # reading may wait for a disk on a network
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def known(paths: Sequence[Path], what: str, find: Callable[[Path], Any]) -> list[Any]:
    """Return ``find(path)`` for each file, a JSON value, from memory where that holds; or the BadFile that it raises.

    ``what`` names the kind of value. A BadFile is not remembered.
    """
    parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    stamps = [stamp for part in in_threads(_stamps, parts) for stamp in part]
    found: list[Any] = [None] * len(paths)
    wanted: dict[str, list[int]] = defaultdict(list)
    for position, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        if isinstance(stamp, BadFile):
            found[position] = stamp
        else:
            folder = os.path.dirname(path)  # noqa: PTH120 (ten times as fast as Path's)
            wanted[folder].append(position)
    for name, positions in wanted.items():
        folder = str(Path(name).absolute())
        entries = _of(folder)
        unknown = []
        for position in positions:
            entry = entries.get(paths[position].name)
            if isinstance(entry, dict) and entry.get("stamp") == stamps[position] and what in entry:
                found[position] = entry[what]
            else:
                unknown.append(position)
        new: dict[str, dict[str, Any]] = {}
        written = time.monotonic()
        for position, value in zip(unknown, in_threads(lambda p: _tried(find, paths[p]), unknown), strict=True):
            found[position], stamp, name = value, stamps[position], paths[position].name
            if (
                isinstance(value, BadFile)
                or isinstance(stamp, BadFile)
                or time.time() - stamp[2] / 1e9 < SETTLED_SECONDS  # anyone may set the time of content
            ):
                continue
            old = entries.get(name)
            kept = old if isinstance(old, dict) and old.get("stamp") == stamp else {}
            new[name] = entries[name] = {**kept, "stamp": stamp, what: value}
            if time.monotonic() - written > WRITTEN_EVERY:
                _write(folder, new)
                written = time.monotonic()
        if new:
            _write(folder, new)
    return found


def _stamps(paths: Sequence[Path]) -> list[list[int] | BadFile]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> list[int] | BadFile:
    try:
        stat = path.stat()
    except OSError as error:
        return BadFile(f"{path} can't be read ({reason(error)})")
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        return BadFile(f"{path} can't be read (it is no regular file)")
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _tried(find: Callable[[Path], Any], path: Path) -> Any:
    try:
        return find(path)
    except BadFile as bad:
        return bad


def _file(folder: str) -> Path:
    return cache_folder() / f"{sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _of(folder: str) -> dict[str, dict[str, Any]]:
    if folder not in _entries:
        _entries[folder] = {} if _forgetting else _read(folder)
    return _entries[folder]


def _read(folder: str) -> dict[str, dict[str, Any]]:
    try:
        stored = json.loads(no_pipe(_file(folder)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(folder: str, new: dict[str, dict[str, Any]]) -> None:
    """Add entries to a folder's file, which is replaced as a whole; the last of two processes wins."""
    with suppress(OSError, RuntimeError):
        file = _file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=file.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump({**_read(folder), **new}, stream, separators=(",", ":"))
            Path(part).replace(file)
        except BaseException:
            Path(part).unlink()
            raise

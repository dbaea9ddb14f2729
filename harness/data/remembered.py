"""What was found out about files, remembered from run to run: reading 140 GB at every start would take an hour.

A file's entry holds while its size and both of its times (of content and of status) are unchanged. Entries are in the
user's cache folder, one file for each folder of files, with a line for each file: its name and its entry, as JSON. Only
the lines of the files that are asked for are held. A cache that can't be read or written costs time, no more.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from harness.data.host import Said
from harness.data.paths import Paths
from harness.errors import BadFile, expanded, no_pipe, reason

SETTLED_SECONDS = 2.0
"""A file whose status changed later is not remembered: it could change again without a change of its times."""
AT_ONCE = 256
"""Files whose sizes and times one thread asks for at a time."""
TOGETHER = 10_000
"""Files of one folder that are asked for together."""
MOST_ENTRIES = 20_000
"""Files that are kept in mind, besides those that are asked for together; each takes about a kilobyte."""
AHEAD = 2
"""Items for each thread that are worked on before the result of the first one is taken."""
WRITTEN_EVERY = 30.0
"""Seconds between two writes while many files are read, so that a stopped run does not start from nothing."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_entries: dict[str, dict[str, dict[str, Any]]] = {}
"""Folder -> name of a file -> what is known of it, with its ``stamp``; as far as this process has asked."""
_forgetting = False
_found_again: set[str] = set()
"""Folders of which something was found out again."""
_bad: dict[str, list[int]] = {}
"""Files that were found to be bad again, with their stamps: of any suite, as one may know them from another."""
_places: dict[str, int] = {}
"""Folder -> bytes of its file before which the last entries that were asked for ended."""
_kept_old: set[str] = set()
"""Folders whose old entries can't be removed, so that they must not be read."""


def cache_folder() -> Path:
    """Return the folder of the entries, $HARNESS_CACHE or in the user's caches. It may be removed at any time."""
    if given := os.environ.get("HARNESS_CACHE"):
        return expanded(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "deep-al-harness"


@contextmanager
def afresh() -> Iterator[None]:
    """Find out everything again in a ``with`` block, and remember that."""
    global _forgetting
    _entries.clear()
    _found_again.clear()
    _kept_old.clear()
    _bad.clear()
    _forgetting = True
    try:
        yield
    finally:
        _forgetting = False
        _kept_old.clear()


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """Yield the results in the order of the items, of which a few are worked on ahead.

    An error, or Ctrl-C, does not wait for the items that are left.
    """
    threads = threads or max(4, os.cpu_count() or 1)  # reading may wait for a disk on a network
    pool, left = ThreadPoolExecutor(threads), iter(items)
    try:
        waiting = deque(pool.submit(function, item) for item in islice(left, AHEAD * threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def known(paths: Iterable[Path], what: str, find: Callable[[Path], Any]) -> list[Any]:
    """Return what ``each`` yields."""
    return list(each(paths, what, find))


def each(paths: Iterable[Path], what: str, find: Callable[[Path], Any]) -> Iterator[Any]:
    """Yield ``find(path)`` for each file, a JSON value, from memory where that holds; or the BadFile that it raises.

    ``what`` names the kind of value. A BadFile is not remembered. Of a million files, only some are held at a time:
    those that follow each other in one folder, and what is known of a few folders.
    """
    texts = paths.texts() if isinstance(paths, Paths) else map(os.fspath, paths)  # ten times as fast as Path's
    said = Said("reading files")
    for name, together in groupby(texts, key=os.path.dirname):
        folder = str(Path(name).absolute())
        while some := list(islice(together, TOGETHER)):
            yield from _of_some(some, folder, what, find)
            said.add(len(some))


def _of_some(paths: Sequence[str], folder: str, what: str, find: Callable[[Path], Any]) -> list[Any]:
    """Return the values of files of one folder."""
    parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    stamps = [stamp for part in in_threads(_stamps, parts) for stamp in part] if len(parts) > 1 else _stamps(paths)
    entries = _of(folder, [path.rpartition(os.sep)[2] for path in paths])
    found: list[Any] = [None] * len(paths)
    unknown = []
    for position, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        entry = entries.get(path.rpartition(os.sep)[2])
        if isinstance(stamp, BadFile):
            found[position] = stamp
        elif isinstance(entry, dict) and entry.get("stamp") == stamp and what in entry:
            found[position] = entry[what]
        else:
            unknown.append(position)
    if not unknown:
        return found
    new: dict[str, dict[str, Any]] = {}
    written = time.monotonic()
    for position, value in zip(unknown, in_threads(lambda p: _tried(find, Path(paths[p])), unknown), strict=True):
        found[position], stamp, name = value, stamps[position], paths[position].rpartition(os.sep)[2]
        if _forgetting and isinstance(value, BadFile) and not isinstance(stamp, BadFile):
            _bad[str(Path(folder, name))] = stamp
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
            _write(_name(folder), _merged(folder, new))
            written = time.monotonic()
    if new:
        _write(_name(folder), _merged(folder, new))
    return found


def of_content(key: str, find: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    """Return ``find()``, a JSON value of what a hash stands for, from memory where it is known and ``fits``.

    None is not remembered.
    """
    name = f"content-{key}.json"
    value = None if _forgetting else _read(name).get("value")
    if not fits(value) and (value := find()) is not None:
        _write(name, [json.dumps({"value": value})])
    return value


def keep_problem(key: str, problem: str) -> None:
    """Remember what is wrong with data, "" if nothing is, while one of the files just found bad is as it was."""
    _write(f"problem-{key}.json", [json.dumps({"problem": problem, "files": _bad if problem else {}})])


def problem(key: str) -> str:
    """Return what ``keep_problem`` has remembered, or "" if it does not hold any more."""
    stored = _read(f"problem-{key}.json")
    text, files = stored.get("problem"), stored.get("files")
    if not isinstance(text, str) or not isinstance(files, dict):
        return ""
    return text if any(_stamp(path) == stamp for path, stamp in files.items()) else ""


def forgetting() -> bool:
    """Return whether everything is to be found out again."""
    return _forgetting


def _stamps(paths: Sequence[str]) -> list[list[int] | BadFile]:
    return [_stamp(path) for path in paths]


def _stamp(path: str) -> list[int] | BadFile:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return BadFile(path, f"can't be read ({reason(error)})")
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        return BadFile(path, "can't be read (it is no regular file)")
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _tried(find: Callable[[Path], Any], path: Path) -> Any:
    try:
        return find(path)
    except BadFile as bad:
        return bad


def _file(folder: str) -> Path:
    return cache_folder() / _name(folder)


def _name(folder: str) -> str:
    return f"{sha256(os.fsencode(folder)).hexdigest()[:32]}.tsv"


def _of(folder: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of files of a folder, and maybe of others there. What was asked for long ago is dropped."""
    entries = _entries.pop(folder, {})
    while sum(map(len, _entries.values())) > MOST_ENTRIES:
        del _entries[next(iter(_entries))]
    if _forgetting and folder not in _found_again:
        _found_again.add(folder)
        entries = {}
        try:
            _file(folder).unlink(missing_ok=True)
        except (OSError, RuntimeError):
            _kept_old.add(folder)
    if len(entries) > MOST_ENTRIES:
        entries = {}
    _entries[folder] = entries
    unknown = [name for name in names if name not in entries]
    if unknown and folder not in _kept_old:
        entries |= _lines(folder, unknown)
    return entries


def _lines(folder: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the stored entries of some files of a folder.

    They are looked for from where the last ones ended, then from the start: files are asked for in the order of their
    entries, and a folder of a million files is read once, not once for each TOGETHER.
    """
    wanted, found = {json.dumps(name).encode(): name for name in names}, {}
    with suppress(OSError, ValueError, RuntimeError), no_pipe(_file(folder)).open("rb") as file:
        begin, end = _places.get(folder, 0), file.seek(0, os.SEEK_END)
        for start, stop in ((begin, end), (0, begin)):
            place = file.seek(start)
            for line in file:
                place += len(line)
                name, _, text = line.partition(b"\t")
                if name in wanted:
                    found[wanted[name]] = json.loads(text)
                    _places[folder] = place
                if len(found) == len(wanted):
                    return found
                if place >= stop:
                    break
    return found


def _merged(folder: str, new: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a folder's file with new entries."""
    added = {json.dumps(name): json.dumps(entry, separators=(",", ":")) for name, entry in new.items()}
    with suppress(OSError, ValueError), no_pipe(_file(folder)).open(encoding="utf-8") as file:
        for line in file:
            name, tab, _ = line.partition("\t")
            if tab and line.endswith("\n") and name not in added:
                yield line
    yield from (f"{name}\t{text}\n" for name, text in added.items())


def _read(name: str) -> dict[str, Any]:
    try:
        stored = json.loads(no_pipe(cache_folder() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(name: str, lines: Iterable[str]) -> None:
    """Write a file, which is replaced as a whole; the last of two processes wins."""
    with suppress(OSError, RuntimeError):
        file = cache_folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=file.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.writelines(lines)
            Path(part).replace(file)
        except BaseException:
            Path(part).unlink()
            raise

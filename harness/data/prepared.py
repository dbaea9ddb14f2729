"""Decodes all images of a dataset once, before a run, and keeps them on disk as they are used.

The pass finds the files that can't be used and counts pixel values. What is kept serves all trials of a machine, which
share it through the system's cache of files, and all later runs. Rows are those that decoding gives, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import files as files_module
from harness.data import pixels, remembered
from harness.data.files import Files
from harness.data.host import in_units, processors
from harness.data.shards import COUNTS, SHARD_BYTES, Shards
from harness.errors import BadFile, expanded, no_pipe, readable, reason
from harness.results import code

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.data.dataset import LoadedData

OF_DISK = 0.5
"""Share of a disk's free space that prepared images may take."""
BY_ITSELF = 50 * 10**9
"""Bytes that the images of a dataset may take in a folder that nobody has named."""
AT_ONCE = 2**20
"""Bytes of rows that a thread decodes at a time, or one row; limits the memory."""
SAID_AFTER, SAID_EVERY = 10.0, 30.0
"""Seconds of decoding after which a line says how far it is, and between two such lines."""
STALE = 24 * 3600.0
"""Age in seconds at which an unfinished shard is of a process that was killed."""
ABOUT = "about.json"


@dataclass(frozen=True)
class Place:
    """Where prepared images are kept."""

    folder: Path
    named: bool
    """Whether the user has named the folder, so that it may be filled."""


def place(written: bool | str) -> Place | None:
    """Return the place for the config's ``where.prepared``; None: images are not prepared."""
    if written is False:
        return None
    if isinstance(written, str):
        return Place(expanded(written).absolute(), True)
    try:
        return Place((remembered.cache_folder() / "prepared").absolute(), False)
    except RuntimeError:  # there is no home
        return None


def applied(data: LoadedData, where: Place | None) -> LoadedData:
    """Return loaded data whose resized images and label maps are prepared, as far as there is a place for them."""

    def ready(files: Files) -> Files:
        if where is None or files.prepared is not None or not wanted(files):
            return files
        ((found,), _) = looked_over([files], where)
        return found

    return data.with_files(ready)


def wanted(files: Files) -> bool:
    """Return whether rows of files are worth keeping: those that are resized."""
    return files.cover is not None or files.scale != 1


def looked_over(
    parts: Sequence[Files], where: Place | None, more: str = ""
) -> tuple[list[Files], list[NDArray[np.int64]]]:
    """Decode all files once, as far as that was not done before; return them, prepared, and counts of pixel values.

    The counts [channel, value] of the images of each part are of their rows. Raises DataMissing, which names all files
    of all parts that can't be used; ``more`` says what also helps.
    """
    found, counts, bad = list[Files](), list[Any](), list[BadFile]()
    for files in parts:
        digest = files.digest()
        decoder = f"{pixels.reader()}, {code.of_file(Path(files_module.__file__))}, shards of {SHARD_BYTES}"
        key = hashlib.sha256(digest + decoder.encode()).hexdigest()[:32]
        shards = _shards(files, key, where)
        if shards is None:
            known = remembered.of_content(key, partial(_counted, files, bad), _are_counts)
            counts.append(np.array(known or np.zeros(COUNTS), dtype=np.int64))
        else:
            before = len(bad)
            counts.append(_prepared(files, shards, bad))
            if len(bad) > before:  # once the bad files are replaced, the hash is another one
                shutil.rmtree(shards.folder, ignore_errors=True)
        found.append(replace(files, prepared=shards, digested=digest))
    if bad:
        raise pixels.refused(bad, sum(map(len, parts)), more)
    return found, counts


def _shards(files: Files, key: str, where: Place | None) -> Shards | None:
    """Return where the rows of files are, or will be; None if they find no place, which a line then says."""
    if where is None:
        return None
    shards = Shards(where.folder / key, len(files), files.nbytes // max(1, len(files)))
    if all(shards.counts(shard) is not None for shard in range(len(shards))):
        return shards
    less = "set where.prepared to a folder with more space, or to false"
    try:
        nearest = next(folder for folder in (where.folder, *where.folder.parents) if folder.is_dir())
        free = shutil.disk_usage(nearest).free
        if shards.nbytes > BY_ITSELF and not where.named:
            problem = f"would take {in_units(shards.nbytes)}, more than {in_units(BY_ITSELF)}"
            less = "set where.prepared to the folder that may hold them, or to false"
        elif shards.nbytes > OF_DISK * free:
            problem = (
                f"would take {in_units(shards.nbytes)}, and {in_units(free)} are free, of which they may take half"
            )
        else:
            shards.folder.mkdir(parents=True, exist_ok=True)
            return shards
    except OSError as error:
        problem = f"can't be kept there ({reason(error)})"
    print(f"note: prepared images are not in {where.folder}: they {problem}; {less}", flush=True)
    return None


def _prepared(files: Files, shards: Shards, bad: list[BadFile]) -> NDArray[np.int64]:
    """Write the shards that are missing, and return the counts of all; bad files are added to ``bad``.

    Several processes may do so at the same time: each shard is put in its place as a whole. On a full disk, the others
    are only decoded.
    """
    total, writing, report = np.zeros(COUNTS, dtype=np.int64), True, _Progress(len(files))
    _sweep(shards.folder)
    _note_use(files, shards.folder)
    for shard in range(len(shards)):
        counts = None if remembered.forgetting() else shards.counts(shard)
        if counts is None:
            counts, written = _shard(files, shards, shard, bad, writing, report)
            if writing and isinstance(written, OSError):
                writing = False
                which = f"after {shard} of {len(shards)} parts; the other images are decoded from their files"
                print(f"note: {shards.folder} can't be written to ({reason(written)}) {which}", flush=True)
        total += counts
    return total


def _note_use(files: Files, folder: Path) -> None:
    """Write what the folder is of, for people, or that it is used now."""
    about, part = folder / ABOUT, folder / f".part-{os.getpid()}-about"
    with suppress(OSError):
        if about.is_file():
            os.utime(about)
            return
        height, width = files.size
        like = readable(str(files.paths[0]))
        text = {"rows": len(files), "height": height, "width": width, "like": like, "maps": files.ndim == 3}
        part.write_text(json.dumps(text), encoding="utf-8")
        part.replace(about)


def _shard(
    files: Files, shards: Shards, shard: int, bad: list[BadFile], writing: bool, report: _Progress
) -> tuple[NDArray[np.int64], OSError | None]:
    """Decode the rows of a shard and, if ``writing``, write it; return its counts, and what the disk says."""
    part, before, problem = shards.folder / f".part-{os.getpid()}-{shard}", len(bad), None
    counts = np.zeros(COUNTS, dtype=np.int64)
    stream = None
    try:
        for rows, its_counts in _decoded(files, shards.rows(shard), bad):
            counts += its_counts
            report.add(len(rows))
            if not writing or problem is not None or len(bad) > before:
                continue
            try:
                stream = stream or part.open("wb")
                stream.write(rows.data)
            except OSError as error:
                problem = error
        if stream is not None and problem is None and len(bad) == before:
            try:
                stream.write(counts.astype("<i8").tobytes())
                stream.flush()
                os.fsync(stream.fileno())
                part.replace(shards.path(shard))
            except OSError as error:
                problem = error
    finally:
        with suppress(OSError):
            if stream is not None:
                stream.close()
            part.unlink(missing_ok=True)
    return counts, problem


def _decoded(files: Files, indices: range, bad: list[BadFile]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield (rows, their counts of pixel values) of consecutive files; bad files are added to ``bad``."""
    step = max(1, AT_ONCE * len(files) // max(1, files.nbytes))

    def decode(first: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[BadFile]]:
        some = indices[first : first + step]
        rows, wrong = np.zeros((len(some), *files.shape[1:]), dtype=np.uint8), []
        for index, row in zip(some, rows, strict=True):
            try:
                files.decode(index, row)
            except BadFile as problem:
                wrong.append(problem)
        return rows, _histogram(rows), wrong

    for rows, counts, wrong in remembered.in_threads(decode, range(0, len(indices), step), processors()):
        bad += wrong
        yield rows, counts


def _histogram(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels [channel, value] of images [N, H, W, 3]; zeros for label maps."""
    if rows.ndim != 4 or not rows.size:
        return np.zeros(COUNTS, dtype=np.int64)
    from PIL import Image

    number, height, width, _ = rows.shape
    return np.array(Image.fromarray(rows.reshape(number * height, width, 3)).histogram()).reshape(COUNTS)


def _counted(files: Files, bad: list[BadFile]) -> list[list[int]] | None:
    """Decode all files and return their counts of pixel values, or None if some are bad, which are added to ``bad``."""
    total, report, before = np.zeros(COUNTS, dtype=np.int64), _Progress(len(files)), len(bad)
    for rows, counts in _decoded(files, range(len(files)), bad):
        total += counts
        report.add(len(rows))
    return None if len(bad) > before else total.tolist()


def _are_counts(value: Any) -> bool:
    try:
        counts = np.array(value)
    except ValueError:
        return False
    return counts.shape == COUNTS and counts.dtype == np.int64


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder."""
    with suppress(OSError):
        for part in folder.glob(".part-*"):
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


class _Progress:
    """Says how far a long decoding is."""

    def __init__(self, total: int) -> None:
        self.total, self.decoded = total, 0
        self.began = time.monotonic()
        self.said = self.began + SAID_AFTER - SAID_EVERY

    def add(self, count: int) -> None:
        """Count images that were decoded."""
        self.decoded += count
        now = time.monotonic()
        if now - self.said > SAID_EVERY:
            self.said = now
            rate = self.decoded / (now - self.began)
            print(f"decoding {self.total} images once: {rate:.0f} a second, {self.decoded} done", flush=True)


def sets(folder: Path) -> list[tuple[Path, dict[str, Any], int, float]]:
    """Return (folder, what is in it, bytes, time of the last use) of each set of prepared images, oldest first."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError, ValueError):
                about = json.loads(no_pipe(path / ABOUT).read_text(encoding="utf-8"))
                about = about if isinstance(about, dict) else {}
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append((path, about, size, (path / ABOUT).stat().st_mtime))
    return sorted(found, key=lambda one: one[3])

"""Decodes all images of a dataset once, before a run, and keeps them on disk as they are used.

The pass finds the files that can't be used and counts pixel values. What is kept serves all trials of a machine, which
share it through the system's cache of files, and all later runs. Rows are those that decoding gives, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
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
from harness.data.host import Said, in_units, processors
from harness.data.paths import Paths
from harness.data.shards import COUNTS, SHARD_BYTES, Shards
from harness.errors import BadFile, DataMissing, expanded, gathered, no_pipe, readable, reason
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
STALE = 24 * 3600.0
"""Age in seconds at which an unfinished shard is of a process that was killed."""
ABOUT = "about.json"
WRITTEN = {"rows": int, "height": int, "width": int, "like": str, "maps": bool, "decoder": str}
"""What ABOUT holds."""
NAME = re.compile("[0-9a-f]{32}")
"""The name of the folder of a set."""


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
    """Return loaded data whose resized images and label maps are prepared, as far as there is a place for them.

    Files that the dataset has looked over itself stay as they are.
    """
    parts = [files for files in data.decoded if wanted(files) and files.digested is None]
    if where is None or not parts:
        return data
    found = dict(zip(parts, looked_over(parts, where, counted=False)[0], strict=True))
    return data.with_files(lambda files: found.get(files, files))


def wanted(files: Files) -> bool:
    """Return whether rows of files are worth keeping: those that are resized."""
    return files.cover is not None or files.scale != 1


def looked_over(
    parts: Sequence[Files], where: Place | None, remedy: str = pixels.REPLACE, counted: bool = True
) -> tuple[list[Files], list[NDArray[np.int64]]]:
    """Decode all files once, as far as that was not done before; return them, prepared, and counts of pixel values.

    The counts [channel, value] of the images of each part are of their rows. Without ``counted``, files are decoded
    only to be kept, and the counts are zeros if they are not. Raises DataMissing, which names all files of all parts
    that can't be used; ``remedy``: see ``pixels.refused``.
    """
    hashes = gathered(partial(files.hashes, remedy) for files in parts)
    digests = [files.digest(its) for files, its in zip(parts, hashes, strict=True)]
    keys = [hashlib.sha256(digest + _decoder().encode()).hexdigest()[:32] for digest in digests]
    folder = Path(os.devnull) if where is None else where.folder  # there is nothing in it
    kept = [
        Shards(folder / key, len(files), files.nbytes // max(1, len(files)))
        for files, key in zip(parts, keys, strict=True)
    ]
    writing = where is not None and _may_write(kept, where)
    found, counts, bad = list[Files](), list[Any](), list[BadFile]()
    for files, its, digest, key, shards in zip(parts, hashes, digests, keys, kept, strict=True):
        total = None
        if writing:
            total = _prepared(files, its, shards, bad)
        elif counted:
            total = remembered.of_content(key, partial(_counted, files, its, shards, bad), _are_counts)
        counts.append(np.array(np.zeros(COUNTS) if total is None else total, dtype=np.int64))
        there = writing or len(shards.missing()) < len(shards)
        found.append(replace(files, prepared=shards if there else None, digested=digest))
    if bad:
        for shards in kept:
            with suppress(OSError):  # what holds shards stays: a later start goes on with them
                shards.folder.rmdir()
        raise pixels.refused(bad, sum(map(len, parts)), remedy)
    return found, counts


def usable(about: dict[str, Any]) -> bool:
    """Return whether a run of this version uses a set; see ``sets``."""
    return bool(about["decoder"] == _decoder())


def _decoder() -> str:
    """Return what rows depend on besides files and their settings."""
    return f"{pixels.reader()}, {code.of_file(Path(files_module.__file__))}, shards of {SHARD_BYTES}"


def refusal(nbytes: int, missing: int, where: Place) -> str:
    """Return why images of ``nbytes``, of which ``missing`` are still to be written, are not kept, and what helps.

    "": they may be kept.
    """
    if not missing:
        return ""
    elsewhere = "set where.prepared to a folder with more space, or to false"
    try:
        nearest = next(folder for folder in (where.folder, *where.folder.parents) if folder.is_dir())
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        return f"can't be kept there ({reason(error)}); {elsewhere}"
    if nbytes > BY_ITSELF and not where.named:
        return (
            f"would take {in_units(nbytes)}, more than {in_units(BY_ITSELF)}; set where.prepared to the folder that "
            "may hold them, or to false"
        )
    if missing > OF_DISK * free:
        more = " more" if missing < nbytes else ""
        return (
            f"would take {in_units(missing)}{more}, and {in_units(free)} are free, of which they may take half; "
            f"{elsewhere}"
        )
    return ""


def _may_write(kept: Sequence[Shards], where: Place) -> bool:
    """Return whether the shards that are missing may be written; if not, a line says why."""
    missing = sum(shards.nbytes(shards.missing()) for shards in kept)
    problem = refusal(sum(shards.nbytes(range(len(shards))) for shards in kept), missing, where)
    try:
        for shards in kept if missing and not problem else ():
            shards.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"can't be kept there ({reason(error)}); set where.prepared to another folder, or to false"
    if problem:
        print(f"note: prepared images are not in {where.folder}: they {problem}", flush=True)
    return not problem


def _prepared(files: Files, hashes: NDArray[np.uint8], shards: Shards, bad: list[BadFile]) -> NDArray[np.int64]:
    """Write the shards that are missing, and return the counts of all; bad files are added to ``bad``.

    Several processes may do so at the same time: each shard is put in its place as a whole. One with a bad file is not
    written. On a full disk, the others are only decoded.
    """
    total, writing, report = np.zeros(COUNTS, dtype=np.int64), True, Said(f"decoding {len(files)} images once")
    _sweep(shards.folder)
    if len(shards.missing()) < len(shards):
        _note_use(files, shards.folder)
    for shard in range(len(shards)):
        counts = None if remembered.forgetting() else shards.counts(shard)
        if counts is None:
            counts, written = _shard(files, hashes, shards, shard, bad, writing, report)
            if writing and isinstance(written, OSError):
                writing = False
                which = f"after {shard} of {len(shards)} parts; the other images are decoded from their files"
                print(f"note: {shards.folder} can't be written to ({reason(written)}) {which}", flush=True)
        total += counts
    return total


def _part(folder: Path) -> Path:
    """Return an unfinished file: no other process has its name, also none of a container with the same process ids."""
    return folder / f".part-{secrets.token_hex(8)}"


def _note_use(files: Files, folder: Path) -> None:
    """Write what the folder is of, for people and for ``sets``, or that it is used now."""
    about, part = folder / ABOUT, _part(folder)
    with suppress(OSError):
        if about.is_file():
            os.utime(about)
            return
        height, width = files.size
        like = readable(str(files.paths[0]))
        text = {"rows": len(files), "height": height, "width": width, "like": like, "maps": files.ndim == 3}
        text["decoder"] = _decoder()
        part.write_text(json.dumps(text), encoding="utf-8")
        part.replace(about)


def _shard(
    files: Files,
    hashes: NDArray[np.uint8],
    shards: Shards,
    shard: int,
    bad: list[BadFile],
    writing: bool,
    report: Said,
) -> tuple[NDArray[np.int64], OSError | None]:
    """Decode the rows of a shard and, if ``writing``, write it; return its counts, and what the disk says."""
    part, before, problem = _part(shards.folder), len(bad), None
    counts = np.zeros(COUNTS, dtype=np.int64)
    stream = None
    try:
        for rows, its_counts in _decoded(files, shards.rows(shard), bad):
            counts += its_counts
            report.add(len(rows))
            if not writing or problem is not None or len(bad) > before:
                continue
            try:
                stream = stream or part.open("xb")
                stream.write(rows.data)
            except OSError as error:
                problem = error
        if len(bad) == before:
            _check_unchanged(files, shards.rows(shard), hashes)
        if stream is not None and problem is None and len(bad) == before:
            try:
                stream.write(counts.astype("<i8").tobytes())
                stream.flush()
                os.fsync(stream.fileno())
                _note_use(files, shards.folder)
                part.replace(shards.path(shard))
            except OSError as error:
                problem = error
    finally:
        with suppress(OSError):
            if stream is not None:
                stream.close()
            part.unlink(missing_ok=True)
    return counts, problem


def _check_unchanged(files: Files, indices: Sequence[int], hashes: NDArray[np.uint8]) -> None:
    """Raise DataMissing if one of the files is not the one that was hashed, under whose hash its row would be kept."""
    assert isinstance(files.paths, Paths)
    rows = np.asarray(indices, dtype=np.int64)
    changed = rows[(replace(files, paths=files.paths[rows]).hashes() != hashes[rows]).any(axis=1)]
    if len(changed):
        name = files.paths[int(changed[0])]
        raise DataMissing(f"{name} has changed since this start read it: start again when nothing writes to it")


def _decoded(
    files: Files, indices: Sequence[int], bad: list[BadFile]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield (rows, their counts of pixel values) of some of the files at a time; bad files are added to ``bad``."""
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


def _counted(files: Files, hashes: NDArray[np.uint8], shards: Shards, bad: list[BadFile]) -> list[list[int]] | None:
    """Return the counts of pixel values of all files, which are decoded unless they are in a shard.

    None: some are bad, and are added to ``bad``.
    """
    report, total = Said(f"decoding {len(files)} images once"), np.zeros(COUNTS, dtype=np.int64)
    before, missing = len(bad), list[int]()
    for shard in range(len(shards)):
        if (counts := shards.counts(shard)) is None:
            missing += shards.rows(shard)
        else:
            total += counts
    for rows, its_counts in _decoded(files, missing, bad):
        total += its_counts
        report.add(len(rows))
    if len(bad) > before:
        return None
    _check_unchanged(files, missing, hashes)
    return total.tolist()


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


def sets(folder: Path) -> list[tuple[Path, dict[str, Any], int, float]]:
    """Return (folder, what is in it, bytes, time of the last use) of each set of prepared images, oldest first."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError, ValueError, TypeError, RecursionError):
                about = json.loads(no_pipe(path / ABOUT).read_text(encoding="utf-8"))
                about = {"decoder": "", **about}  # sets of earlier versions do not say it
                types = {key: type(value) for key, value in about.items()}
                if NAME.fullmatch(path.name) and types == WRITTEN:
                    size = sum(file.stat().st_size for file in _own(path))
                    found.append((path, about, size, (path / ABOUT).stat().st_mtime))
    return sorted(found, key=lambda one: one[3])


def remove(path: Path) -> None:
    """Remove a set's own files, and its folder if nothing else is in it. Raises OSError."""
    for file in _own(path):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def _own(path: Path) -> list[Path]:
    """Return the files of a set; what names it is the last one, so that the others can be found until they are gone."""
    return [file for pattern in ("*.rows", ".part-*", ABOUT) for file in path.glob(pattern)]

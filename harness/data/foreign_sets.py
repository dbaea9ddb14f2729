"""Reads index sets that others have published: arrays of numpy, lists in JSON, and lists of numbers as text.

Each list is the labelled set of a cycle, as SRAAL's authors publish them (10.npy, 15.npy, ... hold all labelled
images), or the images that a cycle adds (TorchAL's lSet.npy, then an activeSet.npy for each cycle). No pickle is read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from harness.data.index_sets import MOST_INDEX, SeedSets
from harness.errors import UserError, no_pipe, reason
from harness.lazy import np

MOST_BYTES = 500_000_000  # of a file, and of what it unpacks to
NO_PICKLE = (
    "is a pickle, or holds one, and pickles are not read, because they can run commands; where you trust the file, "
    "convert it: numpy.save('new.npy', numpy.array(numpy.load(FILE, allow_pickle=True), dtype='int64'))"
)


def content(path: Path) -> bytes:
    """Return the bytes of a file. Raises UserError."""
    try:
        with no_pipe(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {reason(error)}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: has more than {MOST_BYTES} bytes")
    return data


def lists(path: Path) -> list[list[int]]:
    """Return the lists of indices in a file, in its order; most files have one. Raises UserError."""
    kind = path.suffix.lower()
    if kind in (".pkl", ".pickle", ".p", ".pt", ".pth"):
        raise UserError(f"{path}: {NO_PICKLE}")
    if kind not in READERS:
        raise UserError(f"{path}: is no file of index sets; allowed: {', '.join(READERS)}")
    data = content(path)
    try:
        found = READERS[kind](data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # zipfile and numpy raise many kinds
        raise UserError(f"{path}: can't be read as {kind[1:]}: {reason(error)}") from None
    if not found or not all(found):
        raise UserError(f"{path}: has an empty list")
    for index in (index for each in found for index in (min(each), max(each))):
        if not 0 <= index <= MOST_INDEX:
            raise UserError(f"{path}: an index must be 0 to {MOST_INDEX}, got {index}")
    return found


def _integers(array: Any) -> list[int]:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UserError(f"must be a list of whole numbers; got {array.dtype} {[*array.shape]}")
    values: list[int] = array.tolist()
    return values


def _of_npy(data: bytes) -> list[list[int]]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:  # numpy takes what it does not know for a pickle
        raise UserError(NO_PICKLE if "pickle" in str(error) else f"can't be read as npy: {reason(error)}") from None
    if not hasattr(array, "dtype"):
        raise UserError("is an npz, not an npy")
    return [_integers(row) for row in array] if array.ndim == 2 else [_integers(array)]


def _of_npz(data: bytes) -> list[list[int]]:
    with ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
            raise UserError(f"unpacks to more than {MOST_BYTES} bytes")
        return [each for entry in archive.infolist() for each in _of_npy(archive.read(entry))]


def _of_json(data: bytes) -> list[list[int]]:
    values = json.loads(data)
    nested = isinstance(values, list) and bool(values) and all(isinstance(value, list) for value in values)
    every = values if nested else [values]
    for value in every:
        if not isinstance(value, list) or not all(type(index) is int for index in value):
            raise UserError("must be a list of indices, a list of such lists, or the harness's own format")
    return list(every)


def _of_text(data: bytes) -> list[list[int]]:
    text = data.decode("utf-8-sig").strip()
    rows = [re.split(r"[\s,;]+", line.strip()) for line in text.splitlines()]
    if rows and not all(word.isdecimal() for word in rows[0]):
        rows = rows[1:]
    if len(rows) > 1 and all(len(row) == 2 and row[0] == str(number) for number, row in enumerate(rows)):
        raise UserError("has two columns, of which the first counts the lines: write the column of indices alone")
    words = re.split(r"[\s,;]+", text)
    if words and not words[0].isdecimal() and len(words) > 1:
        words = words[1:]  # the head of a column
    if wrong := [word for word in words if not re.fullmatch(r"[0-9]{1,18}", word)]:
        raise UserError(f"must be whole numbers, separated by commas or lines; got {wrong[0]!r:.40}")
    return [[int(word) for word in words]]


READERS: dict[str, Callable[[bytes], list[list[int]]]] = {
    ".npy": _of_npy,
    ".npz": _of_npz,
    ".json": _of_json,
    ".csv": _of_text,
    ".txt": _of_text,
}
"""Ending of a file's name -> its reader."""


def is_own_format(path: Path) -> bool:
    """Return whether a file is of the harness's own format, whose sets have seeds."""
    if path.suffix.lower() != ".json":
        return False
    return content(path).lstrip()[:1] == b"{"


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Return files in the order of cycles: lSet first, and those that differ only in numbers by their numbers.

    A shell lists episode_10 before episode_2.
    """
    found: list[Path] = [*paths]
    alike: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        alike.setdefault(re.sub("[0-9]+", "#", str(path)), []).append(place)
    for places in alike.values():
        by_number = sorted((paths[place] for place in places), key=lambda p: [*map(int, re.findall("[0-9]+", str(p)))])
        for place, path in zip(places, by_number, strict=True):
            found[place] = path
    return sorted(found, key=lambda path: not path.name.lower().startswith("lset"))


def are_disjoint(found: Sequence[list[int]]) -> bool:
    """Return whether no image is in two of the lists, or twice in one."""
    return sum(map(len, found)) == len({index for each in found for index in each})


def sets_of(found: Sequence[list[int]]) -> SeedSets:
    """Return the sets of a sequence of lists, each the labelled set of a cycle or what it adds. Raises UserError."""
    by_size = sorted(found, key=len)
    lacking = [min({*smaller} - {*larger}, default=None) for smaller, larger in pairwise(by_size)]
    if all(index is None for index in lacking):
        known = [set(each) for each in by_size]
        added = [[i for i in by_size[n] if i not in known[n - 1]] for n in range(1, len(by_size))]  # in their order
        if not all(added):
            raise UserError("two of the sets hold the same images; each must hold more than the one before")
        return SeedSets(initial=by_size[0], selected=added)
    if are_disjoint(found):
        return SeedSets(initial=found[0], selected=list(found[1:]))
    first = next(index for index in lacking if index is not None)
    raise UserError(
        "the sets are neither nested (each holds all images of the smaller ones) nor disjoint (each holds what a cycle "
        f"adds): the index {first} of one is not in the next larger one"
    )

"""Paths of files in little memory: a million of them are two arrays, which processes of a machine share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from harness.errors import readable

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE = 8192
"""Paths that are taken out of the arrays at a time."""


class Paths(Sequence[Path]):
    """Paths below a folder: ``paths[i]`` is a Path, and ``paths[array]`` are the Paths with these indices.

    The names are the bytes of one array [bytes] uint8, and name i ends at ``ends[i]`` [N] int64. An object store holds
    both without a copy for each process; as a list, a million Paths take 100 bytes each, and half a minute to unpickle.
    """

    def __init__(self, root: Path, names: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.root, self._names, self._ends = root, names, ends

    @classmethod
    def of(cls, paths: Iterable[Path], root: Path = Path()) -> Paths:
        """Return paths by their names in ``root``. A path that is elsewhere must be absolute, or ``root`` be empty."""
        start = f"{root}{os.sep}" if root.parts else ""
        return cls.named((str(path).removeprefix(start) for path in paths), root)

    @classmethod
    def named(cls, names: Iterable[str], root: Path) -> Paths:
        """Return the paths that have these names in ``root``."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(root, np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @classmethod
    def joined(cls, root: Path, parts: Sequence[Paths]) -> Paths:
        """Return the paths of all parts, which have the same root."""
        before = np.cumsum([0, *(len(part._names) for part in parts)])
        names = [np.zeros(0, dtype=np.uint8), *(part._names for part in parts)]
        ends = [np.zeros(0, dtype=np.int64), *(part._ends + at for part, at in zip(parts, before, strict=False))]
        return cls(root, np.concatenate(names), np.concatenate(ends))

    def absolute(self) -> Paths:
        """Return the same paths as absolute ones, because workers may run in another folder."""
        return self if self.root.is_absolute() else Paths(self.root.absolute(), self._names, self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Paths: ...
    def __getitem__(self, index: int | slice | NDArray[Any]) -> Path | Paths:
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        if isinstance(index, np.ndarray):
            return self._some(index)
        return Path(self.root, self.name(index))

    def __iter__(self) -> Iterator[Path]:
        return (Path(self.root, name) for name in self.names())

    def texts(self) -> Iterator[str]:
        """Yield all paths as texts."""
        start = os.fspath(self.root) if self.root.parts else ""
        return (os.path.join(start, name) for name in self.names())  # noqa: PTH118 (ten times as fast as Path's)

    def _some(self, indices: NDArray[Any]) -> Paths:
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices
        starts = np.concatenate([np.zeros(1, np.int64), self._ends])[:-1]
        parts = [np.zeros(0, dtype=np.uint8)]
        for first in range(0, len(indices), AT_ONCE):
            some = indices[first : first + AT_ONCE]
            spans = zip(starts[some].tolist(), self._ends[some].tolist(), strict=True)
            text = b"".join([self._names[start:end].tobytes() for start, end in spans])
            parts.append(np.frombuffer(text, dtype=np.uint8))
        return Paths(self.root, np.concatenate(parts), np.cumsum((self._ends - starts)[indices]))

    def name(self, index: int) -> str:
        """Return the name of one path in the root; the whole path if it is elsewhere."""
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]].tobytes())

    def names(self) -> Iterator[str]:
        """Yield the names of all paths, as ``name`` returns them."""
        start = 0
        for first in range(0, len(self), AT_ONCE):
            ends = self._ends[first : first + AT_ONCE].tolist()
            text, offset = self._names[start : ends[-1]].tobytes(), start
            for end in ends:
                yield os.fsdecode(text[start - offset : end - offset])
                start = end


class Names(Sequence[str]):
    """How files are called in the root of their paths, for records and messages; equal to a tuple of the same texts."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        return Names(self.paths[index]) if isinstance(index, slice) else readable(self.paths.name(index))

    def __iter__(self) -> Iterator[str]:
        return map(readable, self.paths.names())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

"""Rows of one size in the files of a folder: how prepared images lie on a disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_BYTES = 2**28
"""Size of a shard, which is written as a whole: what a stopped process loses."""
COUNTS = (3, 256)
"""After its rows, a shard has the number of pixels [channel, value] int64 of its images; 0 for label maps."""


@dataclass(frozen=True)
class Shards:
    """``number`` rows of ``row_bytes`` bytes, in files of equally many rows; some of the files may be missing.

    Rows are read into memory of the caller. A mapped file would count as memory of each process that reads it.
    """

    folder: Path
    number: int
    row_bytes: int

    @property
    def each(self) -> int:
        """Rows of a shard; the last one may have fewer."""
        return max(1, SHARD_BYTES // self.row_bytes)

    def __len__(self) -> int:
        return -(-self.number // self.each)

    def nbytes(self, shards: Iterable[int]) -> int:
        """Return the bytes of some shards when they are complete."""
        return sum(len(self.rows(shard)) * self.row_bytes + _COUNTS_BYTES for shard in shards)

    def missing(self) -> list[int]:
        """Return the shards that are missing or incomplete."""
        return [shard for shard in range(len(self)) if not self._is_complete(shard)]

    def _is_complete(self, shard: int) -> bool:
        try:
            return self.path(shard).stat().st_size == self.nbytes([shard])
        except OSError:
            return False

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{shard:05}.rows"

    def rows(self, shard: int) -> range:
        """Return the rows of a shard."""
        return range(shard * self.each, min(self.number, (shard + 1) * self.each))

    def read(self, index: int, row: NDArray[np.uint8]) -> bool:
        """Write a row into ``row``, which is contiguous; return False if it is missing, when anything may be there."""
        shard, place = divmod(index, self.each)
        try:
            with self.path(shard).open("rb", buffering=0) as file:
                file.seek(place * self.row_bytes)
                return file.readinto(row.reshape(-1).data) == self.row_bytes
        except OSError:
            return False

    def counts(self, shard: int) -> NDArray[np.int64] | None:
        """Return the number of pixels [channel, value] of a shard, or None if the shard is missing or incomplete."""
        size = len(self.rows(shard)) * self.row_bytes
        try:
            with self.path(shard).open("rb", buffering=0) as file:
                file.seek(size)
                found = file.read(_COUNTS_BYTES + 1)
        except OSError:
            return None
        return np.frombuffer(found, dtype="<i8").reshape(COUNTS) if len(found) == _COUNTS_BYTES else None


_COUNTS_BYTES = COUNTS[0] * COUNTS[1] * 8

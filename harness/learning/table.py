"""Columns that are filled part by part, so that no second copy of them is ever made."""

from __future__ import annotations

from harness.lazy import torch


class Table:
    """Columns of ``rows`` rows, whose memory is taken once, when the first part comes.

    Parts follow one another; with ``index`` [rows] int64, ascending, a part goes to the rows of its column ``index``.
    """

    def __init__(self, rows: int, index: torch.Tensor | None = None) -> None:
        self.columns: dict[str, torch.Tensor] = {}
        self._rows, self._index, self._end = rows, index, 0

    def put(self, part: dict[str, torch.Tensor]) -> None:
        """Write a part, with columns [B, ...] of the same types and shapes as those of all other parts."""
        count = len(next(iter(part.values())))
        place = None if self._index is None else torch.searchsorted(self._index, part["index"])
        for name, rows in part.items():
            if name not in self.columns:
                self.columns[name] = rows.new_empty(self._rows, *rows.shape[1:])
            if place is None:
                self.columns[name][self._end : self._end + count] = rows
            else:
                self.columns[name].index_copy_(0, place, rows)
        self._end += count

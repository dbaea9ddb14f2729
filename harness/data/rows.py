"""Rows of a dataset on a trial's device: held there, or decoded from files batch by batch."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

HELD_SHARE = 0.25  # of the free memory: data that takes no more is held on the device, else read batch by batch


DECODED_AT_ONCE = 32  # images: bounds the host's memory of bringing a whole dataset to a device


AHEAD = 2  # batches of files that are decoded while another is in use: bounds the memory of looking ahead


class Streamed:
    """Rows of files, decoded each time they are taken: what a tensor on the device is for data that fits there.

    ``rows`` (int64, on the CPU) makes it a selection: position i is file ``rows[i]``.
    """

    def __init__(self, files: Any, device: torch.device, rows: np.ndarray[Any, Any] | None = None) -> None:
        self.files, self.device, self.rows = files, device, rows
        self.shape: tuple[int, ...] = (len(files if rows is None else rows), *files.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self._decoded(indices.cpu()).to(self.device, non_blocking=True)

    def _decoded(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows on the CPU, in memory from which a GPU copies without anybody waiting."""
        places = indices.numpy()
        rows = torch.from_numpy(self.files[places if self.rows is None else self.rows[places]])
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def ahead(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``self[indices]`` for each batch of indices, while threads decode the next ones.

        What can't be decoded raises at its own turn. The threads end with the iterator, wherever it is left.
        """
        # on the CPU at once: one by one, each would wait for the device
        parts = iter(torch.cat([*batches]).cpu().split([len(indices) for indices in batches]))
        pool = ThreadPoolExecutor(AHEAD)
        try:
            waiting = deque(pool.submit(self._decoded, part) for part in islice(parts, AHEAD))
            while waiting:
                due = waiting.popleft()
                waiting.extend(pool.submit(self._decoded, part) for part in islice(parts, 1))
                yield due.result().to(self.device, non_blocking=True)
        finally:
            pool.shutdown(cancel_futures=True)


Rows = torch.Tensor | Streamed
"""Data whose rows are taken by a tensor of indices, and arrive on the device."""


def taken(rows: Rows, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield ``rows[indices]`` for each batch of indices; files are decoded ahead."""
    return rows.ahead(batches) if isinstance(rows, Streamed) else (rows[indices] for indices in batches)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def on_device(array: Any, device: torch.device) -> Rows:
    """Return an array's rows on the device; files that would not fit there stay files.

    On the CPU an array is not copied, and must not be written to.
    """
    if not isinstance(array, np.ndarray):
        if array.nbytes > HELD_SHARE * _free_memory(device):
            return Streamed(array, device)
        held = torch.empty(array.shape, dtype=torch.uint8, device=device)
        rows = torch.arange(len(array)).split(DECODED_AT_ONCE)
        for some, decoded in zip(held.split(DECODED_AT_ONCE), Streamed(array, device).ahead(rows), strict=True):
            some.copy_(decoded)
        return held
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def selected(array: Any, rows: np.ndarray[Any, Any], device: torch.device) -> Rows:
    """Return some rows of an array, in the order of ``rows``."""
    if isinstance(array, np.ndarray):
        return on_device(array[rows], device)
    chosen = Streamed(array, device, rows)
    small = array.nbytes * len(rows) / len(array) <= HELD_SHARE * _free_memory(device)
    return chosen[torch.arange(len(rows))] if small else chosen

"""Rows of a dataset on a trial's device: held in its memory, or decoded from files batch by batch."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import host
from harness.lazy import torch

HELD_SHARE = 0.25
"""Largest fraction of the device's free memory that data may fill; larger data is decoded batch by batch."""

DECODED_AT_ONCE = 32
"""Images per step when a whole dataset is copied to a device; limits the host memory."""

AHEAD = 2
"""Batches that are decoded in advance while another one is in use; limits the memory."""


class Streamed:
    """Rows that are decoded from files on access, for data that does not fit on the device.

    ``rows`` (int64, on the CPU) restricts it to a subset: row i is file ``rows[i]``.
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
        """Return rows on the CPU, in pinned memory if the device is a GPU, so that copies do not synchronise."""
        wanted = indices.numpy()
        rows = torch.from_numpy(self.files[wanted if self.rows is None else self.rows[wanted]])
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def ahead(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``self[indices]`` for each batch of indices, while threads decode the next ones.

        A file that can't be decoded raises its error when its batch is due. The threads end with the iterator, even if
        it is not exhausted.
        """
        # one copy to the CPU: a copy of each batch would synchronise
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


if TYPE_CHECKING:
    Rows = torch.Tensor | Streamed
    """Data that is indexed by a tensor of indices and returns the rows on the device."""


def take(rows: Rows, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield ``rows[indices]`` for each batch of indices; files are decoded ahead."""
    return rows.ahead(batches) if isinstance(rows, Streamed) else (rows[indices] for indices in batches)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if (free := host.free_memory()) is not None:
        return free
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS knows only how much there is in all


def on_device(array: Any, device: torch.device) -> Rows:
    """Return an array's rows on the device; files that need more than HELD_SHARE of its free memory are streamed.

    On the CPU an array is not copied, so the result must not be written to.
    """
    if not isinstance(array, np.ndarray):
        if array.nbytes > HELD_SHARE * _free_memory(device):
            return Streamed(array, device)
        held = torch.empty(array.shape, dtype=torch.uint8, device=device)
        rows = torch.arange(len(array)).split(DECODED_AT_ONCE)
        for part, decoded in zip(held.split(DECODED_AT_ONCE), Streamed(array, device).ahead(rows), strict=True):
            part.copy_(decoded)
        return held
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def rows_on_device(array: Any, rows: np.ndarray[Any, Any], device: torch.device) -> Rows:
    """Return the given rows of an array, in the given order: on the device, or streamed."""
    if isinstance(array, np.ndarray):
        return on_device(array[rows], device)
    streamed = Streamed(array, device, rows)
    fits = array.nbytes * len(rows) / len(array) <= HELD_SHARE * _free_memory(device)
    return streamed[torch.arange(len(rows))] if fits else streamed

"""Rows of a dataset for a trial's device: held in its memory or in the host's, or read from files batch by batch."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import host
from harness.data.files import Files
from harness.lazy import torch

HELD_SHARE = 0.25
"""Largest fraction of the memory that a trial may take which the images, or the labels, of one split may fill."""

COPIED_BYTES = 2**26
"""Bytes per step when a whole dataset is copied to a device; limits the host memory."""

AHEAD = 2
"""Batches that are being decoded while a loop waits for the first of them; limits the memory. While one is in use, the
next one is decoded."""

KEPT_BYTES = 2**29
"""Bytes of memory of batches that are kept between two loops."""

AT_ONCE = 16
"""Largest number of rows that a thread decodes at a time."""

ON_DEVICE, IN_MEMORY, STREAMED = "on the device", "in host memory", "streamed"
"""Where data is held: as a whole in the device's memory, or in that of the host; or read from files when needed."""


def held(nbytes: int, device: int, host: int | None) -> str:
    """Return where data of ``nbytes`` is held: ON_DEVICE, IN_MEMORY or STREAMED.

    ``device``: bytes of the device's memory that the trial may take. ``host``: those of the host; None if the device is
    the CPU.
    """
    if nbytes <= HELD_SHARE * device:
        return ON_DEVICE
    return IN_MEMORY if host is not None and nbytes <= HELD_SHARE * host else STREAMED


def without_copy(where: str, lies: bool) -> str:
    """Return STREAMED instead of IN_MEMORY for rows that lie in host memory anyway.

    Those of an array do, and prepared ones, which the system's cache holds for all processes.
    """
    return STREAMED if where == IN_MEMORY and lies else where


def _held(nbytes: int, device: torch.device) -> str:
    on_gpu = device.type == "cuda"
    return held(nbytes, _free_memory(device), host.own_memory() if on_gpu else None)


def _free_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory that this process may still take."""
    if device.type != "cuda":
        return host.own_memory()
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.get_per_process_memory_fraction(device.index) * total - torch.cuda.memory_reserved(device)
    return max(0, min(free, int(own)))


class _Block:
    """Memory of a batch; it is free once nothing refers to the batch any more."""

    def __init__(self, size: int) -> None:
        self.memory = np.empty(size, np.uint8)
        self.batch: Callable[[], Any] = lambda: None

    def lend(self, shape: tuple[int, ...], kind: Any) -> torch.Tensor:
        """Return a tensor of the shape in this memory, whose content is arbitrary."""
        lent = self.memory[: math.prod(shape) * np.dtype(kind).itemsize].view(kind).reshape(shape)
        self.batch = weakref.ref(lent)  # the tensor, and each part of it, holds this object
        return torch.from_numpy(lent)

    def fits(self, size: int) -> bool:
        """Return whether it is free, and not so large that a small batch would keep much of it from others."""
        return self.batch() is None and size <= self.memory.nbytes <= 4 * size


_spare: list[_Block] = []
"""Memory of loops of this process that have ended. Each access is one step, because any thread may end a loop."""


class _Memory:
    """Memory of a loop's batches on the CPU. That of a batch which is not used any more is used for another one.

    Fresh memory is slow: the system clears its pages, one by one, which takes a tenth of the time that decoding takes,
    and several times that on a virtual machine that gives free memory back. So a loop begins with that of earlier ones.
    """

    def __init__(self) -> None:
        self.blocks: list[_Block] = []

    def rows(self, shape: tuple[int, ...], kind: Any) -> torch.Tensor:
        """Return a tensor of the shape, whose content is arbitrary; all shapes must differ only in their length."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        own = next((block for block in self.blocks if block.batch() is None and block.memory.nbytes >= size), None)
        if own is not None:
            self.blocks.remove(own)
        block = own or self._spare(size) or _Block(size)
        self.blocks = [*self.blocks[-AHEAD - 1 :], block]
        return block.lend(shape, kind)

    @staticmethod
    def _spare(size: int) -> _Block | None:
        for block in sorted(_spare, key=lambda block: block.memory.nbytes):
            if block.fits(size):
                with suppress(ValueError):  # another loop has it
                    _spare.remove(block)
                    return block
        return None

    def end(self) -> None:
        """Leave the memory to later loops, up to KEPT_BYTES."""
        _spare.extend(self.blocks)
        while sum(block.memory.nbytes for block in [*_spare]) > KEPT_BYTES:
            with suppress(IndexError):
                _spare.pop(0)


class Streamed:
    """Rows that are read on access, for data that does not fit on the device: files, or an array in host memory.

    ``rows`` (int64, on the CPU) restricts it to a subset: row i is file ``rows[i]``.
    """

    def __init__(self, files: Any, device: torch.device, rows: np.ndarray[Any, Any] | None = None) -> None:
        self.files, self.device, self.rows = files, device, rows
        self.shape: tuple[int, ...] = (len(files if rows is None else rows), *files.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        (rows,) = self.ahead([indices])
        return rows

    def ahead(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield ``self[indices]`` for each batch of indices, while threads decode the next ones.

        There are as many threads as the trial has processors. A file that can't be decoded raises its error when its
        batch is due. The threads end with the iterator, even if it is not exhausted.
        """
        # one copy to the CPU: a copy of each batch would synchronise
        parts = iter(torch.cat([*batches]).cpu().split([len(indices) for indices in batches]))
        pool, memory = ThreadPoolExecutor(torch.get_num_threads()), _Memory()
        try:
            waiting = deque(self._begun(part, pool, memory) for part in islice(parts, AHEAD))
            while waiting:
                rows, works = waiting.popleft()
                for work in works:
                    work.result()
                yield rows.to(self.device, non_blocking=True)
                del rows  # so that the memory of AHEAD + 1 batches is enough
                waiting.extend(self._begun(part, pool, memory) for part in islice(parts, 1))
        finally:
            pool.shutdown(cancel_futures=True)
            memory.end()

    def _begun(
        self, indices: torch.Tensor, pool: ThreadPoolExecutor, memory: _Memory
    ) -> tuple[torch.Tensor, list[Future[None]]]:
        """Return the memory of a batch, and the works that fill it; pinned for a GPU, so that copies do not wait."""
        wanted = indices.numpy() if self.rows is None else self.rows[indices.numpy()]
        shape, kind = (len(wanted), *self.shape[1:]), getattr(self.files, "dtype", np.uint8)
        if self.device.type == "cuda":
            rows = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, kind)).dtype, pin_memory=True)
        else:
            rows = memory.rows(shape, kind)
        step = max(1, min(AT_ONCE, len(wanted) // torch.get_num_threads()))
        works = [
            pool.submit(self._read, wanted[first : first + step], rows[first : first + step].numpy())
            for first in range(0, len(wanted), step)
        ]
        return rows, works

    def _read(self, wanted: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        if isinstance(self.files, Files):
            self.files.read(wanted, rows)
        else:
            rows[:] = self.files[wanted]


if TYPE_CHECKING:
    Rows = torch.Tensor | Streamed
    """Data that is indexed by a tensor of indices and returns the rows on the device."""


def take(rows: Rows, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield ``rows[indices]`` for each batch of indices; files are decoded ahead."""
    return rows.ahead(batches) if isinstance(rows, Streamed) else (rows[indices] for indices in batches)


def on_device(array: Any, device: torch.device) -> Rows:
    """Return an array's rows, or those of files, where ``held`` says.

    On the CPU an array is not copied, so the result must not be written to.
    """
    return _placed(array, device, None)


def rows_on_device(array: Any, rows: np.ndarray[Any, Any], device: torch.device) -> Rows:
    """Return the given rows of an array, or of files, in the given order, where ``held`` says."""
    return _placed(array[rows], device, None) if isinstance(array, np.ndarray) else _placed(array, device, rows)


def _placed(array: Any, device: torch.device, rows: np.ndarray[Any, Any] | None) -> Rows:
    if isinstance(array, np.ndarray) and device.type != "cuda":
        return _shared(array)
    streamed = Streamed(array, device, rows)
    row_bytes = array.nbytes // max(1, len(array))
    where = without_copy(_held(row_bytes * len(streamed), device), _lies_in_memory(array))
    if where == STREAMED or (device.type != "cuda" and _lies_in_memory(array)):  # a CPU's memory is the host's
        return streamed
    if isinstance(array, np.ndarray):
        return _shared(array).to(device)
    kept = torch.empty(streamed.shape, dtype=torch.uint8, device=device if where == ON_DEVICE else "cpu")
    step = max(torch.get_num_threads(), COPIED_BYTES // max(1, row_bytes))
    parts = torch.arange(len(kept)).split(step)
    for part, decoded in zip(kept.split(step), Streamed(array, torch.device("cpu"), rows).ahead(parts), strict=True):
        part.copy_(decoded)
    return kept if where == ON_DEVICE else Streamed(kept.numpy(), device)


def _shared(array: np.ndarray[Any, Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _lies_in_memory(array: Any) -> bool:
    """Return whether rows need no copy in host memory: see ``without_copy``. A node may lack prepared ones."""
    shards = getattr(array, "prepared", None)
    return isinstance(array, np.ndarray) or (shards is not None and not shards.missing())

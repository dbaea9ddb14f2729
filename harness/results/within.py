"""The file of the state within a cycle that runs: replaced every few minutes, removed once the cycle is finished.

``within_cycle_003.pt``, or ``within_selection_003.pt`` for a selection that is made later, in the folder of a trial: a
line with the SHA-256 of all that follows and the conditions under which it counts, then what ``torch.save`` writes.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import StorageError
from harness.results import disk
from harness.results.store import content_of, names_in, write_atomically

FORMAT = 3
PARTS = {"stage", "finished", "ended", "loops", "warnings", "streams", "measured"}
"""What the content of a file consists of; see harness.learning.checkpoints."""
DIGEST = 64
"""Digits of a SHA-256."""


class Within:
    """The file of one cycle; ``conditions``: what must be equal for its content to be used again."""

    def __init__(self, folder: Path, kind: str, cycle: int, conditions: dict[str, Any]) -> None:
        self.path = folder / f"within_{kind}_{cycle:03d}.pt"
        self.conditions = {"format": FORMAT, "kind": kind, "cycle": cycle, **conditions}

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return (content, ''), or None and why there is none that can be used; '' if there is no file."""
        try:
            data = content_of(self.path)
        except StorageError as error:
            return None, str(error).partition(";")[0]
        if data is None:
            return None, ""
        header, payload = _parts(data)
        if header is None or payload is None:
            return None, f"{self.path} is damaged"
        if different := [key for key in {**self.conditions, **header} if header.get(key) != self.conditions.get(key)]:
            return None, f"{self.path} was written under another {', '.join(sorted(different))}"
        import torch

        try:
            # only tensors and numbers: a results folder may come from anywhere, and a pickle could run commands
            file: Any = _Reader(payload)
            content = torch.load(file, map_location="cpu", weights_only=True)
            whole = isinstance(content, dict) and {*content} >= PARTS
        except Exception:  # torch raises many kinds
            whole = False
        return ({**content}, "") if whole else (None, f"{self.path} is no state of a cycle")

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content. Raises StorageError, UserError and LockLost."""
        import torch

        buffer = io.BytesIO()
        buffer.write(f"{' ' * DIGEST} {json.dumps(self.conditions, sort_keys=True)}\n".encode())
        torch.save(content, buffer)
        whole = buffer.getbuffer()  # without a copy: a state may be large
        whole[:DIGEST] = hashlib.sha256(whole[DIGEST:]).hexdigest().encode()
        write_atomically(self.path, whole)

    def remove(self) -> None:
        """Remove the file, if it is there. Raises StorageError."""
        with disk.answering(self.path, "removed"):
            if disk.exists(self.path):
                disk.remove(self.path)


class _Reader(io.RawIOBase):
    """A file in memory that is not copied, as BytesIO copies a part of bytes: a state may be large."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that its position can be set."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set and return the position, counted as io does."""
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: len(self.data)}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on; return the number of bytes."""
        part = self.data[self.at : self.at + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


def _parts(data: bytes) -> tuple[dict[str, Any] | None, memoryview | None]:
    """Return the conditions and the payload of a file, or None for both if it is damaged."""
    rest = memoryview(data)[DIGEST:]
    if data[:DIGEST] != hashlib.sha256(rest).hexdigest().encode():
        return None, None
    end = data.find(b"\n")
    try:
        header = json.loads(data[DIGEST:end])
    except (ValueError, RecursionError):  # a digest alone makes no state
        header = None
    return (header, memoryview(data)[end + 1 :]) if end >= 0 and isinstance(header, dict) else (None, None)


def problems(folder: Path) -> list[str]:
    """Return a sentence for each such file of a trial that is damaged. Raises StorageError."""
    paths = [folder / name for name in names_in(folder) if disk.WITHIN.fullmatch(name)]
    damaged = [path for path in paths if (data := content_of(path)) is not None and _parts(data)[0] is None]
    return [f"{path} is damaged: it is not used, and its cycle starts again" for path in damaged]


def sweep(folder: Path, finished: int, late: bool = False) -> None:
    """Remove the files of a trial that none of its next cycles uses: a process died before it could remove them.

    ``finished``: how many cycles are finished; ``late``: whether the last one of these has no selection yet. A file
    that can't be removed stays: nothing reads it. Raises StorageError if the folder can't be read.
    """
    kept = {f"within_cycle_{finished:03d}.pt", *([f"within_selection_{finished - 1:03d}.pt"] if late else [])}
    for name in names_in(folder):
        if disk.WITHIN.fullmatch(name) and name not in kept:
            with suppress(OSError):
                disk.remove(folder / name)

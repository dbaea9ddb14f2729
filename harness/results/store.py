"""The store of a run: one write-once, checksummed file per finished cycle. A cycle is finished once its file exists.

The results folder of a run::

    config.yaml                      the resolved config
    run.json                         the manifest: see harness.results.manifest
    trials/<trial>/trial.json        the spec of the trial and the fingerprint of its data
    trials/<trial>/cycle_000.json    {"sha256": of the body, "body": {"record": ..., "state": SHA-256 of state_000.pt}}
    trials/<trial>/state_000.pt      state after the cycle: network weights and the state of the method
    trials/<trial>/records.jsonl     readable copy of the records, derived from the cycle files, never read
    trials/<trial>/selected_000.npz  the first selected images, for the report; for label maps only
    trials/<trial>/failure.txt       the traceback of a plug-in's exception that ended the trial; no run reads it
    shared/<key>/...                 the same files for a first cycle that several trials share
    report/                          tables and plots, derived from the records

Several processes may write the same cycle: the first one to finish determines the record. A different result for the
same cycle is an error, because a cycle is a pure function of its trial.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

from harness.errors import NotReproduced, UserError
from harness.results.manifest import Manifest
from harness.results.records import CycleRecord

KEPT_STATES = 2  # the state after the last cycle, and the one before it in case the last file is damaged


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or power loss it is complete, unchanged or absent."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise RuntimeError(
                f"no space left on the disk of {path.parent}; finished cycles are kept: free space, then add --resume"
            ) from error
        raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _body(value: Any) -> bytes:
    """Return the bytes of a cycle file's body that its checksum is computed from."""
    return json.dumps(value, sort_keys=True).encode()


class TrialStore:
    """The finished cycles of one trial (or of one shared first cycle)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _cycle_path(self, cycle: int) -> Path:
        return self.folder / f"cycle_{cycle:03d}.json"

    def _state_path(self, cycle: int) -> Path:
        return self.folder / f"state_{cycle:03d}.pt"

    @property
    def pictures_path(self) -> Path:
        """The file with the first selected images, which need not exist."""
        earlier = self.folder / "queried_000.npz"  # the name in schema version 1
        return earlier if earlier.exists() else self.folder / "selected_000.npz"

    def open(self, header: dict[str, Any]) -> None:
        """Write trial.json, or compare it with the stored one.

        Raises UserError if the folder holds results of other data (another fingerprint) or of another trial.
        """
        path = self.folder / "trial.json"
        if path.exists():
            try:
                stored = json.loads(path.read_text())
            except ValueError:
                raise UserError(f"{path}: not valid JSON; remove {self.folder} to run this trial again") from None
            different = [key for key in header if key in stored and stored[key] != header[key]]
            if different:
                key = different[0]
                raise UserError(
                    f"{path}: the stored results have another {key} ({stored[key]!r}, now {header[key]!r}) and must "
                    "not be mixed with new ones; set another where.output"
                )
        else:
            write_atomically(path, json.dumps(header, indent=2, sort_keys=True).encode())

    def _read(self, cycle: int) -> dict[str, Any] | None:
        """Return the body of a cycle file, or None if the file is missing or damaged."""
        try:
            wrapped = json.loads(self._cycle_path(cycle).read_bytes())
            intact = wrapped["sha256"] == _sha256(_body(wrapped["body"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return wrapped["body"] if intact else None

    def records(self) -> list[CycleRecord]:
        """Return the records of the finished cycles: from cycle 0 up to the first file that is missing or damaged."""
        records: list[CycleRecord] = []
        while (body := self._read(len(records))) is not None:
            records.append(CycleRecord.from_json(body["record"]))
        return records

    def resume_point(self) -> tuple[int, dict[str, Any] | None]:
        """Return (number of finished cycles, state after them), up to the last cycle whose state file is intact.

        Later cycles are recomputed and must equal their stored records. Without any state, return (0, None).
        """
        import torch

        for cycle in range(len(self.records()) - 1, -1, -1):
            body = self._read(cycle)
            assert body is not None
            try:
                data = self._state_path(cycle).read_bytes()
            except OSError:
                continue
            if _sha256(data) == body["state"]:
                return cycle + 1, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return 0, None

    def save_state(self, cycle: int, state: dict[str, Any]) -> str:
        """Write the state after a cycle; return the SHA-256 of the file, for ``commit``."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        write_atomically(self._state_path(cycle), data)
        return _sha256(data)

    def commit(self, record: CycleRecord, state: str) -> None:
        """Store a finished cycle; ``state``: from ``save_state``. Raises NotReproduced if a stored record differs."""
        stored = self._read(record.cycle)
        if stored is not None:
            old, new = CycleRecord.from_json(stored["record"]).outcome(), record.outcome()
            if old != new:
                different = [k for k in new if old[k] != new[k]]
                raise NotReproduced(
                    f"{self._cycle_path(record.cycle)}: the recomputed cycle differs from the stored one in "
                    f"{', '.join(different)}; the machine, its libraries or the code have changed, or "
                    f"recipe.deterministic is false; remove {self.folder} to run this trial again"
                )
            record = CycleRecord.from_json(stored["record"])
        body = {"record": record.to_json(), "state": state}
        wrapped = {
            "sha256": _sha256(_body(body)),
            "body": body,
        }  # keys are not sorted: per_class keeps the order of the classes
        write_atomically(self._cycle_path(record.cycle), json.dumps(wrapped).encode())
        for old_state in range(record.cycle - KEPT_STATES + 1):
            self._state_path(old_state).unlink(missing_ok=True)
        lines = "".join(json.dumps(r.to_json()) + "\n" for r in self.records())
        write_atomically(self.folder / "records.jsonl", lines.encode())


class RunStore:
    """The results folder of one run.

    ``folders`` maps trials to the folders that an earlier schema version named; the default is read from run.json.
    """

    def __init__(self, folder: Path, folders: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._folders = folders

    def trial(self, trial: str) -> TrialStore:
        """Return the store of a trial."""
        return TrialStore(self._path(f"trials/{trial}"))

    def shared(self, key: str) -> TrialStore:
        """Return the store of a shared first cycle."""
        return TrialStore(self._path(f"shared/{key}"))

    def _path(self, name: str) -> Path:
        if self._folders is None:
            try:
                self._folders = Manifest.read(self.folder).folders
            except UserError:
                self._folders = {}
        return self.folder / self._folders.get(name, name)

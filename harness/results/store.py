"""The store of a run: write-once, checksummed files, one per finished cycle. It alone says what is finished.

A run's folder::

    config.yaml                      the resolved config
    trials/<trial>/trial.json        what the trial measures, and the fingerprint of its data
    trials/<trial>/cycle_000.json    {"sha256": ..., "body": {"record": ..., "state": name and sha256 of the weights}}
    trials/<trial>/state_000.pt      network weights and what the training carries, to go on from
    trials/<trial>/records.jsonl     readable copy, derived from the cycle files, never read
    trials/<trial>/queried_000.npz   label maps only: the first images bought, for the report (see harness.queried)
    shared/<key>/...                 the same, for a first cycle that several trials share
    report/                          tables and plots, derived

Any number of processes may try to write the same cycle: the first to finish wins, and another result for the same
cycle is an error, because a cycle is a pure function of its trial.
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
from harness.results.records import CycleRecord

KEPT_STATES = 2  # the last cycle's weights, and the ones before in case the last file is damaged


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, also after a crash or power loss."""
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
                f"no space left on the disk of {path.parent}; finished cycles are kept: free space, then --resume"
            ) from error
        raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _body(value: Any) -> bytes:
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
    def queried_path(self) -> Path:
        """The first images that the trial bought, if it kept them."""
        return self.folder / "queried_000.npz"

    def open(self, header: dict[str, Any]) -> None:
        """Write the header, or check it against the one that is there.

        Raises UserError if the folder holds results of other data (another fingerprint) or another trial.
        """
        path = self.folder / "trial.json"
        if path.exists():
            try:
                found = json.loads(path.read_text())
            except ValueError:
                raise UserError(f"{path}: is damaged; remove {self.folder} to run this trial anew") from None
            wrong = [k for k in header if found.get(k) != header[k]]
            if wrong:
                raise UserError(
                    f"{path}: holds results with another {wrong[0]} ({found.get(wrong[0])!r}, now "
                    f"{header[wrong[0]]!r}); results of both can't be mixed: choose another where.output"
                )
        else:
            write_atomically(path, json.dumps(header, indent=2, sort_keys=True).encode())

    def _read(self, cycle: int) -> dict[str, Any] | None:
        """Return the body of a cycle file, or None if it is absent or damaged."""
        try:
            wrapped = json.loads(self._cycle_path(cycle).read_bytes())
            whole = wrapped["sha256"] == _sha256(_body(wrapped["body"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return wrapped["body"] if whole else None

    def records(self) -> list[CycleRecord]:
        """Return the records of the longest run of whole cycle files from cycle 0 on."""
        found: list[CycleRecord] = []
        while (body := self._read(len(found))) is not None:
            found.append(CycleRecord.from_json(body["record"]))
        return found

    def resume_point(self) -> tuple[int, dict[str, Any] | None]:
        """Return (finished cycles, state to go on from): the last finished cycle whose weights are whole.

        Cycles after it are computed again, and must come out as they are stored.
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
        """Write the weights and carried state after a cycle; return their sha256 for ``commit``."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        write_atomically(self._state_path(cycle), data)
        return _sha256(data)

    def commit(self, record: CycleRecord, state: str) -> None:
        """Make a cycle finished, for good. Raises NotReproduced if it is stored already and came out different."""
        stored = self._read(record.cycle)
        if stored is not None:
            old, new = CycleRecord.from_json(stored["record"]).outcome(), record.outcome()
            if old != new:
                wrong = [k for k in new if old[k] != new[k]]
                raise NotReproduced(
                    f"{self._cycle_path(record.cycle)}: computed again, and {', '.join(wrong)} came out different; "
                    f"the machine, its libraries or the code changed since, or recipe.deterministic is false; "
                    f"remove {self.folder} to run this trial anew"
                )
            record = CycleRecord.from_json(stored["record"])
        body = {"record": record.to_json(), "state": state}
        wrapped = {"sha256": _sha256(_body(body)), "body": body}  # not sorted: classes stay in their order
        write_atomically(self._cycle_path(record.cycle), json.dumps(wrapped).encode())
        for old_state in range(record.cycle - KEPT_STATES + 1):
            self._state_path(old_state).unlink(missing_ok=True)
        lines = "".join(json.dumps(r.to_json()) + "\n" for r in self.records())
        write_atomically(self.folder / "records.jsonl", lines.encode())


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial(self, trial: str) -> TrialStore:
        """Return the store of a trial."""
        return TrialStore(self.folder / "trials" / trial)

    def shared(self, key: str) -> TrialStore:
        """Return the store of a shared first cycle."""
        return TrialStore(self.folder / "shared" / key)

    @property
    def config_path(self) -> Path:
        """The resolved config of the run."""
        return self.folder / "config.yaml"

"""The store of a run: one write-once, checksummed file per finished cycle. A cycle is finished once its file exists.

The results folder of a run::

    config.yaml                      the resolved config
    run.json                         the manifest: see harness.results.manifest
    trials/<trial>/trial.json        the spec of the trial, for readers; no run reads it
    trials/<trial>/cycle_000.json    {"sha256": of the body, "body": {"record", "state": SHA-256 of state_000.pt,
                                     "folder": <trial>}}
    trials/<trial>/state_000.pt      state after the cycle: network weights and the state of the method
    trials/<trial>/selection_004.json, .pt   the same for a last cycle whose selection was made later, when the run was
                                     extended: the whole record, and the state after the selection
    trials/<trial>/within_cycle_005.pt   the state within a cycle that runs: see harness.results.within
    trials/<trial>/records.jsonl     readable copy of the records, never read
    trials/<trial>/selected_000.npz  the first selected images, with predictions, for the report
    shared/<key>/...                 the same files for a first cycle that several trials share
    lock.1                           the process that writes here now: see harness.results.lock
    progress.json                    what the run showed last, for harness.status, and how long it took
    logs/<trial>.log                 the traceback of the exception that ended a trial, or a shared first cycle
    logs/ray.log                     what Ray prints
    ray/                             Ray Tune's files, heartbeats and progress; no run reads an earlier one's
    report/                          tables and plots, derived from the records
    index/                           what reports need of many records: see harness.report.index; only reports read it
    index_sets/                      what a replay labels, and the curves of its source: see harness.results.source
    track/, track.csv                what trackers write: see harness.tracking; only trackers read it

Several processes may write the same cycle: the first one to finish determines the record. A different result for the
same cycle is an error, because a cycle is a pure function of its trial.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import NotReproduced, UserError
from harness.results import disk, lock
from harness.results.manifest import Manifest
from harness.results.records import CycleRecord

KEPT_STATES = 2  # the state after the last cycle, and the one before it in case the last file is damaged


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically: after a crash or power loss it is complete, unchanged or absent.

    Raises LockLost if the file is in a results folder that another run has taken over, StorageError, and UserError if
    a folder has the file's name, or the other way round.
    """
    lock.check(path)
    temporary = disk.temporary(path)
    with disk.answering(path):
        try:
            if not disk.exists(path.parent):
                disk.make(path.parent)
            disk.write(temporary, data)
            lock.check(path)  # a disk may have kept this process waiting for minutes
            disk.move(temporary, path)
        except BaseException as error:  # also a signal that ends this process
            with suppress(OSError):  # the folder may be a file
                disk.remove(temporary)
            if isinstance(error, OSError):
                lock.check(path)  # another run removes the files of this one
            raise


def _remove(path: Path) -> None:
    with disk.answering(path, "removed"):
        disk.remove(path)


def _exists(path: Path) -> bool:
    with disk.answering(path, "read"):
        return disk.exists(path)


def content_of(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is none. Raises StorageError."""
    with disk.answering(path, "read"):
        try:
            return disk.read(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None


def names_in(folder: Path) -> list[str]:
    """Return the names of the files and folders in a folder, or [] if there is none. Raises StorageError."""
    with disk.answering(folder, "read"):
        try:
            return disk.names(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _body(value: Any) -> bytes:
    """Return the bytes of a cycle file's body that its checksum is computed from."""
    return json.dumps(value, sort_keys=True).encode()


class Stored(NamedTuple):
    """The content of a cycle file."""

    record: CycleRecord
    state: str
    """SHA-256 of the file with the state after the cycle."""


class TrialStore:
    """The finished cycles of one trial (or of one shared first cycle)."""

    def __init__(self, folder: Path, ids: Iterable[str] = ()) -> None:
        self.folder = folder
        self.ids = {folder.name, *ids}
        """The names of the folder in records: before schema version 3 the current id of the trial, later its own."""

    def _path(self, kind: str, cycle: int, ending: str) -> Path:
        return self.folder / f"{kind}_{cycle:03d}.{ending}"

    @property
    def pictures_path(self) -> Path:
        """The file with the first selected images, which need not exist."""
        earlier = self.folder / "queried_000.npz"  # the name in schema version 1
        return earlier if _exists(earlier) else self.folder / "selected_000.npz"

    def open(self, header: dict[str, Any]) -> None:
        """Write trial.json, for readers: no run reads it, because every cycle file names its own trial."""
        path, text = self.folder / "trial.json", json.dumps(header, indent=2, sort_keys=True).encode()
        if content_of(path) != text:
            write_atomically(path, text)
        with disk.answering(self.folder):
            disk.make(self.folder)  # it may have been made by a process that died before it could last

    def _read(self, cycle: int, kind: str = "cycle") -> Stored | None:
        """Return the content of a cycle file, or None if the file is missing, damaged or foreign: see ``problems``."""
        try:
            wrapped = json.loads(content_of(self._path(kind, cycle, "json")) or b"")
            body = wrapped["body"]
            intact = wrapped["sha256"] == _sha256(_body(body))
            record = CycleRecord.from_json(body["record"])
            # before schema version 3, the file of a shared first cycle did not name its folder
            folder = body.get("folder") or ("" if self.folder.parent.name == "shared" else record.trial)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # RecursionError: nested too deeply
            return None
        own = record.cycle == cycle and folder in ("", *self.ids)
        return Stored(record, body["state"]) if intact and own else None

    def _finished(self) -> list[Stored]:
        """Return the finished cycles, from cycle 0 up to the first that is missing, damaged or foreign.

        A selection that was made later replaces its cycle. A cycle after one without a selection does not count,
        because nobody knows what it trained on.
        """
        found: list[Stored] = []
        while (stored := self._read(len(found))) is not None:
            if found and not found[-1].record.selected:
                break
            found.append(self._read(len(found), "selection") or stored)
        return found

    def records(self) -> list[CycleRecord]:
        """Return the records of the finished cycles: from cycle 0 up to the first file that does not count."""
        return [stored.record for stored in self._finished()]

    def record(self, cycle: int) -> CycleRecord | None:
        """Return the record of one cycle, or None if its file is missing, damaged or foreign."""
        stored = self._read(cycle, "selection") or self._read(cycle)
        return stored.record if stored else None

    def problems(self, finished: int) -> list[str]:
        """Return a sentence for each damaged, foreign or lost cycle file; ``finished``: the number of records."""
        names = names_in(self.folder)
        files = [("cycle", finished), *(("selection", cycle) for cycle in range(finished + 1))]
        found = [
            f"{path} is damaged, or belongs to another trial or cycle: it is not used"
            for kind, cycle in files
            if (path := self._path(kind, cycle, "json")).name in names and self._read(cycle, kind) is None
        ]
        cycles = {int(name[6:-5]) for name in names if re.fullmatch(r"cycle_[0-9]{3,9}\.json", name)}
        if finished not in cycles and max(cycles, default=0) > finished:
            found.append(f"{self._path('cycle', finished, 'json')} is lost: later cycles are not used")
        return found

    def resume_point(self) -> tuple[int, dict[str, Any] | None]:
        """Return (number of finished cycles, state after them), up to the last cycle whose state file is intact.

        Later cycles are recomputed and must equal their stored records. Without any state, return (0, None). Raises
        UserError for a file of that checksum that is no state.
        """
        import torch

        for cycle, stored in reversed([*enumerate(self._finished())]):
            for path, data in self._states(cycle):
                if _sha256(data) == stored.state:
                    try:
                        # only tensors: a results folder may come from anywhere, and a pickle could run commands
                        return cycle + 1, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                    except Exception:  # torch raises many kinds
                        raise UserError(
                            f"{path}: is no state of a trial: remove it, and its cycle is computed again"
                        ) from None
        return 0, None

    def _states(self, cycle: int) -> Iterator[tuple[Path, bytes]]:
        """Yield (path, content) of the files that can hold the state after a cycle and are there."""
        for kind in ("state", "selection"):
            if (data := content_of(path := self._path(kind, cycle, "pt"))) is not None:
                yield path, data

    def state_problems(self) -> list[str]:
        """Return a sentence if the state after the last finished cycle is damaged or lost."""
        finished = self._finished()
        if not finished:
            return []
        states = [*self._states(len(finished) - 1)]
        if any(_sha256(data) == finished[-1].state for _, data in states):
            return []
        path = self._path("state", len(finished) - 1, "pt")
        absent = f"{path} is not there (only the last {KEPT_STATES} are kept)"
        what = f"{states[0][0]} is damaged" if states else absent
        return [f"{what}: its cycle, and each before it up to one with its state, is computed again"]

    def save_state(self, cycle: int, state: dict[str, Any], late: bool = False) -> str:
        """Write the state after a cycle; return the SHA-256 of the file, for ``commit``.

        ``late``: the state after a selection that is made later than the rest of its cycle.
        """
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        write_atomically(self._path("selection" if late else "state", cycle, "pt"), data)
        return _sha256(data)

    def commit(self, record: CycleRecord, state: str, late: bool = False) -> None:
        """Store a finished cycle; ``state``: from ``save_state``. Raises NotReproduced if a stored record differs.

        ``late``: store the selection of a cycle that is stored without one, beside it; the record is the whole cycle's.
        """
        kind, cycle, shown = "selection" if late else "cycle", record.cycle, record
        stored = self._read(cycle, "selection") or self._read(cycle)
        if stored is not None:
            old, new = stored.record.outcome(), record.outcome()
            if not old["selected"] or not new["selected"]:  # one of the two was a last cycle, which selects nothing
                old["selected"] = new["selected"] = []
            if late:  # nothing is computed again: the record says what data its training had, see trained_under
                new.pop("data_fingerprint")
            if different := [key for key in new if old[key] != new[key]]:
                raise NotReproduced(
                    f"{self._path(kind, cycle, 'json')}: the recomputed cycle differs from the stored one in "
                    f"{', '.join(different)}; the machine, its libraries or the code have changed, or "
                    f"recipe.deterministic is false; remove {self.folder} to run this trial again"
                )
            if stored.record.selected or not record.selected:
                shown = stored.record
            plain = stored if record.selected else self._read(cycle)
            if plain is not None and plain.record.selected and not record.selected:
                return  # stored with its selection, which the state of a last cycle does not include
            if plain is not None and (plain.record.selected or not record.selected):
                record = plain.record
        body = {"record": record.to_json(), "state": state, "folder": self.folder.name}
        wrapped = {
            "sha256": _sha256(_body(body)),
            "body": body,
        }  # keys are not sorted: per_class keeps the order of the classes
        copy = self.records()
        copy[cycle : cycle + 1] = [shown]
        lines = "".join(json.dumps(r.to_json()) + "\n" for r in copy)
        # first, so that a process that dies in between leaves no finished cycle that the copy lacks for good
        write_atomically(self.folder / "records.jsonl", lines.encode())
        write_atomically(self._path(kind, cycle, "json"), json.dumps(wrapped).encode())
        if not late and record.selected:  # computed again, as a whole
            _remove(self._path("selection", cycle, "json"))
        for old_state in range(cycle - KEPT_STATES + 1):
            for kept in ("state", "selection"):
                _remove(self._path(kept, old_state, "pt"))


class RunStore:
    """The results folder of one run.

    ``folders`` maps trials to the folders that an earlier schema version named; the default is read from run.json.
    """

    def __init__(self, folder: Path, folders: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._folders = folders

    def trial(self, trial: str) -> TrialStore:
        """Return the store of a trial."""
        return self._store(f"trials/{trial}")

    def shared(self, key: str) -> TrialStore:
        """Return the store of a shared first cycle."""
        return self._store(f"shared/{key}")

    def _store(self, name: str) -> TrialStore:
        if self._folders is None:
            try:
                self._folders = Manifest.read(self.folder).folders
            except UserError:
                self._folders = {}
        folder = self._folders.get(name, name)
        ids = [Path(current).name for current, named in self._folders.items() if named == folder]
        return TrialStore(self.folder / folder, ids)

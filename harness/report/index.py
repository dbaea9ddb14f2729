"""The index of a suite's records, so that a report reads only the cycle files that are new or changed.

It is one file in ``index/`` of the run, or of a report of several runs: a line for the layout and what many records
have in common, then one for each trial. Every line starts with its own checksum. A line holds, for each cycle file, the
file's signature (see harness.results.disk.signatures) and those values of its record that a report needs.

The index decides nothing: an entry counts only for a file with that very signature, and any other file is read and
checked as without an index. A line that is damaged or of another version is ignored; so is a whole index whose first
line is. It may be removed at any time, and need not be writable.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.errors import StorageError, UserError, printable, readable
from harness.results import disk
from harness.results.records import CycleRecord
from harness.results.store import Stored, TrialStore, write_atomically

VERSION = 1
CHECKSUM = 16  # hex digits at the start of a line
YOUNG = 2 * 10**9
"""Nanoseconds: a file that was changed so shortly before it was read gets no entry, because the next change may fall
into the same tick of the file system's clock, and leave the same signature."""

FEWEST = 10_000  # records of a suite that has an index: fewer are read in some seconds
OWN_FILES = re.compile(rf"[0-9a-f]{{{CHECKSUM}}}\.jsonl")
FILES = re.compile(r"(cycle|selection)_[0-9]{3,9}\.json")
MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What another program's index may raise."""
MAPPINGS = ("metrics", "seconds", "peak_memory_bytes", "per_class")
"""The keys of these mappings are the same in many records, and stored once."""
COMMON = (
    *("suite", "dataset", "model", "method", "device", "device_share", "threads", "precision", "versions", "commit"),
    *("pretrained", "data_fingerprint", "code", "trained_under", "target_parameters"),
    "scoring",
)
"""What many records have in common, and is stored once."""
LEFT_OUT = (
    *("trial", "schema_version", "selected", "selected_files", "selected_classes", "initial_set", "confusion"),
    *("calibration", "health"),
)
"""The id of the trial is that of its line; of the lists of images only the number of those selected is kept."""
NONE: list[Any] = []  # one for all records, which nobody writes to
OWN = tuple(f.name for f in fields(CycleRecord) if f.name not in {*MAPPINGS, *COMMON, *LEFT_OUT})


def short(record: CycleRecord) -> CycleRecord:
    """Return what a report needs of a record: ``selected`` has the right length, but no images of the training set.

    What only some tables need takes gigabytes for so many records. Peak memory is that of all processes of the cycle.
    """
    peaks = [record.peak_memory_bytes, *(shard.get("peak_memory_bytes", {}) for shard in record.scoring["shards"])]
    together = len({frozenset(peak) for peak in peaks}) == 1
    shards = [] if together else [{"peak_memory_bytes": peak} for peak in peaks[1:]]
    return replace(
        record,
        selected=_as_many(len(record.selected)),
        selected_files=NONE,
        selected_classes=NONE,
        initial_set=NONE,
        confusion=NONE,
        calibration={},
        health={},
        peak_memory_bytes={kind: max(peak[kind] for peak in peaks) for kind in peaks[0]} if together else peaks[0],
        scoring={"path": record.scoring.get("path"), "shards": shards},
    )


def left_out(records: Sequence[CycleRecord]) -> list[str]:
    """Return a sentence on what the report of a suite lacks because its records are from an index."""
    if not any(isinstance(r.selected, range) for r in records):
        return []
    return [f"Suites of {FEWEST:,} or more records have no tables of other test metrics and of what methods select."]


def _as_many(images: int) -> list[int]:
    return cast(list[int], range(images))  # has a length, like a list, and needs no memory for it


class _Entry(NamedTuple):
    """A cycle file in the index."""

    signature: list[int]
    common: int
    """Number of what its record has in common with others."""
    values: list[Any]
    """Those of OWN and of MAPPINGS, and the number of selected images."""


class Index:
    """The index of one suite; ``folder``: where its file is, ``run_dir``: the run's folder."""

    def __init__(self, folder: Path, run_dir: Path, suite: str) -> None:
        name = hashlib.sha256(ascii((str(run_dir.resolve()), suite)).encode()).hexdigest()
        self.path = folder / f"{name[:CHECKSUM]}.jsonl"
        self.young = time.time_ns() - YOUNG
        """Files changed since then get no entry."""
        self._common: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._lines: dict[str, bytes] = {}
        self._kept: dict[str, bytes] = {}
        self._parts: dict[tuple[int, str], partial[CycleRecord]] = {}
        with suppress(OSError, *MALFORMED):
            self._load()

    def _load(self) -> None:
        first, *lines = disk.read(self.path).splitlines()
        header = json.loads(_checked(first) or b"")
        if header["layout"] != _layout():
            return
        self._common = printable(header["common"])
        self._numbers = {_text(common): number for number, common in enumerate(self._common)}
        for line in lines:
            if (content := _checked(line)) is not None:
                # JSON has no tab inside of a text, so that the first one ends the id
                self._lines[json.loads(content.partition(b"\t")[0])] = line

    def records(self, store: TrialStore, trial: str, method: str) -> list[CycleRecord]:
        """Return the records of a trial as ``store.records`` does, shortened, with this id and this method's name."""
        with disk.answering(store.folder, "read"):
            try:
                files = disk.signatures(store.folder, FILES)
            except (FileNotFoundError, NotADirectoryError):
                files = {}
        line = self._lines.get(trial)
        reader = _Reader(store, self, files, self._entries(line, store) if line else {}, trial, method)
        found = reader.records()
        if line and not reader.changed and reader.used == reader.entries.keys():
            self._kept[trial] = line
        elif reader.used:
            entries = {name: [*reader.entries[name]] for name in sorted(reader.used)}
            self._kept[trial] = _line(trial, [sorted(store.ids), entries])
        return found

    def _entries(self, line: bytes, store: TrialStore) -> dict[str, _Entry]:
        with suppress(*MALFORMED):
            ids, entries = json.loads(line.partition(b"\t")[2])
            if ids == sorted(store.ids):  # else other files may belong to the trial
                return {name: _Entry(*entry) for name, entry in entries.items()}
        return {}

    def entry(self, signature: tuple[int, ...], record: CycleRecord) -> _Entry:
        """Return the entry of a record that was read from a file, without what no report needs."""
        record = short(record)
        common = {name: getattr(record, name) for name in COMMON} | {n: [*getattr(record, n)] for n in MAPPINGS}
        key = _text(common)
        if key not in self._numbers:
            self._numbers[key] = len(self._common)
            self._common.append(json.loads(key))
        values = [getattr(record, name) for name in OWN] + [[*getattr(record, name).values()] for name in MAPPINGS]
        return _Entry([*signature], self._numbers[key], [*values, len(record.selected)])

    def record(self, entry: _Entry, trial: str, method: str) -> CycleRecord:
        """Return the record of an entry. Raises one of MALFORMED for a wrong one."""
        if (key := (entry.common, method)) not in self._parts:
            common = self._common[entry.common]
            lists = ("selected_files", "selected_classes", "initial_set", "confusion")
            empty: dict[str, Any] = {**dict.fromkeys(lists, NONE), "calibration": {}, "health": {}}
            shared = {name: common[name] for name in COMMON} | empty | {"method": method}
            self._parts[key] = partial(CycleRecord, **shared)
        common = self._common[entry.common]
        own = dict(zip(OWN, entry.values[: len(OWN)], strict=True))
        for name, values in zip(MAPPINGS, entry.values[len(OWN) : -1], strict=True):
            own[name] = dict(zip(common[name], values, strict=True))
        own["warnings"] = [*map(readable, own["warnings"])] or NONE  # an index may come from anywhere
        return self._parts[key](trial=trial, selected=_as_many(entry.values[-1]), **own)

    def save(self) -> None:
        """Write the index, if it has changed and can be written. Raises LockLost."""
        if self._kept != self._lines:
            header = _line({"layout": _layout(), "common": self._common})
            with suppress(StorageError, UserError):
                write_atomically(self.path, b"\n".join([header, *self._kept.values()]))


class _Reader(TrialStore):
    """The store of a trial that reads only the files whose signature is not in the index."""

    def __init__(
        self,
        store: TrialStore,
        index: Index,
        files: dict[str, tuple[int, ...] | None],
        entries: dict[str, _Entry],
        trial: str,
        method: str,
    ) -> None:
        super().__init__(store.folder, store.ids)
        self.index, self.files, self.entries = index, files, entries
        self.trial, self.method = trial, method
        self.used: set[str] = set()
        """The names of the files whose entries stay in the index."""
        self.changed = False
        """Whether an entry is new, or another than before."""

    def _read(self, cycle: int, kind: str = "cycle") -> Stored | None:
        name = f"{kind}_{cycle:03d}.json"
        if name not in self.files:
            return None
        signature, entry = self.files[name], self.entries.get(name)
        if signature is not None and entry is not None and entry.signature == [*signature]:
            with suppress(*MALFORMED):
                record = self.index.record(entry, self.trial, self.method)
                self.used.add(name)
                return Stored(record, "")
        stored = super()._read(cycle, kind)
        self.entries.pop(name, None)
        if stored is None:
            return None
        made = self.index.entry(signature or (), stored.record)
        if signature and signature[2] < self.index.young:
            self.entries[name] = made
            self.used.add(name)
            self.changed = True
        return Stored(self.index.record(made, self.trial, self.method), "")


def sweep(folder: Path, used: set[str]) -> None:
    """Remove the index files of a report's folder that no suite uses any more, as far as possible."""
    with suppress(OSError):
        for name in disk.names(folder):
            if OWN_FILES.fullmatch(name) and name not in used:
                disk.remove(folder / name)


def _layout() -> list[Any]:
    return [VERSION, [*COMMON], [*OWN], [*MAPPINGS]]


def _text(value: Any) -> str:
    return json.dumps(value)  # keys are not sorted: the order of conditions is that of a row's name


def _line(*values: Any) -> bytes:
    content = "\t".join(map(json.dumps, values)).encode()
    return hashlib.sha256(content).hexdigest()[:CHECKSUM].encode() + b" " + content


def _checked(line: bytes) -> bytes | None:
    content = line[CHECKSUM + 1 :]
    return content if line[:CHECKSUM] == hashlib.sha256(content).hexdigest()[:CHECKSUM].encode() else None

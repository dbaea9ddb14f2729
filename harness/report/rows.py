"""Rows of tables: one for each method, or several where the records of a method must not be averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.results.manifest import SuiteEntry
from harness.results.records import OWN_CODE, UNKNOWN, CycleRecord, differing

SHOWN = 6  # digits of a hash in the name of a row


def kept_apart(suite: SuiteEntry, records: Sequence[CycleRecord]) -> tuple[SuiteEntry, list[CycleRecord]]:
    """Return the suite and its records with a row, and a method's name, for each set of conditions of a method.

    Conditions are code, data, versions, precision and device: see CycleRecord.conditions. A trial whose conditions
    changed between two of its cycles has a row with others that changed in the same way. The name of a row ends in what
    differs within the suite, e.g. 'BADGE [code 81d6d6]' and 'BADGE [code 81d6d6 > 02ab5e]'; the code of a method's
    halves counts only within its own rows.
    """
    histories: dict[str, dict[str, list[dict[str, str]]]] = {method: {} for method in suite.methods}
    for r in sorted(records, key=lambda r: (r.seed, r.cycle)):
        history = histories[r.method].setdefault(r.trial, [])
        history += [found for found in r.all_conditions() if found not in history]
    common = [name for name in _different(histories.values()) if not name.startswith(OWN_CODE)]
    methods: list[str] = []
    renamed: dict[str, str] = {}
    for method, trials in histories.items():
        different = [*(name for name in _different([trials]) if name.startswith(OWN_CODE)), *common]
        names = {trial: _name(method, history, different) for trial, history in trials.items()}
        renamed.update(names)
        methods += dict.fromkeys(names.values()) if names else [method]
    changed = [replace(r, method=renamed[r.trial]) for r in records]
    return suite.model_copy(update={"methods": methods}), changed


def _different(methods: Iterable[dict[str, list[dict[str, str]]]]) -> list[str]:
    """Return the names of the conditions that differ between any two cycles of these methods."""
    every = [conditions for trials in methods for history in trials.values() for conditions in history]
    return list(dict.fromkeys(name for conditions in every for name in differing(every[0], conditions)))


def _name(method: str, history: list[dict[str, str]], different: list[str]) -> str:
    """Return the name of the row of a trial; ``different``: the conditions that its name must state."""
    if not different:
        return method
    code = [name for name in different if name.startswith("code")]
    shown: dict[str, list[str]] = {}
    for conditions in history:
        if code:
            shown.setdefault("code", []).append(_together([conditions.get(name, UNKNOWN) for name in code]))
        for name in [name for name in different if name not in code]:
            value = conditions.get(name, UNKNOWN)
            shown.setdefault(name, []).append(value[:SHOWN] if name == "data" and value != UNKNOWN else value)
    parts = [f"{name} {' > '.join(dict.fromkeys(values))}" for name, values in shown.items()]
    return f"{method} [{', '.join(parts)}]"


def _together(hashes: list[str]) -> str:
    """Return one hash of several, the hash itself if it is one, or UNKNOWN if all are."""
    if len(set(hashes)) == 1:
        return hashes[0] if hashes[0] == UNKNOWN else hashes[0][:SHOWN]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:SHOWN]

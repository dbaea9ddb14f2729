"""Rows of tables: one for each method, or several where the records of a method must not be averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from harness.results.manifest import SuiteEntry
from harness.results.records import OWN_CODE, UNKNOWN, CycleRecord, differing

SHOWN = 6  # digits of a hash in the name of a row


def kept_apart(suite: SuiteEntry, records: Sequence[CycleRecord]) -> tuple[SuiteEntry, list[CycleRecord]]:
    """Return the suite and its records with a row, and a method's name, for each set of conditions of a method.

    Conditions are code, data, versions, precision and device: see CycleRecord.conditions. Trials share a row if they
    agree in every cycle that both have. The name of a row ends in what differs within the suite, e.g.
    'BADGE [code 81d6d6]', or 'BADGE [code 81d6d6 > 02ab5e]' if the code changed between two cycles; the code of a
    method's halves counts only within its own rows.
    """
    histories: dict[str, dict[str, list[_Cycle]]] = {method: {} for method in suite.methods}
    known: dict[tuple[Any, ...], list[dict[str, str]]] = {}  # records of an index share their mappings
    for r in sorted(records, key=lambda r: (r.seed, r.cycle)):
        key = (id(r.code), id(r.versions), id(r.trained_under), r.data_fingerprint, r.precision, r.device)
        if key not in known:
            known[key] = r.all_conditions()
        histories[r.method].setdefault(r.trial, []).append(_Cycle(r.cycle, known[key]))
    common = [name for name in _different(histories.values()) if not name.startswith(OWN_CODE)]
    methods: list[str] = []
    renamed: dict[str, str] = {}
    for method, trials in histories.items():
        different = [*(name for name in _different([trials]) if name.startswith(OWN_CODE)), *common]
        if not different:
            renamed.update(dict.fromkeys(trials, method))
            methods.append(method)
            continue
        rows: list[list[_Cycle]] = []
        for history in sorted(trials.values(), key=len, reverse=True):
            if not any(_agree(row, history, different) for row in rows):
                rows.append(history)
        names = _names(method, rows, different)
        own = {
            t: next(n for row, n in zip(rows, names, strict=True) if _agree(row, h, different))
            for t, h in trials.items()
        }
        renamed.update(own)
        methods += dict.fromkeys(own.values()) if own else [method]
    changed = [r if r.method == renamed[r.trial] else replace(r, method=renamed[r.trial]) for r in records]
    return suite.model_copy(update={"methods": methods}), changed


class _Cycle(NamedTuple):
    """A cycle of a trial, and the conditions of its training and of its selection."""

    number: int
    conditions: list[dict[str, str]]

    def shown(self, different: list[str]) -> list[dict[str, str]]:
        """Return what the name of a row says of this cycle; ``different``: the conditions that it must state."""
        code = [name for name in different if name.startswith("code")]
        found = []
        for conditions in self.conditions:
            values = {name: conditions.get(name, UNKNOWN) for name in different}
            texts = {"code": _together([values[name] for name in code])} if code else {}
            for name in [name for name in different if name not in code]:
                texts[name] = values[name][:SHOWN] if name == "data" and values[name] != UNKNOWN else values[name]
            found.append(texts)
        return found


def _agree(one: list[_Cycle], other: list[_Cycle], different: list[str]) -> bool:
    """Return whether two trials have the same conditions in every cycle that both have."""
    found = {cycle.number: cycle.shown(different) for cycle in one}
    return all(found.get(cycle.number, shown) == shown for cycle in other if (shown := cycle.shown(different)))


def _different(methods: Iterable[dict[str, list[_Cycle]]]) -> list[str]:
    """Return the names of the conditions that differ between any two cycles of these methods."""
    cycles = {id(c.conditions): c for trials in methods for history in trials.values() for c in history}
    every = [conditions for cycle in cycles.values() for conditions in cycle.conditions]
    return list(dict.fromkeys(name for conditions in every for name in differing(every[0], conditions)))


def _names(method: str, rows: list[list[_Cycle]], different: list[str]) -> list[str]:
    """Return the names of a method's rows; they say from which cycle on conditions hold only where they must."""
    names = [_name(method, row, different, False) for row in rows]
    return [
        n if names.count(n) == 1 else _name(method, row, different, True) for row, n in zip(rows, names, strict=True)
    ]


def _name(method: str, row: list[_Cycle], different: list[str], with_cycles: bool) -> str:
    shown = [(texts, cycle.number) for cycle in row for texts in cycle.shown(different)]
    parts = []
    for condition in shown[0][0]:
        values: list[str] = []
        last = None
        for texts, number in shown:
            if (value := texts[condition]) != last:
                values.append(f"{value} from cycle {number}" if values and with_cycles else value)
                last = value
        parts.append(f"{condition} {' > '.join(values)}")
    return f"{method} [{', '.join(parts)}]"


def _together(hashes: list[str]) -> str:
    """Return one hash of several, the hash itself if it is one, or UNKNOWN if all are."""
    if len(set(hashes)) == 1:
        return hashes[0] if hashes[0] == UNKNOWN else hashes[0][:SHOWN]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:SHOWN]

"""What captions and notes say of the records behind a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.results.records import CycleRecord

if TYPE_CHECKING:
    pass
from harness.report.tables import Suite

PLACES_SHOWN = 4  # of a warning that many cycles have


def counted(number: int, noun: str) -> str:
    """Return '1 seed' or '3 seeds'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def seen(values: Iterable[Any]) -> str:
    """Return the different values, sorted and joined with slashes."""
    return "/".join(sorted({str(v) for v in values}))


def provenance(suite: Suite, records: Sequence[CycleRecord]) -> str:
    """Return where numbers come from: title, recipe, seeds, data, devices, precision; and how much is missing."""
    data = seen(r.data_fingerprint[:12] or "unknown" for r in records)
    return (
        f"{suite.title}: {suite.recipe}; {counted(len(suite.seeds), 'seed')}; dataset {suite.dataset} "
        f"(data {data}); {seen(r.device for r in records)}, {seen(r.precision for r in records)}"
        + ("" if is_finished(suite, records) else f"; unfinished: {progress(suite, records)}")
        + "."
    )


def is_finished(suite: Suite, records: Sequence[CycleRecord]) -> bool:
    """Say whether every cycle of every trial is there."""
    return len(records) >= len(suite.trials) * len(suite.labelled)


def progress(suite: Suite, records: Sequence[CycleRecord]) -> str:
    """Return '3 of 15 trials finished; 40 cycles of 75'."""
    ended = sum(r.cycle == len(suite.labelled) - 1 for r in records)
    cycles = len(suite.trials) * len(suite.labelled)
    return f"{ended} of {counted(len(suite.trials), 'trial')} finished; {len(records)} cycles of {cycles}"


def timing_note(records: Sequence[CycleRecord]) -> str:
    """Return how far the seconds may be compared."""
    share = max(r.device_share for r in records)
    note = "one trial per device"
    if share > 1:
        most = max(r.threads for r in records)
        threads = (
            f"{counted(most, 'thread')} each" if len({r.threads for r in records}) == 1 else f"up to {most} threads"
        )
        devices = seen(r.device for r in records)
        note = f"up to {share} trials shared a device ({devices}, {threads}): compare within this table only"
    if any(r.shared_from for r in records):
        note += "; the first cycle's training was shared between methods and is counted for each"
    return note


def mixtures(records: Sequence[CycleRecord]) -> list[str]:
    """Return a WARNING for each thing that should be the same in all records of a suite and is not."""
    things: dict[str, set[str]] = {}
    for r in records:
        same = {
            "data": r.data_fingerprint,
            "device": r.device,
            "precision": r.precision,
            "threads": str(r.threads),
            "commit": r.commit,
            **{f"version of {name}": version for name, version in r.versions.items()},
        }
        for name, value in same.items():
            things.setdefault(name, set()).add(value)
    return [
        f"WARNING: these results mix different values of {name}: {', '.join(sorted(values))}"
        for name, values in things.items()
        if len(values) > 1
    ]


def record_warnings(records: Iterable[CycleRecord]) -> list[str]:
    """Return each different warning once, with the trials and cycles that have it."""
    places: dict[str, list[str]] = {}
    for r in sorted(records, key=lambda r: (r.trial, r.cycle)):
        for warning in dict.fromkeys(r.warnings):
            places.setdefault(warning, []).append(f"{r.trial} cycle {r.cycle}")
    return [
        f"warning: {warning} ({', '.join(where[:PLACES_SHOWN])}"
        + (f" and {len(where) - PLACES_SHOWN} more)" if len(where) > PLACES_SHOWN else ")")
        for warning, where in places.items()
    ]

"""The records of a run as one table for spreadsheets: report/records.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.tables import metric_keys, percent
from harness.results.manifest import SuiteEntry
from harness.results.records import PHASES, CycleRecord

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("suite", "dataset", "model", "method", "seed", "cycle", "labelled")
LAST = ("target_parameters", "extra_parameters", "device", "precision", "commit", "trial")


def sorted_records(suites: Iterable[tuple[SuiteEntry, Sequence[CycleRecord]]]) -> list[CycleRecord]:
    """Return all records in the order of the suites, of their methods, of the seeds and of the cycles."""
    return [
        r
        for suite, records in suites
        for r in sorted(records, key=lambda r: (suite.methods.index(r.method), r.seed, r.cycle))
    ]


def record_table(suites: Iterable[tuple[SuiteEntry, Sequence[CycleRecord]]]) -> pd.DataFrame:
    """Return a table with a row per suite, method, seed and cycle, from which all tables of the report follow.

    Metrics and the IoU of each class are in %, as in the report. ``selected``: number of selected images.
    """
    import pandas as pd

    records = sorted_records(suites)
    metrics, classes = metric_keys(records), dict.fromkeys(name for r in records for name in r.per_class)

    def row(r: CycleRecord) -> dict[str, Any]:
        return {
            **{key: getattr(r, key) for key in FIRST},
            **{percent(key): _percent(r.metrics.get(key)) for key in metrics},
            **{f"IoU of {name} (%)": _percent(r.per_class.get(name)) for name in classes},
            "selected": len(r.selected),
            "final_loss": r.final_loss,
            **{f"seconds_{phase}": r.seconds.get(phase) for phase in PHASES},
            "wall_seconds": r.wall_seconds,
            "peak_memory_bytes": r.peak_memory(),
            **{key: getattr(r, key) for key in LAST},
        }

    return pd.DataFrame([row(r) for r in records])


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value

"""The records of a run as one table for spreadsheets: report/records.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from harness.report.quality import OVERALL, overall
from harness.report.selection import class_entropy
from harness.report.tables import metric_keys, percent
from harness.results.manifest import SuiteEntry
from harness.results.records import PHASES, CycleRecord

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("suite", "dataset", "model", "method", "seed", "cycle", "labelled")
LAST = ("target_parameters", "extra_parameters", "device", "precision", "commit", "trial")


def sorted_records(suites: Iterable[tuple[SuiteEntry, Sequence[CycleRecord]]]) -> list[CycleRecord]:
    """Return all records in the order of the suites, of their methods, of the seeds and of the cycles.

    Those of trials on all training images, whose row is no method, come last.
    """
    found = []
    for suite, records in suites:
        order = {method: number for number, method in enumerate(suite.methods)}
        found += sorted(records, key=lambda r: (order.get(r.method, len(order)), r.seed, r.cycle))
    return found


class Columns(NamedTuple):
    """The columns that depend on the records: sorted metrics, and classes with an IoU."""

    metrics: list[str]
    classes: list[str]

    @classmethod
    def of(cls, records: Sequence[CycleRecord]) -> Columns:
        """Return those of some records."""
        return cls(metric_keys(records), [*dict.fromkeys(name for r in records for name in r.per_class)])

    @classmethod
    def together(cls, found: Sequence[Columns]) -> Columns:
        """Return those of all suites of a report."""
        classes = dict.fromkeys(name for each in found for name in each.classes)
        return cls(sorted({key for each in found for key in each.metrics}), [*classes])


def record_table(
    suites: Iterable[tuple[SuiteEntry, Sequence[CycleRecord]]], columns: Columns | None = None
) -> pd.DataFrame:
    """Return a table with a row per suite, method, seed and cycle; ``columns``: by default those of the records.

    The report's tables follow from it, apart from published values, the gains with another network, the overlap of two
    selections and what the test metrics of single classes are. Metrics, the IoU of each class and class entropy are in
    %, as in the report. ``selected``: number of selected images. Balanced accuracy and F1 are those of the records that
    the report shows them of.
    """
    import pandas as pd

    records = sorted_records(suites)
    metrics, classes = columns or Columns.of(records)
    none = [None] * len(OVERALL)
    qualities = ([*overall(r).values()] if r.confusion or r.calibration else none for r in records)
    quality = [*zip(*qualities, strict=True)] or [()] * len(OVERALL)
    entropies = [class_entropy(r.selected_classes) for r in records]
    return pd.DataFrame(
        {
            **{key: [getattr(r, key) for r in records] for key in FIRST},
            **{percent(key): [_percent(r.metrics.get(key)) for r in records] for key in metrics},
            **{f"IoU of {name} (%)": [_percent(r.per_class.get(name)) for r in records] for name in classes},
            **dict(zip(OVERALL, quality, strict=True)),
            "selected": [len(r.selected) for r in records],
            "class entropy (%)": [None if isnan(value) else 100 * value for value in entropies],
            "final_loss": [r.final_loss for r in records],
            **{f"seconds_{phase}": [r.seconds.get(phase) for r in records] for phase in PHASES},
            "wall_seconds": [r.wall_seconds for r in records],
            "peak_memory_bytes": [r.peak_memory() for r in records],
            "energy_joules": [r.energy_joules for r in records],
            "shared_first_cycle": [r.shared_from is not None for r in records],
            **{key: [getattr(r, key) for r in records] for key in LAST},
        }
    )


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value

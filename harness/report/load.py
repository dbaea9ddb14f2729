"""The results of a run as one table, for notebooks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import expanded
from harness.report.captions import left_out
from harness.report.merge import sources
from harness.report.record_table import FIRST, sorted_records
from harness.results.records import METRICS, MORE_METRICS, PHASES, CycleRecord

if TYPE_CHECKING:
    import pandas as pd

LAST = ("target_parameters", "extra_parameters", "selected", "selected_files", "warnings")
FLOATS = dict.fromkeys([*METRICS, *MORE_METRICS, "final_loss", *(f"seconds_{phase}" for phase in PHASES)], float)
"""Columns that hold None where there is no number."""
NOTHING = CycleRecord(
    *("", "", "", "", "", 0, 0, 0, {}, [], {}, 0.0, 0, 0, {}, 0, None, "", 1, 1, "", {"shards": []}),
)
"""A record whose values have the types of others."""


def load(run_dir: str | Path, *others: str | Path) -> pd.DataFrame:
    """Return the finished cycles of a run as a table with a row per suite, method, seed and cycle.

    Several runs are merged by the rules of harness.report.merge, with their differences as Python warnings.

    Columns: suite, dataset, model, method, seed, cycle, labelled; accuracy, miou and top5, as fractions (NaN where the
    dataset has no such metric); final_loss; seconds_<phase> for each phase, and wall_seconds; peak_memory_bytes;
    target_parameters and extra_parameters; selected (list of training-set indices) and selected_files (of their files);
    warnings (list of sentences); trial, the trial's id. Raises UserError if the folder holds no run.
    """
    import pandas as pd

    found = sources([expanded(folder) for folder in (run_dir, *others)])
    suites = found.suites
    for suite, records in suites:
        for note in [*found.suite_notes.get(suite.name, []), *left_out(suite, records, found.store)]:
            warnings.warn(note, stacklevel=2)
    rows = [_row(r) for r in sorted_records(suites)]
    # a table without rows has the columns of one with rows, and their types
    return pd.DataFrame(rows or [_row(NOTHING)]).astype(FLOATS).iloc[: len(rows)]


def _row(record: CycleRecord) -> dict[str, Any]:
    return {
        **{key: getattr(record, key) for key in FIRST},
        **{metric: record.metrics.get(metric) for metric in (*METRICS, *MORE_METRICS)},
        "final_loss": record.final_loss,
        **{f"seconds_{phase}": record.seconds.get(phase) for phase in PHASES},
        "wall_seconds": record.wall_seconds,
        "peak_memory_bytes": record.peak_memory(),
        **{key: getattr(record, key) for key in LAST},
        "trial": record.trial,
    }

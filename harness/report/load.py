"""The results of a run as one table, for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import expanded
from harness.report.write import read
from harness.results.records import METRICS, PHASES

if TYPE_CHECKING:
    import pandas as pd

LAST = ("target_parameters", "extra_parameters", "selected", "selected_files", "warnings")


def load(run_dir: str | Path) -> pd.DataFrame:
    """Return the finished cycles of a run as a table with a row per suite, method, seed and cycle.

    Columns: suite, dataset, model, method, seed, cycle, labelled; accuracy and miou, as fractions (NaN where the
    dataset has no such metric); final_loss; seconds_<phase> for each phase, and wall_seconds; peak_memory_bytes;
    target_parameters and extra_parameters; selected (list of training-set indices) and selected_files (of their files);
    warnings (list of sentences); trial, the trial's id. Raises UserError if the folder holds no run.
    """
    import pandas as pd

    _, suites = read(expanded(run_dir))
    rows = [
        {
            **{key: getattr(r, key) for key in ("suite", "dataset", "model", "method", "seed", "cycle", "labelled")},
            **{metric: r.metrics.get(metric) for metric in METRICS},
            "final_loss": r.final_loss,
            **{f"seconds_{phase}": r.seconds.get(phase) for phase in PHASES},
            "wall_seconds": r.wall_seconds,
            "peak_memory_bytes": r.peak_memory(),
            **{key: getattr(r, key) for key in LAST},
            "trial": r.trial,
        }
        for suite, records in suites
        for r in sorted(records, key=lambda r: (suite.methods.index(r.method), r.seed, r.cycle))
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))

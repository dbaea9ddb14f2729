"""Runs one unit of work in the current process: a trial, or the first cycle that several trials share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import NonFiniteLoss, NotReproduced, UserError
from harness.trial import ActiveLearner, Report, run_shared, run_trial

if TYPE_CHECKING:
    from harness.data.dataset import LoadedData
    from harness.experiment.grid import Unit
    from harness.learning.process import Placement
    from harness.learning.scoring import Scorer
    from harness.results.store import RunStore


def execute(
    unit: Unit, data: LoadedData, run: RunStore, placement: Placement, report: Report, scorer: Scorer | None = None
) -> str | None:
    """Run the unfinished cycles of a unit and report all of its cycles; return None, or why it failed.

    Only failures that a retry would repeat are returned; all other exceptions are raised.
    """
    try:
        learner = ActiveLearner(unit.trial, data, placement, scorer)
        (run_shared if unit.shared else run_trial)(learner, run, unit.suite, unit.method, report)
    except (NonFiniteLoss, NotReproduced, UserError) as error:
        return str(error)
    return None

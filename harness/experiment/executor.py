"""Runs one unit of work in the current process: a trial, or the first cycle that several trials share."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from harness.errors import NonFiniteLoss, NotReproduced, UserError
from harness.faults import PluginFault
from harness.results.store import write_atomically
from harness.trial import ActiveLearner, Report, run_shared, run_trial

if TYPE_CHECKING:
    from harness.data.dataset import LoadedData
    from harness.experiment.grid import Unit
    from harness.learning.process import Placement
    from harness.learning.scoring import Scorer
    from harness.results.store import RunStore


def execute(
    unit: Unit,
    data: LoadedData,
    run: RunStore,
    placement: Placement,
    report: Report,
    scorer: Scorer | None = None,
    start: bool = False,
) -> str | None:
    """Run the unfinished cycles of a unit and report all of its cycles; return None, or why it failed.

    It fails if the code on this machine is not that of the process that started the run. Only failures that a retry
    would repeat are returned; all other exceptions are raised. With ``start`` the workers of the scorer are started
    before anything is timed. The traceback of a plug-in's exception is written to failure.txt in the folder of the
    trial, or of the shared first cycle.
    """
    folder = (run.shared(unit.trial.sharing_key) if unit.shared else run.trial(unit.trial.id)).folder
    traceback = folder / "failure.txt"
    with suppress(OSError):  # what else can't be written says so
        traceback.unlink(missing_ok=True)
    if different := [part for part, hash_ in unit.code.items() if unit.trial.code.get(part) != hash_]:
        return f"the code of {' and '.join(different)} has changed on this machine since the run started"
    try:
        if start and scorer is not None:
            scorer.start()
        learner = ActiveLearner(unit.trial, data, placement, scorer)
        (run_shared if unit.shared else run_trial)(learner, run, unit.suite, unit.method, report)
    except PluginFault as error:
        if not error.trace:
            return str(error)
        write_atomically(traceback, error.trace.encode())
        return f"{error}; the traceback is in {traceback}"
    except (NonFiniteLoss, NotReproduced, UserError) as error:
        return str(error)
    return None

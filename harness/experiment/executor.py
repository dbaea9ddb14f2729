"""Runs one unit of work in the current process: a trial, or the first cycle that several trials share."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from harness import registry
from harness.data.host import in_units
from harness.errors import NonFiniteLoss, NotReproduced, OutOfMemory, StorageError, UserError
from harness.experiment import crash
from harness.experiment.display import TRACEBACK_IN
from harness.faults import PluginFault
from harness.learning.inference import REFUSED
from harness.results.lock import LockLost
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
    lost: tuple[type[BaseException], ...] = (),
) -> str | None:
    """Run the unfinished cycles of a unit and report all of its cycles; return None, or why it failed.

    It fails if the code on this machine is not that of the process that started the run, and by any exception of its
    own: a retry would repeat it. The traceback goes to logs/ in the folder of the run. Exceptions of the types ``lost``
    are raised, because a retry may help, and LockLost. With ``start`` the workers of the scorer are started before
    anything is timed. If a signal ends the process, the log has its stack.
    """
    log = crash.log_of(unit, run.folder)
    with crash.noted(log):
        if different := [part for part, hash_ in unit.code.items() if unit.trial.code.get(part) != hash_]:
            return f"the code of {' and '.join(different)} has changed on this machine since the run started"
        try:
            if start and scorer is not None:
                scorer.start()
            learner = ActiveLearner(unit.trial, data, placement, scorer)
            (run_shared if unit.shared else run_trial)(learner, run, unit.suite, unit.method, report)
        except (LockLost, StorageError):
            raise
        except lost:
            raise
        except PluginFault as error:
            return _logged(str(error), error.trace or traceback.format_exc(), log)
        except Exception as error:  # nothing that ends one trial may end the others
            return failed(error, log)
    return None


def failed(error: Exception, log: Path) -> str:
    """Return the sentence on an exception that is being handled, and write its traceback to the log."""
    trace = traceback.format_exc()
    place = crash.place_in(trace, True)
    refused = REFUSED.search(str(error))
    if refused or isinstance(error, MemoryError):
        more = f" ({in_units(int(refused[1]))} more were needed)" if refused else ""
        remedy = "use smaller batches or a smaller network, or on Ray run fewer trials at once (where.max_concurrent)"
        return _logged(f"this machine's memory is full{more}{place and f', at {place}'}; {remedy}", trace, log)
    first = next(iter(str(error).strip().splitlines()), "")
    ours = isinstance(error, NonFiniteLoss | NotReproduced | UserError)
    said = str(error) if ours else f"{type(error).__name__}: {first:.200}"
    if isinstance(error, OutOfMemory) and place:
        said += f", at {place}"
    return _logged(said, trace, log)


def _logged(sentence: str, trace: str, log: Path) -> str:
    """Write a traceback to the log; return the sentence with the name of the log."""
    write_atomically(log, registry.at_home(trace).encode())
    return f"{sentence}{TRACEBACK_IN}{log}"

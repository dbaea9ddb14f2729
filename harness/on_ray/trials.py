"""Runs the grid on Ray Tune: one actor per unit of work, shared first cycles before the trials that need them.

Tune is only the scheduler. The store decides what is finished: a retried or resumed trial continues after its last
finished cycle, and the state of Tune is never restored.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness.on_ray  # noqa: F401 - sets Ray's environment before its import, also in workers

# ruff: isort: split
from harness.lazy import importing

with importing():
    import ray
    from ray import tune
    from ray.tune.search import Searcher
    from ray.tune.trainable.function_trainable import wrap_function

from harness import registry
from harness.data.dataset import LoadedData
from harness.errors import StorageError
from harness.experiment.display import Listener, cycle_values
from harness.experiment.grid import Unit
from harness.experiment.holding import scoring_workers
from harness.on_ray.beats import PROGRESS, beating, progress_name
from harness.on_ray.metrics import Metrics
from harness.on_ray.session import Resources, check_alive, nodes, resources
from harness.results import code, lock, progress
from harness.results.records import CycleRecord
from harness.results.store import RunStore
from harness.settings import Where


class Order(Searcher):
    """Gives Tune the units in order, but holds back units whose shared first cycle has not ended."""

    def __init__(self, units: list[Unit]) -> None:
        super().__init__(metric="cycle", mode="max")
        self.waiting = dict(enumerate(units))
        self.pending = {unit.trial.sharing_key for unit in units if unit.shared}
        self.shared = {i: unit.trial.sharing_key for i, unit in enumerate(units) if unit.shared}
        self.running: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next unit, None while all remaining units wait, or FINISHED when none remains."""
        if not self.waiting:
            return Searcher.FINISHED
        for number, unit in self.waiting.items():
            if unit.after not in self.pending:
                del self.waiting[number]
                self.running[trial_id] = number
                return {"unit": number, "trial": unit.trial.sharing_key if unit.shared else unit.trial.id}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release the units that waited for this one; after a failure they train their first cycle themselves."""
        self.pending.discard(self.shared.get(self.running.pop(trial_id), ""))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state of Tune is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the state of Tune is never restored."""


def _run_unit(config: dict[str, Any], folder: str, holding: lock.Lock | None, **given: Any) -> None:
    """Run one unit in its Tune actor, which writes only as long as the run holds its folder.

    What fails once would fail again: it is reported, so that Tune does not retry.
    """
    with importing():
        from harness.experiment import executor

    try:
        lock.work_under(holding)
        try:
            _work(config, folder=folder, **given)
        except (ray.exceptions.RayError, OSError, MemoryError):  # a retry may help, on another node or later
            raise
        except (lock.LockLost, StorageError):
            raise
        except Exception as error:  # also what goes wrong before the unit runs, such as the import of a plug-in
            log = Path(folder) / "logs" / f"{config['trial']}.log"
            tune.report({"cycle": -1, "failure": executor.failed(error, log)})
    except lock.LockLost as error:
        tune.report({"cycle": -1, "failure": str(error)})
    except StorageError as error:
        tune.report({"cycle": -1, "refusal": str(error)})


def _work(
    config: dict[str, Any],
    plugins: registry.Luggage,
    known: dict[str, Any],
    units: list[bytes],
    data: dict[str, Any],
    folder: str,
    where: Where,
    shares: dict[bool, Resources],
) -> None:
    """Run one unit; see ``_run_unit``."""
    registry.unpack(plugins)
    code.known.update(known)
    unit: Unit = pickle.loads(units[config["unit"]])
    share = shares[unit.exclusive]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share.threads))  # default: all cores
    with importing():
        from harness.experiment.executor import execute
        from harness.learning.process import Placement
        from harness.on_ray.scoring import AutoScorer, RayData

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shards = scoring_workers(where) if unit.trial.scores_images() and not unit.shared else 0
    processes = 1 + shards
    placement = Placement(
        device="cuda" if ray.get_gpu_ids() else "cpu",
        threads=share.threads,
        device_share=share.device_share,
        gpu_share=(share.gpus or 1.0) / processes,
        sharing=share.node_share * processes,
        checkpoint_minutes=where.checkpoint_minutes,
    )
    scorer: Any = None
    beat = Path(folder) / "ray" / "beats" / str(config["unit"])
    if shards:
        workers = RayData(unit.trial, data[unit.suite], placement, shards, where.warm_workers, beat)
        idle = max(1, share.processors // (share.device_share * share.threads))  # cores for each trial
        parallel = min(shards, idle) if placement.device == "cpu" else shards
        auto = AutoScorer(workers, unit.trial.protocol.cycles, parallel)
        scorer = workers if where.scoring == "ray_data" else auto
    began = time.time()

    def report(record: CycleRecord) -> None:
        # one text: Tune keeps statistics of each number of each trial, which took most of its state
        values = json.dumps({**cycle_values(record, progress.here.expected), "began": began})
        tune.report({"cycle": record.cycle, "values": values})

    node = ray.get_runtime_context().get_node_id()
    try:
        with beating(beat, node), progress.written(Path(folder) / PROGRESS / progress_name(unit)):
            run, loaded = RunStore(Path(folder)), ray.get(data[unit.suite])
            failure = execute(
                unit,
                loaded,
                run,
                placement,
                report,
                scorer,
                start=where.scoring == "ray_data",
                lost=(ray.exceptions.RayError,),
            )
        if failure is not None:  # a retry would fail in the same way: reported once, so that Tune does not retry
            tune.report({"cycle": -1, "failure": failure})
    finally:
        if scorer is not None:
            scorer.close()


class _Listen(tune.Callback):
    """Passes Tune's events on to listeners."""

    def __init__(self, units: list[Unit], listeners: list[Listener], each_step: list[Callable[[], None]]) -> None:
        self.units, self.listeners, self.each_step = units, listeners, each_step
        self.dead = False
        """Whether the process of a trial died more often than where.retries."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its callbacks, a terminal can't be pickled, and no state is restored."""
        return {}

    def _notify(self, event: str, trial: Any, values: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, self.units[trial.config["unit"]], values)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Tune would end as if all were done
        self._notify("start", trial, {})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failure" in result:
            self._notify("failed", trial, result)
        elif "refusal" in result:
            self._notify("refused", trial, result)
        elif "values" in result:
            self._notify("cycle", trial, {**result, **json.loads(result["values"])})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._notify("end", trial, {})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._notify("retry", trial, {"cause": "its process died"})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.dead = True
        self._notify("dead", trial, {})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for step in self.each_step:
            step()


# Tune pickles these functions once for each trial: they are of this module, and hold nothing


def _name(trial: Any) -> str:
    return str(trial.config["trial"])


def _dirname(trial: Any) -> str:
    return f"{trial.config['unit']:04d}"


def run(
    units: list[Unit],
    data: dict[str, LoadedData],
    where: Where,
    folder: Path,
    listener: Listener,
    each_step: Callable[[], None],
    slots: Callable[[dict[bool, int]], None],
    earlier: Mapping[str, int],
) -> None:
    """Run the units on the Ray that ``session.start`` started. ``each_step`` is called several times a second.

    ``slots`` gets how many units run at the same time, for suites that are not exclusive and that are. ``earlier``: see
    Metrics.
    """
    shares = {exclusive: resources(where, exclusive, nodes()) for exclusive in (False, True)}
    slots({exclusive: share.concurrent for exclusive, share in shares.items()})
    put = {id(loaded): ray.put(loaded) for loaded in data.values()}
    parameters = {
        "plugins": registry.luggage(),
        "known": code.known,
        "units": [*map(pickle.dumps, units)],  # one by one: a plug-in that a worker can't import fails only its trials
        "data": {suite: put[id(loaded)] for suite, loaded in data.items()},
        "folder": str(folder.resolve()),
        "where": where,
        "shares": shares,
        "holding": lock.held_here(),
    }

    # the class is pickled with what it refers to: not with the units, whose plug-ins a worker must unpack first
    names, warm = [unit.name for unit in units], where.warm_workers
    bundles = [shares[unit.exclusive].bundle() for unit in units]

    class Trial(wrap_function(tune.with_parameters(_run_unit, **parameters), name="trial")):  # type: ignore[misc]
        def __repr__(self) -> str:  # the actor's name in the dashboard: it stays that of its first trial
            return "trial worker" if warm else names[self.config["unit"]]

        def step(self) -> Any:
            ray._raylet.setproctitle(f"ray::{names[self.config['unit']]}")  # the process's name there, for its trial
            return super().step()

    limit = max(shares[unit.exclusive].concurrent for unit in units)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(limit)
    published = Metrics(units, folder, earlier)
    listen = _Listen(units, [listener, published], [each_step, published.step])
    tuner = tune.Tuner(
        tune.with_resources(
            Trial,
            lambda config: tune.PlacementGroupFactory([bundles[config["unit"]]]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=Order(units),
            num_samples=len(units),
            max_concurrent_trials=limit,
            reuse_actors=where.warm_workers,
            trial_name_creator=_name,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str((folder / "ray").resolve()),
            failure_config=tune.FailureConfig(max_failures=where.retries),
            callbacks=[listen],
            verbose=0,
        ),
    )
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tuner.fit()
    if listen.dead:  # Tune ends in the same way if Ray itself has died
        check_alive()

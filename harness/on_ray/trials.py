"""Ray Tune runs the grid: one actor per unit of work, shared first cycles before the trials that wait for them.

Tune is only the scheduler. What is finished is what the store says: a retried or resumed trial goes on after its last
finished cycle, and no state of Tune's is ever restored.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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

from harness.data.dataset import Problem
from harness.errors import NonFiniteLoss, NotReproduced, UserError
from harness.experiment.grid import Unit
from harness.results.records import FIGURES, PHASES, CycleRecord
from harness.results.store import RunStore
from harness.settings import Where


@dataclass(frozen=True)
class Resources:
    """What one unit of work reserves, and how many can run at once."""

    cpus: int
    threads: int
    gpus: float
    concurrent: int
    device_share: int
    processors: int
    """Of a node, as Ray counts them: in a container they may be fewer than the host's."""

    def bundle(self) -> dict[str, float]:
        """Return the reservation: one bundle, so that a trial and its scoring workers are on one node and one GPU."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def start(where: Where) -> str:
    """Start a local Ray or join a cluster; return one line about it for the user."""
    address = where.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"where.address: can't join the Ray cluster at {address!r} (a token goes into RAY_AUTH_TOKEN): {reason}"
            ) from None
        return f"Ray: joined the cluster at {address}"
    os.environ.pop("RAY_ADDRESS", None)
    local = {"address": "local", "dashboard_host": "127.0.0.1", **common}
    missing = ""
    try:
        context = ray.init(include_dashboard=where.dashboard, **local)
    except Exception as error:
        if "dashboard" not in str(error):
            raise
        context, missing = (
            ray.init(include_dashboard=False, **local),
            "; install ray[default] for dashboard and metrics",
        )
    if context.dashboard_url:
        return f"Ray: dashboard at http://{context.dashboard_url} (this machine only; token: `ray get-auth-token`)"
    return f"Ray: without dashboard{missing}"


def stop() -> None:
    """Leave Ray; a local one ends."""
    ray.shutdown()


def resources(where: Where, exclusive: bool, nodes: list[dict[str, float]]) -> Resources:
    """Return what each unit reserves on a cluster of ``nodes`` (CPU and GPU of each).

    Raises UserError if no single node can hold one: such a unit would wait for ever.
    """
    have_gpus = any(node.get("GPU", 0) for node in nodes)
    gpus = where.gpus_per_trial if where.gpus_per_trial is not None else float(have_gpus)
    threads = cpus = where.cpus_per_trial
    if exclusive and gpus:
        gpus = 1.0
    elif exclusive:  # the device is all processors of a node
        cpus = max(threads, *(int(node.get("CPU", 0)) for node in nodes))

    def held(node: dict[str, float]) -> int:
        """Return how many units a node holds; a GPU is not split between units unevenly."""
        by_cpu = int(node.get("CPU", 0) // cpus)
        return min(by_cpu, int(node.get("GPU", 0)) * int(1 / gpus)) if gpus else by_cpu

    fitting = sum(map(held, nodes))
    if not fitting:
        largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes) or "none"
        raise UserError(
            f"one trial needs {cpus} CPUs and {gpus:g} GPUs on one node (where.cpus_per_trial, where.gpus_per_trial), "
            f"but the cluster's nodes have {largest}"
        )
    concurrent = min(fitting, where.max_concurrent or fitting)
    share = int(1 / gpus) if gpus else max(map(held, nodes))
    processors = max(int(node.get("CPU", 0)) for node in nodes)
    return Resources(cpus, threads, gpus, concurrent, min(share, concurrent), processors)


def nodes() -> list[dict[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check(where: Where, units: list[Unit], folder: Path) -> None:
    """Raise UserError if the cluster can't hold a unit, or not all of its nodes see the results folder."""
    for exclusive in {unit.exclusive for unit in units}:
        resources(where, exclusive, nodes())
    living = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(living) == 1:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with tempfile.NamedTemporaryFile(dir=folder.resolve(), prefix=".seen-by-all-nodes-") as file:
        seen: Any = ray.remote(num_cpus=0)(os.path.exists)
        here = [NodeAffinitySchedulingStrategy(node, soft=False) for node in living]
        found = ray.get([seen.options(scheduling_strategy=place).remote(file.name) for place in here])
    if not all(found):
        raise UserError(f"where.output: {folder} is not seen by all {len(living)} nodes; use a folder that they share")


class _Order(Searcher):
    """Gives Tune the units in order, holding back those whose shared first cycle has not ended."""

    def __init__(self, units: list[Unit]) -> None:
        super().__init__(metric="cycle", mode="max")
        self.waiting = dict(enumerate(units))
        self.pending = {unit.trial.sharing_key for unit in units if unit.shared}
        self.shared = {i: unit.trial.sharing_key for i, unit in enumerate(units) if unit.shared}
        self.running: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next unit, None while all that are left wait, FINISHED when none is left."""
        if not self.waiting:
            return Searcher.FINISHED
        for number, unit in self.waiting.items():
            if unit.after not in self.pending:
                del self.waiting[number]
                self.running[trial_id] = number
                return {"unit": number}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let those go on that waited for this unit; after a failure they train their first cycle themselves."""
        self.pending.discard(self.shared.get(self.running.pop(trial_id), ""))

    def save(self, checkpoint_path: str) -> None:
        """Nothing of Tune's is ever restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of Tune's is ever restored."""


def _metrics(unit: Unit) -> Callable[[CycleRecord], None]:
    """Return a function that publishes a cycle as Ray metrics (its figures, labelled, cycle, seconds by phase)."""
    from ray.util.metrics import Gauge

    tags = {"suite": unit.suite, "method": unit.label, "seed": str(unit.trial.seed), "trial": unit.trial.id}
    keys = tuple(tags)
    gauges = {n: Gauge(f"al_{n}", tag_keys=keys) for n in (*FIGURES, "labelled", "cycle")}
    phases = Gauge("al_phase_seconds", tag_keys=(*keys, "phase"))

    def publish(record: CycleRecord) -> None:
        for name, value in {**record.figures, "labelled": record.labelled, "cycle": record.cycle}.items():
            gauges[name].set(value, tags=tags)
        for phase in PHASES:
            phases.set(record.seconds.get(phase, 0.0), tags={**tags, "phase": phase})  # an earlier version's had fewer

    return publish


def _run_unit(
    config: dict[str, Any],
    units: list[Unit],
    problems: dict[str, Any],
    folder: str,
    where: dict[str, Any],
    shares: dict[bool, Resources],
) -> None:
    """Run one unit in its Tune actor."""
    unit = units[config["unit"]]
    settings, share = Where(**where), shares[unit.exclusive]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share.threads))  # else it takes all processors
    with importing():
        from harness.on_ray.scoring import Measured, RayData
        from harness.trial import Runner, Surroundings

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    may_share = settings.scoring == "ray_data" or (settings.scoring == "auto" and settings.shards > 1)
    with_workers = may_share and unit.trial.scores_images() and not unit.shared
    here = Surroundings(
        device="cuda" if ray.get_gpu_ids() else "cpu",
        threads=share.threads,
        device_share=share.device_share,
        suite=unit.suite,
        method=unit.label,
        gpu_share=(share.gpus or 1.0) / (1 + settings.shards if with_workers else 1),
    )
    problem = problems[unit.suite]
    scorer: Any = None
    if with_workers:
        workers = RayData(unit.trial, problem, here, settings.shards, keep=settings.warm_workers)
        idle = max(1, share.processors // (share.device_share * share.threads))  # processors for each trial
        parallel = min(settings.shards, idle) if here.device == "cpu" else settings.shards
        measured = Measured(workers, unit.trial.protocol.cycles, parallel)
        scorer = workers if settings.scoring == "ray_data" else measured
        if scorer is workers:
            workers.start()  # before anything is timed
    publish = _metrics(unit)
    began = time.time()

    def report(record: CycleRecord) -> None:
        if not unit.shared:  # the trials that take it over do, under their own names
            publish(record)
        tune.report(
            {
                "cycle": record.cycle,
                "labelled": record.labelled,
                **record.figures,
                "wall": record.wall_seconds,
                "cost": record.cost_seconds,
                "began": began,
            }
        )

    try:
        runner = Runner(unit.trial, ray.get(problem), RunStore(Path(folder)), here, scorer)
        if unit.shared:
            runner.run_shared(report)
        else:
            runner.run(report)
    except (NonFiniteLoss, NotReproduced, UserError) as error:
        # the same again on every retry: report it once and go on with the others
        tune.report({"cycle": -1, "failure": f"{unit.name}: {error}"})
    finally:
        if scorer is not None:
            scorer.close()


Listener = Callable[[str, Unit, dict[str, Any]], None]
"""(event, unit, values): event is start, cycle, end, retry or failed"""


class _Listen(tune.Callback):
    """Hands Tune's events on."""

    def __init__(self, units: list[Unit], listener: Listener) -> None:
        self.units, self.listener = units, listener
        self.failures: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, a terminal can't be, and nothing of Tune's is ever restored."""
        return {}

    def _tell(self, event: str, trial: Any, values: dict[str, Any]) -> None:
        self.listener(event, self.units[trial.config["unit"]], values)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("start", trial, {})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failure" in result:
            self.failures.append(result["failure"])
            self._tell("failed", trial, result)
        elif "labelled" in result:  # a cycle
            self._tell("cycle", trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("end", trial, {})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("retry", trial, {})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        unit = self.units[trial.config["unit"]]
        cause = str(trial.get_error() or "its process died").strip().splitlines()[-1]
        self.failures.append(f"{unit.name}: {cause}")
        self._tell("failed", trial, {"failure": cause})


def run(units: list[Unit], problems: dict[str, Problem], where: Where, folder: Path, listener: Listener) -> list[str]:
    """Run the units on the Ray that ``start`` started; return one sentence for each that failed."""
    shares = {exclusive: resources(where, exclusive, nodes()) for exclusive in (False, True)}
    put = {id(problem): ray.put(problem) for problem in problems.values()}
    parameters = {
        "units": units,
        "problems": {name: put[id(problem)] for name, problem in problems.items()},
        "folder": str(folder.resolve()),
        "where": where.model_dump(),
        "shares": shares,
    }

    class Trial(wrap_function(tune.with_parameters(_run_unit, **parameters), name="trial")):  # type: ignore[misc]
        def __repr__(self) -> str:  # what the dashboard calls the actor
            return "trial worker" if where.warm_workers else units[self.config["unit"]].name

    limit = max(shares[unit.exclusive].concurrent for unit in units)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(limit)
    listen = _Listen(units, listener)
    tuner = tune.Tuner(
        tune.with_resources(
            Trial,
            lambda config: tune.PlacementGroupFactory([shares[units[config["unit"]].exclusive].bundle()]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=_Order(units),
            num_samples=len(units),
            max_concurrent_trials=limit,
            reuse_actors=where.warm_workers,
            trial_name_creator=lambda trial: f"{units[trial.config['unit']].trial.id}",
            trial_dirname_creator=lambda trial: f"{trial.config['unit']:04d}",
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
    sys.stdout.flush()
    return listen.failures

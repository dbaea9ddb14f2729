"""A trial is a fold over cycles: train, test, describe, choose, record. It knows no method and no dataset by name."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import __version__, registry
from harness.config.suite import Part, Trial
from harness.data.dataset import Facts, Problem
from harness.data.images import Images
from harness.data.rows import on_device, selected
from harness.errors import NonFiniteLoss, UserError
from harness.learning import pool, queried
from harness.learning.contract import Acquisition, Training
from harness.learning.cycle import Cycle
from harness.learning.inference import confusion, within_memory
from harness.learning.metrics import summary
from harness.learning.scoring import Columns, InProcess, Scored, Scorer, as_record
from harness.networks.compiling import booked
from harness.networks.zoo import build, initial
from harness.results.clock import Clock
from harness.results.records import TRAINING_PHASES, CycleRecord
from harness.results.store import RunStore, TrialStore, write_atomically
from harness.seeds import key


@dataclass(frozen=True)
class Surroundings:
    """Where a trial runs: nothing in here may change its figures, but for the device and its threads' rounding."""

    device: str = "cpu"
    threads: int = 1
    device_share: int = 1
    suite: str = ""
    method: str = ""
    gpu_share: float = 1.0
    """The part of its GPU's memory that each process of the trial may take."""


Report = Callable[[CycleRecord], None]


def build_method(training: Part, acquisition: Part, num_classes: int) -> tuple[Training, Acquisition]:
    """Return a method's two halves; one object for a method that brings both."""
    acquisition_class = registry.find("methods", acquisition.name, Acquisition)
    training_class = registry.find("methods", training.name, Training)
    assert acquisition_class is not None and training_class is not None
    asking = acquisition_class(acquisition_class.Settings(**acquisition.settings), num_classes)
    if training == acquisition:
        assert isinstance(asking, Training)
        return asking, asking
    return training_class(training_class.Settings(**training.settings), num_classes), asking


@cache
def versions() -> dict[str, str]:
    """Return the versions of what computes the figures."""
    found = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "ray")}
    found["cuda"], found["cudnn"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    return {**found, "python": platform.python_version(), "harness": __version__}


@cache
def commit() -> str:
    """Return the harness's git commit, with '+changes' if its files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(registry.ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def prepare_process(threads: int, deterministic: bool) -> None:
    """Set up this process: fixed threads, no hidden TF32; ``deterministic``: the same figures each time."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; needed by cuBLAS
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    # cuDNN's default is TF32, whatever the config says; under autocast only the classifier of maps would notice
    torch.backends.cudnn.allow_tf32 = False


def limit_memory(device: torch.device, share: float) -> None:
    """Let this process take its share of a GPU's memory and no more: a trial fails by itself, not its neighbour."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak memory anew: a process may run several trials."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak then is the process's
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the highest memory since the reset, in bytes: see CycleRecord.peak_memory_bytes."""
    found = {}
    try:
        status = Path("/proc/self/status").read_text()
        found["host"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        found["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
        found["reserved"] = torch.cuda.max_memory_reserved(device)
    return found


def facts_of(problem: Problem) -> Facts:
    """Return the facts of a loaded dataset."""
    _, height, width, channels = problem.train_images.shape
    return Facts(
        len(problem.train_labels),
        len(problem.test_labels),
        len(problem.classes),
        channels,
        (height, width),
        "",
        problem.per_pixel,
    )


@dataclass
class _Trained:
    """A cycle's training: done here, or taken over from the unit that shares it (with that unit's seconds)."""

    figures: dict[str, float]
    final_loss: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    shared_from: str | None = None
    warnings: list[str] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)


class Runner:
    """Runs the cycles of one trial, from where its store left off."""

    def __init__(
        self, trial: Trial, problem: Problem, store: RunStore, here: Surroundings, scorer: Scorer | None = None
    ) -> None:
        self.trial, self.problem, self.store, self.here = trial, problem, store, here
        self.scorer: Scorer = scorer or InProcess()
        self.device = torch.device(here.device)
        self.facts = facts_of(problem)
        prepare_process(here.threads, trial.recipe.deterministic)
        limit_memory(self.device, here.gpu_share)
        self._start_clock()
        with self.clock.phase("setup"):
            recipe = trial.recipe
            self.images = Images(on_device(problem.train_images, self.device), problem, recipe)
            self.test_images = Images(on_device(problem.test_images, self.device), problem, recipe)
            self.test_labels = on_device(problem.test_labels, self.device)
            self.labelled = pool.initial_set(trial.protocol, self.facts.num_train, trial.seed)
            self.own_initial_set: list[int] = []
            self._make(0)

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def header(self) -> dict[str, Any]:
        """Return what the store keeps of the trial as a whole."""
        return {"measured": self.trial.measured(), "data_fingerprint": self.problem.fingerprint}

    def run(self, report: Report) -> None:
        """Run every cycle that is not finished yet."""
        store = self.store.trial(self.trial.id)
        with self.clock.phase("setup"):
            store.open(self.header())
            finished, state = store.resume_point()
            records = store.records()
            self._draw_initial_set(store)
            for record in records[:finished]:
                self.labelled = np.concatenate([self.labelled, np.array(record.chosen, dtype=np.int64)])
                report(record)
            if state is not None:
                self._load(state)
        for number in range(finished, self.trial.protocol.cycles):
            with booked(self.clock):
                record = self._cycle(number, store)
            self.labelled = np.concatenate([self.labelled, np.array(record.chosen, dtype=np.int64)])
            report(record)
            self._start_clock()  # only now: what reporting takes is no cycle's

    def run_shared(self, report: Report) -> None:
        """Run the first cycle's training alone, for all trials that share it."""
        store = self.store.shared(self.trial.sharing_key)
        store.open({"sharing_key": self.trial.sharing_key, "data_fingerprint": self.problem.fingerprint})
        if store.resume_point()[0] == 0:
            with self.clock.phase("setup"):
                self._draw_initial_set(store)
            with booked(self.clock):
                self._cycle(0, store, choosing=False)
        report(store.records()[0])

    def _draw_initial_set(self, store: TrialStore) -> None:
        """Let an acquisition draw its own initial set, unless a finished cycle 0, its own or shared, says which."""
        if not self.trial.has_own_initial_set():
            return
        stores = (store, self.store.shared(self.trial.sharing_key))
        known = [place.records()[0].own_initial_set for place in stores if place.resume_point()[0]]
        unlabelled = replace(self._begin(0), labels=torch.zeros(0, device=self.device))
        drawn = known[0] if known else self.acquisition.initial_set(unlabelled).tolist()
        assert len(set(drawn)) == len(self.labelled), "an initial set of its own has another size"
        self.labelled = np.array(drawn, dtype=np.int64)
        self.own_initial_set = drawn

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.training.load_state({k: v.to(self.device) for k, v in state["training"].items()})

    def _state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "training": self.training.state()}

    def _make(self, number: int) -> None:
        """Make the network and the method of a cycle that starts with fresh weights."""
        trial, classes = self.trial, self.facts.num_classes
        network = initial(trial.model, self.facts, trial.seed, number)
        self.network = network.to_place(self.device, trial.recipe)
        self.training, self.acquisition = build_method(trial.training, trial.acquisition, classes)

    def _begin(self, number: int) -> Cycle:
        """Return the cycle, with the network and the carried state that it starts from."""
        protocol, seed = self.trial.protocol, self.trial.seed
        if number > 0 and protocol.start == "fresh":
            self._make(number)
        torch.manual_seed(key(seed, "global", number))  # for what draws from torch's global stream: dropout
        drawn = pool.candidates(protocol, self.facts.num_train, self.labelled, seed, number)
        is_labelled = np.zeros(self.facts.num_train, dtype=bool)
        is_labelled[self.labelled] = True
        return Cycle(
            seed=seed,
            number=number,
            network=self.network,
            images=self.images,
            labelled=self._tensor(self.labelled),
            labels=selected(self.problem.train_labels, self.labelled, self.device),
            unlabelled=self._tensor(np.flatnonzero(~is_labelled)),
            candidates=self._tensor(drawn),
            recipe=self.trial.recipe,
            build=partial(build, self.trial.model, self.facts),
            clock=self.clock,
            training=self.training,
        )

    def _take_over(self) -> _Trained | None:
        """Return the training of a shared first cycle, with its weights loaded, if there is one."""
        shared = self.store.shared(self.trial.sharing_key)
        finished, state = shared.resume_point()
        if not finished or state is None:
            return None
        done = shared.records()[0]
        if done.data_fingerprint != self.problem.fingerprint:
            raise UserError(
                f"{shared.folder}: was trained on other data ({done.data_fingerprint}, now "
                f"{self.problem.fingerprint}); results of both can't be mixed: choose another where.output"
            )
        self._load(state)
        seconds = {p: done.seconds[p] for p in TRAINING_PHASES}
        key = self.trial.sharing_key
        return _Trained(
            done.figures,
            done.final_loss,
            seconds,
            key,
            done.warnings,
            done.health,
            done.per_class,
            done.peak_memory_bytes,
        )

    def _train(self, cycle: Cycle) -> _Trained:
        """Train and test the cycle's network, or take over a shared first cycle."""
        with self.clock.phase("setup"):
            if cycle.number == 0 and (shared := self._take_over()):
                return shared
        batches = "recipe.batch_size, recipe.crop_size or the method's own batch_size"
        with self.clock.phase("train"), within_memory(f"training of cycle {cycle.number}", batches):
            loss = self.training.fit(cycle)
        with self.clock.phase("evaluate"):
            counts = confusion(
                self.network,
                self.test_images,
                self.test_labels,
                self.facts.num_classes,
                self.trial.recipe,
                self.training.predict,
                cycle.warnings,
            )
            figures, per_class = summary(counts, self.problem.classes, self.facts.per_pixel)
        return _Trained(figures, loss, per_class=per_class)

    def _choose(self, cycle: Cycle) -> tuple[list[int], Scored | None]:
        """Return the indices to buy, preferred first."""
        asking, method, budget = self.acquisition, self.trial.acquisition.name, self.trial.protocol.budget
        scored: Scored | None = None
        prepared: Columns = {}

        def describe(indices: torch.Tensor, purpose: str) -> Scored:
            found = self.scorer.describe(cycle, asking, prepared, indices, purpose)
            cycle.warnings.extend(warning for shard in found.shards for warning in shard.warnings)
            for name, column in found.columns.items():
                if column.isnan().any():
                    raise NonFiniteLoss(f"cycle {cycle.number}: {method}'s {name} is not a number")
            return found

        if asking.uses_images:
            with self.clock.phase("setup"):
                self.scorer.start()
        with self.clock.phase("score"):
            if asking.uses_images:
                sizes = "recipe.inference_batch_size or the method's own batch_size"
                with within_memory(f"{method} of cycle {cycle.number}", sizes):
                    prepared = asking.prepare(cycle)
                scored = describe(cycle.candidates, "describe")
                columns = scored.columns
            else:
                columns = {"index": cycle.candidates.sort().values}

        def labelled() -> Columns:
            with self.clock.phase("score"):
                return describe(cycle.labelled, "describe labelled").columns

        with self.clock.phase("select"), torch.no_grad():
            rows = asking.choose(columns, labelled, budget, cycle.stream("selection"))
            chosen = columns["index"][rows.to(columns["index"].device)].tolist()
        assert len(set(chosen)) == budget, f"{method} chose {len(set(chosen))} images, not {budget}"
        if cycle.number == 0 and self.facts.per_pixel:
            with self.clock.phase("checkpoint"):
                self._keep_queried(cycle, prepared, chosen)
        return chosen, scored

    def _keep_queried(self, cycle: Cycle, prepared: Columns, chosen: list[int]) -> None:
        """Keep the first of the images bought for the report, once; no cycle ever reads them."""
        path = self.store.trial(self.trial.id).queried_path
        if not path.exists():
            kept = queried.look(cycle, self.problem, self.training, self.acquisition, prepared, chosen)
            write_atomically(path, kept.packed())

    def _cycle(self, number: int, store: TrialStore, choosing: bool = True) -> CycleRecord:
        """Run one cycle and commit it."""
        with self.clock.phase("setup"):
            cycle = self._begin(number)
        trained = self._train(cycle)
        if self.own_initial_set and number == 0 and trained.shared_from is None:
            cycle.warnings.append("starts from an initial set of its own, not from the one that all methods share")
        last = number == self.trial.protocol.cycles - 1
        chosen, scored = self._choose(cycle) if choosing and not last else ([], None)
        with self.clock.phase("checkpoint"):
            state = store.save_state(number, self._state())
            target = self.network.num_parameters()
            halves: set[Training | Acquisition] = {self.training, self.acquisition}  # one object may be both
            extra = sum(half.extra_parameters(cycle) for half in halves)
            software, revision = versions(), commit()  # the first time, git is asked
        record = CycleRecord(
            suite=self.here.suite,
            dataset=self.trial.dataset.name,
            model=self.trial.model.name,
            method=self.here.method,
            trial=self.trial.id,
            seed=self.trial.seed,
            cycle=number,
            labelled=len(self.labelled),
            figures=trained.figures,
            per_class=trained.per_class,
            chosen=chosen,
            seconds={p: own + trained.seconds.get(p, 0.0) for p, own in self.clock.seconds.items()},
            wall_seconds=time.perf_counter() - self._began,
            target_parameters=target,
            extra_parameters=extra,
            peak_memory_bytes={k: max(v, trained.peak_memory.get(k, 0)) for k, v in peak_memory(self.device).items()},
            training_images=len(self.labelled) * self.trial.recipe.epochs,
            final_loss=trained.final_loss,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            device_share=self.here.device_share,
            threads=self.here.threads,
            pid=os.getpid(),
            precision=self.trial.recipe.precision,
            scoring=as_record(scored),
            shared_from=trained.shared_from,
            own_initial_set=self.own_initial_set if number == 0 else [],
            warnings=[*trained.warnings, *cycle.warnings],
            health={**trained.health, **cycle.health},
            versions=software,
            commit=revision,
            data_fingerprint=self.problem.fingerprint,
        )
        store.commit(record, state)
        return record

    def _start_clock(self) -> None:
        reset_peak_memory(self.device)
        self._began = time.perf_counter()
        self.clock = Clock(self.device)

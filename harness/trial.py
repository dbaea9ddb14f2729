"""The active-learning loop of one trial, and the record of each cycle. Refers to no method or dataset by name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from harness import registry
from harness.config.suite import Trial
from harness.data.dataset import DatasetInfo, LoadedData
from harness.data.images import Images
from harness.data.oracle import Oracle, TrueLabels
from harness.data.rows import on_device
from harness.errors import UserError
from harness.learning import boundary, pictures, pool
from harness.learning.checkpoints import FIRST, RANK, SCORE, SELECT, TRAIN, Checkpoints
from harness.learning.contract import Acquisition, Ahead, Training
from harness.learning.cycle import Cycle
from harness.learning.inference import Tally, tally, within_memory
from harness.learning.metrics import by_name, calibration, summary
from harness.learning.process import (
    Placement,
    available,
    limit_memory,
    peak_memory,
    prepare_process,
    reset_peak_memory,
)
from harness.learning.scoring import Columns, InProcess, Scored, Scorer, warm_up
from harness.networks import building, names
from harness.networks.compiling import timing_compilation
from harness.results import progress, within
from harness.results.clock import Clock
from harness.results.energy import joules
from harness.results.provenance import commit, versions
from harness.results.records import TRAINING_PHASES, CycleRecord, conditions, differing
from harness.results.store import RunStore, TrialStore, write_atomically
from harness.results.within import Within
from harness.settings import PluginSpec, Recipe

Report = Callable[[CycleRecord], None]


def build_half(spec: PluginSpec, contract: type[Any], num_classes: int) -> Any:
    """Return the training or acquisition of ``spec``, for a dataset with ``num_classes`` classes."""
    plugin = registry.find("methods", spec.name, contract)
    assert plugin is not None
    return boundary.build(plugin, spec.name, contract, spec.settings, num_classes)


def info_of(data: LoadedData, recipe: Recipe) -> DatasetInfo:
    """Return the properties of a loaded dataset that a network depends on; ``size`` is what it is tested on.

    ``source`` is left empty.
    """
    _, height, width, channels = data.train_images.shape
    counts = len(data.train_images), len(data.test_images), len(data.classes)
    return DatasetInfo(*counts, channels, recipe.tested((height, width)), "", data.per_pixel)


@dataclass
class Trained:
    """The result of a cycle's training: from this trial, or from the shared first cycle (with its seconds)."""

    metrics: dict[str, float]
    final_loss: float | None
    per_class: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shared_from: str | None = None
    warnings: list[str] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)
    """Those of the shared training."""
    confusion: list[dict[str, dict[str, int]]] = field(default_factory=list)
    calibration: dict[str, float] = field(default_factory=dict)


@dataclass
class Selection:
    """The images that an acquisition selected, and the scores behind the selection."""

    indices: list[int] = field(default_factory=list)
    """Indices of the training set, best first."""
    scored: Scored | None = None
    """Columns of the candidates and the workers that computed them; None if no image was scored."""
    prepared: Columns = field(default_factory=dict)
    """The tensors that the acquisition prepared for scoring."""


class ActiveLearner:
    """The active-learning loop of one trial, cycle by cycle. It writes no files.

    ::

        learner = ActiveLearner(trial, data)
        cycle = learner.open_cycle(0)
        print(learner.train(cycle).metrics)
        learner.label(learner.select(cycle).indices)
        cycle = learner.open_cycle(1)
    """

    def __init__(
        self,
        trial: Trial,
        data: LoadedData,
        placement: Placement | None = None,
        scorer: Scorer | None = None,
        oracle: Oracle | None = None,
    ) -> None:
        self.trial, self.data = trial, data
        self.placement = placement or Placement()
        self.scorer: Scorer = scorer or InProcess()
        self.oracle: Oracle = oracle or TrueLabels(data)
        self.device = torch.device(self.placement.device)
        self.info = info_of(data, trial.recipe)
        prepare_process(self.placement.threads, trial.recipe.deterministic)
        limit_memory(self.device, self.placement)
        self.start_clock()
        with self.clock.phase("setup"):
            recipe = trial.recipe
            normalisation = names.normalisation(trial.model, self.info.channels)
            self.images = Images(on_device(data.train_images, self.device), data, recipe, normalisation)
            self.test_images = Images(on_device(data.test_images, self.device), data, recipe, normalisation)
            self.test_labels = on_device(data.test_labels, self.device)
            self.labelled = pool.initial_set(trial.protocol, self.info.num_train, trial.seed)
            self._warm = False
            self.checkpoints = Checkpoints()
            """Those of the cycle that is next or runs."""
            self.initial_set: list[int] = []
            """The labelled images of cycle 0, if the acquisition drew them."""
            self.extra_parameters: int | None = None
            """Parameters of the method's modules minus those that they replace: the maximum over the cycles so far."""
            if not names.shipped(trial.model.name):
                building.check(trial.model, self.info)
            self._make(0)
            ahead = Ahead(trial.dataset.name, self.info, trial.protocol, (trial.seed,))
            for half, spec in ((self.training, trial.training), (self.acquisition, trial.acquisition)):
                if problem := boundary.too_large(
                    type(half),
                    spec,
                    ahead,
                    lambda: self.network.classifier.in_features,
                    lambda: available(self.device, self.placement.gpu_share),
                ):
                    raise UserError(problem)

    def pretrained(self) -> dict[str, Any]:
        """Return what the record says about pretrained weights; empty if the network starts from fresh ones."""
        settings = self.trial.model.settings
        if settings.weights is None:
            return {}
        own = names.normalisation(self.trial.model, self.info.channels)
        mean, std = own or (self.data.mean, self.data.std)
        return {
            "weights": self.network.weights_source,
            "sha256": settings.weights_sha256,
            "normalisation": "weights" if own else "dataset",
            "mean": [*map(float, mean)],
            "std": [*map(float, std)],
        }

    def provenance(self) -> dict[str, Any]:
        """Return the fields of a record that its conditions consist of."""
        on_gpu = self.device.type == "cuda"
        return {
            "data_fingerprint": self.data.fingerprint,
            "code": self.trial.code,
            "versions": versions(),
            "precision": self.trial.recipe.precision,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
        }

    def start_clock(self) -> None:
        """Restart the clock and the peak memory for a new cycle."""
        reset_peak_memory(self.device)
        self.began = time.perf_counter()
        self.clock = Clock(self.device, progress.here)
        self.lost_seconds = 0.0
        self._peaks: dict[str, int] = {}
        self._joules = joules(self.device)

    def energy(self) -> float | None:
        """Return the joules that the device has taken in this cycle so far; None if it does not report them."""
        now = joules(self.device)
        return None if now is None or self._joules is None else now - self._joules

    def peaks(self) -> dict[str, int]:
        """Return the peak memory of the processes of this cycle so far, in bytes."""
        own = peak_memory(self.device)
        return {kind: max(own.get(kind, 0), self._peaks.get(kind, 0)) for kind in {**own, **self._peaks}}

    def measured(self) -> dict[str, Any]:
        """Return what is measured of this cycle so far, for a process that goes on with it."""
        wall, found = time.perf_counter() - self.began, {"seconds": self.clock.seconds, "peaks": self.peaks()}
        return {**found, "wall": wall, "lost": self.lost_seconds, "at": time.time(), "joules": self.energy()}

    def go_on(self, measured: dict[str, Any]) -> None:
        """Go on with what an earlier process has ``measured`` of this cycle, instead of what this one has."""
        self.clock.go_on(measured["seconds"])
        self.began = time.perf_counter() - measured["wall"]
        self.lost_seconds = measured["lost"] + max(0.0, time.time() - measured["at"])
        self._peaks, now = measured["peaks"], joules(self.device)
        self._joules = None if now is None or measured["joules"] is None else now - measured["joules"]

    def state(self) -> dict[str, Any]:
        """Return the state that the next cycle starts from: the network's weights and the state of both halves."""
        halves = {"training": boundary.state(self.training), "acquisition": boundary.state(self.acquisition)}
        return {"network": self.network.state_dict(), **halves}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state()`` whose tensors may be on any device."""
        self.network.load_state_dict(state["network"])
        # before schema version 2, a method with its own training stored the acquisition's state under "training"
        halves = {"training": self.training, "acquisition": self.acquisition}
        for name, half in halves.items():
            stored = state.get(name, state["training"])
            boundary.load_state(half, {k: v.to(self.device) for k, v in stored.items()}, own=name in state)

    def _make(self, number: int) -> None:
        """Create the network, the training and the acquisition of a cycle that starts from fresh weights."""
        trial, classes = self.trial, self.info.num_classes
        network = building.initial(trial.model, self.info, trial.seed, number)
        self.network = network.to_device(self.device, trial.recipe)
        self.training: Training = build_half(trial.training, Training, classes)
        self.acquisition: Acquisition = build_half(trial.acquisition, Acquisition, classes)

    def open_cycle(self, number: int) -> Cycle:
        """Return a cycle that is ready for training.

        Under warm start, network, training and acquisition are those of the previous cycle. Under ``start: fresh`` each
        cycle has new ones.
        """
        if number > 0 and self.trial.protocol.start == "fresh":
            self._make(number)
        cycle = self._cycle(number, self.labelled)
        self.training.ready(cycle)
        return cycle

    def _cycle(self, number: int, with_labels: pool.Indices) -> Cycle:
        """Return a cycle that holds the labels of the images ``with_labels``."""
        trial, num_train = self.trial, self.info.num_train
        self.candidates = pool.candidates(trial.protocol, num_train, self.labelled, trial.seed, number)
        unlabelled = np.setdiff1d(np.arange(num_train), self.labelled)
        return Cycle(
            seed=trial.seed,
            number=number,
            network=self.network,
            images=self.images,
            labelled=self._tensor(self.labelled),
            labels=self.oracle.labels(with_labels, self.device),
            unlabelled=self._tensor(unlabelled),
            candidates=self._tensor(self.candidates),
            recipe=trial.recipe,
            clock=self.clock,
            new_network=partial(building.build, trial.model, self.info),
            new_training=partial(build_half, trial.training, Training, self.info.num_classes),
            checkpoints=self.checkpoints,
        )

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.tensor(array, device=self.device)  # a copy, which a method can't reach the array through

    def draw_initial_set(self) -> None:
        """Let the acquisition draw the labelled images of cycle 0, if it defines its own initial set."""
        if self.trial.draws_first():
            self.start_from(boundary.first(self.acquisition, self._cycle(0, self.labelled[:0])))

    def start_from(self, initial_set: list[int]) -> None:
        """Start cycle 0 from an initial set that the acquisition drew."""
        self.labelled = np.array(initial_set, dtype=np.int64)
        self.initial_set = initial_set

    def train(self, cycle: Cycle) -> Trained:
        """Train the cycle's network and evaluate it on the test set."""
        settings = "recipe.batch_size, recipe.crop_size or the method's own batch_size"
        with self.clock.phase("train"), within_memory(f"training of cycle {cycle.number}", settings):
            loss = boundary.fit(self.training, cycle)
        cycle.learned = boundary.state(self.training)
        streams = boundary.same_streams(self.training, "predict", self.device)
        with self.clock.phase("evaluate"), streams, boundary.finite(self.training):
            found = self.evaluate(cycle)
            metrics, per_class = summary(found.confusion, self.data.classes, self.info.per_pixel, found.in_top)
        confusion = by_name(found.confusion, self.data.classes)
        return Trained(metrics, loss, per_class, confusion=confusion, calibration=calibration(found))

    def evaluate(self, cycle: Cycle) -> Tally:
        """Return what the cycle's network predicts on the test set."""
        images, labels, classes = self.test_images, self.test_labels, self.info.num_classes
        predict, recipe = partial(boundary.predict, self.training), self.trial.recipe
        logits = type(self.training).predict is Training.predict  # else scores may be anything that grows
        top = self.trial.dataset.settings.top5
        return tally(cycle.network, images, labels, classes, recipe, predict, cycle, logits, top)

    def select(self, cycle: Cycle) -> Selection:
        """Select the images to label next. The cycle must have been trained."""
        acquisition, method, budget = self.acquisition, self.trial.acquisition.name, self.trial.protocol.budget
        with self.clock.phase("setup"):
            acquisition.ready(cycle)
            if acquisition.scores_images:
                self.scorer.start()
                if not self._warm:
                    warm_up(cycle.network, cycle.images, self.trial.recipe)
                    self._warm = True
            unchanged = boundary.Unchanged(acquisition, cycle.network, boundary.modules(self.training))
        prepared: Columns = {}
        scored: Scored | None = None

        def describe(indices: torch.Tensor, purpose: str) -> Scored:
            with unchanged.during("describe"):
                packed = self.checkpoints.once(
                    purpose, lambda: self.scorer.describe(cycle, acquisition, prepared, indices, purpose).packed()
                )
            scored = Scored.of(packed, self.device)
            cycle.warnings.extend(warning for shard in scored.shards for warning in shard.warnings)
            boundary.check_finite_columns(acquisition, scored.columns)
            return scored

        columns = {"index": cycle.candidates.sort().values}
        if acquisition.scores_images:
            with self.clock.phase("score"):
                settings = "recipe.inference_batch_size or the method's own batch_size"
                with within_memory(f"{method} of cycle {cycle.number}", settings), unchanged.during("prepare"):
                    prepared = boundary.prepare(acquisition, cycle)
                self.checkpoints.begin(SCORE)
                scored = describe(cycle.candidates, "describe")
                columns = scored.columns

        def labelled() -> Columns:
            with self.clock.phase("score"):
                return describe(cycle.labelled, "describe labelled").columns

        self.checkpoints.begin(RANK)
        with self.clock.phase("select"), torch.no_grad():
            with unchanged.during("select"):
                rows = boundary.select(acquisition, columns, labelled, budget, cycle.stream("selection"))
            unchanged.finish()
            indices = columns["index"][rows].tolist()
            boundary.check_selected(acquisition, indices, self.candidates)
        return Selection(indices, scored, prepared)

    def label(self, indices: list[int]) -> None:
        """Add images to the labelled set. The oracle provides their labels when the next cycle opens."""
        self.labelled = np.concatenate([self.labelled, np.array(indices, dtype=np.int64)])

    def count_parameters(self) -> int:
        """Update ``extra_parameters`` with the current modules of both halves, and return it."""
        modules = [*boundary.modules(self.training), *boundary.modules(self.acquisition)]
        added = sum(p.numel() for module in modules for p in module.parameters())
        extra = added - sum(p.numel() for p in boundary.replaced(self.training, self.network))
        self.extra_parameters = extra if self.extra_parameters is None else max(extra, self.extra_parameters)
        return self.extra_parameters


def run_trial(learner: ActiveLearner, run: RunStore, suite: str, method: str, report: Report) -> None:
    """Run and store the cycles of a trial that are not stored yet. Report all cycles, stored ones first."""
    store, trial = run.trial(learner.trial.id), learner.trial
    with learner.clock.phase("setup"):
        store.open({"spec": trial.spec()})
        finished, state = store.resume_point()
        records = store.records()[:finished]
        within.sweep(store.folder, finished, late=bool(records) and not records[-1].selected)
        _open_checkpoints(learner, store, finished)
        _start(learner, run, store)
        for record in records[:-1]:
            learner.label(record.selected)
            report(record)
        if state is not None:
            learner.extra_parameters = records[-1].extra_parameters
            if not records[-1].selected and finished < trial.protocol.cycles:
                _open_checkpoints(learner, store, finished - 1, "selection")
                with timing_compilation(learner.clock):
                    records[-1] = _select_late(learner, store, records[-1], state)
                learner.start_clock()
                _open_checkpoints(learner, store, finished)
            else:
                learner.load_state(state)
            learner.label(records[-1].selected)
            report(records[-1])
    for number in range(finished, trial.protocol.cycles):
        with timing_compilation(learner.clock):
            record = _cycle(learner, run, store, number, suite, method)
        learner.label(record.selected)
        report(record)
        learner.start_clock()  # after the report, whose time belongs to no cycle
        _open_checkpoints(learner, store, number + 1)


def run_shared(learner: ActiveLearner, run: RunStore, suite: str, method: str, report: Report) -> None:
    """Run the training of the first cycle once, for all trials that share it."""
    sharing_key = learner.trial.sharing_key
    store = run.shared(sharing_key)
    store.open({"key": sharing_key})
    finished = store.resume_point()[0]
    within.sweep(store.folder, finished)
    if finished == 0:
        with learner.clock.phase("setup"):
            _open_checkpoints(learner, store, 0, code=learner.trial.shared_code)
            _start(learner, run, store)
        with timing_compilation(learner.clock):
            _cycle(learner, run, store, 0, suite, method, selecting=False)
    report(store.records()[0])


def _open_checkpoints(
    learner: ActiveLearner, store: TrialStore, cycle: int, kind: str = "cycle", code: dict[str, str] | None = None
) -> None:
    """Give the learner the checkpoints of a cycle, or of its late selection; ``code``: if it is not the trial's."""
    under = conditions(**{**learner.provenance(), "code": learner.trial.code if code is None else code})
    file = Within(store.folder, kind, cycle, {"folder": store.folder.name, **under})
    learner.checkpoints = Checkpoints(file, learner.placement.checkpoint_minutes, learner)


def _start(learner: ActiveLearner, run: RunStore, store: TrialStore) -> None:
    """Restore the initial set that the acquisition drew in a finished cycle 0 (own or shared), else draw it."""
    if not learner.trial.draws_first():
        return
    for earlier in (store, run.shared(learner.trial.sharing_key)):
        if earlier.resume_point()[0]:
            learner.start_from(earlier.records()[0].initial_set)
            return
    if (drawn := learner.checkpoints.take(FIRST)) is not None:
        learner.start_from(drawn)
        return
    learner.checkpoints.begin(FIRST)
    learner.draw_initial_set()
    learner.checkpoints.finish(FIRST, learner.initial_set)


def _go_on(learner: ActiveLearner, cycle: Cycle) -> Trained | None:
    """Load the network that a process that died has trained in this cycle, and return its result; None: it had not."""
    kept = learner.checkpoints.take(TRAIN)
    if kept is None:
        return None
    learner.load_state({**kept["state"], "acquisition": boundary.state(learner.acquisition)})
    learner.network.eval()
    cycle.learned = boundary.state(learner.training)
    cycle.warnings += kept["warnings"]
    cycle.health.update(kept["health"])
    return Trained(**json.loads(kept["result"]))


def _keep(learner: ActiveLearner, cycle: Cycle, trained: Trained) -> None:
    """Keep the trained network for a process that goes on with the selection, if that takes long."""
    state = {"network": dict(learner.network.state_dict()), "training": dict(boundary.state(learner.training))}
    found = {"state": state, "warnings": [*cycle.warnings], "health": {**cycle.health}}
    learner.checkpoints.finish(TRAIN, {**found, "result": json.dumps(vars(trained))})


def _take_over(learner: ActiveLearner, run: RunStore, cycle: Cycle) -> Trained | None:
    """Load the weights of the shared first cycle and return the result of its training, or None if it was not run."""
    sharing_key = learner.trial.sharing_key
    shared = run.shared(sharing_key)
    finished, state = shared.resume_point()
    if not finished or state is None:
        return None
    record = shared.records()[0]
    # the shared unit may have run with a different acquisition
    learner.load_state({**state, "acquisition": boundary.state(learner.acquisition)})
    cycle.learned = boundary.state(learner.training)
    return Trained(
        record.metrics,
        record.final_loss,
        record.per_class,
        {phase: record.seconds[phase] for phase in TRAINING_PHASES},
        sharing_key,
        record.warnings,
        record.health,
        record.peak_memory_bytes,
        record.conditions(),
        record.confusion,
        record.calibration,
    )


def _cycle(
    learner: ActiveLearner,
    run: RunStore,
    store: TrialStore,
    number: int,
    suite: str,
    method: str,
    selecting: bool = True,
) -> CycleRecord:
    """Run one cycle and store its record."""
    trial, clock, placement = learner.trial, learner.clock, learner.placement
    progress.here.begin(number)
    with clock.phase("setup"):
        cycle = learner.open_cycle(number)
        shared = _take_over(learner, run, cycle) if number == 0 else None
        trained = shared or _go_on(learner, cycle)
    last = number == trial.protocol.cycles - 1
    if trained is None:
        learner.checkpoints.begin(TRAIN)
        trained = learner.train(cycle)
        if selecting and not last and learner.acquisition.scores_images:
            _keep(learner, cycle, trained)
    if learner.initial_set and number == 0 and shared is None:
        cycle.warnings.append("starts from its own initial set, not from the set that all methods share")
    learner.checkpoints.begin(SELECT)
    selection = learner.select(cycle) if selecting and not last else Selection()
    with clock.phase("checkpoint"):
        if number == 0 and selection.indices:
            _keep_pictures(learner, store, cycle, selection)
        state = store.save_state(number, learner.state())
        parameters, extra = learner.network.num_parameters(), learner.count_parameters()
        provenance = {**learner.provenance(), "commit": commit()}  # the first call runs git
        if not selecting:
            provenance["code"] = trial.shared_code
    peaks = learner.peaks()
    record = CycleRecord(
        suite=suite,
        dataset=trial.dataset.name,
        model=trial.model.name,
        method=method,
        trial=trial.id,
        seed=trial.seed,
        cycle=number,
        labelled=len(learner.labelled),
        metrics=trained.metrics,
        per_class=trained.per_class,
        confusion=trained.confusion,
        calibration=trained.calibration,
        selected=selection.indices,
        selected_files=_files(learner, selection),
        seconds={phase: own + trained.seconds.get(phase, 0.0) for phase, own in clock.seconds.items()},
        wall_seconds=time.perf_counter() - learner.began,
        target_parameters=parameters,
        extra_parameters=extra,
        peak_memory_bytes={kind: max(peak, trained.peak_memory.get(kind, 0)) for kind, peak in peaks.items()},
        training_images=len(learner.labelled) * trial.recipe.epochs,
        final_loss=trained.final_loss,
        scoring=_scoring(selection),
        shared_from=trained.shared_from,
        initial_set=learner.initial_set if number == 0 else [],
        warnings=[*trained.warnings, *cycle.warnings, *learner.checkpoints.warnings],
        health={**trained.health, **cycle.health},
        pretrained=learner.pretrained(),
        device_share=placement.device_share,
        threads=placement.threads,
        pid=os.getpid(),
        selected_classes=_classes(learner, selection),
        energy_joules=learner.energy(),
        lost_seconds=learner.lost_seconds,
        **provenance,
    )
    if (shared_under := trained.conditions) and any(name.startswith("code") for name in shared_under):
        shared_under = {**record.conditions(), **shared_under}  # the acquisition's code did not decide the training
    record = replace(record, trained_under=_other(shared_under, record))
    store.commit(record, state)
    learner.checkpoints.remove()
    return record


def _select_late(learner: ActiveLearner, store: TrialStore, record: CycleRecord, state: dict[str, Any]) -> CycleRecord:
    """Make the selection of a cycle that was the last one when it was stored; ``state``: the stored one.

    Returns the record of the whole cycle, whose seconds and joules are those of its training and of this selection.
    """
    number, clock = record.cycle, learner.clock
    cycle = learner.open_cycle(number)
    learner.load_state(state)
    cycle.learned = boundary.state(learner.training)
    learner.checkpoints.begin(SELECT)
    selection = learner.select(cycle)
    with clock.phase("checkpoint"):
        if number == 0:
            _keep_pictures(learner, store, cycle, selection)
        digest = store.save_state(number, learner.state(), late=True)
        provenance = {**learner.provenance(), "commit": commit()}  # the first call runs git
    peaks, before = learner.peaks(), record.peak_memory_bytes
    spent, now = record.energy_joules, learner.energy()
    whole = replace(
        record,
        selected=selection.indices,
        selected_files=_files(learner, selection),
        selected_classes=_classes(learner, selection),
        seconds={phase: own + record.seconds.get(phase, 0.0) for phase, own in clock.seconds.items()},
        wall_seconds=record.wall_seconds + time.perf_counter() - learner.began,
        extra_parameters=learner.count_parameters(),
        peak_memory_bytes={kind: max(peak, before.get(kind, 0)) for kind, peak in peaks.items()},
        scoring=_scoring(selection),
        warnings=[*record.warnings, *cycle.warnings, *learner.checkpoints.warnings],
        lost_seconds=record.lost_seconds + learner.lost_seconds,
        health={**record.health, **cycle.health},
        energy_joules=None if spent is None or now is None else spent + now,
        **provenance,
    )
    # the process that stored the record decided nothing if it took over a shared training
    whole = replace(whole, trained_under=_other(record.trained_under or record.conditions(), whole))
    store.commit(whole, digest, late=True)
    learner.checkpoints.remove()
    return whole


def _other(trained: dict[str, str], record: CycleRecord) -> dict[str, str]:
    """Return the conditions of a training if they differ from those of the cycle's record, else an empty mapping."""
    return trained if trained and differing(trained, record.conditions()) else {}


def _files(learner: ActiveLearner, selection: Selection) -> list[str]:
    """Return the names of the files of the selected images, if the data has names."""
    names = learner.data.names
    return [names[index] for index in selection.indices] if names else []


def _classes(learner: ActiveLearner, selection: Selection) -> list[int]:
    """Return how many of the selected images have each class; empty for label maps."""
    if learner.info.per_pixel or not selection.indices:
        return []
    labels = learner.oracle.labels(np.array(selection.indices, dtype=np.int64), torch.device("cpu"))
    given = labels[torch.arange(len(selection.indices))].long()
    return torch.bincount(given, minlength=learner.info.num_classes).tolist()


def _scoring(selection: Selection) -> dict[str, Any]:
    """Return the entry ``scoring`` of a record."""
    return selection.scored.as_record() if selection.scored else {"path": "none", "shards": []}


def _keep_pictures(learner: ActiveLearner, store: TrialStore, cycle: Cycle, selection: Selection) -> None:
    """Store the first selected images for the report, unless they are stored already. No cycle reads them."""
    if not store.pictures_path.exists():
        source = cycle, learner.data, learner.oracle, learner.training
        if learner.info.per_pixel:
            kept = pictures.look(*source, learner.acquisition, selection.prepared, selection.indices)
        else:
            columns = selection.scored.columns if selection.scored else {}
            kept = pictures.look_at_images(*source, columns, selection.indices)
        write_atomically(store.pictures_path, kept.packed())

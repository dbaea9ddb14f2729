"""The grid of a run: its trials, the first cycles that several trials share, and their order."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field, replace

from harness import registry
from harness.config.suite import Benchmark, Suite, Trial
from harness.data import dataset
from harness.data.dataset import DatasetInfo
from harness.data.host import free_memory, in_units, processors
from harness.errors import DataMissing, UserError
from harness.experiment.room import check_room
from harness.learning import boundary
from harness.learning.contract import IMAGES, MAPS, Acquisition, Ahead, Training
from harness.learning.inference import TOP
from harness.networks import names
from harness.report.captions import counted
from harness.results.manifest import Manifest, SuiteEntry, TrialEntry, full_data_row
from harness.results.records import SCHEMA_VERSION
from harness.settings import Recipe, Where


@dataclass(frozen=True)
class Unit:
    """A unit of work: a whole trial, or the first cycle that several trials share."""

    trial: Trial
    suite: str
    method: str
    """The method's name in the config."""
    exclusive: bool
    shared: bool
    """Whether the unit is only the training of cycle 0, for all trials with this sharing key."""
    after: str | None
    """Sharing key of the unit that must end before this one starts, or None."""
    training: list[int]
    """Image passes of the target network's training in each cycle of the unit."""
    auxiliary: list[int]
    """Image passes of the method's additional training, such as a VAE or a committee, in each cycle of the unit."""
    scoring: list[int] = field(default_factory=list)
    """Image passes of scoring candidates in each cycle of the unit."""
    code: dict[str, str] = field(default_factory=dict)
    """Part -> hash of the code when the run started; workers compare it with their own."""

    @property
    def name(self) -> str:
        """The name that users see: suite, method and seed."""
        return f"{self.suite} / {self.method} / seed {self.trial.seed}"

    @property
    def cycles(self) -> int:
        """The number of cycles that the unit runs."""
        return 1 if self.shared else self.trial.protocol.cycles

    @property
    def passes(self) -> list[int]:
        """Image passes of each cycle, from which running times are estimated."""
        return [training + auxiliary for training, auxiliary in zip(self.training, self.auxiliary, strict=True)]


@dataclass(frozen=True)
class Grid:
    """The units of work of a run, and the suites that it skips."""

    units: list[Unit]
    """Shared first cycles, then trials; both in descending order of image passes."""
    info: dict[str, DatasetInfo]
    """Suite -> properties of its dataset; without skipped suites."""
    skipped: dict[str, str]
    """Suite -> why it is skipped."""


def expand(benchmark: Benchmark, fetch: bool = False, planning: bool = False, finished: Container[str] = ()) -> Grid:
    """Check the data of every suite and return the grid.

    ``fetch``: also download missing data, where that is allowed. Raises UserError for the first suite that can't run,
    and DataMissing, which names every suite whose data is not there. Such a suite is skipped instead if it is optional,
    or if ``planning``. ``finished``: names of suites whose data will not be loaded.
    """
    check_cores(benchmark.where)
    info: dict[str, DatasetInfo] = {}
    skipped: dict[str, str] = {}
    checked: dict[str, DatasetInfo] = {}  # suites with the same dataset share the check, which computes checksums
    held: dict[str, int] = {}  # and the arrays
    refused = []
    for suite in benchmark.suites:
        data = json.dumps(suite.dataset.written(), sort_keys=True)
        try:
            if data not in checked:
                opened = suite.open_dataset(benchmark.where)
                found = dataset.facts(opened)
                if fetch:
                    dataset.fetch(opened)
                checked[data] = found
            if data not in held and suite.name not in finished:
                less = dataset.less(suite.dataset.settings)
                check_memory(checked[data].in_memory, benchmark.where, less, sum(held.values()))
                held[data] = checked[data].in_memory
        except DataMissing as missing:
            if not (suite.optional or planning):
                refused.append(f"suite {suite.name}: {missing}")
            skipped[suite.name] = str(missing)
            continue
        info[suite.name] = checked[data]
        check_fits(suite, info[suite.name])
        if suite.name not in finished:
            check_room(suite, seen(info[suite.name], suite.recipe), benchmark.where)
    if refused:
        raise DataMissing("; ".join(refused))
    running = [suite for suite in benchmark.suites if suite.name not in skipped]
    groups: dict[str, list[str]] = defaultdict(list)
    trials: dict[str, tuple[Suite, str, Trial]] = {}
    for suite in sorted(running, key=lambda suite: not suite.exclusive):
        for method, trial in every_trial(suite, info[suite.name].num_train):
            # a trial of two suites runs once: exclusively if one of them is, and for as many cycles as either has
            if trial.id not in trials:
                trials[trial.id] = (suite, method, trial)
                groups[trial.sharing_key].append(trial.id)
            elif trial.protocol.cycles > trials[trial.id][2].protocol.cycles:
                trials[trial.id] = (*trials[trial.id][:2], trial)
    units = []
    for key, members in groups.items():
        if len(members) > 1:
            suite, _, trial = trials[members[0]]
            name = f"first cycle of {len(members)} methods ({trial.training.name})"
            extra, _ = trial.extra_passes(info[suite.name].num_train)
            first = trial.training_images()[:1], extra[:1], [0]
            units.append(Unit(trial, suite.name, name, suite.exclusive, True, None, *first))
        for member in members:
            suite, method, trial = trials[member]
            after = key if len(members) > 1 else None
            training = trial.training_images()
            extra_training, extra_acquisition = trial.extra_passes(info[suite.name].num_train)
            if after:
                training[0] = extra_training[0] = 0
            auxiliary = [sum(passes) for passes in zip(extra_training, extra_acquisition, strict=True)]
            passes = training, auxiliary, trial.scoring_images(info[suite.name].num_train)
            units.append(Unit(trial, suite.name, method, suite.exclusive, False, after, *passes))
    units.sort(key=lambda unit: (not unit.shared, -sum(unit.passes)))
    return Grid(units, info, skipped)


def every_trial(suite: Suite, pool: int) -> list[tuple[str, Trial]]:
    """Return (method name, trial) of a suite, and those on all ``pool`` training images under the name of their row."""
    return [*suite.trials(), *((full_data_row(pool), trial) for trial in suite.full_trials(pool))]


def full_trials(benchmark: Benchmark, grid: Grid) -> list[str]:
    """Return the ids of the trials on all training images, of the suites whose data is there."""
    suites = [suite for suite in benchmark.suites if suite.name in grid.info]
    return [trial.id for suite in suites for trial in suite.full_trials(grid.info[suite.name].num_train)]


FOR_DATA = 0.9
"""Share of the free memory that data may take: the system kills a process that takes all, without a word."""


def check_memory(needed: int, where: Where, less: str, others: int = 0) -> None:
    """Raise DataMissing if data of this many bytes does not fit into memory, besides other data of the run.

    ``less`` says what helps. Ray holds all arrays once more: workers read them in its object store.
    """
    free = free_memory()
    copies, once_more = (2, ", with the copy for Ray's workers") if where.trials == "ray" else (1, "")
    if free is not None and copies * (needed + others) > FOR_DATA * free:
        and_more = (f" besides the {in_units(copies * others)} of other suites" if others else "") + once_more
        raise DataMissing(
            f"its images take {in_units(copies * needed)} of memory{and_more}, and {in_units(free)} are free, of which "
            f"data may take {FOR_DATA:.0%}: {less}"
        )


def check_cores(where: Where) -> None:
    """Raise UserError if a trial in this process would have more threads than cores; Ray refuses it by itself."""
    if where.trials == "in_process" and where.cpus_per_trial > (cores := processors()):
        raise UserError(
            f"where.cpus_per_trial: must be at most {cores}, the number of cores of this machine that a process may "
            f"use, with where.trials: in_process, got {where.cpus_per_trial}; set where.cpus_per_trial={cores}"
        )


def check_fits(suite: Suite, info: DatasetInfo) -> None:
    """Raise UserError if a suite's protocol, recipe, network or methods do not fit its dataset."""
    _check_size(suite, info)
    try:
        names.check_fits(suite.model, seen(info, suite.recipe), suite.dataset.name)
    except UserError as error:
        key, problem = str(error).split(": ", 1)
        raise UserError(f"{suite.at(key)}: {problem}") from None
    _check_labels(suite, info.labels)
    check_methods(suite, info)


def seen(info: DatasetInfo, recipe: Recipe) -> DatasetInfo:
    """Return the properties of a dataset with the size of the images that its network is tested on."""
    return replace(info, size=recipe.tested(info.size))


def check_methods(suite: Suite, info: DatasetInfo, fingerprint: str = "") -> None:
    """Raise UserError if a method of the suite says that it can't run in it; ``fingerprint``: of the loaded data."""
    ahead = Ahead(suite.dataset.name, info, suite.protocol, tuple(suite.seeds), fingerprint)
    for name, (training, acquisition) in suite.methods.items():
        for half, contract in ((training, Training), (acquisition, Acquisition)):
            plugin = registry.find("methods", half.name, contract)
            assert plugin is not None
            if problem := boundary.unsuited(plugin, half.name, half.settings, ahead):
                raise UserError(f"{suite.at(f'methods.{name}')}: {problem}")


LABELS = {IMAGES: "image labels", MAPS: "label maps"}  # kinds of labels, as messages name them


def _check_labels(suite: Suite, kind: str) -> None:
    """Raise UserError if a method of the suite does not support this kind of labels."""
    for name, (training, acquisition) in suite.methods.items():
        for half, contract in ((training, Training), (acquisition, Acquisition)):
            plugin = registry.find("methods", half.name, contract)
            assert plugin is not None
            if kind not in (allowed := boundary.labels(plugin, half.name, half.settings)):
                raise UserError(
                    f"{suite.at(f'methods.{name}')}: {half.name} with these settings supports only "
                    f"{' and '.join(LABELS[other] for other in sorted(allowed))}, but {suite.dataset.name} has "
                    f"{LABELS[kind]}"
                )


def _check_size(suite: Suite, info: DatasetInfo) -> None:
    """Raise UserError if the dataset has too few training images, or images too small for the crop."""
    most = suite.protocol.labelled()[-1]
    if most > info.num_train:
        raise UserError(
            f"{suite.at('protocol')}: needs {most} labelled images (initial {suite.protocol.initial} + "
            f"{suite.protocol.cycles - 1} x budget {suite.protocol.budget}), but {suite.dataset.name} has "
            f"{info.num_train} training images"
        )
    if suite.dataset.settings.top5 and (info.per_pixel or info.num_classes <= TOP):
        found = "labels pixels" if info.per_pixel else f"has {info.num_classes}"
        problem = f"needs image labels of more than {TOP} classes, but {suite.dataset.name} {found}; set it to false"
        raise UserError(f"{suite.at('dataset.top5')}: {problem}")
    recipe = suite.recipe
    for key in ("random_resized_crop", "center_crop"):
        if info.per_pixel and getattr(recipe, key) is not None:
            raise UserError(
                f"{suite.at(f'recipe.{key}')}: is for datasets that label images, but {suite.dataset.name} labels "
                "pixels; remove it"
            )
    height, width = recipe.crop_size or info.size
    if recipe.crop_padding >= min(height, width) and not recipe.random_resized_crop:
        raise UserError(
            f"{suite.at('recipe.crop_padding')}: must be smaller than the crops of {suite.dataset.name}, {height} x "
            f"{width} pixels, or some would be nothing but padding, got {recipe.crop_padding}"
        )
    # a random resized crop may be larger than the image
    padded = (None if recipe.random_resized_crop else recipe.crop_size), recipe.crop_padding
    for key, (crop, padding) in {"crop_size": padded, "center_crop": (recipe.center_crop, 0)}.items():
        if crop and any(cut > side + 2 * padding for cut, side in zip(crop, info.size, strict=True)):
            height, width = info.size
            raise UserError(
                f"{suite.at(f'recipe.{key}')}: must fit into the images of {suite.dataset.name}, {height} x "
                f"{width} pixels{f' and {padding} of padding on each side' if padding else ''}, got {list(crop)}"
            )


SETTINGS = ("dataset", "model", "recipe", "protocol")
"""Keys of a trial's spec that all trials of a suite share: trials are in one table only if they agree on these."""
HALVES = ("training", "acquisition")


def manifest(benchmark: Benchmark, grid: Grid) -> Manifest:
    """Return the manifest of a run, which is stored as run.json."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=benchmark.name,
        folders={},
        suites=[_entry(suite, grid.skipped.get(suite.name), grid.info.get(suite.name)) for suite in benchmark.suites],
    )


def _entry(suite: Suite, skipped: str | None, info: DatasetInfo | None) -> SuiteEntry:
    """Return a suite's entry in run.json; ``skipped``: why it does not run, or None; ``info``: None if so."""
    protocol, recipe, trials = suite.protocol, suite.recipe, list(suite.trials())
    specs = {method: trial.spec() for method, trial in trials}
    candidates = f"{protocol.candidates or 'all unlabelled images as'} candidates in each cycle"
    start = {"warm": "weights of the previous cycle", "fresh": "fresh weights each cycle"}[protocol.start]
    return SuiteEntry(
        name=suite.name,
        title=suite.title,
        settings={key: spec[key] for spec in specs.values() for key in SETTINGS},
        dataset=suite.dataset.name,
        model=suite.model.name,
        recipe=f"{suite.model.name}, {counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, "
        f"{recipe.optimizer} with learning rate {recipe.learning_rate:g}, {recipe.precision}, {start}, {candidates}",
        methods=list(suite.methods),
        halves={method: {half: spec[half] for half in HALVES} for method, spec in specs.items()},
        seeds=suite.seeds,
        labelled=protocol.labelled(),
        pool=info.num_train if info else None,
        exclusive=suite.exclusive,
        primary=[suite.primary.method, suite.primary.reference] if suite.primary else None,
        equal_within=suite.equal_within,
        full_data={trial.id: trial.seed for trial in suite.full_trials(info.num_train)} if info else {},
        skipped=skipped,
        data_notes=list(info.notes) if info else [],
        official_data=bool(info and info.official),
        trials={trial.id: TrialEntry(method=method, seed=trial.seed) for method, trial in trials},
        code={} if skipped else {method: trial.code for method, trial in trials},
    )

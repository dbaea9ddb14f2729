"""Makes a benchmark that replays what another run has selected, or index sets that others have published."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import registry
from harness.config.suite import DEFAULT_TRAINING, Benchmark, Suite
from harness.data import dataset, foreign_sets
from harness.data.index_sets import ALL, IndexSets, SeedSets
from harness.errors import UNPRINTABLE, UserError, no_pipe, readable
from harness.learning import pool
from harness.learning.contract import Acquisition, Training
from harness.report.comparisons import reference_of
from harness.report.formats import own_file_name
from harness.report.write import read
from harness.results.manifest import Manifest, SuiteEntry
from harness.results.records import METRICS, CycleRecord
from harness.results.source import FOLDER, NAME, Source, SourceSuite, shown
from harness.results.store import write_atomically
from harness.settings import LONGEST_NAME, PluginSpec, Primary


@dataclass(frozen=True)
class Replayed:
    """A benchmark that replays, and the files that it needs in its results folder."""

    benchmark: Benchmark
    files: dict[str, bytes]
    """Path in the results folder -> content."""
    notes: list[str] = field(default_factory=list)
    """What is left out, and in which order files are read: a sentence each."""


SHOWN = 8  # files that a note names


class _Files:
    """The files of index sets of a run, and the plug-in that replays them."""

    def __init__(self, plugin: str, output: Path) -> None:
        self.plugin, self.output = plugin, output
        self.contents: dict[str, bytes] = {}
        self.used = {NAME.casefold()}

    def replay(self, name: str, sets: IndexSets) -> PluginSpec:
        """Return the acquisition that replays sets, which become a file."""
        data = sets.packed()
        path = f"{FOLDER}/{own_file_name(name, self.used, ('.json',))}.json"
        self.contents[path] = data
        plugin = registry.find("methods", self.plugin, Acquisition)
        assert plugin is not None
        values = {"sets": str(self.output / path), "sets_sha256": hashlib.sha256(data).hexdigest()}
        return PluginSpec(self.plugin, plugin.Settings.model_validate(values))


def of_run(run: Path, benchmark: Benchmark, output: Path, plugin: str) -> Replayed:
    """Return a benchmark that replays the selections of a run.

    ``benchmark``: the run's config, with the network and the recipe to train now. ``plugin``: the acquisition that
    replays. Raises UserError if there is nothing to replay.
    """
    entries = {suite.name: suite for suite in Manifest.read(run).suites}
    records = {suite.name: found for suite, found in read(run)[1]}
    files, notes, suites, sources = _Files(plugin, output), list[str](), [], {}
    for suite in benchmark.suites:
        if not records.get(suite.name):
            notes.append(f"suite {suite.name} is left out: it has no results in {run}")
            continue
        entry = entries[suite.name]
        selected = _selected(entry, records[suite.name])
        seeds, lacking = _seeds(suite, selected)
        notes += lacking
        if not seeds:
            continue
        rows = {method: _row(suite, method, entry.model, plugin) for method in suite.methods}
        shared = _shared_initial_sets(suite, entry, benchmark, seeds)
        methods = {}
        for method, row in rows.items():
            sets = _index_sets(entry, method, {seed: selected[method, seed] for seed in seeds}, shared, run)
            if row == method:  # it replays itself: another network selected
                sets = sets.model_copy(update={"network": None})
            methods[row] = suite.methods[method][0], files.replay(f"{suite.name}_{method}", sets)
        primary = None
        if suite.primary and {*suite.primary.model_dump().values()} <= {*rows}:  # --only may have left one out
            primary = Primary(method=rows[suite.primary.method], reference=rows[suite.primary.reference])
        suites.append(replace(suite, methods=methods, seeds=seeds, primary=primary))
        sources[suite.name] = _source(entry, records[suite.name], rows, seeds)
    if not suites:
        raise UserError(f"{run}: nothing to replay: {'; '.join(notes)}")
    contents = {**files.contents, f"{FOLDER}/{NAME}": Source(suites=sources).packed()}
    return Replayed(replace(benchmark, suites=suites), contents, notes)


def _row(suite: Suite, method: str, network: str, plugin: str) -> str:
    """Return the name of a row: that of the method, with the network that selected unless the method replays, too."""
    row = f"{method} (selected by {readable(network)})"
    return method if suite.methods[method][1].name == plugin or len(row) > LONGEST_NAME else row


def _selected(entry: SuiteEntry, records: Iterable[CycleRecord]) -> dict[tuple[str, int], list[CycleRecord]]:
    """Return (method, seed) -> the records with a selection, from cycle 0 on."""
    found: dict[tuple[str, int], list[CycleRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.cycle):
        trial = entry.trials[record.trial]
        found[trial.method, trial.seed].append(record)
    return found


def _seeds(suite: Suite, selected: dict[tuple[str, int], list[CycleRecord]]) -> tuple[list[int], list[str]]:
    """Return the seeds of which every method has all selections, and a sentence for each other one."""
    needed, seeds, notes = suite.protocol.cycles - 1, [], []
    for seed in suite.seeds:
        counts = {
            m: (bool(found), sum(bool(r.selected) for r in found))
            for m in suite.methods
            for found in [selected[m, seed]]
        }
        short = {method: count for method, (started, count) in counts.items() if count < needed or not started}
        if not short:
            seeds.append(seed)
            continue
        method, count = next(iter(short.items()))
        more = f", and {len(short) - 1} more" if len(short) > 1 else ""
        notes.append(
            f"suite {suite.name}, seed {seed} is left out: {method} has {count} of {needed} selections{more}; finish "
            "the run, lower protocol.cycles or choose methods with --only method=..."
        )
    return seeds, notes


def _shared_initial_sets(
    suite: Suite, entry: SuiteEntry, benchmark: Benchmark, seeds: Iterable[int]
) -> dict[int, list[int]]:
    """Return the initial set that all methods of a run's suite shared, for each seed."""
    per = entry.settings.get("protocol", {}).get("initial_set", "per_seed")
    protocol = suite.protocol.model_copy(update={"initial": entry.labelled[0], "initial_set": per})
    images = dataset.facts(suite.open_dataset(benchmark.where)).num_train
    return {seed: pool.initial_set(protocol, images, seed).tolist() for seed in seeds}


def _index_sets(
    entry: SuiteEntry, method: str, by_seed: dict[int, list[CycleRecord]], shared: dict[int, list[int]], run: Path
) -> IndexSets:
    """Return the sets of a method. Raises UserError if they are of different data."""
    fingerprints = {r.data_fingerprint for found in by_seed.values() for r in found}
    if len(fingerprints) > 1:
        raise UserError(f"{run}: {method} was run on different data: {', '.join(sorted(fingerprints))}")
    return IndexSets(
        dataset=entry.dataset,
        fingerprint=max(fingerprints) or None,
        method=method,
        network=entry.model,
        shared_initial=not any(found[0].initial_set for found in by_seed.values()),
        seeds={
            str(seed): SeedSets(
                initial=found[0].initial_set or shared[seed], selected=[r.selected for r in found if r.selected]
            )
            for seed, found in by_seed.items()
        },
    )


def _source(
    entry: SuiteEntry, records: Iterable[CycleRecord], rows: dict[str, str], seeds: Iterable[int]
) -> SourceSuite:
    """Return the curves of a run's methods, by the names that they have in the run that replays.

    A method whose records must not be averaged has several names in ``records``, and no curve.
    """
    metric = next(key for key in METRICS if any(key in r.metrics for r in records))
    curves: dict[str, dict[int, dict[int, float]]] = {row: {} for row in rows.values()}
    for r in records:
        if r.method in rows and r.seed in seeds and metric in r.metrics:
            curves[rows[r.method]].setdefault(r.seed, {})[r.labelled] = r.metrics[metric]
    reference = reference_of(entry)
    return SourceSuite(
        network=shown(entry),
        metric=metric,
        reference=rows.get(reference) or next(iter(rows.values())),  # as the report, if --only leaves it out
        curves=curves,
    )


def of_files(paths: Sequence[Path], benchmark: Benchmark, output: Path, plugin: str) -> Replayed:
    """Return a benchmark with the index sets in files as further methods of each suite. Raises UserError.

    A file of the harness's own format is a method. All other files together are one: each is the set of a cycle.
    """
    found: dict[str, tuple[Path, IndexSets]] = {}
    notes: list[str] = []
    for path in filter(foreign_sets.is_own_format, paths):
        try:
            sets = IndexSets.unpacked(foreign_sets.content(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        name = f"{sets.method or path.stem}{f' (selected by {sets.network})' if sets.network else ''}"
        _add(found, [name, path.stem], path, sets)
    others = foreign_sets.in_order([path for path in paths if not foreign_sets.is_own_format(path)])
    if others:
        plain = [each for path in others for each in foreign_sets.lists(path)]
        folder = others[0].resolve().parent.name
        try:
            sets = IndexSets(seeds={ALL: foreign_sets.sets_of(plain)})
        except UserError as error:
            raise UserError(f"{others[0]}{f' to {others[-1]}' if len(others) > 1 else ''}: {error}") from None
        _add(found, [others[0].stem if len(others) == 1 else folder], others[0], sets)
        if len(others) > 1 and foreign_sets.are_disjoint(plain):
            notes.append(f"the sets are labelled in this order: {_listed(others)}")
    files, suites = _Files(plugin, output), []
    training = registry.find("methods", DEFAULT_TRAINING, Training)
    assert training is not None
    replays = {
        name: (PluginSpec(DEFAULT_TRAINING, training.Settings()), files.replay(name, sets))
        for name, (_, sets) in found.items()
    }
    for suite in benchmark.suites:
        if taken := suite.methods.keys() & replays.keys():
            raise UserError(f"{suite.at(f'methods.{min(taken)}')}: the index sets have this name, too; rename one")
        suites.append(replace(suite, methods={**suite.methods, **replays}))
    return Replayed(replace(benchmark, suites=suites), files.contents, notes)


def _add(found: dict[str, tuple[Path, IndexSets]], names: Sequence[str], path: Path, sets: IndexSets) -> None:
    """Add sets under the first free name. Raises UserError if all are taken, or if that one can't be printed."""
    shown = [name[:LONGEST_NAME].strip() for name in names]
    name = next((name for name in shown if name not in found), None)
    if name is None:
        raise UserError(
            f"{path}: has the name of {found[shown[-1]][0]}, {shown[-1]!r}; give one of the files another name"
        )
    if not name or UNPRINTABLE.search(name):
        raise UserError(f"{path}: the name of a method must be printable text, got {name!r}")
    found[name] = path, sets


def _listed(paths: Sequence[Path]) -> str:
    """Return the names of files, with their folders where these differ; the middle of many is left out."""
    folders = len({path.parent for path in paths}) > 1
    shown = [f"{path.parent.name}/{path.name}" if folders else path.name for path in paths]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 1], "...", shown[-1]])


def write(replayed: Replayed, output: Path) -> list[Path]:
    """Write the files of a run that replays, and return those that were not there.

    Raises UserError if one is there with other content: the source has gone on since, or the command is another one.
    """
    new = []
    for name, data in replayed.files.items():
        path = output / name
        if not path.exists():
            write_atomically(path, data)
            new.append(path)
        elif no_pipe(path).read_bytes() != data:
            raise UserError(
                f"{path}: the run replays other index sets than those of this command; continue it with python -m "
                f"harness.run {output / 'config.yaml'} --resume, or set another where.output"
            )
    return new

"""Runs a benchmark: its checks, the data, the units of work, the report."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness import registry
from harness.config.suite import Benchmark, Suite
from harness.data import dataset, prepared
from harness.errors import DataMissing, RayLost, StorageError, UserError, gathered, readable
from harness.experiment import crash, data_check, guard
from harness.experiment.display import Display, Listener, cycle_values, grouped
from harness.experiment.grid import Grid, Unit, check_methods, every_trial, full_trials, manifest, seen
from harness.experiment.holding import gpus_per_trial
from harness.experiment.notify import outcome
from harness.experiment.publish import Ticker
from harness.experiment.scores import Scores
from harness.experiment.upgrade import lost, open_run
from harness.faults import PluginFault
from harness.networks import names
from harness.report.captions import counted
from harness.report.write import write
from harness.results import within
from harness.results.layout import check_places, check_trials
from harness.results.manifest import Manifest, full_data_row, leaving
from harness.results.progress import here
from harness.results.provenance import versions
from harness.results.records import OWN_CODE, UNKNOWN, conditions, differing
from harness.results.store import RunStore, write_atomically
from harness.settings import Where
from harness.tracking.trackers import Trackers

if TYPE_CHECKING:
    from harness.data.dataset import DatasetInfo, LoadedData
    from harness.learning.process import Placement
    from harness.results.records import CycleRecord


Begin = Callable[[Collection[str]], Display]
"""Begins a run, once all is checked. It gets the names of the devices of a cluster that was joined; none otherwise."""


class OnRay(Protocol):
    """What runs units on Ray: harness.on_ray.launch, which is given, so that nothing here imports Ray."""

    def prepare(self, where: Where) -> None:
        """Raise UserError if Ray can't be had."""

    def run(self, benchmark: Benchmark, grid: Grid, data: dict[str, LoadedData], begin: Begin) -> None:
        """Run the units."""


def _load(benchmark: Benchmark, grid: Grid) -> dict[str, LoadedData]:
    """Return the loaded data by suite, for suites with units; suites with the same dataset share one copy."""
    by_dataset: dict[str, list[Suite]] = defaultdict(list)
    for suite in benchmark.suites:
        if any(unit.suite == suite.name for unit in grid.units):
            by_dataset[json.dumps(suite.dataset.written(), sort_keys=True)].append(suite)

    def load(suite: Suite) -> LoadedData:
        try:
            data = dataset.loaded(suite.open_dataset(benchmark.where), grid.info[suite.name])
            data = prepared.applied(data, prepared.place(benchmark.where.prepared))
        except DataMissing as problem:
            raise DataMissing(f"suite {suite.name}: {problem}") from None
        _ = data.fingerprint  # computed once, here, and then pickled with the data
        return data

    loaded = gathered(partial(load, suites[0]) for suites in by_dataset.values())
    return {suite.name: data for suites, data in zip(by_dataset.values(), loaded, strict=True) for suite in suites}


def _run_in_process(
    placement: Placement, grid: Grid, data: dict[str, LoadedData], run: RunStore, display: Listener
) -> None:
    """Run the units one after another in this process."""
    from harness.experiment.executor import execute

    for unit in grid.units:

        def report(record: CycleRecord, unit: Unit = unit) -> None:
            display("cycle", unit, cycle_values(record, here.expected))

        here.begin(0)
        display("start", unit, {})
        with guard.running(unit, run.folder) as earlier:
            failure = earlier or execute(unit, data[unit.suite], run, placement, report)
        if failure is not None:
            display("failed", unit, {"failure": failure, "shown": guard.failed(unit, run.folder, failure)})
        display("end", unit, {})


def left_to_run(grid: Grid, run: RunStore) -> Grid:
    """Return the grid without the units that are finished or no longer needed."""
    needed_keys = {unit.after for unit in grid.units if unit.after and not run.trial(unit.trial.id).records()}
    units = []
    for unit in grid.units:
        if unit.shared:
            unfinished = unit.trial.sharing_key in needed_keys and not run.shared(unit.trial.sharing_key).records()
        else:
            unfinished = len(run.trial(unit.trial.id).records()) < unit.cycles
        if unfinished:
            units.append(unit)
    return replace(grid, units=units)


def finished_suites(benchmark: Benchmark) -> set[str]:
    """Return the names of the suites of which nothing is left to run in the results folder."""
    earlier, run = open_run(benchmark.output)
    pools = {suite.name: suite.pool for suite in earlier.suites} if earlier else {}

    def finished(suite: Suite) -> bool:
        pool = pools.get(suite.name)
        if suite.full_data and pool is None:
            return False
        trials = every_trial(suite, pool or 0)
        return all(len(run.trial(trial.id).records()) >= trial.protocol.cycles for _, trial in trials)

    return {suite.name for suite in benchmark.suites if finished(suite)}


def check_output(output: Path, resume: bool) -> None:
    """Raise UserError if the results folder holds results but --resume is not given."""
    try:
        check_places(output, "where.output: ")
        check_trials(output, "where.output: ")
        has_results = (output / "run.json").is_file()
    except OSError as error:
        raise UserError(
            f"where.output: {output!s:.200} can't be written to: {error.strerror}; set where.output=OTHER_FOLDER"
        ) from None
    if has_results and not resume:
        raise UserError(
            f"where.output: {output} already holds results; add --resume to continue that run, or "
            "where.output=OTHER_FOLDER"
        )


def check_plan(output: Path) -> None:
    """Raise UserError if the results folder can't be made or written to; it is not made here."""
    try:
        check_places(output, "where.output: ")
        check_trials(output, "where.output: ")
        nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
        if not nearest.is_dir():
            raise UserError(f"where.output: {output} can't be made: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"where.output: {output} can't be written to: {nearest} is not yours to write to; set "
                "where.output=OTHER_FOLDER"
            )
    except OSError as error:
        raise UserError(f"where.output: {output!s:.200} can't be made: {error.strerror}") from None


def run(
    whole: Benchmark,
    benchmark: Benchmark,
    grid: Grid,
    ray: OnRay,
    accept_changes: bool = False,
    command: Sequence[str] = (),
    announce: Callable[[BaseException], None] = lambda stop: None,
) -> int:
    """Run ``benchmark``, the part of the config ``whole`` that --only selects, and print its report.

    ``command``: the words that started the run, from which harness.status makes the command that continues it.
    ``announce`` gets the KeyboardInterrupt of a signal before the report, because a scheduler kills the run soon.

    ``accept_changes``: continue rows whose code, data, libraries, precision or device changed; the report keeps them
    apart. Return the exit code: 0, or 1 if a trial failed or is unfinished. Raises UserError, and StorageError, after
    the report of what is there.
    """
    output = benchmark.output
    for name, reason in grid.skipped.items():
        print(f"suite {name} is SKIPPED: {reason}")
    if not grid.info:
        raise UserError("nothing to run: the data of every suite is missing")
    check_networks(benchmark, grid)
    earlier, store = open_run(output)
    left = left_to_run(grid, store)
    left = replace(left, units=[replace(unit, code=unit.trial.code) for unit in left.units])
    if left.units and benchmark.where.trials == "ray":
        ray.prepare(benchmark.where)  # before the data, which may take long
    data = _load(benchmark, left)
    for suite in benchmark.suites:
        if suite.name in data:
            check_methods(suite, grid.info[suite.name], data[suite.name].fingerprint)
    grid = replace(grid, info={name: with_notes(info, data.get(name)) for name, info in grid.info.items()})
    entries = manifest(benchmark, grid)
    notes = []

    def accepted(devices: Collection[str] = ()) -> list[str]:
        """Return a sentence for each row with other conditions. Raises UserError unless they are accepted."""
        changed = changed_rows(benchmark, entries, left, store, data, devices) if earlier is not None else []
        if changed and not accept_changes:
            raise UserError(
                f"{output}: {changed[0]}{and_more(changed)}; undo the change, set another where.output, or add "
                "--accept-changes, which keeps such rows apart in the tables"
            )
        return changed

    if earlier is not None:
        entries = entries.with_earlier(earlier, {(unit.suite, unit.method) for unit in left.units})
        notes = leaving(earlier, entries)
    changed = accepted()
    if earlier is not None and (moved := moved_images(earlier, left, grid, store, data)):
        raise UserError(f"{output}: {moved[0]}{and_more(moved)}; undo the change, or set another where.output")
    notes += lost(benchmark, full_trials(benchmark, grid))
    notes += slow(benchmark.where, left)
    finished = []
    for unit in left.units:
        stored = store.shared(unit.trial.sharing_key) if unit.shared else store.trial(unit.trial.id)
        finished.append(len(stored.records()))  # 0 for a shared first cycle that is left
        if (signal := crash.signal_in(log := crash.log_of(unit, output))) and not guard.link.again:
            stall = ", or the run did after a stall" if signal == "SIGABRT" else ""
            notes.append(f"{unit.name}: {signal} ended its process{stall}; where it was is in {log}")
        notes += [*stored.problems(finished[-1]), *within.problems(stored.folder)]
        if finished[-1]:  # states are large: only those from which trials go on are read
            notes += stored.state_problems()

    def begin(devices: Collection[str]) -> Display:
        """Write config.yaml and run.json, and return the display; called after all other checks for user errors."""
        said = [*notes, *(accepted(devices) if devices else changed)]
        write_atomically(output / "config.yaml", whole.written().encode())
        write_atomically(output / "run.json", entries.packed())
        for note in said:
            print(readable(note))  # it may name what a run.json from elsewhere holds
        over = len([unit for unit in grid.units if not unit.shared]) - len([u for u in left.units if not u.shared])
        done = f" ({counted(over, 'trial')} already finished)" if over else ""
        if not guard.link.again:
            for name, info in grid.info.items():
                print(*(f"suite {name}: {note}" for note in info.notes), sep="\n", end="\n" if info.notes else "")
            print(f"To run: {_counts(left)}{done}; results go to {output}", flush=True)
        scores, trials = Scores(entries), {unit.trial.id for unit in grid.units if not unit.shared}
        scores.read(store, trials)
        earlier = len(trials) - sum(not unit.shared for unit in left.units)
        fresh = benchmark.where.trials == "ray" and not benchmark.where.warm_workers
        display = Display(
            left.units, sys.stdout, finished, name=benchmark.name, earlier=earlier, scores=scores, fresh=fresh
        )
        display.began = guard.link.began or display.began
        trackers.start(display.say)
        display.followers.append(trackers)
        return display

    with Trackers(benchmark.where.track, output) as trackers:
        ticker, display, ended = _run_units(benchmark, left, data, store, ray, begin, command)
        try:
            stopped = isinstance(ended, KeyboardInterrupt)
            ticker.publish("interrupted" if stopped else "running")  # the report says how long the run took
            if isinstance(ended, KeyboardInterrupt):
                announce(ended)
            code = _end(output, grid, left, store, display, ended)
        except BaseException as error:
            ticker.end(outcome(error))
            raise
        ticker.end(outcome(code))
        return code


def _run_units(
    benchmark: Benchmark,
    left: Grid,
    data: dict[str, LoadedData],
    store: RunStore,
    ray: OnRay,
    begin: Begin,
    command: Sequence[str],
) -> tuple[Ticker, Display, BaseException | None]:
    """Run the units; return their display, which is closed, and what ended them early. Raises what comes before it."""
    display: Display | None = None
    ticker: Ticker | None = None

    def displayed(devices: Collection[str] = ()) -> Display:
        nonlocal display, ticker
        display = begin(devices)
        ticker = Ticker(display, benchmark.output, command)
        return display

    ended: BaseException | None = None
    try:
        if left.units and benchmark.where.trials == "ray":
            ray.run(benchmark, left, data, displayed)
        else:
            from harness.learning.process import Placement, chosen_device

            where = benchmark.where
            placement = Placement(
                chosen_device(where.device), where.cpus_per_trial, checkpoint_minutes=where.checkpoint_minutes
            )
            _run_in_process(placement, left, data, store, displayed())
    except (KeyboardInterrupt, RayLost, StorageError) as error:
        if ticker is None:
            raise
        ended = error
    except BaseException as error:
        if ticker is not None:
            ticker.end(outcome(error))
        raise
    finally:
        if display is not None:
            display.close()
    assert display is not None and ticker is not None
    return ticker, display, ended


def _end(output: Path, grid: Grid, left: Grid, store: RunStore, display: Display, ended: BaseException | None) -> int:
    """Write the report, say what failed and what is left, and return the exit code. Raises what ended the units.

    ``left``: what was left of the grid before.
    """
    print()
    unwritten: Exception | None = None
    try:
        left = left_to_run(grid, store)
        write(output, print)
    except (StorageError, UserError) as error:  # the report may be printed nevertheless
        unwritten = error
    except KeyboardInterrupt as stop:
        if not left.units:
            stop.kept = f"all trials are finished; python -m harness.report {output} writes the report"  # type: ignore[attr-defined]
        raise
    for first, *others in grouped(display.failures):
        print(f"FAILED: {first.unit}: {first.cause}", file=sys.stderr)
        if others:
            print(f"FAILED like it: {', '.join(failure.unit for failure in others)}", file=sys.stderr)
    if isinstance(ended, KeyboardInterrupt):
        raise ended
    if isinstance(ended, RayLost) and left.units:  # else the trials came to their end without it
        print(f"stopped: {ended}", file=sys.stderr)
    if left.units:
        print(f"Not finished: {_counts(left)}; add --resume to continue.", file=sys.stderr)
    if isinstance(ended, StorageError):
        raise ended
    if unwritten is not None:
        raise unwritten
    return 1 if left.units or display.failures else 0


def refused(benchmark: Benchmark, grid: Grid) -> list[str]:
    """Return a sentence if --resume will refuse to go on, as far as that is known before the data is read."""
    earlier, store = open_run(benchmark.output)
    if earlier is None:
        return []
    entries = manifest(benchmark, grid).with_earlier(earlier)
    changed = changed_rows(benchmark, entries, left_to_run(grid, store), store, None)
    return [f"--resume refuses {changed[0]}{and_more(changed)}; see --accept-changes"] if changed else []


def changed_rows(
    benchmark: Benchmark,
    entries: Manifest,
    left: Grid,
    run: RunStore,
    data: dict[str, LoadedData] | None,
    devices: Collection[str] = (),
) -> list[str]:
    """Return a sentence for each suite, and each of its rows, that the units would continue under other conditions.

    ``data``: by suite; None: it is not read, and not compared. ``devices``: the names of the devices of the joined
    cluster. Without them the devices of this machine count, and none if a cluster is still to be joined.
    """
    units = {unit.trial.id: unit for unit in left.units if not unit.shared}
    changes: dict[str, dict[str, str]] = defaultdict(dict)
    for suite in entries.suites:
        trials = {trial: entry.method for trial, entry in suite.trials.items()}
        trials |= dict.fromkeys(suite.full_data, full_data_row(suite.pool))
        running = {method: units[trial] for trial, method in trials.items() if trial in units}
        if not running:
            continue
        first = next(iter(running.values()))
        finished = [
            (method, found, running.get(method, first).trial.code)
            for trial, method in trials.items()
            for record in run.trial(trial).records()
            for found in record.all_conditions()
        ]
        finished += [
            (method, record.conditions(), unit.trial.shared_code)
            for method, unit in running.items()
            if not run.trial(unit.trial.id).records()  # it takes a shared first cycle over, whoever trained it
            for record in run.shared(unit.trial.sharing_key).records()
        ]
        known = devices or (_devices(benchmark.where) if finished else ())
        device = " or ".join(sorted(known))
        for method, was, code in finished:
            fingerprint = was["data"] if data is None else data[first.suite].fingerprint
            now = conditions(fingerprint, code, versions(), first.trial.recipe.precision, device)
            for name in differing(was, now):
                own = name.startswith(OWN_CODE)
                if (own and method not in running) or (name == "device" and (not known or was.get(name) in known)):
                    continue
                where = f"suite {suite.name}, {method}" if own else f"suite {suite.name}"
                origin = f" of {left.info[first.suite].source}" if name == "data" else ""
                changes[where][name] = f"{name} ({was.get(name, UNKNOWN)}, now {now.get(name, UNKNOWN)}{origin})"
    return [
        f"{row}: its finished cycles were computed with other {', '.join(texts.values())}"
        for row, texts in changes.items()
    ]


def moved_images(earlier: Manifest, left: Grid, grid: Grid, run: RunStore, data: dict[str, LoadedData]) -> list[str]:
    """Return a sentence for each trial that can't go on, because its data changed and its indices name other images."""
    pools = {suite.name: suite.pool for suite in earlier.suites}
    found = []
    for unit in left.units:
        loaded, count = data.get(unit.suite), pools.get(unit.suite)
        if unit.shared or loaded is None:
            continue
        records = run.trial(unit.trial.id).records() or run.shared(unit.trial.sharing_key).records()
        now, names = grid.info[unit.suite].num_train, loaded.names
        for record in records:
            if record.data_fingerprint in ("", loaded.fingerprint):
                continue
            classes = len(record.confusion[0] if record.confusion else loaded.classes)
            pairs = zip(record.selected, record.selected_files, strict=False) if names else ()
            if count not in (None, now):
                what = f"it had {count} training images, now {now}"
            elif classes != len(loaded.classes):
                what = f"it had {classes} classes, now {len(loaded.classes)}"
            elif other := next((pair for pair in pairs if pair[0] >= now or names[pair[0]] != pair[1]), None):
                what = f"{other[1]} was training image {other[0]}, and is not now"
            else:
                continue
            found.append(f"{unit.name}: can't go on with the data as they are now: {what}")
            break
    return found


def slow(where: Where, left: Grid) -> list[str]:
    """Return a sentence if trials run in bfloat16 on a processor that only emulates it, as far as is known."""
    suites = sorted({unit.suite for unit in left.units if unit.trial.recipe.precision == "bfloat16"})
    if not suites or (where.trials == "ray" and where.cluster()):
        return []
    from harness.learning.process import chosen_device, emulates_bfloat16

    if not emulates_bfloat16() or chosen_device(where.device) == "cuda":
        return []
    return [
        f"warning: {', '.join(suites)}: this processor only emulates bfloat16, which takes several times longer than "
        "float32; recipe.precision=float32 is faster here, with other results"
    ]


def _devices(where: Where) -> set[str]:
    """Return the names of the devices that trials may run on, as in records; none if this process can't know them."""
    on_ray = where.trials == "ray"
    if on_ray and where.cluster():
        return set()
    import torch

    from harness.learning.process import chosen_device

    if chosen_device(where.device) != "cuda" or not gpus_per_trial(where, False, True):
        return {"cpu"}
    numbers = range(torch.cuda.device_count()) if on_ray else [torch.cuda.current_device()]
    return {torch.cuda.get_device_name(number) for number in numbers}


def and_more(sentences: list[str]) -> str:
    """Return ' (and 3 more rows)', or '' if there is only one sentence."""
    return f" (and {counted(len(sentences) - 1, 'more row')})" if len(sentences) > 1 else ""


def with_notes(info: DatasetInfo, data: LoadedData | None) -> DatasetInfo:
    """Return the properties of a suite's dataset with the notes that only its loaded data tells."""
    return info if data is None else replace(info, notes=(*info.notes, *data_check.notes(data)))


def _counts(grid: Grid) -> str:
    """Return, for example, '1 trial' or '15 trials and 6 shared first cycles'."""
    shared = sum(unit.shared for unit in grid.units)
    trials = counted(len(grid.units) - shared, "trial")
    return f"{trials} and {counted(shared, 'shared first cycle')}" if shared else trials


def check_networks(benchmark: Benchmark, grid: Grid) -> None:
    """Raise UserError if a suite's network fails on its dataset.

    Networks of the zoo are tried only with pretrained weights: without, they take any images.
    """
    for suite in benchmark.suites:
        zoo = suite.model.name in registry.names("networks") and names.shipped(suite.model.name)
        if suite.name in grid.info and (not zoo or suite.model.settings.weights):
            from harness.networks.building import check

            try:
                check(suite.model, seen(grid.info[suite.name], suite.recipe))
            except PluginFault:
                raise
            except UserError as error:
                key, problem = str(error).split(": ", 1)
                raise UserError(f"{suite.at(key)}: {problem}") from None

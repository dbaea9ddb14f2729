"""The text of --plan: the grid, its image passes, disk space and time, and missing data. Nothing is started."""

from __future__ import annotations

import json
from collections import defaultdict
from hashlib import sha256
from textwrap import fill
from typing import Any

from harness.config.suite import Benchmark, Suite
from harness.data import remembered
from harness.data.dataset import DataRoot
from harness.data.host import in_units
from harness.experiment import holding
from harness.experiment.grid import Grid, full_trials
from harness.experiment.upgrade import open_run
from harness.networks import names
from harness.report.captions import counted
from harness.report.claims import foreseen
from harness.results.records import CycleRecord
from harness.results.store import KEPT_STATES

SECONDS_PER_HOUR = 3600
WIDTH = 80  # columns of the text


def _measured(benchmark: Benchmark, grid: Grid) -> tuple[dict[tuple[str, str], float], int, int]:
    """Return (rates, finished cycles, peak) of the finished cycles in the results folder.

    rates: (suite, method) -> device seconds per image pass. The method "" is the mean over the suite's methods, for
    those without a finished cycle. peak: the highest GPU memory of one process, in bytes; 0 if none ran on a GPU.
    """
    _, run = open_run(benchmark.output)
    costs: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    finished = peak = 0
    for unit in grid.units:
        if unit.shared:
            continue
        records: list[CycleRecord] = run.trial(unit.trial.id).records()
        finished += len(records)
        peak = max([peak, *(r.peak_memory(("reserved", "device")) for r in records)])
        # trials that ran on one device at the same time each had a share of it
        for method in (unit.method, ""):
            costs[unit.suite, method] += [
                (r.training_images + unit.auxiliary[r.cycle], r.cost_seconds / r.device_share) for r in records
            ]
    rates = {
        key: sum(seconds for _, seconds in cycles) / sum(passes for passes, _ in cycles)
        for key, cycles in costs.items()
        if cycles
    }
    return rates, finished, peak


def text(benchmark: Benchmark, grid: Grid) -> str:
    """Return the plan as text."""
    where = benchmark.where
    rates, finished, peak = _measured(benchmark, grid)
    trials: list[list[Any]] = []
    costs: list[list[Any]] = []
    disk = 0.0
    for suite in benchmark.suites:
        units = [u for u in grid.units if u.suite == suite.name]
        labelled = suite.protocol.labelled()
        count = len(suite.methods) * len(suite.seeds)
        grid_size = f"{len(suite.methods)} x {len(suite.seeds)} = {count}"
        if suite.full_data:
            grid_size = f"{len(suite.methods)} x {len(suite.seeds)} + {len(suite.seeds)} = {count + len(suite.seeds)}"
        steps = f" to {labelled[-1]} by {suite.protocol.budget}" if len(labelled) > 1 else ""
        trials.append([suite.name, grid_size, len(labelled), f"{labelled[0]}{steps}"])
        if suite.name in grid.skipped:
            costs.append([suite.name, "no data", "", "", "", ""])
            continue
        info = grid.info[suite.name]
        training, auxiliary = sum(sum(u.training) for u in units), sum(sum(u.auxiliary) for u in units)
        scoring = sum(sum(u.scoring) for u in units)
        parameters = names.of(suite.model).num_parameters(info)
        # the weights of the last cycles of each trial, and of each shared first cycle
        size = sum((1 if u.shared else min(KEPT_STATES, u.cycles)) * parameters * 4 for u in units) / 1e9
        disk += size
        hours = "unknown"
        if (suite.name, "") in rates:
            rate = {u.method: rates.get((suite.name, u.method), rates[suite.name, ""]) for u in units}
            hours = f"{sum(rate[u.method] * sum(u.passes) for u in units) / SECONDS_PER_HOUR:.2f}"
        costs.append([suite.name, f"{training:,}", f"{auxiliary:,}", f"{scoring:,}", f"{size:.2f}", hours])
    shared = sum(u.shared for u in grid.units)
    paragraphs = [
        f"Plan of {benchmark.name}. Nothing is started.",
        _table(["suite", "methods x seeds", "cycles", "labelled images"], trials, "llll"),
        f"{counted(len(grid.units) - shared, 'trial')}. {counted(shared, 'first cycle')} "
        f"{'is' if shared == 1 else 'are'} shared, i.e. trained once for several trials.",
        _table(
            ["suite", "training\npasses", "auxiliary\npasses", "scoring\npasses", "disk\n(GB)", "device\nhours"],
            costs,
            "lrrrrr",
        ),
        "Passes count the images that networks process. training: the target networks' training; auxiliary: additional "
        "training by a method, such as a VAE or a committee; scoring: the candidates.",
    ]
    ids = full_trials(benchmark, grid)
    if full := [unit for unit in grid.units if unit.trial.id in ids]:
        passes = sum(sum(unit.training) for unit in full)
        paragraphs.append(
            f"full_data: {counted(len(full), 'trial')} of these, on all training images: {passes:,} training passes."
        )
    if rates:
        paragraphs.append(
            "Device hours: for the whole grid, estimated from each method's seconds per pass in the finished cycles."
        )
    else:
        paragraphs.append("Device hours: unknown; --plan estimates them once the first cycles are finished.")
    data = []
    for suite in benchmark.suites:
        if suite.name in grid.skipped:
            word = "will be SKIPPED" if suite.optional else "CAN'T RUN"
            data.append(f"{suite.name} {word}: {grid.skipped[suite.name]}")
        else:
            info = grid.info[suite.name]
            data.append(
                f"{suite.name}: {info.num_train} training and {info.num_test} test images, {info.num_classes} "
                f"classes; {info.source}; {in_units(info.nbytes)} {'when decoded' if info.from_files else 'of memory'}"
            )
            units = [u for u in grid.units if u.suite == suite.name]
            data.append(f"  {holding.sentence(info, where, len(units), suite.exclusive)}")
            data += [f"  {note}" for note in info.notes]
            if problem := remembered.problem(key_of_data(benchmark, suite)):
                data.append(f"  --check-data has found bad files, which are as they were: {problem}")
    compared = {suite.name: _compared(suite) for suite in benchmark.suites if suite.name not in grid.skipped}
    others = sum(own for _, _, own in compared.values())
    shows = []
    for suite in benchmark.suites:
        shows.append(f"{suite.name}: {', '.join(suite.methods)}; {counted(len(suite.seeds), 'seed')}")
        if suite.name in compared:
            reference, primary, own = compared[suite.name]
            sentences = foreseen(own, len(suite.seeds), others, primary, reference, suite.equal_within)
            shows += [f"  {sentence}." for sentence in sentences]
    gpus = "1 if there are any" if where.gpus_per_trial is None else f"{where.gpus_per_trial:g}"
    workers = "" if where.scoring == "in_process" else f", {where.shards} workers"
    notes = [
        f"Per trial: GPUs: {gpus}; CPU cores: {where.cpus_per_trial}; scoring: {where.scoring}{workers}.",
        f"Results folder: {benchmark.output}, with {finished} finished cycles. Weights will take about {disk:.2f} GB.",
    ]
    if peak:
        notes.append(
            f"GPU memory: no process used more than {peak / 2**30:.2f} GiB in the finished cycles, CUDA context not "
            f"included. A trial is one process, plus {where.shards} if workers score; together they share "
            "where.gpus_per_trial of a GPU."
        )
    lines = [
        "\n".join(wrapped(line, "    " if line[0] == " " else "  ") for line in lines) for lines in (shows, data, notes)
    ]
    return "\n\n".join([*(p if "\n" in p else wrapped(p) for p in paragraphs), *lines])


def key_of_data(benchmark: Benchmark, suite: Suite) -> str:
    """Return what stands for the data of a suite where its problem is remembered."""
    spec = suite.dataset.written(), str(DataRoot.of(benchmark.where.data, False).root.absolute())
    return sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def _compared(suite: Suite) -> tuple[str, str | None, int]:
    """Return (reference, method of the primary comparison if there is one, number of other comparisons) of a suite."""
    primary, reference = suite.primary, suite.primary.reference if suite.primary else next(iter(suite.methods))
    others = {*suite.methods} - {reference} if reference in suite.methods else set()
    first = primary.method if primary and primary.method in others else None
    return reference, first, len(others - {first})


def _table(heads: list[str], rows: list[list[Any]], align: str) -> str:
    """Return a table as text; ``align`` has l or r for each column."""
    from tabulate import tabulate

    sides = [{"l": "left", "r": "right"}[letter] for letter in align]
    return tabulate(rows, heads, tablefmt="simple", disable_numparse=True, colalign=sides)


def wrapped(text: str, indent: str = "") -> str:
    """Return text in lines of at most WIDTH columns; a longer word, such as a path, stays whole."""
    return fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

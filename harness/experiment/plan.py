"""--plan: the grid, what it will cost, and which data is missing, without starting anything."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from harness.config.suite import Benchmark
from harness.experiment.grid import Grid
from harness.networks.names import num_parameters
from harness.results.records import CycleRecord
from harness.results.store import KEPT_STATES, RunStore

SECONDS_PER_HOUR = 3600


def _measured(benchmark: Benchmark, grid: Grid) -> tuple[dict[tuple[str, str], float], int, int]:
    """Return what finished cycles measured.

    Namely: device seconds per image pass of each suite's methods, how many cycles they are, and the most bytes of a GPU
    that a process of theirs took (0: none ran on one).

    A method none of whose cycles has finished takes as long as the suite's others do, under the label "".
    """
    store = RunStore(benchmark.output)
    spent: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    finished = held = 0
    for unit in grid.units:
        if unit.shared:
            continue
        records: list[CycleRecord] = store.trial(unit.trial.id).records()
        finished += len(records)
        held = max([held, *(r.peak_memory(("reserved", "device")) for r in records)])
        # trials that ran side by side each had a part of the device
        for label in (unit.label, ""):
            spent[unit.suite, label] += [
                (r.training_images + unit.auxiliary[r.cycle], r.cost_seconds / r.device_share) for r in records
            ]
    rates = {
        method: sum(seconds for _, seconds in found) / sum(images for images, _ in found)
        for method, found in spent.items()
        if found
    }
    return rates, finished, held


def text(benchmark: Benchmark, grid: Grid) -> str:
    """Return the plan as text."""
    from tabulate import tabulate

    where = benchmark.where
    rates, finished, held = _measured(benchmark, grid)
    rows: list[list[Any]] = []
    disk = 0.0
    for suite in benchmark.suites:
        units = [u for u in grid.units if u.suite == suite.name]
        trials = [u for u in units if not u.shared]
        labelled = suite.protocol.labelled()
        training, auxiliary = sum(sum(u.training) for u in units), sum(sum(u.auxiliary) for u in units)
        count = len(suite.methods) * len(suite.seeds)
        row: list[Any] = [suite.name, f"{len(suite.methods)} x {len(suite.seeds)} = {count}", len(labelled)]
        steps = f" +{suite.protocol.budget}" if len(labelled) > 1 else ""
        row.append(f"{labelled[0]}{steps} .. {labelled[-1]}")
        if suite.name in grid.skipped:
            rows.append([*row, "no data", "", "", "", ""])
            continue
        facts = grid.facts[suite.name]
        scoring = sum(u.trial.scoring_images(facts.num_train) for u in trials)
        parameters = num_parameters(suite.model, facts.channels, facts.num_classes)
        # weights of the last cycles of each trial, and of each shared first cycle
        size = sum((1 if u.shared else min(KEPT_STATES, u.cycles)) * parameters * 4 for u in units) / 1e9
        disk += size
        hours = "not measured"
        if (suite.name, "") in rates:
            rate = {u.label: rates.get((suite.name, u.label), rates[suite.name, ""]) for u in units}
            hours = f"{sum(rate[u.label] * sum(u.passes) for u in units) / SECONDS_PER_HOUR:.2f}"
        rows.append([*row, f"{training:,}", f"{auxiliary:,}", f"{scoring:,}", f"{size:.2f}", hours])
    heads = [
        "suite",
        "methods x seeds",
        "cycles",
        "labels per cycle",
        "training images",
        "auxiliary images",
        "scored images",
        "disk GB",
        "device hours",
    ]
    lines = [
        f"Plan of {benchmark.name}: nothing is started.",
        "",
        tabulate(rows, heads, tablefmt="simple", disable_numparse=True, colalign=["left"] * 4 + ["right"] * 5),
        "",
    ]
    shared = sum(u.shared for u in grid.units)
    trials_left = sum(not u.shared for u in grid.units)
    lines.append(
        f"{trials_left} trials; {shared} first cycles are trained once and shared by the trials that start alike."
    )
    for suite in benchmark.suites:
        if suite.name in grid.skipped:
            word = "will be SKIPPED" if suite.optional else "CAN'T RUN"
            lines.append(f"{suite.name} {word}: {grid.skipped[suite.name]}")
        else:
            facts = grid.facts[suite.name]
            lines.append(
                f"{suite.name}: {facts.num_train} training and {facts.num_test} test images, {facts.num_classes} "
                f"classes; {facts.source}"
            )
    gpus = "1 where there are GPUs, else 0" if where.gpus_per_trial is None else f"{where.gpus_per_trial:g}"
    lines.append(f"Per trial: {gpus} GPU, {where.cpus_per_trial} CPU; scoring: {where.scoring}, {where.shards} shards.")
    lines.append(f"Results: {benchmark.output} ({finished} finished cycles there); about {disk:.2f} GB of weights.")
    if held:
        lines.append(
            f"GPU memory: no process of theirs took more than {held / 2**30:.2f} GiB, CUDA's own left out; a trial has "
            f"one, and {where.shards} more where Ray Data scores; where.gpus_per_trial is what they share."
        )
    if rates:
        lines.append(
            "Device hours: from each method's seconds per image trained on in the finished cycles there, whole grid."
        )
    else:
        lines.append("Device hours: nothing is measured yet; after the first finished cycles --plan says them.")
    return "\n".join(lines)

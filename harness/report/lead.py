"""The first sentences of a suite: which method leads, by how much, whether it can be claimed, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.report import statistics
from harness.report.captions import counted, differing_seeds, distinct, has_one_initial_set, is_finished, progress
from harness.report.claims import among, waits
from harness.report.comparisons import Comparison, kind_of, reference_of, shown_p
from harness.report.formats import cell
from harness.report.published import published
from harness.results.manifest import SuiteEntry
from harness.results.records import TRAINING_PHASES, CycleRecord
from harness.settings import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.contents import Table

TIED = 4
"""Methods with the same mean that are named."""

CAN = {
    "better": "It can be claimed that {0} is better than {1}.",
    "worse": "It can be claimed that {0} is worse than {1}.",
    "equal": "It can be claimed that {0} equals {1} within {2:g} points.",
    "open": "It can't be claimed that {0} and {1} differ: {3}.",
}


def lead(
    suite: SuiteEntry, records: Sequence[CycleRecord], tables: Sequence[Table], compared: Sequence[Comparison]
) -> list[str]:
    """Return sentences on the method with the highest mean AUBC (at one number of labelled images: of the metric).

    The first one ranks means, which nothing tests; if there is another method, the second says what can be claimed.
    """
    table = next((table for table in tables if table.curves), None)
    if table is None or table.curves is None:
        return []
    metric = table.curves.metric
    areas = table.numbers["_aubc"]
    what = f"mean AUBC of {metric}"
    if areas.empty:
        numbers = table.numbers[""][table.numbers[""]["method"].isin(suite.methods)]
        areas = numbers[numbers["labelled"] == numbers["labelled"].max()]
        what = f"mean {metric} at {counted(int(areas['labelled'].max()), 'labelled image')}"
    ranked = areas.sort_values("mean", ascending=False, kind="stable").to_dict("records")
    best, reference = ranked[0], reference_of(suite)
    so_far = "" if is_finished(suite, records) else " so far"
    sentences = [f"{best['method']} has the highest {what}{so_far}: {cell(best['mean'], best['std'])} %."]
    other = reference if best["method"] != reference else ranked[1]["method"] if len(ranked) > 1 else None
    comparison = next((c for c in compared if {c.method, c.reference} == {best["method"], other}), None)
    gaps = []
    if comparison is not None:
        ahead = comparison if comparison.method == best["method"] else comparison.turned()
        interval = ahead.interval() and f"{ahead.interval()}, not adjusted for the other comparisons"
        evidence = ", ".join(text for text in (counted(len(ahead.values), "seed"), interval) if text)
        gaps.append(f"{_above(ahead.mean, 'points ')} {other} ({evidence})")
    if len(ranked) > 1 and ranked[1]["method"] != other:
        gaps.append(f"{_above(best['mean'] - ranked[1]['mean'])} {ranked[1]['method']} (the next, not tested)")
    if comparison is not None:
        said = CAN[kind_of(comparison)].format(
            comparison.method, comparison.reference, comparison.margin or 0, _why_not(comparison)
        )
        sentences.append(said)
    elif len(ranked) > 1:
        sentences.append(
            f"It can't be claimed that {best['method']} is better than another method: they are not compared."
        )
    if gaps:
        sentences.append(f"{best['method']} is {' and '.join(gaps)}.")
    if so_far:  # then few methods may have reached the most labelled images
        sentences.append(f"Unfinished: {progress(suite, records)}.")
    else:
        sentences += _at_the_end(table, areas, suite.methods, reference)
    return sentences


def _why_not(comparison: Comparison) -> str:
    """Return why a comparison claims nothing."""
    if statistics.smallest_p(seeds := len(comparison.values)) > comparison.level:
        return f"{counted(seeds, 'seed')} can't show it{among(comparison)}"
    return f"p = {shown_p(comparison.adjusted)}{waits(comparison, comparison.alpha, 'which')}"


def _at_the_end(table: Table, areas: pd.DataFrame, methods: Sequence[str], reference: str) -> list[str]:
    """Return which methods have the highest mean at the most labelled images, if there are several of both."""
    assert table.curves is not None
    if table.numbers["_aubc"].empty or len(areas) < 2:  # at one number of labelled images all is said already
        return []
    numbers, differences = table.numbers[""], table.curves.differences
    numbers = numbers[numbers["method"].isin(methods)]
    last = numbers[numbers["labelled"] == numbers["labelled"].max()]
    highest, most = last["mean"].max(), int(last["labelled"].iloc[0])
    first = last["method"][last["mean"] == highest].tolist()
    shown = ", ".join(map(str, first[:TIED])) + (f" and {len(first) - TIED} more" if len(first) > TIED else "")
    by_seed = differences[(differences["labelled"] == most) & (differences["method"] == first[0])]
    gap = f", {_above(by_seed['mean'].iloc[0], 'points ')} {reference} (not tested)" if len(by_seed) else ""
    end = counted(most, "labelled image")
    return [f"At {end} the highest mean {table.curves.metric} is {highest:.2f} %: {shown}{gap}."]


def _above(difference: float, unit: str = "") -> str:
    """Return '3.02 points above' or '3.02 points below'."""
    return f"{abs(difference):.2f} {unit}{'above' if difference >= 0 else 'below'}"


def facts(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[tuple[str, str]]:
    """Return what a suite compared and what it took: (name, value) each."""
    seeds = f"{len(suite.seeds)} ({'seed ' if len(suite.seeds) == 1 else ''}{_span(suite.seeds)})"
    if differing_seeds(suite, records):
        seeds += "; some rows have fewer"
    found = [
        ("Finished", progress(suite, records).removesuffix(" finished").replace(" and", ",")),
        ("Methods", str(len(suite.methods))),
        ("Seeds", seeds if suite.seeds else "0"),
        *([("Primary comparison", " minus ".join(suite.primary))] if suite.primary else []),
        *([("Reference", reference_of(suite))] if suite.trials and not suite.primary else []),
        ("Training images", "not known" if suite.pool is None else str(suite.pool)),
        ("Labelled images", _budgets(suite.labelled) + _share(suite)),
    ]
    if not published(suite.dataset, suite.model):
        found.append(("Published values", "none known of this network and data"))
    halves = [("Selection, training", named)] if (named := _halves(suite)) else []
    long = [*halves, ("Initial images", _initial(suite, records)), ("Recipe", _recipe(suite))]
    if not records:
        return found + long
    tested = {sum(n for row in r.confusion[0].values() for n in row.values()) for r in records if r.confusion}
    if len(tested) == 1 and all("accuracy" in r.metrics for r in records):  # of label maps, pixels are counted
        found.append(("Test images", str(*tested)))
    fingerprints = distinct(r.data_fingerprint[:12] or "unknown" for r in records)
    threads = counted(max(r.threads for r in records), "thread")
    share = max(r.device_share for r in records)
    shared = f", up to {share} trials at once" if share > 1 else ""
    device = f"{distinct(r.device for r in records)}, {distinct(r.precision for r in records)}, {threads}{shared}"
    return [
        *found,
        ("Data", f"{suite.dataset}, fingerprint {fingerprints}"),
        ("Network", suite.model),
        ("Time of all trials", f"{duration(seconds_of(records))}, summed, each shared cycle once"),
        ("Highest memory", f"{max(r.peak_memory() for r in records) / 2**30:.2f} GiB"),
        ("Device", device),
        *long,
    ]


def _initial(suite: SuiteEntry, records: Sequence[CycleRecord]) -> str:
    """Return which trials start from the same labelled images."""
    more = "" if len(suite.seeds) < 2 else " and seeds" if has_one_initial_set(suite) else ", another for each seed"
    own = any("its own initial set" in warning for r in records for warning in r.warnings)
    return f"drawn at random, one set for all methods{more}" + ("; warnings name methods with their own" if own else "")


def _recipe(suite: SuiteEntry) -> str:
    """Return the recipe, with what its short form leaves out."""
    try:
        recipe = Recipe(**suite.settings["recipe"])
    except (KeyError, TypeError, ValueError):  # run.json of an earlier version has none, that of a later one other keys
        return suite.recipe
    *most, last = map(str, recipe.milestones or [0])
    epochs = f"{', '.join(most)} and {last} epochs" if most else counted(int(last), "epoch")
    rates = [f"times {recipe.gamma:g} after {epochs}"] if recipe.milestones else []
    rates += [f"from 0 in {counted(recipe.warmup_epochs, 'epoch')} at the start"] if recipe.warmup_epochs else []
    parts = [
        *([f"momentum {recipe.momentum:g}"] if recipe.optimizer == "sgd" else []),
        f"weight decay {recipe.weight_decay:g}",
        *([f"learning rate {', '.join(rates)}"] if rates else []),
        f"training images {_augmented(recipe)}",
    ]
    return f"{suite.recipe}; {'; '.join(parts)}"


def _augmented(recipe: Recipe) -> str:
    """Return what happens to training images."""
    cropped = ""
    if recipe.random_resized_crop:
        cropped = "cropped and resized at random"
    elif recipe.crop_size or recipe.crop_padding:
        padded = f"padded by {counted(recipe.crop_padding, 'pixel')} and " if recipe.crop_padding else ""
        cropped = f"{padded}cropped at random"
    return ", ".join(filter(None, [cropped, "flipped at random" if recipe.flip else ""])) or "as they are"


def _halves(suite: SuiteEntry) -> str:
    """Return what each method consists of: 'Ran: random, cross_entropy; DAST-AL: epmcm, isda'."""
    known = {method: suite.halves.get(method, {}) for method in suite.methods}
    return "; ".join(
        f"{method}: {halves['acquisition']['name']}, {halves['training']['name']}"
        for method, halves in known.items()
        if {"training", "acquisition"} <= {*halves}
    )


def _budgets(labelled: Sequence[int]) -> str:
    """Return the numbers of labelled images in words: '100, and 50 more in each of 2 further cycles: 200'."""
    steps = {later - earlier for earlier, later in pairwise(labelled)}
    if len(steps) != 1:
        return ", ".join(map(str, labelled))
    cycles = counted(len(labelled) - 1, "further cycle")
    where = f"each of {cycles}" if len(labelled) > 2 else cycles
    return f"{labelled[0]}, and {steps.pop()} more in {where}: {labelled[-1]}"


def _share(suite: SuiteEntry) -> str:
    """Return the last number of labelled images as a share of the training images: ' (27.2 %)', or ''."""
    return f" ({100 * suite.labelled[-1] / suite.pool:.3g} %)" if suite.pool and suite.labelled else ""


def _span(seeds: Sequence[int]) -> str:
    """Return '0 to 9', or all seeds if some in between are missing."""
    whole = len(seeds) > 2 and [*seeds] == [*range(seeds[0], seeds[-1] + 1)]
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def seconds_of(records: Sequence[CycleRecord]) -> float:
    """Return the seconds of all trials together, with each shared first cycle once."""
    shared = {r.shared_from: sum(r.seconds.get(phase, 0.0) for phase in TRAINING_PHASES) for r in records}
    return sum(r.wall_seconds for r in records) + sum(seconds for key, seconds in shared.items() if key is not None)


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them: '41 s', '12 min' or '3.5 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""Compares the methods of a suite with published values of the same method, network and dataset.

A cell is a method at a number of labelled images. It gets a verdict if the data is the official one and no key that the
source states differs: whether our mean is inside the range in which the mean of so many new published trials would lie.
A sentence says for each method whether it reproduces its source, or what is missing for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from math import comb, isnan, nan, sqrt
from statistics import fmean
from typing import Any

from harness.errors import readable
from harness.report import statistics
from harness.report.captions import counted
from harness.report.comparisons import Claim, shown_p, signed
from harness.report.published import Published, Spec, is_method, published
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord
from harness.settings import Protocol, Recipe

GROUPS: dict[str, Any] = {"recipe": Recipe, "protocol": Protocol}
"""Group of keys that a source may state -> their settings."""
OTHER, NO_RANGE = "other protocol", "no range"


@dataclass(frozen=True)
class Beside:
    """A cell of a report and its published value."""

    method: str
    labelled: int
    ours: list[float]
    """The metric of each seed, in points."""
    published: Published
    differing: list[str]
    """Keys with other values than the source states: 'epochs 15, published 200'."""
    unstated: list[str]
    """Keys that the source does not state, where ours is not the default: 'precision (ours bfloat16)'."""
    printed: Published | None = None
    """What a publication prints for the same method and protocol, where ``published`` are single trials."""

    @property
    def difference(self) -> float:
        """Our mean minus the published one, in points."""
        return fmean(self.ours) - self.published.mean

    @property
    def in_sd(self) -> float:
        """The difference in published standard deviations; NaN if the sd is unknown or 0."""
        return self.difference / self.published.sd if self.published.sd > 0 else nan

    @property
    def reach(self) -> float:
        """Half of the width of the range of 95 %; NaN if it is unknown."""
        return self.reach_at(statistics.LEVEL)

    def reach_at(self, level: float) -> float:
        """Return half of the width of the range that further trials leave with a probability of ``level``, or NaN.

        It is t x sd x sqrt(1/n + 1/m) with the published sd and n, our number m of seeds, and Student's t for 1 - level
        and n - 1 degrees of freedom: the prediction interval of the mean of m further trials.
        """
        n, sd = self.published.n, self.published.sd
        if n < 2 or isnan(sd):
            return nan
        return statistics.student(level, n - 1) * sd * sqrt(1 / n + 1 / len(self.ours))

    @cached_property
    def p(self) -> float:
        """The exact two-sided p that both have the same mean; NaN if single trials are not known or keys differ."""
        if self.differing or not self.published.trials:
            return nan
        return statistics.p_two_samples(self.ours, self.published.trials)

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many seeds and trials can have."""
        return smallest_p(len(self.ours), len(self.published.trials))

    @property
    def word(self) -> str:
        """The verdict: inside, above, below, or why there is none."""
        if self.differing:
            return OTHER
        if isnan(self.reach):
            return NO_RANGE
        if abs(self.difference) <= self.reach:
            return "inside"
        return "above" if self.difference > 0 else "below"


def smallest_p(ours: int, theirs: int) -> float:
    """Return the smallest two-sided p that samples of these sizes can have: all of one are above all of the other."""
    return (2 if ours == theirs else 1) / comb(ours + theirs, ours)


def beside(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[Beside]:
    """Return the cells of a suite for which published values exist; none if its data is not the official one.

    Of several sources, a cell has the one with the fewest differing keys, and of these single trials.
    """
    return _matched(suite, records) if not _reason(suite, records) else []


def _matched(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[Beside]:
    """Return the cells of a suite for which published values exist, whatever its data."""
    if not (known := published(suite.dataset, suite.model)):
        return []
    ours: dict[tuple[str, int, str], list[float]] = {}
    halves: dict[str, dict[str, Any]] = {}
    for r in sorted(records, key=lambda r: r.seed):
        halves[r.method] = suite.halves.get(suite.trials[r.trial].method, {})
        for metric, value in r.metrics.items():
            if value is not None:
                ours.setdefault((r.method, r.labelled, metric), []).append(100 * value)
    found = []
    for (method, labelled, metric), values in ours.items():
        options = [
            Beside(method, labelled, values, p, *_keys(suite, p))
            for p in known
            if (p.labelled, p.metric) == (labelled, metric) and is_method(halves[method], p)
        ]
        if options:
            best = min(options, key=lambda o: (len(o.differing), not o.published.trials))
            printed = [o.published for o in options if not o.published.trials and o.differing == best.differing]
            found.append(replace(best, printed=printed[0]) if best.published.trials and printed else best)
    return sorted(found, key=lambda cell: (suite.methods.index(cell.method), cell.labelled))


def _keys(suite: SuiteEntry, p: Published) -> tuple[list[str], list[str]]:
    """Return (keys of a suite that differ from what a source states, keys that it does not state), in words."""
    differing, unstated = [], []
    for group, spec in (("dataset", p.dataset), ("model", p.network)):
        own = Spec.stored(suite.settings.get(group, {"name": spec.name})).settings
        for key in {**own, **spec.settings}:
            values = [_shown(settings.get(key, "the default")) for settings in (own, spec.settings)]
            if group == "model" and key not in spec.settings:  # while a dataset without settings is the whole dataset
                unstated.append(f"{group}.{key} (ours {values[0]})")
            elif values[0] != values[1]:
                differing.append(f"{group}.{key} {values[0]}, published {values[1]}")
    for group, settings in GROUPS.items():
        own = suite.settings.get(group, {})
        for key, field in settings.model_fields.items():
            value = own.get(key, field.get_default())
            if (path := f"{group}.{key}") in p.keys:
                if value != p.keys[path]:
                    differing.append(f"{key} {_shown(value)}, published {_shown(p.keys[path])}")
            elif key in own:
                unstated.append(f"{key} (ours {_shown(value)})")
    return differing, unstated


def _shown(value: Any) -> str:
    return "all" if value is None else readable(str(value))


def _reason(suite: SuiteEntry, records: Sequence[CycleRecord]) -> str:
    """Return why the data is not known to be the official one, or ''."""
    if not suite.official_data:
        return f"dataset {suite.dataset} is not known to be read from its official files"
    copies = {r.data_fingerprint for r in records}
    return f"its cycles were computed on {len(copies)} versions of the data" if len(copies) > 1 else ""


def reasons(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[str]:
    """Return the sentence that says why a suite with published values gets no verdict, if so."""
    if (reason := _reason(suite, records)) and (cells := _matched(suite, records)):
        return [f"No verdict on the published values ({', '.join(sources_of(cells))}): {reason}."]
    return []


def sources_of(cells: Sequence[Beside]) -> list[str]:
    """Return the sources of cells, each once."""
    return each_once([cell.published.source] for cell in cells)


def each_once(parts: Iterable[list[str]]) -> list[str]:
    """Return each distinct text once."""
    return list(dict.fromkeys(text for part in parts for text in part))


def verdicts(suite: SuiteEntry, records: Sequence[CycleRecord], cells: Sequence[Beside]) -> list[Claim]:
    """Return a sentence for each method and source: it reproduces it, deviates from it, or what is missing.

    The exact p-values of all cells of the suite are adjusted together (Holm), with those that have no result yet.
    Methods for which the same is missing share a sentence.
    """
    tested = [cell for cell in cells if not isnan(cell.p)]
    together = [*(cell.p for cell in tested), *[1.0] * (_planned(suite) - len(tested))]
    adjusted = {id(cell): p for cell, p in zip(tested, statistics.holm(together), strict=False)}
    counts = len(together), len(together) - sum(p <= statistics.LEVEL for p in adjusted.values())
    grouped: dict[tuple[str, str], list[Beside]] = {}
    for cell in cells:
        grouped.setdefault((cell.method, cell.published.source), []).append(cell)
    cycles = Counter(r.method for r in records)
    claimed, missing = [], dict[tuple[str, str], list[str]]()
    for (method, source), group in grouped.items():
        ps = [adjusted.get(id(cell), 1.0) for cell in group]
        kind, what = _verdict(group, ps, counts, cycles[method] >= len(suite.seeds) * len(suite.labelled))
        if kind == "open":
            missing.setdefault((source, what), []).append(method)
        else:
            claimed.append(Claim(kind, f"{method} {kind} {source} {what}."))
    for (source, what), methods in missing.items():
        they = "it reproduces" if len(methods) == 1 else "they reproduce"
        claimed.append(Claim("open", f"{', '.join(methods)}: open whether {they} {source}: {what}."))
    return claimed


def _planned(suite: SuiteEntry) -> int:
    """Return how many cells of a suite can have an exact p once it is finished."""
    found = {
        (method, p.labelled, p.metric)
        for p in published(suite.dataset, suite.model)
        if p.trials and p.labelled in suite.labelled and not _keys(suite, p)[0]
        for method in suite.methods
        if is_method(suite.halves.get(method, {}), p)
    }
    return len(found)


def _verdict(
    cells: Sequence[Beside], adjusted: Sequence[float], counts: tuple[int, int], finished: bool
) -> tuple[str, str]:
    """Return (kind, rest of the sentence) of a method's cells with one source.

    ``adjusted``: their exact p-values; ``counts``: of all that are adjusted together, and of those not significant.
    """
    together, left = counts
    if keys := each_once(cell.differing for cell in cells):
        return "open", f"{OTHER}: {'; '.join(keys)}"
    budgets = counted(len(cells), "number") + " of labelled images"
    lowest, unstated = min(adjusted), each_once(cell.unstated for cell in cells)
    remarks = each_once([cell.published.remark] for cell in cells if cell.published.remark)
    known = [*(f"in the source, {remark}" for remark in remarks), *(f"{key} is not stated there" for key in unstated)]
    if lowest <= statistics.LEVEL:
        outside = [
            (c.labelled, signed(c.difference)) for c, p in zip(cells, adjusted, strict=True) if p <= statistics.LEVEL
        ]
        (first, points), *others = outside
        where = ", ".join([f"{points} points at {first}", *(f"{more} at {labelled}" for labelled, more in others)])
        p = f"exact p at most {shown_p(statistics.LEVEL)}, Holm over {together}"
        return "deviates from", "; ".join([f"at {len(outside)} of {budgets} ({p}): {where}", *known])
    if unstated:
        return "open", f"the source does not state {', '.join(unstated)}"
    if not all(cell.published.trials for cell in cells):
        return "open", "its single trials are not known"
    if not finished:
        return "open", "not all cycles of all seeds are there"
    level = statistics.LEVEL / left
    if (smallest := max(cell.smallest_p for cell in cells)) > level:
        seeds, trials = len(cells[0].ours), min(len(cell.published.trials) for cell in cells)
        enough = next(number for number in count(1) if smallest_p(number, trials) <= level)
        return "open", (
            f"{counted(seeds, 'seed')} and {counted(trials, 'published trial')} can't show a deviation at {budgets} "
            f"(smallest possible p {shown_p(smallest)}, it must be at most {shown_p(level)}); {enough} seeds can"
        )
    if any(isnan(cell.reach) for cell in cells):
        return "open", "a single published trial has no range"
    if apart := _apart(cells):
        return "open", (
            f"at {apart} of {budgets} our mean is outside the range of further published trials, but no exact p shows "
            f"it (p at least {shown_p(lowest)}, Holm over {together})"
        )
    largest = max(cells, key=lambda cell: abs(cell.difference))
    inside = sum(cell.word == "inside" for cell in cells)
    found = (
        f"at {budgets}: no deviation is shown (exact p at least {shown_p(lowest)}, Holm over {together}), {inside} "
        f"are inside, the largest difference is {signed(largest.difference)} points at {largest.labelled}"
    )
    return "reproduces", "; ".join([found, *known])


def _apart(cells: Sequence[Beside]) -> int:
    """Return how many means are outside their ranges, 0 unless more are than further published trials would have.

    For some j, at least j of k means must be outside the range that further trials leave with a probability of LEVEL x
    j / k (Simes 1986, Biometrika 73; budgets of one curve depend on each other positively, so that it is valid). Noise
    of our seeds, which hides a deviation from the exact test, does not widen these ranges.
    """
    for number in range(len(cells), 0, -1):
        level = statistics.LEVEL * number / len(cells)
        if (outside := sum(abs(cell.difference) > cell.reach_at(level) for cell in cells)) >= number:
            return outside
    return 0

"""Compares what methods cost, by seed, and claims that one is cheaper only if times are comparable and carry it.

The cost of a trial is the sum of its seconds of training and selection (COST_PHASES) in all cycles. Every method is
compared with the reference of its suite, in both directions, by the exact test of the differences at equal seeds, at
LEVEL over all methods of the suite: see ``statistics.in_order``. A sentence on costs also says what is known of AUBC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean, stdev

from harness.report import statistics
from harness.report.captions import counted
from harness.report.claims import about
from harness.report.comparisons import Claim, Comparison, kind_of, shown_p
from harness.results.manifest import SuiteEntry
from harness.results.records import COST_PHASES, CycleRecord

LEVEL = 0.0025
"""What is left of 5.5 % after the claims on AUBC: costs differ by more than noise, so that few seeds show it anyway."""

CHEAPER = {
    "better": " and better",
    "worse": ", but worse",
    "equal": " and equal within {margin:g}",
    "open": ", with no difference of AUBC shown",
}
"""What is claimed of a method -> the end of the sentence that it is cheaper."""
DEARER = {**CHEAPER, "better": ", but worse", "worse": " and better"}
"""The same of the sentence that the reference is cheaper."""


def costs(suite: SuiteEntry, records: Sequence[CycleRecord]) -> dict[str, dict[int, float]]:
    """Return method -> seed -> seconds, of the finished trials whose phases were all timed.

    The last cycle selects nothing; what it scored before a run was shortened does not count.
    """
    last = len(suite.labelled) - 1
    trials: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        phases = COST_PHASES[:2] if r.cycle == last else COST_PHASES
        seconds = [r.seconds.get(phase) for phase in phases]
        trials.setdefault((r.method, r.seed), {})[r.cycle] = sum(inf if s is None else s for s in seconds)
    found: dict[str, dict[int, float]] = {}
    for (method, seed), cycles in trials.items():
        if len(cycles) == len(suite.labelled) and (total := sum(cycles.values())) < inf:
            found.setdefault(method, {})[seed] = total
    return found


def not_comparable(records: Sequence[CycleRecord]) -> str | None:
    """Return why the times of a suite's trials can't be compared; None if they can."""
    devices, shares, threads = ({getattr(r, name) for r in records} for name in ("device", "device_share", "threads"))
    if len(devices) > 1:
        return f"the trials ran on different devices ({', '.join(sorted(devices))})"
    if len(shares) > 1:
        return f"between {min(shares)} and {max(shares)} trials shared a device"
    if len(threads) > 1:
        return f"the trials had between {min(threads)} and {max(threads)} threads"
    return None


def cost_claims(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison],
    run_of: Callable[[str], object] = lambda trial: None,
) -> list[Claim]:
    """Return a sentence for each group of methods of which equal things are claimed, or what evidence is missing.

    ``run_of`` returns the run that computed a trial. Of a report of several runs, only the seeds of which one run
    computed both trials are compared: records do not name machines, and two of one device may differ in speed.
    """
    if not compared or not records:
        return []
    if reason := not_comparable(records):
        return [Claim("open", f"Costs are not compared: {reason}.")]
    by_method, reference = costs(suite, records), compared[0].reference
    runs = {(r.method, r.seed): run_of(r.trial) for r in records if r.cycle == 0}
    found: list[_Cost] = []
    few: dict[int, list[Comparison]] = {}
    for c in compared:
        theirs, ours = (by_method.get(name, {}) for name in (c.method, reference))
        both = sorted({*ours} & {*theirs})
        common = [seed for seed in both if runs[c.method, seed] == runs[reference, seed]]
        if statistics.smallest_p(len(common)) > LEVEL:
            few.setdefault(len(common), []).append(c)
        else:
            found.append(_Cost(c, [theirs[seed] for seed in common], [ours[seed] for seed in common]))
    groups: dict[tuple[bool, bool, str], list[_Cost]] = {}
    for cost, p in zip(found, adjusted_costs([cost.differences for cost in found]), strict=True):
        open_ = p > LEVEL
        key = open_, cost.ratio > 1 and not open_, "" if open_ else kind_of(cost.comparison)
        groups.setdefault(key, []).append(replace(cost, p=p))
    claimed = [_claim(dearer, kind, groups[open_, dearer, kind]) for open_, dearer, kind in sorted(groups)]
    several = " with both trials from one run" if len({*runs.values()}) > 1 else ""
    for number, group in few.items():
        names = f"{', '.join(c.method for c in group)}: " if len(few) > 1 or found else ""
        text = f"{names}{counted(number, 'seed')}{several} can't show that a method is cheaper; "
        claimed.append(Claim("open", f"{text}{statistics.seeds_for(LEVEL)} seeds can.", group))
    return claimed


def adjusted_costs(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the p-value of each method's differences of cost, adjusted for the number of methods."""
    ps = [statistics.p_differ(values) for values in differences]
    return statistics.in_order(ps, [sum(value**2 for value in values) for values in differences])


@dataclass(frozen=True)
class _Cost:
    """What a method costs, compared with the reference."""

    comparison: Comparison
    seconds: list[float]
    """Of its trials, by seed."""
    of_reference: list[float]
    """Of the reference's trials with these seeds."""
    p: float = 1.0
    """Adjusted for the number of methods."""

    @property
    def differences(self) -> list[float]:
        return [one - other for one, other in zip(self.seconds, self.of_reference, strict=True)]

    @property
    def ratio(self) -> float:
        return sum(self.seconds) / max(sum(self.of_reference), 1e-9)


def _claim(dearer: bool, kind: str, group: list[_Cost]) -> Claim:
    """Return the sentence on methods of which the same is claimed; an empty ``kind``: nothing is."""
    methods = [cost.comparison for cost in group]
    names, reference, many = ", ".join(c.method for c in methods), methods[0].reference, len(group) > 1
    ratios = _span([cost.ratio for cost in group], ".2f")
    seeds = counted(min(len(cost.seconds) for cost in group), "seed")
    if not kind:
        needed = [statistics.seeds_needed(fmean(d), stdev(d), LEVEL) for d in (cost.differences for cost in group)]
        text = (
            f"{names}: no difference of cost to {reference} shown (p {'of at least' if many else '='} "
            f"{shown_p(min(cost.p for cost in group))}, which must be at most {LEVEL}; {seeds}): a trial takes "
            f"{ratios} times as long; {about(needed)} would find {'differences' if many else 'one'} of this size."
        )
        return Claim("open", text, methods)
    seconds = _span([fmean(cost.of_reference) for cost in group], ",.1f")
    end = (DEARER if dearer else CHEAPER)[kind].format(margin=methods[0].margin)
    if dearer:
        what = f"{reference} is cheaper than {names}{end}: its trials take {seconds} s, the "
        what += ("others'" if many else "other's") + f" {ratios} times as long"
    else:
        what = f"{names} {'are' if many else 'is'} cheaper than {reference}{end}: a trial takes {ratios} times the "
        what += f"{seconds} s of {reference}"
    p = shown_p(max(cost.p for cost in group))
    return Claim("cheaper", f"{what}; p {'at most' if many else '='} {p}, {seeds}.", methods)


def _span(values: Sequence[float], form: str) -> str:
    """Return the lowest and the highest value, or one of them if they are equal as text."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"

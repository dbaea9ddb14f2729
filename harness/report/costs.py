"""Compares what methods cost, by seed, and claims that one is cheaper only if times are comparable and carry it.

The cost of a trial are its seconds of training and selection (COST_PHASES) in all cycles. Every method is compared with
the reference of its suite, in both directions, by the exact test of the differences at equal seeds, at LEVEL over all
methods of the suite: see ``statistics.in_order``. A sentence on costs also says what is known of AUBC.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from harness.report import statistics
from harness.report.captions import counted
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


def cost_claims(suite: SuiteEntry, records: Sequence[CycleRecord], compared: Sequence[Comparison]) -> list[Claim]:
    """Return a sentence for each group of methods of which equal things are claimed, or what evidence is missing."""
    if not compared:
        return []
    if reason := not_comparable(records):
        return [Claim("open", f"Costs are not compared: {reason}.")]
    by_method, reference = costs(suite, records), compared[0].reference
    ours = by_method.get(reference, {})
    pairs = []
    for c in compared:
        theirs = by_method.get(c.method, {})
        if common := sorted({*ours} & {*theirs}):
            pairs.append((c, [theirs[seed] for seed in common], [ours[seed] for seed in common]))
    if not pairs:
        return []
    most = max(len(seconds) for _, seconds, _ in pairs)
    if statistics.smallest_p(most) > LEVEL:
        text = f"{counted(most, 'seed')} can't show that a method is cheaper; {statistics.seeds_for(LEVEL)} seeds can."
        return [Claim("open", text, [c for c, _, _ in pairs])]
    differences = [[a - b for a, b in zip(one, other, strict=True)] for _, one, other in pairs]
    groups: dict[tuple[bool, bool, str], list[_Cost]] = {}
    for (c, one, other), p in zip(pairs, adjusted_costs(differences), strict=True):
        cost = _Cost(c, sum(one) / max(sum(other), 1e-9), sum(other) / len(other), p, len(one))
        open_ = p > LEVEL
        groups.setdefault((open_, cost.ratio > 1 and not open_, "" if open_ else kind_of(c)), []).append(cost)
    return [_claim(dearer, kind, groups[open_, dearer, kind]) for open_, dearer, kind in sorted(groups)]


def adjusted_costs(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the p-value of each method's differences of cost, adjusted for the number of methods."""
    ps = [statistics.p_differ(values) for values in differences]
    return statistics.in_order(ps, [sum(value**2 for value in values) for values in differences])


class _Cost(NamedTuple):
    """What a method costs, compared with the reference."""

    comparison: Comparison
    ratio: float
    seconds: float
    """Mean seconds of a trial of the reference."""
    p: float
    n: int


def _claim(dearer: bool, kind: str, group: list[_Cost]) -> Claim:
    """Return the sentence on methods of which the same is claimed; an empty ``kind``: nothing is."""
    about = [cost.comparison for cost in group]
    names, reference = ", ".join(c.method for c in about), about[0].reference
    if not kind:
        return Claim("open", f"{names}: no difference of cost to {reference} shown.", about)
    low, high = (f"{choose(cost.ratio for cost in group):.2f}" for choose in (min, max))
    ratios = low if low == high else f"{low} to {high}"
    end = (DEARER if dearer else CHEAPER)[kind].format(margin=about[0].margin)
    many = len(group) > 1
    if dearer:
        what = f"{reference} is cheaper than {names}{end}: its trials take {group[0].seconds:,.1f} s, the "
        what += ("others'" if many else "other's") + f" {ratios} times as long"
    else:
        what = f"{names} {'are' if many else 'is'} cheaper than {reference}{end}: a trial takes {ratios} times the "
        what += f"{group[0].seconds:,.1f} s of {reference}"
    p = shown_p(max(cost.p for cost in group))
    seeds = counted(min(cost.n for cost in group), "seed")
    return Claim("cheaper", f"{what}; p {'at most' if many else '='} {p}, {seeds}.", about)

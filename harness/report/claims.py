"""The sentences on the comparisons of a suite: what the evidence carries, or what evidence would carry more."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from harness.report import statistics
from harness.report.captions import counted
from harness.report.comparisons import (
    Claim,
    Comparison,
    areas,
    compared_metric,
    kind_of,
    reference_of,
    shown_p,
    signed,
)
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord


def claims(found: Sequence[Comparison]) -> list[Claim]:
    """Return a sentence for each comparison that claims something, then what evidence the others lack.

    That of the primary comparison comes first.
    """
    claimed, small, few = [], [], dict[tuple[int, float], list[Comparison]]()
    for c in found:
        seeds = counted(len(c.values), "seed")
        if (kind := kind_of(c)) != "open":
            what = f"equals {c.reference} within {c.margin:g}" if kind == "equal" else f"is {kind} than {c.reference}"
            spread = f"{signed(c.mean)} points of AUBC" + (f" ({interval})" if (interval := c.interval()) else "")
            p = c.adjusted_equal if kind == "equal" else c.adjusted
            claimed.append(Claim(kind, f"{c.method} {what}: {spread}; p = {shown_p(p)}, {seeds}.", [c]))
        elif statistics.smallest_p(len(c.values)) > c.level:
            few.setdefault((len(c.values), c.level), []).append(c)
        else:
            text = (
                f"{c.method} minus {c.reference}: {signed(c.mean)} points, no difference shown (p = "
                f"{shown_p(c.adjusted)}{waits(c, c.alpha, 'which')}); {about([c.seeds_needed()])} would find one of "
                f"this size, {seeds} one of {c.smallest_difference():.2f} points.{_equal([c])}"
            )
            small.append(Claim("open", text, [c]))
    for (number, level), group in few.items():
        which = among(group[0])
        text = (
            f"{', '.join(c.method for c in group)}: {counted(number, 'seed')} can't show a difference to "
            f"{group[0].reference}{which}: the smallest possible p is {shown_p(statistics.smallest_p(number))}"
            f"{waits(group[0], level, 'and it')}; {seeds_that_can(group[0])}.{_equal(group)}"
        )
        small.append(Claim("open", text, group))
    return sorted(claimed + small, key=lambda claim: not any(c.primary for c in claim.about))


def _equal(group: Sequence[Comparison]) -> str:
    """Return the sentence on how many seeds would show equality within the margin; '' without a margin."""
    if not (needed := [n for c in group if (n := c.seeds_for_equal()) == n]):
        return ""
    seeds = about(needed)
    return f" {seeds[0].upper()}{seeds[1:]} would show equality within {group[0].margin:g} points, if nothing differs."


def about(needed: Sequence[float]) -> str:
    """Return how many seeds are needed: 'about 9 seeds', or the fewest and the most of several methods."""
    low, high = min(needed), max(needed)
    if high == inf:
        return "no number of seeds" if low == inf else f"{low:.0f} seeds or more"
    return f"about {low:.0f}" + ("" if low == high else f" to {high:.0f}") + " seeds"


def among(c: Comparison) -> str:
    """Return among how many comparisons a p is adjusted: all of the report, or those that are not significant."""
    if c.left == 1:
        return ""
    return f" among {c.left} comparisons" + ("" if c.left == c.others else " that are not significant")


def waits(c: Comparison, level: float, what: str) -> str:
    """Return what a p must be, ``what``, as long as the primary comparison is not significant; '' if it is."""
    if c.alpha >= statistics.LEVEL:
        return ""
    return f", {what} must be at most {shown_p(level)} as the primary comparison is not significant"


def seeds_that_can(c: Comparison, where: str = "") -> str:
    """Return how many seeds can show a difference, also once the primary comparison is significant."""
    text = f"{statistics.seeds_for(c.level)} seeds{where} can"
    if c.alpha >= statistics.LEVEL:
        return text
    return f"{text}, or {statistics.seeds_for(c.level * statistics.LEVEL / c.alpha)} once it is significant"


def foreseen(
    own: int, seeds: int, others: int, primary: str | None, reference: str, margin: float | None = None
) -> list[str]:
    """Return what a suite's seeds can and can't show, before a run.

    ``own``: how many comparisons of the suite are adjusted together with those of other suites, ``others`` in all;
    ``primary``: the method that is compared with the reference in the primary comparison; ``margin``: of equality.
    """
    parts = []
    if primary:
        parts.append((f"{primary} minus {reference} (primary)", statistics.LEVEL))
    if own:
        after = " once that is significant" if primary else ""
        parts.append((f"each other method minus {reference}{after}", statistics.LEVEL / others))
    sentences = []
    for what, level in parts:
        p = f"the smallest possible p is {shown_p(statistics.smallest_p(seeds))}, it must be at most {shown_p(level)}"
        found = statistics.smallest_difference(1.0, seeds, level)
        if found == inf:
            enough = statistics.seeds_for(level)
            unless = " unless others are significant" if statistics.smallest_p(seeds) <= statistics.LEVEL else ""
            can = f"{counted(seeds, 'seed')} can't show a difference{unless}: {p}; {enough} seeds can"
        else:
            can = (
                f"{counted(seeds, 'seed')} find a difference of {found:.1f} times the standard deviation of the "
                f"differences over seeds in {100 * statistics.POWER:.0f} % of runs"
            )
        sentences.append(f"{what}: {can}")
        if margin is not None:
            sentences.append(f"{what}: {_equality_foreseen(seeds, margin, level)}")
    return sentences


def _equality_foreseen(seeds: int, margin: float, level: float) -> str:
    """Return whether so many seeds can show equality within a margin, and at which spread."""
    if (sd := statistics.largest_sd(margin, seeds, level)) == 0:
        enough = statistics.seeds_for(2 * level)
        return f"{counted(seeds, 'seed')} can't show equality within {margin:g} points; {enough} seeds can"
    return (
        f"{counted(seeds, 'seed')} show equality within {margin:g} points in {100 * statistics.POWER:.0f} % of runs, "
        f"if there is no difference and the standard deviation of the differences is at most {sd:.2f} points"
    )


def not_compared(suite: SuiteEntry, records: Sequence[CycleRecord], found: Sequence[Comparison]) -> list[str]:
    """Return sentences on the methods of a suite that are not compared, and why; ``found``: its comparisons.

    Several rows of a method must not be averaged: see rows.py.
    """
    reference = reference_of(suite)
    if rows := _rows(suite, reference):
        return [f"The methods are not compared: {reference} has the rows {', '.join(rows)}."]
    if reference not in suite.methods:
        return [f"The methods are not compared: {reference}, their reference, is not among them."]
    said = []
    if suite.primary and (rows := _rows(suite, suite.primary[0])):
        said.append(
            f"The primary comparison is not made, and all others need a p of at most {statistics.BEFORE}: "
            f"{suite.primary[0]} has the rows {', '.join(rows)}."
        )
    methods = {c.method for c in found}
    if missing := [method for method in suite.methods if method not in {reference, *methods}]:
        key = compared_metric(records)
        trained = areas(suite, records, key) if key else {}
        if reference not in trained:
            said.append(f"Nothing is compared yet: {reference}, the reference, has no finished trial.")
        else:
            apart, waiting = ([m for m in missing if (m in trained) is known] for known in (True, False))
            if apart:
                said.append(
                    f"{', '.join(apart)}: not compared, because no finished trial shares a seed with {reference}."
                )
            if waiting:
                said.append(f"{', '.join(waiting)}: not compared yet, because no trial is finished.")
    return said


def _rows(suite: SuiteEntry, method: str) -> list[str]:
    """Return the rows of a method that has several."""
    return [] if method in suite.methods else [row for row in suite.methods if row.startswith(f"{method} [")]

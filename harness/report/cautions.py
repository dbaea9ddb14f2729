"""Warnings of what a suite's numbers do not say."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.captions import has_one_initial_set
from harness.report.comparisons import Comparison, kind_of
from harness.results.manifest import DEFAULT_TRAINING, UNUSED_ACQUISITION, SuiteEntry


def cautions(suite: SuiteEntry, compared: Sequence[Comparison]) -> list[str]:
    """Return a warning of baselines below random selection, and one if all seeds share their initial set.

    The method of the primary comparison is no baseline, and nothing is one if the reference is another method than the
    default training with random selection.
    """
    found = []
    at_random = {"training": {"name": DEFAULT_TRAINING}, "acquisition": {"name": UNUSED_ACQUISITION}}
    worse = [c for c in compared if not c.primary and kind_of(c) == "worse"]
    if weak := [c for c in worse if suite.halves.get(c.reference) == at_random]:
        which, verb = ("baseline", "is") if len(weak) == 1 else ("baselines", "are")
        names, reference = ", ".join(c.method for c in weak), weak[0].reference
        found.append(f"WARNING: weak {which}: {names} {verb} significantly below {reference}; check recipe and keys.")
    if has_one_initial_set(suite) and len(suite.seeds) > 1:
        found.append("WARNING: all seeds have one initial set: std, intervals and p leave out how much it matters.")
    return found

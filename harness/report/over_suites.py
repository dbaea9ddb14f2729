"""Compares methods over several suites: the mean over suites of their mean differences to the reference, exactly.

The signs of all seeds of all suites are independent, so that four suites of three seeds can show what none of them can.
Suites on one dataset have the same initial sets at a seed: the sign of a seed is then one for all of them. The claims
over suites are a family of their own, with the levels of a suite's claims: see comparisons.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.errors import readable
from harness.report import statistics
from harness.report.claims import about, among, seeds_that_can, waits
from harness.report.comparisons import Claim, Comparison, adjusted, kind_of, others_of, reference_of, shown_p, signed
from harness.results.manifest import SuiteEntry

if TYPE_CHECKING:
    import pandas as pd

NAME = "over_suites"
KINDS = ("better", "worse", "open")
"""Of claims, in the order of their sentences."""


@dataclass(frozen=True)
class OverSuites(Comparison):
    """A method minus the reference, over suites; its differences are weighted so that each suite counts alike.

    Their mean is the mean over suites of the mean differences. Their keys are no seeds.
    """

    by_suite: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Name of the suite -> (mean difference in points of AUBC, number of seeds)."""


def over_suites(suites: Sequence[SuiteEntry], compared: Sequence[Comparison]) -> list[OverSuites]:
    """Return the comparisons of methods that are, by name and halves, in several suites with the same reference.

    Only points of the same metric are averaged. ``compared``: the comparisons of all these suites.
    """
    entries = {suite.name: suite for suite in suites}
    groups: dict[str, list[Comparison]] = {}
    for c in compared:
        halves = {readable(name): halves for name, halves in entries[c.suite].halves.items()}
        if c.method in halves and c.reference in halves:
            key = repr((c.metric, c.method, c.reference, halves[c.method], halves[c.reference]))
            groups.setdefault(key, []).append(c)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        values: dict[tuple[str, int], float] = {}
        for c in group:
            for seed, value in c.differences.items():
                stratum = entries[c.suite].dataset, seed
                values[stratum] = values.get(stratum, 0.0) + value / len(c.values)
        weight = len(values) / len(group)
        found.append(
            OverSuites(
                suite=NAME,
                metric=group[0].metric,
                method=group[0].method,
                reference=group[0].reference,
                differences={number: weight * value for number, value in enumerate(values.values())},
                primary=all(c.primary for c in group),
                by_suite={c.suite: (c.mean, len(c.values)) for c in group},
            )
        )
    expected = _primary(suites)
    if max(expected, sum(c.primary for c in found)) > 1:  # the report is made for no single pair
        found = [replace(c, primary=False) for c in found]
    return [c for c in adjusted(found, [NAME] * (expected == 1)) if isinstance(c, OverSuites)]


def _primary(suites: Sequence[SuiteEntry]) -> int:
    """Return how many pairs of methods are the primary comparison of all suites that have both, finished or not."""
    pairs = [((method, reference_of(suite)), suite.primary) for suite in suites for method in others_of(suite)]
    apart = {pair for pair, primary in pairs if [*pair] != primary}
    return sum(n > 1 and pair not in apart for pair, n in Counter(pair for pair, _ in pairs).items())


def claims_over_suites(found: Sequence[OverSuites]) -> list[Claim]:
    """Return a sentence for the methods that are better than a reference, for those that are worse, and for others."""
    groups: dict[tuple[str, str, str, str, float], list[OverSuites]] = {}
    for c in found:
        level = c.level if (kind := kind_of(c)) == "open" else 0.0  # evidence that is missing depends on it
        groups.setdefault((kind, c.reference, c.metric, _suites(c), level), []).append(c)
    result = []
    for key in sorted(groups, key=lambda key: KINDS.index(key[0])):
        (kind, reference, metric, suites, level), group = key, groups[key]
        names = ", ".join(c.method for c in group)
        if kind != "open":
            ranked = sorted(group, key=lambda c: -abs(c.mean))
            means = ", ".join(f"{c.method} ({signed(c.mean)})" for c in ranked)
            verb, p = "is" if len(group) == 1 else "are", shown_p(max(c.adjusted for c in group))
            text = f"Over {suites}, {means} {verb} {kind} than {reference}, in mean points of {metric}'s AUBC; p "
            text += f"{'=' if len(group) == 1 else 'at most'} {p}"
        elif all(statistics.smallest_p(len(c.values)) > level for c in group):
            text = (
                f"Over {suites}, no difference of {names} to {reference} can be shown{among(group[0])}: the smallest "
            )
            text += f"possible p is {shown_p(min(statistics.smallest_p(len(c.values)) for c in group))}"
            text += f"{waits(group[0], level, 'and it')}; {seeds_that_can(group[0], ' over all suites')}"
        else:
            text = f"Over {suites}, no difference to {reference} shown: {names} (p of at least "
            text += f"{shown_p(min(c.adjusted for c in group))}{waits(group[0], group[0].alpha, 'which')}); "
            text += f"{about([c.seeds_needed() for c in group])} over all suites would find differences of this size"
        result.append(Claim(kind, f"{text}.", [*group]))
    return result


def over_suites_table(found: Sequence[OverSuites]) -> tuple[str, dict[str, pd.DataFrame], pd.DataFrame]:
    """Return (caption, long tables, wide table). Long tables: a row for each method; '_by_suite': and each suite."""
    import pandas as pd

    names = list(dict.fromkeys(name for c in found for name in c.by_suite))
    metrics = list(dict.fromkeys(c.metric for c in found))
    long, shown = [], []
    for c in found:
        evidence = {"p": c.p, "adjusted": c.adjusted, "level": c.alpha, "claim": kind_of(c)}
        counts = {"suites": len(c.by_suite), "n": len(c.values)}
        about = {"method": c.method, "reference": c.reference, "metric": c.metric, "primary": c.primary}
        long.append({**about, "mean": c.mean, **counts, **evidence})
        shown.append(
            {
                "method": f"{c.method} \N{MINUS SIGN} {c.reference}" + (" (primary)" if c.primary else ""),
                **({"metric": c.metric} if len(metrics) > 1 else {}),
                **{f"in {n}": signed(c.by_suite[n][0]) if n in c.by_suite else "\N{EN DASH}" for n in names},
                "mean": signed(c.mean),
                "p": shown_p(c.p),
                "p (Holm)": "\N{EN DASH}" if c.primary else shown_p(c.adjusted),
                "n": str(len(c.values)),
            }
        )
    caption = (
        "Differences of AUBC to the reference over suites, in points of "
        f"{' or '.join(metrics)}: the mean of each suite, and the mean over suites. p: "
        "exact, two-sided, by flipping the signs of the seeds of all suites; p (Holm): adjusted for all methods over "
        f"suites; a claim needs at most {statistics.LEVEL}, or {statistics.BEFORE} as long as the primary comparison "
        "is not significant; n: signs that are flipped, one for each seed and dataset."
    )
    rows = [(c.method, c.reference, name, *means) for c in found for name, means in c.by_suite.items()]
    by_suite = pd.DataFrame(rows, columns=["method", "reference", "suite", "mean", "n"])
    return caption, {"": pd.DataFrame(long), "_by_suite": by_suite}, pd.DataFrame(shown)


def _suites(c: OverSuites) -> str:
    seeds = sorted({n for _, n in c.by_suite.values()})
    return f"{len(c.by_suite)} suites of {' to '.join({str(seeds[0]): 0, str(seeds[-1]): 0})} seeds"

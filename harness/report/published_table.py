"""The table of a suite's cells and their published values: caption, numbers and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan, nan
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from harness.report.captions import counted
from harness.report.comparisons import shown_p
from harness.report.verdict import NO_RANGE, OTHER, Beside, each_once, sources_of
from harness.results.records import METRICS

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "\N{EN DASH}"


def caption(cells: Sequence[Beside]) -> str:
    """Return the caption of the table, without the origin of our numbers."""
    metrics = " and ".join(dict.fromkeys(METRICS[cell.published.metric] for cell in cells))
    words = {cell.word for cell in cells}
    seeds = max(len(cell.ours) for cell in cells)
    parts = [
        f"Published values: {metrics} (%), mean±std (sample) of {counted(seeds, 'seed')}, fewer where marked (n=...), "
        f"and of the trials of {', '.join(sources_of(cells))} (their number in brackets; ?: unknown). in sd: ours "
        "minus published, in published standard deviations."
    ]
    if printed := each_once([cell.printed.source] for cell in cells if cell.printed):
        parts.append(f"printed: what {' or '.join(printed)} prints for them.")
    if any(cell.published.trials and not cell.differing for cell in cells):
        parts.append("p: exact, two-sided, by all ways to split the trials into ours and theirs.")
    if words & {"inside", "above", "below"}:
        parts.append(
            "inside: our mean of m seeds is within t x sd x sqrt(1/n + 1/m) of the published mean of n trials, where "
            "that of m further published trials would be with a probability of 95 %; few trials give a wide range."
        )
    if NO_RANGE in words:
        parts.append(f"{NO_RANGE}: a single published trial, or an unknown sd.")
    if OTHER in words:
        parts.append(f"{OTHER}: {' or '.join(each_once(['; '.join(c.differing)] for c in cells if c.differing))}.")
    return " ".join(parts)


def numbers(cells: Sequence[Beside]) -> pd.DataFrame:
    """Return the table of cells, a row each.

    Columns: method, labelled, mean, std, n (ours), source, published_mean, published_sd, published_n, difference,
    in_sd, reach (half of the width of the range), p, verdict, differing (keys), unstated (keys), printed (mean) and
    printed_source.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "method": c.method,
                "labelled": c.labelled,
                "mean": fmean(c.ours),
                "std": _std(c.ours),
                "n": len(c.ours),
                "source": c.published.source,
                "published_mean": c.published.mean,
                "published_sd": c.published.sd,
                "published_n": c.published.n or nan,
                "difference": c.difference,
                "in_sd": c.in_sd,
                "reach": c.reach,
                "p": c.p,
                "verdict": c.word,
                "differing": "; ".join(c.differing),
                "unstated": "; ".join(c.unstated),
                "printed": c.printed.mean if c.printed else nan,
                "printed_source": c.printed.source if c.printed else "",
            }
            for c in cells
        ]
    )


def wide(cells: Sequence[Beside]) -> pd.DataFrame:
    """Return the table of cells as text; columns without any value are left out."""
    import pandas as pd

    most = max(len(c.ours) for c in cells)

    def text(value: float, form: Callable[[float], str]) -> str:
        return NOTHING if isnan(value) else form(value)

    rows = [
        {
            "method": c.method,
            "labelled": str(c.labelled),
            "verdict": c.word,
            "ours": _cell(fmean(c.ours), _std(c.ours)) + (f" (n={len(c.ours)})" if len(c.ours) < most else ""),
            "published": f"{_cell(c.published.mean, c.published.sd)} ({c.published.n or '?'})",
            "printed": _cell(c.printed.mean, c.printed.sd) if c.printed else NOTHING,
            "in sd": text(c.in_sd, lambda x: f"{x:+.1f}".replace("-", "\N{MINUS SIGN}")),
            "p": text(c.p, shown_p),
        }
        for c in cells
    ]
    table = pd.DataFrame(rows)
    return table.drop(columns=[column for column in ("printed", "in sd", "p") if (table[column] == NOTHING).all()])


def _std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else nan


def _cell(mean: float, sd: float) -> str:
    return f"{mean:.2f}" + ("" if isnan(sd) else f"±{sd:.2f}")

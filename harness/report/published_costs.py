"""Published costs of a first cycle, and ours: parameters, seconds and minutes, each with why they may differ.

Times depend on the machine, so that nothing is claimed from them; the table names both machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.captions import distinct
from harness.report.formats import cell
from harness.report.published import Published, is_method, published
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = {"EP (MiB)": "EP (MiB)", "TT (s)": "TT (s)", "ST (s)": "ST (s)", "ToT (min)": "total (min)"}
"""Metric of a published value -> the column of the cost table that is the same."""
CAPTION = (
    "Published costs of the first cycle, and ours. why: what the source says of its value, and where ours was "
    "measured. Times of different machines compare neither methods nor programs."
)


def published_costs(suite: SuiteEntry, records: Sequence[CycleRecord], costs: pd.DataFrame) -> pd.DataFrame:
    """Return the table (method, quantity, published, mean, std, n, source, why) of a suite; empty without any.

    ``costs``: its cost table. A value belongs to a method by dataset, network and halves, and to the suite if that has
    as many labelled images in its first cycle.
    """
    import pandas as pd

    ours = {(row["method"], row["quantity"]): row for row in costs.to_dict("records")}
    rows = []
    for method in suite.methods:
        machine = {(r.device, r.precision) for r in records if r.method == method and r.cycle == 0}
        where = distinct(", ".join(each) for each in machine)
        for p in published(suite.dataset, suite.model):
            row = ours.get((method, QUANTITIES.get(p.metric, "")))
            if row and p.labelled == suite.labelled[0] and is_method(suite.halves.get(method, {}), p):
                rows.append({**row, "published": p.mean, "source": p.source, "why": _why(p, where)})
    columns = ["method", "quantity", "published", "mean", "std", "n", "source", "why"]
    return pd.DataFrame(rows, columns=columns)


def _why(p: Published, where: str) -> str:
    """Return what the source says of a value, and for times on which machines ours were measured."""
    return p.remark if p.metric.startswith("EP") else f"{p.remark}; ours {where}"


def wide_published_costs(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text: method and quantity in one column, so that a row keeps both where a table is split."""
    import pandas as pd

    spread = zip(numbers["mean"], numbers["std"], strict=True)
    return pd.DataFrame({"method": numbers["method"] + ", " + numbers["quantity"]}).assign(
        published=[f"{value:,g}" for value in numbers["published"]],
        ours=[cell(mean, std if std > 0 else float("nan"), 3) for mean, std in spread],
        n=numbers["n"].astype(str),
        why=numbers["source"] + ": " + numbers["why"],
    )

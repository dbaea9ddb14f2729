"""The report as one HTML page that needs no other file and no network: report/report.html.

It shows the tables and sentences of the other forms, with charts that answer to the pointer, in this order: who leads
and what can be claimed, curves and tables, the first selected images, where the numbers come from. Any table of a suite
appears by itself. All texts are escaped by the template, and the page forbids itself every request.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import readable
from harness.report.captions import distinct
from harness.report.comparisons import Claim, Comparison, reference_of, signed
from harness.report.formats import cell
from harness.report.lead import duration, facts, lead
from harness.results.manifest import SuiteEntry
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

    from harness.report.contents import Table
    from harness.results.store import RunStore

PICTURE_BYTES = 4_000_000
"""Bytes of all pictures in the page; pictures beyond it are named instead."""
SELECTED_SHOWN = 10  # images of a method
HEADINGS = {
    "comparisons": "Differences to the reference",
    "speed_up": "Speed-up",
    "wins": "Win matrix",
    "decomposition": "Parts of the gain",
    "published": "Published values",
    "quality": "Other test metrics",
    "selection": "What methods select",
    "accuracy_reached": "Cost of reaching the reference",
    "miou_reached": "Cost of reaching the reference",
    "over_suites": "Over suites",
    "class_iou": "IoU by class",
    "seconds_by_cycle": "Seconds of every cycle",
}
"""Name of a table -> its heading, where the name itself is none."""
NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?\d[\d,]*\.?\d*(e[-+]?\d+)?")


@dataclass(frozen=True)
class Picture:
    """A picture of the first selected images."""

    file: str
    """Its file in the folder of the report."""
    heading: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """What the page says of a suite."""

    suite: SuiteEntry
    records: Sequence[CycleRecord]
    state: str
    """How far the suite is, or why it was not run."""
    source: str = ""
    """Where its numbers come from."""
    tables: Sequence[Table] = ()
    compared: Sequence[Comparison] = ()
    claims: Sequence[Claim] = ()
    warnings: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    first: Sequence[CycleRecord] = ()
    """See ``first_selections``."""


def page(
    name: str,
    described: Sequence[dict[str, Any]],
    notes: Sequence[str] = (),
    over: tuple[Table, Sequence[Claim]] | None = None,
    terms: Mapping[str, str] | None = None,
    elapsed: float | None = None,
) -> str:
    """Return the page of a run with this name; equal arguments give equal pages.

    ``described``: see ``describe``; ``notes``: sentences about the report as a whole; ``over``: the table over suites,
    and its claims; ``terms``: those to explain, term -> meaning; ``elapsed``: seconds that the run has taken, if
    they are known.
    """
    return _template().render(
        name=name,
        notes=notes,
        sections=[*_with_pictures(described)],
        over=over and {**_table(over[0]), "claims": over[1]},
        terms=terms or {},
        elapsed=None if elapsed is None else duration(elapsed),
        megabytes=PICTURE_BYTES // 10**6,
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    folder = jinja2.FileSystemLoader(Path(__file__).parent / "page")
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = _words
    return environment.get_template("report.html")


def _words(values: Any) -> str:
    """Return settings as text: 'name isda, strength 0.5, weights (a 1, b 2)'."""
    if isinstance(values, list | tuple):
        return f"[{', '.join(map(_words, values))}]"
    if not isinstance(values, Mapping):
        return str(values)
    return ", ".join(f"{k} ({_words(v)})" if isinstance(v, Mapping) else f"{k} {_words(v)}" for k, v in values.items())


def describe(section: Section) -> dict[str, Any]:
    """Return what the template shows of a suite, without its records; of a picture only which one it is."""
    return {
        "section": replace(section, records=(), tables=(), compared=()),
        "lead": lead(section.suite, section.records, section.tables, section.compared),
        "facts": facts(section.suite, section.records),
        "tables": [
            {**_table(table), "chart": _chart(section.suite, table)}
            for table in sorted(section.tables, key=lambda table: table.name.startswith("seconds"))
        ],
        "selected": _selected(section.first),
        "versions": _versions(section.records),
    }


def _with_pictures(described: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each suite, with the pictures that the page has room for."""
    room = PICTURE_BYTES
    for shown in described:
        pictures = []
        for picture in shown["section"].pictures:
            size = [int.from_bytes(picture.png[start : start + 4], "big") for start in (16, 20)]  # in its header
            data = None
            if len(picture.png) <= room:
                room -= len(picture.png)
                data = f"data:image/png;base64,{b64encode(picture.png).decode()}"
            pictures.append({"shown": picture, "data": data, "size": size})
        yield {**shown, "pictures": pictures}


def _versions(records: Sequence[CycleRecord]) -> dict[str, str]:
    """Return name -> all versions that the records were made with, and their commits."""
    found: dict[str, set[str]] = {}
    for pairs in dict.fromkeys((*r.versions.items(), ("commit", r.commit)) for r in records):
        for name, version in pairs:
            found.setdefault(name, set()).add(version)
    return {name: distinct(versions) for name, versions in found.items()}


def _table(table: Table) -> dict[str, Any]:
    """Return what the template shows of a table."""
    return {
        "heading": _heading(table),
        "table": without_numbers(table),
        "columns": [(name, _meaning(name, table)) for name in table.shown.columns],
        "rows": [
            [(text, sort_key(text), (row, column) in table.bold) for column, text in enumerate(cells)]
            for row, cells in enumerate(table.shown.to_numpy().tolist())
        ],
        "chart": None,
    }


def without_numbers(table: Table) -> Table:
    """Return a table without what only its files have."""
    return replace(table, numbers={}, curves=None)


def _heading(table: Table) -> str:
    text = (table.curves.metric if table.curves else "") or HEADINGS.get(table.name, table.name.replace("_", " "))
    return text.capitalize() if text.islower() else text


def _meaning(column: str, table: Table) -> str:
    return table.reading.get(column) or table.reading.get(column.partition(" (")[0], "")


def sort_key(text: str) -> float | None:
    """Return the number that a cell starts with, by which its column is sorted; None: no number."""
    found = NUMBER.match(text)
    return float(found[0].replace(",", "").replace("\N{MINUS SIGN}", "-")) if found else None


def _chart(suite: SuiteEntry, table: Table) -> dict[str, Any] | None:
    """Return the curves of a metric, and their differences to the reference, for the script that draws them."""
    if table.curves is None:
        return None
    metric, differences = table.curves.metric, table.curves.differences
    numbers = table.numbers[""][table.numbers[""]["method"].isin(suite.methods)]  # without that of all images
    return {
        "metric": metric,
        "title": f"{metric} (%) by number of labelled images, {suite.title}",
        "reference": reference_of(suite),
        "pool": suite.pool,
        "budgets": sorted({int(labelled) for labelled in numbers["labelled"]}),
        "curves": [
            {
                "method": method,
                "points": _points(numbers, method, ("std",), _spread_text),
                "differences": _points(differences, method, ("low", "high"), _interval_text),
            }
            for method in suite.methods
        ],
        "full": [
            {"name": row["method"], "mean": row["mean"], "text": cell(row["mean"], row["std"])}
            for row in table.curves.full.to_dict("records")
        ],
    }


def _spread_text(mean: float, std: float, n: int) -> str:
    return cell(mean, std)


def _interval_text(mean: float, low: float, high: float, n: int) -> str:
    return signed(mean) + (f" [{signed(low)}, {signed(high)}]" if isfinite(low) else "")


def _points(
    table: pd.DataFrame | None, method: str, columns: tuple[str, ...], text: Callable[..., str]
) -> list[dict[str, float | str | None]]:
    """Return the rows of a method, with null for what is unknown, such as the spread of one seed, and with its text."""
    if table is None:
        return []
    return [
        {
            "labelled": int(row["labelled"]),
            "mean": row["mean"],
            **{column: row[column] if isfinite(row[column]) else None for column in columns},
            "text": text(row["mean"], *(row[column] for column in columns), row["n"]),
        }
        for row in table[table["method"] == method].sort_values("labelled").to_dict("records")
    ]


def first_selections(suite: SuiteEntry, records: Sequence[CycleRecord], store: RunStore) -> list[CycleRecord]:
    """Return the record of cycle 0 of one trial of each method that has selected images there.

    It is read from its file, because a record from an index holds only the number of its images.
    """
    found: dict[str, CycleRecord] = {}
    for r in sorted((r for r in records if r.cycle == 0 and r.selected), key=lambda r: (r.seed, r.trial)):
        if r.method not in found and (whole := store.trial(r.trial).record(0)):
            found[r.method] = replace(whole, method=r.method)
    return [found[method] for method in suite.methods if method in found]


def _selected(first: Sequence[CycleRecord]) -> list[dict[str, Any]]:
    """Return the first images of each selection: their training-set indices, with their files if there are any."""
    return [
        {
            "method": r.method,
            "seed": r.seed,
            "images": [
                readable(f"{file} ({index})" if file else str(index))
                for index, file in zip_longest(r.selected[:SELECTED_SHOWN], r.selected_files[:SELECTED_SHOWN])
            ],
            "more": max(0, len(r.selected) - SELECTED_SHOWN),
        }
        for r in first
        if r.selected
    ]

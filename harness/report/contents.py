"""The tables of a suite: which there are, in which order, and what their captions say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.report import published_table, verdict
from harness.report.captions import (
    COST_COLUMNS,
    CURVE,
    PHASE_COLUMNS,
    SPREAD,
    TEST_COLUMNS,
    is_finished,
)
from harness.report.comparisons import Comparison, compared_metric, reference_of, significantly_best
from harness.report.curves import Curves, differences_by_labelled, full_data_table, with_full_data
from harness.report.decomposition import decomposition_caption, decomposition_table, wide_decomposition
from harness.report.formats import file_name, wide, wide_comparisons, wide_cost, wide_metric
from harness.report.published_costs import CAPTION, published_costs, wide_published_costs
from harness.report.quality import SHOWN, class_quality_table, quality_table, worst_and_best
from harness.report.reaching import reaching_caption, reaching_table, wide_reaching
from harness.report.selection import selection_caption, selection_table
from harness.report.speed_up import speed_up_table
from harness.report.tables import (
    aubc_table,
    class_table,
    comparison_table,
    cost_table,
    difference_table,
    frame,
    metric_keys,
    metric_name,
    metric_table,
    percent,
    seconds_by_cycle_table,
    seconds_table,
)
from harness.report.transfer import Transfer, transfer_table, wide_transfer
from harness.report.wins import win_table
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS, MORE_METRICS, CycleRecord

if TYPE_CHECKING:
    import pandas as pd

BOLD = "the highest AUBC, which is significantly above the reference's; no test compares it with the next"
QUALITY_COLUMNS = {
    "balanced accuracy": "mean over classes of the share of a class's labels that are predicted right",
    "F1": "mean over classes of the harmonic mean of precision and recall",
    "ECE": "expected calibration error, of 15 bins of confidence",
    "NLL": "mean negative log-likelihood of the test labels",
}


@dataclass(frozen=True)
class Table:
    """A table of the report: its caption, numbers and text."""

    name: str
    """The part of the file names after the suite's name."""
    caption: str
    """At most two lines. What columns mean is in ``reading``; where numbers come from, the report says once."""
    numbers: dict[str, pd.DataFrame]
    """File name suffix -> long table; '' for the table itself."""
    shown: pd.DataFrame
    """The wide table, with text in all cells."""
    printed: bool = True
    """Whether the table is printed, or only written to a file."""
    curves: Curves | None = None
    """The learning curves that are drawn with the table."""
    bold: tuple[tuple[int, int], ...] = ()
    """(row, column) of the cells that are bold: the best of a column, and only if a claim says so."""
    reading: Mapping[str, str] = field(default_factory=dict)
    """Term -> its meaning, for what does not explain itself; the report says each once."""


def _of(terms: Mapping[str, str], shown: pd.DataFrame) -> dict[str, str]:
    """Return the terms that are columns of a table, perhaps with a unit."""
    columns = {*shown.columns, *(column.partition(" (")[0] for column in shown.columns)}
    return {term: text for term, text in terms.items() if term in columns}


def explained(
    name: str, heading: str, text: str, numbers: dict[str, pd.DataFrame], shown: pd.DataFrame, printed: bool = True
) -> Table:
    """Return a table whose caption is the first sentence of a text; the others are in its reading, as ``heading``."""
    caption, _, rest = text.partition(". ")
    terms = SPREAD if "n" in shown.columns else {}
    reading = terms | ({heading: rest.rstrip(".")} if rest else {})
    return Table(name, f"{caption.rstrip('.')}.", numbers, shown, printed, reading=reading)


def suite_tables(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    compared: Sequence[Comparison] = (),
    full: Sequence[CycleRecord] = (),
    beside: Sequence[verdict.Beside] = (),
    gains: Transfer | None = None,
) -> list[Table]:
    """Return the tables of a suite that has records.

    ``compared``: its comparisons; ``full``: see ``full_records``; ``beside``: published values; ``gains``: those with
    another network, if the suite replays a run.
    """
    last = len(suite.labelled) - 1  # a cycle that selected later, or before the run was shortened, is still the last
    table = frame([replace(r, selected=[]) if r.selected and r.cycle == last else r for r in records], suite.methods)
    return [
        *_metrics(suite, records, table, compared, full),
        *_comparisons(suite, records, compared),
        *(
            [
                explained(
                    "published",
                    "published values",
                    published_table.caption(beside),
                    {"": published_table.numbers(beside)},
                    published_table.wide(beside),
                )
            ]
            if beside
            else ()
        ),
        *_test_metrics(suite, records),
        *(
            [explained("transfer", "transfer", gains.caption(), {"": transfer_table(gains)}, wide_transfer(gains))]
            if gains
            else ()
        ),
        *_costs(suite, records, table),
    ]


def _metrics(
    suite: SuiteEntry,
    records: Sequence[CycleRecord],
    table: pd.DataFrame,
    compared: Sequence[Comparison],
    full: Sequence[CycleRecord],
) -> list[Table]:
    """Return the table of each metric by number of labelled images, with AUBC."""
    tables = []
    for key in metric_keys(records):
        numbers, areas = metric_table(table, key), aubc_table(table, key)
        if numbers.empty:
            continue
        caption = f"{percent(key)} on the test set by number of labelled images, and AUBC"
        if len(areas):
            caption += f" from {numbers['labelled'].min()} to {numbers['labelled'].max()} labelled images"
        differences = differences_by_labelled(table, key, suite.methods, reference_of(suite))
        everything = full_data_table(full, key, numbers)
        numbers = with_full_data(numbers, everything)
        long = {"": numbers, "_aubc": areas} | ({"_differences": differences} if len(differences) else {})
        shown, terms = wide_metric(numbers, areas), SPREAD | CURVE
        bold: tuple[tuple[int, int], ...] = ()
        means = dict(zip(areas["method"], areas["mean"], strict=True))
        if key == compared_metric(records) and (best := significantly_best(means, compared)):
            bold = (([*shown["method"]].index(best), [*shown.columns].index("AUBC")),)
            terms = terms | {"bold": BOLD}
        curves = Curves(metric_name(key), differences, everything)
        tables.append(Table(file_name(key), f"{caption}.", long, shown, curves=curves, bold=bold, reading=terms))
    return tables


def _comparisons(suite: SuiteEntry, records: Sequence[CycleRecord], compared: Sequence[Comparison]) -> list[Table]:
    """Return the tables that compare methods by AUBC."""
    tables = []
    if compared:
        caption = f"Differences of AUBC to {compared[0].reference} by seed, in points of {compared[0].metric}."
        long = {"": comparison_table(compared), "_by_seed": difference_table(compared)}
        terms = SPREAD | CURVE | TEST_COLUMNS
        tables.append(Table("comparisons", caption, long, wide_comparisons(compared), reading=terms))
        if found := speed_up_table(suite, records):
            tables.append(explained("speed_up", "speed-up", *found, printed=False))
        if found := win_table(suite, records):
            tables.append(explained("wins", "win matrix", *found, printed=False))
    key = next((key for key in METRICS if key in metric_keys(records)), "")
    if len(parts := decomposition_table(suite, records, key)):
        shown, text = wide_decomposition(suite, parts), decomposition_caption(suite)
        tables.append(explained("decomposition", "parts of the gain", text, {"": parts}, shown))
    return tables


def _test_metrics(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[Table]:
    """Return the tables of classes, of other test metrics, and of what methods select."""
    tables = []
    if len(by_class := class_table(records, suite.methods)):
        caption = (
            f"IoU (%) of each class at {by_class['labelled'][0]} labelled images, the highest number that all trials "
            "in this table have reached."
        )
        shown, long = wide(by_class, ["method"], "quantity"), {"": by_class.rename(columns={"quantity": "class"})}
        tables.append(Table("class_iou", caption, long, shown, reading=SPREAD))
    if len(quality := quality_table(records, suite.methods)):
        caption = (
            f"Other test metrics at {quality['labelled'][0]} labelled images, the highest number that all trials have "
            "reached."
        )
        classes = class_quality_table(records, suite.methods)
        long = {"": quality, "_by_class": classes}
        shown, terms = wide(quality, ["method"], "quantity"), SPREAD | QUALITY_COLUMNS
        tables.append(Table("quality", caption, long, shown, printed=False, reading=terms))
        if len(classes) and not len(by_class):
            some, number = worst_and_best(classes)
            of = (
                "each class"
                if number <= SHOWN
                else f"the {SHOWN // 2} worst and the {SHOWN // 2} best of {number} classes"
            )
            caption = f"Accuracy (%) of {of} at {quality['labelled'][0]} labelled images"
            caption += "." if number <= SHOWN else ", by the mean over methods."
            shown, long = wide(some, ["method"], "quantity"), {"": some.rename(columns={"quantity": "class"})}
            tables.append(Table("class_accuracy", caption, long, shown, reading=SPREAD))
    if len(selection := selection_table(records, suite.methods)):
        shown = wide(selection, ["method"], "labelled")
        tables.append(
            explained("selection", "selection", selection_caption(shown), {"": selection}, shown, printed=False)
        )
    return tables


def _costs(suite: SuiteEntry, records: Sequence[CycleRecord], table: pd.DataFrame) -> list[Table]:
    """Return the tables of seconds, of cost, and of what it takes to reach the reference."""
    cycles = "all cycles except the last, which selects nothing" if table["selected"].any() else "all cycles"
    if not is_finished(suite, records):
        cycles += " (unfinished trials: the cycles so far)"
    seconds, by_cycle, cost = seconds_table(table), seconds_by_cycle_table(table), cost_table(table)
    by_phase, costs = wide(seconds, ["method"], "quantity"), wide_cost(cost)
    tables = [
        Table(
            "seconds",
            f"Wall-clock seconds per cycle by phase: mean of {cycles}.",
            {"": seconds},
            by_phase,
            reading=SPREAD | _of(PHASE_COLUMNS, by_phase),
        ),
        Table(
            "seconds_by_cycle",
            "Wall-clock seconds of every cycle by phase.",
            {"": by_cycle},
            wide(by_cycle, ["method", "labelled"], "quantity"),
            printed=False,
            reading=SPREAD | {"labelled": "number of labelled images"} | _of(PHASE_COLUMNS, by_phase),
        ),
        Table("cost", "Cost of the first cycle.", {"": cost}, costs, reading=SPREAD | _of(COST_COLUMNS, costs)),
    ]
    if len(known := published_costs(suite, records, cost)):
        shown = wide_published_costs(known)
        tables.append(explained("published_costs", "published costs", CAPTION, {"": known}, shown))
    for key in (key for key in metric_keys(records) if key not in MORE_METRICS):
        if len(reached := reaching_table(table, key, reference_of(suite))):
            caption = reaching_caption(reached, key, reference_of(suite))
            name, shown = f"{file_name(key)}_reached", wide_reaching(reached)
            tables.append(explained(name, "seconds", caption, {"": reached}, shown))
    return tables

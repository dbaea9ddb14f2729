"""Numbers -> text: plain, Markdown and LaTeX tables."""

from __future__ import annotations

import re
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from harness.report.tables import EXTRA

WIDTH = 120  # columns of the printed text


DECIMALS = {"EP": 0, "total (min)": 3}  # all others have 2


NOTHING = "\N{EN DASH}"


def cell(mean: float, std: float, decimals: int = 2) -> str:
    """Return '81.20±0.31', without the ± if std is NaN (one seed)."""
    spread = "" if std != std else f"±{std:,.{decimals}f}"
    return f"{mean:,.{decimals}f}{spread}"


def wide(numbers: pd.DataFrame, rows: list[str], columns: str) -> pd.DataFrame:
    """Return a long table with a column of text for each value of ``columns``, and the rows' n (the most seeds).

    A cell with fewer seeds than its row says so. Where ``rows`` is the method alone, every method gets a row.
    """
    most = numbers.groupby(rows, observed=True)["n"].transform("max")
    names = numbers[columns].tolist()
    text = [
        cell(mean, std, DECIMALS.get(name, 2)) + (f" (n={n})" if n < row else "")
        for name, mean, std, n, row in zip(names, numbers["mean"], numbers["std"], numbers["n"], most, strict=True)
    ]
    shown = numbers.assign(text=text).pivot(index=rows, columns=columns, values="text")
    if columns == "quantity":
        shown = shown.reindex(columns=numbers[columns].cat.categories)
    shown.columns = shown.columns.astype(str)
    shown["n"] = numbers.groupby(rows, observed=True)["n"].max().astype(str)
    if rows == ["method"]:
        shown = shown.reindex(numbers["method"].cat.categories.rename("method")).fillna({"n": "0"})
    return shown.fillna(NOTHING).reset_index().astype(str)


def _wide_figure(numbers: pd.DataFrame, areas: pd.DataFrame) -> pd.DataFrame:
    shown = wide(numbers, ["method"], "labelled")
    by_method = areas.set_index("method")
    column = []
    for method, most in zip(shown["method"], shown["n"], strict=True):
        if method in by_method.index:
            mean, std, n = by_method.loc[method, ["mean", "std", "n"]]
            column.append(cell(mean, std) + (f" (n={n:.0f})" if n < int(most) else ""))
        else:
            column.append(NOTHING)
    return shown.assign(AUBC=column)


def _wide_cost(numbers: pd.DataFrame) -> pd.DataFrame:
    # Parameters are counted, not measured: a standard deviation of zero says nothing, and none at all are a dash.
    counted = numbers["quantity"].isin(EXTRA)
    numbers = numbers.assign(std=numbers["std"].where(~counted | (numbers["std"] > 0)))
    return wide(numbers[~counted | (numbers["mean"] != 0)], ["method"], "quantity")


def _formatted(shown: pd.DataFrame, form: str) -> str:
    from tabulate import tabulate

    sides = ["left" if c == "method" else "right" for c in shown.columns]
    return tabulate(
        shown.to_numpy().tolist(), list(shown.columns), tablefmt=form, disable_numparse=True, colalign=sides
    )


def plain(shown: pd.DataFrame, width: int = WIDTH) -> str:
    """Return the table as text; one too wide for ``width`` goes on below, with method and labelled repeated."""
    blocks: list[list[str]] = [[]]
    keys = [c for c in shown.columns if c in ("method", "labelled")]
    for column in shown.columns.drop(keys):
        line = _formatted(shown[[*keys, *blocks[-1], column]], "simple").splitlines()[1]
        if blocks[-1] and len(line) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_formatted(shown[[*keys, *block]], "simple") for block in blocks)


def latex(shown: pd.DataFrame, caption: str, label: str) -> str:
    """Return a LaTeX table, which needs the package booktabs."""
    from tabulate import LATEX_ESCAPE_RULES

    tabular = _formatted(shown, "latex_booktabs")  # which escapes the cells by the same rules
    escaped = "".join(LATEX_ESCAPE_RULES.get(c, c) for c in caption)
    text = f"\\begin{{table}}\n\\centering\n\\caption{{{escaped}}}\n\\label{{tab:{label}}}\n{tabular}\n\\end{{table}}\n"
    return text.replace("±", r"$\pm$").replace(NOTHING, "--")


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, break_on_hyphens=False)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)

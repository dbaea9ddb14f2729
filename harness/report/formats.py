"""Formats tables of numbers as plain text, Markdown and LaTeX."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import count
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from harness.errors import no_formula
from harness.report import terminal
from harness.report.comparisons import Comparison, shown_p, signed
from harness.report.latex import latex as latex_table
from harness.report.tables import EXTRA

WIDTH = 120  # columns of the text files, and of the printed text if it goes to no terminal


DECIMALS = {"EP": 0, "total (min)": 3}  # quantity -> decimals; 2 for all others


SEEDS_SHOWN = 5  # in the table of comparisons
NOTHING = "\N{EN DASH}"  # in cells without a value


def cell(mean: float, std: float, decimals: int = 2, sign: str = "") -> str:
    """Return, for example, '81.20±0.31', or '81.20' if std is NaN, which means one seed; ``sign``: '+' to show it."""
    spread = "" if std != std else f"±{std:,.{decimals}f}"
    shown = f"{mean:{sign},.{decimals}f}"
    return (shown.replace("-", "\N{MINUS SIGN}") if sign else shown) + spread


def wide(numbers: pd.DataFrame, rows: list[str], columns: str, sign: str = "") -> pd.DataFrame:
    """Return a long table as a wide table of text: a column for each value of ``columns``, and n, the number of seeds.

    n is the highest number of seeds in the row; a cell with fewer has '(n=...)'. If ``rows`` is the method alone,
    methods without results get a row too. ``sign``: see ``cell``.
    """
    most = numbers.groupby(rows, observed=True)["n"].transform("max")
    names = numbers[columns].tolist()
    text = [
        cell(mean, std, DECIMALS.get(name, 2), sign) + (f" (n={n})" if n < row else "")
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


def wide_metric(numbers: pd.DataFrame, areas: pd.DataFrame) -> pd.DataFrame:
    """Return the wide table of a metric, with a column for each number of labelled images and the column AUBC."""
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


def wide_comparisons(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return the wide table of a suite's comparisons, with the differences by seed where they are few."""
    import pandas as pd

    seeds = sorted({seed for c in found for seed in c.differences})
    rows = []
    for c in found:
        needed = c.seeds_needed()
        by_seed = {
            f"seed {seed}": signed(c.differences[seed]) if seed in c.differences else NOTHING
            for seed in (seeds if len(seeds) <= SEEDS_SHOWN else ())
        }
        rows.append(
            {
                "method": f"{c.method} \N{MINUS SIGN} {c.reference}" + (" (primary)" if c.primary else ""),
                **by_seed,
                "mean": signed(c.mean) + ("" if len(c.values) < 2 else f"±{c.std:.2f}"),
                "p": shown_p(c.p),
                "p (Holm)": NOTHING if c.primary else shown_p(c.adjusted),
                "seeds needed": NOTHING if needed != needed else "none" if needed == inf else f"{needed:.0f}",
                "n": str(len(c.values)),
            }
        )
    return pd.DataFrame(rows)


def wide_cost(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the wide cost table."""
    # Parameters are counted, not measured: a standard deviation of 0 is not shown, and 0 parameters are a dash.
    parameters = numbers["quantity"].isin(EXTRA)
    numbers = numbers.assign(std=numbers["std"].where(~parameters | (numbers["std"] > 0)))
    return wide(numbers[~parameters | (numbers["mean"] != 0)], ["method"], "quantity")


def formatted(shown: pd.DataFrame, form: str, bold: Sequence[tuple[int, int]] = ()) -> str:
    """Return a wide table in one of tabulate's formats; ``bold``: (row, column) of cells that are bold in ESCAPES."""
    from tabulate import tabulate

    sides = ["left" if c == "method" else "right" for c in shown.columns]
    rows = [list(shown.columns), *shown.to_numpy().tolist()]
    if escape := ESCAPES.get(form):
        rows = [[escape(text) for text in row] for row in rows]
        for row, column in bold:
            rows[1 + row][column] = BOLD[form].format(rows[1 + row][column])
    return tabulate(rows[1:], rows[0], tablefmt=form, disable_numparse=True, colalign=sides)


def markdown(text: str) -> str:
    """Return plain text as Markdown that shows it: marks, HTML, cell borders and formulas are escaped."""
    escaped = re.sub(r"[\\`*\[\]<>|$~#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", escaped)


TEX = {c: f"\\{c}" for c in "&%$#_{}"}
TEX |= {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"}
TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", '"': r"\symbol{34}", "`": r"{}\symbol{96}"}
TEX |= {"±": r"$\pm$", NOTHING: "--", "\N{MINUS SIGN}": "$-$"}
"""Character -> how LaTeX writes it, in any encoding of fonts; other letters than ASCII are UTF-8, as LaTeX reads."""


def tex(text: str) -> str:
    """Return plain text as LaTeX that shows it. A cell that starts like an argument of the row's end before is none."""
    apart = re.sub(r"([-',])(?=\1)", "\\1\0", text)  # two of them are one letter
    escaped = "".join(TEX.get(c, c) for c in apart).replace("\0", "{}")
    return re.sub(r"^\s*(?=[\[*])", "{}", escaped)


ESCAPES = {"github": markdown, "latex_raw": tex}
BOLD = {"github": "**{}**", "latex_raw": r"\textbf{{{}}}"}


def csv(numbers: pd.DataFrame) -> str:
    """Return a long table as CSV; a text that a spreadsheet would take for a formula starts with an apostrophe."""
    shown = {}
    for column in (c for c in numbers.columns if numbers[c].dtype.kind not in "iufb"):
        safe = {text: no_formula(text) for text in numbers[column].unique() if isinstance(text, str)}
        if any(text != value for text, value in safe.items()):
            shown[column] = [safe.get(value, value) for value in numbers[column]]
    return numbers.assign(**shown).to_csv(index=False)


def as_text(shown: pd.DataFrame, width: int = WIDTH) -> str:
    """Return the table as text; columns beyond ``width`` continue below, with method and labelled repeated."""
    ordered, keys = _keys_first(shown)
    return terminal.table([*ordered.columns], ordered.to_numpy().tolist(), keys, width)


def latex(shown: pd.DataFrame, caption: str, label: str, bold: Sequence[tuple[int, int]] = ()) -> str:
    """Return a LaTeX table, which needs the packages array, booktabs and siunitx: see harness.report.latex.

    ``bold``: (row, column) of cells that are bold.
    """
    ordered, keys = _keys_first(shown)
    cells = [(row, [*ordered.columns].index(shown.columns[column])) for row, column in bold]
    return latex_table([*ordered.columns], ordered.to_numpy().tolist(), keys, caption, label, tex, cells)


def _keys_first(shown: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return a wide table with the columns that name its rows first, and their number."""
    keys = [c for c in shown.columns if c in ("method", "labelled")]
    return shown[[*keys, *shown.columns.drop(keys)]], len(keys)


def named(heading: str, path: str, width: int) -> str:
    """Return ``heading: path``, on two lines if it is wider than the terminal: a path is never cut."""
    line = f"{heading}: {path}"
    return line if terminal.columns(line) <= width else f"{wrapped(f'{heading}:', width)}\n{path}"


def wrapped(text: str, width: int = WIDTH) -> str:
    """Return text in lines of at most ``width`` columns; a longer word, such as a path, stays whole."""
    return terminal.wrapped(text, width)


def terminal_width() -> int:
    """Return the columns of the terminal, or WIDTH if there is none."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


LONGEST_NAME = 150  # bytes of a file's name, which gets an ending and, while it is written, a longer one


def file_name(text: str) -> str:
    """Return text as a file name: other characters than letters, digits, _ . - become underscores; it may be cut."""
    return re.sub(r"[^\w.-]+", "_", text).encode()[:LONGEST_NAME].decode(errors="ignore")


def own_file_name(text: str, used: set[str], endings: Iterable[str] = ("",)) -> str:
    """Return text as a file name that, with any of these endings, is not among ``used``, and add it there.

    Names that differ only in case count as one, because they are one file on some systems.
    """
    for number in count(1):
        name = file_name(text) + ("" if number == 1 else f"_{number}")
        files = {f"{name}{ending}".casefold() for ending in endings}
        if not files & used:
            used |= files
            return name
    raise AssertionError

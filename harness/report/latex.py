"""LaTeX tables that fit a column of two-column text, or the page: see ``latex``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

COLUMN, PAGE = 225.0, 460.0
"""Points: a column and the text of article's two-column pages, the narrowest in common use, less a little."""
GAP = 8.0  # points between two columns
NAME = 110.0  # points; a longer name continues in the next line of its cell
ROWS = 45  # rows on one page
NUMBER = re.compile(r"([+\u2212]?)([\d,]+)(?:\.(\d+))?(?:±([\d,]+)(?:\.(\d+))?)?( \(n=\d+\))?")
SIZE = r"\footnotesize"
SETUP = (
    r"\sisetup{separate-uncertainty=true,retain-explicit-plus=true,group-minimum-digits=5,"
    r"table-number-alignment=right,detect-weight=true}"
)


class _Column(NamedTuple):
    """A column of a table: what LaTeX gets of it."""

    kind: str
    cells: list[str]
    """The header first."""
    width: float
    """An estimate, in points."""


def latex(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: int,
    caption: str,
    label: str,
    tex: Callable[[str], str],
    bold: Sequence[tuple[int, int]] = (),
) -> str:
    """Return a table that needs the packages array, booktabs and siunitx; ``tex`` escapes a text.

    It is a ``table`` if it fits a column of two-column text, else a ``table*``, which takes the page's width there.
    Columns beyond that continue below, with the first ``keys`` columns again; rows beyond a page in another table.
    Numbers are aligned at the decimal point, and a standard deviation is the uncertainty of its mean. ``bold``: (row,
    column) of cells that are bold.
    """
    columns = [_column([name, *(row[at] for row in rows)], at < keys, tex) for at, name in enumerate(header)]
    for row, at in bold:
        cells = columns[at].cells
        cells[1 + row] = (
            rf"\bfseries {cells[1 + row]}" if columns[at].kind[0] == "S" else rf"\textbf{{{cells[1 + row]}}}"
        )
    first = sum(column.width + GAP for column in columns[:keys])
    fits = first + sum(column.width + GAP for column in columns[keys:]) - GAP <= COLUMN
    environment = "table" if fits else "table*"
    blocks: list[list[_Column]] = [[]]
    for column in columns[keys:]:
        if blocks[-1] and first + sum(c.width + GAP for c in (*blocks[-1], column)) - GAP > PAGE:
            blocks.append([])
        blocks[-1].append(column)
    starts = range(0, max(len(rows), 1), max(ROWS // len(blocks), 1))
    parts = []
    for start in starts:
        numbers = range(start + 1, min(start + starts.step, len(rows)) + 1)
        text = tex(caption) if start == 0 else rf"Table~\ref{{tab:{label}}}, continued"
        lines = [
            rf"\begin{{{environment}}}",
            r"\centering",
            r"\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{text}}}",
        ]
        lines += [rf"\label{{tab:{label}}}"] * (start == 0)
        lines += [SIZE, rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}", SETUP]
        tabulars = ["\n".join(_tabular([*columns[:keys], *block], numbers)) for block in blocks]
        lines.append("\n\n\\medskip\n".join(tabulars))
        parts.append("\n".join([*lines, rf"\end{{{environment}}}", ""]))
    return "\n".join(parts)


def _tabular(columns: Sequence[_Column], numbers: Sequence[int]) -> list[str]:
    lines = [rf"\begin{{tabular}}{{@{{}}{''.join(column.kind for column in columns)}@{{}}}}", r"\toprule"]
    lines += [_row(columns, 0), r"\midrule", *(_row(columns, number) for number in numbers), r"\bottomrule"]
    return [*lines, r"\end{tabular}"]


def _row(columns: Sequence[_Column], number: int) -> str:
    return " & ".join(column.cells[number] for column in columns) + r" \\"


def _column(texts: Sequence[str], key: bool, tex: Callable[[str], str]) -> _Column:
    header, *cells = texts
    width = max(map(_width, texts))
    found = [NUMBER.fullmatch(cell) for cell in cells]
    if (
        not key
        and any(found)
        and all(match or cell in ("\N{EN DASH}", "") for match, cell in zip(found, cells, strict=True))
    ):
        numbers = [match for match in found if match]
        return _Column(_format(numbers), [f"{{{tex(header)}}}", *map(_number, found)], max(width, _width_of(numbers)))
    kind = "l" if key else "r"
    if key and width > NAME:
        kind, width = rf">{{\raggedright\arraybackslash}}p{{{NAME:g}pt}}", NAME
    return _Column(kind, [tex(text) for text in texts], width)


def _number(match: re.Match[str] | None) -> str:
    """Return a cell of siunitx."""
    if match is None:
        return "{--}"
    sign, whole, decimals, spread, of_spread, seeds = match.groups()
    text = f"{sign}{whole}{'.' + decimals if decimals else ''}".replace(",", "").replace("\N{MINUS SIGN}", "-")
    if spread:
        text += f" +- {spread}{'.' + of_spread if of_spread else ''}".replace(",", "")
    return text + (f" {{\\,{seeds.strip()}}}" if seeds else "")


def _parts(numbers: Sequence[re.Match[str]]) -> tuple[str, int, int, int, bool]:
    """Return what a column has place for: (sign, digits before and after the point, of the uncertainty, seeds)."""
    whole, decimals = max(_digits(m[2]) for m in numbers), max(len(m[3] or "") for m in numbers)
    spread = max((_digits(m[4]) + len(m[5] or "") for m in numbers if m[4]), default=0)
    return "-" if any(m[1] for m in numbers) else "", whole, decimals, spread, any(m[6] for m in numbers)


def _digits(text: str) -> int:
    return len(text.replace(",", ""))


def _format(numbers: Sequence[re.Match[str]]) -> str:
    sign, whole, decimals, spread, seeds = _parts(numbers)
    after = r",table-space-text-post={\,(n=00)}" if seeds else ""
    return f"S[table-format={sign}{whole}.{decimals}{f'({spread})' if spread else ''}{after}]"


def _width_of(numbers: Sequence[re.Match[str]]) -> float:
    """Return the width of a column of siunitx: it has place for the widest of each part."""
    sign, whole, decimals, spread, seeds = _parts(numbers)
    digits = whole + (whole - 1) // 3 * 0.4 + decimals + spread
    points = bool(decimals) + bool(spread and decimals)
    return 4.3 * digits + 2.4 * points + (6.6 if sign else 0) + (10.5 if spread else 0) + (24 if seeds else 0)


def _width(text: str) -> float:
    """Return about how wide a text is at SIZE, rather too much, in points."""
    width = 0.0
    for kind, letters in groupby(text, key=_kind):
        width += kind * sum(1 for _ in letters)
    return width


def _kind(letter: str) -> float:
    if letter in " .,:;'|!()[]ijlt":
        return 3.4
    if letter in "±\N{MINUS SIGN}+=<>%@&WMmw" or letter.isupper():
        return 7.2
    return 4.6 if letter.isascii() else 8.5

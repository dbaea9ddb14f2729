"""Tables and prose for terminals, where a letter may take two columns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

LONGEST_CELL = 40  # columns of a cell; a longer text, such as a method's name, is continued in its next line


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int) -> str:
    """Return text in lines of at most ``width`` columns; a longer word, such as a path, stays whole."""
    if columns(text) == len(text):
        return fill(text, width, break_on_hyphens=False, break_long_words=False)
    return "\n".join(_lines(text, width, whole=True))


def _lines(text: str, width: int, whole: bool = False) -> list[str]:
    """Return text in lines of at most ``width`` columns; ``whole``: but keep longer words."""
    from rich.cells import chop_cells

    lines = [""]
    for word in text.split():
        parts = [word] if whole or columns(word) <= width else chop_cells(word, width)
        if lines[-1] and columns(f"{lines[-1]} {parts[0]}") <= width:
            parts[0] = f"{lines.pop()} {parts[0]}"
        elif not lines[-1]:
            lines.pop()
        lines += parts
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int) -> str:
    """Return a table as text, its texts left and its numbers right; each of the first ``keys`` columns repeats.

    Columns beyond ``width`` continue below, with the keys again. A key that is longer than LONGEST_CELL, or than a
    third of the width, is continued in the next line of its cell.
    """
    sizes = [max(columns(row[at]) for row in (header, *rows)) for at in range(len(header))]
    for at in range(keys):
        sizes[at] = min(sizes[at], LONGEST_CELL, width // 3)
    blocks: list[list[int]] = [[]]
    for at in range(keys, len(header)):
        if blocks[-1] and sum(sizes[i] + 2 for i in (*range(keys), *blocks[-1], at)) - 2 > width:
            blocks.append([])
        blocks[-1].append(at)
    return "\n\n".join(_block(header, rows, [*range(keys), *block], sizes) for block in blocks)


def _block(header: Sequence[str], rows: Sequence[Sequence[str]], shown: Sequence[int], sizes: Sequence[int]) -> str:
    lines = []
    for row in (header, ["-" * size for size in sizes], *rows):
        cells = [[row[at]] if columns(row[at]) <= sizes[at] else _lines(row[at], sizes[at]) for at in shown]
        for number in range(max(map(len, cells))):
            texts = [cell[number] if number < len(cell) else "" for cell in cells]
            spaces = [" " * (sizes[at] - columns(text)) for at, text in zip(shown, texts, strict=True)]
            parts = [f"{t}{s}" if n == 0 else f"{s}{t}" for n, (t, s) in enumerate(zip(texts, spaces, strict=True))]
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)

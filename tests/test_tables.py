"""The form of tables: text for terminals of any width, with letters of any width, and LaTeX for one and two columns."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.report.formats import NOTHING, as_text, latex, wrapped
from harness.report.latex import NUMBER

NAMES = [
    "Random",
    "LC",
    "Entropy",
    "Margin",
    "Core-set",
    "BADGE",
    "VAAL",
    "SRAAL",
    "QBC",
    "MC-Dropout",
    "LL4AL",
    "Ran+",
]
LONG = "A method with a very long name, of sixty letters and no more"
WIDE = ["主动学习方法 一", "\N{DOG FACE} dog", LONG]


def wide(names: list[str], columns: list[str], seed: int = 0) -> pd.DataFrame:
    """Make a wide table; one cell lacks a seed, one has no value."""
    draw = random.Random(seed)
    rows = [
        {"method": name, **{c: f"{draw.uniform(0, 100):.2f}±{draw.uniform(0, 20):.2f}" for c in columns}, "n": "3"}
        for name in names
    ]
    rows[0][columns[0]] += " (n=2)"
    rows[-1][columns[-1]] = NOTHING
    return pd.DataFrame(rows)


def all_tables() -> dict[str, pd.DataFrame]:
    """Return tables of all shapes of a report, with 13 methods and names of any kind."""
    names = [*NAMES, "DAST-AL"]
    times = ["train", "auxiliary", "score", "select", "total", "evaluate", "checkpoint"]
    by_cycle = pd.concat([wide(names, times, n).assign(labelled=str(1000 * n)) for n in range(1, 6)])
    signs = [
        {
            "method": f"{n} \N{MINUS SIGN} Random",
            "seed 0": "\N{MINUS SIGN}0.56",
            "mean": "+11.46±2.01",
            "p": p,
            "n": "3",
        }
        for n, p in zip(names, ["0.5", "1e-05", "1", NOTHING] * 4, strict=False)
    ]
    return {
        "few": wide(names, ["40", "80"]),
        "many": wide([*names, *WIDE[2:]], [str(1000 * n) for n in range(1, 21)]),
        "classes": wide(names, ["road", "building", "traffic light", "traffic sign", "vegetation", "a_b & 50%"] * 1),
        "cost": wide(names, ["TT (s)", "ST (s)"]).assign(EP=["257,014", NOTHING] * 6 + ["1,257,014"]),
        "by_cycle": by_cycle,
        "comparisons": pd.DataFrame(signs),
        "odd": pd.DataFrame([{"method": name, "accuracy": "81.20", "n": "1"} for name in ("[x] *", "a_b & 50%", LONG)]),
    }


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", [*all_tables()])
def test_a_table_fits_the_terminal_and_says_everything(name: str, width: int) -> None:
    shown = all_tables()[name]
    text = as_text(shown, width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    blocks = text.split("\n\n")
    headers = [re.split(r"  +", block.splitlines()[0].strip()) for block in blocks]
    keys = [c for c in ("method", "labelled") if c in shown.columns]
    assert all(header[: len(keys)] == keys for header in headers)
    assert [c for header in headers for c in header[len(keys) :]] == [c for c in shown.columns if c not in keys]
    assert all(text.count(cell) >= 1 for column in shown.columns.drop("method") for cell in shown[column])
    if len(blocks) > 1:  # no block could take the next one's first column
        ends = [max(map(cell_len, block.splitlines())) for block in blocks]
        assert min(ends[:-1]) > width - 24


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.text("ab 主动\N{DOG FACE}e\u0301-", min_size=1, max_size=70), min_size=1, max_size=3),
    width=st.integers(80, 200),
)
def test_columns_are_aligned_whatever_the_letters(names: list[str], width: int) -> None:
    text = as_text(pd.DataFrame([{"method": name, "x": "81.20±0.31", "n": "3"} for name in names]), width)
    header, rule, *rows = text.splitlines()
    full = [line for line in rows if line.endswith("  3")]
    assert len(full) == len(names)
    assert {cell_len(line) for line in (rule, *full)} == {cell_len(header)}
    assert cell_len(rule) <= width
    letters = "".join(line.removesuffix("  81.20±0.31  3") for line in rows)
    assert re.sub(r"\s", "", letters) == re.sub(r"\s", "", "".join(names)), "no letter of a name is lost"


def test_a_long_name_is_continued_in_its_cell() -> None:
    text = as_text(pd.DataFrame([{"method": LONG, "x": "81.20±0.31", "n": "3"}]), 120)
    assert text.splitlines()[2:] == [
        "A method with a very long name, of sixty  81.20±0.31  3",
        "letters and no more",
    ]


@given(st.lists(st.text("ab 主动\N{DOG FACE}", max_size=12), max_size=20), st.integers(20, 60))
def test_prose_of_wide_letters_is_wrapped_by_its_columns(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = wrapped(text, width).splitlines()
    assert " ".join(lines).split() == text.split()
    assert all(cell_len(line) <= width or " " not in line for line in lines)


def test_numbers_are_for_siunitx() -> None:
    rows = [
        {"method": "A", "x": "81.20±0.31 (n=2)", "d": "\N{MINUS SIGN}0.56", "p": "0.5", "EP": "257,014", "n": "3"},
        {"method": "B", "x": "8.25±10.00", "d": "+1.00", "p": "1e-05", "EP": NOTHING, "n": "3"},
    ]
    text = latex(pd.DataFrame(rows), "caption", "t")
    assert (
        r"{@{}lS[table-format=2.2(4),table-space-text-post={\,(n=00)}]S[table-format=-1.2]rS[table-format=6.0]" in text
    )
    assert r"A & 81.20 +- 0.31 {\,(n=2)} & -0.56 & 0.5 & 257014 & 3 \\" in text
    assert r"B & 8.25 +- 10.00 & +1.00 & 1e-05 & {--} & 3 \\" in text
    assert r"method & {x} & {d} & p & {EP} & {n} \\" in text
    assert NUMBER.fullmatch("1e-05") is None


def test_a_table_takes_one_column_of_text_where_it_fits() -> None:
    tables = all_tables()
    for name, starred in (("few", False), ("odd", False), ("many", True), ("by_cycle", True)):
        text = latex(tables[name], "caption", name)
        assert (r"\begin{table*}" in text) == starred == (r"\end{table*}" in text), name
        assert (r"\begin{table}" in text) != starred
    parts = latex(tables["by_cycle"], "caption", "t")
    assert parts.count(r"\begin{table*}") > 1, "65 rows are more than a page"
    assert parts.count(r"Table~\ref{tab:t}, continued") == parts.count(r"\begin{table*}") - 1
    assert parts.count("DAST-AL &") == 5 * parts.count(r"\begin{tabular}") / parts.count(r"\begin{table*}")
    many = latex(tables["many"], "caption", "t")
    assert all(many.count(f"{{{1000 * n}}}") == many.count("{1000}") for n in range(1, 21)), "no column is lost"


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("kpsewhich") is None
    or not subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).stdout,
    reason="needs pdflatex with siunitx: the Debian packages texlive-latex-recommended and texlive-science",
)
def test_no_table_is_too_wide_for_two_columns(tmp_path: Path) -> None:
    body = "\n".join(latex(shown, f"Table {name}.", name) for name, shown in all_tables().items())
    (tmp_path / "t.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{array,booktabs,siunitx}\\begin{document}\n"
        f"{body}\\end{{document}}\n"
    )
    for _ in range(2):
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1500:]
    log = (tmp_path / "t.log").read_text(errors="replace")
    assert not re.findall("Overfull|too large|undefined", log)

"""The page of errata, computed a second time: integers instead of fractions, and bit masks instead of combinations."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "errata.md").read_text()


def part(name: str) -> list[list[str]]:
    """Return the rows of a generated table of the page."""
    found = re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def values() -> list[dict[str, str]]:
    with (ROOT / "published" / "values.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def hundredths(text: str) -> int:
    return round(100 * float(text))


def search() -> tuple[
    dict[str, dict[int, int]], dict[str, list[tuple[int, list[int]]]], dict[str, dict[int, list[int]]]
]:
    """Return (printed cells, sets of trials with their number of agreeing cells, best first, trials), by method."""
    printed: dict[str, dict[int, int]] = defaultdict(dict)
    trials: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in values():
        if row["network"] == "resnet18_cifar_projection" and row["metric"] == "accuracy":
            if row["place"] == "Table 1":
                printed[row["method"]][int(row["labelled"])] = hundredths(row["value"])
            else:
                trials[row["method"]][int(row["trial"])].append(hundredths(row["value"]))
    sets = {}
    for method, cells in printed.items():
        names = sorted(trials[method])
        found = []
        for mask in range(1, 2 ** len(names)):
            some = [name for bit, name in enumerate(names) if mask >> bit & 1]
            sums = [sum(trials[method][name][at] for name in some) for at in range(len(cells))]
            close = sum(abs(s - len(some) * cells[at]) <= len(some) for s, at in zip(sums, sorted(cells), strict=True))
            found.append((close, some))
        sets[method] = sorted(found, key=lambda each: (-each[0], each[1]))
    return printed, sets, trials


def test_each_row_is_the_mean_of_the_trials_that_the_page_names() -> None:
    printed, sets, trials = search()
    rows = {row[0]: row for row in part("errata_rows")}
    assert [*rows] == ["Ran", "Maxp", "Ran+", "Maxp+", "DAST-AL"] == [*printed]
    for method, (_, stated, logged, mean_of, agree, following) in rows.items():
        (best, some), (second, _), *_ = sets[method]
        assert best > second, "one set is the best"
        numbers = ", ".join(map(str, some))
        assert mean_of in (f"{len(some)} ({numbers})", f"{len(some)} ({some[0]}-{some[-1]})")
        assert (agree, following, stated) == (f"{best} of 7", str(second), "3")
        assert logged.split()[0] == str(len(trials[method]))
        assert len(some) != 3, "the page says that no row is a mean of three trials"
    left = {method for method in rows if len(sets[method][0][1]) < len(trials[method])}
    assert left == {"Ran", "Maxp", "DAST-AL"}, "the page says so"


def test_each_cell_that_disagrees_is_on_the_page() -> None:
    printed, sets, trials = search()
    expected = []
    for method, cells in printed.items():
        _, some = sets[method][0]
        for at, labelled in enumerate(sorted(cells)):
            total = sum(trials[method][name][at] for name in some)
            if abs(total - len(some) * cells[labelled]) > len(some):
                logs = total / len(some) / 100
                same = [other for other in printed if other != method and printed[other][labelled] == cells[labelled]]
                expected.append((method, labelled, cells[labelled] / 100, logs, ", ".join(same)))
    found = part("errata_cells")
    assert len(found) == len(expected) == 7
    for (method, labelled, value, logs, difference, same), wanted in zip(found, expected, strict=True):
        assert (method, int(labelled.split()[0]), float(value), same) == (*wanted[:3], wanted[4])
        assert abs(float(logs) - wanted[3]) <= 0.00051
        assert abs(float(difference.replace("\N{MINUS SIGN}", "-")) - (wanted[2] - wanted[3])) <= 0.00051


def test_the_times_of_table_4() -> None:
    rows = {row[0]: row[1:] for row in part("errata_seconds")}
    assert rows["DAST-AL"][:3] == ["128.3", "7.59", "2.26"] and rows["DAST-AL, TT of the log"][0] == "138.3"
    for training, sampling, _, total in rows.values():
        assert f"{(float(training) + float(sampling)) / 60:.2f}" == total
    apart = {name for name, row in rows.items() if row[2] and abs(float(row[2]) - float(row[3])) > 0.01}
    assert apart == {"ADS", "SRAAL", "VAAL"}, "SRAAL's and VAAL's totals are printed with fewer decimals"

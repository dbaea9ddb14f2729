"""The report as a page, in headless Chromium: numbers against records.csv, sorting, values, widths, hostile names."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evidence import many
from test_report import METHODS, all_records, record, run_dir, selected, street_record, suite
from test_verdict import KNOWN, LOGS

from harness.registry import ROOT
from harness.report import html, lead
from harness.report.comparisons import comparisons
from harness.report.contents import suite_tables
from harness.report.formats import NOTHING
from harness.report.statistics import seeds_needed
from harness.report.write import write
from harness.results.records import PHASES, CycleRecord
from harness.results.store import RunStore

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HOSTILE = [
    '</script><script>window.hit = 1</script>"',
    "'\"><img src=x onerror=window.hit=1>",
    "{{ 7 * 7 }} שלום",
    "W" * 300,
]
LIGHT, DARK = "light", "dark"
PAGE = "return [document.scrollingElement.scrollWidth, innerWidth]"
TABLES = """return [...document.querySelectorAll("table[data-table]")].map((table) => ({
  name: table.dataset.table,
  rows: [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim())),
}))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(found.values()):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(str(found["chromedriver"])))
    yield driver
    driver.quit()


def look(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page and all that it folds, and check that it has no error, no request, and no width but the window's."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    colours = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(page.as_uri())
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    errors, requests = problems(browser)
    assert errors == [] and requests == {page.as_uri()}
    wide, window = browser.execute_script(PAGE)
    assert wide <= window
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == DARK)


def problems(browser: Any) -> tuple[list[Any], set[str]]:
    """Return what the console says, and the addresses that were requested, without data in the page itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    return browser.get_log("browser"), {url for url in urls if not url.startswith("data:")}


def page_of(*sections: html.Section) -> str:
    """Return the page of these suites."""
    return html.page("run", [*map(html.describe, sections)])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random numbers with metrics of images and of label maps."""
    random = np.random.default_rng(0)
    extra = dict(zip(METHODS, (900, 10_000, 257_014), strict=True))
    records = []
    for method, seed, cycle in itertools.product(METHODS, range(3), range(3)):
        fields = {
            "seconds": {phase: float(random.uniform(1, 50)) for phase in PHASES} | {"compile": 0.0},
            "extra_parameters": extra[method],
            "peak_memory_bytes": {"host": int(random.integers(2**30, 2**33))},
        }
        records.append(record(method, seed, cycle, float(random.uniform(0.2, 0.9)), **fields))
    for seed, cycle in itertools.product(range(2), range(3)):
        one = street_record("Ran", seed, cycle, *random.uniform(0.2, 0.9, 3).tolist())
        records.append(replace(one, trial=f"s{seed}", suite="streets"))
    trials = {f"s{seed}": {"method": "Ran", "seed": seed} for seed in range(2)}
    streets = suite(name="streets", title="Streets", methods=["Ran"], seeds=[0, 1], trials=trials)
    folder = run_dir(tmp_path_factory.mktemp("run") / "run", records, [suite(), streets])
    RunStore(folder).trial("s0").pictures_path.write_bytes(selected(True).packed())
    write(folder)
    return folder / "report"


SEEDS_SHOWN = 5
"""Up to so many seeds, differences are shown by seed."""
QUALITY = ("balanced accuracy (%)", "F1 (%)", "ECE (%)", "NLL (nats)")
RICH = [2500, 5000, 7500]
"""Numbers of labelled images of published values."""


def rich_run(folder: Path) -> Path:
    """Write a run with every kind of table, and its report; return the report's folder.

    Of seven seeds, DAST-AL is always the best and Ran always the worst. It replays a run, has trials on all images, and
    published values.
    """
    random, records = np.random.default_rng(1), []
    for (at, method), seed, cycle in itertools.product(enumerate(METHODS), range(7), range(3)):
        matrix = {name: {other: int(random.integers(1, 90)) for other in "abc"} for name in "abc"}
        selected = random.choice(100, 9, replace=False).tolist() if cycle < 2 else []
        changes = {
            "labelled": RICH[cycle],
            "dataset": "cifar10",
            "model": "resnet18_cifar_projection",
            "selected": selected,
            "selected_classes": random.multinomial(9, [0.5, 0.3, 0.2]).tolist() if selected else [],
            "confusion": [matrix],
            "calibration": {"ece": float(random.uniform(0, 0.2)), "nll": float(random.uniform(0, 2))},
            "energy_joules": float(random.uniform(1e4, 1e5)),
            "peak_memory_bytes": {"host": int(random.integers(2**30, 2**33))},
            "extra_parameters": 10 * at,
        }
        value = 0.6 + 0.1 * cycle + 0.03 * at + float(random.normal(0, 0.002))
        records.append(record(method, seed, cycle, value, **changes))
    full = {f"full.s{seed}": seed for seed in range(2)}
    records += [
        record("-", seed, 0, 0.9 + 0.02 * seed, trial=trial, labelled=50_000, selected=[], dataset="cifar10")
        for trial, seed in full.items()
    ]
    trainings = {"Ran": ("cross_entropy", "random"), "Ran+": ("isda", "random"), "DAST-AL": ("isda", "epmcm")}
    entry = suite(
        dataset="cifar10",
        model="resnet18_cifar_projection",
        settings=KNOWN,
        official_data=True,
        pool=50_000,
        labelled=RICH,
        seeds=[*range(7)],
        halves={m: {"training": {"name": a}, "acquisition": {"name": b}} for m, (a, b) in trainings.items()},
        trials={f"{m}-{s}": {"method": m, "seed": s} for m in METHODS for s in range(7)},
        full_data=full,
    )
    run_dir(folder, records, [entry])
    curves = {m: {s: {n: 0.5 + n / 1e5 + 0.01 * s for n in RICH} for s in range(7)} for m in METHODS}
    curves["DAST-AL"][3][7500] += 0.2
    source = {"network": "vgg", "metric": "accuracy", "reference": "Ran", "curves": curves}
    (folder / "index_sets").mkdir()
    (folder / "index_sets" / "source.json").write_text(json.dumps({"suites": {"digits": source}}))
    write(folder)
    return folder / "report"


def spread(values: list[float], decimals: int = 2) -> str:
    return f"{statistics.fmean(values):,.{decimals}f}±{statistics.stdev(values):,.{decimals}f}"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _cost(row: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of (training and selection, training) in a cycle."""
    training, sampling = (
        sum(float(row[f"seconds_{phase}"]) for phase in phases)
        for phases in (("train", "auxiliary"), ("score", "select"))
    )
    return training + sampling, training


def expected(rows: list[dict[str, str]], metric: str) -> dict[tuple[str, ...], str]:
    """Return (table, method, column) -> text, computed from the rows of a suite in records.csv."""
    cells: dict[tuple[str, ...], str] = {}
    full = [r for r in rows if r["method"].startswith("all ")]
    rows = [r for r in rows if r not in full]
    methods, labelled = list(dict.fromkeys(r["method"] for r in rows)), sorted({int(r["labelled"]) for r in rows})
    areas = {}
    for method in methods:
        own = [r for r in rows if r["method"] == method]
        seeds = sorted({r["seed"] for r in own})

        def column(of: Callable[[dict[str, str]], float], own: Any = own, **where: Any) -> list[float]:
            return [of(r) for r in own if all(r[key] == str(value) for key, value in where.items())]

        def seconds(*phases: str) -> Callable[[dict[str, str]], float]:
            return lambda given: sum(float(given[f"seconds_{phase}"]) for phase in phases)

        phases = {name: (name,) for name in PHASES if name not in ("setup", "compile")}
        phases["total"] = ("train", "auxiliary", "score", "select")
        values = {x: column(lambda r: float(r[f"{metric} (%)"]), labelled=x) for x in labelled}
        areas[method] = [
            sum((a[i] + b[i]) / 2 * (y - x) for (x, a), (y, b) in itertools.pairwise(values.items()))
            / (labelled[-1] - labelled[0])
            for i in range(len(seeds))
        ]
        table = metric.lower()
        cells |= {(table, method, str(x)): spread(found) for x, found in values.items()}
        cells[table, method, "AUBC"] = spread(areas[method])
        for name, parts in phases.items():
            for x in labelled:
                cells["seconds_by_cycle", f"{method} {x}", name] = spread(column(seconds(*parts), labelled=x))
            of_trials = [statistics.fmean(column(seconds(*parts), seed=s)[:-1]) for s in seeds]
            cells["seconds", method, name] = spread(of_trials)
        training, sampling = seconds("train", "auxiliary"), seconds("score", "select")
        cells["cost", method, "TT (s)"] = spread(column(training, cycle=0))
        cells["cost", method, "ST (s)"] = spread(column(sampling, cycle=0))
        cells["cost", method, "total (min)"] = spread(column(lambda r: seconds(*phases["total"])(r) / 60, cycle=0), 3)  # noqa: B023
        memory = [max(column(lambda r: float(r["peak_memory_bytes"]) / 2**30, seed=s)) for s in seeds]
        cells["cost", method, "memory (GiB)"] = spread(memory)
        parameters = int(own[0]["extra_parameters"])
        cells["cost", method, "EP"] = f"{parameters:,}" if parameters else NOTHING
        cells["cost", method, "EP (MiB)"] = f"{parameters * 4 / 2**20:.2f}" if parameters else NOTHING
        if own[0]["energy_joules"]:
            cells["cost", method, "energy (Wh)"] = spread(column(lambda r: float(r["energy_joules"]) / 3600, cycle=0))
        for key in [key for key in QUALITY if own[-1][key]]:
            cells["quality", method, key] = spread(column(lambda r: float(r[key]), labelled=labelled[-1]))  # noqa: B023
        if own[0]["class entropy (%)"]:
            name = f"{method}: class entropy (%)"
            for x in labelled[:-1]:
                cells["selection", name, str(x)] = spread(column(lambda r: float(r["class entropy (%)"]), labelled=x))
            cells["selection", name, "n"] = str(len(seeds))
        for key in [key for key in own[0] if key.startswith("IoU of ") and own[0][key]]:
            name = key.removeprefix("IoU of ").removesuffix(" (%)")
            cells["class_iou", method, name] = spread(column(lambda r: float(r[key]), labelled=labelled[-1]))  # noqa: B023
        for table in {key[0] for key in cells} - {"selection"}:
            for row in [f"{method} {x}" for x in labelled] if table == "seconds_by_cycle" else [method]:
                cells[table, row, "n"] = str(len(seeds))
    totals = {(r["method"], r["seed"], int(r["labelled"])): _cost(r) for r in rows}
    means = {
        (m, x): statistics.fmean(float(r[f"{metric} (%)"]) for r in rows if (r["method"], r["labelled"]) == (m, str(x)))
        for m in methods
        for x in labelled
    }
    for method in methods:
        reached = [x for x in labelled if means[method, x] >= means[methods[0], labelled[-1]] - 1e-9]
        if reached:
            seeds = sorted({r["seed"] for r in rows if r["method"] == method})
            until = [
                sum(totals[method, s, x][0] for x in labelled if x < reached[0]) + totals[method, s, reached[0]][1]
                for s in seeds
            ]
            cells[f"{metric.lower()}_reached", f"{method} {reached[0]}", "seconds"] = f"{statistics.fmean(until):,.1f}"
        else:
            cells[f"{metric.lower()}_reached", f"{method} not reached", "seconds"] = "not reached"
    differences = {m: [a - b for a, b in zip(areas[m], areas[methods[0]], strict=True)] for m in methods[1:]}
    ps = {}
    for method, found in differences.items():
        flips = [
            abs(sum(map(float.__mul__, signs, found))) for signs in itertools.product((1.0, -1.0), repeat=len(found))
        ]
        ps[method] = sum(flip >= abs(sum(found)) - 1e-9 for flip in flips) / len(flips)
    for method, found in differences.items():
        row, mean, std = f"{method} \N{MINUS SIGN} {methods[0]}", statistics.fmean(found), statistics.stdev(found)
        order = sorted(ps, key=ps.__getitem__)
        holm = max(min(1.0, ps[m] * (len(ps) - i)) for i, m in enumerate(order[: order.index(method) + 1]))
        if len(found) <= SEEDS_SHOWN:
            cells |= {("comparisons", row, f"seed {i}"): signed(value) for i, value in enumerate(found)}
        cells["comparisons", row, "mean"] = f"{signed(mean)}±{std:.2f}"
        cells["comparisons", row, "p"] = f"{ps[method]:.2g}"
        cells["comparisons", row, "p (Holm)"] = f"{holm:.2g}"
        needed = seeds_needed(mean, std, 0.05 / len(ps))
        cells["comparisons", row, "seeds needed"] = "none" if needed == float("inf") else f"{needed:.0f}"
        cells["comparisons", row, "n"] = str(len(found))
        cells["speed_up", method, "n"] = str(len(found))
        curve = [means[methods[0], x] for x in labelled]
        for x in labelled[1:]:
            cells["speed_up", method, str(x)] = faster(labelled, curve, means[method, x], x)
    if full:
        (name,), table, x = {r["method"] for r in full}, metric.lower(), full[0]["labelled"]
        cells |= {(table, method, x): NOTHING for method in methods}
        cells |= {(table, name, column): NOTHING for column in (*map(str, labelled), "AUBC")}
        cells[table, name, x] = spread([float(r[f"{metric} (%)"]) for r in full])
        cells[table, name, "n"] = str(len(full))
    return cells


def faster(labelled: list[int], curve: list[float], value: float, used: int) -> str:
    """Return the labels at which a curve first reaches a value, over those used."""
    if curve[0] > value:
        return f"<{labelled[0] / used:.2f}"
    for (x, low), (y, high) in itertools.pairwise(zip(labelled, curve, strict=True)):
        if high >= value:
            return f"{(x + (value - low) / (high - low) * (y - x)) / used:.2f}"
    return f">{labelled[-1] / used:.2f}"


def cells_of(tables: list[dict[str, Any]]) -> dict[tuple[str, ...], str]:
    """Return (table, row, column) -> text of the tables of a page, of which records.csv has the numbers.

    It has no lists of images, so no overlaps; tests/test_evidence.py checks the intervals of speed-ups.
    """
    shown = {}
    for table in tables:
        head, *body = table["rows"]
        keys = 2 if "labelled" in head else 1
        for row in body:
            assert len(row) == len(head)
            for column, text in zip(head[keys:], row[keys:], strict=True):
                own = text.partition(" (")[0] if table["name"] == "speed_up" else text
                shown[table["name"], " ".join(row[:keys]), column] = own
    return {key: text for key, text in shown.items() if "overlap" not in key[1]}


def test_every_cell_of_every_table_follows_from_records_csv(browser: Any, report: Path) -> None:
    look(browser, report / "report.html", 1400, LIGHT)
    rows = list(csv.DictReader((report / "records.csv").read_text().splitlines()))
    assert len(rows) == 27 + 6
    tables = browser.execute_script(TABLES)
    number = [table["name"] for table in tables].index("miou")
    for name, metric, part in (("digits", "accuracy", tables[:number]), ("streets", "mIoU", tables[number:])):
        assert cells_of(part) == expected([row for row in rows if row["suite"] == name], metric)


def from_elsewhere(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """Return the cells of the other tables of ``rich_run``, from records.csv, published values and the source."""
    areas: dict[str, list[float]] = {}
    for method, _ in itertools.groupby(row["method"] for row in rows if not row["method"].startswith("all ")):
        own = [
            [float(r["accuracy (%)"]) for r in rows if (r["method"], r["seed"]) == (method, str(s))] for s in range(7)
        ]
        areas[method] = [(a + 2 * b + c) / 4 for a, b, c in own]
    gains = {m: [a - b for a, b in zip(areas[m], areas["Ran"], strict=True)] for m in METHODS[1:]}
    cells: dict[tuple[str, ...], str] = {}
    for method, values in gains.items():
        cells |= {("decomposition", method, "split by"): "Ran+", ("decomposition", method, "training"): NOTHING}
        parts = {"gain": values, "auxiliary": gains["Ran+"]}  # its training has parameters of its own
        parts["selection"] = [a - b for a, b in zip(values, gains["Ran+"], strict=True)]
        cells |= {("decomposition", method, part): f"+{spread(found)}" for part, found in parts.items()}
        # the source's curves are equal, apart from 20 points at the last of three budgets of one seed
        before = [20 / 4 * (method == "DAST-AL" and seed == 3) for seed in range(7)]
        for head, found in (("selected: vgg", before), ("trained now: resnet18_cifar_projection", values)):
            cells["transfer", method, head] = f"{signed(statistics.fmean(found))}±{statistics.stdev(found):.2f}"
        cells["decomposition", method, "n"] = cells["transfer", method, "n"] = "7"
    # each method is better than those before it, in every seed and at every budget
    for at, method in enumerate(METHODS):
        cells |= {("wins", method, f"vs {m}"): "3" if number < at else NOTHING for number, m in enumerate(METHODS)}
        cells |= {("wins", method, "wins (sum)"): str(3 * at), ("wins", method, "mean rank"): f"{3 - at:.2f}"}
        cells["wins", "penalty (sum)", f"vs {method}"] = str(3 * (2 - at))
    cells |= {("wins", "penalty (sum)", "wins (sum)"): "9", ("wins", "penalty (sum)", "mean rank"): ""}
    halves = {"cross_entropy random": "Ran", "isda random": "Ran+", "isda epmcm": "DAST-AL"}
    logs: dict[tuple[str, str], list[float]] = {}
    printed = {}
    with (ROOT / "published" / "values.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            method = halves.get(f"{row['training']} {row['acquisition']}", "")
            if method and row["network"] == "resnet18_cifar_projection":
                if row["source"] == LOGS:
                    logs.setdefault((method, row["labelled"]), []).append(float(row["value"]))
                elif row["source"] == "DAST-AL paper":
                    printed[method, row["labelled"]] = f"{float(row['value']):.2f}"
    for method, x in itertools.product(METHODS, map(str, RICH)):
        ours = [float(r["accuracy (%)"]) for r in rows if (r["method"], r["labelled"]) == (method, x)]
        values = logs[method, x]
        apart = (statistics.fmean(ours) - statistics.fmean(values)) / statistics.stdev(values)
        cells["published", f"{method} {x}", "ours"] = spread(ours)
        cells["published", f"{method} {x}", "printed"] = printed[method, x]
        cells["published", f"{method} {x}", "published"] = f"{spread(values)} ({len(values)})"
        cells["published", f"{method} {x}", "in sd"] = f"{apart:+.1f}".replace("-", "\N{MINUS SIGN}")
    return cells


def test_every_cell_of_a_page_with_all_kinds_of_tables(browser: Any, tmp_path: Path) -> None:
    """tests/test_verdict.py checks the verdicts, and their p; tests/test_quality.py the accuracy of each class."""
    folder = rich_run(tmp_path / "run")
    look(browser, folder / "report.html", 1400, LIGHT)
    rows = list(csv.DictReader((folder / "records.csv").read_text().splitlines()))
    assert len(rows) == 63 + 2
    shown = cells_of(browser.execute_script(TABLES))
    elsewhere = {("published", "verdict"), ("published", "p")}
    shown = {k: text for k, text in shown.items() if k[0] != "class_accuracy" and (k[0], k[2]) not in elsewhere}
    assert shown == expected(rows, "accuracy") | from_elsewhere(rows)
    axis = browser.execute_script("return [...document.querySelectorAll('svg.plot > text')].map((t) => t.textContent)")
    assert axis[-7:] == ["2500", "5 %", "5000", "10 %", "7500", "15 %", "labelled images (% of 50000 training images)"]
    listed = browser.execute_script("return document.querySelector('.selected dd').firstChild.textContent")
    assert len(listed.split(", ")) == 9 and all(index.isdigit() for index in listed.split(", "))
    for scheme in (LIGHT, DARK):
        look(browser, folder / "report.html", 360, scheme)


def test_captions_of_all_kinds_of_tables_have_two_lines_at_most(tmp_path: Path) -> None:
    texts = sorted(rich_run(tmp_path / "run").glob("digits_*.txt"))
    assert len(texts) > 12
    for path in texts:
        caption = path.read_text().partition("\n\n")[0].splitlines()
        assert 1 <= len(caption) <= 2 and max(map(len, caption)) <= 120, path.name


BOLD = """
const text = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
const found = [];
while (text.nextNode()) {
  const { parentElement: box, data } = text.currentNode;
  const named = box.closest('h2, h3, th, dt, summary, button, .chart .name, script, style');
  if (!named && data.trim() && getComputedStyle(box).fontWeight > 400) found.push(data.trim());
}
return found;
"""


def test_nothing_is_bold_that_is_not_significant(browser: Any, report: Path, tmp_path: Path) -> None:
    """Apart from headings and names of rows and columns."""
    look(browser, report / "report.html", 1400, LIGHT)
    assert browser.execute_script(BOLD) == [], "three seeds can't show anything"
    folder = rich_run(tmp_path / "run")
    look(browser, folder / "report.html", 1400, LIGHT)
    (aubc,) = browser.execute_script(BOLD)
    (best,) = [row for row in browser.execute_script(TABLES)[0]["rows"] if row[0] == "DAST-AL"]
    assert aubc in best


def test_a_column_sorts_by_its_numbers_and_back(browser: Any, report: Path) -> None:
    look(browser, report / "report.html", 1400, DARK)
    find = "return [...document.querySelectorAll('[data-table=cost] thead button')].find((b) => b.textContent == 'EP')"
    button = browser.execute_script(find)

    def order() -> tuple[str, list[str]]:
        cells = (
            "return [...document.querySelector('[data-table=cost]').tBodies[0].rows].map((r) => r.cells[1].textContent)"
        )
        return browser.execute_script("return arguments[0].parentNode.ariaSort", button), browser.execute_script(cells)

    up = ["900", "10,000", "257,014"]  # as text, 900 is last
    assert order() == ("none", up)
    button.click()
    assert order() == ("ascending", up)
    button.send_keys("\ue007")  # the key Enter
    assert order() == ("descending", up[::-1])
    button.click()
    assert order() == ("none", up)
    assert problems(browser) == ([], set())


def test_the_pointer_shows_values_and_the_legend_hides_a_curve(browser: Any, report: Path) -> None:
    from selenium.webdriver import ActionChains

    look(browser, report / "report.html", 1400, LIGHT)
    plot = browser.execute_script("return document.querySelector('svg.plot')")
    browser.execute_script("arguments[0].scrollIntoView()", plot)  # the pointer stays within the window
    (accuracy, *_) = browser.execute_script(TABLES)
    read = "return [...document.querySelector('.readout tbody').rows].map((row) => row.cells[1].textContent)"
    for side, column in ((-0.35, "100"), (0.45, "400")):
        index = accuracy["rows"][0].index(column)
        ActionChains(browser).move_to_element_with_offset(plot, int(side * plot.size["width"]), -50).perform()
        assert browser.execute_script(read) == [row[index] for row in accuracy["rows"][1:]]
    curves = "return document.querySelector('svg.plot').querySelectorAll('.curve').length"
    assert browser.execute_script(curves) == 3 + 2, "and their differences to the reference"
    browser.find_elements("css selector", ".readout button")[2].click()
    assert browser.execute_script(curves) == 2 + 1
    assert problems(browser) == ([], set())


def test_the_curves_have_a_line_of_all_training_images(browser: Any, tmp_path: Path) -> None:
    records = all_records()
    full = [record("all 1437 images", seed, 0, 0.95 + 0.01 * seed, labelled=1437) for seed in range(2)]
    for name, tables in (
        ("with", suite_tables(suite(), records, full=full)),
        ("without", suite_tables(suite(), records)),
    ):
        (tmp_path / f"{name}.html").write_text(page_of(html.Section(suite(), records, "", tables=tables)))
    look(browser, tmp_path / "with.html", 1400, LIGHT)
    line = "const line = document.querySelector('svg.plot > .full'); return [line.getBBox().width, line.getBBox().y]"
    width, height = browser.execute_script(line)
    highest = "return Math.min(...[...document.querySelectorAll('svg.plot .line')].map((curve) => curve.getBBox().y))"
    assert width > 300 and 24 <= height < browser.execute_script(highest), "95.5 % is above all curves"
    last = (
        "return [...[...document.querySelectorAll('.readout tbody tr')].at(-1).cells].map((cell) => cell.textContent)"
    )
    assert browser.execute_script(last)[:2] == ["all 1437 images", "95.50±0.71"]
    look(browser, tmp_path / "without.html", 1400, LIGHT)
    assert browser.execute_script("return document.querySelectorAll('.full').length") == 0


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_a_phone_scrolls_in_one_direction(browser: Any, report: Path, scheme: str) -> None:
    look(browser, report / "report.html", 360, scheme)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_claims_over_suites_are_typed_like_all_others(browser: Any, scheme: str, tmp_path: Path) -> None:
    suites = [many(4, "digits"), many(4, "scenes")]
    folder = run_dir(tmp_path / "run", [r for _, records in suites for r in records], [entry for entry, _ in suites])
    write(folder)
    look(browser, folder / "report" / "report.html", 360, scheme)
    kinds = "return [...document.querySelectorAll('#over .claims li')].map((li) => [li.className, li.innerText])"
    (better, said), (against, other) = browser.execute_script(kinds)
    assert (better, against) == ("claimed", "against")
    assert said.startswith("better\nOver 2 suites of 4 seeds, A (+") and other.startswith("worse\nOver 2 suites")


def test_hostile_names_are_text(browser: Any, tmp_path: Path) -> None:
    trials = {f"t{i}": {"method": method, "seed": 0} for i, method in enumerate(HOSTILE)}
    entry = suite(title=HOSTILE[0] + "x" * 300, methods=HOSTILE, seeds=[0], trials=trials, recipe=HOSTILE[1])
    records = [record(m, 0, c, 0.5, trial=f"t{i}", warnings=HOSTILE) for i, m in enumerate(HOSTILE) for c in range(3)]
    folder = run_dir(tmp_path / "run", records, [entry])
    write(folder)
    look(browser, folder / "report" / "report.html", 360, LIGHT)
    assert browser.execute_script("return window.hit") is None
    (table, *_) = browser.execute_script(TABLES)
    assert [row[0] for row in table["rows"][1:]] == HOSTILE
    legend = "return [...document.querySelectorAll('.readout bdi')].map((name) => name.textContent)"
    assert browser.execute_script(legend) == HOSTILE


def test_errors_and_requests_are_noticed(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<!doctype html><img src=none.png><script>throw 1</script>")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get((tmp_path / "bad.html").as_uri())
    errors, requests = problems(browser)
    assert len(errors) >= 2 and (tmp_path / "none.png").as_uri() in requests


# --- without a browser


def test_pictures_are_in_the_page_up_to_a_limit(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "left out" not in page
    picture = html.Picture("digits_selected_0_Ran.png", "Ran", "caption", b"x" * 40)
    monkeypatch.setattr(html, "PICTURE_BYTES", 100)
    less = page_of(html.Section(suite(), [], "state", pictures=[picture] * 3))
    assert less.count("data:image/png") == 2 and less.count("left out") == less.count("is <bdi>digits_selected_0") == 1


def test_the_page_leads_with_who_leads_and_what_can_be_claimed(tmp_path: Path) -> None:
    records = [
        record(m, s, c, 0.5 + 0.01 * s + 0.1 * i) for i, m in enumerate(METHODS) for s in range(3) for c in range(3)
    ]
    records = [r for r in records if r.cycle < 2 or r.trial != "Ran-2"]
    halves = {"Ran": ("random", "cross_entropy"), "DAST-AL": ("epmcm", "isda")}
    named = {name: {"acquisition": {"name": a}, "training": {"name": t}} for name, (a, t) in halves.items()}
    folder = run_dir(tmp_path / "run", records, [suite(halves=named)])
    write(folder)
    page = unescape((folder / "report" / "report.html").read_text())
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())
    said = [
        "DAST-AL has the highest mean AUBC of accuracy so far: 71.00±1.00 %.",
        "It can't be claimed that DAST-AL and Ran differ: 2 seeds can't show it among 2 comparisons.",
        "DAST-AL is 20.00 points above Ran (2 seeds) and 10.00 above Ran+ (the next, not tested).",
        "Unfinished: 8 of 9 trials and 26 of 27 cycles finished.",
        "2 seeds can't show a difference to Ran",
        "Seeds 3 (0 to 2)",
        "Selection, training Ran: random, cross_entropy; DAST-AL: epmcm, isda",
        "Labelled images 100, 200, 400",
        "Initial images drawn at random, one set for all methods, another for each seed Recipe",
        "Published values none known of this network and data",
        "Time of all trials 16 min, summed, each shared cycle once",
        "There are no warnings.",
        "digits, fingerprint 3f2a99887766",
    ]
    assert [sentence for sentence in said if sentence not in text] == []
    assert [text.index(sentence) for sentence in said[:5]] == sorted(text.index(sentence) for sentence in said[:5])


def test_the_page_names_who_leads_at_the_end_if_others_lead_over_the_budgets() -> None:
    crossing = {"Ran": (0.1, 0.2, 0.9), "Ran+": (0.1, 0.2, 0.9), "DAST-AL": (0.5, 0.8, 0.8)}
    rising = [record(m, 0, c, v) for m, values in crossing.items() for c, v in enumerate(values)]
    assert at_the_end(rising) == ["At 400 labelled images the highest mean accuracy is 90.00 %: Ran, Ran+."]
    same = [record(m, 0, c, 0.1 * i + 0.1 * c) for i, m in enumerate(METHODS) for c in range(3)]
    highest = "At 400 labelled images the highest mean accuracy is 40.00 %: DAST-AL"
    assert at_the_end(same) == [f"{highest}, 20.00 points above Ran (not tested)."]
    assert at_the_end([r for r in same if r.method == "Ran"]) == [], "it is in the table"
    first = [r for r in same if r.cycle == 0]
    trials = {r.trial: {"method": r.method, "seed": 0} for r in first}
    one = suite(labelled=suite().labelled[:1], trials=trials)
    said = lead.lead(one, first, suite_tables(one, first), [])
    assert "mean accuracy at 100 labelled images" in said[0], "so that the end is said already"
    assert not [text for text in said if text.startswith("At ")]


def at_the_end(records: list[CycleRecord]) -> list[str]:
    trials = {r.trial: {"method": r.method, "seed": r.seed} for r in records}
    entry = suite(methods=[*dict.fromkeys(r.method for r in records)], trials=trials)
    return [text for text in lead.lead(entry, records, suite_tables(entry, records), []) if text.startswith("At ")]


@pytest.mark.parametrize(
    ("labelled", "words"),
    [
        ([20], "20"),
        ([20, 30], "20, and 10 more in 1 further cycle: 30"),
        ([20, 30, 40], "20, and 10 more in each of 2 further cycles: 40"),
        ([20, 30, 50], "20, 30, 50"),
    ],
)
def test_budgets_in_words(labelled: list[int], words: str) -> None:
    assert lead._budgets(labelled) == words


def test_a_method_that_alone_has_reached_the_end_leads_nowhere_yet() -> None:
    values = {"Ran": (0.3, 0.4, 0.5), "Ran+": (0.6, 0.7, 0.4), "DAST-AL": (0.5, 0.5, 0.6)}
    records = [record(m, s, c, v) for m in METHODS for s in range(3) for c, v in enumerate(values[m])]
    whole = lead.lead(suite(), records, suite_tables(suite(), records), [])
    gap = "10.00 points above Ran (not tested)"
    assert f"At 400 labelled images the highest mean accuracy is 60.00 %: DAST-AL, {gap}." in whole
    some = [r for r in records if r.cycle < 2 or (r.method == "Ran" or r.seed == 0)]
    sentences = lead.lead(suite(), some, suite_tables(suite(), some), [])
    assert not [text for text in sentences if text.startswith("At 400")] and sentences[-1].startswith("Unfinished")


def test_the_page_says_which_trials_start_from_the_same_images() -> None:
    per_run = {"protocol": {"initial_set": "per_run"}}
    suites = suite(), suite(settings=per_run), suite(seeds=[0], settings=per_run)
    assert [lead._initial(each, all_records()) for each in suites] == [
        "drawn at random, one set for all methods, another for each seed",
        "drawn at random, one set for all methods and seeds",
        "drawn at random, one set for all methods",
    ]
    own = all_records(warnings=["starts from its own initial set, not from the set that all methods share"])
    assert lead._initial(suite(), own).endswith("; warnings name methods with their own")


def test_the_page_says_how_many_images_were_tested() -> None:
    matrix = [{"a": {"a": 3, "b": 1}, "b": {"b": 6}}]
    tested = [record("Ran", seed, 0, 0.9, confusion=matrix) for seed in range(2)]
    assert ("Test images", "10") in lead.facts(suite(), tested)
    assert "Test images" not in dict(lead.facts(suite(), [replace(r, metrics={"miou": 0.9}) for r in tested])), "pixels"
    assert "Test images" not in dict(lead.facts(suite(), [record("Ran", 0, 0, 0.9)]))


def test_the_overview_of_suites_says_what_can_be_claimed() -> None:
    """A ranking of means alone, in the first lines of the page, is read as a result."""
    one = suite(name="c", title="C", methods=["Ran"], trials={"Ran-0": {"method": "Ran", "seed": 0}})
    found = [
        (suite(), all_records()),
        (suite(name="b", title="B"), [r for r in all_records() if r.method != "Ran"]),
        (one, [r for r in all_records() if r.trial == "Ran-0"]),
    ]
    compared = comparisons(found)
    sections = [
        html.Section(e, of, "", tables=suite_tables(e, of), compared=[c for c in compared if c.suite == e.name])
        for e, of in found
    ]
    start = unescape(page_of(*sections)).partition("</nav>")[0]
    said = [" ".join(re.sub("<[^>]+>", " ", item).split()) for item in re.findall("<li>(.*?)</li>", start, re.S)]
    why = "3 seeds can't show it among 4 comparisons"
    assert said[0].endswith(f"±1.00 %. It can't be claimed that DAST-AL and Ran differ: {why}.")
    assert said[1].endswith("It can't be claimed that DAST-AL is better than another method: they are not compared.")
    assert re.search(r"Ran has the highest mean AUBC of accuracy: \d\d\.\d\d %\.$", said[2])


def test_the_page_has_all_versions_and_commits() -> None:
    """Those of merged runs differ, and so may those of one run."""
    records = [record("Ran", 0, c, 0.5, versions={"torch": f"2.{c}"}, commit=f"c{c}") for c in (1, 0, 1)]
    page = re.sub("<wbr>|</?bdi>", "", page_of(html.Section(suite(), records, "", source="of it")))
    versions = re.findall(r"<dt>(torch|commit)</dt>\s*<dd>(.*?)</dd>", page)
    assert versions == [("torch", "2.0/2.1"), ("commit", "c0/c1")]


def test_a_picture_that_is_left_out_leaves_its_place_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "PICTURE_BYTES", 70)
    pictures = [html.Picture(f"{n}.png", "h", "c", bytes(n)) for n in (40, 50, 30)]
    page = page_of(html.Section(suite(), [record("Ran", 0, 0, 0.5)], "", pictures=pictures))
    assert page.count("data:image/png") == 2 and "50.png" in page


def test_cells_sort_by_the_number_that_they_start_with() -> None:
    expected = {
        "10,000": 1e4,
        "\N{MINUS SIGN}0.77±1.00": -0.77,
        "+2.5": 2.5,
        "8e-05": 8e-05,
        NOTHING: None,
        "none": None,
    }
    assert {text: html.sort_key(text) for text in expected} == expected


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_curves_stand_out_from_the_page() -> None:
    """WCAG 2.1: 4.5 for text (1.4.3), 3 for what a picture must show (1.4.11)."""
    css = (ROOT / "harness" / "report" / "page" / "report.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in css.split("@media (prefers-color", 2)[:2]
    )
    for colours in (light, dark):
        for name, ground in [(n, "page") for n in colours] + [(n, f"{n}-wash") for n in ("good", "wait", "bad")]:
            if name.endswith(("wash", "page", "line")):
                continue
            one, other = sorted([luminance(colours[name]), luminance(colours[ground])])
            assert (other + 0.05) / (one + 0.05) >= (3 if name[:1] == "c" else 4.5), name

"""Fills the generated parts of the pages: keys, methods, records, README's matrix, the errata and more.

    python docs/generate.py            # writes them
    python docs/generate.py --check    # names the pages that are out of date, and exits with 1 if there are any

A page has a generated part between the lines ``<!-- generated: NAME -->`` and ``<!-- end -->``. The text around it is
written by hand.
"""

from __future__ import annotations

import ast
import csv
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import errata  # noqa: E402

import harness  # noqa: E402
from harness import load_config, registry  # noqa: E402
from harness.config.schema import record_schema, run_schema  # noqa: E402
from harness.data.dataset import Dataset  # noqa: E402
from harness.learning.contract import Acquisition, Training  # noqa: E402
from harness.messages import bounds  # noqa: E402
from harness.networks.architecture import Architecture  # noqa: E402
from harness.report import statistics  # noqa: E402
from harness.settings import ModelSettings, Protocol, Recipe, SuiteKeys, Where  # noqa: E402

PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "scenes": "scenes",
    "imagenet": "ImageNet",
    "segmentation_folder": "CamVid",
    "cityscapes": "Cityscapes",
}
"""Dataset -> its name in the matrix: the datasets of the shipped configs."""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table, or "" if it has no rows."""
    lines = [
        "| " + " | ".join(" ".join(cell.split()) for cell in row) + " |" for row in (head, ("---",) * len(head), *rows)
    ]
    return "\n".join(lines) + "\n" if rows else ""


def prose(text: str) -> str:
    """Return plain text of a docstring or a description as Markdown, with RST's code marks as Markdown's."""
    parts = re.split(r"(``.+?``)", text, flags=re.DOTALL)
    return "".join(p[1:-1] if p.startswith("``") else re.sub(r"([*|<])", r"\\\1", p) for p in parts)


def allowed(schema: dict[str, Any]) -> str:
    """Return in words which values a JSON schema allows."""
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(allowed(option) for option in schema["anyOf"]))
    if "$ref" in schema:
        return "mapping"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        parts = schema.get("prefixItems")
        many = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        if parts:
            return f"list of {len(parts)}, each: {allowed(parts[0])}"
        return f"list{f' of {many}' if many else ''}, each: {allowed(schema.get('items', {}))}"
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
        "null": "`null`",
        "object": "mapping",
    }
    return f"{words.get(str(kind), 'anything')} {bounds(schema)}".rstrip()


def settings(cls: Any, skip: tuple[str, ...] = ()) -> str:
    """Return the table of a settings class's keys."""
    schema = cls.model_json_schema()
    required = schema.get("required", [])
    rows = []
    for key, value in schema.get("properties", {}).items():
        if key in skip:
            continue
        while "$ref" in value:
            value = {**schema["$defs"][value["$ref"].split("/")[-1]], **{k: v for k, v in value.items() if k != "$ref"}}
        default = "required" if key in required else f"`{json.dumps(value.get('default'))}`"
        rows.append((f"`{key}`", allowed(value), default, prose(value.get("description", ""))))
    return table(("key", "allowed", "default", "meaning"), rows)


def plugins(kind: str, contract: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, class) of each shipped plug-in with this contract."""
    for name in registry.names(kind):
        if plugin := registry.find(kind, name, contract):
            yield name, plugin


def of_plugins(kind: str, contract: type[Any], skip: tuple[str, ...] = ()) -> str:
    """Return a heading and the keys of each plug-in, and one line for those that have no keys of their own.

    ``skip``: keys that all have; one with another default is not skipped.
    """
    parts, without = [], []
    for name, plugin in plugins(kind, contract):
        own, common = plugin.Settings.model_fields, contract.Settings.model_fields
        if text := settings(plugin.Settings, tuple(key for key in skip if own[key].default == common[key].default)):
            parts.append(f"### {contract.__name__.lower()}: {name}\n\n{text}")
        else:
            without.append(f"`{name}`")
    if without:
        parts.append(f"No keys{' of their own' if skip else ''}: {', '.join(without)}.\n")
    return "\n".join(parts)


def keys() -> str:
    """Return every key of a config."""
    digits = registry.find("datasets", "digits", Dataset)
    assert digits is not None
    return "\n".join(
        [
            f"## Keys of a suite\n\n{settings(SuiteKeys)}",
            f"## recipe\n\n{prose(first_paragraph(Recipe))}\n\n{settings(Recipe)}",
            f"## protocol\n\n{prose(first_paragraph(Protocol))}\n\n{settings(Protocol)}",
            f"## where\n\n{prose(first_paragraph(Where))}\n\n{settings(Where)}",
            *models(),
            f"## dataset\n\nKeys of every dataset:\n\n{settings(digits.Settings)}",
            of_plugins("datasets", Dataset, tuple(Dataset.Settings.model_fields)),
            "## Methods\n\nThe keys of a training or an acquisition are written next to its name: "
            "`{name: isda, lambda_0: 5}`.\n",
            of_plugins("methods", Training),
            of_plugins("methods", Acquisition),
        ]
    )


def models() -> list[str]:
    """Return the keys of the networks."""
    return [
        f"## model\n\nKeys of every network:\n\n{settings(ModelSettings)}",
        of_plugins("networks", Architecture, tuple(ModelSettings.model_fields)),
    ]


def first_paragraph(cls: type[Any]) -> str:
    """Return the first paragraph of a class's docstring."""
    return (cls.__doc__ or "").split("\n\n")[0].strip()


def head(name: str) -> str:
    """Return the docstring of a method's file."""
    return ast.get_docstring(ast.parse((ROOT / "methods" / f"{name}.py").read_text())) or ""


def methods() -> str:
    """Return a table of all methods, and the head of each method's file."""
    rows, parts = [], []
    for name in registry.names("methods"):
        halves = {c.__name__.lower(): registry.find("methods", name, c) for c in (Training, Acquisition)}
        present = {kind: half for kind, half in halves.items() if half}
        title, _, rest = head(name).partition("\n\n")
        gives = sorted(halves["training"].gives - Training.gives) if halves["training"] else []
        needs = sorted(halves["acquisition"].needed(halves["acquisition"].Settings())) if halves["acquisition"] else []
        rows.append(
            (
                f"[{name}](#{name})",
                " and ".join(present),
                ", ".join(needs) or ("nothing" if halves["acquisition"] else ""),
                ", ".join(gives),
            )
        )
        text = re.sub(r"(^|\n)([^-\s\n][^\n]*)\n- ", r"\1\2\n\n- ", prose(rest))  # Markdown wants a line before a list
        parts.append(f"## {name}\n\n*{' and '.join(present).capitalize()}.* {prose(title)}\n\n{text}".rstrip() + "\n")
    about = ("file", "defines", "the acquisition needs", "the training also gives")
    return table(about, rows) + "\n" + "\n".join(parts)


def typed(schema: dict[str, Any]) -> str:
    """Return the type of a value in a JSON schema in words; for mappings and lists, that of their values as well."""
    if "$ref" in schema:
        return f"`{schema['$ref'].split('/')[-1]}`"
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return f"mapping: text to {typed(inner)}"
    if inner := schema.get("items"):
        return f"list: {typed(inner)}"
    if "anyOf" in schema:
        return " or ".join(typed(option) for option in schema["anyOf"])
    return allowed(schema)


def properties(schema: dict[str, Any]) -> str:
    """Return the table of a JSON schema's keys, each with its type and meaning."""
    rows = [(f"`{key}`", typed(v), prose(v.get("description", ""))) for key, v in schema["properties"].items()]
    return table(("key", "type", "meaning"), rows)


def records() -> str:
    """Return the keys of a record and of run.json."""
    record, run = record_schema(), run_schema()
    parts = [f"## A record\n\n{properties(record)}", f"## run.json\n\n{properties(run)}"]
    parts += [f"### {name}\n\n{prose(d['description'])}\n\n{properties(d)}" for name, d in run["$defs"].items()]
    return "\n".join(parts)


def matrix() -> str:
    """Return README's table of acquisitions and datasets: compared by a shipped config, or supported."""
    compared: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        # smoke compares nothing, it shows that every method runs; camvid_pretrained compares what camvid does
        if path.stem not in ("smoke", "camvid_pretrained"):
            for suite in load_config(path).suites:
                for _, acquisition in suite.methods.values():
                    compared[acquisition.name].add(suite.dataset.name)
    rows = [
        (f"`{name}`", *("●" if dataset in compared[name] else "○" for dataset in COLUMNS))
        for name, _ in plugins("methods", Acquisition)
    ]
    return table(("acquisition", *COLUMNS.values()), rows)


def face() -> str:
    """Return the names that ``import harness`` has, each with the first line of its docstring, or its value."""
    rows = []
    for name in harness.__all__:
        thing = getattr(harness, name)
        own = name not in ("IGNORED", "IMAGES", "MAPS")
        line = (inspect.getdoc(thing) or "").split("\n\n")[0] if own else f"The constant {thing!r}."
        rows.append((f"`{name}`", prose(line)))
    return table(("name", "what it is"), rows)


def power() -> str:
    """Return the table of the power of the paired comparisons, alone and as one of twelve."""
    rows = []
    for sd in (0.4, 2.0):
        for seeds in (3, 5, 10):
            alone, among = (
                [f"{100 * statistics.power(points, sd, seeds, level):.0f} %" for points in (0.5, 1.0, 2.0)]
                for level in (statistics.LEVEL, statistics.LEVEL / 12)
            )
            rows.append((f"{sd} points", str(seeds), *alone, *among))
    points = ("0.5 points", "1 point", "2 points")
    return table(("sd", "seeds", *(f"primary: {p}" for p in points), *(f"one of 12: {p}" for p in points)), rows)


def table4() -> str:
    """Return Table 4's times: as printed, as measured (a row of results/gpu.csv), and why they differ."""
    results = ROOT / "results"
    with (results / "gpu.csv").open(newline="") as file:
        measured = {row["quantity"]: float(row["value"]) for row in csv.DictReader(file)}
    with (results / "paper_table4.csv").open(newline="") as file:
        rows = [
            (row["method"], row["quantity"], row["paper"], f"{measured[name]:.2g}" if name else "", row["why"])
            for row in csv.DictReader(file)
            for name in [row["measured"]]
        ]
    return table(("method", "quantity", "paper", "ours", "why"), rows)


def errata_rows() -> str:
    """Return which trials of the authors' logs each row of Table 1 is the mean of."""
    head = ("row", "trials stated", "trials in the logs", "mean of", "cells that agree", "next best set")
    return table(head, errata.rows_of_table_1())


def errata_cells() -> str:
    """Return the cells of Table 1 that disagree with the logs."""
    head = ("row", "labelled", "printed", "logs", "difference", "the same number is printed for")
    return table(head, errata.cells_of_table_1())


def errata_seconds() -> str:
    """Return Table 4's times and their sums."""
    return table(("row", "TT, s", "ST, s", "ToT printed, min", "(TT + ST) / 60"), errata.rows_of_table_4())


PARTS: dict[str, Callable[[], str]] = {
    "keys": keys,
    "methods": methods,
    "records": records,
    "matrix": matrix,
    "power": power,
    "face": face,
    "table4": table4,
    "errata_rows": errata_rows,
    "errata_cells": errata_cells,
    "errata_seconds": errata_seconds,
}


def pages() -> dict[Path, tuple[str, str]]:
    """Return the pages with generated parts: path -> (text, up-to-date text)."""
    found = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if PART.search(text):
            found[path] = text, PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", text)
    return found


def main() -> int:
    """Write the pages, or check them. Return the exit code."""
    stale = {path: new for path, (old, new) in pages().items() if new != old}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        return bool(stale)
    for path, new in stale.items():
        path.write_text(new)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

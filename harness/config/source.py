"""Reads YAML, with the line of every value, and applies overrides from the command line."""

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
"""The keys of a method written as a mapping of its training and its acquisition."""

LONGEST_VALUE = 60  # characters; longer values are cut in messages


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.1, except that 1e-3 and 1.5e3 are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Source:
    """The values of a config file and where each of them was written.

    A key path is a tuple of keys, such as ("recipe", "epochs"); items of a list have the keys "0", "1", ...
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        """Read a file, or ``text``, which then only has the name ``path`` in messages."""
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        """Key path -> line, from 1."""
        self.overridden: dict[tuple[str, ...], str] = {}
        """Key path -> the override from the command line that set its value."""
        self.values: Any = None
        try:
            text = path.read_text(encoding="utf-8") if text is None else text
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
            got = "the file is empty" if node is None else f"got {shown_value(self.values)}"
            raise UserError(f"{path}:1: a config is a mapping of keys (dataset, model, recipe, ...), {got}")

    def _read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """Return the value of a node, and store its line and those of all values inside."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)  # keeps the line of the key, which may be above that of its value
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise UserError(f"{self.path}:{line}: a key must be a single word, got a list or a mapping")
                key = str(key_node.value)
                if key in mapping:
                    raise UserError(f"{self.path}:{line}: {'.'.join((*path, key))}: this key appears twice")
                self.lines[(*path, key)] = line
                mapping[key] = self._read(value_node, (*path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*path, str(i))) for i, item in enumerate(node.value)]
        try:
            return _Loader("").construct_object(node, deep=True)
        except ValueError as error:  # such as a date with a 13th month
            problem = f"{node.value!r} can't be read: {error}"
            raise UserError(f"{self.path}:{line}: {'.'.join(path)}: {problem}") from None

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
                    return f"{text} (command line){inner_key}"
        overrides = ""
        if below := [t for p, t in self.overridden.items() if any(p[: len(c)] == c for c in candidates if c)]:
            overrides = f" (with {', '.join(dict.fromkeys(below))})"
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


def shown_value(value: Any) -> str:
    """Return a value as written in a config, cut to LONGEST_VALUE characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


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
                f"{text} (command line): {'.'.join(keys[: depth + 1])} is {shown_value(inner)}, not a mapping"
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
            raise UserError(f"{text} (command line): an override is written key.path=value, e.g. recipe.epochs=2")
        if keys[0] not in {"suites", "where", "plugins", *SuiteKeys.model_fields}:
            raise UserError(
                f"{text} (command line): unknown key {keys[0]!r}"
                f"{did_you_mean(keys[0], ['suites', 'where', 'plugins', *SuiteKeys.model_fields])}"
            )
        try:
            value = yaml.load(written, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{text} (command line): {shown_value(written)} is not valid YAML") from None
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

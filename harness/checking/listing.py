"""The lists of plug-ins with their settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from harness import registry
from harness.checking.run import SUITES
from harness.checking.text import explained, wrapped
from harness.data.dataset import Dataset
from harness.learning.contract import Acquisition, Training
from harness.messages import bounds
from harness.networks import names


def text(kinds: list[str]) -> str:
    """Return the plug-ins of these kinds (plural): the harness's own first, then the user's, each with its settings."""
    blocks = []
    for folder, contracts in SUITES.values():
        if folder not in kinds:
            continue
        common = contracts[0].Settings.model_fields.keys()
        blocks.append([folder])
        if common:
            blocks[-1] += [f"  settings of all {folder}", *_settings([contracts[0]], set())]
        found = [names.every()] if folder == "networks" else [registry.every(folder, c) for c in contracts]
        for shipped in (True, False):
            for name in sorted({name for every in found for name in every}):
                classes = [every[name] for every in found if name in every]
                if (classes[0].__module__.split(".")[0] == "harness") == shipped:
                    if not shipped and blocks[-1][0] == folder:
                        blocks.append([f"your {folder}"])
                    try:
                        blocks[-1] += [*_plugin(name, classes, {*common})]
                    except Exception as error:  # its hooks and settings are code of the user
                        blocks[-1] += [f"  {name}", wrapped("", explained(name, classes[0], error))]
    if broken := registry.broken():
        blocks.append(["can't be imported", *(wrapped("", problem) for problem in broken)])
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _plugin(name: str, classes: list[type[Any]], common: set[str]) -> Iterator[str]:
    """Yield the lines of a plug-in: its name and what it is, its purpose, its settings but those of all plug-ins."""
    what = _what(classes)
    yield f"  {name}  ({what})" if what else f"  {name}"
    yield wrapped("", _summary(classes[0]))
    yield from _settings(classes, common)


def _settings(classes: list[type[Any]], without: set[str]) -> Iterator[str]:
    """Yield a line for each setting of the classes: key, type, default, description, in columns."""
    wholes = [cls.Settings.model_json_schema() for cls in classes]
    longest = max((len(key) for whole in wholes for key in {*whole.get("properties", {})} - without), default=0)
    for whole in wholes:
        for key, schema in whole.get("properties", {}).items():
            if key in without:
                continue
            default = "required" if key in whole.get("required", []) else f"default {_written(schema.get('default'))}"
            described = f": {schema['description']}" if "description" in schema else ""
            line = f"{_type(schema)}, {default}{described}"
            yield wrapped(f"{'':8}{key}", line, indent=8 + longest + 2)


def _what(classes: list[type[Any]]) -> str:
    """Return which halves of a method a plug-in has, and the kinds of labels that it declares."""
    halves = [cls for cls in classes if issubclass(cls, (Training, Acquisition))]
    words = [" and ".join("training" if issubclass(cls, Training) else "acquisition" for cls in halves)]
    for cls in classes:
        if not issubclass(cls, Dataset):  # whose ``labels`` may be a method of its own
            declared: Any = cls.labels
            try:
                kinds = declared(cls.Settings()) if callable(declared) else declared
            except ValueError:  # a setting has no default
                continue
            words.append(" and ".join(sorted(kinds)))
    return "; ".join(dict.fromkeys(word for word in words if word))


def _summary(cls: type[Any]) -> str:
    """Return the first line of the docstring of a function registered with timm, else of the file's or the class's."""
    module, function = inspect.getmodule(cls), getattr(cls, "written_as", None)
    described = (
        getattr(function, "__doc__", None) or (module.__doc__ if module else None) or cls.__doc__ or "(no docstring)"
    )
    return described.strip().splitlines()[0]


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a setting, from its JSON schema, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(_written, schema["enum"]))
    if "const" in schema:
        return _written(schema["const"])
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    words |= {"array": "list", "object": "mapping"}
    return f"{words.get(schema.get('type', ''), 'any value')} {bounds(schema)}".rstrip()


def _written(value: Any) -> str:
    """Return a value as it is written in YAML."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)

"""Turns pydantic's validation errors into sentences that name the value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from harness.errors import did_you_mean
from harness.settings import Why

LONGEST_VALUE = 60  # characters; longer values are cut in messages


def shown_value(value: Any) -> str:
    """Return a value as written in a config, cut to LONGEST_VALUE characters."""
    return cut(repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def cut(text: str) -> str:
    """Return a text, cut to LONGEST_VALUE characters."""
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _model_at(model: Any, path: Iterable[Any]) -> type[BaseModel] | None:
    """Return the settings class at a key path inside the settings class ``model``, or None if there is none."""
    for key in path:
        field = model.model_fields.get(key) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return None
        models = [m for m in _parts(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
        model = models[0] if models else None  # of Primary | None it is Primary
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _literals(annotation: Any) -> list[str]:
    """Return the allowed words of a type such as Literal["warm", "fresh"] | None."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _literals(part)]


NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, such as [0, 1, 2]",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
    "string_too_long": "at most {max_length} characters long",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
}
"""What a value must be, by type of pydantic error, or by the first word of the type: int for int_type, int_parsing."""


def number(value: float) -> str:
    """Return a bound as a user writes it: 1000000000, not 1e+09."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def bounds(schema: dict[str, Any]) -> str:
    """Return the bounds of a number in a JSON schema in words, such as "at least 2 and at most 1000".

    Of two lower bounds it is the higher, because a field may ask for more than its kind of number does.
    """
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    if {"minimum", "exclusiveMinimum"} <= schema.keys():
        words.pop("exclusiveMinimum" if schema["minimum"] > schema["exclusiveMinimum"] else "minimum")
    return " and ".join(f"{word} {number(schema[key])}" for key, word in words.items() if key in schema)


def _why(model: type[BaseModel], path: Iterable[Any]) -> str:
    """Return the reason of the upper bound of the number at a key path, in brackets, or "" if its field has none."""
    parent: type[BaseModel] | None = model
    field = None
    for key in path:
        if parent is not None and key in parent.model_fields:
            field, parent = parent.model_fields[key], _model_at(parent, [key])
    for part in _parts(field.annotation, *field.metadata) if field else ():
        if isinstance(part, Why):
            return f" ({part.reason})"
    return ""


def _parts(*annotations: Any) -> Iterator[Any]:
    """Yield annotations, all types inside them, and what their types are annotated with."""
    for annotation in annotations:
        yield annotation
        yield from _parts(*getattr(annotation, "__metadata__", ()), *get_args(annotation))


def sentence(model: type[BaseModel], error: Any) -> tuple[tuple[Any, ...], str]:
    """Return (key path, problem) of a pydantic error; the problem names the value and what is allowed."""
    path, kind, value = tuple(error["loc"]), error["type"], error["input"]
    if kind == "extra_forbidden":
        parent = _model_at(model, path[:-1]) or model
        allowed = did_you_mean(str(path[-1]), parent.model_fields) or "; this plug-in has no settings"
        return path, f"unknown key {str(path[-1])!r}{allowed}"
    if kind == "missing":
        return path, "this key is required" if isinstance(path[-1], str) else "this entry of the list is missing"
    if kind == "value_error":
        return path, error["msg"].removeprefix("Value error, ")
    # for a union such as "int | str" pydantic appends the type that it tried to the path
    path = tuple(k for k in path if not (isinstance(k, str) and ("[" in k or k in ("str", "int", "float", "bool"))))
    parent = (_model_at(model, path[:-1]) or model) if path else model
    named = [key for key in path if key in parent.model_fields][-1:]  # of an entry of a list, the list
    if kind == "literal_error" and named:
        allowed = did_you_mean(str(value), _literals(parent.model_fields[named[0]].annotation))
        return path, f"{shown_value(value)} is not allowed{allowed}"
    needed = NEEDED.get(kind) or NEEDED.get(kind.split("_")[0])
    if needed is None:
        return path, f"{error['msg'][0].lower()}{error['msg'][1:]}, got {shown_value(value)}"
    bounds = {k: number(v) if isinstance(v, int | float) else v for k, v in error.get("ctx", {}).items()}
    why = _why(model, path) if kind.startswith("less_than") else ""
    return path, f"must be {needed.format(**bounds)}{why}, got {shown_value(value)}"

"""Validation errors as sentences that name the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from harness.config.source import _shown
from harness.errors import did_you_mean


def _model_at(model: Any, place: Iterable[Any]) -> type[BaseModel] | None:
    """Return the settings class at a place inside a settings class."""
    for key in place:
        field = model.model_fields.get(key) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return None
        model = field.annotation
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
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
}
"""What must be, by the type of a pydantic error without what follows its first part: int_type and int_parsing."""


def _sentence(model: type[BaseModel], error: Any) -> tuple[tuple[Any, ...], str]:
    """Return (place, problem) of a pydantic error in words that name the value and what is allowed."""
    place, kind, value = tuple(error["loc"]), error["type"], error["input"]
    if kind == "extra_forbidden":
        parent = _model_at(model, place[:-1]) or model
        allowed = did_you_mean(str(place[-1]), parent.model_fields) or "; it has no settings"
        return place, f"unknown key {str(place[-1])!r}{allowed}"
    if kind == "missing":
        return place, "this key is required"
    if kind == "value_error":
        return place, error["msg"].removeprefix("Value error, ")
    # a union such as "int | str" adds the tried type to the place: of no use to a reader
    place = tuple(p for p in place if not (isinstance(p, str) and ("[" in p or p in ("str", "int", "float", "bool"))))
    parent = (_model_at(model, place[:-1]) or model) if place else model
    if kind == "literal_error" and place and place[-1] in parent.model_fields:
        allowed = did_you_mean(str(value), _literals(parent.model_fields[place[-1]].annotation))
        return place, f"{_shown(value)} is not allowed{allowed}"
    needed = NEEDED.get(kind) or NEEDED.get(kind.split("_")[0])
    if needed is None:
        return place, f"{error['msg'][0].lower()}{error['msg'][1:]}, got {_shown(value)}"
    return place, f"must be {needed.format(**error.get('ctx', {}))}, got {_shown(value)}"

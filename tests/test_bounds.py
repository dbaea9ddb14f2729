"""Every number of every Settings has an upper bound, which a message states with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from harness import registry
from harness.data.dataset import Dataset
from harness.learning.contract import Acquisition, Training
from harness.messages import bounds, sentence
from harness.networks.architecture import Architecture
from harness.networks.timm_model import TimmModel
from harness.settings import LONGEST_LIST, LONGEST_TEXT, Protocol, Recipe, SuiteKeys, Where

CONTRACTS: list[tuple[str, type[Any]]] = [
    ("methods", Training),
    ("methods", Acquisition),
    ("datasets", Dataset),
    ("networks", Architecture),
]


def every() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (name, Settings) of the config and of every plug-in."""
    yield from {"recipe": Recipe, "protocol": Protocol, "where": Where, "suite": SuiteKeys}.items()
    yield "timm", TimmModel.Settings
    for folder, contract in CONTRACTS:
        for name, plugin in registry.every(folder, contract).items():
            yield f"{contract.__name__} {name}", plugin.Settings


def parts(schema: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield every number, list and text of a JSON schema with its key path: for an entry, (list, entries it needs)."""
    if schema.get("type") in ("integer", "number", "array", "string") and not {"enum", "const"} & schema.keys():
        yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from parts(inner, (*path, key))
    for inner in schema.get("anyOf", []):
        yield from parts(inner, path)
    entries = [*schema.get("prefixItems", []), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
    for inner in entries:
        yield from parts(inner, (*path, schema.get("minItems", len(entries))))


SETTINGS = [pytest.param(settings, id=name) for name, settings in every()]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_number_list_and_text_has_an_upper_bound(settings: type[BaseModel]) -> None:
    for path, schema in parts(settings.model_json_schema()):
        bound = {"array": ("maxItems",), "string": ("maxLength",)}.get(schema["type"], ("maximum", "exclusiveMaximum"))
        assert any(key in schema for key in bound), path


def problem(settings: type[BaseModel], path: tuple[Any, ...], value: Any) -> str:
    """Return the message about a value at a key path, whatever other keys lack; "" if it is accepted."""
    written = [value] * max(1, path[1]) if path[1:] else value
    try:
        settings.model_validate_json(json.dumps({path[0]: written}), strict=True)
    except ValidationError as error:
        about = [e for e in error.errors() if e["loc"][0] == path[0]]
        return sentence(settings, about[0])[1] if about else ""
    return ""


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_number_above_its_bound_is_refused_with_bound_and_reason(settings: type[BaseModel]) -> None:
    for path, schema in parts(settings.model_json_schema()):
        if schema["type"] in ("integer", "number") and len(path) <= 2:
            most = schema.get("maximum", schema.get("exclusiveMaximum"))
            for value in (int(most) * 16 + 16, 10**30):
                text = problem(settings, path, value)
                assert text.startswith("must be ") and text.endswith(f", got {value}"), (path, text)
                assert most <= 255 or f"at most {int(most)} (" in text, f"{path}: {text} has no reason"


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(settings: type[BaseModel], value: float) -> None:
    for path, schema in parts(settings.model_json_schema()):
        if schema["type"] in ("integer", "number") and len(path) <= 2:
            assert problem(settings, path, value).startswith("must be a"), path


def test_long_lists_and_texts_are_refused_in_one_short_line() -> None:
    assert problem(SuiteKeys, ("seeds",), [*range(LONGEST_LIST + 1)]).startswith("must be at most 1000 long, got [0, 1")
    assert len(problem(SuiteKeys, ("seeds",), [*range(10**5)])) < 120
    text = problem(Where, ("data",), "x" * (LONGEST_TEXT + 1))
    assert text.startswith("must be at most 4096 characters long, got 'xxx") and len(text) < 120


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minimum": 2, "exclusiveMinimum": 0, "maximum": 10**9}, "at least 2 and at most 1000000000"),
        ({"minimum": 0, "exclusiveMinimum": 0, "maximum": 0.5}, "above 0 and at most 0.5"),
        ({"exclusiveMaximum": 1}, "below 1"),
        ({}, ""),
    ],
)
def test_bounds_in_words(schema: dict[str, Any], words: str) -> None:
    assert bounds(schema) == words

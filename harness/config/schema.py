"""JSON schemas of configs, run.json and records, generated from their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from harness import registry
from harness.data.dataset import Dataset
from harness.learning.contract import Acquisition, Training
from harness.networks.architecture import Architecture
from harness.networks.timm_model import TimmModel
from harness.results.manifest import Manifest
from harness.results.records import CycleRecord
from harness.settings import SuiteKeys, Where

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the schema of a config, including the settings of every plug-in."""
    suite = SuiteKeys.model_json_schema(ref_template="#/$defs/{model}")
    definitions = suite.pop("$defs", {})
    suite["properties"]["dataset"] = {"anyOf": _plugins("datasets", Dataset)}
    suite["properties"]["model"] = {"anyOf": [*_plugins("networks", Architecture), *_other_networks()]}
    acquisition, training = _plugins("methods", Acquisition), _plugins("methods", Training)
    halves = {"acquisition": {"anyOf": acquisition}, "training": {"anyOf": training}}
    pair = {"type": "object", "properties": halves, "additionalProperties": False}
    both = _plugins("methods", Acquisition, Training)
    suite["properties"]["methods"]["additionalProperties"] = {"anyOf": [pair, *acquisition, *both]}
    # no key is required: one part of a mapping may be in the suite and the other at the top level
    for schema in (suite, *definitions.values()):
        schema.pop("required", None)
    return {
        "$schema": DIALECT,
        "$defs": definitions,
        "type": "object",
        "properties": {
            **suite["properties"],
            "plugins": {
                "type": "array",
                "items": {"type": "string"},
                "description": "folders or .py files with plug-ins of your own, relative to the config's folder",
            },
            "where": Where.model_json_schema(),
            "suites": {"type": "object", "additionalProperties": suite},
        },
        "patternProperties": {"^x-": {"description": "anything, to be reused by its anchor"}},
        "additionalProperties": False,
    }


def _plugins(folder: str, *contracts: type[Any]) -> list[dict[str, Any]]:
    """Return the schemas of all plug-ins with classes for all of the contracts: the name alone, and with settings."""
    module = {"type": "string", "pattern": "[.]", "description": "a plug-in of your own: its module"}
    schemas: list[dict[str, Any]] = [
        module,
        {"type": "object", "properties": {"name": module}, "required": ["name"]},
    ]
    found: list[dict[str, Any]] = [registry.every(folder, contract) for contract in contracts]
    for name in found[0]:
        if all(name in every for every in found):
            settings = [every[name].Settings.model_json_schema() for every in found]
            properties = {key: value for schema in settings for key, value in schema.get("properties", {}).items()}
            schema = {**settings[0], "properties": {"name": {"const": name}, **properties}}
            schema.pop("required", None)
            schemas += [{"const": name}, schema]
    return schemas


def _other_networks() -> list[dict[str, Any]]:
    """Return the schemas of networks that are not in the zoo: timm's and a user's, whose settings are not known."""
    name = {"type": "string", "not": {"enum": registry.names("networks")}}
    schema = TimmModel.Settings.model_json_schema()
    own = {"pattern": "[.]", "type": "string"}
    return [
        name,
        {**schema, "properties": {"name": name, **schema["properties"]}},
        {"type": "object", "properties": {"name": own}, "required": ["name"]},
    ]


def run_schema() -> dict[str, Any]:
    """Return the schema of run.json."""
    return {"$schema": DIALECT, **Manifest.model_json_schema()}


def record_schema() -> dict[str, Any]:
    """Return the schema of a record, i.e. of a line of records.jsonl and of ``body.record`` in a cycle file."""
    return {"$schema": DIALECT, **TypeAdapter(CycleRecord).json_schema()}


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "config": config_schema,
    "run": run_schema,
    "record": record_schema,
}
"""``python -m harness.run --schema NAME`` prints these; docs/schemas/ has copies of run and record."""

"""A JSON schema of configs, for editors."""

from __future__ import annotations

from typing import Any

from harness import registry
from harness.data.dataset import Dataset
from harness.learning.contract import Acquisition, Training
from harness.settings import SuiteKeys, Where


def json_schema() -> dict[str, Any]:
    """Return a JSON schema of a config, for editors, with every plug-in's settings."""

    def plugin(folder: str, contract: type[Any]) -> list[dict[str, Any]]:
        found = []
        for name in registry.names(folder):
            cls = registry.find(folder, name, contract)
            if cls is not None:
                schema = cls.Settings.model_json_schema()
                schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
                schema.pop("required", None)
                found += [{"const": name}, schema]
        return found

    suite = SuiteKeys.model_json_schema(ref_template="#/$defs/{model}")
    definitions = suite.pop("$defs", {})
    suite["properties"]["dataset"] = {"anyOf": plugin("datasets", Dataset)}
    acquisition = {"anyOf": plugin("methods", Acquisition)}
    pair = {
        "type": "object",
        "properties": {"acquisition": acquisition, "training": {"anyOf": plugin("methods", Training)}},
        "additionalProperties": False,
    }
    suite["properties"]["methods"]["additionalProperties"] = {"anyOf": [pair, acquisition]}
    # nothing is required: a suite and the top level may each hold a part of a mapping
    for schema in (suite, *definitions.values()):
        schema.pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "type": "object",
        "properties": {
            **suite["properties"],
            "where": Where.model_json_schema(),
            "suites": {"type": "object", "additionalProperties": suite},
        },
        "additionalProperties": False,
    }

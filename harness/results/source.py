"""The results of the run whose selections a run replays: RUN/index_sets/source.json, for the report."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.errors import UserError, printable
from harness.results import disk
from harness.results.manifest import SuiteEntry
from harness.results.records import METRICS

FOLDER = "index_sets"
"""The folder of a run that replays, with its index sets."""
NAME = "source.json"
MOST_BYTES = 200_000_000


def shown(suite: SuiteEntry) -> str:
    """Return the name of a suite's network, with its settings that are not the defaults."""
    model = suite.settings.get("model", {})
    settings = [f"{key} {value}" for key, value in model.items() if key not in ("name", "weights_sha256")]
    settings += ["pretrained"] if "weights_sha256" in model else []
    return f"{suite.model} ({', '.join(settings)})" if settings else suite.model


class SourceSuite(BaseModel):
    """The curves of a suite, with the network that selected."""

    model_config = ConfigDict(frozen=True)

    network: str
    metric: str = Field(pattern=f"^({'|'.join(METRICS)})$")
    """Key of the metric in records."""
    reference: str
    """The row that the others are compared with."""
    curves: dict[str, dict[int, dict[int, float]]]
    """Row of the run that replays -> seed -> number of labelled images -> metric, as a fraction."""


class Source(BaseModel):
    """The suites of the source, by the names that they have in both runs."""

    model_config = ConfigDict(frozen=True)

    suites: dict[str, SourceSuite]

    def packed(self) -> bytes:
        """Return the bytes of the file."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def read(cls, run_dir: Path) -> Source | None:
        """Return the source of a run, or None if it replays no other run. Raises UserError if the file is damaged."""
        path = run_dir / FOLDER / NAME
        try:
            # texts that can be printed: a results folder may come from anywhere
            return cls.model_validate(printable(json.loads(disk.read(path, MOST_BYTES))))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError):  # ValidationError is a ValueError
            raise UserError(f"{path} is damaged: the report can't compare with the run that selected") from None

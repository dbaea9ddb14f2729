"""A line for each cycle in track.csv of the results folder."""

from __future__ import annotations

import csv
from pathlib import Path

from harness.errors import no_formula, readable
from harness.results.records import METRICS, PHASES
from harness.tracking.tracker import Trial

NAMES = ("trial", "suite", "method", "seed")
VALUES = (
    "labelled",
    "cycle",
    *(f"{metric}_percent" for metric in METRICS),
    *(f"seconds/{phase}" for phase in (*PHASES, "cost", "wall")),
    *(f"memory_gib/{kind}" for kind in ("host", "device", "reserved")),
    "final_loss",
)


class Tracker:
    """Appends to track.csv; a value that a cycle does not have is empty."""

    def __init__(self, project: str, folder: Path) -> None:
        self.path = folder.parent / "track.csv"
        self.names: dict[str, list[str]] = {}

    def begin(self, trial: Trial, key: str) -> str:
        """Write the first line if there is no file."""
        texts = map(readable, (trial.id, trial.suite, trial.method))
        self.names[trial.id] = [*map(no_formula, texts), str(trial.seed)]
        if not self.path.exists():
            self._append([*NAMES, *VALUES])
        return trial.id

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Append a line."""
        self._append([*self.names[key], *(str(values.get(name, "")) for name in VALUES)])

    def end(self, key: str, finished: bool) -> None:
        """Do nothing: each line is complete."""

    def _append(self, cells: list[str]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(cells)

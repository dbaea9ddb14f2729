"""What the user sees while a run goes on: one live table on a terminal, one line per finished cycle elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO

from harness.experiment.grid import Unit
from harness.results.records import FIGURES

SURE = 0.03  # part of the work after which its speed says something: the start of the processes counts as well


class Display:
    """Follows the units of a run by their events (start, cycle, end, retry, failed).

    ``finished`` are the cycles of each unit that an earlier run finished: they are reported again, but took no time.
    """

    def __init__(self, units: list[Unit], output: TextIO, finished: Sequence[int] = ()) -> None:
        self.units, self.output = units, output
        self.finished = finished or [0] * len(units)
        self.began = time.time()
        self.running: dict[int, dict[str, Any]] = {}
        self.reached = [0] * len(units)
        """Cycles of each unit that were reported; a retried unit reports some of them again."""
        self.over: set[int] = set()
        self.passes_here = 0
        self.live: Any = None
        if output.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(file=output), auto_refresh=False, transient=True)
            self.live.start()

    def seconds_left(self) -> float | None:
        """Return the expected seconds to the end, from the image passes per second so far."""
        left = 0
        for number, unit in enumerate(self.units):
            if number not in self.over:
                left += sum(unit.passes[self.reached[number] :])
        if not self.passes_here or self.passes_here < SURE * (left + self.passes_here):
            return None
        return (time.time() - self.began) * left / self.passes_here

    def __call__(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        """Take an event and show it."""
        number = self.units.index(unit)
        if event == "start":
            self.running.setdefault(number, {"cycle": None})
        elif event == "cycle":
            self._cycle(number, values)
        elif event == "retry":
            self._print(f"{unit.name}: its process died; it goes on from its last finished cycle")
        elif event == "failed":
            self._end(number)
            self._print(f"{unit.name}: FAILED: {values['failure']}")
        elif event == "end":
            self._end(number)
        self._refresh()

    def _cycle(self, number: int, values: dict[str, Any]) -> None:
        unit, cycle = self.units[number], values["cycle"]
        if cycle < self.reached[number]:
            return  # a retried unit reports its finished cycles again
        self.reached[number] = cycle + 1
        if cycle >= self.finished[number]:
            self.passes_here += unit.passes[cycle]
        self.running[number] = values
        if self.live is None:
            figures = "  ".join(f"{k} {100 * v:.2f} %" for k, v in self._figures(values).items())
            self._print(
                f"{unit.name}: cycle {cycle + 1}/{unit.cycles}, {values['labelled']} labelled: {figures}"
                f"  ({values['cost']:.1f} s; {self._summary()})"
            )

    def _end(self, number: int) -> None:
        self.running.pop(number, None)
        self.over.add(number)

    @staticmethod
    def _figures(values: dict[str, Any]) -> dict[str, float]:
        return {name: values[key] for key, name in FIGURES.items() if key in values}

    def _summary(self) -> str:
        left = self.seconds_left()
        expected = "" if left is None else f", about {_duration(left)} left"
        return f"{len(self.over)}/{len(self.units)} done, {_duration(time.time() - self.began)} gone{expected}"

    def _print(self, line: str) -> None:
        if self.live is not None:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=self.output, flush=True)

    def _refresh(self) -> None:
        if self.live is None:
            return
        from rich.table import Table

        table = Table(title=self._summary(), title_justify="left")
        figure = "/".join(dict.fromkeys(name for values in self.running.values() for name in self._figures(values)))
        for head in ("trial", "cycle", "labelled", figure, "s/cycle", "time left"):
            table.add_column(head, justify="left" if head == "trial" else "right")
        for number, values in sorted(self.running.items()):
            unit = self.units[number]
            if values["cycle"] is None:
                table.add_row(unit.name, f"0/{unit.cycles}", "", "", "", "")
            else:
                figures = " ".join(f"{100 * v:.2f} %" for v in self._figures(values).values())
                cells = (f"{values['cycle'] + 1}/{unit.cycles}", str(values["labelled"]), figures)
                # the cycles to come cost as much per training image as the last one did
                labelled = unit.trial.protocol.labelled()
                left = values["cost"] * sum(labelled[values["cycle"] + 1 : unit.cycles]) / values["labelled"]
                table.add_row(unit.name, *cells, f"{values['cost']:.1f}", _duration(left))
        self.live.update(table, refresh=True)

    def close(self) -> None:
        """End the live table."""
        if self.live is not None:
            self.live.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else (f"{minutes} min {rest:02d} s" if minutes else f"{rest} s")

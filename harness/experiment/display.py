"""The progress display of a run: a live table on a terminal, else one line per finished cycle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

from harness.experiment.grid import Unit
from harness.results.records import METRICS, PHASES, CycleRecord

MIN_DONE = 0.03  # fraction of the work below which no remaining time is shown: starting the processes distorts it


TRACEBACK_IN = "; the traceback is in "
"""Before the name of a log, at the end of the cause of a failure."""

Listener = Callable[[str, Unit, dict[str, Any]], None]
"""Called with (event, unit, values); the event is start, cycle, end, retry, stalled or failed."""


def cycle_values(record: CycleRecord) -> dict[str, Any]:
    """Return the values that the event ``cycle`` reports: cycle, labelled, cost (seconds) and the metrics.

    Also the ``seconds`` of each phase, and the peak ``memory`` in bytes.
    """
    return {
        "cycle": record.cycle,
        "labelled": record.labelled,
        "cost": record.cost_seconds,
        "seconds": {phase: record.seconds.get(phase, 0.0) for phase in PHASES},  # earlier versions have fewer
        "memory": record.peak_memory_bytes,
        **record.metrics,
    }


class Failure(NamedTuple):
    """Why a unit failed."""

    unit: str
    """The name that users see."""
    cause: str


def grouped(failures: list[Failure]) -> list[list[Failure]]:
    """Return failures by their cause: trials fail like the first cycle that they share."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.cause.partition(TRACEBACK_IN)[0], []).append(failure)
    return list(groups.values())


class Display:
    """Shows the progress of a run's units, from their events.

    ``finished`` is the number of cycles of each unit that an earlier run finished. Units report these cycles again, but
    they took no time in this run.
    """

    def __init__(self, units: list[Unit], output: TextIO, finished: Sequence[int] = ()) -> None:
        self.units, self.output = units, output
        self.finished = finished or [0] * len(units)
        self.began = time.time()
        self.running: dict[int, dict[str, Any]] = {}
        self.reached = [0] * len(units)
        """Number of reported cycles of each unit; a retried unit reports some of them again."""
        self.over: set[int] = set()
        self.failures: list[Failure] = []
        self.failed: set[int] = set()
        self.passes_done = 0
        """Image passes of the cycles that finished in this run."""
        self.followers: list[Listener] = []
        """Called with each event, too."""
        self.live: Any = None
        if output.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=output)
            if console.is_terminal and not console.is_dumb_terminal:  # else rich shows nothing
                self.live = Live(console=console, auto_refresh=False, transient=True)
                self.live.start()

    def seconds_left(self) -> float | None:
        """Return the expected seconds until the run ends, from its image passes per second so far; None: too early."""
        left = 0
        for number, unit in enumerate(self.units):
            if number not in self.over:
                left += sum(unit.passes[self.reached[number] :])
        if not self.passes_done or self.passes_done < MIN_DONE * (left + self.passes_done):
            return None
        return (time.time() - self.began) * left / self.passes_done

    def __call__(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        """Handle an event of a unit and update the display."""
        number = self.units.index(unit)
        if event == "start":
            self.running.setdefault(number, {"cycle": None})
        elif event == "cycle":
            self._cycle(number, values)
        elif event == "retry":
            self.say(f"{unit.name}: {values['cause']}; it restarts from its last finished cycle")
        elif event == "stalled":
            self.say(
                f"{unit.name}: STALLED, without progress for {duration(values['seconds'])}; it is restarted after "
                f"{duration(values['limit'])}"
            )
        elif event == "failed":
            self._end(number)
            self.failed.add(number)
            self.failures.append(Failure(unit.name, values["failure"]))
            same = next(group for group in grouped(self.failures) if self.failures[-1] in group)
            self.say(f"{unit.name}: FAILED" + (f" like {same[0].unit}" if len(same) > 1 else f": {same[0].cause}"))
        elif event == "end":
            self._end(number)
        self._refresh()
        for follower in self.followers:
            follower(event, unit, values)

    def _cycle(self, number: int, values: dict[str, Any]) -> None:
        unit, cycle = self.units[number], values["cycle"]
        if cycle < self.reached[number]:
            return  # a retried unit reports its finished cycles again
        self.reached[number] = cycle + 1
        if cycle >= self.finished[number]:
            self.passes_done += unit.passes[cycle]
        self.running[number] = values
        if self.live is None:
            shown = "  ".join(f"{k} {100 * v:.2f} %" for k, v in self._metrics(values).items())
            self.say(
                f"{unit.name}: cycle {_cycle_of(cycle, unit)}, {values['labelled']} labelled: {shown}"
                f"  ({values['cost']:.1f} s; {self._summary()})"
            )

    def _end(self, number: int) -> None:
        self.running.pop(number, None)
        self.over.add(number)

    @staticmethod
    def _metrics(values: dict[str, Any]) -> dict[str, float]:
        return {name: values[key] for key, name in METRICS.items() if key in values}

    def _summary(self) -> str:
        left = self.seconds_left()
        expected = "" if left is None else f", about {duration(left)} remaining"
        return f"{len(self.over)}/{len(self.units)} done, elapsed {duration(time.time() - self.began)}{expected}"

    def say(self, line: str) -> None:
        """Print a line, above the live table if there is one."""
        if self.live is not None:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=self.output, flush=True)

    def _refresh(self) -> None:
        if self.live is None:
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._summary(), title_justify="left")
        metric = "/".join(dict.fromkeys(name for values in self.running.values() for name in self._metrics(values)))
        for head in ("trial", "cycle", "labelled", metric, "s/cycle", "remaining"):
            table.add_column(head, justify="left" if head == "trial" else "right")
        for number, values in sorted(self.running.items()):
            unit = self.units[number]
            if values["cycle"] is None:
                table.add_row(Text(unit.name), "", "", "", "", "")
            else:
                metrics = " ".join(f"{100 * v:.2f} %" for v in self._metrics(values).values())
                cells = (_cycle_of(values["cycle"], unit), str(values["labelled"]), metrics)
                # assumes that the remaining cycles cost as much per labelled image as the last one
                labelled = unit.trial.protocol.labelled()
                left = values["cost"] * sum(labelled[values["cycle"] + 1 : unit.cycles]) / values["labelled"]
                table.add_row(Text(unit.name), *cells, f"{values['cost']:.1f}", duration(left))
        self.live.update(table, refresh=True)

    def restart(self, line: str) -> None:
        """Print why all running units have ended; they run again."""
        self.running.clear()
        self.say(line)
        self._refresh()

    def close(self) -> None:
        """Stop the live table, if there is one."""
        if self.live is not None:
            self.live.stop()


def _cycle_of(cycle: int, unit: Unit) -> str:
    """Return the number of a cycle and of the unit's last one, from 0 as in records, file names and messages."""
    return f"{cycle}/{unit.cycles - 1}"


def duration(seconds: float) -> str:
    """Return a time in words, for example '2 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else (f"{minutes} min {rest:02d} s" if minutes else f"{rest} s")

"""The progress display of a run: a live view on a terminal, else one line per finished cycle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from harness.experiment import view
from harness.experiment.estimate import Estimate, own_seconds
from harness.experiment.grid import Unit
from harness.experiment.scores import Scores
from harness.experiment.view import Row, State, duration
from harness.results.progress import Progress, here
from harness.results.records import METRICS, PHASES, CycleRecord

TRACEBACK_IN = "; the traceback is in "
"""Before the name of a log, at the end of the cause of a failure."""

Listener = Callable[[str, Unit, dict[str, Any]], None]
"""Called with (event, unit, values); the event is start, cycle, end, retry, stalled or failed."""


def cycle_values(record: CycleRecord, warm: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the values that the event ``cycle`` reports: cycle, labelled, cost (seconds) and the metrics.

    Also the ``seconds`` of each phase, those without the start-up in them (``own_seconds``; for ``warm``, see there),
    and the peak ``memory`` in bytes.
    """
    seconds = {phase: record.seconds.get(phase, 0.0) for phase in PHASES}  # earlier versions have fewer
    return {
        "cycle": record.cycle,
        "labelled": record.labelled,
        "cost": record.cost_seconds,
        "seconds": seconds,
        "own_seconds": own_seconds(record.seconds, warm or {}),
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
    they took no time in this run. ``earlier``: trials that an earlier run finished; ``scores`` holds their cycles.
    ``fresh``: whether each unit starts a process of its own.
    """

    def __init__(
        self,
        units: list[Unit],
        output: TextIO,
        finished: Sequence[int] = (),
        *,
        name: str = "",
        earlier: int = 0,
        scores: Scores | None = None,
        fresh: bool = False,
    ) -> None:
        self.units, self.output = units, output
        self.finished = finished or [0] * len(units)
        self.name, self.earlier, self.scores = name or (units[0].suite if units else ""), earlier, scores
        self.began = time.time()
        self.running: dict[int, dict[str, Any]] = {}
        """Number -> values of the last event ``cycle``, or ``{"cycle": None}``."""
        self.stalled: set[int] = set()
        self.reached = [0] * len(units)
        """Number of reported cycles of each unit; a retried unit reports some of them again."""
        self.over: set[int] = set()
        self.failures: list[Failure] = []
        self.failed: set[int] = set()
        self.followers: list[Listener] = []
        """Called with each event, too."""
        self.estimate = Estimate(units, self.finished, fresh)
        self.look: Callable[[Unit], tuple[Progress | None, float | None]] = lambda unit: (here, None)
        """Unit -> (what its process does, seconds since its last heartbeat), as far as known."""
        self.lock = threading.RLock()
        """Held while anything is shown: the clock ticks in a thread of its own."""
        self.closed = False
        self.live: Any = None
        if output.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=output)
            if console.is_terminal and not console.is_dumb_terminal:  # else rich shows nothing
                self.live = Live(console=console, auto_refresh=False, transient=True)
                self.live.start()

    def seconds_left(self) -> float | None:
        """Return the expected seconds until the run ends; None: too early."""
        with self.lock:
            found = {number: self.look(self.units[number])[0] for number in self.running}
            return self.estimate.left(time.time(), {number: each for number, each in found.items() if each})

    def ended(self) -> dict[str, int]:
        """Return the numbers of trials that are finished, those of an earlier run included, and that failed."""
        with self.lock:
            finished = self.earlier + sum(not self.units[n].shared for n in self.over - self.failed)
            return {"finished": finished, "failed": sum(not self.units[n].shared for n in self.failed)}

    def state(self) -> State:
        """Return what the run does now."""
        with self.lock:
            return State(
                name=self.name,
                done=self.ended()["finished"],
                total=self.earlier + sum(not unit.shared for unit in self.units),
                failed={failure.unit: failure.cause for failure in self.failures},
                elapsed=time.time() - self.began,
                left=None if self.closed else self.seconds_left(),
                rows=[] if self.closed else [self._row(number) for number in sorted(self.running)],
                leaders=self.scores.leaders() if self.scores else [],
            )

    def _row(self, number: int) -> Row:
        unit, values = self.units[number], self.running[number]
        cycle = min(self.estimate.reached[number], unit.cycles - 1)
        found, beat = self.look(unit)
        doing: dict[str, Any] = {}
        if found is not None:
            doing = {"phase": found.phase, "step": found.step, "steps": found.steps}
        return Row(
            suite=unit.suite,
            method=unit.method,
            seed=unit.trial.seed,
            cycle=cycle,
            cycles=unit.cycles,
            labelled=unit.trial.protocol.labelled()[cycle],
            metrics={key: values[key] for key in METRICS if key in values},
            seconds=self.estimate.spent(number, time.time()),
            beat=beat,
            stalled=number in self.stalled,
            **doing,
        )

    def __call__(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        """Handle an event of a unit and update the display."""
        with self.lock:
            self._handle(event, unit, values)
            self.refresh()
        for follower in self.followers:
            follower(event, unit, values)

    def _handle(self, event: str, unit: Unit, values: dict[str, Any]) -> None:
        number = self.units.index(unit)
        if event in ("start", "cycle", "retry"):
            self.stalled.discard(number)
        if event == "start":
            self.running.setdefault(number, {"cycle": None})
            self.estimate.start(number, time.time())
        elif event == "cycle":
            self._cycle(number, values)
        elif event == "retry":
            self.say(f"{unit.name}: {values['cause']}; it goes on from its last checkpoint or finished cycle")
        elif event == "waiting":
            self.running.pop(number, None)
            self.stalled.discard(number)
            self.estimate.wait(number)
            self.say(f"{unit.name}: {values['cause']}, while it started; it starts again after the others")
        elif event == "stalled":
            self.stalled.add(number)
            self.say(
                f"{unit.name}: STALLED, without progress for {duration(values['seconds'])}; its process is ended "
                f"after {duration(values['limit'])}"
            )
        elif event == "failed":
            self._end(number)
            self.failed.add(number)
            self.failures.append(Failure(unit.name, values["failure"]))
            same = next(group for group in grouped(self.failures) if self.failures[-1] in group)
            if not values.get("shown"):
                self.say(f"{unit.name}: FAILED" + (f" like {same[0].unit}" if len(same) > 1 else f": {same[0].cause}"))
        elif event == "end":
            self._end(number)

    def _cycle(self, number: int, values: dict[str, Any]) -> None:
        unit, cycle = self.units[number], values["cycle"]
        if self.scores is not None and not unit.shared:
            metrics = {key: values[key] for key in METRICS if key in values}
            self.scores.add(unit.trial.id, cycle, values["labelled"], metrics)
        if cycle < self.reached[number]:
            return  # a retried unit reports its finished cycles again
        self.reached[number] = cycle + 1
        self.estimate.cycle(number, cycle, values.get("own_seconds", {}), time.time())
        self.running[number] = values
        if self.live is None and cycle >= self.finished[number]:
            shown = "  ".join(f"{k} {100 * v:.2f} %" for k, v in self._metrics(values).items())
            self.say(
                f"{unit.name}: cycle {_cycle_of(cycle, unit)}, {values['labelled']} labelled: {shown}"
                f"  ({values['cost']:.1f} s; {self._summary()})"
            )

    def _end(self, number: int) -> None:
        self.running.pop(number, None)
        self.stalled.discard(number)
        self.over.add(number)
        self.estimate.end(number, time.time())

    @staticmethod
    def _metrics(values: dict[str, Any]) -> dict[str, float]:
        return {name: values[key] for key, name in METRICS.items() if key in values}

    def _summary(self) -> str:
        left = self.seconds_left()
        expected = "" if left is None else f", about {duration(left)} remaining"
        return f"{len(self.over)}/{len(self.units)} done, elapsed {duration(time.time() - self.began)}{expected}"

    def say(self, line: str) -> None:
        """Print a line, above the live view if there is one."""
        with self.lock:
            if self.live is not None:
                self.live.console.print(line, markup=False, highlight=False)
            else:
                print(f"{time.strftime('%H:%M:%S')} {line}", file=self.output, flush=True)

    def refresh(self) -> None:
        """Show the current state in the live view, if there is one."""
        with self.lock:
            if self.live is None or not self.live.is_started:
                return
            from rich.text import Text

            # one line and one column less than the terminal has: a full one would scroll
            size = self.live.console.size
            shown = view.lines(self.state(), size.width - 1, size.height - 1)
            self.live.update(Text("\n".join(shown), no_wrap=True, overflow="crop"), refresh=True)

    def restart(self, line: str) -> None:
        """Print why all running units have ended; they run again."""
        with self.lock:
            self.running.clear()
            self.stalled.clear()
            self.estimate.restart()
            self.say(line)
            self.refresh()

    def close(self) -> None:
        """Stop the live view, if there is one: no unit runs any more."""
        with self.lock:
            self.closed = True
            if self.live is not None:
                self.live.stop()


def _cycle_of(cycle: int, unit: Unit) -> str:
    """Return the number of a cycle and of the unit's last one, from 0 as in records, file names and messages."""
    return f"{cycle}/{unit.cycles - 1}"

"""The view of a run in progress, as lines of text: the same for its own terminal and for harness.status."""

from __future__ import annotations

from pydantic import BaseModel

from harness.errors import readable
from harness.experiment.scores import Leader
from harness.results.records import METRICS

MOST_LEADERS = 3  # suites whose best method is shown
QUIET = 15.0
"""Seconds since the last heartbeat of a trial after which they are shown; a heartbeat comes every 5 seconds."""


class Row(BaseModel):
    """A running trial, or a shared first cycle."""

    suite: str
    method: str
    seed: int
    cycle: int
    cycles: int
    labelled: int
    phase: str = ""
    step: int = 0
    """Finished epochs, or iterations of a method's own training, of ``steps``."""
    steps: int = 0
    metrics: dict[str, float] = {}
    """Of its last finished cycle."""
    seconds: float = 0.0
    """Seconds since this cycle began."""
    beat: float | None = None
    """Seconds since its last heartbeat, or None if it has none."""
    stalled: bool = False

    def doing(self) -> str:
        """Return the phase and the epoch, for example 'train 7/15'; many iterations are a percentage."""
        if self.stalled:
            return "STALLED"
        if not self.steps:
            return self.phase or "start"
        share = f"{self.step}/{self.steps}" if self.steps < 1000 else f"{100 * self.step // self.steps} %"
        return f"{self.phase} {share}"


class State(BaseModel):
    """A run at one moment."""

    name: str
    done: int
    """Finished trials."""
    total: int
    failed: dict[str, str] = {}
    """Name of a failed trial, or shared first cycle -> cause."""
    elapsed: float
    left: float | None = None
    """Expected seconds until the end, or None: too little is known."""
    rows: list[Row] = []
    leaders: list[Leader] = []
    stalled: str = ""
    """A trial whose process stands still, so that it can't say so itself."""

    def later(self, seconds: float) -> State:
        """Return the state so many seconds later, if nothing has happened."""
        rows = [
            row.model_copy(
                update={"seconds": row.seconds + seconds, "beat": None if row.beat is None else row.beat + seconds}
            )
            for row in self.rows
        ]
        left = None if self.left is None else max(0.0, self.left - seconds)
        return self.model_copy(update={"elapsed": self.elapsed + seconds, "left": left, "rows": rows})


def duration(seconds: float) -> str:
    """Return a time in words, for example '2 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else (f"{minutes} min {rest:02d} s" if minutes else f"{rest} s")


def head(state: State, width: int) -> str:
    """Return the first line: how much is done, how long it took, and how long the rest takes."""
    failed = f", {len(state.failed)} FAILED" if state.failed else ""
    left = "" if state.left is None else f", about {duration(state.left)} remaining"
    rest = f": {state.done}/{state.total} trials{failed}, elapsed {duration(state.elapsed)}{left}"
    return cut(readable(state.name), max(10, width - len(rest))) + rest


def leader_line(leader: Leader, several: bool) -> str:
    """Return the sentence about a suite's best method so far."""
    suite = f"{cut(leader.suite, 24)}, " if several else ""
    seeds = "1 seed" if leader.seeds == 1 else f"{leader.seeds} seeds"
    metric = METRICS.get(leader.metric, leader.metric)
    return readable(
        f"best so far ({suite}{leader.labelled} labelled): {leader.method}, {metric} {100 * leader.mean:.2f} % "
        f"({seeds}, {leader.methods} methods)"
    )


def lines(state: State, width: int, height: int | None = None) -> list[str]:
    """Return the view in lines of at most ``width`` columns, and at most ``height`` lines."""
    several = len({leader.suite for leader in state.leaders} | {row.suite for row in state.rows}) > 1
    best = [leader_line(leader, several) for leader in state.leaders[:MOST_LEADERS]]
    if len(state.leaders) > MOST_LEADERS:
        best.append(f"(and {len(state.leaders) - MOST_LEADERS} more suites)")
    room = len(state.rows) if height is None else max(0, height - 2 - len(best))
    shown = state.rows if len(state.rows) <= room else state.rows[: max(0, room - 1)]
    table = _table(shown, several, width) if shown else []
    if len(shown) < len(state.rows):
        table.append(f"... and {len(state.rows) - len(shown)} more running")
    found = [cut(line, width) for line in [head(state, width), *table, *best]]
    return found if height is None else found[:height]


def cut(text: str, width: int) -> str:
    """Return a text that fills at most so many columns of a terminal; an ellipsis stands for what is cut."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "\u2026" if width else ""


def _table(rows: list[Row], several: bool, width: int) -> list[str]:
    from rich.cells import cell_len

    metric = "/".join(METRICS.get(name, name) for name in dict.fromkeys(name for row in rows for name in row.metrics))
    heads = ["trial", "seed", "cycle", "doing", "labelled", metric or "metric", "for"]
    cells = [
        [
            readable(f"{row.suite} / {row.method}" if several else row.method),
            str(row.seed),
            f"{row.cycle}/{row.cycles - 1}",
            row.doing(),
            str(row.labelled),
            " ".join(f"{100 * value:.2f} %" for value in row.metrics.values()) or "-",
            duration(row.seconds),
        ]
        for row in rows
    ]
    if any(row.beat is not None and row.beat > QUIET for row in rows):
        heads.append("silent")
        for cell, row in zip(cells, rows, strict=True):
            cell.append(duration(row.beat) if row.beat is not None and row.beat > QUIET else "")
    widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths) <= width else " "
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - len(gap) * (len(widths) - 1)))
    left = (0, 3)  # columns of words

    def line(cell: list[str]) -> str:
        found = []
        for number, (text, size) in enumerate(zip(cell, widths, strict=True)):
            short = cut(text, size)
            space = " " * (size - cell_len(short))
            found.append(short + space if number in left else space + short)
        return gap.join(found).rstrip()

    return [line(heads), *map(line, cells)]

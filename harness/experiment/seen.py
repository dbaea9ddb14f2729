"""What a results folder tells of its run, from another process or machine. It takes no lock and writes nothing."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from harness.errors import UserError, readable
from harness.experiment import publish, view
from harness.experiment.publish import PUBLISHED, Published
from harness.experiment.scores import Scores
from harness.experiment.upgrade import open_run
from harness.experiment.view import State, duration
from harness.results import lock
from harness.results.lock import Holder
from harness.results.manifest import Manifest

LATE = 6 * PUBLISHED
"""Seconds without a new progress.json after which a run that counts as alive is shown as silent."""
SHOWN = 5  # failures that are named

Condition = Literal["running", "starting", "finished", "failed", "interrupted", "dead", "unfinished"]


@dataclass(frozen=True)
class Seen:
    """A run, as its folder shows it."""

    folder: Path
    condition: Condition
    state: State
    holder: Holder | None = None
    silent: float | None = None
    """Seconds since the run last published its state, of a run that goes on."""
    resume: str | None = None
    """The command that continues a run that is not finished and does not go on."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        process = {key: getattr(self.holder, key) for key in ("host", "pid", "started")} if self.holder else None
        own = {"folder": str(self.folder), "condition": self.condition, "process": process, "silent": self.silent}
        return {**own, "resume": self.resume, **self.state.model_dump(mode="json")}

    def lines(self, width: int, height: int | None = None) -> list[str]:
        """Return it in lines; only paths and commands may be longer than ``width`` columns."""
        who = f"process {self.holder.pid} on {self.holder.host}, since {self.holder.started}" if self.holder else ""
        first = {
            "running": f"running: {who}",
            "starting": f"starting: {who}",
            "finished": "finished",
            "failed": "ended, with failures",
            "interrupted": "interrupted",
            "dead": f"DEAD: {who}, has ended without a word",
            "unfinished": "not running, not finished",
        }[self.condition]
        fit = view.cut if height is not None else _wrapped
        found = [fit(readable(first), width)]
        if self.silent is not None and self.silent > LATE:
            found.append(f"NO SIGN OF LIFE for {duration(self.silent)}: its machine may be stopped or out of reach")
        if self.state.stalled:
            found.append(fit(readable(f"STALLED: {self.state.stalled}"), width))
        last = []
        for name, cause in [*self.state.failed.items()][:SHOWN]:
            last.append(fit(readable(f"FAILED: {name}: {cause}"), width))
        if len(self.state.failed) > SHOWN:
            last.append(f"... and {len(self.state.failed) - SHOWN} more FAILED")
        if self.resume:
            last.append(f"to continue it: {readable(self.resume)}")
        room = None if height is None else max(1, height - len(found) - len(last))
        return [*found, *view.lines(self.state, width, room), *last]


def _wrapped(text: str, width: int) -> str:
    return fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


class Reader:
    """Reads a folder again and again; what is finished is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scores: Scores | None = None
        self.of: Manifest | None = None

    def look(self) -> Seen:
        """Return what the folder shows now. Raises UserError if it holds no run, and StorageError."""
        held = lock.seen(self.folder) if self.folder.is_dir() else None
        manifest, store = open_run(self.folder)
        alive = held is not None and held[1] is not False
        if manifest is None:
            if held is None or not alive:
                Manifest.read(self.folder)  # raises the sentence
                raise UserError(f"{self.folder}: holds no run")
            state = State(name=self.folder.name, done=0, total=0, elapsed=0.0)
            return Seen(self.folder, "starting", state, held[0])
        if self.scores is None or manifest != self.of:
            self.scores, self.of = Scores(manifest), manifest
        finished = self.scores.finished()
        self.scores.read(store, self.scores.cycles.keys() - finished)
        finished = self.scores.finished()
        published = publish.read(self.folder)
        current = published is not None and held is not None and published.token == held[0].token
        if alive and held is not None:
            if current and published is not None:
                silent = max(0.0, time.time() - published.written)
                state = self._now(published, silent)
                # a run that has ended sends its trackers and its notice the rest, and publishes nothing meanwhile
                late = silent if published.outcome == "running" and not state.stalled else None
                return Seen(self.folder, "running", state, held[0], late)
            return Seen(self.folder, "starting", self._stored(manifest, finished, None), held[0])
        state = self._stored(manifest, finished, published)
        condition: Condition = "unfinished"
        if held is not None:
            condition = "dead"
        elif published is not None and published.outcome != "running":
            condition = published.outcome
        if len(finished) == state.total and not (held or state.failed):
            condition = "finished"
        resume = None if len(finished) == state.total else self._command(published)
        return Seen(self.folder, condition, state, held[0] if held else None, None, resume)

    def _now(self, published: Published, since: float) -> State:
        assert self.scores is not None
        state = published.state.later(since)
        return state.model_copy(update={"leaders": self.scores.leaders()})

    def _stored(self, manifest: Manifest, finished: set[str], published: Published | None) -> State:
        """Return the state of a run that does not go on: what is stored, and what it published last."""
        assert self.scores is not None
        last = published.state if published else None
        names = {
            f"{suite.name} / {entry.method} / seed {entry.seed}"
            for suite in manifest.suites
            for trial, (entry, _) in suite.every_trial().items()
            if trial in finished
        }
        return State(
            name=manifest.name,
            done=len(finished),
            total=len(self.scores.cycles),
            failed={name: cause for name, cause in last.failed.items() if name not in names} if last else {},
            elapsed=last.elapsed if last else 0.0,
            leaders=self.scores.leaders(),
        )

    def _command(self, published: Published | None) -> str:
        """Return the command that continues the run."""
        if published is not None and published.command:
            words = [word for word in published.command if word not in ("--resume", "--force")]
            return f"cd {shlex.quote(published.folder)} && python -m harness.run {shlex.join([*words, '--resume'])}"
        folder = str(self.folder)
        words = [str(self.folder / "config.yaml"), f"where.output={folder}", "--resume"]
        return f"python -m harness.run {shlex.join(words)}"

"""A single cycle of a trial, for tests that look inside it."""

from __future__ import annotations

from pathlib import Path

from harness.config.suite import Trial
from harness.data.dataset import Problem
from harness.learning.cycle import Cycle
from harness.results.store import RunStore
from harness.trial import Runner, Surroundings


def cycle_of(trial: Trial, problem: Problem, folder: Path) -> tuple[Runner, Cycle]:
    """Return a runner and its first cycle, not yet trained."""
    runner = Runner(trial, problem, RunStore(folder), Surroundings())
    return runner, runner._begin(0)

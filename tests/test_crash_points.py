"""Every write, sync, rename and removal of a grid is a point at which its process or its machine dies, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from faulty import Died, Drivers, configs, fresh  # noqa: F401 - fixtures

Death = Callable[[Drivers], None]


def kill(drivers: Drivers) -> None:
    """The process dies; what it has written stays."""
    drivers.disk.end()


def lose(drivers: Drivers) -> None:
    """The power fails, and nothing lasts that was not synced."""
    drivers.disk.lose_power()


def tear(drivers: Drivers) -> None:
    """The power fails; names last, but half of the content that was not synced is gone."""
    drivers.disk.lose_power(lambda: True, lambda: 2)


def reorder(drivers: Drivers) -> None:
    """The power fails, and of the changes that were not synced every other one lasts."""
    turns = iter(range(10**6))
    drivers.disk.lose_power(lambda: next(turns) % 2 == 0, lambda: 3)


def before(kind: Death, at: int) -> Callable[[Drivers], None]:
    """Let a driver die before a point."""

    def arm(drivers: Drivers) -> None:
        def hook(number: int, call: str, path: str) -> None:
            if number == at:
                kind(drivers)
                raise Died

        drivers.disk.hook = hook

    return arm


def within(kind: Death, at: int) -> Callable[[Drivers], None]:
    """Let a driver die within a point, if that is a write: a half is written."""

    def arm(drivers: Drivers) -> None:
        drivers.disk.hook = lambda number, call, path: "half" if (number, call) == (at, "write") else None

    return arm


class Grid:
    """The undisturbed run of a grid of ``cycles``, or its extension from fewer, with selections that are made late."""

    def __init__(self, make: Callable[[], Drivers], cycles: int, earlier: int, folder: Path) -> None:
        self.make, self.cycles, self.earlier = make, cycles, folder / "earlier"
        drivers = make()
        if earlier:
            assert drivers.start(earlier).code == 0
            shutil.copytree(drivers.folder, self.earlier)
        drivers.disk.points = 0
        drivers.disk.hook = lambda number, call, path: self.calls.append(call)
        self.calls: list[str] = []
        assert drivers.start(cycles).code == 0
        self.expected = drivers.results()

    def survives(self, arm: Callable[[Drivers], None], death: Death | None = None) -> bool:
        """Run with a death, then to the end; return whether the death struck. What comes out must be the same."""
        drivers = self.make()
        if self.earlier.exists():
            shutil.copytree(self.earlier, drivers.folder)
            drivers.disk.settle()
        arm(drivers)
        ended = drivers.start(self.cycles)
        drivers.disk.hook = lambda number, call, path: None
        if ended.code == 0:
            return False
        assert ended.code is None, ended
        if death:
            death(drivers)
        assert drivers.unfinished() == [], "a cycle that was reported as finished is lost"
        drivers.finish(self.cycles)
        assert drivers.results() == self.expected, "another result"
        assert drivers.left_over() == []
        assert drivers.copies_differ() == []
        return True


def enumerate_points(grid: Grid, deaths: list[Death], every: int = 1, seconds: float = inf) -> int:
    """Let the grid die at every point, or every few, in each way, until the time is up; return how often it did."""
    died, ends = 0, monotonic() + seconds
    for first in range(every):
        for at in range(1 + first, len(grid.calls) + 1, every):
            for kind in deaths:
                if monotonic() > ends:
                    return died
                assert grid.survives(before(kind, at)), (at, kind)
                died += 1
                if grid.calls[at - 1] == "write":
                    assert grid.survives(within(kind, at), None if kind is kill else kind), (at, kind)
                    died += 1
        if seconds == inf:
            break
    return died


BOTH = pytest.mark.parametrize("earlier", [0, 3], ids=["from_the_start", "extended"])


@BOTH
def test_some_points(earlier: int, fresh: Callable[[], Drivers], tmp_path: Path) -> None:  # noqa: F811
    grid = Grid(fresh, 5 if earlier else 3, earlier, tmp_path)
    assert {*grid.calls} >= {"create", "write", "fsync", "rename", "unlink"}
    assert enumerate_points(grid, [kill, lose, tear, reorder], every=41) > 10


@pytest.mark.long
@BOTH
def test_every_point_in_every_way(earlier: int, fresh: Callable[[], Drivers], tmp_path: Path) -> None:  # noqa: F811
    grid = Grid(fresh, 5 if earlier else 3, earlier, tmp_path)
    died = enumerate_points(grid, [kill, lose, tear, reorder])
    print(f"{len(grid.calls)} points, {died} deaths")
    assert died > 4 * len(grid.calls)


@pytest.mark.long
@BOTH
def test_points_of_a_grid_that_is_trained(earlier: int, fresh: Any, tmp_path: Path) -> None:  # noqa: F811
    """As many as five minutes allow for both, spread evenly, each by a loss of power that tears what was not synced."""
    grid = Grid(lambda: fresh(trained=True), 3 if earlier else 2, earlier and 2, tmp_path)
    died = enumerate_points(grid, [tear], every=7, seconds=150)
    print(f"{len(grid.calls)} points, {died} deaths")
    assert died > 10

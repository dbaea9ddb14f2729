"""Thousands of faults, drawn from seeds, in the life of a small grid: whatever happens, it ends as if nothing had."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty import Died, Drivers, Ended, configs, fresh, sums  # noqa: F401 - fixtures

from harness.results.store import TrialStore

KINDS = (
    "kill",  # the process dies, within a write or before any other call
    "stop",  # it stops for minutes, a driver on another host takes over, then it goes on
    "torn write",  # the power fails, and of what was not synced a part is left
    "lost rename",  # the power fails, and some changes of folders are lost
    "full",  # from now on
    "read-only",  # from now on
    "EIO",  # once, or from now on, of a change or of a read
    "clock back",  # by seconds, minutes or a day, and perhaps the process dies later
    "corrupt",  # a file is damaged, emptied, exchanged or removed, between two runs
    "second driver",  # another run begins, with --force or without
)


def nothing(number: int, call: str, path: str) -> None:
    """The hook of a disk without faults."""


class History:
    """The life of a grid with several faults."""

    def __init__(self, seed: int, drivers: Drivers, counts: Counter[str]) -> None:
        self.draw, self.drivers, self.disk, self.counts = random.Random(seed), drivers, drivers.disk, counts
        self.log: list[str] = []
        self.copies_last = True
        """Whether records.jsonl must be right in the end."""
        self.damaged = False
        """Whether a file was damaged at rest: a run that is finished does not look at its states any more."""

    def run(self) -> None:
        """Let faults strike until a run ends without one, or eight have; then let it finish."""
        for _ in range(8):
            kind = self.draw.choice(KINDS)
            cycles = self.draw.choice([3, 5, 5])
            struck = self._corrupt() if kind == "corrupt" else False
            at = self.draw.choice([self.draw.randint(1, 25), self.draw.randint(1, 160)])
            ended, struck = self._start(kind, at, cycles, struck)
            if struck:
                self.counts[kind] += 1
            self._check(ended, struck)
            if not struck and ended.code == 0 and cycles == 5:
                break
        self.drivers.finish(5)

    def _start(self, kind: str, at: int, cycles: int, struck: bool) -> tuple[Ended, bool]:
        """Run once with a fault at a point; return how it ended, and whether the fault struck."""
        disk, found = self.disk, [struck]
        strike = getattr(self, "_" + kind.replace(" ", "_").replace("-", "_"))
        first = disk.points

        def hook(number: int, call: str, path: str) -> str | None:
            if number - first != at:
                return None
            found[0] = True
            self.log.append(f"{kind} at {call} {Path(path).name} of {cycles} cycles")
            return strike(call, cycles)  # type: ignore[no-any-return]

        if kind == "EIO" and self.draw.random() < 0.4:
            first_read = disk.reads

            def read_hook(number: int, path: str) -> None:
                if number - first_read == at:
                    found[0] = True
                    self.log.append(f"EIO at reading {Path(path).name}")
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)

            disk.read_hook = read_hook
        elif kind != "corrupt":
            disk.hook = hook
        self._after = lambda: None
        ended = self.drivers.start(cycles)
        disk.hook, disk.read_hook, disk.refusing = nothing, lambda number, path: None, None
        self._after()
        self.log.append(f"-> {ended.code} {ended.err.strip()[-200:]}")
        return ended, found[0]

    def _check(self, ended: Ended, struck: bool) -> None:
        assert "Traceback" not in ended.out + ended.err and "FAILED" not in ended.err, "a fault is no failed trial"
        assert ended.code in (None, 0, 1, 2)
        if ended.code == 2 and "newer harness" in ended.err:  # the number in run.json is damaged
            (self.drivers.folder / "run.json").unlink()
            self.disk.settle()
        elif ended.code == 2 and not struck:
            assert "without renewal for 5 minutes it counts as gone" in ended.err
            self.disk.now += 400
        elif ended.code == 1:
            assert ended.err.splitlines()[-1].startswith(("error: ", "stopped: "))
        assert self.drivers.unfinished() == [], "a cycle that was reported as finished is lost"

    # ----------------------------------------------------------------------- faults: called at a point of a driver

    def _kill(self, call: str, cycles: int) -> str | None:
        if call == "write" and self.draw.random() < 0.5:
            return "half"
        self.disk.end()
        raise Died

    def _torn_write(self, call: str, cycles: int) -> str | None:
        self._after = lambda: self.disk.lose_power(lambda: True, lambda: self.draw.randrange(4))
        return self._kill(call, cycles)

    def _lost_rename(self, call: str, cycles: int) -> str | None:
        self._after = lambda: self.disk.lose_power(lambda: self.draw.random() < 0.5, lambda: self.draw.randrange(4))
        return self._kill(call, cycles)

    def _full(self, call: str, cycles: int) -> None:
        self.disk.refusing = errno.ENOSPC

    def _read_only(self, call: str, cycles: int) -> None:
        self.disk.refusing = errno.EROFS

    def _EIO(self, call: str, cycles: int) -> None:  # noqa: N802
        if self.draw.random() < 0.5:
            self.disk.refusing = errno.EIO
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _clock_back(self, call: str, cycles: int) -> None:
        self.disk.now -= self.draw.choice([10, 400, 86_400])
        if self.draw.random() < 0.5:
            later = self.disk.points + self.draw.randint(1, 60)
            self.disk.hook = lambda number, call, path: self._kill(call, cycles) if number == later else None

    def _stop(self, call: str, cycles: int) -> None:
        here = self.disk.boot
        self.disk.boot = "elsewhere 0"
        self.disk.now += 400
        self._other(cycles)
        self.disk.boot = here
        self.copies_last = False  # the rename that it stopped before may be that of an older copy

    def _second_driver(self, call: str, cycles: int) -> None:
        if self.draw.random() < 0.5:
            self._other(cycles, force=True)
            self.copies_last = False
        else:
            before = self._contents()
            own = f'"pid":{self.disk.pid},'.encode()
            holding = any(name.startswith("lock.") and own in content for name, content in before.items())
            ended = self._other(cycles, dies=False)
            if holding:
                assert ended.code == 2 and " is in use by " in ended.err, ended
                assert self._contents() == before, "a refused run changes nothing"

    def _other(self, cycles: int, force: bool = False, dies: bool = True) -> Ended:
        """Run another driver while the first is at a point; perhaps it dies. The first goes on without more faults."""
        later = self.disk.points + self.draw.randint(1, 200) if dies else 0
        self.disk.hook = lambda number, call, path: self._kill(call, cycles) if number == later else None
        ended = self.drivers.start(cycles, force)
        self.disk.hook = nothing
        self.log.append(f"the other driver -> {ended.code} {ended.err.strip()[-200:]}")
        assert "Traceback" not in ended.out + ended.err and "FAILED" not in ended.err
        return ended

    def _contents(self) -> dict[str, bytes]:
        folder = self.drivers.folder
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def _corrupt(self) -> bool:
        """Damage one file, at rest; what is lost by that counts as not reported."""
        files = sorted(self._contents()) if self.drivers.folder.exists() else []
        if not files:
            return False
        path = self.drivers.folder / self.draw.choice(files)
        content = bytearray(path.read_bytes())
        way = self.draw.choice(["flip", "truncate", "empty", "zeros", "remove", "exchange"])
        if way == "flip" and content:
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        elif way == "truncate":
            del content[self.draw.randrange(len(content) + 1) :]
        elif way == "exchange":
            content = bytearray((self.drivers.folder / self.draw.choice(files)).read_bytes())
        else:
            content = bytearray(len(content) if way == "zeros" else 0)
        path.unlink() if way == "remove" else path.write_bytes(content)
        self.log.append(f"corrupt: {way} {path.relative_to(self.drivers.folder)}")
        self.disk.settle()
        self.copies_last, self.damaged = False, True
        for lost in self.drivers.unfinished():
            del self.drivers.reported[lost]
        return True


class Undisturbed:
    """The records of a run without faults, and the state after each of its cycles."""

    def __init__(self, drivers: Drivers) -> None:
        self.states: dict[tuple[str, int], Any] = {}
        original = TrialStore.save_state

        def save_state(store: TrialStore, cycle: int, state: dict[str, Any], late: bool = False) -> str:
            self.states[f"{store.folder.parent.name}/{store.folder.name}", cycle + 1] = sums(state)
            return original(store, cycle, state, late)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrialStore, "save_state", save_state)
            assert drivers.start(5).code == 0
        self.records, self.ends = drivers.records(), drivers.states()
        self.outcomes = without(self.records, "shared_from")

    def check(self, history: History) -> None:
        """Assert that the history has come out the same."""
        drivers = history.drivers
        if history.damaged:  # without the shared first cycle a trial trains its own, and nobody needs it any more
            found = without(drivers.records(), "shared_from")
            assert all(
                found[name] == outcomes or (not found[name] and name.startswith("shared"))
                for name, outcomes in self.outcomes.items()
            ), "another result"
            for name, (finished, state) in drivers.states().items():
                assert state == self.states.get((name, finished)), "another state"
        else:
            assert drivers.records() == self.records, "another result"
            assert drivers.states() == self.ends, "another state"
        assert drivers.left_over() == []
        assert not history.copies_last or drivers.copies_differ() == []


def without(records: dict[str, list[dict[str, Any]]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Return the records without a key."""
    return {
        name: [{k: v for k, v in record.items() if k != key} for record in found] for name, found in records.items()
    }


def simulate(first: int, faults: int, fresh: Callable[[], Drivers]) -> Counter[str]:  # noqa: F811
    """Run histories from this seed on until so many faults have struck; return how many of each kind did."""
    undisturbed = Undisturbed(fresh())
    counts: Counter[str] = Counter()
    seed = first
    while counts.total() < faults:
        history = History(seed, fresh(), counts)
        try:
            history.run()
            undisturbed.check(history)
        except Exception as error:
            story = "\n".join(history.log)
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{story}") from error
        seed += 1
    print(f"{counts.total()} faults in {seed - first} histories: {dict(counts)}")
    return counts


@pytest.mark.parametrize("seed", [20299])
def test_seeds_that_failed(seed: int, fresh: Callable[[], Drivers]) -> None:  # noqa: F811
    simulate(seed, 1, fresh)


def test_a_damaged_manifest_is_said(fresh: Callable[[], Drivers]) -> None:  # noqa: F811
    drivers = fresh()
    assert drivers.start(3).code == 0
    path = drivers.folder / "run.json"
    path.write_bytes(path.read_bytes()[:100])
    drivers.disk.settle()
    ended = drivers.start(3)
    assert ended.code == 0
    assert f"{path} is damaged: it is written again, with the suites of this config alone\n" in ended.out
    assert "is damaged" not in drivers.start(3).out


def test_some_faults(fresh: Callable[[], Drivers]) -> None:  # noqa: F811
    counts = simulate(0, 100, fresh)
    assert counts.keys() == {*KINDS}


@pytest.mark.long
@pytest.mark.parametrize("first", [10_000, 20_000, 30_000, 40_000])
def test_more_than_five_thousand_faults(first: int, fresh: Callable[[], Drivers]) -> None:  # noqa: F811
    counts = simulate(first, 1300, fresh)
    assert min(counts[kind] for kind in KINDS) > 30

"""Runs a grid on Ray, in a process of its own: whatever happens to Ray, this process has the last word.

Ray's driver ends with Ray: without a sentence if its node dies, with a stack dump or a traceback in other cases. So it
is a child of this process, a fork, which shares the loaded data. Its output goes to logs/ray.log in the results folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import nullcontext, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import forked
from harness.errors import PLAIN, RayLost, StorageError, UserError, died
from harness.experiment import crash
from harness.experiment.beat import BEAT, LEAST
from harness.experiment.display import duration
from harness.experiment.runner import left_to_run
from harness.on_ray import before
from harness.on_ray.beats import PROGRESS, Stalled, Watch, progress_name
from harness.results import disk, lock, progress
from harness.results.store import RunStore

if TYPE_CHECKING:
    from harness.config.suite import Benchmark
    from harness.data.dataset import LoadedData
    from harness.experiment.display import Display
    from harness.experiment.grid import Grid, Unit
    from harness.experiment.runner import Begin
    from harness.results.progress import Progress
    from harness.settings import Where

ENDING = 15.0
"""Seconds that Ray's driver may take to end when it is asked to, or when the processes of its trials have died."""


def prepare(where: Where) -> None:
    """Check what Ray needs. Raises UserError."""
    if line := before.announcement(where):
        print(line, flush=True)
    before.prepare(where)


def run(benchmark: Benchmark, grid: Grid, data: dict[str, LoadedData], begin: Begin) -> None:
    """Run the units on Ray, after ``prepare``. ``begin`` is called once Ray has started; its display shows it all.

    If Ray dies it is started again, as long as that brings another finished cycle or where.retries are left. After a
    kill by Ray's memory monitor half as many trials run at once. Raises UserError and RayLost.
    """
    driver, where = _Driver(benchmark, data, begin), benchmark.where
    tries, reached = 0, 0
    units = grid.units
    while cause := driver.run(units, where):
        display = driver.display
        assert display is not None
        running = [display.units[number] for number in sorted(display.running)]
        limit = max(1, len(running) // 2)
        if driver.memory_full and len(running) == 1:
            remedy = "it needs a machine with more memory, or smaller batches"
            display("failed", running[0], {"failure": f"{cause}, which ran alone: {remedy}{driver.words()}"})
        elif driver.memory_full and (where.max_concurrent is None or limit < where.max_concurrent):
            where = where.model_copy(update={"max_concurrent": limit})  # halving ends by itself: it is no try
            display.restart(f"{cause}; Ray is started again, with {limit} of {len(running)} trials at once")
        else:
            finished = sum(display.reached)
            tries, reached = (1 if finished > reached else tries + 1), finished
            if tries > where.retries:
                raise RayLost(f"{cause}{driver.words()}")
            again = f"Ray is started again (restart {tries} of {where.retries} without another finished cycle)"
            display.restart(f"{cause}; {again}")
        failed = {id(display.units[number]) for number in display.failed}  # two units may have one name
        left = left_to_run(grid, RunStore(benchmark.output)).units
        units = [unit for unit in left if id(unit) not in failed]


class _Driver:
    """Ray's driver, seen from the process that has started it."""

    def __init__(self, benchmark: Benchmark, data: dict[str, LoadedData], begin: Begin) -> None:
        self.output, self.data, self.begin = benchmark.output, data, begin
        self.log = self.output / "logs" / "ray.log"
        self.watch = Watch(self.output / "ray" / "beats")
        self.display: Display | None = None
        self.units: list[Unit] = []
        self.where = benchmark.where
        self.servers: dict[str, int] = {}
        """The processes of a local Ray, by name: GCS and raylet."""
        self.gone = ""
        self.memory_full = False
        self.earlier = 0
        """Bytes of Ray's own words of earlier runs."""
        self.dead: list[tuple[float, Unit, str]] = []
        """When, which and why units ended: their processes died, or stalled, more often than where.retries."""
        self.stopped: set[int] = set()
        """The numbers of units that stalled: their processes are killed, and do not die by themselves."""
        self.retries: Counter[int] = Counter()
        """How often Tune has started the process of each unit again, by its number."""
        self.looks = 0
        """How often a look into the results folder has begun or ended; odd: it looks."""
        self.unborn: list[str] = []
        """The names of units that Tune gave up with retries left: it does so if a process dies while it starts."""

    def run(self, units: list[Unit], where: Where) -> str | None:
        """Run the units; return None, or why the driver ended before them. Raises UserError."""
        if not units:
            return None
        self.watch.clear()
        progress.clear(self.output / PROGRESS)
        self.units, self.where, self.servers, self.gone = units, where, {}, ""
        with disk.answering(self.log):
            self.log.parent.mkdir(exist_ok=True)
            self.log.touch()
            self.earlier = self.log.stat().st_size
        self.memory_full = False
        self.dead.clear()
        self.stopped.clear()
        self.retries.clear()
        self.unborn.clear()
        ours, its = get_context("fork").Pipe()
        child: Any = get_context("fork").Process(target=_drive, args=(its, ours, units, self.data, where, self.output))
        with self.display.lock if self.display else nullcontext():  # its thread may hold what the child needs
            forked.start(child)
        its.close()
        try:
            return self._listen(ours, child, units, where)
        finally:
            _end(child)
            ours.close()
            with suppress(OSError):  # other files may be there
                if self.display is None and not self.words():  # nothing has begun
                    self.log.unlink()
                    self.log.parent.rmdir()
                elif self.display is not None and not (self.output / "run.json").exists():  # moved: Tune made it again
                    shutil.rmtree(self.output / "ray", ignore_errors=True)
                    self.output.rmdir()

    def _seen(self, unit: Unit) -> tuple[Progress | None, float | None]:
        """Return what a running unit does, and the seconds since its last heartbeat, as far as known."""
        number = next((number for number, each in enumerate(self.units) if each is unit), None)
        found = progress.read(self.output / PROGRESS / progress_name(unit))
        return found, None if number is None else self.watch.silent(number)

    def words(self) -> str:
        """Return where Ray's own words are, if there are any."""
        with suppress(OSError):
            if self.log.stat().st_size:
                return f"; Ray's own words are in {self.log}"
        return ""

    def _forget_words(self) -> None:
        """Remove Ray's own words of this run: they add nothing to ours."""
        with suppress(OSError):
            os.truncate(self.log, self.earlier)

    def _oversee(self, limit: float, over: threading.Event) -> None:
        """Say if a look into the results folder takes more than ``limit`` seconds: else nobody would."""
        seen, silent = self.looks, 0.0
        while not over.wait(BEAT):
            looks, earlier = self.looks, silent
            silent = silent + BEAT if looks == seen and looks % 2 else 0.0
            seen = looks
            if earlier <= limit < silent:
                print(  # whoever waits may hold the lock of the display
                    f"{self.output} has not answered for {duration(silent)}: its file system hangs; the run goes on as "
                    "soon as it answers",
                    file=sys.stderr,
                    flush=True,
                )

    def _listen(self, pipe: Connection, child: Any, units: list[Unit], where: Where) -> str | None:
        over = threading.Event()
        threading.Thread(target=self._oversee, args=(max(where.stalled_after / 2, LEAST), over), daemon=True).start()
        try:
            return self._heed(pipe, child, units, where)
        finally:
            over.set()

    def _heed(self, pipe: Connection, child: Any, units: list[Unit], where: Where) -> str | None:
        silent, shown = 0.0, set[int]()
        began, started = time.monotonic(), False
        while True:
            try:
                told = pipe.recv() if pipe.poll(1.0 if not started else BEAT) else None
            except (EOFError, OSError):
                child.join(ENDING)
                if self.display is None:
                    how = died(child.exitcode)
                    raise UserError(f"Ray could not be started ({how}){self.words()}") from None
                if child.exitcode is not None and child.exitcode >= 0 and (gone := self._gone()):  # else it was killed
                    return f"Ray has died (its {gone} has ended)"
                return f"Ray has died (its driver ended with {died(child.exitcode)})"
            if not started and time.monotonic() - began > before.START_SECONDS:
                child.kill()
                if self.display is None:
                    raise before.too_slow(where)
                return f"Ray has not started again within {before.START_SECONDS:.0f} s"
            if told is None:
                silent += BEAT if started else 1.0
                limit = where.stalled_after if self.display else max(where.stalled_after, before.START_SECONDS)
                if silent > limit:
                    child.kill()
                    if self.display is None:
                        raise before.too_slow(where)
                    return f"Ray's driver has made no progress for {duration(silent)}"
            else:
                silent = 0.0
                kind, *values = told
                if kind == "say":
                    started = True
                    print(*values, flush=True)
                elif kind == "servers":
                    self.servers = values[0]
                elif kind == "begin":
                    if self.display is None:
                        try:
                            self.display = self.begin(*values)
                        except UserError:
                            self._forget_words()
                            raise
                        self.display.look = self._seen
                    pipe.send(self.display.ended())
                elif kind == "slots" and self.display is not None:
                    self.display.estimate.slots = values[0]
                elif kind == "refused":
                    if self.display is None:
                        self._forget_words()
                        raise UserError(*values)
                    return str(*values)
                elif kind == "disk":
                    raise StorageError(*values)
                elif kind == "memory":
                    self.memory_full = True
                    if self.display is None:
                        raise UserError("Ray could not be started: the memory of a machine is full")
                    return "the memory of a machine was full, and Ray has killed a trial"
                elif kind == "lost":
                    if self.display is None:
                        raise UserError(f"Ray could not be started ({values[0]}){self.words()}")
                    return f"Ray has failed ({values[0]})"
                elif kind == "finished":
                    self._release(0.0)
                    return f"the process of {self.unborn[0]} died while it started" if self.unborn else None
                elif kind == "event" and self.display is not None:
                    event, number, details = values
                    if event == "refused":
                        raise StorageError(details["refusal"])
                    if event == "dead" and self.retries[number] < where.retries:
                        self.unborn.append(units[number].name)
                        self.display("waiting", units[number], {"cause": self._why(units[number], number, False)})
                    elif event == "dead":
                        self.dead.append((time.monotonic(), units[number], self._why(units[number], number, True)))
                    else:
                        if event == "retry":
                            self.retries[number] += 1
                            details = {"cause": self._why(units[number], number, False)}
                        self.display(event, units[number], details)
                    if event in ("retry", "dead"):
                        self.stopped.discard(number)
                    if event in ("failed", "dead", "end", "retry"):
                        self.watch.end(number)
                        shown.discard(number)
            self._gone()
            self._release(ENDING)
            self.looks += 1
            self._look(pipe, units, where, shown)
            self.looks += 1

    def _why(self, unit: Unit, number: int, too_often: bool) -> str:
        """Return why the process of a unit has ended, with the name of the log that says more."""
        log, where = crash.log_of(unit, self.output.absolute()), self.where
        signal_ = crash.signal_in(log)
        often = f" more often than where.retries ({where.retries}) allows" if too_often else ""
        elsewhere = f"; Ray's own words are in {self.log}" if too_often else ""
        if number in self.stopped:
            often = often and f", {often.strip()}"
            limit = max(where.stalled_after, LEAST)
            said, elsewhere = f"it stalled for {limit:g} s, and its process was ended{often}", ""
        elif signal_:
            said = f"its process died of {signal_}{often}"
        elif gone := self._gone():
            said = f"its process died{often}, as Ray's {gone} has"
        else:
            said = f"its process died{often}, without a trace, as by SIGKILL or os._exit"
        return said + (crash.at(log) or elsewhere)

    def _gone(self) -> str:
        """Return which process of a local Ray has ended first: 'GCS', 'raylet' or ''; the others follow it."""
        self.gone = self.gone or next((name for name, pid in self.servers.items() if not lock.is_alive(pid)), "")
        return self.gone

    def _release(self, after: float) -> None:
        """Show the units whose processes died too often, once it is clear that Ray itself has not died with them."""
        while self.dead and time.monotonic() - self.dead[0][0] >= after:
            _, unit, why = self.dead.pop(0)
            assert self.display is not None
            self.display("failed", unit, {"failure": why})

    def _look(self, pipe: Connection, units: list[Unit], where: Where, shown: set[int]) -> None:
        """Show units without progress, and later let the driver kill their processes: Tune then restarts them."""
        if self.display is None:
            return
        limit = max(where.stalled_after, LEAST)
        stalled = self.watch.stalled(limit / 2)
        shown &= {unit.unit for unit in stalled}
        for found in stalled:
            if found.seconds > limit:
                self.watch.end(found.unit)
                self.stopped.add(found.unit)
                shown.discard(found.unit)
                with suppress(OSError):
                    pipe.send(found)
            elif found.unit not in shown:
                shown.add(found.unit)
                times = {"seconds": found.seconds, "limit": limit}
                self.display("stalled", units[found.unit], times)


def _end(child: Any) -> None:
    """End the driver: it leaves the cluster, or stops the local Ray, which also ends if its driver is killed."""
    if child.is_alive():
        child.terminate()
        child.join(ENDING)
    if child.is_alive():
        child.kill()
    child.join()


def _drive(
    pipe: Connection, others: Connection, units: list[Unit], data: dict[str, LoadedData], where: Where, output: Path
) -> None:
    """Be Ray's driver: run the units, and tell the parent process all that happens."""
    others.close()
    os.setsid()  # a terminal sends Ctrl-C to the parent only
    forked.begin()  # the local Ray ends by itself once this process has died, and a cluster ends the trials
    sys.stdout.flush()
    sys.stderr.flush()
    with (output / "logs" / "ray.log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors=PLAIN, closefd=False, buffering=1)  # noqa: SIM115
        for number in (1, 2)
    )
    code = 1
    try:
        _work(pipe, units, data, where, output)
        code = 0
    except SystemExit:
        pass
    except UserError as error:
        pipe.send(("refused", str(error)))
    except StorageError as error:
        pipe.send(("disk", str(error)))
    except BrokenPipeError:  # the parent has ended
        pass
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("memory",) if "OutOfMemory" in traceback.format_exc() else ("lost", _named(error)))
    os._exit(code)


def _named(error: BaseException) -> str:
    """Return an exception in a few words; those of Ray's own ones are about its insides."""
    name = type(error).__name__
    own = type(error).__module__.startswith("ray.") or not str(error)
    return name if own else f"{name}: {error}".splitlines()[0][:200]


def _work(pipe: Connection, units: list[Unit], data: dict[str, LoadedData], where: Where, output: Path) -> None:
    """Start or join Ray, run the units, and leave it. Raises UserError, and what Ray raises."""
    from harness.on_ray import session, trials

    numbers = {id(unit): number for number, unit in enumerate(units)}
    pipe.send(("say", session.start(where)))
    pipe.send(("servers", session.servers()))
    ours = session.agents()
    try:
        signal.signal(signal.SIGTERM, forked.leave)  # Ray's own handler aborts
        notes, devices = session.check(where, units, output, data)
        for note in notes:
            pipe.send(("say", note))
        pipe.send(("begin", devices))
        earlier = pipe.recv()
        ours |= session.agents()
        trials.run(
            units,
            data,
            where,
            output,
            lambda event, unit, values: pipe.send(("event", event, numbers[id(unit)], values)),
            _Steps(pipe),
            lambda slots: pipe.send(("slots", slots)),
            earlier,
        )
        ours |= session.agents()
        pipe.send(("finished",))
    finally:
        session.stop(ours)


class _Steps:
    """Shows the parent that the driver lives, and kills the processes that the parent names."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.told = pipe, time.monotonic()

    def __call__(self) -> None:
        """Do so; Tune calls it several times a second."""
        from harness.on_ray import session

        if time.monotonic() - self.told > BEAT:
            self.told = time.monotonic()
            self.pipe.send(("alive",))
        while self.pipe.poll():
            found: Stalled = self.pipe.recv()
            session.kill(found.node, found.pid)

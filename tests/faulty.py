"""A disk that fails where a test says, and drivers on it that run a grid without training.

``Disk`` stands in for the module ``os`` in harness.results.disk and harness.results.lock. It works on real files, but
knows what of them would survive a loss of power: the content of a file that was synced, under the names that its folder
had when that was synced. Every call that changes something is a point, at which a test may end the process, refuse the
call, or let another driver run first.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from harness import run as command
from harness import trial
from harness.config.load import load_config
from harness.config.suite import Benchmark, Trial
from harness.errors import Death
from harness.experiment import executor, grid, runner
from harness.experiment.display import Display
from harness.learning.checkpoints import Steps
from harness.learning.process import Placement
from harness.report.write import read
from harness.results import disk, lock
from harness.results.clock import Clock
from harness.results.records import CycleRecord
from harness.results.store import TrialStore, write_atomically
from harness.trial import ActiveLearner, Selection, Trained

TEST = 1  # the process of the test itself
FOLDER = "a folder"  # what stands for one among the names that last
PRESENCE = (errno.ENOSPC, errno.EDQUOT)
"""Errors that do not concern the removal of a file."""


class Died(Death):
    """The process of the driver ends here, and does nothing more."""


class File:
    """A file, whatever its name; ``lasting``: the content that it has after a loss of power."""

    def __init__(self, lasting: bytes | None = None) -> None:
        self.lasting = lasting


Hook = Callable[[int, str, str], str | None]
"""Called with (number, call, path) of a point before it happens; may raise, or return 'half' for a write that dies."""


class Disk:
    """The module ``os`` of a driver, whose clock, processes and errors are a test's."""

    O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_TRUNC = os.O_RDONLY, os.O_WRONLY, os.O_CREAT, os.O_EXCL, os.O_TRUNC

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.now = 1_700_000_000.0
        self.pid = self.last = TEST
        self.alive = {TEST}
        self.boot = "boot 0"
        self.points = self.reads = 0
        self.hook: Hook = lambda number, call, path: None
        self.read_hook: Callable[[int, str], None] = lambda number, path: None
        self.refusing: int | None = None
        """The error of every change from now on."""
        self.opened: dict[int, str] = {}
        self.settle()

    # ------------------------------------------------------------------------------------------------ calls of os

    def _point(self, call: str, path: str) -> str | None:
        self._living()
        self.points += 1
        found = self.hook(self.points, call, path)
        self._living()
        if self.refusing and not (call == "unlink" and self.refusing in PRESENCE):
            raise OSError(self.refusing, os.strerror(self.refusing), path)
        return found

    def _living(self) -> None:
        if self.pid not in self.alive:
            raise Died

    def _stamp(self, path: str) -> None:
        os.utime(path, (self.now, self.now))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        self._living()
        path = str(path)
        if not flags & os.O_CREAT:
            self.reads += 1
            self.read_hook(self.reads, path)
            file = os.open(path, flags)
        else:
            there = os.path.exists(path)
            if not (there and flags & os.O_EXCL):
                self._point("create", path)
            file = os.open(path, flags, mode)
            if not there:
                self.files[path] = File()
            self._stamp(path)
        self.opened[file] = path
        return file

    def close(self, file: int) -> None:
        del self.opened[file]
        os.close(file)

    def fstat(self, file: int) -> os.stat_result:
        self._living()
        return os.fstat(file)

    def read(self, file: int, size: int) -> bytes:
        self._living()
        return os.read(file, size)

    def write(self, file: int, data: Any) -> int:
        path = self.opened[file]
        half = max(len(data) // 2, 1)
        try:
            if self._point("write", path) == "half":
                os.write(file, data[:half])
                self.end()
                raise Died
        except OSError as error:
            if error.errno not in PRESENCE or not os.fstat(file).st_size == 0:
                raise
            done = os.write(file, data[:half])  # what still fitted
        else:
            done = os.write(file, data)
        self._stamp(path)
        return done

    def fsync(self, file: int) -> None:
        path = self.opened[file]
        self._point("fsync", path)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            if path.startswith(self.base):
                self.lasting[path] = self._now_in(path)
        else:
            self.files[path].lasting = Path(path).read_bytes()

    def replace(self, path: Any, to: Any) -> None:
        path, to = str(path), str(to)
        self._point("rename", path)
        os.replace(path, to)
        self.files[to] = self.files.pop(path)

    def unlink(self, path: Any) -> None:
        self._living()
        path = str(path)
        if os.path.exists(path):
            self._point("unlink", path)
            self.files.pop(path, None)
        os.unlink(path)

    def mkdir(self, path: Any) -> None:
        self._point("mkdir", str(path))
        os.mkdir(path)
        self.lasting.setdefault(str(path), {})

    def utime(self, path: Any) -> None:
        self._point("utime", str(path))
        self._stamp(str(path))

    def listdir(self, path: Any) -> list[str]:
        self._living()
        self.reads += 1
        self.read_hook(self.reads, str(path))
        return os.listdir(path)

    def stat(self, path: Any) -> os.stat_result:
        self._living()
        return os.stat(path)

    def getpid(self) -> int:
        return self.pid

    def kill(self, pid: int, number: int) -> None:
        assert number == 0
        if pid not in self.alive:
            raise ProcessLookupError(errno.ESRCH, "No such process")

    # -------------------------------------------------------------------------------------------------- what happens

    def _now_in(self, folder: str) -> dict[str, Any]:
        """Return name -> the file, or FOLDER, in a folder as it is."""
        found: dict[str, Any] = {}
        for entry in os.scandir(folder):
            found[entry.name] = FOLDER if entry.is_dir() else self.files.setdefault(entry.path, File())
        return found

    def settle(self) -> None:
        """Let everything last as it is, for example after a test has changed files itself."""
        self.files: dict[str, File] = {}
        self.lasting: dict[str, dict[str, Any]] = {}
        for folder, _, names in os.walk(self.base):
            for name in names:
                path = f"{folder}/{name}"
                self.files[path] = File(Path(path).read_bytes())
            self.lasting[folder] = self._now_in(folder)

    def end(self) -> None:
        """End the process: nothing that it still tries happens."""
        self.alive.discard(self.pid)

    def begin(self) -> None:
        """Begin another process."""
        self.pid = self.last = self.last + 1
        self.alive.add(self.pid)

    def lose_power(self, lasts: Callable[[], bool] = lambda: False, left: Callable[[], int] = lambda: 0) -> None:
        """End all processes, and lose what was not synced.

        ``lasts()``: whether a change of a folder lasts nevertheless; ``left()``: what is left of a content: 0 what was
        synced before, 1 zeros, 2 a half, 3 all.
        """
        self.alive &= {TEST}
        after: dict[str, bytes | None] = {}

        def visit(folder: str) -> None:
            here = self._now_in(folder) if os.path.isdir(folder) else {}
            before = self.lasting.get(folder, {})
            for name in here.keys() | before.keys():
                path = f"{folder}/{name}"
                new, old = here.get(name), before.get(name)
                entry = new if new is old or lasts() else old
                if entry is FOLDER:
                    after[path] = None
                    visit(path)
                elif entry is not None:
                    after[path] = self._left(entry, path if entry is new else None, left)

        visit(self.base)
        for name in os.listdir(self.base):
            shutil.rmtree(f"{self.base}/{name}")
        for path in sorted(after):
            content = after[path]
            if content is None:
                os.mkdir(path)
            else:
                Path(path).write_bytes(content)
                self._stamp(path)
        self.settle()
        self.boot = f"boot {int(self.boot.split()[1]) + 1}"

    def _left(self, file: File, path: str | None, left: Callable[[], int]) -> bytes:
        """Return what is left of a file; ``path``: where it is now, if it has a name."""
        now = Path(path).read_bytes() if path else file.lasting
        if now == file.lasting or now is None:
            return file.lasting or b""
        return [file.lasting or b"", bytes(len(now)), now[: len(now) // 2], now][left()]


# ------------------------------------------------------------------------------------------- a grid without training

CONFIG = """\
dataset: {name: digits, limit: 100, test_limit: 20}
model: {name: resnet_small, width: 4}
recipe: {epochs: 1}
protocol: {initial: 8, budget: 4, cycles: CYCLES, start: warm}
methods: {Ran: random, LC: least_confidence}
seeds: [0]
where: {trials: in_process, checkpoint_minutes: 0.000000001}
"""
"""Two trials that share their first cycle, with a checkpoint after every step."""

TRAINED = CONFIG.replace("{Ran: random, LC: least_confidence}", "{Ran: METHOD, LC: METHOD}")
for name in ("random", "least_confidence"):
    TRAINED = TRAINED.replace("METHOD", f"{{training: isda, acquisition: {name}}}", 1)
"""The same with a training that has a state, and is really run."""

load, expand = runner._load, grid.expand


@cache
def configured(cycles: int, trained: bool, folder: Path) -> tuple[Benchmark, grid.Grid, Any]:
    """Return the benchmark, its grid and its data; they are the same for all runs, and cost seconds."""
    path = folder / f"{trained}{cycles}" / "grid.yaml"
    path.parent.mkdir()
    path.write_text((TRAINED if trained else CONFIG).replace("CYCLES", str(cycles)))
    benchmark = load_config(str(path), [])
    units = expand(benchmark)
    return benchmark, units, load(benchmark, units) if trained else {suite.name: DATA for suite in benchmark.suites}


class Half:
    """A half of a method, with a state."""

    scores_images = True

    def __init__(self) -> None:
        self.seen = torch.zeros(4)

    def state(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}


class Learner(ActiveLearner):
    """A trial whose cycles cost nothing, and whose every number depends on all that came before."""

    def __init__(self, trial: Trial, data: Any, placement: Any = None, scorer: Any = None) -> None:
        self.trial, self.data, self.placement = trial, data, placement or Placement()
        self.device = torch.device("cpu")
        self.info: Any = SimpleNamespace(per_pixel=False)
        self.labelled = np.arange(trial.protocol.initial)
        self.initial_set: list[int] = []
        self.extra_parameters = 0
        self.weights = torch.full((8,), float(trial.seed))
        state = {"state_dict": lambda: {"weights": self.weights}}
        self.network: Any = SimpleNamespace(num_parameters=lambda: 8, eval=lambda: None, **state)
        self.training, self.acquisition = Half(), Half()  # type: ignore[assignment]
        self.start_clock()

    def start_clock(self) -> None:
        self.began, self.clock, self._joules = time.perf_counter(), Clock(self.device), None
        self.lost_seconds, self._peaks = 0.0, {}

    def pretrained(self) -> dict[str, Any]:
        return {}

    def count_parameters(self) -> int:
        return 0

    def state(self) -> dict[str, Any]:
        halves = {"training": self.training.state(), "acquisition": self.acquisition.state()}
        return {"network": {"weights": self.weights}, **halves}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weights = state["network"]["weights"]
        self.training.seen, self.acquisition.seen = state["training"]["seen"], state["acquisition"]["seen"]  # type: ignore[attr-defined]

    def _draw(self, purpose: str, *parts: Any) -> torch.Generator:
        text = json.dumps([purpose, *parts, self.weights.tolist(), self.labelled.tolist()])
        return torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))

    def open_cycle(self, number: int) -> Any:
        return SimpleNamespace(number=number, warnings=[], health={}, learned={})

    def train(self, cycle: Any) -> Trained:
        draw = self._draw("train", cycle.number, self.training.seen.tolist())  # type: ignore[attr-defined]
        drawn: list[torch.Tensor] = []
        for _ in Steps(self.checkpoints, self.clock, 2, {"draw": draw, "drawn": drawn}):
            drawn.append(torch.rand(6, generator=draw))
        self.weights, self.training.seen = torch.cat(drawn).split([8, 4])  # type: ignore[attr-defined]
        return Trained({"accuracy": float(torch.rand((), generator=draw))}, float(self.weights[0]))

    def select(self, cycle: Any) -> Selection:
        name = self.trial.acquisition.name
        draw = self._draw(name, cycle.number, self.acquisition.seen.tolist())  # type: ignore[attr-defined]
        seen = [torch.rand(4, generator=draw)]
        for _ in Steps(self.checkpoints, self.clock, 2, {"draw": draw, "seen": seen}):
            seen[0] = seen[0] + torch.rand(4, generator=draw)
        self.acquisition.seen = seen[0]  # type: ignore[attr-defined]
        left = np.setdiff1d(np.arange(100), self.labelled)
        return Selection(left[torch.randperm(len(left), generator=draw)[: self.trial.protocol.budget]].tolist())


class Ended(NamedTuple):
    """How a driver ended."""

    code: int | None
    """The exit code; None: it died."""
    out: str
    err: str


class Drivers:
    """Runs of one grid in one folder, one after another or one within another, on a faulty disk."""

    def __init__(self, base: Path, configs: Path, patch: pytest.MonkeyPatch, trained: bool = False) -> None:
        self.folder = base / "run"
        self.configured = partial(configured, trained=trained, folder=configs)
        self.disk = faulty = Disk(base)
        self.reported: dict[tuple[str, int], dict[str, Any]] = {}
        """(Unit, cycle) -> what a driver has reported as finished."""
        for module in (disk, lock):
            patch.setattr(module, "os", faulty)
        patch.setattr(lock, "_machine", lambda: faulty.boot)
        patch.setattr(lock, "_status", lambda pid: ("R", str(pid)) if pid in faulty.alive else None)
        patch.setattr(lock, "STARTING", 0.0)
        patch.setattr(time, "time", lambda: faulty.now)
        patch.setattr(runner, "_load", lambda benchmark, left: self.configured(cycles_of(benchmark))[2])
        patch.setattr(runner, "with_notes", lambda info, data: info)
        patch.setattr(runner, "write", short_report)
        patch.setattr(runner, "Display", self._display)
        ticker = SimpleNamespace(stop=lambda: None, end=lambda outcome: None, publish=lambda outcome: None)
        patch.setattr(runner, "Ticker", lambda *_: ticker)
        if not trained:
            patch.setattr(executor, "ActiveLearner", Learner)
            patch.setattr(trial, "_classes", lambda *_: [])  # there are no labels
            patch.setattr(trial, "_keep_pictures", lambda *_: None)
        patch.setattr(Benchmark, "written", lambda benchmark: "the config")  # it takes longer than a cycle
        patch.setattr(command, "load_config", lambda path, overrides: self._benchmark(int(path)))
        patch.setattr(grid, "expand", lambda benchmark, **_: self.configured(cycles_of(benchmark))[1])

    def _benchmark(self, cycles: int) -> Benchmark:
        benchmark = self.configured(cycles)[0]
        return replace(benchmark, where=benchmark.where.model_copy(update={"output": str(self.folder)}))

    def _display(self, *arguments: Any, **more: Any) -> Display:
        reported = self.reported

        class Noting(Display):
            def __call__(self, event: str, unit: Any, values: dict[str, Any]) -> None:
                if event == "cycle":
                    name = f"shared/{unit.trial.sharing_key}" if unit.shared else f"trials/{unit.trial.id}"
                    reported.setdefault((name, values["cycle"]), values)
                super().__call__(event, unit, values)

        return Noting(*arguments, **more)

    def start(self, cycles: int, force: bool = False) -> Ended:
        """Run the command to its end in a process of its own, also while another driver is stopped at a point."""
        around, holding, opened = self.disk.pid, lock._held, {*self.disk.opened}
        self.disk.begin()
        own, lock._held = self.disk.pid, None
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = command.main([str(cycles), "--resume", *(["--force"] if force else [])])
        except Died:
            code = None
        finally:
            lock._held = holding
        self.disk.alive.discard(own)
        self.disk.pid = around
        for file in {*self.disk.opened} - opened:
            self.disk.close(file)
        return Ended(code, out.getvalue(), err.getvalue())

    def finish(self, cycles: int) -> Ended:
        """Run until the end, as a user would: after the refusal of a lock that can't be looked up, minutes later."""
        for _ in range(3):
            ended = self.start(cycles)
            if ended.code == 0:
                return ended
            assert ended.code == 2 and "without renewal for 5 minutes it counts as gone" in ended.err, ended
            self.disk.now += 400
        raise AssertionError(ended)

    def stores(self) -> dict[str, TrialStore]:
        """Return the stores of all units, by the names of their folders."""
        folders = [*(self.folder / "trials").iterdir(), *(self.folder / "shared").iterdir()]
        return {f"{folder.parent.name}/{folder.name}": TrialStore(folder) for folder in folders}

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Return all records, without what a clock or a process decides."""
        return {name: [decided(record) for record in store.records()] for name, store in self.stores().items()}

    def states(self) -> dict[str, Any]:
        """Return the numbers of finished cycles, and the states after them as bytes."""
        points = {name: store.resume_point() for name, store in self.stores().items()}
        return {name: (finished, sums(state)) for name, (finished, state) in points.items()}

    def results(self) -> Any:
        """Return what must be equal, bit for bit, however often the run was interrupted."""
        return self.records(), self.states()

    def unfinished(self) -> list[tuple[str, int]]:
        """Return what was reported as finished and is not, or not as it was."""
        lost = []
        for (name, cycle), values in self.reported.items():
            records = TrialStore(self.folder / name).records()
            if len(records) <= cycle or records[cycle].metrics["accuracy"] != values["accuracy"]:
                lost.append((name, cycle))
        return lost

    def left_over(self) -> list[str]:
        """Return the names of locks, of temporary files and of checkpoints."""
        names = [path.name for path in self.folder.rglob("*")]
        return [name for name in names if name.endswith(".tmp") or name.startswith((".clock", "lock", "within"))]

    def copies_differ(self) -> list[str]:
        """Return the folders whose records.jsonl does not hold the finished records."""
        wrong = []
        for name, store in self.stores().items():
            copy = store.folder / "records.jsonl"
            lines = "".join(json.dumps(record.to_json()) + "\n" for record in store.records())
            if not copy.exists() or copy.read_text() != lines:
                wrong.append(name)
        return wrong


def cycles_of(benchmark: Benchmark) -> int:
    return benchmark.suites[0].protocol.cycles


DATA: Any = SimpleNamespace(fingerprint="f", names=None)


OF_CHECKPOINTS = re.compile("within the cycle|is not used, and the cycle starts again")
"""What a warning about a checkpoint has in it."""


def decided(record: CycleRecord) -> dict[str, Any]:
    """Return what neither a clock, a process nor its death decides."""
    values = record.to_json()
    for key in ("seconds", "wall_seconds", "peak_memory_bytes", "pid", "lost_seconds"):
        del values[key]
    values["warnings"] = [warning for warning in values["warnings"] if not OF_CHECKPOINTS.search(warning)]
    for shard in values["scoring"]["shards"]:
        for key in ("pid", "seconds", "peak_memory_bytes"):
            shard.pop(key, None)
    return values


def sums(state: Any) -> Any:
    """Return a state with its tensors as bytes."""
    if isinstance(state, dict):
        return {key: sums(value) for key, value in state.items()}
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state


def short_report(folder: Path, show: Callable[[str], object]) -> None:
    """Write a report of a few lines, from the same records and into the same folder as the real one."""
    name, suites = read(folder)
    text = "\n".join([name, *(f"{r.method} {r.seed} {r.cycle} {r.metrics}" for _, rs in suites for r in rs)])
    try:
        write_atomically(folder / "report" / "report.md", text.encode())
    finally:
        show(text)


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@pytest.fixture
def fresh(configs: Path) -> Iterator[Callable[[], Drivers]]:
    """Give drivers with an empty folder at each call."""
    memory = Path("/dev/shm")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
    ):
        base = Path(folder).resolve() / "base"

        def make(trained: bool = False) -> Drivers:
            patch.undo()
            if base.exists():
                shutil.rmtree(base)
            base.mkdir()
            return Drivers(base, configs, patch, trained)

        yield make

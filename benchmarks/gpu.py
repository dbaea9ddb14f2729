"""Every measurement that needs a GPU, in parts that can be stopped and resumed.

    python benchmarks/gpu.py [--part NAME ...] [--minutes 8]    measures what is left, until the minutes are over
    python benchmarks/gpu.py --device cpu --small               tries the script anywhere, in seconds; measures nothing
    python benchmarks/gpu.py --add FILE.json                    adds rows from another machine to results/gpu.csv

Each part runs in a process of its own, step by step. A finished step is in the JSON file and is not run again; a step
that is stopped starts again, and ``table1`` resumes from the cycles that its results folder holds. Rows that were
measured on a GPU, not --small, are added to results/gpu.csv. Exit code 0: all is done; 1: a step failed or is left;
2: the user can fix it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import workers
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["date", "commit", "device", "torch", "part", "quantity", "value", "unit", "spread", "runs", "command"]
GRACE = 20.0
"""Seconds that a part has to end in once the minutes are over."""


@dataclass
class Row:
    """One quantity, and what it should be."""

    quantity: str
    unit: str
    runs: list[float]
    """The value of each run; none if it could not be measured: ``note`` then says why."""
    note: str = ""
    reference: str = ""
    """The target, or what others measured."""

    @property
    def value(self) -> str:
        """Return the median, as it is written."""
        return f"{statistics.median(self.runs):.6g}" if self.runs else ""

    @property
    def spread(self) -> str:
        """Return the smallest and the largest value, and the note."""
        ends = f"{min(self.runs):.6g} to {max(self.runs):.6g}" if len(self.runs) > 1 else ""
        return "; ".join(filter(None, (ends, self.note)))


@dataclass
class Results:
    """The JSON file: what is finished, on which machine."""

    device: str
    torch: str
    small: bool
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """'part: step' -> its date, commit, command, seconds and rows."""

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what a file holds."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)

    def rows(self) -> Iterator[tuple[str, dict[str, Any], Row]]:
        """Yield (part, step, row), part by part."""
        order = [*PARTS]
        for key, step in sorted(self.steps.items(), key=lambda item: order.index(item[0].split(": ")[0])):
            for row in step["rows"]:
                yield key.split(": ")[0], step, Row(**row)

    def table(self) -> str:
        """Return all rows as text."""
        rows = [
            [part, row.quantity, row.value, row.unit, row.spread, "" if self.small else row.reference]
            for part, _, row in self.rows()
        ]
        return tabulate(rows, ["part", "quantity", "median", "unit", "spread", "reference"], disable_numparse=True)


def add(results: Results, path: Path) -> int:
    """Append the rows that a CSV file does not have yet; return how many."""
    known: set[tuple[str, ...]] = set()
    if path.exists():
        with path.open(newline="") as file:
            known = {tuple(row) for row in csv.reader(file)}
    lines = []
    for part, step, row in results.rows():
        origin = step["date"], step["commit"], results.device, results.torch
        line = (*origin, part, row.quantity, row.value, row.unit, row.spread, str(len(row.runs)), step["command"])
        if line not in known:
            lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(lines if known else [COLUMNS, *lines])
    return len(lines)


class Skip(Exception):
    """Why a part can't run here."""


class TimeUp(Exception):
    """The minutes are over before the part is done."""


Steps = Iterator[tuple[str, Callable[[], list[Row]]]]


def given(module: ModuleType, asked: argparse.Namespace, *words: object, small: str = "") -> argparse.Namespace:
    """Return the options of another benchmark: its own defaults, ``words``, and with --small those of ``small``."""
    cut = [*small.split(), "--threads", "1"] if asked.small else []
    return module.arguments().parse_args([*map(str, words), "--device", asked.device, *cut])


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a new process."""
    with workers.processes(1) as pool:
        return pool.submit(function, *arguments).result()


# tests


def gpu_tests(asked: argparse.Namespace) -> Steps:
    """Run the tests that are marked for a GPU, one function after another."""
    if asked.device == "cpu":
        raise Skip("its tests need a GPU")
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text()
        if re.search(r"^pytestmark.*mark\.gpu|^@pytest\.mark\.gpu", text, re.MULTILINE):
            for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE):
                yield name, partial(passed, f"tests/{path.name}::{name}")


def passed(test: str) -> list[Row]:
    """Return how many cases of a test pass."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", test]
        done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        cases = ElementTree.parse(report).findall(".//testcase")  # noqa: S314 - pytest has just written it
    failed = [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if failed:
        print(done.stdout, flush=True)
    note = ", ".join(filter(None, [f"{skipped} skipped" if skipped else "", *(f"failed: {name}" for name in failed)]))
    unit = f"of {len(cases)} cases pass"
    return [Row(test.split("::")[1], unit, [float(len(cases) - len(failed) - skipped)], note)]


# equality


def equality(asked: argparse.Namespace) -> Steps:
    """Compare two runs of a small trial, each in a process of its own."""
    for name in ["eager"] if asked.device == "cpu" else ["eager", "compiled"]:
        yield name, partial(equal, asked, name)


def equal(asked: argparse.Namespace, name: str) -> list[Row]:
    """Return whether two runs have the same bits."""
    one, other = (alone(digest, asked, name == "compiled") for _ in range(2))
    return [Row(f"two runs of DAST-AL, bit for bit, {name}", "1 = equal", [float(one == other)], reference="must be 1")]


def digest(asked: argparse.Namespace, compiled: bool) -> str:
    """Return the digest of a trial's metrics, losses, selections and weights."""
    from measure import noise, noise_trial

    from harness.learning.process import Placement
    from harness.settings import Protocol, Recipe
    from harness.trial import ActiveLearner

    model, images = ("resnet_small", 64) if asked.small else ("resnet18_cifar_projection", 1280)
    batch = images // 10
    # on noise, the default learning rate ends in a loss that is NaN
    common = {"epochs": 2, "batch_size": batch, "inference_batch_size": batch, "learning_rate": 0.01}
    recipe = Recipe(**common, precision="bfloat16", compile=compiled)
    protocol = Protocol(initial=images, budget=batch, cycles=2, candidates=images, start="warm")
    data = noise(3 * images)
    learner = ActiveLearner(noise_trial(recipe, protocol, model, "isda", "epmcm"), data, Placement(asked.device))
    found = hashlib.sha256()
    for number in range(protocol.cycles):
        cycle = learner.open_cycle(number)
        trained = learner.train(cycle)
        selection = learner.select(cycle)
        learner.label(selection.indices)
        found.update(repr((trained.metrics, trained.final_loss, selection.indices)).encode())
    for part in learner.state().values():
        for name, tensor in part.items():
            found.update(name.encode() + tensor.cpu().numpy().tobytes())
    return found.hexdigest()


# training

VARIANTS = {
    "eager": (),
    "autotuned": ("--autotune",),
    "compiled": ("--compile",),
    "compiled, autotuned": ("--compile", "--autotune"),
}
IMAGES = 10_240
"""Of an epoch."""


def training(asked: argparse.Namespace) -> Steps:
    """Time epochs of the harness, bare steps, and bare steps in a CUDA graph."""
    batches = [8] if asked.small else [128, 256, 512, 1024]
    for variant in list(VARIANTS)[:2]:
        for batch in batches:
            yield f"{variant}, batch {batch}", partial(images_per_second, asked, variant, batch, ["harness", "bare"])
    if asked.device == "cpu":
        return
    for kinds in (["harness", "bare"], ["bare, CUDA graph"]):  # graphs last: one that fails may leave CUDA unusable
        for variant in list(VARIANTS) if kinds == ["bare, CUDA graph"] else list(VARIANTS)[2:]:
            for batch in batches[:3:2]:
                yield f"{variant}, batch {batch}, {kinds[-1]}", partial(images_per_second, asked, variant, batch, kinds)


def images_per_second(asked: argparse.Namespace, variant: str, batch: int, kinds: list[str]) -> list[Row]:
    """Return the images per second of kinds of epochs, and the harness's share of the bare steps'."""
    import training as benchmark

    words = "--batch", batch, "--steps", IMAGES // batch, *VARIANTS[variant]
    options = given(benchmark, asked, *words, small="--model resnet_small --steps 2 --rounds 1")
    times = benchmark.epochs(options, kinds)
    images, of = options.batch * options.steps, f"{options.model}, batch {batch}, {variant}"
    target = "target 30000 on an H100" if batch == 128 else ""
    rows = [
        Row(
            f"{kind}: {of}",
            "images/s",
            [images / took for took in times[kind]],
            reference=target if kind == "harness" else "",
        )
        for kind in kinds
    ]
    if {"harness", "bare"} <= times.keys():
        shares = [100 * bare / ours for ours, bare in zip(times["harness"], times["bare"], strict=True)]
        rows.append(Row(f"harness / bare: {of}", "%", shares))
    return rows


# packing


def packing(asked: argparse.Namespace) -> Steps:
    """Train in several processes at once, without MPS and with it."""
    counts = [1, 2] if asked.small else [1, 2, 4, 8]
    for server in (False, True) if asked.device == "cuda" else (False,):
        for count in counts:
            yield f"{count}{' with MPS' * server}", partial(packed, asked, count, server)


def packed(asked: argparse.Namespace, count: int, server: bool) -> list[Row]:
    """Return what so many trials reach together."""
    import packing as benchmark

    words = "--steps", IMAGES // 128, "--seconds", 10
    options = given(benchmark, asked, *words, small="--model resnet_small --batch 8 --steps 2 --seconds 0.1")
    of = f"{options.model}, batch {options.batch}, {count} at once{', with MPS' * server}"
    try:
        with mps() if server else contextlib.nullcontext({}) as environment:
            reached = benchmark.side_by_side(options, count, environment)
    except NoMPS as reason:
        return [Row(f"all trials: {of}", "images/s", [], str(reason))]
    rates = [rate for rate, _ in reached]
    return [
        Row(f"all trials: {of}", "images/s", [sum(rates)], reference="target 120000 on an H100, packed"),
        Row(f"each trial: {of}", "images/s", rates),
        Row(f"peak memory of a trial: {of}", "MiB", [benchmark.mebibytes(reached)]),
    ]


class NoMPS(Exception):
    """Why the Multi-Process Service can't be used."""


@contextlib.contextmanager
def mps() -> Iterator[dict[str, str]]:
    """Run NVIDIA's Multi-Process Service for a ``with`` block; give the variables that a process needs to use it.

    Its pipes and logs lie in a folder of this user's: no setting of the GPU is changed, and no other daemon is met.
    """
    control = shutil.which("nvidia-cuda-mps-control", path=f"{os.environ.get('PATH', '')}:/usr/local/nvidia/bin")
    if control is None:
        raise NoMPS("MPS can't be started: this machine has no nvidia-cuda-mps-control")
    folder = Path(tempfile.gettempdir()) / f"harness-mps-{os.getuid()}"
    pipe, log = folder / "pipe", folder / "log"
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}

    def run(words: list[str], command: str = "") -> tuple[int, str]:
        """Return the exit code and the output, which goes to a file: the daemon would hold a pipe open."""
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    [control, *words],
                    input=command,
                    text=True,
                    env={**os.environ, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=30,
                )
            except subprocess.TimeoutExpired:
                return -1, "it did not answer within 30 s"
            output.seek(0)
            return done.returncode, " ".join(output.read().split())

    def logged() -> str:
        """Return what the daemon has written."""
        return "".join(path.read_text(errors="replace") for path in log.glob("control.log"))

    run([], "quit\n")  # one that an earlier, killed call left
    shutil.rmtree(log, ignore_errors=True)
    for folder in (pipe, log):
        folder.mkdir(parents=True, exist_ok=True)
    code, said = run(["-d"])
    if code:
        raise NoMPS(f"MPS can't be started: {said or f'exit code {code}'}")
    try:
        try:
            yield environment
        except Exception as error:
            if not any(word in str(error) for word in ("CUDA", "MPS")):
                raise  # the harness's own failure, which is no result
            last = logged().strip().splitlines()[-1:]
            raise NoMPS(
                f"training failed under MPS: {type(error).__name__}: {str(error).strip()[:200]} {last}"
            ) from error
        if "NEW CLIENT" not in logged() and not run([], "get_server_list\n")[1].replace(" ", "").isdigit():
            raise NoMPS("MPS was started, but no process used it")
    finally:
        run([], "quit\n")


# isda


def isda(asked: argparse.Namespace) -> Steps:
    """Time ISDA against cross-entropy."""
    for classes in (10, 100):
        for covariance in ("diagonal", "full"):
            yield f"{covariance}, {classes} classes", partial(added, asked, classes, covariance)


def added(asked: argparse.Namespace, classes: int, covariance: str) -> list[Row]:
    """Return what ISDA adds to a step, here and in its original form."""
    import training as benchmark

    words = "--steps", IMAGES // 128
    options = given(benchmark, asked, *words, small="--model resnet_small --batch 8 --steps 2 --rounds 1")
    times = benchmark.isda(options, classes, covariance)
    of, target = f"{options.model}, {covariance}, {classes} classes", (covariance, classes) == ("full", 100)
    return [
        Row(f"ISDA adds: {of}", "%", benchmark.added(times, "ours"), reference="target: at most 20" * target),
        Row(f"its original form adds: {of}", "%", benchmark.added(times, "original")),
    ]


# core_set


def core_set(asked: argparse.Namespace) -> Steps:
    """Time Core-set's selection from a subset and from a pool of ImageNet's size."""
    for rows in (500,) if asked.small else (10_000, 1_000_000):
        yield f"{rows} rows", partial(selected, asked, rows)


def selected(asked: argparse.Namespace, rows: int) -> list[Row]:
    """Return the seconds of a selection."""
    import core_set as benchmark

    options = given(benchmark, asked, "--rows", rows, small="--width 16 --labelled 50 --budget 20 --runs 1")
    costs = benchmark.measured(options)
    of = f"{rows} x {options.width}, {options.labelled} labelled, {options.budget} selected"
    return [
        Row(f"Core-set: {of}", "s", costs.whole, reference="target 0.2" if rows == 10_000 else ""),
        Row(f"its distances to the labelled images: {of}", "s", costs.distances),
        Row(f"reading the features once: {of}", "ms", [1000 * took for took in costs.reading]),
        Row(f"memory besides features: {of}", "GB", [costs.more_bytes / 1e9]),
    ]


# scoring


def scoring(asked: argparse.Namespace) -> Steps:
    """Time EPMCM against the bare forward pass."""
    for classes in (10, 100):
        words = "--model", "resnet18_cifar", "--size", 32, 32, "--batch", 500, "--classes", classes, "--rounds", 20
        yield f"images, {classes} classes", partial(over_forward, asked, words, "--model resnet_small --batch 8")
    words = "--model", "drn_d_22", "--size", 1024, 2048, "--batch", 4, "--classes", 19, "--rounds", 10
    yield "maps", partial(over_forward, asked, words, "--model drn_small --size 32 64 --batch 2")


def over_forward(asked: argparse.Namespace, words: tuple[object, ...], small: str) -> list[Row]:
    """Return what EPMCM adds to a forward pass."""
    import describing as benchmark

    words = *words, "--acquisitions", "epmcm, map"
    options = given(benchmark, asked, *words, small=f"{small} --rounds 1")
    (costs,) = benchmark.measured(options)
    size = "{} x {}".format(*options.size)
    of = f"{options.model}, {options.batch} x {size}, {options.classes} classes"
    more = [100 * (ratio - 1) for ratio in costs.ratios()]
    return [
        Row(f"EPMCM adds: {of}", "%", more, reference="target: at most 2"),
        Row(f"forward pass: {of}", "images/s", [options.batch / took for took in costs.forward]),
        Row(f"memory that EPMCM adds: {of}", "MiB", [costs.more_bytes / benchmark.MIB]),
    ]


def ray_data(asked: argparse.Namespace) -> Steps:
    """Time the Ray Data path against scoring in process."""
    try:
        import scoring as benchmark
    except ImportError as missing:
        raise Skip(f"Ray can't be imported: {missing}") from None
    yield "10 000 images", partial(on_workers, asked, benchmark)


def on_workers(asked: argparse.Namespace, benchmark: ModuleType) -> list[Row]:
    """Return the seconds of scoring on each path."""
    small = "--model resnet_small --images 64 --shards 1 --runs 1 --acquisitions epmcm"
    options = given(benchmark, asked, "--model", "resnet18_cifar", small=small)
    rows = []
    for costs in benchmark.measured(options):
        of = f"{costs.path}: {costs.acquisition}, {options.model}, {options.images} images"
        rows.append(Row(of, "s", costs.walls))
        if costs.started:
            rows += [Row(f"overhead of {of}", "s", costs.overheads), Row(f"start of {of}", "s", [costs.started])]
    return rows


# table1

CONFIG = ROOT / "configs" / "cifar10_table1.yaml"
PUBLISHED = ROOT / "published" / "values.csv"
TABLE_1 = {"source": "DAST-AL authors' logs", "dataset": "cifar10", "network": "resnet18_cifar_projection"}
"""The rows of the authors' logs of Table 1."""
METHODS = ["Ran", "DAST-AL"]
SMALL_TABLE = [
    *("model.name=resnet_small", "model.width=4", "recipe.epochs=1", "recipe.milestones=[]", "recipe.batch_size=16"),
    *("protocol.initial=20", "protocol.budget=10", "protocol.candidates=40", "protocol.cycles=2"),
]


def table1(asked: argparse.Namespace) -> Steps:
    """Continue a run of Table 1, seed by seed, as the command line does, and compare its cycles with the authors'."""
    from harness.config.load import load_config
    from harness.errors import DataMissing

    where = [f"where.output={asked.run}", f"where.device={asked.device}", "where.download=false"]
    if asked.at_once > 1 and asked.device == "cuda" and find_spec("ray"):
        where += ["where.dashboard=false", f"where.gpus_per_trial={1 / asked.at_once}"]
    else:
        where.append("where.trials=in_process")
    words = [*where, *(SMALL_TABLE if asked.small else []), *asked.override]
    benchmark = load_config(CONFIG, words)
    (suite,) = (suite for suite in benchmark.suites if suite.name == CONFIG.stem)
    try:
        source = suite.open_dataset(benchmark.where).info().source
    except DataMissing as missing:
        raise Skip(str(missing)) from None
    all_cycles = len(METHODS) * suite.protocol.cycles
    for seed in asked.seeds:
        code = 0
        if len(stored(asked.run, seed)) < all_cycles:
            only = [f"suite={suite.name}", f"method={','.join(METHODS)}", f"seed={seed}"]
            command = [sys.executable, "-m", "harness.run", str(CONFIG), *words, "--only", *only, "--resume"]
            code = run_until(command, asked.until - GRACE)
        records = stored(asked.run, seed)
        for record in records:
            name = f"{record.method}, seed {seed}, {record.labelled} labelled"
            yield ", ".join([name, *asked.override]), partial(with_authors, record, name, source)
        if len(records) < all_cycles:
            if code in (0, 130, -signal.SIGINT):
                raise TimeUp
            raise RuntimeError(f"harness.run ended with exit code {code}")


def run_until(command: list[str], until: float) -> int:
    """Run a command and interrupt it when the time is up; return its exit code."""
    if time.time() >= until:
        return 130
    print(" ".join(["python", *command[1:]]), flush=True)
    with subprocess.Popen(command) as process:
        try:
            return process.wait(until - time.time())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                return process.wait(GRACE / 2)
            except subprocess.TimeoutExpired:
                return 130
        finally:
            process.kill()


def stored(folder: Path, seed: int) -> list[Any]:
    """Return the records of a seed's cycles that a run has finished."""
    from harness.errors import UserError
    from harness.results.manifest import Manifest
    from harness.results.store import RunStore

    try:
        suite = next(suite for suite in Manifest.read(folder).suites if suite.name == CONFIG.stem)
    except (UserError, StopIteration):
        return []
    trials = [trial for trial, entry in suite.trials.items() if entry.seed == seed and entry.method in METHODS]
    return [record for trial in trials for record in RunStore(folder).trial(trial).records()]


def with_authors(record: Any, name: str, source: str) -> list[Row]:
    """Return a cycle's accuracy next to that of the authors."""
    with PUBLISHED.open(newline="") as file:
        logged = [
            float(row["value"])
            for row in csv.DictReader(file)
            if (row["method"], row["labelled"]) == (record.method, str(record.labelled))
            and row["metric"] == "accuracy"
            and {*TABLE_1.items()} <= {*row.items()}
        ]
    reference = ""
    if logged:
        reference = (
            f"authors {statistics.mean(logged):.2f} ({min(logged):.2f} to {max(logged):.2f}, {len(logged)} trials)"
        )
    rows = [Row(f"accuracy: {name}", "%", [100 * record.metrics["accuracy"]], source, reference)]
    seconds = record.seconds["train"]
    if seconds and not record.shared_from:
        rows.append(Row(f"training: {name}", "images/s", [record.training_images / seconds]))
    return rows


# running

PARTS: dict[str, Callable[[argparse.Namespace], Steps]] = {
    "tests": gpu_tests,
    "equality": equality,
    "training": training,
    "packing": packing,
    "isda": isda,
    "core_set": core_set,
    "scoring": scoring,
    "ray": ray_data,
    "table1": table1,
}
DONE, FAILED, LEFT = 0, 1, 3
"""What a part's process ends with."""


def run_part(asked: argparse.Namespace, name: str) -> None:
    """Run the steps of a part that are left, in this process."""
    os.setpgid(0, 0)  # so that all processes of the part can be ended
    os.chdir(ROOT)  # ./data is looked for there, as by a command of the project
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(LEFT))
    workers.forking = asked.device == "cpu"
    sys.exit(code_of(asked, name))


def code_of(asked: argparse.Namespace, name: str) -> int:
    """Run the steps of a part that are left; return what its process ends with."""
    code = DONE
    try:
        for step, work in PARTS[name](asked):
            key = f"{name}: {step}"
            if key in Results.read(asked.json).steps:
                continue
            if time.time() >= asked.until:
                return LEFT
            print(f"{name}, {step}", flush=True)
            began = time.perf_counter()
            try:
                rows = work()
            except Exception:
                traceback.print_exc()
                code = FAILED
                continue
            command = " ".join(["python benchmarks/gpu.py --part", name, *(f"--override {o}" for o in asked.override)])
            results = Results.read(asked.json)
            results.steps[key] = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": asked.commit,
                "command": command,
                "seconds": round(time.perf_counter() - began, 1),
                "rows": [asdict(row) for row in rows],
            }
            results.write(asked.json)
    except Skip as reason:
        print(f"{name} is skipped: {reason}", flush=True)
    except TimeUp:
        return LEFT
    except Exception:
        traceback.print_exc()
        return FAILED
    return code


def supervise(asked: argparse.Namespace, name: str) -> int:
    """Run a part in a process of its own until the minutes are over; return what it ended with."""
    process = workers.context().Process(target=run_part, args=(asked, name))
    process.start()
    assert process.pid is not None
    try:
        process.join(max(0.0, asked.until - time.time()))
        if process.is_alive():
            process.terminate()
            process.join(GRACE)
    finally:
        for end in (partial(os.killpg, process.pid, signal.SIGKILL), process.kill):
            with contextlib.suppress(ProcessLookupError):
                end()
        process.join()
    return process.exitcode if process.exitcode in (DONE, FAILED) else LEFT


def probe(device: str) -> dict[str, str] | None:
    """Return the names of the device, of torch's version and of the commit; None if the device is not there."""
    import torch

    from harness.results.provenance import commit

    if device == "cuda" and not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "commit": commit()}


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all, in order")
    options.add_argument("--minutes", type=float, default=8.0, help="of this call")
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--small", action="store_true", help="tiny sizes, which try the script and measure nothing")
    options.add_argument("--again", action="store_true", help="run what is finished again, too")
    options.add_argument("--json", type=Path, help="what is finished; default runs/gpu.json, runs/gpu_small.json")
    options.add_argument("--csv", type=Path, default=ROOT / "results" / "gpu.csv", help="default results/gpu.csv")
    options.add_argument("--add", type=Path, metavar="JSON", help="add this file's rows to --csv, and do nothing else")
    options.add_argument("--commit", help="name it where there is no git")
    table = options.add_argument_group("table1")
    table.add_argument(
        "--run", type=Path, help="its results folder; default runs/cifar10_table1, a new one for --small"
    )
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    table.add_argument("--at-once", type=int, default=2, help="trials on the GPU at once; 1: without Ray")
    table.add_argument(
        "--override", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as for harness.run"
    )
    return options


def check(asked: argparse.Namespace) -> str | None:
    """Fill in what the machine says, and make the JSON file; return why nothing can be measured, if so."""
    asked.json = (asked.json or ROOT / "runs" / f"gpu{'_small' * asked.small}.json").resolve()
    asked.run = (asked.run or ROOT / "runs" / f"cifar10_table1{'_small' * asked.small}").resolve()
    machine = alone(probe, asked.device)
    if machine is None:
        return "torch sees no GPU on this machine; --device cpu --small tries the script without one"
    asked.commit = asked.commit or machine["commit"]
    fresh = Results(machine["device"], machine["torch"], asked.small)
    results = Results.read(asked.json) if asked.json.exists() else fresh
    if (results.device, results.small) != (fresh.device, fresh.small):
        kind = " with --small" if results.small else ""
        return f"--json: {asked.json} holds rows of {results.device!r}{kind}; this is {fresh.device!r}: choose another"
    if asked.again:
        results.steps = {k: step for k, step in results.steps.items() if k.split(": ")[0] not in asked.part}
    results.torch = fresh.torch
    results.write(asked.json)
    return None


def belongs(results: Results) -> bool:
    """Return whether rows may be added to the results of the project."""
    return results.device != "cpu" and not results.small


def main(words: list[str] | None = None) -> int:
    """Measure what is left; print one table."""
    asked = arguments().parse_args(words)
    if asked.add:
        results = Results.read(asked.add)
        if not belongs(results):
            print(f"error: --add: {asked.add} holds no rows that were measured on a GPU", file=sys.stderr)
            return 2
        print(f"{add(results, asked.csv)} rows added to {asked.csv}")
        return 0
    asked.until = time.time() + 60 * asked.minutes
    if (problem := check(asked)) is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    codes = {}
    for name in asked.part:
        codes[name] = supervise(asked, name) if time.time() < asked.until else LEFT
        if belongs(Results.read(asked.json)):
            add(Results.read(asked.json), asked.csv)
    results = Results.read(asked.json)
    print(f"\n{results.device}, torch {results.torch}; rows: {asked.json}\n{results.table()}\n")
    for code, what in ((FAILED, "failed"), (LEFT, "not finished: the same command goes on")):
        if names := [name for name, found in codes.items() if found == code]:
            print(f"{', '.join(names)}: {what}", file=sys.stderr)
    return 1 if any(codes.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)

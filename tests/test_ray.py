"""The Ray edge: the same metrics as one plain process, in every layout, through kills and beside foreign packages.

Whole runs are made as a user makes them, in processes of their own. To start a Ray takes as long as to run the grid, so
they join one cluster, except where the Ray of a run is itself what a test is about.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from chaos import SMALL, outcomes

from harness import registry
from harness.config.load import load_config
from harness.results.records import CycleRecord
from harness.results.store import RunStore

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parent.parent

GRID = f"""{SMALL.replace("epochs: 60", "epochs: 30").replace("cycles: 4", "cycles: 3")}
methods:
  Ran: random
  Core-set: core_set
  Sampled: {{acquisition: {{name: epmcm, form: sampled, samples: 20}}, training: isda}}
  DAST-AL: {{acquisition: epmcm, training: isda}}
seeds: [0]
where: {{dashboard: false, warm_workers: true}}
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the environment variables with which a process may join it."""

    address: str
    token: dict[str, str]

    @property
    def joined(self) -> dict[str, str]:
        """The environment of a process that joins without being given an address."""
        return {"RAY_ADDRESS": self.address, **self.token}


def environment_of(added: dict[str, str]) -> dict[str, str]:
    """Return this process's environment without any Ray cluster of its own, and with what is added."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | added


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of(environment),
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out[-3000:] + err[-3000:]
    return out, err


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Run the command on a terminal and return what it shows."""
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.run", *arguments],
        stdout=its,
        stderr=its,
        env=environment_of(environment),
        cwd=ROOT,
    )
    os.close(its)
    shown = b""
    while True:
        try:
            some = os.read(ours, 65536)
        except OSError:  # the other end is closed: the command has ended
            break
        shown += some
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()[-3000:]
    return shown.decode()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def expected(grid: Path) -> dict[str, list[dict[str, object]]]:
    """The outcomes of the grid in one process, without Ray: every run on Ray must have the same."""
    folder = grid.parent / "in_process"
    finish(command(str(grid), "where.trials=in_process", f"where.output={folder}"))
    found = outcomes(folder)
    assert len(found) == 4 and all(len(cycles) == 3 for cycles in found.values())
    return found


GUARD = """
import os, signal, subprocess, sys
subprocess.Popen(sys.argv[1:])
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""
"""Runs a command until stdin is closed, then kills its process group: also when the tests themselves are killed."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with two processors that asks for a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    head = subprocess.Popen(
        [
            *(sys.executable, "-c", GUARD),
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"),
            *("--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment_of(token),
        start_new_session=True,
    )
    assert head.stdin is not None
    try:
        deadline = time.time() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.time() < deadline and head.poll() is None, "the cluster did not start"
            time.sleep(0.2)
        yield Cluster(f"127.0.0.1:{port}", token)
    finally:
        head.stdin.close()  # the guard kills them: a node that is asked to end drains for half a minute
        head.wait()


@pytest.mark.long
def test_two_trials_at_once_on_a_cluster_of_two_cpus_score_on_two_shards_each(
    grid: Path, expected: dict[str, list[dict[str, object]]], cluster: Cluster
) -> None:
    folder = grid.parent / "ray"
    where = ("where.scoring=ray_data", "where.shards=2", f"where.output={folder}", f"where.address={cluster.address}")
    arguments = (str(grid), *where, "--only", "method=Core-set,DAST-AL")
    # Ray tries it once a second, twenty times
    _, err = finish(command(*arguments, RAY_AUTH_TOKEN="wrong", RAY_NUM_REDIS_GET_RETRIES="2"), code=2)
    assert "where.address: can't join the Ray cluster" in err and "RAY_AUTH_TOKEN" in err
    out, _ = finish(command(*arguments, **cluster.token))
    found = outcomes(folder)
    assert len(found) == 2 and all(found[trial] == expected[trial] for trial in found)
    assert f"Ray: joined the cluster at {cluster.address}" in out and "accuracy (%)" in out
    one, other = (sorted(p.stat().st_mtime for p in folder.glob(f"trials/{trial}/cycle_*.json")) for trial in found)
    assert one[0] < other[-1] and other[0] < one[-1]  # side by side, on all the processors there are
    for trial in found:
        first, *_, last = RunStore(folder).trial(trial).records()
        assert last.scoring == {"path": "none", "shards": []}  # nothing is selected after the last cycle
        shards = first.scoring["shards"]
        assert first.scoring["path"] == "ray_data"
        assert len({shard["pid"] for shard in shards} - {first.pid}) == 2
        assert sum(shard["images"] for shard in shards) == 200
        assert all(shard["seconds"] > 0 for shard in shards)


def _wait_for_cycles(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.time() + 120
    while len(list(folder.glob("trials/*/cycle_*.json"))) < count:
        if process.poll() is not None:
            raise AssertionError("\n".join(process.communicate()))
        assert time.time() < deadline, "no cycle was finished in two minutes"
        time.sleep(0.1)


def _trial_processes(driver: int) -> list[int]:
    """Return the pids of the driver's Ray workers that run trials: busy descendants of it."""
    parents, busy = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            status = (process / "status").read_text()
        except OSError:
            continue
        pid = int(process.name)
        parents[pid] = int(status.split("PPid:")[1].split()[0])
        if line.startswith("ray::") and "IDLE" not in line and "Agent" not in line:
            busy.append(pid)

    def belongs(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return [pid for pid in busy if belongs(pid)]


@pytest.mark.long
def test_killed_trials_and_a_killed_driver_lose_nothing(
    grid: Path, expected: dict[str, list[dict[str, object]]], cluster: Cluster
) -> None:
    """The killed run has a Ray of its own, which dies with it; the resumed one joins the cluster."""
    folder = grid.parent / "killed"
    arguments = (str(grid), "where.scoring=in_process", f"where.output={folder}")
    process = command(*arguments)
    _wait_for_cycles(process, folder, 1)
    killed = _trial_processes(process.pid)
    assert killed, "no trial process was found to kill"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    _wait_for_cycles(process, folder, 3)
    process.kill()  # the driver, without a chance to clean up
    process.communicate()
    finished = sum(len(cycles) for cycles in outcomes(folder).values())
    assert 3 <= finished < 12

    refused, message = command(*arguments).communicate(timeout=60)
    assert "--resume" in message and not refused.startswith("Ray")
    out, _ = finish(command(*arguments, "--resume", **cluster.joined))
    assert outcomes(folder) == expected
    assert "already finished" in out or finished < 6  # fewer may be spread so that no unit had ended


@pytest.mark.long
def test_a_resumed_run_takes_up_methods_and_seeds_that_were_added(
    grid: Path, expected: dict[str, list[dict[str, object]]], cluster: Cluster
) -> None:
    folder = grid.parent / "grown"
    part = ("--only", "method=Ran,DAST-AL", "seed=0")
    shown = on_a_terminal(str(grid), f"where.output={folder}", *part, **cluster.joined)
    assert re.search(r"grid: 0/2 trials, elapsed \d+ s", shown) and "accuracy (%)" in shown
    assert all(re.search(rf"^{method} +0 +0/2 ", shown, re.MULTILINE) for method in ("Ran", "DAST-AL"))
    written = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/cycle_*.json")}
    assert len(written) == 6
    finish(command(str(grid), f"where.output={folder}", "--resume", **cluster.joined))
    assert outcomes(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was done twice


def test_a_trial_that_does_not_fit_is_refused_at_once(grid: Path, cluster: Cluster) -> None:
    large = ("where.cpus_per_trial=999", f"where.output={grid.parent / 'large'}")
    process = command(str(grid), *large, **cluster.joined)
    _, err = finish(process, code=2)
    assert "999 CPUs" in err and "where.cpus_per_trial" in err


@pytest.mark.long
def test_a_foreign_package_called_datasets_does_no_harm(
    grid: Path, expected: dict[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    foreign = tmp_path / "site" / "datasets"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("FOREIGN = True\n")
    # sitecustomize imports it before anything else, in the driver and in every Ray worker
    (foreign.parent / "sitecustomize.py").write_text("import datasets\nassert datasets.FOREIGN\n")
    folder = tmp_path / "run"
    where = ("where.scoring=ray_data", "where.shards=1", "where.max_concurrent=1", f"where.output={folder}")
    arguments = (str(grid), *where, "--only", "method=DAST-AL,Core-set")
    finish(command(*arguments, PYTHONPATH=f"{foreign.parent}{os.pathsep}{ROOT}"))
    found = outcomes(folder)
    assert len(found) == 2 and all(found[trial] == expected[trial] for trial in found)
    records = [record for trial in found for record in RunStore(folder).trial(trial).records()]
    scored = {shard["pid"] for record in records for shard in record.scoring["shards"]}
    assert len(scored) == 1, "warm workers keep their scoring workers, from trial to trial"


@pytest.mark.long
def test_the_headline_command_starts_where_only_official_data_exists(tmp_path: Path) -> None:
    registry.load("datasets", "cityscapes").write_cityscapes(tmp_path, train=40, test=4)
    registry.load("datasets", "cifar10")
    write_cifar_archive = sys.modules["harness.datasets._cifar"].write_cifar_archive
    draw = np.random.default_rng(0)
    for kind, classes in (("cifar10", 10), ("cifar100", 100)):
        labels = np.repeat(np.arange(classes), 8)
        images = draw.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        write_cifar_archive(tmp_path, kind, images, labels)
    overrides = (
        "model={name: resnet_small, width: 4}",
        "suites.cityscapes.model={name: drn_small, width: 4}",
        "suites.cityscapes.dataset={name: cityscapes, scale: 0.25}",
        "suites.cityscapes.recipe.crop_size=[128, 128]",
        "recipe.epochs=1",
        "recipe.milestones=[]",
        "protocol={initial: 20, budget: 10, cycles: 2, candidates: 30, start: warm}",
        "seeds=[0]",
        "where.scoring=in_process",  # a worker takes seconds to start; they are tested above
        "where.dashboard=false",
        "where.warm_workers=true",
        "where.download=false",
        f"where.data={tmp_path}",
        f"where.output={tmp_path / 'run'}",
    )
    path = ROOT / "configs" / "full_benchmark.yaml"
    out, _ = finish(command(str(path), *overrides, "--only", "method=Ran,LC,DAST-AL"))
    for suite in load_config(path).suites:
        assert suite.title in out
    found = outcomes(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    absent = [suite["name"] for suite in manifest["suites"] if suite["skipped"]]
    assert absent == ["fig2c"], "ImageNet can't be there, and is optional"
    for suite in manifest["suites"]:
        assert {len(found[trial]) for trial in suite["trials"]} == {0 if suite["skipped"] else 2}
    exclusive = [trial for suite in manifest["suites"] if suite["exclusive"] for trial in suite["trials"]]
    assert exclusive
    for trial in exclusive:  # Table 4's seconds are nobody else's
        assert {r.device_share for r in RunStore(tmp_path / "run").trial(trial).records()} == {1}


@pytest.mark.long
def test_any_number_of_shards_gives_the_same_columns_bit_for_bit(grid: Path, cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compare_shards.py"), str(grid)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment_of(cluster.joined),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("same") == 21  # seven methods, three numbers of shards


def test_records_are_readable(grid: Path, expected: dict[str, list[dict[str, object]]]) -> None:
    for path in (grid.parent / "in_process").glob("trials/*/records.jsonl"):
        lines = [CycleRecord.from_json(json.loads(line)) for line in path.read_text().splitlines()]
        assert [line.outcome() for line in lines] == expected[path.parent.name]

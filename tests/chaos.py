"""Kills what a run on Ray consists of, again and again: python tests/chaos.py [--seed 0] [--kills 60]

Each kill hits, at a random moment or just after a finished cycle, one of: a trial, a scoring worker, Ray's driver, the
run itself, the raylet, the GCS; or it stops one of them for good (SIGSTOP); or memory fills up until Ray's memory
monitor kills a worker. A run that a kill ended is resumed. At the end the selections and metrics must be those of
one undisturbed process, no temporary file may be left, at least half of the kills must have come after finished
cycles, and every kind of kill must have hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness.results.store import RunStore

SMALL = """
dataset: {name: digits, limit: 300, test_limit: 100}
model: {name: resnet_small, width: 4}
recipe: {epochs: 60, batch_size: 32, crop_padding: 1, flip: false, inference_batch_size: 40}
protocol: {initial: 40, budget: 20, cycles: 4, candidates: 200, start: warm}
"""
"""A config of trials of seconds, without methods and seeds."""

CONFIG = f"""{SMALL}
methods:
  Ran: random
  Core-set: core_set
  DAST-AL: {{acquisition: epmcm, training: isda}}
seeds: [0, 1]
where: {{dashboard: false, scoring: ray_data, retries: 20, stalled_after: 30, checkpoint_minutes: 0.002}}
"""
MEMORY_MONITOR = "memory monitor"
ROOM = 0.3
"""Share of the machine's memory that a run may take, beyond what is in use when it starts, before Ray kills."""

KINDS = {
    MEMORY_MONITOR: None,
    "trial": signal.SIGKILL,
    "scoring worker": signal.SIGKILL,
    "Ray's driver": signal.SIGKILL,
    "run": signal.SIGKILL,
    "raylet": signal.SIGKILL,
    "GCS": signal.SIGKILL,
    "stopped trial": signal.SIGSTOP,
    "stopped scoring worker": signal.SIGSTOP,
}


def outcomes(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Return metrics and selections of each trial of a run, without times."""
    manifest = json.loads((folder / "run.json").read_text())
    trials = [trial for suite in manifest["suites"] for trial in suite["trials"]]
    return {trial: [record.outcome() for record in RunStore(folder).trial(trial).records()] for trial in trials}


def processes(top: int) -> dict[int, str]:
    """Return the kind of each process below ``top``."""
    parents, lines = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue

    def below(pid: int) -> bool:
        while pid in parents and pid != top:
            pid = parents[pid]
        return pid == top

    found = {}
    for pid, line in lines.items():
        if below(pid) and (kind := _kind(pid, top, line)):
            found[pid] = kind
    return found


def _kind(pid: int, top: int, line: str) -> str:
    if pid == top:
        return "run"
    if line.startswith("ray::"):
        return "scoring worker" if "Worker" in line else "" if "IDLE" in line or "Agent" in line else "trial"
    if "harness.run" in line:
        return "child" if "trials=in_process" in line or "trials: in_process" in line else "Ray's driver"
    return "raylet" if "raylet/raylet" in line.split(" ")[0] else "GCS" if "gcs_server" in line.split(" ")[0] else ""


def cycles(folder: Path) -> int:
    """Return the number of finished cycles."""
    return len(list(folder.glob("trials/*/cycle_*.json")))


def memory() -> tuple[int, int]:
    """Return (bytes of memory in use, bytes of memory), as Ray counts them."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {words[0]: 1024 * int(words[1]) for words in lines}
    return found["MemTotal:"] - found["MemAvailable:"], found["MemTotal:"]


def fill_memory(top: int, limit: float) -> bool:
    """Take memory up to a share of it, until the memory monitor kills a worker; return whether it did."""
    used, total = memory()
    size = max(0, int((limit + 0.03) * total) - used)
    before = {pid for pid, kind in processes(top).items() if kind in ("trial", "scoring worker")}
    balloon = subprocess.Popen([sys.executable, "-c", f"import time; x = b'x' * {size}; time.sleep(60)"])
    try:
        end = time.time() + 30
        while time.time() < end:
            if before - processes(top).keys() and memory()[0] > limit * total:
                return True
            time.sleep(0.1)
        return False
    finally:
        balloon.kill()
        balloon.wait()


def chaos(seed: int, kills: int, work: Path) -> tuple[Counter[str], int]:
    """Kill so many times, in as many runs as that takes. Raises AssertionError.

    Return the number of kills by kind, and how many of them came after finished cycles.
    """
    draw, done, late = random.Random(seed), Counter[str](), 0
    config = work / "chaos.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "harness.run", str(config)]
    whole = work / "undisturbed"
    subprocess.run(
        [*command, "where.trials=in_process", "where.scoring=in_process", f"where.output={whole}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    expected = outcomes(whole)
    number = 0
    while done.total() < kills:
        folder, number = work / f"run{number}", number + 1
        log = (work / f"{folder.name}.txt").open("a")
        while True:
            resume = ["--resume"] if (folder / "run.json").exists() else []
            used, total = memory()
            limit = used / total + ROOM
            monitor = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "200"}
            words = [*command, *resume, f"where.output={folder}"]
            process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **monitor})
            while process.poll() is None and done.total() < kills:
                _wait(process, folder, draw)
                kind = min(draw.sample(list(KINDS), 3), key=lambda kind: done[kind])  # what is rarely there comes up
                finished = cycles(folder)
                if process.poll() is None and _kill(kind, process.pid, limit, draw):
                    done[kind] += 1
                    late += finished > 0
                    print(f"{time.strftime('%H:%M:%S')} {folder.name}, {finished} cycles: {kind}", flush=True)
            code = process.wait(600)
            if code == 0:
                break
            last = Path(log.name).read_text().strip().rpartition("\n")[2]
            early = code == 2 and last.startswith("error: Ray")  # it died while it started: nothing has begun
            assert early or code in (1, -signal.SIGKILL), f"exit code {code}: {last}"
        assert outcomes(folder) == expected, f"{folder}: seed {seed}"
        assert not list(folder.rglob("*.tmp")), f"{folder}: a temporary file is left"
        assert "Traceback" not in Path(log.name).read_text(), log.name
    assert 2 * late >= done.total(), f"only {late} of {done.total()} kills came after finished cycles"
    assert kills < 5 * len(KINDS) or done.keys() == KINDS.keys(), f"never killed: {KINDS.keys() - done.keys()}"
    return done, late


def _kill(kind: str, run: int, limit: float, draw: random.Random) -> bool:
    """Return whether there was something of this kind to kill."""
    own = [pid for pid, name in processes(run).items() if name == kind.removeprefix("stopped ")]
    number = KINDS[kind]
    if number is None:
        return "trial" in processes(run).values() and fill_memory(run, limit)
    if own:
        os.kill(draw.choice(own), number)
    return bool(own)


def _wait(process: subprocess.Popen[bytes], folder: Path, draw: random.Random) -> None:
    """Wait for the end of the next cycle, at most for half a minute, or, once in three times, for a random time."""
    now, to_next = cycles(folder), draw.random() < 2 / 3
    end = time.time() + (30 if to_next else draw.uniform(1, 15))
    while time.time() < end and process.poll() is None and not (to_next and cycles(folder) > now):
        time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        done, late = chaos(options.seed, options.kills, Path(temporary))
    print(
        f"{done.total()} kills in {time.time() - began:.0f} s, {late} of them after finished cycles; "
        "all runs equal the undisturbed one:"
    )
    print(*(f"  {kind}: {count}" for kind, count in done.items()), sep="\n")

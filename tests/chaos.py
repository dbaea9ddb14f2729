"""Kills what a run on Ray consists of, again and again: python tests/chaos.py [--seed 0] [--kills 60]

Each kill hits, at a random moment or just after a finished cycle, one of: a trial, a scoring worker, Ray's driver, the
run itself, the raylet, the GCS; or it stops one of them for good (SIGSTOP). A run that was ended by a kill is resumed.
At the end the selections and metrics must be those of one undisturbed process, and no temporary file may be left.
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

CONFIG = """
dataset: {name: digits, limit: 300, test_limit: 100}
model: {name: resnet_small, width: 4}
recipe: {epochs: 60, batch_size: 32, crop_padding: 1, flip: false, inference_batch_size: 40}
protocol: {initial: 40, budget: 20, cycles: 4, candidates: 200, start: warm}
methods:
  Ran: random
  Core-set: core_set
  DAST-AL: {acquisition: epmcm, training: isda}
seeds: [0, 1]
where: {dashboard: false, scoring: ray_data, retries: 20, stalled_after: 30}
"""
KINDS = {
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
        return "Ray's driver"
    return "raylet" if "raylet/raylet" in line.split(" ")[0] else "GCS" if "gcs_server" in line.split(" ")[0] else ""


def cycles(folder: Path) -> int:
    """Return the number of finished cycles."""
    return len(list(folder.glob("trials/*/cycle_*.json")))


def chaos(seed: int, kills: int, work: Path) -> Counter[str]:
    """Kill so many times, in as many runs as that takes; return the number of kills by kind. Raises AssertionError."""
    draw, done = random.Random(seed), Counter[str]()
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
            process = subprocess.Popen([*command, *resume, f"where.output={folder}"], stdout=log, stderr=log)
            while process.poll() is None and done.total() < kills:
                _wait(process, folder, draw)
                kind = draw.choice(list(KINDS))
                own = [pid for pid, name in processes(process.pid).items() if name == kind.removeprefix("stopped ")]
                if process.poll() is None and own:
                    pid = draw.choice(own)
                    os.kill(pid, KINDS[kind])
                    done[kind] += 1
                    print(f"{time.strftime('%H:%M:%S')} {folder.name}, {cycles(folder)} cycles: {kind}", flush=True)
            code = process.wait(600)
            if code == 0:
                break
            assert code in (1, -signal.SIGKILL), f"exit code {code}; see {log.name}"
        assert outcomes(folder) == expected, f"{folder}: seed {seed}"
        assert not list(folder.rglob("*.tmp")), f"{folder}: a temporary file is left"
        assert "Traceback" not in Path(log.name).read_text(), log.name
    return done


def _wait(process: subprocess.Popen[bytes], folder: Path, draw: random.Random) -> None:
    """Wait for a random time, or, every other time, for the end of the next cycle, at most for half a minute."""
    end, now = time.time() + draw.uniform(1, 15), cycles(folder)
    if draw.random() < 0.5:
        end = time.time() + 30
    while time.time() < end and process.poll() is None and not (end - time.time() > 15 and cycles(folder) > now):
        time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        done = chaos(options.seed, options.kills, Path(temporary))
    print(f"{done.total()} kills in {time.time() - began:.0f} s, all runs equal the undisturbed one:")
    print(*(f"  {kind}: {count}" for kind, count in done.items()), sep="\n")

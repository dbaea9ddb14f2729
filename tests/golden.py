"""Golden records: do two versions of the code give the same selections, metrics and losses?

    python tests/golden.py against REVISION        # run both versions here and compare them
    python tests/golden.py record FILE             # run this version and keep its records
    python tests/golden.py compare FILE            # run this version and compare it with kept records

Every method of configs/smoke.yaml runs on digits and on synthetic street scenes, with the options that no config uses,
for three cycles on one thread: in one process, and on Ray Tune with Ray Data workers. Records are equal to the last bit
on one machine; another machine or torch version rounds differently, so a file of records is of use only where it was
made.
Options: --checkout DIR runs another checkout than this one; --parts digits_in_process ... runs some of the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent

RENAMED = {"figures": "metrics", "chosen": "selected", "own_initial_set": "initial_set"}
"""Keys of records of schema version 1, and what they are called since."""

COMPARED = ("cycle", "labelled", "selected", "metrics", "final_loss", "per_class", "health", "initial_set", "warnings")

DATASETS: dict[str, dict[str, Any]] = {
    "digits": {
        "dataset": {"name": "digits", "limit": 400, "test_limit": 200},
        "model": {"name": "resnet_small", "width": 4},
        "recipe": {
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.05,
            "milestones": [2],
            "crop_padding": 1,
            "inference_batch_size": 50,
        },
        "protocol": {"initial": 41, "budget": 20, "cycles": 3, "candidates": 210, "start": "warm"},
    },
    "scenes": {
        "dataset": {"name": "scenes", "size": [32, 48], "train": 40, "test": 10},
        "model": {"name": "drn_small", "width": 4},
        "recipe": {
            "epochs": 2,
            "batch_size": 4,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "crop_padding": 0,
            "crop_size": [24, 32],
            "inference_batch_size": 5,
        },
        "protocol": {
            "initial": 7,
            "budget": 4,
            "cycles": 3,
            "candidates": 21,
            "start": "warm",
            "initial_set": "per_run",
        },
    },
}

OPTIONS = {
    "digits": {
        "Pseudo-labels": {"acquisition": {"name": "epmcm", "pseudo_labels": True}, "training": "isda"},
        "SRAAL k-center": {
            "name": "sraal",
            "width": 8,
            "iterations": 20,
            "batch_size": 32,
            "initial_set": "k_center",
        },
    },
    "scenes": {
        "Pixels": {"acquisition": {"name": "epmcm", "resolution": "image"}, "training": "isda"},
        "Fresh sampled": {
            "acquisition": {"name": "epmcm", "statistics": "fresh", "form": "sampled", "samples": 20},
            "training": {"name": "isda", "covariance": "full"},
        },
    },
}
"""Methods whose options no config uses; in process only, because pseudo-labels were scored on one shard at first."""

WHERE = {
    "in_process": {"trials": "in_process", "shards": 1},
    "ray_data": {"scoring": "ray_data", "shards": 2, "warm_workers": True, "dashboard": False},
}

PARTS = [f"{dataset}_{where}" for dataset in DATASETS for where in WHERE]

Records = dict[str, list[dict[str, Any]]]
"""'part / method / seed' -> what is compared of each cycle."""


def run(checkout: Path, parts: list[str]) -> Records:
    """Run the parts with the code of a checkout and return their records."""
    found: Records = {}
    smoke = yaml.safe_load((checkout / "configs" / "smoke.yaml").read_text())["methods"]
    for part in parts:
        dataset, _, where = part.partition("_")
        methods = {**smoke, **(OPTIONS[dataset] if where == "in_process" else {})}
        starts = ("warm", "fresh") if where == "in_process" else ("warm",)
        suites = {
            f"{part}_{start}": {
                **DATASETS[dataset],
                "protocol": {**DATASETS[dataset]["protocol"], "start": start},
                "methods": methods,
                "seeds": {"warm": [0, 1], "fresh": [2]}[start] if where == "in_process" else [0],
            }
            for start in starts
        }
        with tempfile.TemporaryDirectory() as folder:
            config, output = Path(folder, "golden.yaml"), Path(folder, "run")
            config.write_text(yaml.safe_dump({"suites": suites, "where": {**WHERE[where], "output": str(output)}}))
            path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "harness.run", str(config)]
            done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{part} ended with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
            for path in sorted(output.glob("trials/*/records.jsonl")):
                cycles = [as_compared(json.loads(line)) for line in path.read_text().splitlines()]
                first = json.loads(path.read_text().splitlines()[0])
                name = f"{first['suite']} / {first['method']} / seed {first['seed']}"
                found[name] = cycles
        print(f"{part}: {len(found)} trials so far", flush=True)
    return found


def as_compared(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared of a record, under today's names; texts only where they are part of the outcome."""
    now = {RENAMED.get(key, key): value for key, value in record.items()}
    return {key: len(now[key]) if key == "warnings" else now.get(key) for key in COMPARED}


def differences(expected: Records, found: Records) -> list[str]:
    """Return one line for each trial, cycle and key that differs, or that only one side has."""
    lines = [f"{name}: only one version has it" for name in sorted(expected.keys() ^ found.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if len(expected[name]) != len(found[name]):
            lines.append(f"{name}: {len(expected[name])} cycles, now {len(found[name])}")
        for old, new in zip(expected[name], found[name], strict=False):
            for key in COMPARED:
                if old[key] != new[key]:
                    lines.append(f"{name}, cycle {old['cycle']}: {key} {old[key]!r:.200}, now {new[key]!r:.200}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare", "against"])
    parser.add_argument("what", help="a file of records, or a git revision")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args(arguments)
    if asked.action == "record":
        records = run(asked.checkout.resolve(), asked.parts)
        Path(asked.what).write_text(json.dumps(records, indent=1, sort_keys=True))
        return 0
    if asked.action == "against":
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder, "other")
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", str(other), asked.what], check=True)
            try:
                expected = run(other, asked.parts)
            finally:
                subprocess.run([*git, "remove", "--force", str(other)], check=True)
    else:
        kept: Records = json.loads(Path(asked.what).read_text())
        expected = {name: cycles for name, cycles in kept.items() if name.startswith(tuple(asked.parts))}
    lines = differences(expected, run(asked.checkout.resolve(), asked.parts))
    for line in lines:
        print(line)
    cycles = sum(map(len, expected.values()))
    print(f"{len(lines)} differences" if lines else f"Results: identical ({len(expected)} trials, {cycles} cycles)")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

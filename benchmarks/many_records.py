"""Makes the folder of a run with any number of records, for measurements of the report.

``python benchmarks/many_records.py FOLDER --suites 10 --methods 100 --seeds 20 --cycles 50`` makes 1 000 000 records;
``python -m harness.report FOLDER`` then reads every cycle file, and only those that changed the next time. The records
have what those of CIFAR-10 have, in the same sizes: 1000 selected images, a confusion matrix of 10 classes. They take
about 10 kB each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from harness.results.manifest import Manifest, SuiteEntry, TrialEntry
from harness.results.records import PHASES, SCHEMA_VERSION, CycleRecord

VERSIONS = {"torch": "2.11.0", "torchvision": "0.26.0", "timm": "1.0.20", "numpy": "2.4.6", "pillow": "13.0.0"}
POOL, TESTED = 50_000, 10_000  # images of the training set and of the test set
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make(folder: Path, suites: int, methods: int, seeds: int, cycles: int, budget: int = 1000) -> int:
    """Make the folder of a finished run, a suite in each process; return the number of its records.

    Files are not synced to the disk.
    """
    with ProcessPoolExecutor() as processes:
        entries = [*processes.map(partial(_suite, folder, methods, seeds, cycles, budget), range(suites))]
    manifest = Manifest(schema_version=SCHEMA_VERSION, name="many records", suites=entries)
    (folder / "run.json").write_bytes(manifest.packed())
    return suites * methods * seeds * cycles


def _suite(folder: Path, methods: int, seeds: int, cycles: int, budget: int, number: int) -> SuiteEntry:
    """Write the records of a suite; return its entry in the manifest."""
    random_ = random.Random(number)  # noqa: S311
    pool = [*range(POOL)]
    random_.shuffle(pool)
    names = [f"Method {method}" for method in range(methods)]
    labelled = [budget * (cycle + 1) for cycle in range(cycles)]
    trials = {}
    for method, name in enumerate(names):
        for seed in range(seeds):
            trial = f"suite{number}.method{method}.s{seed}"
            trials[trial] = TrialEntry(method=name, seed=seed)
            (folder / "trials" / trial).mkdir(parents=True)
            for cycle in range(cycles):
                start = random_.randrange(POOL - budget)
                selected = pool[start : start + budget] if cycle < cycles - 1 else []
                values = _record(f"suite{number}", name, trial, seed, cycle, labelled[cycle], selected, random_)
                path = folder / "trials" / trial / f"cycle_{cycle:03d}.json"
                path.write_bytes(packed(values.to_json(), trial))
    return SuiteEntry(
        name=f"suite{number}",
        title=f"Suite {number}",
        dataset="made up",
        model="none",
        recipe="made up",
        methods=names,
        seeds=[*range(seeds)],
        labelled=labelled,
        trials=trials,
    )


def packed(record: dict[str, Any], trial: str) -> bytes:
    """Return the content of a cycle file."""
    body = {"record": record, "state": "0" * 64, "folder": trial}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": checksum, "body": body}).encode()


def _record(
    suite: str,
    method: str,
    trial: str,
    seed: int,
    cycle: int,
    labelled: int,
    selected: list[int],
    random_: random.Random,
) -> CycleRecord:
    confusion = _confusion(1 - 0.5 / (1 + cycle), random_)
    right = sum(row[name] for name, row in confusion.items())
    return CycleRecord(
        suite=suite,
        dataset="made up",
        model="none",
        method=method,
        trial=trial,
        seed=seed,
        cycle=cycle,
        labelled=labelled,
        metrics={"accuracy": right / TESTED},
        selected=selected,
        seconds={phase: random_.random() for phase in PHASES} | {"compile": 0.0},
        wall_seconds=random_.random(),
        target_parameters=77_858,
        extra_parameters=0,
        peak_memory_bytes={"host": 10**9 + random_.randrange(10**6)},
        training_images=labelled * 20,
        final_loss=random_.random(),
        device="cpu",
        device_share=1,
        threads=1,
        precision="float32",
        scoring={"path": "in_process", "shards": [_shard(random_)] if selected else []},
        confusion=[confusion],
        calibration={"nll": random_.random(), "ece": random_.random() / 10},
        selected_classes=[*map(len, (selected[at :: len(CLASSES)] for at in range(len(CLASSES))))] if selected else [],
        health={"loss": random_.random()},
        pid=4711,
        versions=VERSIONS,
        commit="0" * 12,
        data_fingerprint="102bad33248feab0",
        code={"harness": "af2f7c62896c", f"acquisition {method}": hashlib.sha256(method.encode()).hexdigest()[:12]},
    )


def _confusion(accuracy: float, random_: random.Random) -> dict[str, dict[str, int]]:
    """Return a confusion matrix of about this accuracy, with the same number of test images in each class."""
    of_class, found = TESTED // len(CLASSES), {}
    for name in CLASSES:
        right = int(of_class * (accuracy - 0.1 * random_.random()))
        others = [other for other in CLASSES if other != name]
        share = [(of_class - right) // len(others)] * len(others)
        share[0] += of_class - right - sum(share)
        wrong = dict(zip(others, share, strict=True))
        found[name] = {each: count for each in CLASSES if (count := right if each == name else wrong[each])}
    return found


def _shard(random_: random.Random) -> dict[str, Any]:
    memory = {"host": 10**9 + random_.randrange(10**6)}
    return {"pid": 4711, "images": 10_000, "seconds": random_.random(), "warnings": [], "peak_memory_bytes": memory}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for key, default in {"suites": 10, "methods": 100, "seeds": 20, "cycles": 50, "budget": 1000}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    print(make(**vars(parser.parse_args(arguments))), "records")
    return 0


if __name__ == "__main__":
    sys.exit(main())

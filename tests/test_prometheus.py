"""Debian's Prometheus scrapes a real run, and every query of docs/grafana.json returns data."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import a_record, make_trial

from harness.experiment.display import cycle_values
from harness.experiment.grid import Unit

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
GPU = "ray_node_gpus_utilization"  # has data only where there is a GPU
SLOW = """
import time
import torch
from harness import Acquisition

class Slow(Acquisition):
    scores_images = False
    needs = frozenset()

    def select(self, columns, labelled, budget, generator):
        time.sleep(15)  # Prometheus scrapes every 2 s, and Ray drops the values of a trial 30 s after its end
        return torch.randperm(len(columns["index"]), generator=generator)[:budget]
"""
CONFIG = {
    "plugins": ["slow.py"],
    "dataset": {"name": "digits", "limit": 300, "test_limit": 100},
    "model": {"name": "resnet_small", "width": 4},
    "recipe": {"epochs": 1, "batch_size": 16, "crop_padding": 1},
    "protocol": {"initial": 40, "budget": 10, "cycles": 4, "start": "warm"},
    "methods": {"Ran": "slow", "Ran+": {"acquisition": "slow", "training": "isda"}},
    "seeds": [0],
    "where": {"trials": "ray", "device": "cpu", "warm_workers": True, "max_concurrent": 1},
}
PATIENT = """
import sys
from harness.on_ray import before
from harness.run import main
before.START_SECONDS = 400.0
sys.exit(main(sys.argv[1:]))
"""
"""The command, on a machine that may be busy."""


def test_the_dashboard_queries_only_metrics_that_the_code_publishes() -> None:
    code = (ROOT / "harness" / "on_ray" / "metrics.py").read_text()
    names = {name for _, query in QUERIES for name in re.findall(r"ray_al_(\w+)", query)}
    assert names and all(f'"{name}"' in code for name in names)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_values_of_running_trials_are_set_again_and_those_of_ended_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.on_ray import metrics

    seen: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tuple(tags) == self.keys
            seen[self.name, *(text for key, text in tags.items() if key != "trial")] = value

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    monkeypatch.setattr(metrics, "BEAT", 0.0)
    trials = [make_trial(seed=seed) for seed in range(4)]
    shared = Unit(trials[0], "s", "first cycle", False, True, None, [1], [0])
    units = [shared, *(Unit(trial, "s", "m", False, False, None, [1], [0]) for trial in trials)]
    published = metrics.Metrics(units, tmp_path, {"finished": 4, "failed": 2})
    (tmp_path / "ray" / "beats").mkdir(parents=True)
    (tmp_path / "ray" / "beats" / "1").write_text('{"node": "n", "pid": 1}')
    for unit in units[:4]:
        published("start", unit, {})
        published("cycle", unit, cycle_values(a_record(seed=unit.trial.seed)))
    published("failed", units[2], {"failure": "x"})
    published("end", units[2], {})
    published("end", units[3], {})
    for _ in range(2):  # without another event
        seen.clear()
        published.step()
        states = {state: value for (name, state, *_), value in seen.items() if name == "al_trials"}
        assert states == {"waiting": 1, "running": 1, "finished": 5, "failed": 3}, "with those of before"
        assert {key[:4] for key in seen if key[0] == "al_accuracy"} == {("al_accuracy", "s", "m", "0")}
        assert seen["al_accuracy", "s", "m", "0"] == 0.5 and seen["al_labelled", "s", "m", "0"] == 10
        assert seen["al_phase_seconds", "s", "m", "0", "train"] == 0.1
        assert seen["al_peak_memory_bytes", "s", "m", "0", "host"] == 1
        assert 0 <= seen["al_seconds_without_progress", "s", "m", "0"] < 60
    published("retry", units[1], {"cause": "its process died"})
    published("dead", units[1], {})
    seen.clear()
    published.step()
    assert {key[0] for key in seen} == {"al_trials"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def asked(port: int, path: str, **arguments: str) -> Any:
    """Return what the API of Prometheus answers."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


@contextmanager
def prometheus(targets: Path, folder: Path) -> Iterator[int]:
    """Run a Prometheus that scrapes what Ray's file names; yield its port."""
    port = free_port()
    jobs = [{"job_name": "ray", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "2s"}]}]
    (folder / "p.yml").write_text(yaml.safe_dump({"global": {"scrape_interval": "2s"}, "scrape_configs": jobs}))
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'p.yml'}",
            f"--storage.tsdb.path={folder / 'p'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")
def test_prometheus_scrapes_a_run_and_every_query_returns_data(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "slow.py").write_text(SLOW)
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for Ray's sockets
    run = subprocess.Popen(
        [sys.executable, "-c", PATIENT, "c.yaml", f"where.output={tmp_path / 'out'}"],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(temporary),
            "RAY_raylet_start_wait_time_s": "300",
            "RAY_agent_register_timeout_ms": "300000",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    titles, answers, running = set[str](), dict[str, int](), list[set[str]]()
    try:
        targets = temporary / f"ray-{os.getuid()}" / "s" / "prom_metrics_service_discovery.json"
        with prometheus(targets, tmp_path) as port:
            while run.poll() is None:
                time.sleep(1.0)
                for _, query in QUERIES:
                    if answers.get(query, 0) == 0:
                        try:
                            answers[query] = len(asked(port, "query", query=query)["result"])
                        except OSError:  # it is starting
                            continue
                for entry in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        titles.add(entry.read_bytes().rstrip(b"\0 ").decode(errors="replace"))
                    except OSError:
                        continue
                try:
                    found = asked(port, "query", query="ray_al_labelled")["result"]
                    running.append({series["metric"]["method"] for series in found})
                except OSError:
                    continue
            addresses = {target["labels"]["instance"] for target in asked(port, "targets")["activeTargets"]}
        out = run.communicate()[0]
        assert run.returncode == 0, out
    finally:
        run.kill()
        shutil.rmtree(temporary, ignore_errors=True)
    print(*(f"{answers.get(query, 0)} series: {title}: {query}" for title, query in QUERIES), sep="\n")
    assert [query for _, query in QUERIES if not answers.get(query) and GPU not in query] == []
    assert {address.partition(":")[0] for address in addresses} == {"127.0.0.1"}, "on this machine only"
    names = {f"ray::c / {method} / seed 0" for method in CONFIG["methods"]}
    assert names <= titles, "the process of a warm worker is named by the trial that it runs"
    assert {"Ran"} in running and {"Ran+"} in running, "the metrics of the trial that finished first have gone"

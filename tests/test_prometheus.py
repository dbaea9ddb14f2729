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

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
GPU = "ray_node_gpus_utilization"  # has data only where there is a GPU
CONFIG = {
    "dataset": {"name": "digits", "limit": 600, "test_limit": 200},
    "model": {"name": "resnet_small", "width": 8},
    "recipe": {"epochs": 60, "batch_size": 16, "crop_padding": 1},
    "protocol": {"initial": 100, "budget": 50, "cycles": 8, "start": "warm"},
    "methods": {"Ran": "random", "LC": "least_confidence"},
    "seeds": [0],
    "where": {"trials": "ray", "device": "cpu", "warm_workers": True, "max_concurrent": 1},
}


def test_the_dashboard_queries_only_metrics_that_the_code_publishes() -> None:
    code = (ROOT / "harness" / "on_ray" / "metrics.py").read_text()
    names = {name for _, query in QUERIES for name in re.findall(r"ray_al_(\w+)", query)}
    assert names and all(f'"{name}"' in code for name in names)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


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
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for Ray's sockets
    run = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "c.yaml", f"where.output={tmp_path / 'out'}"],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(temporary),
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
    assert {"Ran"} in running and {"LC"} in running
    assert running[-1] != {"Ran", "LC"}, "the metrics of the trial that finished first have gone"

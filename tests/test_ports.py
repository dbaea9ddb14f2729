"""No port of a local run is open to other machines, and none that could run a command to other users."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_security import CONFIG, ROOT


def processes_with(mark: str) -> list[int]:
    """Return the processes whose environment holds a text: those of a run, also of Ray's own that outlive parents."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def listening(pids: list[int]) -> set[tuple[str, int, str]]:
    """Return (address, port, name of the process) of each socket of these processes that waits for others."""
    sockets: dict[str, str] = {}
    for pid in pids:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                sockets[str(entry.readlink())] = name
        except OSError:
            continue
    found = set()
    for family, table in product((socket.AF_INET, socket.AF_INET6), ("tcp", "udp")):
        version = "6" if family == socket.AF_INET6 else ""
        waits = "0A" if table == "tcp" else "07"
        for line in Path(f"/proc/net/{table}{version}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == waits and (name := sockets.get(f"socket:[{words[9]}]")):
                address, _, port = words[1].partition(":")
                raw = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                found.add((socket.inet_ntop(family, raw), int(port, 16), name))
    return found


def answer(port: int, token: str) -> int:
    """Return the status with which the dashboard answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
    return connection.getresponse().status


OPEN = "its ports listen on all addresses of this machine"


@pytest.mark.parametrize(
    ("address", "mode", "said"),
    [
        ("127.0.0.1", "token", ""),
        ("::1", "token", ""),
        ("127.0.0.1", "disabled", "needs no token (RAY_AUTH_MODE): every user of this machine can run commands here"),
        ("192.0.2.7", "token", f"{OPEN}, closed by the token, except that of its metrics: keep it behind a firewall"),
        ("192.0.2.7", "disabled", f"{OPEN}, and need no token: keep it behind a firewall"),
    ],
)
def test_what_is_open_is_said(address: str, mode: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.on_ray import session

    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    context = SimpleNamespace(address_info={"node_ip_address": address}, dashboard_url="127.0.0.1:8265")
    assert session._about_ports(context) == (said and f"Ray: {said}")
    assert ("token: " in session._about_dashboard(context, "")) == (mode == "token")


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed in /proc")
def test_all_ports_of_a_local_run_are_on_the_loopback_address(tmp_path: Path) -> None:
    scored = {"methods": {"Entropy": "entropy"}, "where": {"device": "cpu", "scoring": "ray_data", "cpus_per_trial": 1}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, **scored}))
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for Ray's sockets
    mark = {"HOME": str(tmp_path), "RAY_TMPDIR": str(temporary)}
    run = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "c.yaml", f"where.output={tmp_path / 'out'}", "recipe.epochs=200"],
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, "PYTHONPATH": str(ROOT), **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[tuple[str, int, str]] = set()
    try:
        assert run.stdout is not None
        said = next((line for line in run.stdout if line.startswith("Ray: dashboard at ")), "")
        assert "(this machine only; token: `ray get-auth-token`)" in said
        port = int(said.split("http://127.0.0.1:")[1].split()[0])
        while run.poll() is None and not list(tmp_path.glob("out/trials/*/cycle_001.json")):
            seen |= listening(processes_with(str(temporary)))
            time.sleep(0.05)
        token = tmp_path / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert answer(port, "") == 401 and answer(port, token.read_text()) == 200
        (session,) = temporary.glob("ray-*/s/session_2*")
        assert session.parent.parent.stat().st_mode & 0o777 == 0o700, "nobody else reaches the session"
        out = said + run.communicate()[0]
        assert run.returncode == 0, out
        end = time.monotonic() + 10
        while (left := processes_with(str(temporary))) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, "Ray's agents end with it"
    finally:
        run.kill()
        shutil.rmtree(temporary, ignore_errors=True)
    assert len({port for _, port, _ in seen}) >= 8, seen
    assert {address for address, _, _ in seen} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, seen
    assert "listen on all addresses" not in out and "needs no token" not in out

"""How Ray starts or is joined: what is missing is one sentence, and every node sees what the command sees."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chaos import SMALL, cycles, outcomes
from conftest import make_trial
from PIL import Image
from test_ray import GUARD

from harness.data.files import Files
from harness.errors import UserError
from harness.experiment import runner
from harness.experiment.grid import Unit
from harness.networks.building import build
from harness.networks.names import architecture
from harness.on_ray import before
from harness.run import main
from harness.settings import PluginSpec

ROOT = Path(__file__).resolve().parent.parent
Where = before.Where

GRID = """
dataset: {name: digits, limit: 200, test_limit: 100}
model: {name: resnet_small, width: 4}
recipe: {epochs: 1, batch_size: 32, crop_padding: 1, flip: false}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
methods: {Ran: random}
seeds: [0]
where: {dashboard: false}
"""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the environment says of Ray; what ``prepare`` sets is undone."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(before, "PROBE_SECONDS", 0.4)


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Yield the address of a server that is no Ray: it says nothing, or closes after an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at 127.0.0.1:1 \(tried for 0 s: Connection refused\)"),
        ("no-such-host.invalid:6379", r"there is no machine 'no-such-host.invalid'"),
        ("ray://head:10001", r"ray://head:10001 is an address for Ray's client, through which a run can't be watched"),
        ("head", "must be HOST:PORT, such as head:6379, or auto, got 'head'"),
        ("head:x", "must be HOST:PORT"),
        (":6379", "must be HOST:PORT"),
        ("head:65536", "must be HOST:PORT"),
        ("head:" + "1" * 4000, "must be HOST:PORT"),
        ("head..cluster:6379", r"there is no machine 'head..cluster' \(no name of a machine\)"),
        (".head:6379", r"there is no machine '.head' \(no name of a machine\)"),
        ("h" * 70 + ":6379", "there is no machine 'hhh"),
    ],
)
@pytest.mark.parametrize("name", ["where.address", "RAY_ADDRESS"])
def test_an_address_without_a_cluster_is_refused(
    address: str, problem: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Where(address=address) if name == "where.address" else Where()
    if name == "RAY_ADDRESS":
        monkeypatch.setenv(name, address)
    assert before.announcement(where) == f"Ray: joining the cluster at {address} ({name})"
    with pytest.raises(UserError, match=f"^{name}: {problem}"):
        before.prepare(where)


def test_an_address_that_swallows_packets_is_said_not_to_answer() -> None:
    waiting = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # it accepts none, so the system drops the others
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^where.address: nothing answers at {address} within 0 s: start its head"):
            before.prepare(Where(address=address))
    for each in waiting:
        each.close()


@pytest.mark.parametrize(
    ("processes", "origin"),
    [([], r"/\S+/ray_current_cluster, which `ray start` wrote"), (["127.0.0.1:1"], "the processes of this machine")],
)
def test_the_address_that_auto_found_has_an_origin(
    processes: list[str], origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    from harness.on_ray import session

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: processes)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "localhost:1")
    sentence = rf"^where.address: no Ray cluster answers at \S+:1 .*; auto found this address in {origin}$"
    with pytest.raises(UserError, match=sentence):
        session.start(Where(address="auto"))


def test_ray_is_asked_for_before_the_data_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_load", lambda *_: pytest.fail("the data was loaded"))
    assert main(["quickstart", "where.address=127.0.0.1:1", f"where.output={tmp_path / 'run'}"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_a_port_of_another_program_is_refused_in_time(answer: bytes | None) -> None:
    said = "what answers at {} is no Ray cluster" if answer is not None else "what listens at {} says nothing for"
    with server(answer) as address, pytest.raises(UserError, match=said.format(address)):
        before.prepare(Where(address=address))


def test_a_server_that_speaks_ray_s_protocol_is_left_to_ray() -> None:
    with server(b"\0\0\0\4\0\0\0\0\0") as address:
        before.prepare(Where(address=address))


@pytest.mark.parametrize("address", ["local", " ", ""])
def test_some_addresses_mean_a_local_ray(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert before.announcement(Where()) == ""
    before.prepare(Where())
    assert "RAY_ADDRESS" not in os.environ and os.environ["RAY_AUTH_MODE"] == "token"


def test_an_address_of_the_config_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    before.prepare(Where(address="auto"))
    assert "RAY_ADDRESS" not in os.environ, "Ray would prefer it to auto"


@pytest.mark.parametrize(
    ("name", "folder", "problem"),
    [
        ("RAY_TMPDIR", "/tmp/" + "x" * 60, "is too long for Ray, .* may have 107 bytes: set RAY_TMPDIR to a folder of"),
        ("TMPDIR", "/tmp/" + "x" * 60, "is too long for Ray"),
        ("RAY_TMPDIR", "/tmp/" + "ä" * 20, "is too long for Ray"),  # bytes count
        ("RAY_TMPDIR", "relative", "must be an absolute path, got 'relative'"),
        ("RAY_TMPDIR", "/proc/none", "Ray can't write to /proc "),
        ("TMPDIR", str(Path(__file__).with_name("conftest.py")), "conftest.py is a file: set RAY_TMPDIR to a folder"),
    ],
)
def test_a_temporary_folder_that_ray_can_t_use_is_refused(
    name: str, folder: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, folder)
    with pytest.raises(UserError, match=f"^{name}: .*{problem}.*where.trials=in_process$"):
        before.prepare(Where())


def test_the_longest_folder_is_exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    most = 107 - len(f"/ray-{os.getuid()}/s/session_2026-01-31_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * (most - 5))
    before.prepare(Where())
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * (most - 4))
    with pytest.raises(UserError, match=f"at most {most} characters"):
        before.prepare(Where())


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: Any, address: Any) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(before.socket, "socket", type("S", (socket.socket,), {"bind": bind}))
    with pytest.raises(UserError, match=r"no port of this machine is free for it .Address already in use."):
        before.prepare(Where())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_token_is_in_the_home_for_its_owner_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    before.prepare(Where())
    first = token.read_text()
    assert len(first) == 64 and mode(token) == 0o600 and mode(token.parent) == 0o700
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    token.chmod(0o644)  # as Ray writes it
    before.prepare(Where())
    assert token.read_text() == first and mode(token) == 0o600
    token.write_text("")
    before.prepare(Where())
    assert len(token.read_text()) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize("home", ["/proc/none", None])
def test_the_token_needs_no_home(home: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(before, "_check_length", lambda below: None)  # pytest's folder is long
    before.prepare(Where())
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token == tmp_path / f"ray-{os.getuid()}" / "auth_token", "one for all runs: nothing is left by each"
    assert mode(token) == 0o600 and mode(token.parent) == 0o700


def test_no_place_for_the_token_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setattr(before, "_check_folder", lambda: None)
    monkeypatch.setattr(before, "ray_folder", lambda: Path("/proc/none/s"))
    with pytest.raises(UserError, match=r"no place for its token .No such file or directory.: set HOME or TMPDIR"):
        before.prepare(Where())


def test_a_given_token_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.setenv("HOME", "/proc/none")
    before.prepare(Where())
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_old_sessions_of_ray_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(before, "_check_length", lambda below: None)  # pytest's folder is long
    monkeypatch.setattr(before, "ray_folder", lambda: tmp_path)
    for name in ("session_1_old", "session_2_new", "session_3_runs"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "logs" / "raylet.out").touch()
    stopped = tmp_path / f"session_4_{os.getpid()}"
    shutil.copytree(tmp_path / "session_1_old", stopped)
    (tmp_path / "session_1_old" / "logs" / "link").symlink_to("nowhere")
    (tmp_path / "session_latest").symlink_to("session_1_old")
    past = time.time() - 25 * 3600
    for path in [*tmp_path.rglob("*_old*"), *stopped.rglob("*"), stopped, *tmp_path.glob("session_1_old/logs/**/*")]:
        os.utime(path, (past, past), follow_symlinks=False)
    for path in ("session_1_old/logs", "session_3_runs"):
        os.utime(tmp_path / path, (past, past))
    before.prepare(Where())
    assert {path.name for path in tmp_path.iterdir()} == {"session_2_new", "session_3_runs", stopped.name}


def test_an_address_is_a_cluster_unless_it_says_local(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Where().cluster() is None
    assert Where(address="head:6379").cluster() == ("head:6379", "where.address")
    for value in ("local", " local ", ""):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert Where().cluster() is None
    assert runner._devices(Where(device="cpu")) == {"cpu"}, "a changed device is noticed"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert Where().cluster() == ("head:6379", "RAY_ADDRESS")
    assert runner._devices(Where(device="cpu")) == set()


def test_a_slow_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(before.too_slow(Where())).startswith("Ray did not start within 50 s: this machine is overloaded")
    assert "where.address: the Ray cluster at h:1 did not let this run join" in str(
        before.too_slow(Where(address="h:1"))
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x", "is too long for Ray"),
        ("The current node timed out during startup. This could happen", "Ray did not start in time: .*in_process"),
        ("Token authentication is enabled but no authentication token was found", "RAY_AUTH_TOKEN_PATH"),
        ("[Errno 11] Resource temporarily unavailable", "Ray can't start on this machine: .* temporarily unavailable"),
    ],
)
def test_what_ray_raises_when_it_starts_is_one_sentence(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.on_ray import session

    def init(**_: Any) -> None:
        raise Exception(said)

    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(UserError, match=told) as error:
        session.start(Where())
    assert "\n" not in str(error.value)


VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.1.0
    Python: 3.12.1
This process on node 127.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.12.1
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (VERSIONS, "it runs Ray 2.1.0, and this process Ray 2.60.0; use the same versions"),
        ("Token authentication is enabled but the authentication token is invalid", "it asks for a token: set RAY_"),
        ("No node info found matching attributes: 'x' when trying to resolve node to connect to.", "is no node of it"),
    ],
)
def test_why_a_cluster_can_t_be_joined_is_one_sentence(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.on_ray import session

    def init(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at h:1") from RuntimeError(said)

    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(UserError, match=f"^where.address: can't join the Ray cluster at h:1: .*{told}"):
        session.start(Where(address="h:1"))


def node(hostname: str, number: int) -> dict[str, Any]:
    return {
        "Alive": True,
        "NodeID": f"{number:056x}",
        "NodeManagerHostname": hostname,
        "NodeManagerAddress": f"10.0.0.{number}",
        "Resources": ({"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}, {"GPU": 1.0})[number - 1],
    }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster of three nodes that answer what this process would; a test changes an answer, or makes it an error."""
    from harness.on_ray import node_check

    changes: dict[str, Any] = {}
    names = ("alpha", "beta", "gamma")
    monkeypatch.setattr(node_check.ray, "nodes", lambda: [node(name, i) for i, name in enumerate(names, 1)])
    monkeypatch.setattr(node_check.ray, "wait", lambda asked, **_: (asked, []))

    def remote(**_: Any) -> Any:
        def options(scheduling_strategy: Any) -> Any:
            name = names[int(scheduling_strategy.node_id, 16) - 1]
            return SimpleNamespace(remote=lambda wanted: (name, json.dumps(node_check.look(wanted))))

        return lambda look: SimpleNamespace(options=options)

    def get(reference: tuple[str, str]) -> Any:
        name, facts = reference[0], json.loads(reference[1])
        change = changes.get(name, lambda facts: None)
        if isinstance(change, Exception):
            raise change
        change(facts)
        return facts

    monkeypatch.setattr(node_check.ray, "remote", remote)
    monkeypatch.setattr(node_check.ray, "get", get)
    return changes


def checked(tmp_path: Path, least: float | None = None, names: int = 0) -> Any:
    """Check the nodes for a run with files of data and weights; return the notes, or the names of GPUs."""
    from harness.on_ray import node_check

    (tmp_path / "a.png").write_bytes(b"123")
    files = Files([tmp_path / "a.png"] * 5, (8, 8))
    torch.save({}, tmp_path / "w.pt")
    trial = make_trial(weights=str(tmp_path / "w.pt"))
    data: Any = {"s": SimpleNamespace(decoded=[files])}
    return node_check.check([Unit(trial, "s", "Ran", False, False, None, [], [])], tmp_path, data, least)[names]


def test_equal_nodes_pass(nodes: dict[str, Any], tmp_path: Path) -> None:
    assert checked(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "w.pt"], "nothing is left in the folder"


@pytest.mark.parametrize(
    ("kind", "name", "their", "told"),
    [
        (
            "version",
            "torch",
            "1.0",
            "node beta (10.0.0.2) has torch 1.0, and this process {our}: install the same version",
        ),
        ("version", "timm", "missing", "node beta (10.0.0.2) has timm missing, and this process"),
        (
            "data",
            "a.png",
            "is missing",
            "where.data: {name} is missing on node beta (10.0.0.2), and has 3 bytes here: the",
        ),
        (
            "data",
            "a.png",
            "has 4 bytes",
            "where.data: {name} has 4 bytes on node beta (10.0.0.2), and has 3 bytes here: the",
        ),
        ("weights", "w.pt", "is missing", "model.weights: {name} is missing on node beta (10.0.0.2), and has"),
        (
            "output",
            "",
            "is missing",
            "where.output: {name} is not visible to node beta (10.0.0.2), or read-only there: use",
        ),
        (
            "output",
            "",
            "is read-only",
            "where.output: {name} is not visible to node beta (10.0.0.2), or read-only there",
        ),
        ("code", "acquisition random", "x", "node beta (10.0.0.2) has other code of acquisition random (commit"),
        (
            "commit",
            "harness",
            "x",
            "node beta (10.0.0.2) has other code of harness (commit x, here {our}): bring every",
        ),
    ],
)
def test_the_node_that_differs_is_named(
    kind: str, name: str, their: str, told: str, nodes: dict[str, Any], tmp_path: Path
) -> None:
    seen = {}

    def change(facts: Any) -> None:
        key = str(tmp_path / name) if kind in ("data", "weights", "output") else name
        seen.update(name=key, our=facts[kind][key])
        facts[kind][key] = their

    nodes["beta"] = change
    with pytest.raises(UserError) as error:
        checked(tmp_path)
    assert str(error.value).startswith(told.format(**seen))
    assert "alpha" not in str(error.value) and "gamma" not in str(error.value)
    nodes["gamma"] = change
    with pytest.raises(UserError, match=r"; 1 more node differs: gamma .10.0.0.3.$"):
        checked(tmp_path)


def test_a_node_without_the_harness_is_named(nodes: dict[str, Any], tmp_path: Path) -> None:
    def change(facts: Any) -> None:
        facts |= {"code": {}, "failure": {"harness": "ModuleNotFoundError: No module named 'harness'"}}
        del facts["commit"]

    nodes["gamma"] = change
    told = r"node gamma .10.0.0.3. can't use the harness .ModuleNotFoundError: No module named 'harness'.: install"
    with pytest.raises(UserError, match=told):
        checked(tmp_path)


def test_a_commit_that_is_not_known_is_no_difference(nodes: dict[str, Any], tmp_path: Path) -> None:
    nodes["beta"] = lambda facts: facts["commit"].update(harness="unknown")
    assert checked(tmp_path) == []


def ray_exceptions() -> Any:
    import ray.exceptions

    return ray.exceptions


@pytest.mark.parametrize("died", ["TaskUnschedulableError", "NodeDiedError", "WorkerCrashedError"])
def test_a_node_that_died_is_left_out(died: str, nodes: dict[str, Any], tmp_path: Path) -> None:
    error = getattr(ray_exceptions(), died)
    nodes["beta"] = error("it has died") if died != "WorkerCrashedError" else error()
    assert checked(tmp_path) == ["note: node beta (10.0.0.2) has died, and is left out"]
    nodes["alpha"] = nodes["gamma"] = nodes["beta"]
    with pytest.raises(UserError, match=r"^no node of the cluster answers; node alpha .10.0.0.1. has died"):
        checked(tmp_path)


def test_the_gpus_of_nodes_that_can_hold_a_trial_are_named(
    nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives(*names: str) -> Callable[[dict[str, Any]], None]:
        return lambda facts: facts["gpus"].update(dict.fromkeys(names, "")) if "gpus" in facts else None

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    nodes |= {"alpha": gives("H100"), "beta": gives("A100", "T4"), "gamma": gives("V100")}
    assert checked(tmp_path, names=1) == set(), "no trial runs on one"
    assert checked(tmp_path, least=2, names=1) == {"A100", "T4"}, "alpha has no GPU, and gamma no processor"
    nodes["alpha"] = ray_exceptions().NodeDiedError("it has died")
    assert checked(tmp_path, least=2, names=1) == set(), "the devices are not known"


@pytest.mark.parametrize(
    ("keys", "resumed", "expected"),
    [
        ({}, True, ({"H100"}, 1)),
        ({}, False, (set(), None)),
        ({"gpus_per_trial": 0}, True, ({"cpu"}, None)),
        ({"device": "cpu"}, True, ({"cpu"}, None)),
    ],
)
def test_devices_are_asked_for_where_trials_have_some_and_records_may_name_others(
    keys: Any, resumed: bool, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.on_ray import session

    asked: list[float | None] = []

    def check(units: Any, folder: Any, data: Any, least: float | None = None) -> tuple[list[str], set[str]]:
        asked.append(least)
        return [], set() if least is None else {"H100"}

    monkeypatch.setattr(session.node_check, "check", check)
    monkeypatch.setattr(session, "nodes", lambda: [{"CPU": 4.0, "GPU": 1.0}])
    if resumed:
        (tmp_path / "run.json").touch()
    units = [Unit(make_trial(), "s", "Ran", False, False, None, [], [])]
    _, devices = session.check(Where(trials="ray", address="h:1", cpus_per_trial=1, **keys), units, tmp_path, {})
    assert (devices, asked[0]) == expected


def test_a_trial_without_a_gpu_runs_on_the_cpu_beside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("harness.learning.process.chosen_device", lambda requested: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", ["T4", "H100"].__getitem__)
    assert runner._devices(Where(trials="ray")) == {"T4", "H100"}
    assert runner._devices(Where(trials="in_process")) == {"H100"}
    assert runner._devices(Where(trials="ray", gpus_per_trial=0)) == {"cpu"}


def test_a_node_that_does_not_answer_is_told(
    nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.on_ray import node_check

    monkeypatch.setattr(node_check.ray, "wait", lambda asked, **_: (asked[:2], asked[2:]))
    monkeypatch.setattr(node_check.ray, "cancel", lambda reference: None)
    assert checked(tmp_path) == ["note: node gamma (10.0.0.3) has not answered in 30 s, and is not checked"]


# the real command


def environment(**added: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **added}


def command(folder: Path, *arguments: str, **added: str) -> subprocess.Popen[str]:
    (folder / "g.yaml").exists() or (folder / "g.yaml").write_text(GRID)
    return subprocess.Popen(
        [sys.executable, "-m", "harness.run", "g.yaml", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**added),
        cwd=folder,
    )


def refused(process: subprocess.Popen[str], within: float = 60.0) -> tuple[str, str]:
    """Return what a command that is refused printed: one sentence to stderr, in time."""
    began = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and time.monotonic() - began < within, out + err
    assert "Traceback" not in out + err and err.startswith("error: ") and err.count("\n") == 1, out + err
    return out, err.rstrip()


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    return out


@pytest.mark.long
@pytest.mark.ray
def test_a_run_without_a_home_finishes(tmp_path: Path) -> None:
    out = finished(command(tmp_path, "where.dashboard=true", HOME="/proc/none"))
    assert "Report of run g" in out
    if found := [line for line in out.splitlines() if "token: " in line]:
        token = Path(found[0].split("token: ")[1].rstrip(")"))
        assert token.name == "auth_token" and mode(token) == 0o600


@pytest.mark.long
@pytest.mark.ray
def test_a_slow_start_is_one_sentence(tmp_path: Path) -> None:
    """The raylet is stopped as soon as it appears, which looks like an overloaded machine."""
    temporary = Path("/tmp") / f"slow{os.getpid()}"
    process = command(tmp_path, RAY_TMPDIR=str(temporary))
    stopped: list[int] = []
    try:
        while process.poll() is None and not stopped:
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    arguments = (entry / "cmdline").read_bytes().decode().split("\0")
                except OSError:
                    continue
                if arguments[0].endswith("/raylet") and any(str(temporary) in part for part in arguments):
                    os.kill(int(entry.name), signal.SIGSTOP)
                    stopped.append(int(entry.name))
            time.sleep(0.01)
        assert stopped
        _, error = refused(process)
        assert error.startswith("error: Ray did not start in time: this machine is overloaded")
    finally:
        process.kill()
        for number in stopped:
            if Path(f"/proc/{number}/cmdline").exists():
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class Cluster:
    """A cluster of raylets in one machine, each with a folder and an environment of its own."""

    address: str
    token: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]


@contextmanager
def cluster(
    tmp_path: Path, *nodes: dict[str, str], head: str = "", gpus: int = 0, hidden: Path | None = None
) -> Iterator[Cluster]:
    """Start a head, which holds no trial, and nodes with two processors and GPUs, as far as Ray knows.

    ``head``: code that its process runs first; ``hidden``: a folder or file that is empty for the nodes.
    """
    over = "" if hidden is None else "--bind /dev/null" if hidden.is_file() else "-t tmpfs tmpfs"
    apart = ["unshare", "-m", "sh", "-c", f'mount {over} "$0" && exec "$@"', str(hidden)] if hidden else []
    port, token = free_port(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        started = []
        for number, added in enumerate([{}, *nodes]):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            first = (
                ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
                if not number
                else [f"--address={address}", "--num-cpus=2", f"--num-gpus={gpus}"]
            )
            start = f"import sys, ray; {head if not number else ''}\nfrom ray.scripts.scripts import main; main()"
            process = subprocess.Popen(
                [
                    *(apart if number else ()),
                    *(sys.executable, "-c", GUARD, sys.executable, "-c", start, "start", "--block", *first),
                    *("--node-ip-address=127.0.0.1", "--disable-usage-stats"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(**token, **added),
                cwd=folder,
                start_new_session=True,
            )
            stack.callback(process.wait, 30)
            stack.callback(process.stdin.close)  # type: ignore[union-attr]
            started.append(process)
            if not number:
                wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            else:  # one after another: two that start at once may choose the same port
                wait_for(lambda number=number: living(address, token) == 1 + number)
        yield Cluster(address, token, started[1:])


def wait_for(ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + 90
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.3)


def living(address: str, token: dict[str, str]) -> int:
    """Return how many nodes of a cluster are alive."""
    code = f"import ray; ray.init({address!r}, log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(**token), check=False
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


@pytest.mark.long
@pytest.mark.ray
def test_a_token_or_a_version_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    with cluster(tmp_path) as joined:
        _, error = refused(command(tmp_path, f"where.address={joined.address}", RAY_AUTH_TOKEN="wrong"))
        assert "it asks for another token: set RAY_AUTH_TOKEN" in error
        _, error = refused(command(tmp_path, RAY_ADDRESS=joined.address, HOME=str(tmp_path)))
        assert "it asks for a token: set RAY_AUTH_TOKEN" in error
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing"
    shutil.rmtree(tmp_path / "node0")
    with cluster(tmp_path, head="ray.__version__ = '2.1.0'") as joined:
        _, error = refused(command(tmp_path, RAY_ADDRESS=joined.address, **joined.token))
        assert "it runs Ray 2.1.0, and this process Ray" in error


def write_data(folder: Path) -> None:
    """Write a folder of images and label maps, and weights."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for kind in ("images", "labels"):
            (folder / "data" / "seg" / kind / split).mkdir(parents=True)
        for i in range(count):
            for kind, shape, high in (("images", (16, 24, 3), 256), ("labels", (16, 24), 2)):
                pixels = random.integers(0, high, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "data" / "seg" / kind / split / f"{i}.png")
    info: Any = SimpleNamespace(
        channels=3, num_classes=2, per_pixel=True, size=(16, 24), labels="label maps", num_train=8, num_test=2
    )
    network = build(PluginSpec("drn_small", architecture("drn_small").Settings(width=4)), info, 0)
    torch.save(network.body.state_dict(), folder / "w.pt")


MAPS = """
dataset: {name: segmentation_folder, folder: seg, classes: [a, b]}
model: {name: drn_small, width: 4, weights: w.pt}
recipe: {epochs: 1, batch_size: 2, crop_padding: 0, flip: false, inference_batch_size: 2}
protocol: {initial: 2, budget: 2, cycles: 2, start: warm}
methods: {Ran: random, Entropy: entropy}
seeds: [0]
"""


@pytest.mark.long
@pytest.mark.ray
def test_relative_paths_hold_on_nodes_that_started_elsewhere(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "g.yaml").write_text(MAPS)
    with cluster(tmp_path, {}, {}) as joined:
        out = finished(command(tmp_path, "where.scoring=ray_data", RAY_ADDRESS=joined.address, **joined.token))
        assert f"joining the cluster at {joined.address} (RAY_ADDRESS)" in out and "Report of run g" in out
        assert out.index("joining") < out.index("joined")
        os.killpg(joined.nodes[1].pid, signal.SIGKILL)  # it stays in Ray's list for a while
        time.sleep(1)
        again = ("where.output=again", "--only", "method=Ran")
        out = finished(command(tmp_path, *again, RAY_ADDRESS=joined.address, **joined.token))
        assert "1 of 1 trial and 2 of 2 cycles finished" in out, "whether or not Ray has noticed by then"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("differs", ["version", "code", "harness"])
def test_a_node_that_differs_is_named_before_anything_starts(differs: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if differs == "version":
        (other / "torch-1.0.dist-info").mkdir(parents=True)
        (other / "torch-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
        told = r"error: node \S+ \(\S+\) has torch 1.0, and this process \S+: install the same version"
    elif differs == "harness":
        other.mkdir()
        (other / "harness.py").write_text("raise ImportError('this node has none')")
        told = r"error: node \S+ \(\S+\) can't use the harness \(ImportError: this node has none\)"
    else:
        for name in ("harness", "methods", "datasets", "configs"):
            shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
        source = other / "methods" / "random.py"
        source.write_text(source.read_text() + "\nADDED = 1\n")
        told = r"error: node \S+ \(\S+\) has other code of acquisition random"
    with cluster(tmp_path, {"PYTHONPATH": f"{other}{os.pathsep}{ROOT}"}) as joined:
        _, error = refused(command(tmp_path, RAY_ADDRESS=joined.address, **joined.token))
        assert re.match(told, error), error
        assert not (tmp_path / "runs" / "g" / "run.json").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize(
    ("hidden", "told"),
    [
        ("data", r"error: where\.data: \S+\.png is missing on node \S+ \(\S+\), and has \d+ bytes here: the data must"),
        ("w.pt", r"error: model\.weights: \S+w\.pt has 0 bytes on node \S+ \(\S+\), and has \d+ bytes here: the file"),
        ("runs", r"error: where\.output: \S+ is not visible to node \S+ \(\S+\), or read-only there: use a folder"),
    ],
)
def test_a_node_that_lacks_files_is_named_before_anything_starts(hidden: str, told: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can hide files from a process")
    write_data(tmp_path)
    (tmp_path / "g.yaml").write_text(MAPS)
    (tmp_path / "runs").mkdir()
    with cluster(tmp_path, {}, hidden=tmp_path / hidden) as joined:
        _, error = refused(command(tmp_path, RAY_ADDRESS=joined.address, **joined.token))
        assert re.match(told, error), error
        assert not (tmp_path / "runs" / "g" / "run.json").exists()


@pytest.mark.long
@pytest.mark.ray
def test_a_cluster_that_hangs_while_it_is_joined_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(f"{SMALL}\nmethods: {{Ran: random}}\nseeds: [0]\n")
    with cluster(tmp_path, {}) as joined:
        port = f"--gcs_server_port={joined.address.rpartition(':')[2]}"
        servers = []
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                if b"gcs_server" in (words := line.read_bytes()) and port.encode() in words:
                    servers.append(int(line.parent.name))
        (server,) = servers
        os.kill(server, signal.SIGSTOP)  # the system still accepts connections for it
        try:
            _, error = refused(command(tmp_path, RAY_ADDRESS=joined.address, **joined.token))
        finally:
            os.kill(server, signal.SIGCONT)
        assert f"what listens at {joined.address} says nothing for 5 s: restart a head that hangs" in error, error
        assert not (tmp_path / "runs" / "g" / "run.json").exists()


@pytest.mark.long
@pytest.mark.ray
def test_a_run_goes_on_on_a_cluster_with_other_devices_only_if_told_to(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(f"{SMALL}\nmethods: {{Ran: random}}\nseeds: [0]\n")
    finished(command(tmp_path, "where.trials=in_process", "where.output=run", "protocol.cycles=2"))
    (tmp_path / "gpu").mkdir()
    fake = "import torch\ntorch.cuda.device_count = lambda: 1\ntorch.cuda.get_device_name = lambda number: 'H100'\n"
    (tmp_path / "gpu" / "sitecustomize.py").write_text(fake)
    node = {"PYTHONPATH": f"{tmp_path / 'gpu'}{os.pathsep}{ROOT}"}
    longer = ("where.output=run", "protocol.cycles=3", "--resume")
    with cluster(tmp_path, node, gpus=1) as joined:
        _, error = refused(command(tmp_path, *longer, RAY_ADDRESS=joined.address, **joined.token))
        assert "its finished cycles were computed with other device (cpu, now H100)" in error
        assert cycles(tmp_path / "run") == 2
    for folder in tmp_path.glob("node*"):
        shutil.rmtree(folder)
    with cluster(tmp_path, {}) as joined:
        out = finished(command(tmp_path, *longer, RAY_ADDRESS=joined.address, **joined.token))
        assert "1 of 1 trial and 3 of 3 cycles finished" in out, "on the same kind of device"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_is_lost_during_a_run_costs_its_trials_a_retry(lost: int, tmp_path: Path) -> None:
    """Whichever of the two it is: one of them is the driver's own."""
    (tmp_path / "g.yaml").write_text(f"{SMALL}\nmethods: {{Ran: random, Margin: margin}}\nseeds: [0, 1]\n")
    finished(command(tmp_path, "where.trials=in_process", "where.output=whole"))
    with cluster(tmp_path, {}, {}) as joined:
        process = command(tmp_path, "where.output=run", RAY_ADDRESS=joined.address, **joined.token)
        wait_for(lambda: cycles(tmp_path / "run") >= 2)
        os.killpg(joined.nodes[lost].pid, signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    assert "4 of 4 trials and 16 of 16 cycles finished" in out and "Traceback" not in out + err
    assert outcomes(tmp_path / "run") == outcomes(tmp_path / "whole")

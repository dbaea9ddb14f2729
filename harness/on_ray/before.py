"""What is settled before Ray is imported: which Ray it is, whether it answers, and what this machine has for it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from harness.errors import UserError, no_pipe, reason
from harness.private import private_folder
from harness.settings import Where

START_SECONDS = 50.0
"""Ray has started, or was joined, within this time; else the run ends with ``too_slow``, in a minute in all."""
PROBE_SECONDS = 5.0
"""How long a cluster is asked for an answer before Ray is, which would ask for minutes."""
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket."""
KEPT = 24 * 3600.0
"""Seconds for which the logs of Ray's earlier sessions are kept."""
INSTEAD = "or run without Ray: where.trials=in_process"


def announcement(where: Where) -> str:
    """Return the line that is printed before a cluster is joined, or ""."""
    return f"Ray: joining the cluster at {found[0]} ({found[1]})" if (found := where.cluster()) else ""


def prepare(where: Where) -> None:
    """Check what Ray needs, and give it a token: for a local Ray, or if the user has set one. Raises UserError."""
    if found := where.cluster():
        if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if found[1] != "RAY_ADDRESS":
            os.environ.pop("RAY_ADDRESS", None)  # Ray prefers it
        if found[0] != "auto":
            check_answer(*found)
        return
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    _check_folder()
    _remove_old_sessions()
    _check_ports()
    if os.environ["RAY_AUTH_MODE"] == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        _give_token()


def too_slow(where: Where) -> UserError:
    """Return the error for a Ray that has not started, or was not joined, within START_SECONDS."""
    if found := where.cluster():
        return UserError(
            f"{found[1]}: the Ray cluster at {found[0]} did not let this run join within {START_SECONDS:.0f} s: see "
            f"whether it works (`ray status`), {_local_instead(found[1])}"
        )
    return UserError(
        f"Ray did not start within {START_SECONDS:.0f} s: this machine is overloaded or out of memory; try again when "
        f"it is less busy, {INSTEAD}"
    )


def _local_instead(name: str) -> str:
    return f"or {'unset RAY_ADDRESS' if name == 'RAY_ADDRESS' else f'remove {name}'} to start a local Ray"


def check_answer(written: str, name: str) -> None:
    """Raise UserError if no server that could be Ray's answers at an address, which ``name`` names."""
    if written.startswith("ray://"):
        raise UserError(
            f"{name}: {written} is an address for Ray's client, through which a run can't be watched; give HOST:PORT "
            "(its port is 6379 unless set), and run the command on a node of the cluster"
        )
    host, _, port = written.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 2**16):
        raise UserError(f"{name}: must be HOST:PORT, such as head:6379, or auto, got {written!r:.100}")
    problem, ends = "", time.monotonic() + PROBE_SECONDS
    while (left := ends - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as connection:
                speaks = _speaks_grpc(connection)
            if speaks:
                return
            silent = f"what listens at {written} says nothing for {PROBE_SECONDS:.0f} s: restart a head that hangs, or"
            foreign = f"what answers at {written} is no Ray cluster:"
            raise UserError(
                f"{name}: {foreign if speaks is False else silent} give the port of its head, which is 6379 unless "
                f"set, {_local_instead(name)}"
            )
        except (socket.gaierror, UnicodeError) as error:
            why = error.strerror if isinstance(error, socket.gaierror) else "no name of a machine"
            raise UserError(f"{name}: there is no machine {host!r:.100} ({why}), in {written!r:.100}") from None
        except OSError as error:
            problem = "" if isinstance(error, TimeoutError) else reason(error)
            time.sleep(min(0.5, max(0.0, ends - time.monotonic())))  # the head may be starting
    within = f"nothing answers at {written} within {PROBE_SECONDS:.0f} s"
    refused = f"no Ray cluster answers at {written} (tried for {PROBE_SECONDS:.0f} s: {problem})"
    raise UserError(
        f"{name}: {refused if problem else within}: start its head, or correct the address, {_local_instead(name)}"
    )


def _speaks_grpc(connection: socket.socket) -> bool | None:
    """Return whether a server answers the first bytes of HTTP/2, which is below gRPC, with its settings.

    None: it says nothing.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
        return True  # it is encrypted
    connection.settimeout(PROBE_SECONDS)
    answer = b""
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        while len(answer) < 9 and (some := connection.recv(9)):
            answer += some
    except OSError as error:
        return None if isinstance(error, TimeoutError) and not answer else False
    return answer[3:4] == b"\4" and answer[5:9] == bytes(4)


def _folder() -> tuple[str, str]:
    """Return (Ray's temporary folder, the variable that names it)."""
    given = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    return (os.environ[given], given) if given else ("/tmp", "RAY_TMPDIR")  # noqa: S108 - Ray's; see ray_folder


def ray_folder() -> Path:
    """Return the folder for Ray's sockets and logs. Ray lets everybody write to it, so it lies in a private one.

    Raises OSError.
    """
    return private_folder("ray", Path(_folder()[0])) / "s"


def too_long(extra: int = 0) -> UserError:
    """Return the error for a temporary folder below which paths of sockets are longer than the system allows.

    ``extra``: bytes of these paths after the folder's own; if 0, an estimate.
    """
    folder, name = _folder()
    most = LONGEST_SOCKET - (extra or 78)
    return UserError(
        f"{name}: {folder} is too long for Ray, whose sockets lie below it and whose paths may have {LONGEST_SOCKET} "
        f"bytes: set RAY_TMPDIR to a folder of at most {most} characters, such as /tmp, {INSTEAD}"
    )


def _check_folder() -> None:
    """Raise UserError if Ray can't make its sockets and logs in its temporary folder."""
    folder, name = _folder()
    path, remedy = Path(folder), f"set RAY_TMPDIR to a folder of your own, {INSTEAD}"
    if not path.is_absolute():
        raise UserError(f"{name}: must be an absolute path, got {folder!r}; {remedy}")
    try:
        nearest = next(part for part in (path, *path.parents) if part.exists())
    except OSError as error:
        raise UserError(f"{name}: Ray can't use {folder} ({reason(error)}): {remedy}") from None
    if not nearest.is_dir():
        raise UserError(f"{name}: Ray needs a folder {path}, and {nearest} is a file: {remedy}")
    _check_length(path / f"ray-{os.getuid()}" / "s")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=ray_folder().parent):
            pass
    except OSError as error:
        raise UserError(f"{name}: Ray can't write to {nearest} ({reason(error)}): {remedy}") from None
    _check_length(ray_folder())


def _remove_old_sessions() -> None:
    """Remove what Ray left of earlier runs of this user.

    A Ray that runs writes to its logs every minute, unless it is stopped; the name ends in the id of its process, which
    may be one of another container.
    """
    for session in ray_folder().glob("session_*_*"):
        with suppress(OSError):
            written = max(path.lstat().st_mtime for path in (session, *session.glob("logs/*")))
            if time.time() - written > KEPT and not Path("/proc", session.name.rpartition("_")[2]).exists():
                shutil.rmtree(session, ignore_errors=True)
    latest = ray_folder() / "session_latest"
    with suppress(OSError):
        if latest.is_symlink() and not latest.exists():  # Ray would leave it
            latest.unlink()


def _check_length(below: Path) -> None:
    """Raise UserError if the paths of Ray's sockets in a folder are longer than the system allows."""
    example = below / f"session_2026-01-31_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
    if len(os.fsencode(example)) > LONGEST_SOCKET:
        raise too_long(len(os.fsencode(example)) - len(os.fsencode(Path(_folder()[0]))))


def _check_ports() -> None:
    """Raise UserError if no port of this machine is free."""
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
    except OSError as error:
        raise UserError(
            f"Ray can't start: no port of this machine is free for it ({reason(error)}): end other programs, {INSTEAD}"
        ) from None


def _give_token() -> None:
    """Write a token that only this user can read, where Ray looks for it, or elsewhere if there is no home."""
    home = os.environ.get("HOME")  # Ray looks nowhere else
    try:
        if home is None:
            raise FileNotFoundError
        _write_token(Path(home) / ".ray" / "auth_token")
    except OSError:
        try:
            token = ray_folder().parent / "auth_token"
            _write_token(token)
        except OSError as error:
            raise UserError(
                f"Ray can't start: there is no place for its token ({reason(error)}): set HOME or TMPDIR to a folder "
                f"of your own, {INSTEAD}"
            ) from None
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _write_token(path: Path) -> None:
    """Write a new token, unless there is one. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (path.exists() and no_pipe(path).read_bytes().strip()):
        descriptor, new = tempfile.mkstemp(dir=path.parent)  # of mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            if path.exists():  # an empty file
                path.unlink()
            with suppress(FileExistsError):  # another run was faster
                os.link(new, path)
        finally:
            os.unlink(new)  # noqa: PTH108
    path.chmod(0o600)

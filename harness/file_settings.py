"""Settings of plug-ins that name a file: results depend on its content, so trial ids do too, and not on its path.

::

    class Settings(Strict):
        sets: str | None = file_setting("the file of index sets")
        sets_sha256: str | None = file_digest("sets")

The digest is filled in when a config is read, and is checked whenever the content is read.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, Field

from harness.errors import UserError, expanded, no_pipe, reason
from harness.settings import inert

DIGEST = "_sha256"
"""What the key of a file's digest ends in."""
MOST_BYTES = 500_000_000  # of such a file


def file_setting(description: str) -> Any:
    """Return a field, ``str | None``, that names a file under the same path on every node; KEY_sha256 must follow."""
    return inert(None, description=f"{description}; a relative path is below the current folder")


def file_digest(key: str) -> Any:
    """Return the field ``str | None`` of the digest of the file that the setting ``key`` names."""
    return Field(
        None,
        description=f"SHA-256 of the file in {key}: filled in if absent, else checked; trial ids depend on it, not on "
        "the path",
    )


def file_keys(settings: BaseModel) -> list[str]:
    """Return the keys of the settings that name a file and do so here."""
    fields = type(settings).model_fields
    return [key for key in fields if f"{key}{DIGEST}" in fields and getattr(settings, key) is not None]


def file_content(settings: BaseModel, key: str) -> bytes:
    """Return the bytes of the file that a setting names. Raises UserError, also if its digest is another now."""
    path, expected = getattr(settings, key), getattr(settings, f"{key}{DIGEST}")
    try:
        with no_pipe(expanded(path)).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{key}: {path!r} can't be read: {reason(error)}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{key}: {path!r} has more than {MOST_BYTES} bytes")
    if expected not in (None, digest := hashlib.sha256(data).hexdigest()):
        raise UserError(f"{key}{DIGEST}: must be the SHA-256 of {path!r}, {digest}, got {expected!r}")
    return data


def resolved(settings: Any) -> Any:
    """Return settings with the digests of their files. Raises UserError, which begins with the key."""
    update = {f"{key}{DIGEST}": hashlib.sha256(file_content(settings, key)).hexdigest() for key in file_keys(settings)}
    for key in type(settings).model_fields:
        of = key.removesuffix(DIGEST)
        if of != key and getattr(settings, of, "") is None and getattr(settings, key) is not None:
            raise UserError(f"{key}: needs {of}, which is not set")
    return settings.model_copy(update=update) if update else settings


def located(settings: Any) -> Any:
    """Return settings whose files have absolute paths, because workers may run in another folder."""
    update = {key: str(expanded(getattr(settings, key)).absolute()) for key in file_keys(settings)}
    return settings.model_copy(update=update) if update else settings

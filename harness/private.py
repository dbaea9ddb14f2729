"""Folders for temporary files that are run or trusted: nobody else can have put anything into them."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def private_folder(name: str, parent: Path | None = None) -> Path:
    """Return this user's folder NAME-UID below ``parent``, by default the temporary folder; its mode is 0700.

    Another user may have made a folder of this name, which anybody can guess; then it is a new one, for this process
    alone. Raises OSError.
    """
    parent = parent or Path(tempfile.gettempdir())
    folder = parent / f"{name}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # a link may lead anywhere
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))

"""Lists the files of a folder, and accounts for each: an image that is read, or left out with a word why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationInfo

from harness.errors import DataMissing, UserError, expanded, kind_of, reason

SYSTEM = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
"""Folders and files that operating systems and disk stations add, in lower case; those with a leading dot as well."""


PLURALS = {
    "broken link": "broken links",
    "folder": "folders",
    "link to a folder above": "links to a folder above",
    "pipe or device": "pipes or devices",
}


def counted(number: int, noun: str) -> str:
    """Return, for example, '1 file' or '2 files'."""
    return f"{number} {noun if number == 1 else PLURALS.get(noun, f'{noun}s')}"


def is_system(name: str) -> bool:
    """Return whether a name is that of a hidden or a system file or folder, which is no class and no image."""
    return name.startswith(".") or name.lower() in SYSTEM


@dataclass
class Listing:
    """The images below a folder, and what was left out."""

    paths: Sequence[Path] = field(default_factory=list)
    """Those of a folder before those of its sub-folders, each sorted by name."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Kind of file -> count. Hidden and system files are not counted, unless they look like images."""

    def note(self, where: str) -> str:
        """Return what was read and what was left out, or "" if nothing was."""
        count = self.left_out.total()
        left_out = f"; left out: {counted(count, 'file')} ({self.kinds})"
        return f"{where}: {counted(len(self.paths), 'image')}{left_out}" if count else ""

    @property
    def kinds(self) -> str:
        """Return what was left out, such as '6 .txt, 2 hidden'."""
        kinds = sorted(self.left_out.items())
        return ", ".join(counted(n, kind) if kind in PLURALS else f"{n} {kind}" for kind, n in kinds)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name. Raises DataMissing."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataMissing(f"{folder} can't be listed ({reason(error)})") from None


def folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden and system folders. Raises DataMissing."""
    return [entry.name for entry in entries(folder) if _is_folder(entry) and not is_system(entry.name)]


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder. Raises DataMissing if the system won't say."""
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long, a folder above it that may not be entered
        raise DataMissing(f"{path} can't be read ({reason(error)})") from None


def no_folder(path: Path) -> str:
    """Return the sentence about a folder that is not there, or is none."""
    kind = kind_of(path)
    return f"{path} is {kind}, not a folder" if kind else f"there is no folder {path}"


def listed(folder: Path, suffixes: Collection[str]) -> Listing:
    """List the images with these suffixes (in lower case) in a folder and its sub-folders. Raises DataMissing.

    Links are followed, but not a link to a folder above itself. What is no regular file is left out, never opened.
    """
    listing, images = Listing(), list[Path]()
    above = {_identity(parent) for parent in (*folder.absolute().parents, *folder.resolve().parents)}
    left = [(folder, above)]
    while left:
        here, above = left.pop()
        identity = _identity(here)
        if identity in above:
            listing.left_out["link to a folder above"] += 1
            continue
        below = []
        for entry in entries(here):
            found = kind(entry, tuple(suffixes))
            if not found and _is_folder(entry):
                _count_hidden(entry, tuple(suffixes), listing.left_out)
            if found == "folder":
                below.append((here / entry.name, above | {identity}))
            elif found == "image":
                images.append(here / entry.name)
            elif found:
                listing.left_out[found] += 1
        left += reversed(below)
    listing.paths = images
    return listing


def _count_hidden(folder: os.DirEntry[str], suffixes: tuple[str, ...], left_out: Counter[str]) -> None:
    """Count what looks like an image below a hidden or system folder; links are not followed."""
    for _, _, names in os.walk(folder.path):
        if count := sum(name.lower().endswith(suffixes) for name in names):
            left_out["hidden"] += count


def _identity(folder: Path) -> tuple[int, int]:
    try:
        stat = folder.stat()
    except OSError as error:
        raise DataMissing(f"{folder} can't be read ({reason(error)})") from None
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def kind(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> str:
    """Return 'folder', 'image', or what a file is left out as; "" for what belongs to another program."""
    name = entry.name
    looks_like_image = name.lower().endswith(suffixes)
    if is_system(name):
        return "hidden" if looks_like_image and not _is_folder(entry) else ""
    if _is_folder(entry):
        return "folder"
    try:
        regular = entry.is_file()
    except OSError:
        return "broken link"
    if not regular:
        return "broken link" if entry.is_symlink() and not Path(entry.path).exists() else "pipe or device"
    return "image" if looks_like_image else Path(name).suffix.lower() or "without a suffix"


def loose(folder: Path, suffixes: Collection[str]) -> Counter[str]:
    """Count the files that lie next to the folders of the classes, and the images below hidden folders there."""
    found = Counter[str]()
    for entry in entries(folder):
        if not is_system(entry.name):
            found["in no folder of a class"] += not _is_folder(entry)
        elif _is_folder(entry):
            _count_hidden(entry, tuple(suffixes), found)
    return +found


def extra_folders(folder: Path, read: Iterable[str]) -> str:
    """Return a note on the folders that are not among those that are read, or ""."""
    known = {part for name in read for part in Path(name).parts[:1]}
    extra = [name for name in folders(folder) if name not in known]
    shown = ", ".join(f"{name}/" for name in extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
    return f"not read: {shown}" if extra else ""


def _normal(split: str) -> str:
    with suppress(UserError):  # that there is no such home is said when it is looked for
        split = str(expanded(split))
    return os.path.normpath(split)  # ./train is train


def once(splits: list[str]) -> list[str]:
    """Check that no split occurs twice, as a validator of the key ``train``: ./a and a are one."""
    paths = [_normal(split) for split in splits]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"the split {twice[0]!r} occurs twice, got [{', '.join(splits)}]")
    return splits


def splits_differ(test: list[str], before: ValidationInfo) -> list[str]:
    """Check the names of the splits of the test set against those of the pool, as a validator of the key ``test``."""
    splits = [Path(_normal(split)) for split in (*before.data.get("train", []), *test)]
    if twice := {split for split in splits if splits.count(split) > 1}:
        written = f"train: [{', '.join(before.data.get('train', []))}], test: [{', '.join(test)}]"
        raise ValueError(f"the split {str(min(twice))!r} occurs twice in train and test, got {written}")
    return test

"""The checks of a dataset: its facts, its order, its labels, and what it says if data is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import registry
from harness.checking.text import Inapplicable, Wrong, run_checks, settings_of, wrapped
from harness.data.dataset import DataRoot, Dataset, DatasetInfo, DatasetSettings, LoadedData, facts, fetch, opened, read
from harness.data.files import IGNORED, Files
from harness.data.images import Images
from harness.data.rows import on_device
from harness.errors import DataMissing, UserError, died
from harness.faults import described
from harness.lazy import torch
from harness.settings import Recipe

AT_ONCE = 64
"""Images that are decoded at once."""

FRESH = """
import importlib, json, pathlib, sys
name, module, cls, settings, root, download, plugins, sys.path[:] = json.loads(sys.stdin.read())
from harness import registry
from harness.checking.run import add_plugins
from harness.data.dataset import DataRoot, Dataset
add_plugins(plugins)
try:
    found = getattr(importlib.import_module(module), cls)
except (ImportError, AttributeError):
    found = registry.find("datasets", name, Dataset)
values = found.Settings.model_validate_json(settings)
print(found(values, DataRoot(pathlib.Path(root), download)).load().fingerprint)
"""
"""Prints the fingerprint of a dataset; what it needs comes from standard input."""


@dataclass
class Loadable:
    """A dataset under check."""

    name: str
    plugin: type[Any]
    values: dict[str, Any]
    root: DataRoot
    plugins: list[str] = field(default_factory=list)
    """Paths of ``--plugins``."""

    def make(self, root: DataRoot | None = None, **values: Any) -> Any:
        """Return the dataset with some settings changed. Raises UserError."""
        (settings,) = settings_of([self.plugin], {**self.values, **values})
        return opened(self.plugin, self.name, settings, root or self.root)

    @cached_property
    def facts(self) -> DatasetInfo:
        """What ``info`` returns."""
        return facts(self.make())

    @cached_property
    def data(self) -> LoadedData:
        """What ``load`` returns."""
        return read(self.make())

    def splits(self) -> dict[str, tuple[Any, Any]]:
        """Return (images, labels) of each split."""
        data = self.data
        return {
            "training": (data.train_images, data.train_labels),
            "test": (data.test_images, data.test_labels),
        }

    def wrong(self, problem: str, hook: str = "") -> Wrong:
        """Return the failure of a check."""
        return Wrong(self.plugin, problem, hook)


def in_parts(rows: Any) -> Any:
    """Yield the rows of an array, or of files, which are decoded part by part."""
    if isinstance(rows, Files):
        yield from (rows[part] for part in np.array_split(np.arange(len(rows)), -(-len(rows) // AT_ONCE)))
    else:
        yield rows


def inherits_settings(it: Loadable) -> None:
    """Its Settings inherit from DatasetSettings."""
    if not issubclass(it.plugin.Settings, DatasetSettings):
        raise it.wrong("Settings must inherit from DatasetSettings, which has limit and test_limit")


def facts_are_true(it: Loadable) -> None:
    """What info says is what load returns: numbers, size, channels, kind of labels."""
    images, data = it.data.train_images, it.data
    loaded = {
        "num_train": len(images),
        "num_test": len(data.test_images),
        "num_classes": len(data.classes),
        "channels": images.shape[3],
        "size": tuple(images.shape[1:3]),
        "per_pixel": data.per_pixel,
        "from_files": isinstance(images, Files),
    }
    for key, value in loaded.items():
        if getattr(it.facts, key) != value:
            raise it.wrong(
                f"info must return what load returns; expected {key}={value}, got {getattr(it.facts, key)}", "info"
            )


def types_are_right(it: Loadable) -> None:
    """Images are uint8 with one shape of channels in both splits; labels are int64, or uint8 maps."""
    for split, (images, labels) in it.splits().items():
        expected = np.uint8 if it.data.per_pixel else np.int64
        if images.dtype != np.uint8 or labels.dtype != expected:
            found = f"{images.dtype} images and {labels.dtype} labels"
            raise it.wrong(
                f"load must return uint8 images and {np.dtype(expected)} labels; got {found} ({split})", "load"
            )
        if images.shape[3] != it.data.train_images.shape[3]:
            raise it.wrong(f"both splits must have the same channels; got {images.shape[3]} ({split})", "load")


def labels_are_classes(it: Loadable) -> str | None:
    """Labels are 0..classes-1, or IGNORED in maps; each class occurs."""
    count = len(it.data.classes)
    for split, (_, labels) in it.splits().items():
        values = np.unique(np.concatenate([np.unique(part) for part in in_parts(labels)]))
        known = values[values != IGNORED] if it.data.per_pixel else values
        outside = known[(known < 0) | (known >= count)]
        if len(outside):
            raise it.wrong(f"labels must be 0..{count - 1}; got {outside[0]} ({split} images)", "load")
        if split == "training":
            absent = [it.data.classes[i] for i in np.setdiff1d(np.arange(count), known)]
    return f"no training image has these classes: {', '.join(map(str, absent))}" if absent else None


def classes_differ(it: Loadable) -> None:
    """Classes are different strings, at least two."""
    classes = it.data.classes
    if not (isinstance(classes, tuple) and all(isinstance(c, str) for c in classes) and len(classes) > 1):
        raise it.wrong(f"classes must be a tuple of strings; got {classes!r}"[:300], "load")


def mean_and_std_are_scaled(it: Loadable) -> None:
    """Mean and std are per channel, of pixels scaled to 0..1."""
    channels = it.data.train_images.shape[3]
    for key in ("mean", "std"):
        values = getattr(it.data, key)
        fits = len(values) == channels and all(0 <= v <= 1 for v in values) and (key == "mean" or min(values) > 0)
        if not fits:
            raise it.wrong(
                f"{key} must have {channels} numbers, one per channel, of pixels scaled to 0..1; got {values}", "load"
            )


def gives_batches(it: Loadable) -> None:
    """A batch of its images is finite float32, normalised by mean and std."""
    device = torch.device("cpu")
    for split, (images, _) in it.splits().items():
        first = images[np.arange(min(len(images), 2))]
        of_split = Images(on_device(first, device), it.data, Recipe.model_validate({"epochs": 1}))
        batch = of_split.unaugmented(torch.arange(len(first)))
        if batch.dtype != torch.float32 or not batch.isfinite().all():
            raise it.wrong(
                f"a batch, normalised by mean and std, must be finite float32; got {described(batch)} ({split} images)",
                "load",
            )


def loads_twice(it: Loadable) -> None:
    """A second load gives the same images and labels in the same order."""
    again = read(it.make())
    if again.fingerprint != it.data.fingerprint:
        first = next(
            name
            for name in ("train_images", "train_labels", "test_images", "test_labels")
            if not _equal(getattr(again, name), getattr(it.data, name))
        )
        raise it.wrong(f"a second load returns other {first}; their order must be the same on every machine", "load")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Files):
        return bool(one.digest() == other.digest())
    return np.array_equal(one, other)


def loads_elsewhere(it: Loadable) -> None:
    """A new process in another folder, with other hashes of strings, loads the same data."""
    module, cls, root = it.plugin.__module__, it.plugin.__qualname__, it.root
    settings = it.make().settings.model_dump_json()
    path = [str(Path(p).resolve()) for p in sys.path]
    plugins = [str(Path(p).resolve()) for p in it.plugins]
    given = json.dumps((it.name, module, cls, settings, str(root.root.resolve()), root.download, plugins, path))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(path)}
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-c", FRESH], input=given, capture_output=True, text=True, cwd=folder, env=environment
        )
    if ran.returncode:
        how = next(reversed(ran.stderr.strip().splitlines()), died(ran.returncode))
        raise it.wrong(f"load fails in a new process in another folder: {how}", "load")
    if ran.stdout.split()[-1] != it.data.fingerprint:
        problem = "a new process in another folder loads other data; sort what comes from a folder or from a set"
        raise it.wrong(problem, "load")


def splits_differ(it: Loadable) -> str | None:
    """Training and test images are separate arrays."""
    if it.data.train_images is it.data.test_images:
        raise it.wrong("both splits are one object; test images must not be training images", "load")
    known = {image.tobytes() for part in in_parts(it.data.train_images) for image in part}
    copies = sum(image.tobytes() in known for part in in_parts(it.data.test_images) for image in part)
    return f"{copies} of {len(it.data.test_images)} test images are also training images" if copies else None


def names_are_of_images(it: Loadable) -> None:
    """Names, if there are any, are one for each training image, and differ."""
    names = it.data.names
    if not names:
        raise Inapplicable("it has no names of files")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise it.wrong(f"names must differ; {twice!r} occurs {names.count(twice)} times", "load")


def keeps_limits(it: Loadable) -> None:
    """Both limits are kept, by info and by load."""
    for key, part, count in (
        ("limit", "train", len(it.data.train_images)),
        ("test_limit", "test", len(it.data.test_images)),
    ):
        limit = max(1, count // 2)
        dataset = it.make(None, **{key: limit})
        told, loaded = getattr(facts(dataset), f"num_{part}"), len(getattr(read(dataset), f"{part}_images"))
        for hook, found in (("info", told), ("load", loaded)):
            if found != limit:
                raise it.wrong(f"{key}={limit} must give {limit} images; {hook} returns {found}", hook)


def says_what_is_missing(it: Loadable) -> None:
    """If data is missing, DataMissing says so."""
    with tempfile.TemporaryDirectory() as folder:
        for hook in ("info", "fetch", "load"):
            dataset = it.make(DataRoot(Path(folder), download=False))
            try:
                getattr(dataset, hook)()
            except DataMissing as missing:
                if not str(missing).strip():
                    raise it.wrong(
                        f"{hook} raises DataMissing without a message; say which files to get", hook
                    ) from None
                return
            except Exception as error:
                raised = f"{type(error).__name__}: {error}"
                problem = f"{hook} must raise DataMissing if its files are missing; it raises {raised}"
                raise it.wrong(problem, hook) from error
    raise Inapplicable("it reads no files of the data folder")


CHECKS: list[Callable[[Loadable], str | None]] = [
    facts_are_true,
    types_are_right,
    labels_are_classes,
    classes_differ,
    mean_and_std_are_scaled,
    gives_batches,
    loads_twice,
    loads_elsewhere,
    splits_differ,
    names_are_of_images,
    keeps_limits,
    says_what_is_missing,
]
"""The checks of a dataset that loads, in the order of the output."""


def loads(it: Loadable) -> None:
    """It loads."""
    fetch(it.make())
    it.facts, it.data  # noqa: B018


def check(
    name: str, values: dict[str, Any], root: DataRoot, say: Callable[[str], None], plugins: list[str]
) -> tuple[int, int]:
    """Check a dataset, say a line for each check, and return (how many failed, how many ran).

    Raises UserError, also if the data that it reads is missing.
    """
    plugin: Any = registry.find("datasets", name, Dataset)
    it = Loadable(name, plugin, values, root, plugins)
    failed, ran = run_checks(name, plugin, [inherits_settings], it, say)
    if failed:
        return failed, ran
    settings_of([plugin], values)
    try:
        facts(it.make())
        fetch(it.make())
    except DataMissing as missing:
        raise UserError(f"{name} can't be checked without its data: {missing}") from None
    except Exception:  # noqa: S110 - a failure of the check below
        pass
    for checks in ([loads], CHECKS):
        more_failed, more = run_checks(name, plugin, checks, it, say)
        failed, ran = failed + more_failed, ran + more
        if more_failed and checks is not CHECKS:
            say(wrapped("skip", "the other checks need a dataset that loads"))
            break
    return failed, ran

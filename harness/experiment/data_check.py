"""--check-data: reads and decodes all data of a config and says what it is, without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.config.suite import Benchmark, Suite, with_same_data
from harness.data import dataset, remembered
from harness.data.dataset import DatasetInfo, LoadedData
from harness.data.files import Files
from harness.data.host import in_units
from harness.errors import UserError
from harness.experiment.grid import check_fits, check_memory
from harness.experiment.plan import key_of_data, wrapped

MOST_CLASSES = 20
"""Classes whose numbers of images are listed; of more, the smallest and the largest number are."""


def check(benchmark: Benchmark) -> int:
    """Print what the data of each suite is. Return 0, or 2 if that of a suite that is not optional can't be used."""
    with remembered.afresh():
        return _checked(benchmark)


def _checked(benchmark: Benchmark) -> int:
    code = 0
    for suite, same in with_same_data(benchmark.suites):
        if same:
            print(f"{suite.name}: the same data as {same}\n", flush=True)
            continue
        try:
            for line in _lines(benchmark, suite):
                print(wrapped(line, "    "), flush=True)
            remembered.keep_problem(key_of_data(benchmark, suite), "")
        except UserError as problem:
            remembered.keep_problem(key_of_data(benchmark, suite), str(problem))
            word = "will be SKIPPED" if suite.optional else "CAN'T RUN"
            print(wrapped(f"{suite.name} {word}: {problem}", "    "))
            code = code if suite.optional else 2
        print(flush=True)
    return code


def _lines(benchmark: Benchmark, suite: Suite) -> Iterator[str]:
    where = benchmark.where.model_copy(update={"prepared": False})  # all is decoded again, and nothing is kept
    opened = suite.open_dataset(where)
    info = dataset.facts(opened)
    yield f"{suite.name}: {info.source}"
    check_memory(info.in_memory, benchmark.where, dataset.less(suite.dataset.settings))
    dataset.fetch(opened)
    yield f"  {counts(info)}"
    for note in info.notes:
        yield f"  {note}"
    for line in dataset.examined(opened):
        yield f"  {line}"
    data = dataset.loaded(suite.open_dataset(where), info)
    if not data.per_pixel:
        for split, labels in (("training", data.train_labels), ("test", data.test_labels)):
            yield f"  {split} images of each class: {_of_classes(labels, data.classes)}"
    for note in notes(data):
        yield f"  {note}"
    yield f"  fingerprint {data.fingerprint}"
    check_fits(suite, info)


def counts(info: DatasetInfo) -> str:
    """Return the numbers of images and classes, and the size in memory, in one phrase."""
    height, width = info.size
    where = "decoded from files when needed" if info.from_files else "in memory"
    return (
        f"{info.num_train} training and {info.num_test} test images, {info.num_classes} classes; {height} x {width} x "
        f"{info.channels}, {in_units(info.nbytes)} {where}"
    )


def notes(data: LoadedData) -> list[str]:
    """Return what a user must know of loaded data, a sentence each."""
    by = "bytes of the files" if isinstance(data.test_images, Files) else "pixels"
    copies = f"{data.copies} of {len(data.test_images)} test images are also training images, by the {by}"
    return [*data.notes, *data.altered, *([copies] if data.copies else [])]


def _of_classes(labels: Any, classes: tuple[str, ...]) -> str:
    numbers = np.bincount(labels, minlength=len(classes))
    if len(classes) > MOST_CLASSES:
        return f"{numbers.min()} to {numbers.max()}"
    return ", ".join(f"{name} {number}" for name, number in zip(classes, numbers, strict=True))

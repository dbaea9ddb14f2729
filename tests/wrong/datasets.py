"""Wrong datasets."""

from __future__ import annotations

from wrong import Wrong

HEAD = """
import random
from pathlib import Path

import numpy as np
import torch

from harness.data.dataset import Dataset, DatasetInfo, DatasetSettings, LoadedData
from harness.data.files import Files
from harness.settings import Strict
"""

INFO = """
def info(self):
    return DatasetInfo(60, 20, num_classes=3, channels=1, size=(8, 8), source="drawn")
"""
LOAD = """
def load(self):
    images = np.zeros((80, 8, 8, 1), np.uint8)
    labels = np.arange(80) % 3
    return LoadedData(images[:60], labels[:60], images[60:], labels[60:], ("a", "b", "c"), (0.5,), (0.2,))
"""


def with_info(text: str) -> str:
    """Return a dataset's text with a correct ``info``."""
    return f"{INFO.strip()}\n\n{text.strip()}"


def with_load(text: str) -> str:
    """Return a dataset's text with a correct ``load``."""
    return f"{text.strip()}\n\n{LOAD.strip()}"


def loading(name: str, wrong: str, right: str, sentence: str, at: str = "") -> Wrong:
    """Return a dataset with a mistake in ``load``; the mark is at its ``def``, or where a line begins with ``at``."""
    text = LOAD.strip().replace(right, wrong, 1)
    lines = [f"{line}  # here" if line.strip().startswith(at or "def load") else line for line in text.splitlines()]
    return Wrong(name, "Dataset", with_info("\n".join(lines)), wrong, right, sentence)


DATA = "load returns wrong data: "
BUILT = "return LoadedData("

DATASETS = [
    *(
        loading(
            f"draws_from_{library}",
            f"{draw}; images = np.zeros((80, 8, 8, 1), np.uint8)",
            "images = np.zeros((80, 8, 8, 1), np.uint8)",
            f"load must not draw from the global random stream of {library}, or seed it; draw from "
            "numpy.random.default_rng(SEED)",
        )
        for library, draw in (
            ("numpy", "np.random.seed(0)"),
            ("random", "random.random()"),
            ("torch", "torch.rand(1)"),
        )
    ),
    Wrong(
        "own_settings",
        "Dataset",
        with_info(LOAD) + "\n\nclass Settings(Strict):\n    pass",
        "Settings(Strict)",
        "Settings(DatasetSettings)",
        "Settings must be a subclass of DatasetSettings",
    ),
    Wrong(
        "load_with_an_argument",
        "Dataset",
        with_info(LOAD.replace("def load(self):", "def load(self, root):  # here")),
        "self, root",
        "self",
        "load must accept the arguments (); it accepts (root)",
    ),
    Wrong(
        "init_without_root",
        "Dataset",
        with_info(LOAD) + "\n\ndef __init__(self, settings, data_root):  # here\n    self.settings = settings",
        "self.settings = settings",
        "super().__init__(settings, data_root)",
        "__init__ must call super().__init__(settings, data_root)",
    ),
    Wrong(
        "info_a_dict",
        "Dataset",
        with_load(INFO.replace("def info(self):", "def info(self):  # here").replace("DatasetInfo(60, 20,", "dict(")),
        "dict(",
        "DatasetInfo(60, 20,",
        "info must return a DatasetInfo; got dict",
    ),
    Wrong(
        "info_of_one_class",
        "Dataset",
        with_load(INFO.replace("def info(self):", "def info(self):  # here").replace("classes=3", "classes=1")),
        "classes=1",
        "classes=3",
        "info must return num_classes as an int of at least 2; got 1",
    ),
    Wrong(
        "info_half_an_image",
        "Dataset",
        with_load(INFO.replace("def info(self):", "def info(self):  # here").replace("60, 20", "120 / 2, 20")),
        "120 / 2",
        "120 // 2",
        "info must return num_train as an int of at least 1; got 60.0",
    ),
    Wrong(
        "info_one_side",
        "Dataset",
        with_load(INFO.replace("def info(self):", "def info(self):  # here").replace("(8, 8)", "8")),
        "size=8",
        "size=(8, 8)",
        "info must return size as (height, width) in pixels; got 8",
    ),
    Wrong(
        "info_raises",
        "Dataset",
        with_load(
            """
def info(self):
    count = int(Path("/nowhere/count.txt").read_text())  # here
    return DatasetInfo(60, 20, num_classes=3, channels=1, size=(8, 8), source="drawn")
"""
        ),
        'int(Path("/nowhere/count.txt").read_text())',
        "60",
        "info raises FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/count.txt'",
    ),
    Wrong(
        "fetch_raises",
        "Dataset",
        with_info(LOAD) + "\n\ndef fetch(self):\n    self.download()  # here",
        "self.download()",
        "self.info()",
        "fetch raises AttributeError: 'Plugin' object has no attribute 'download'",
    ),
    Wrong(
        "load_a_tuple",
        "Dataset",
        with_info(LOAD.replace("def load(self):", "def load(self):  # here").replace("LoadedData(", "(")),
        "return (images",
        "return LoadedData(images",
        "load must return LoadedData; got tuple of 7",
    ),
    Wrong(
        "load_raises",
        "Dataset",
        with_info(LOAD.replace("% 3", "% {}[3]  # here")),
        "{}[3]",
        "3",
        "load raises KeyError: 3",
    ),
    loading("floating_images", "np.float32", "np.uint8", f"{DATA}train_images must be uint8 [N, H, W, 1]; got float32 "
            "[60, 8, 8, 1]", BUILT),
    loading("flat_images", "(80, 64)", "(80, 8, 8, 1)", f"{DATA}train_images must be uint8 [N, H, W, channels]; got "
            "uint8 [60, 64]", BUILT),
    loading("labels_from_one", "% 3 + 1", "% 3", f"{DATA}train_labels must be 0..2; got 3", BUILT),
    loading("labels_in_32_bits", "np.arange(80, dtype=np.int32)", "np.arange(80)", f"{DATA}train_labels must be [N], "
            "int64 [60]; got int32 [60]", BUILT),
    loading("a_label_too_few", "labels[:59]", "labels[:60]", f"{DATA}train_labels must be [N], int64 [60]; got int64 "
            "[59]", BUILT),
    loading("mean_of_three", "(0.5, 0.5, 0.5)", "(0.5,)", f"{DATA}mean must be 1 finite numbers, one per channel; got "
            "[0.5, 0.5, 0.5]", BUILT),
    loading("std_nan", '(float("nan"),)', "(0.2,)", f"{DATA}std must be 1 finite numbers, one per channel; got [nan]",
            BUILT),
    loading("std_zero", "(0.0,)", "(0.2,)", f"{DATA}std must be positive; got [0.0]", BUILT),
    loading("files_of_four_classes", "Files([Path(str(i)) for i in range(60)], (8, 8), table=np.arange(256, "
            "dtype=np.uint8) % 4)", "labels[:60]", f"{DATA}train_labels and test_labels must be of one kind; they have "
            "3 and 1 dimensions", BUILT),
    loading("fewer_images", "60:70], labels[60:70]", "60:], labels[60:]", "load must return what info states; num_test "
            "is 20 in info, 10 loaded"),
    loading("more_classes", '"c", "d"', '"c"', "load must return what info states; num_classes is 3 in info, 4 loaded"),
    loading("other_size", "(80, 8, 16, 1)", "(80, 8, 8, 1)", "load must return what info states; size is (8, 8) in "
            "info, (8, 16) loaded"),
    loading("cut_test_images", "images[60:, 2:]", "images[60:]", "load must return what info states; size is (8, 8) in "
            "info, (6, 8) in the test set loaded"),
]  # fmt: skip

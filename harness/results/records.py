"""The record of a finished cycle. Reports are computed from records alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict

from harness.errors import UNPRINTABLE, printable

SCHEMA_VERSION = 3
"""Version of run.json, records and trial specs. It must change whenever the default of a setting changes (see
tests/test_stored.py), because a trial's id is a hash of the settings that differ from their defaults."""

UNKNOWN = "unknown"
"""A condition that an earlier schema version did not record."""

CHANGED = "+changes"
"""The end of a commit that does not hold all of the code."""

OWN_CODE = ("code of training", "code of acquisition")
"""The conditions that belong to a method, and not to its whole suite."""

RENAMED = {"figures": "metrics", "chosen": "selected", "own_initial_set": "initial_set"}
"""Key in schema version 1 -> key since version 2."""

TEXTS = (
    *("suite", "dataset", "model", "method", "device", "precision", "commit", "data_fingerprint", "metrics"),
    *("per_class", "warnings", "versions", "code", "trained_under"),
)
"""The keys of a record whose texts are printed, apart from the trial, which names its folder, and from files, which may
have any name."""

PHASES = ("setup", "compile", "train", "auxiliary", "score", "select", "evaluate", "checkpoint")
"""The phases partition a cycle's wall time, except for writing the record itself. No phase is computed as a remainder.
setup: copy data to the device, build networks, start scoring workers (which includes compiling their networks);
compile: torch.compile in the trial's process; train: training of the target network; auxiliary: additional training by
the method, such as a VAE or a committee; score: inference on candidates; select: selection of the images; evaluate:
test; checkpoint: write the weights and the checkpoints within the cycle, determine the versions of the software."""

TRAINING_PHASES = ("compile", "train", "auxiliary", "evaluate")
"""The phases whose seconds are copied from a shared first cycle into the records of the trials that use it."""

COST_PHASES = ("train", "auxiliary", "score", "select")
"""The phases that make up the cost of a method: the column total of the wall-clock tables."""

DECIDING_VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "cuda", "cudnn")
"""The libraries whose versions may change results."""

METRICS = {"accuracy": "accuracy", "miou": "mIoU"}
"""Metric by which methods are compared -> its name in reports."""

MORE_METRICS = {"top5": "top-5 accuracy"}
"""Metric that is shown next to it, if a dataset asks for it -> its name in reports."""


@dataclass(frozen=True, slots=True)  # a report holds up to a million
class CycleRecord:
    """One finished cycle of one trial.

    If the training was shared, the seconds of TRAINING_PHASES are those of the shared training, whereas
    ``wall_seconds`` is the time that this trial itself took.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)  # for the JSON schema

    suite: str
    """Name of the suite in the config."""
    dataset: str
    """Name of the dataset."""
    model: str
    """Name of the target network."""
    method: str
    """Name of the method in the config; reports use the name in run.json instead."""
    trial: str
    """Id of the trial, or of one of the trials that share this first cycle."""
    seed: int
    """Seed of the trial."""
    cycle: int
    """Number of the cycle, from 0."""
    labelled: int
    """Number of labelled images that the cycle trained on."""
    metrics: dict[str, float]
    """Test metrics as fractions from 0 to 1: ``accuracy`` for image labels, also ``top5`` with dataset.top5, ``miou``
    for label maps."""
    selected: list[int]
    """Training-set indices selected at the end of this cycle, best first; empty in the last cycle."""
    seconds: dict[str, float]
    """Seconds of each phase (setup, compile, train, auxiliary, score, select, evaluate, checkpoint)."""
    wall_seconds: float
    """Wall-clock seconds of the whole cycle, without the lost ones."""
    target_parameters: int
    """Number of trainable parameters of the target network."""
    extra_parameters: int
    """Number of parameters that the method adds to the target network, minus those that it replaces: the maximum over
    the cycles so far."""
    peak_memory_bytes: dict[str, int]
    """Peak memory of the trial's process in this cycle, or of the process of a shared training if that is higher:
    ``host`` (resident memory) and, on a GPU, ``device`` (tensors) and ``reserved`` (by PyTorch's allocator, without the
    CUDA context)."""
    training_images: int
    """Image passes of the target network's training in this cycle: labelled images x epochs."""
    final_loss: float | None
    """Mean training loss of the last epoch, or null."""
    device: str
    """Name of the GPU, or cpu."""
    device_share: int
    """Highest number of trials on this trial's device at the same time; 1: no other trial affected its times."""
    threads: int
    """Number of torch threads of the trial's process."""
    precision: str
    """Precision of the networks: float32 or bfloat16."""
    scoring: dict[str, Any]
    """``path`` (in_process, ray_data or none) and ``shards``: for each worker pid, images, seconds, warnings and
    peak_memory_bytes."""
    shared_from: str | None = None
    """Sharing key of the shared first cycle whose training this cycle uses, or null."""
    initial_set: list[int] = field(default_factory=list)
    """Training-set indices of the initial set, in cycle 0 of a method that draws its own; else empty, because the set
    follows from the protocol and the seed."""
    pid: int = 0
    """Id of the trial's process."""
    per_class: dict[str, float] = field(default_factory=dict)
    """Label maps only: intersection over union of each class, from 0 to 1; without classes absent from the test set."""
    warnings: list[str] = field(default_factory=list)
    """Problems with the cycle's training or scoring, as printed in the report."""
    health: dict[str, float] = field(default_factory=dict)
    """Diagnostics of the method's training, such as losses, explained variance or ranking accuracy."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that affect results, of Python and of the harness."""
    commit: str = "unknown"
    """Git commit of the harness, with '+changes' if its tracked files differed from it."""
    pretrained: dict[str, Any] = field(default_factory=dict)
    """The pretrained weights that the network started from: ``weights`` (the file, package or name, with its version),
    ``sha256``, ``normalisation`` (weights or dataset: whose mean and standard deviation normalise pixels), ``mean`` and
    ``std``; empty for fresh weights, with the dataset's normalisation."""
    selected_files: list[str] = field(default_factory=list)
    """Files of the selected images, in the order of ``selected``, as paths in the data's folder; empty for data that is
    not one file for each image."""
    data_fingerprint: str = ""
    """Hash of the dataset's images and labels."""
    code: dict[str, str] = field(default_factory=dict)
    """Hashes, by part, of the code that decides the result: ``harness``, dataset, network, training and acquisition;
    empty in records of earlier schema versions."""
    trained_under: dict[str, str] = field(default_factory=dict)
    """The conditions of the training, if it was shared or came earlier, under others than this record's; else empty."""
    confusion: list[dict[str, dict[str, int]]] = field(default_factory=list)
    """For each tested head: class -> predicted class -> number of test images (or pixels), without zeros. It has all
    classes, in the order of the dataset. Empty in records of earlier versions of the harness."""
    calibration: dict[str, float] = field(default_factory=dict)
    """``nll``, the mean negative log-likelihood of the test labels in nats, and ``ece``, the expected calibration error
    with 15 bins, from 0 to 1; empty if the method's training tests other scores than the network's logits."""
    schema_version: int = SCHEMA_VERSION
    """Version of the schema of this record."""
    selected_classes: list[int] = field(default_factory=list)
    """Image labels only: how many of the selected images have each class, in the order of the dataset's classes; empty
    in the last cycle, and in records that were stored before this field existed."""
    energy_joules: float | None = None
    """Energy that the GPU took during this cycle, for all processes on it, without the lost seconds; null if it does
    not report it. A shared training is not in it."""
    lost_seconds: float = 0.0
    """Wall-clock seconds between the checkpoints within this cycle from which later processes went on and their going
    on: what was computed again, the pause, and the start of the process. No phase contains them."""

    def conditions(self) -> dict[str, str]:
        """Return what must be equal for all records of a table's row, by the names that users see."""
        return conditions(self.data_fingerprint, self.code, self.versions, self.precision, self.device)

    def outcome(self) -> dict[str, Any]:
        """Return the values that must be equal if this cycle is recomputed on the same machine."""
        keys = ("cycle", "labelled", "metrics", "selected", "initial_set", "data_fingerprint")
        return {key: getattr(self, key) for key in keys}

    def peak_memory(self, kinds: tuple[str, ...] = ("reserved", "device", "host")) -> int:
        """Return the peak memory, in bytes, of any process of the cycle: the trial's own and its scoring workers.

        For each process, the first of ``kinds`` that was measured counts; a process without any counts as 0.
        """
        peaks = [self.peak_memory_bytes, *(shard.get("peak_memory_bytes", {}) for shard in self.scoring["shards"])]
        return max(next((peak[kind] for kind in kinds if kind in peak), 0) for peak in peaks)

    def all_conditions(self) -> list[dict[str, str]]:
        """Return the conditions of the training and, if they differ from these, of the selection."""
        return [*([self.trained_under] if self.trained_under else []), self.conditions()]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CycleRecord:
        """Return a record of this or an earlier schema version, in the current version; unknown keys are dropped.

        Its texts can be printed: a results folder may come from anywhere.
        """
        names = _read_names()
        renamed = {RENAMED.get(key, key): value for key, value in values.items()}
        texts = {key: renamed[key] for key in TEXTS if key in renamed}
        if UNPRINTABLE.search(" ".join(_texts(texts))):
            renamed |= printable(texts)
        return cls(**{key: value for key, value in renamed.items() if key in names})

    @property
    def cost_seconds(self) -> float:
        """Total seconds of COST_PHASES."""
        return sum(self.seconds[phase] for phase in COST_PHASES)


def _texts(values: Any) -> Iterator[str]:
    """Yield all texts among JSON values."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield key
            if not isinstance(value, float):
                yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


@cache
def _read_names() -> frozenset[str]:
    return frozenset(f.name for f in fields(CycleRecord)) - {"schema_version"}


def conditions(
    data_fingerprint: str, code: dict[str, str], versions: dict[str, str], precision: str, device: str, **_: Any
) -> dict[str, str]:
    """Return the conditions of a record with these fields, by the names that users see.

    What an earlier schema version did not record is absent, or UNKNOWN.
    """
    return {
        "data": data_fingerprint or UNKNOWN,
        **{f"code of {part}": hash_ for part, hash_ in code.items()},
        **{name: versions.get(name, UNKNOWN) for name in DECIDING_VERSIONS},
        "precision": precision,
        "device": device,
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the conditions that differ between two records."""
    return [name for name in {**one, **other} if one.get(name, UNKNOWN) != other.get(name, UNKNOWN)]

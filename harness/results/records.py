"""What is written down of one cycle. Reports are pure functions of these records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

PHASES = ("setup", "compile", "train", "auxiliary", "score", "select", "evaluate", "checkpoint")
"""Every second of a cycle belongs to one of these, but for the writing of its own record; none is what others leave.
Setup is loading and building, compile what torch.compile does (``recipe.compile``; a scoring worker's is in its start),
checkpoint writing the weights and looking up what the record says of the code."""

TRAINING_PHASES = ("compile", "train", "auxiliary", "evaluate")
"""What a cycle that takes over a shared training takes over of its seconds."""

COST_PHASES = ("train", "auxiliary", "score", "select")
"""What a method costs: the total of the wall-clock tables. Evaluation and checkpointing have columns of their own."""

FIGURES = {"accuracy": "accuracy", "miou": "mIoU"}
"""Every figure that a test is summed up in, and the name that it is shown by."""


@dataclass(frozen=True)
class CycleRecord:
    """One finished cycle of one trial, as it is stored and reported.

    ``chosen`` are the training-set indices bought at the end of this cycle, in the order of preference; empty in the
    last cycle. ``figures`` are fractions (FIGURES, 0..1). ``seconds`` has one entry for each of PHASES. In a cycle
    whose training was shared (``shared_from`` names the unit that did it) compile, train, auxiliary and evaluate hold
    that unit's seconds, and ``wall_seconds`` is what this trial itself took.
    """

    suite: str
    dataset: str
    model: str
    method: str
    trial: str
    seed: int
    cycle: int
    labelled: int
    figures: dict[str, float]
    chosen: list[int]
    seconds: dict[str, float]
    wall_seconds: float
    target_parameters: int
    """Parameters of the plain target network."""
    extra_parameters: int
    """Parameters of the whole system (target network and what the method adds to it) less the plain network's."""
    peak_memory_bytes: dict[str, int]
    """Highest memory of the trial's process in the cycle, or of the one that trained it if that was shared: ``host``
    (resident) and, on a GPU, ``device`` (of tensors) and ``reserved`` (taken for them; CUDA's own comes on top)."""
    training_images: int
    """Image passes of the training of this cycle (labelled images x epochs)."""
    final_loss: float | None
    device: str
    device_share: int
    """How many trials may have run on this trial's device at once; 1 means that its seconds are exclusive."""
    threads: int
    precision: str
    scoring: dict[str, Any]
    """``path`` (in_process, ray_data or none) and ``shards``: a list of harness.scoring.Shard."""
    shared_from: str | None = None
    own_initial_set: list[int] = field(default_factory=list)
    """The labelled images of cycle 0, in cycle 0 of a method that drew its own; else they follow from the seed."""
    pid: int = 0
    per_class: dict[str, float] = field(default_factory=dict)
    """Intersection over union by class, where pixels have labels; classes that the test set lacks are left out."""
    warnings: list[str] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    """A method's own measurements of its training: losses, explained variance, ranking accuracy."""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    data_fingerprint: str = ""

    def outcome(self) -> dict[str, Any]:
        """Return what must come out the same if this cycle is computed again on the same machine."""
        return {
            "cycle": self.cycle,
            "labelled": self.labelled,
            "figures": self.figures,
            "chosen": self.chosen,
            "own_initial_set": self.own_initial_set,
            "data_fingerprint": self.data_fingerprint,
        }

    def peak_memory(self, where: tuple[str, ...] = ("reserved", "device", "host")) -> int:
        """Return the most bytes that one process of the cycle took, the trial's own or a scoring worker's.

        ``where``: of what is looked for, the first that was measured.
        """
        peaks = [self.peak_memory_bytes, *(shard.get("peak_memory_bytes", {}) for shard in self.scoring["shards"])]
        return max(next((peak[name] for name in where if name in peak), 0) for peak in peaks)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CycleRecord:
        """Read a record; unknown keys, of a later version, are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})

    @property
    def cost_seconds(self) -> float:
        """Seconds of train, auxiliary, score and select together."""
        return sum(self.seconds[p] for p in COST_PHASES)

"""What one cycle hands to a method, and the clock that says where its seconds went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from harness.images import Images, Rows, taken
from harness.networks import Network
from harness.records import PHASES
from harness.seeds import key, stream
from harness.settings import Recipe


class Clock:
    """Seconds by phase. Phases may be nested: the inner one's time is not the outer one's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Book the time since the last switch on the phase that is open, after all device work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time of a ``with`` block on a phase of ``harness.records.PHASES``."""
        assert name in self.seconds, f"{name!r} is not a phase"
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()


@dataclass
class Cycle:
    """One cycle as a method sees it: labels of labelled images only.

    All index tensors are int64 on the trial's device and index the training set.
    """

    seed: int
    number: int
    network: Network
    images: Images
    labelled: torch.Tensor
    """In the order of buying."""
    labels: Rows
    """Labels [L, *S] of ``labelled``, in the same order: int64, or uint8 maps with IGNORED pixels."""
    unlabelled: torch.Tensor
    """Ascending."""
    candidates: torch.Tensor
    """The subset of ``unlabelled`` that is ranked after this cycle, in the order it was drawn in."""
    recipe: Recipe
    build: Callable[[int], Network]
    """Returns a new network like the target, on the CPU, with weights by the seed it is given."""
    clock: Clock
    training: object = None
    """The Training that fits this cycle's network."""
    warnings: list[str] = field(default_factory=list)
    """What a method finds wrong with its own training; goes into the record and the report."""
    health: dict[str, float] = field(default_factory=dict)
    """What a method measures of its own training, for the record."""

    @property
    def device(self) -> torch.device:
        """Where images and network are."""
        return self.images.device

    def pairs(
        self, batches: Sequence[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield what is trained on, the augmented images and labels of each batch of positions in ``labelled``."""
        indices = [self.labelled[positions] for positions in batches]
        return self.images.pairs(indices, taken(self.labels, batches), generator)

    def stream(self, purpose: str, on_device: bool = False) -> torch.Generator:
        """Return this cycle's random stream for a purpose, on the CPU or on the trial's device."""
        return stream(self.seed, purpose, self.number, device=self.device if on_device else "cpu")

    def key(self, purpose: str) -> int:
        """Return this cycle's seed for a purpose."""
        return key(self.seed, purpose, self.number)

"""What one cycle hands to a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from harness.data.images import Images
from harness.data.rows import Rows, taken
from harness.networks.network import Network
from harness.results.clock import Clock
from harness.seeds import key, stream
from harness.settings import Recipe


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

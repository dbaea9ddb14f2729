"""One cycle, as a method sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.data.rows import take
from harness.learning.checkpoints import Checkpoints, Steps
from harness.seeds import key, stream
from harness.settings import Recipe

if TYPE_CHECKING:
    import torch

    from harness.data.images import Images
    from harness.data.rows import Rows
    from harness.learning.contract import Training
    from harness.networks.network import Network
    from harness.results.clock import Clock


@dataclass
class Cycle:
    """One cycle, as a method sees it. It holds no labels of unlabelled images.

    All index tensors are int64, on the trial's device, and index the training set.
    """

    seed: int
    number: int
    network: Network
    images: Images
    labelled: torch.Tensor
    """[L], in the order of selection."""
    labels: Rows
    """Labels [L, *S] of ``labelled``, in the same order: int64, or uint8 maps with IGNORED pixels."""
    unlabelled: torch.Tensor
    """[U], ascending."""
    candidates: torch.Tensor
    """[N], the subset of ``unlabelled`` that this cycle selects from, in the order in which it was drawn."""
    recipe: Recipe
    clock: Clock
    new_network: Callable[[int], Network]
    """Seed -> a new network with the target's architecture, on the CPU, initialised with the seed."""
    new_training: Callable[[], Training]
    """Returns a new training with the settings of the target's, for methods that train several networks."""
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    """The state of the training after it has trained ``network``: the training's own tensors, not copies."""
    warnings: list[str] = field(default_factory=list)
    """Problems that a method detects in its own training, for the record and the report."""
    health: dict[str, float] = field(default_factory=dict)
    """Diagnostics that a method measures of its own training, for the record."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """Where the state within the cycle is kept."""

    @property
    def device(self) -> torch.device:
        """The device of the images and the network."""
        return self.images.device

    def pairs(
        self, batches: Sequence[torch.Tensor], generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (augmented images, labels) for each batch of positions in ``labelled``."""
        indices = [self.labelled[positions] for positions in batches]
        return self.images.pairs(indices, take(self.labels, batches), generator)

    def steps(self, count: int, **state: Any) -> Steps:
        """Return the steps 0..count-1 of a loop, to iterate over; a process that died is continued between two.

        ``state``: all that the steps change and later steps depend on: modules, optimizers, random streams, lists,
        dictionaries, or objects that consist of such. It must be made before, and changed in place. Loops may be
        nested, and left early; what lies within a step but in no loop of its own is computed again. Raises TypeError
        for a value that can't be changed in place.
        """
        return Steps(self.checkpoints, self.clock, count, {**state, "warnings": self.warnings, "health": self.health})

    def stream(self, purpose: str, on_device: bool = False) -> torch.Generator:
        """Return this cycle's random stream for a purpose, on the CPU or on the trial's device."""
        return stream(self.seed, purpose, self.number, device=self.device if on_device else "cpu")

    def key(self, purpose: str) -> int:
        """Return this cycle's seed for a purpose."""
        return key(self.seed, purpose, self.number)

"""The contract of a method: how the network is trained, and which images it asks labels for.

A method is a pair (training, acquisition), written in the config; the same acquisition can follow any training, which
is what the paper's ablations are made of. A file in methods/ defines one Training, one Acquisition, or one class that
is both (a method that brings its own training and can be ranked by nothing else).

Everything is written for tensors [B, C, *S] with the class axis at 1; for image classification S is empty.
Files of methods take torch from ``harness.lazy`` so that their settings are read in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.lazy import torch
from harness.settings import Recipe, Strict

if TYPE_CHECKING:
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs

    Columns = dict[str, torch.Tensor]
    """Per-image quantities: name -> tensor [number of images, ...], rows in ascending order of image index."""


class Training:
    """How a cycle's network is trained. The default is plain cross-entropy by the suite's recipe.

    Under warm start one Training object's ``state`` is carried from cycle to cycle; with fresh weights each cycle
    makes a new one.
    """

    class Settings(Strict):
        """No settings."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        self.settings = settings
        self.num_classes = num_classes

    def fit(self, cycle: Cycle) -> float:
        """Train ``cycle.network`` in place and return the last epoch's mean loss. Owns all of its phases."""
        from harness.learning.fit import fit

        return fit(cycle, self.loss)

    @classmethod
    def auxiliary_images(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return how many images ``fit`` runs through a network beside the target's own training: for --plan."""
        return 0

    def loss(self, outputs: Outputs, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean loss of one batch.

        ``labels`` [B] int64, or maps [B, H, W] uint8 with IGNORED pixels, at the images' size; ``progress`` is epoch /
        epochs, with epoch counted from 0, so it stays below 1.
        """
        from harness.learning.labels import cross_entropy

        return cross_entropy(outputs.logits, labels)

    def predict(self, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        """Return [B, C, *S] whose highest class is the prediction that is tested; one for each head of a method."""
        return [network(images).logits]

    def state(self) -> dict[str, torch.Tensor]:
        """Return what crosses to the next cycle beside the network's weights."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the state of the cycle before (tensors may be on the CPU)."""

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return how many parameters the training adds to the target network."""
        return 0


class Acquisition:
    """Which candidates are bought: a map over images, then a choice among its results.

    ``describe`` is a pure function of its arguments, so that it may run on any worker; ``prepare`` and ``choose`` run
    in the trial.
    """

    class Settings(Strict):
        """No settings."""

    @classmethod
    def sequential(cls, settings: Any) -> bool:
        """Return True if ``describe`` changes ``prepared`` from batch to batch: one shard, in subset order."""
        return False

    uses_images: bool = True
    """False if ``choose`` needs no column at all (random): then nothing is scored."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        self.settings = settings
        self.num_classes = num_classes

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Raise ValueError, with one sentence, if this acquisition can't follow that training."""

    @classmethod
    def own_initial_set(cls, settings: Any) -> bool:
        """Return True if ``initial_set`` draws the labelled images of cycle 0, not the draw that all methods share."""
        return False

    def initial_set(self, cycle: Cycle) -> torch.Tensor:
        """Return the labelled images of cycle 0, as many as ``cycle.labelled``, which is the set that others share.

        The cycle has no labels: nothing is bought yet.
        """
        return cycle.labelled

    @classmethod
    def preparation_images(cls, settings: Any, recipe: Recipe, labelled: int) -> int:
        """Return how many images ``prepare`` trains a network on: for --plan."""
        return 0

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the tensors that ``describe`` needs beside the network; runs once per cycle, after the training."""
        return {}

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return columns for a batch of plain images [B, channels, H, W].

        The network is in evaluation mode, without gradients, in the recipe's precision; ``generator`` is keyed by
        the batch, so random numbers don't depend on which worker draws them.
        """
        return {}

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Return [B, *s], the score of each place of the network's maps, or pixel (higher: rather bought), or None.

        For the report's pictures of images that have just been bought; called like ``describe``, and changes nothing.
        """
        return None

    def choose(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return ``budget`` row numbers of ``columns``, preferred first: by default the highest ``score``.

        ``columns`` always holds ``index`` [N] int64, the ascending image indices. ``labelled()`` describes the
        labelled images in the same way (nothing is computed unless it is called).
        """
        return highest(columns["score"], budget)

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return how many parameters the acquisition adds to the target network."""
        return 0


def highest(score: torch.Tensor, budget: int) -> torch.Tensor:
    """Return the rows of the ``budget`` highest scores, highest first; ties go to the lowest row."""
    return torch.sort(score, descending=True, stable=True).indices[:budget]

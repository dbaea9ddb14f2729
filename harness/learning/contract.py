"""The contract of a method: how the target network is trained, and which images are selected next.

A method is a pair (training, acquisition) named in the config. An acquisition can follow any training that gives what
it needs; DAST-AL's ablations are such combinations. A file in methods/ defines one Training, one Acquisition, or one
of each.

Class scores are tensors [B, C, *s] with classes on axis 1. If images have labels, s is empty; if pixels have labels, s
is the height and width of the network's map. Method files import torch from ``harness.lazy``, so that their settings
are read within milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.data.dataset import IMAGES, MAPS
from harness.lazy import torch
from harness.learning import boundary
from harness.learning.fit import fit
from harness.learning.labels import cross_entropy
from harness.settings import Recipe, Strict

if TYPE_CHECKING:
    from harness.data.dataset import DatasetInfo
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs
    from harness.settings import Protocol

    Columns = dict[str, torch.Tensor]
    """Named tensors. As columns of images: name -> tensor [number of images, ...]; ``select`` gets them by index."""


@dataclass(frozen=True)
class Batch:
    """A batch of images that an acquisition describes."""

    images: torch.Tensor
    """[B, channels, H, W] float32, normalised, not augmented."""
    index: torch.Tensor
    """[B] int64, indices of the training set, to look up precomputed quantities of the images."""
    generator: torch.Generator
    """Keyed by the batch, on the images' device, so that random numbers do not depend on the worker."""


@dataclass(frozen=True)
class Ahead:
    """What is known of a suite before it starts."""

    dataset: str
    """Name of the dataset."""
    info: DatasetInfo
    protocol: Protocol
    seeds: tuple[int, ...]
    fingerprint: str = ""
    """That of the data, as in records; empty until the data is loaded."""


class Half:
    """Base class of the two halves of a method, Training and Acquisition."""

    class Settings(Strict):
        """No settings."""

    formerly: ClassVar[str] = ""
    """An earlier name of the plug-in. A config with this name is rejected; stored runs with it can still be read."""

    def __init__(self, settings: Any, num_classes: int) -> None:
        self.settings = settings
        self.num_classes = num_classes
        self.module: Any = None
        """The network that the half adds to the target: set by ``ready`` from ``make``, or by the half itself."""
        self._carried: dict[str, torch.Tensor] = {}

    @classmethod
    def labels(cls, settings: Any) -> frozenset[str]:
        """Return the kinds of labels that the half supports: IMAGES, MAPS or both. Others are rejected before a run."""
        return frozenset({IMAGES, MAPS})

    @classmethod
    def unsuited(cls, settings: Any, ahead: Ahead) -> str:
        """Return why the half can't run in a suite with these settings, in words, or ''.

        It is called before a run starts, and again with the fingerprint once the data is loaded.
        """
        return ""

    @classmethod
    def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
        """Return the bytes that the half keeps on the trial's device, at least; a trial with fewer is refused.

        ``features`` is D, the width of the classifier's input. It is called with 4096 first: if that gives less than a
        gigabyte, the network is not built to ask for its width.
        """
        return 0

    @classmethod
    def extra_passes(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return the image passes that a cycle needs in addition to the target's standard training, for --plan.

        An acquisition counts the passes that train its own networks; the harness counts those of scoring.
        """
        return 0

    def make(self, cycle: Cycle) -> torch.nn.Module | None:
        """Return a new module on the cycle's device, trained alongside the target and carried across cycles, or None.

        If this half is a training, ``harness.learning.fit.fit`` trains the module's parameters too. Its weights are the
        half's ``state``, and the harness counts its parameters.
        """
        return None

    def ready(self, cycle: Cycle) -> None:
        """Make the module if there is none yet, with the weights of the previous cycle if there was one.

        What ``make`` draws from the global random streams is keyed by the cycle and leaves them untouched.
        """
        if self.module is None:
            with boundary.forked(cycle.key("module"), cycle.device):
                self.module = boundary.module_of(self, cycle)
            if self.module is None:
                self._carried = {}
                return
            self.module.eval()
            if self._carried:
                boundary.restore(self, self.module, self._carried)

    def modules(self) -> list[torch.nn.Module]:
        """Return all networks that the half currently adds to the target; the harness counts their parameters."""
        return [] if self.module is None else [self.module]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are stored and carried over to the next cycle; the other half may read them."""
        return self._carried if self.module is None else self.module.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the ``state`` of the previous cycle (tensors on the trial's device)."""
        self._carried = state
        if self.module is not None and state:
            self.module.load_state_dict(state)


class Training(Half):
    """Trains a cycle's network; by default with cross-entropy, following the suite's recipe.

    Under warm start one object serves all cycles; under ``start: fresh`` each cycle has a new one.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"a trained classifier"})
    """What this training offers to an acquisition's ``needs``: the target's classifier, and contents of ``state``."""

    network: Network
    """The network in training, set by ``fit``."""

    def fit(self, cycle: Cycle) -> float:
        """Train ``cycle.network`` in place and return the last epoch's mean loss."""
        self.network = cycle.network
        return fit(cycle, self)

    def batch(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, Any]:
        """Return the network's input images and the targets of ``loss`` for an augmented batch: by default unchanged.

        Methods that mix images or labels override it. ``generator`` is one random stream for all steps of a cycle, on
        the images' device.
        """
        return images, labels

    def loss(self, outputs: Outputs, targets: Any, progress: float) -> torch.Tensor:
        """Return the mean loss of a batch.

        ``targets`` come from ``batch``: by default labels [B] int64, or maps [B, H, W] uint8 with IGNORED pixels, at
        the images' size. ``progress`` is epoch / epochs, with epochs counted from 0, so it stays below 1.
        """
        return cross_entropy(outputs.logits, targets)

    def predict(self, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        """Return class scores [B, C, *s] of each tested head; the class with the highest score is the prediction."""
        return [network(images).logits]

    def replaced(self, network: Network) -> Iterable[torch.nn.Parameter]:
        """Return the target's parameters that the module replaces; the count of extra parameters subtracts them."""
        return ()


class Acquisition(Half):
    """Selects candidates: ``describe`` computes columns for each image, ``select`` selects rows of these columns.

    ``describe`` is a pure function of its arguments and may run on any worker; ``prepare`` and ``select`` run in the
    trial's process.
    """

    scores_images: ClassVar[bool] = True
    """False if ``select`` needs no columns (random selection): no image passes through the network."""

    needs: ClassVar[frozenset[str]] = frozenset({"a trained classifier"})
    """What the training must give; other trainings are rejected before a run. Empty: any training is allowed."""

    @classmethod
    def needed(cls, settings: Any) -> frozenset[str]:
        """Return what the training must give with these settings: by default ``needs``."""
        return cls.needs

    @classmethod
    def draws_first(cls, settings: Any) -> bool:
        """Return whether ``first`` draws the initial set; if not, all methods share one."""
        return False

    def first(self, cycle: Cycle) -> torch.Tensor:
        """Return the labelled images [L] of cycle 0: as many as in ``cycle.labelled``, the set that all methods share.

        The cycle has no labels yet.
        """
        return cycle.labelled

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the tensors that ``describe`` needs in addition to the network; runs once per cycle, after training.

        ``cycle.learned`` is the state of the training.
        """
        return {}

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the columns of a batch, each [B, ...].

        The network is in evaluation mode, without gradients, in the recipe's precision. The column ``score`` may be a
        map [B, *s]; ``over_positions`` then reduces it on the worker.
        """
        return {}

    def over_positions(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores [B] of images from the scores [B, P] of their positions: by default the mean."""
        return scores.mean(1)

    def select(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return ``budget`` row numbers of ``columns`` [budget] int64, best first: by default the highest ``score``.

        ``columns`` has a row for each candidate, and a column ``index`` [N] int64, ascending. ``labelled()`` returns
        the same columns for the labelled images; they are computed only if it is called.
        """
        return highest(columns["score"], budget)


def highest(score: torch.Tensor, budget: int) -> torch.Tensor:
    """Return the rows of the ``budget`` highest scores [N], highest first; ties go to the lowest row."""
    return torch.sort(score, descending=True, stable=True).indices[:budget]

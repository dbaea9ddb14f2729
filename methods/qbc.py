"""QBC: query by committee, with networks that differ in initial weights and batches (Kuo et al., MICCAI 2018).

The score of an image is the Jensen-Shannon divergence of the networks' predictions, highest first. The target network
is the first member and the only one that is tested. The other members have the same recipe and training, and like the
target they start from new weights or from those of the previous cycle. They serve only the selection, so the last cycle
does not train them. QBC can be combined with any training of the target's classifier.

Known differences from the paper:
- An image's score is the mean over positions; the paper sums the scores of the most uncertain patches and
  takes labelling costs into account.
- The committee has the usual 5 members (Beluch et al., CVPR 2018); comparisons with QBC do not state their number.
- With pretrained weights (``model.weights``) members differ only in classifier and batches.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import torch
from harness.learning.contract import Acquisition, Batch
from harness.results.clock import Clock
from harness.settings import Parts, Recipe, Strict

from ._committee import entropies
from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Columns, Training
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class QBC(Acquisition):
    """Trains the other members, and selects the images on which the members disagree most."""

    class Settings(Strict):
        """The size of the committee."""

        members: Parts = Field(5, ge=2, description="networks, including the target")

    settings: Settings

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        self._restored = Restored()
        self._added: dict[str, list[torch.nn.Module]] = {}
        self._learned: dict[str, dict[str, torch.Tensor]] = {}
        """Member -> the state of its training (such as ISDA's statistics)."""

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return new networks for the members other than the target."""
        seeds = [cycle.key(f"member {number}") for number in range(1, self.settings.members)]
        return torch.nn.ModuleList(cycle.new_network(seed).to_device(cycle.device, cycle.recipe) for seed in seeds)

    @classmethod
    def extra_passes(cls, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
        """Return the training images of the members other than the target."""
        return int(settings.members - 1) * labelled * recipe.epochs

    def prepare(self, cycle: Cycle) -> Columns:
        """Train the members other than the target, each with its own random streams; return their weights."""
        names = [f"member {number}" for number in range(1, self.settings.members)]
        with cycle.clock.phase("auxiliary"):
            members = [self._member(cycle, *each) for each in zip(names, self.module, strict=True)]
            trainings = [training for _, training in members]
            for number in cycle.steps(len(members), networks=self.module, trainings=trainings):
                own_cycle, training = members[number]
                torch.manual_seed(own_cycle.key("global"))  # for layers that draw from torch's global stream
                training.fit(own_cycle)
                cycle.warnings += [f"qbc, {names[number]}: {warning}" for warning in own_cycle.warnings]
            for name, training in zip(names, trainings, strict=True):
                self._learned[name], self._added[name] = training.state(), training.modules()
        return dict(self.module.state_dict())

    def _member(self, cycle: Cycle, name: str, network: Any) -> tuple[Cycle, Training]:
        """Return the cycle of a member, with random streams of its own, and its training, ready to start."""
        own_cycle = replace(cycle, seed=cycle.key(name), network=network, clock=Clock(cycle.device))
        own_cycle.health, own_cycle.warnings = {}, []
        training = cycle.new_training()
        training.load_state(self._learned.get(name, {}))
        training.ready(own_cycle)
        return own_cycle, training

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``, the divergence of the predictions."""
        others = range(1, self.settings.members)
        members = self._restored(lambda: torch.nn.ModuleList(deepcopy(network) for _ in others), prepared)
        entropy_of_mean, mean_entropy = entropies(member(batch.images).logits for member in [network, *members])
        return {"score": entropy_of_mean - mean_entropy}

    def modules(self) -> list[torch.nn.Module]:
        """Return the members other than the target, and what their trainings add to them."""
        return [*super().modules(), *(module for modules in self._added.values() for module in modules)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the members' weights and the state of each member's training, with keys such as "member 1/mean"."""
        learned = {f"{name}/{key}": v for name, state in self._learned.items() for key, v in state.items()}
        return {**super().state(), **learned}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore weights and training states."""
        super().load_state({key: v for key, v in state.items() if "/" not in key})
        for name, _, key in (path.partition("/") for path in state if "/" in path):
            self._learned.setdefault(name, {})[key] = state[f"{name}/{key}"]

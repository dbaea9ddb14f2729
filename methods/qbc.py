"""QBC: query by committee, networks that differ in first weights and batches (Kuo et al., MICCAI 2018).

Images on which the networks' predictions have the highest Jensen-Shannon divergence are bought. The target network,
trained plainly, is the first member and alone is tested, as in all methods; so its first cycle is the plain network's.
The others are trained in the same way, by the same recipe, and like the target start from new weights or from those of
the cycle before. They are of no use without a choice, so the last cycle does not train them.

Known differences from the paper:
- An image's score is the mean over its places; the paper sums the most uncertain patches, and weighs labelling costs.
- 5 members are usual (Beluch et al., CVPR 2018); the comparisons with QBC do not state theirs.
- With pretrained weights (``model.weights``) members differ in classifier and batches only.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.lazy import torch
from harness.settings import Recipe, Strict

from ._committee import Committee
from ._joint import Joint

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network


class QBC(Joint, Committee):
    """Trains the target plainly and the other members beside it; buys where they disagree."""

    class Settings(Strict):
        """The committee."""

        members: int = Field(5, ge=2, description="networks, with the target")

    purpose = "committee"

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return the members beside the target, new."""
        seeds = [cycle.key(f"member {number}") for number in range(1, self.settings.members)]
        return torch.nn.ModuleList(cycle.build(seed).to_place(cycle.device, cycle.recipe) for seed in seeds)

    @classmethod
    def preparation_images(cls, settings: Any, recipe: Recipe, labelled: int) -> int:
        """Return the images that the members beside the target are trained on."""
        return int(settings.members - 1) * labelled * recipe.epochs

    def prepare(self, cycle: Cycle) -> Columns:
        """Train the members beside the target, each with streams of its own; return their weights."""
        from harness.learning.fit import fit
        from harness.results.clock import Clock

        with cycle.clock.phase("auxiliary"):
            for number, member in enumerate(self.ready(cycle), 1):
                own = replace(cycle, seed=cycle.key(f"member {number}"), network=member, clock=Clock(cycle.device))
                torch.manual_seed(own.key("global"))  # for a network that draws from torch's stream, as in a trial
                fit(own, self.loss)
        return self.state()

    def predictions(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Yield the logits of the target and of the other members."""
        others = range(1, self.settings.members)
        members = self.restored(lambda: torch.nn.ModuleList(deepcopy(network) for _ in others), prepared)
        for member in [network, *members]:
            yield member(images).logits

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the parameters of the members beside the target."""
        return (self.settings.members - 1) * cycle.network.num_parameters()

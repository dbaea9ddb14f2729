"""Replay: labels the images that a file lists, cycle by cycle, whatever network is trained on them.

It shows how selections transfer to another network (Munjal et al., Towards Robust and Reproducible Active Learning
Using Neural Networks, CVPR 2022), and trains on index sets that others have published. ``python -m harness.replay``
makes the file from a run or from published sets.

Known differences:
- Nothing is selected, so the cost of a selection is not that of the method that made it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.data.index_sets import IndexSets, SeedSets, index_problem, shape_problem
from harness.errors import UserError
from harness.file_settings import file_content, file_digest, file_setting
from harness.lazy import np, torch
from harness.learning.contract import Acquisition
from harness.settings import Strict

if TYPE_CHECKING:
    from harness.learning.contract import Ahead, Columns
    from harness.learning.cycle import Cycle


class Replay(Acquisition):
    """Selects the images that were selected before, in the same order."""

    class Settings(Strict):
        """The file of index sets."""

        sets: str | None = file_setting("file of index sets, which every run needs")
        sets_sha256: str | None = file_digest("sets")

    settings: Settings
    scores_images = False
    needs = frozenset()
    seed = 0
    """The trial's seed, once a cycle is open."""

    @classmethod
    def unsuited(cls, settings: Any, ahead: Ahead) -> str:
        """Return why the file's sets can't be labelled in a suite, or ''."""
        if settings.sets is None:
            return "sets: replay needs a file of index sets"
        problem = _unsuited(index_sets(settings), ahead)
        return f"sets: {settings.sets!r} {problem}" if problem else ""

    @classmethod
    def draws_first(cls, settings: Any) -> bool:
        """Return whether the file has other initial sets than those that all methods share."""
        return settings.sets is not None and not index_sets(settings).shared_initial

    def first(self, cycle: Cycle) -> torch.Tensor:
        """Return the file's initial set of the trial's seed."""
        return torch.tensor(self.of_seed(cycle.seed).initial, device=cycle.device)

    def make(self, cycle: Cycle) -> None:
        """Keep the trial's seed; there is no module."""
        self.seed = cycle.seed

    def of_seed(self, seed: int) -> SeedSets:
        """Return the file's sets of a seed. Raises UserError if there are none."""
        if (sets := index_sets(self.settings).of(seed)) is None:
            raise UserError(f"sets: {self.settings.sets!r} has no sets of seed {seed}")
        return sets

    def select(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the candidates that the file lists first, in its order; then, and without a file, by index."""
        index = columns["index"].cpu().numpy()
        order = [] if self.settings.sets is None else self.of_seed(self.seed).order()
        rank = np.full(max([*index, *order]) + 1, len(order))
        rank[order] = np.arange(len(order))
        return torch.tensor(np.argsort(rank[index], kind="stable")[:budget], device=columns["index"].device)


def index_sets(settings: Any) -> IndexSets:
    """Return the sets of the file in the settings. Raises UserError."""
    return (_read if settings.sets_sha256 else _read.__wrapped__)(settings)  # else the file may have changed


@lru_cache(maxsize=64)
def _read(settings: Any) -> IndexSets:
    data = file_content(settings, "sets")
    try:
        return IndexSets.unpacked(data)
    except UserError as error:
        raise UserError(f"sets: {settings.sets!r} {error}") from None


def _unsuited(sets: IndexSets, ahead: Ahead) -> str:
    if ahead.fingerprint and sets.fingerprint not in (None, ahead.fingerprint):
        own = f"that of {ahead.dataset} is {ahead.fingerprint}"
        return f"is of other data: its fingerprint is {sets.fingerprint:.64}, {own}"
    if sets.fingerprint is None and sets.dataset not in (None, ahead.dataset):
        return f"is of the dataset {sets.dataset!r}, not of {ahead.dataset!r}"
    for seed in ahead.seeds:
        if (found := sets.of(seed)) is None:
            return f"has no sets of seed {seed}; it has those of {', '.join(sets.seeds):.100}"
        problem = shape_problem(found, ahead.protocol.initial, ahead.protocol.budget, ahead.protocol.cycles)
        if (
            problem := problem
            or index_problem(found, ahead.info.num_train)
            or _not_candidates(sets, found, ahead, seed)
        ):
            return f"{problem} (seed {seed})"
    return ""


def _not_candidates(sets: IndexSets, found: SeedSets, ahead: Ahead, seed: int) -> str:
    """Return why a trial of the seed would not start from the initial set, or could not select an image, or ''."""
    from harness.learning.pool import candidates, initial_set

    protocol, images = ahead.protocol, ahead.info.num_train
    if sets.shared_initial and initial_set(protocol, images, seed).tolist() != found.initial:
        return "says shared_initial, but this protocol draws another initial set: set it to false in the file"
    labelled = list(found.initial)
    for cycle, selected in enumerate(found.selected[: protocol.cycles - 1] if protocol.candidates else []):
        allowed = candidates(protocol, images, np.array(labelled), seed, cycle)
        if len(others := np.setdiff1d(selected, allowed)):
            return (
                f"selects the image {others[0]} in cycle {cycle}, which is not among its {protocol.candidates} "
                "candidates: set protocol.candidates=null"
            )
        labelled += selected
    return ""

"""Index sets: which training images were labelled, cycle by cycle, as a JSON file that others can write and read.

::

    {"format": "index sets 1", "dataset": "digits", "fingerprint": "6b1c...", "method": "LC", "network": "a_network",
     "shared_initial": true, "seeds": {"0": {"initial": [3, 1, 4], "selected": [[15, 9], [2, 6]]}}}

``selected`` has the images selected after each cycle, best first. The seed "all" stands for every seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.messages import sentence

ALL = "all"
"""The key of sets that stand for every seed."""

MOST_INDEX = 10**9
Index = Annotated[int, Field(ge=0, le=MOST_INDEX)]


class SeedSets(BaseModel):
    """The sets of one seed, as indices of the training set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    initial: list[Index] = Field(min_length=1)
    selected: list[list[Index]] = []

    def order(self) -> list[int]:
        """Return all images in the order in which they were labelled."""
        return [*self.initial, *(index for images in self.selected for index in images)]


class IndexSets(BaseModel):
    """The index sets of one method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["index sets 1"] = "index sets 1"
    dataset: str | None = None
    fingerprint: str | None = None
    """That of the data, as records have it; null: it is not known."""
    method: str | None = None
    network: str | None = None
    """The network that the method selected with."""
    shared_initial: bool = False
    """Whether the initial sets are those that the harness draws for all methods of a seed."""
    seeds: dict[str, SeedSets] = Field(min_length=1)

    def of(self, seed: int) -> SeedSets | None:
        """Return the sets of a seed, or None if there are none."""
        return self.seeds.get(str(seed)) or self.seeds.get(ALL)

    def packed(self) -> bytes:
        """Return the bytes of the file."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def unpacked(cls, data: bytes) -> IndexSets:
        """Return the sets in the bytes of a file. Raises UserError, without the file's name."""
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            keys, problem = sentence(cls, error.errors()[0])
            at = f"{'.'.join(map(str, keys)):.100}: " if keys else ""
            raise UserError(f"is no file of index sets: {at}{problem}") from None


def shape_problem(sets: SeedSets, initial: int, budget: int, cycles: int) -> str:
    """Return why sets do not have the sizes of a protocol, and which protocol has them, or ''."""
    counts = [len(images) for images in sets.selected]
    if len(sets.initial) == initial and len(counts) >= cycles - 1 and all(n == budget for n in counts[: cycles - 1]):
        return ""
    labelled = [len(sets.initial)]
    for count in counts:
        labelled.append(labelled[-1] + count)
    needed = [initial + cycle * budget for cycle in range(cycles)]
    same = len({*counts}) == 1
    hint = f": set protocol.initial={labelled[0]} protocol.cycles={len(labelled)}" if same or not counts else ""
    hint += f" protocol.budget={counts[0]}" if same else ""
    return f"has sets of {_listed(labelled)} images, but the protocol needs {_listed(needed)}{hint}"


def _listed(numbers: Sequence[int], shown: int = 8) -> str:
    return ", ".join(map(str, numbers[:shown])) + (f", ... {numbers[-1]}" if len(numbers) > shown else "")


def index_problem(sets: SeedSets, images: int) -> str:
    """Return why sets are no different images of a training set with so many, or ''."""
    seen: set[int] = set()
    for where, index in _placed(sets):
        if index >= images:
            return f"has the index {index} in {where}, but the data has {images} training images"
        if index in seen:
            return f"has the index {index} twice, the second time in {where}"
        seen.add(index)
    return ""


def _placed(sets: SeedSets) -> Iterator[tuple[str, int]]:
    yield from (("the initial set", index) for index in sets.initial)
    for cycle, images in enumerate(sets.selected):
        yield from ((f"the selection of cycle {cycle}", index) for index in images)

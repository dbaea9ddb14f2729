"""The initial labelled set, and the candidates of each cycle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.seeds import key
from harness.settings import Protocol

Indices = NDArray[np.int64]


def _permutation(count: int, seed: int) -> Indices:
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


def initial_set(protocol: Protocol, num_train: int, seed: int) -> Indices:
    """Return the labelled images of cycle 0, in the order in which they were drawn; equal for all methods of a seed.

    With ``initial_set: per_run`` they are also equal for all seeds (DAST-AL's Cityscapes protocol).
    """
    pool_seed = key(seed, "pool") if protocol.initial_set == "per_seed" else key("run", "pool")
    return _permutation(num_train, pool_seed)[: protocol.initial]


def candidates(protocol: Protocol, num_train: int, labelled: Indices, seed: int, cycle: int) -> Indices:
    """Return the candidates of a cycle, in the order in which they were drawn.

    They are the first ``protocol.candidates`` unlabelled images of a permutation that depends on seed and cycle only.
    Methods that have selected different images thus rank nearly the same candidates, and their comparison is paired.
    """
    order = _permutation(num_train, key(seed, "candidates", cycle))
    is_labelled = np.zeros(num_train, dtype=bool)
    is_labelled[labelled] = True
    return order[~is_labelled[order]][: protocol.candidates]

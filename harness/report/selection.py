"""What methods select: how evenly over the classes, and how much of it two methods share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from math import log
from typing import TYPE_CHECKING

from harness.lazy import np
from harness.report.tables import summary
from harness.results.records import CycleRecord

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


ENTROPY = "class entropy: of the labels of the images that the cycle selects, 100 % if all classes have as many; "


def selection_caption(shown: pd.DataFrame) -> str:
    """Return what the wide table of ``selection_table`` says."""
    return (
        "What each method selects after training on so many labelled images. "
        f"{ENTROPY if shown['method'].str.contains('class entropy').any() else ''}"
        "overlap: images that both methods have selected so far, without the initial ones, in % of those that either "
        "has, at equal seeds (the Jaccard index)."
    )


def class_entropy(counts: Sequence[int]) -> float:
    """Return the entropy of counts by class, divided by that of an even distribution: 0 (one class) to 1.

    NaN without images, or with one class.
    """
    total = sum(counts)
    if total == 0 or len(counts) < 2:
        return float("nan")
    return -sum(n / total * log(n / total) for n in counts if n) / log(len(counts))


def jaccard(selections: Sequence[set[int]]) -> NDArray[np.float64]:
    """Return [selections, selections]: the images that two of them share, divided by those in either.

    NaN if both are empty.
    """
    from scipy.sparse import csr_array

    sizes = np.array([*map(len, selections)])
    found, images = np.unique([image for selection in selections for image in selection], return_inverse=True)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    members = csr_array((np.ones(len(images), np.int64), images, ends), (len(sizes), max(1, len(found))))
    shared = (members @ members.T).toarray()
    with np.errstate(invalid="ignore"):
        return np.asarray(shared / (sizes[:, None] + sizes - shared))


def selection_table(records: Sequence[CycleRecord], methods: Sequence[str]) -> pd.DataFrame:
    """Return the table (method, labelled, mean, std, n) of what methods select after so many labels, over the seeds.

    method is a row: 'NAME: class entropy (%)' of the images selected in that cycle, or 'NAME and NAME: overlap (%)',
    the Jaccard index of all images that two methods have selected up to and with that cycle, at equal seeds.
    """
    import pandas as pd

    entropies, overlaps = [], []
    so_far: dict[tuple[int, str], set[int]] = defaultdict(set)
    selected: dict[tuple[int, int], dict[str, set[int]]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: (r.trial, r.cycle)):
        if r.selected:
            entropies.append((f"{r.method}: class entropy (%)", r.labelled, 100 * class_entropy(r.selected_classes)))
            if not isinstance(r.selected, list):
                continue  # of a record from an index, which holds their number
            so_far[r.seed, r.method] |= {*r.selected}
            selected[r.seed, r.labelled][r.method] = {*so_far[r.seed, r.method]}
    for (_, labelled), by_method in sorted(selected.items()):
        found = [method for method in methods if method in by_method]
        shares = 100 * jaccard([by_method[method] for method in found])
        for one, other in combinations(range(len(found)), 2):
            overlaps.append((f"{found[one]} and {found[other]}: overlap (%)", labelled, shares[one, other]))
    table = pd.DataFrame(entropies + overlaps, columns=["method", "labelled", "share"]).astype({"share": float})
    rows = [f"{method}: class entropy (%)" for method in methods]
    rows += [f"{one} and {other}: overlap (%)" for one, other in combinations(methods, 2)]
    table["method"] = pd.Categorical(table["method"], categories=rows, ordered=True)
    numbers = summary(table, ["method", "labelled"], ["share"]).drop(columns="quantity")
    numbers["method"] = numbers["method"].cat.remove_unused_categories()
    return numbers

"""Learning curves and queried images as pictures. Only harness.report imports this, late: matplotlib loads slowly."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.data.files import IGNORED

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from harness.learning.queried import Queried

# Okabe and Ito's colours, which stay apart for colour-blind readers, without the yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
DASHES = ("-", "--", ":")
TABLEAU = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
CLASS_COLOURS = np.array([*TABLEAU[::2], *TABLEAU[1::2]])  # by place, the strong ones first; black is for no class


def learning_curves(table: pd.DataFrame, methods: Sequence[str], title: str, caption: str, quantity: str) -> Figure:
    """Draw mean (line) and standard deviation (band) over the labelled images, one curve per method.

    ``table`` has the columns method, labelled, mean and std (NaN: no band). Colour and marker come from a method's
    place in ``methods``, so that they stay the same while the others have no results yet.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, method in enumerate(methods):
        curve = table[table["method"] == method].sort_values("labelled")
        if curve.empty:
            continue
        x, mean, std = (curve[c].to_numpy(dtype=float) for c in ("labelled", "mean", "std"))
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            x,
            mean,
            label=method,
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
            markersize=5,
            linewidth=1.6,
        )
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)
    counts = sorted(set(table["labelled"]))
    if len(counts) <= 12:
        axes.set_xticks(counts)
    axes.set_title(title)
    axes.set_xlabel("labelled images")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.supxlabel(fill(caption, 120), fontsize=7, color="#555555")
    return figure


def class_colours(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colour [..., 3] of each class, the same in every picture; black for IGNORED."""
    return np.where((labels == IGNORED)[..., None], 0.0, CLASS_COLOURS[labels % len(CLASS_COLOURS)])


def queried_grid(queried: Queried, title: str, caption: str) -> Figure:
    """Draw a row per image: itself, its labels, the prediction and, if there is one, the score of each place."""
    count, height, width = queried.labels.shape
    columns = ["image", "labels", "prediction", *([] if queried.heat is None else ["score by place"])]
    figure = Figure(figsize=(2.6 * len(columns) + 1.4, 2.5 * height / width * count + 1.1), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    heat = queried.heat if queried.heat is None else queried.heat.astype(float)
    for number, (index, row) in enumerate(zip(queried.indices, grid, strict=True)):
        row[0].imshow(
            queried.images[number].squeeze(-1) if queried.images.shape[-1] == 1 else queried.images[number], cmap="gray"
        )
        row[1].imshow(class_colours(queried.labels[number]), interpolation="nearest")
        row[2].imshow(class_colours(queried.predictions[number]), interpolation="nearest")
        row[0].set_ylabel(f"image {index}")
        if heat is not None:
            last = row[3].imshow(heat[number], vmin=heat.min(), vmax=heat.max(), interpolation="nearest")
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=10)
    if heat is not None:
        figure.colorbar(last, ax=list(grid[:, 3]), label="higher: rather bought")
    seen = np.union1d(queried.labels, queried.predictions)
    names = [(value, "no class" if value == IGNORED else queried.classes[value]) for value in seen]
    patches = [Patch(color=tuple(class_colours(value)), label=name) for value, name in names]
    figure.legend(handles=patches, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.supxlabel(fill(caption, 120), fontsize=7, color="#555555")
    return figure


def picture(figure: Figure, kind: str) -> bytes:
    """Return the picture as the bytes of a ``png`` or ``svg`` file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "harness"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()

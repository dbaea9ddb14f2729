"""Draws learning curves and selected images. Imported only when needed, because matplotlib loads slowly."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.data.files import IGNORED
from harness.errors import readable

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from harness.results.pictures import SelectedImages

# Okabe and Ito's colours, which colour-blind readers can distinguish; without yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
DASHES = ("-", "--", ":")
TABLEAU = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
CLASS_COLOURS = np.array([*TABLEAU[::2], *TABLEAU[1::2]])  # by class index, saturated colours first; black: no class


ROW = 0.21  # height of a line of the legend, inches
LEGEND = 28  # characters of a line of the legend


PLAIN: Any = {"text.parse_math": False}
"""Dollar signs in names are not formulas."""


def _label(text: str) -> str:
    """Return a text for a legend, which leaves out what starts with an underscore."""
    return f" {text}" if text.startswith("_") else text


@matplotlib.rc_context(PLAIN)
def learning_curves(table: pd.DataFrame, methods: Sequence[str], title: str, caption: str, quantity: str) -> Figure:
    """Return a figure with one curve per method: mean (line) and mean±std (band) by number of labelled images.

    ``table`` has the columns method, labelled, mean and std (NaN: no band). Colours and markers depend on the order of
    ``methods``, so they stay the same while some methods have no results yet.
    """
    labels = {method: fill(method, LEGEND) for method in methods}
    lines = sum(label.count("\n") + 1 for label in labels.values())
    height = max(4.8, 0.9 + ROW * lines)  # so that the legend ends above the caption
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    for number, method in enumerate(methods):
        curve = table[table["method"] == method].sort_values("labelled")
        if curve.empty:
            continue
        x, mean, std = (curve[c].to_numpy(dtype=float) for c in ("labelled", "mean", "std"))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            x,
            mean,
            label=_label(labels[method]),
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            markersize=5,
            linewidth=1.6,
        )
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)
    counts = sorted(set(table["labelled"]))
    if len(counts) <= 12:
        axes.set_xticks(counts)
    axes.set_title(fill(title, 80))
    axes.set_xlabel("labelled images")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.supxlabel(fill(caption, 120), fontsize=7, color="#555555")
    return figure


def class_colours(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the RGB colours [..., 3], 0 to 1, of class indices [...], equal in all pictures; black for IGNORED."""
    return np.where((labels == IGNORED)[..., None], 0.0, CLASS_COLOURS[labels % len(CLASS_COLOURS)])


@matplotlib.rc_context(PLAIN)
def selected_grid(pictures: SelectedImages, title: str, caption: str) -> Figure:
    """Return a figure with a row per image: the image, its labels, its prediction and its score map, if stored."""
    count, height, width = pictures.labels.shape
    columns = ["image", "labels", "prediction", *([] if pictures.score_map is None else ["score by position"])]
    figure = Figure(figsize=(2.6 * len(columns) + 1.4, 2.5 * height / width * count + 1.1), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    score_map = pictures.score_map if pictures.score_map is None else pictures.score_map.astype(float)
    for number, (index, row) in enumerate(zip(pictures.indices, grid, strict=True)):
        row[0].imshow(
            pictures.images[number].squeeze(-1) if pictures.images.shape[-1] == 1 else pictures.images[number],
            cmap="gray",
        )
        row[1].imshow(class_colours(pictures.labels[number]), interpolation="nearest")
        row[2].imshow(class_colours(pictures.predictions[number]), interpolation="nearest")
        row[0].set_ylabel(f"image {index}")
        if score_map is not None:
            last = row[3].imshow(score_map[number], vmin=score_map.min(), vmax=score_map.max(), interpolation="nearest")
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=10)
    if score_map is not None:
        figure.colorbar(last, ax=list(grid[:, 3]), label="higher = more likely to be selected")
    present = np.union1d(pictures.labels, pictures.predictions)
    classes = [_label(fill(readable(name), LEGEND)) for name in pictures.classes]
    names = [(value, "no class" if value == IGNORED else classes[value]) for value in present]
    patches = [Patch(color=tuple(class_colours(value)), label=name) for value, name in names]
    figure.legend(handles=patches, loc="outside right upper", frameon=False)
    figure.suptitle(fill(title, 50))
    figure.supxlabel(fill(caption, 120), fontsize=7, color="#555555")
    return figure


def picture(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a figure as a ``png`` or ``svg`` file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "harness", **PLAIN}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()

"""Draws learning curves and selected images. Imported only when needed, because matplotlib loads slowly."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.data.files import IGNORED
from harness.errors import readable
from harness.report.captions import BANDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
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
IN_ROW = 8  # images of a gallery
NAME = 20  # characters below an image of a gallery
GREY = "#555555"
TICKS = 10  # labels of an axis
LONGEST_INTERVAL = 4  # times the largest difference: two seeds have intervals that would leave no room for the means


PLAIN: Any = {"text.parse_math": False}
"""Dollar signs in names are not formulas."""


def _label(text: str) -> str:
    """Return a text for a legend, which leaves out what starts with an underscore."""
    return f" {text}" if text.startswith("_") else text


@matplotlib.rc_context(PLAIN)
def learning_curves(
    table: pd.DataFrame,
    methods: Sequence[str],
    title: str,
    caption: str,
    quantity: str,
    *,
    pool: int | None = None,
    differences: pd.DataFrame | None = None,
    reference: str = "",
    full: pd.DataFrame | None = None,
) -> Figure:
    """Return a figure with one curve per method: mean (line) and mean±std (band) by number of labelled images.

    ``table`` has the columns method, labelled, mean and std (NaN: no band). More than BANDS methods have no bands,
    which would hide one another. ``pool``: number of training images, for the axis in %. ``differences`` (columns
    method, labelled, mean, low, high) to ``reference`` are drawn in a second panel, where methods stand next to each
    other at each number of labelled images. ``full``: a row like those of ``table``, of all training images: a
    horizontal line. Colours and markers depend on the order of ``methods``, so they stay the same while some methods
    have no results yet.
    """
    labels = {method: fill(method, LEGEND) for method in methods}
    lines = sum(label.count("\n") + 1 for label in labels.values()) + (0 if full is None else len(full))
    second = differences is not None and len(differences) > 0
    height = max(8.4 if second else 4.8, 0.9 + ROW * lines)  # so that the legend ends above the caption
    figure = Figure(figsize=(9 if second else 8, height), layout="constrained")
    panels = figure.subplots(1 + second, sharex=True, squeeze=False, height_ratios=[4, 5][: 1 + second])[:, 0]
    axes = panels[0]
    table = table[table["method"].isin(methods)]
    counts = sorted(set(table["labelled"]))
    for number, method in enumerate(methods):
        curve = table[table["method"] == method].sort_values("labelled")
        if curve.empty:
            continue
        x, mean, std = (curve[c].to_numpy(dtype=float) for c in ("labelled", "mean", "std"))
        axes.plot(x, mean, label=_label(labels[method]), markersize=5, linewidth=1.6, **_style(number))
        if len(methods) <= BANDS:
            axes.fill_between(x, mean - std, mean + std, color=_style(number)["color"], alpha=0.13, linewidth=0)
    for method, mean, std in [] if full is None else full[["method", "mean", "std"]].itertuples(index=False):
        axes.axhline(mean, color=GREY, linestyle=(0, (6, 2)), linewidth=1.2, label=_label(method))
        if np.isfinite(std):
            axes.axhspan(mean - std, mean + std, color=GREY, alpha=0.12, linewidth=0)
    axes.set_title(fill(title, 80))
    axes.set_ylabel(quantity)
    if differences is not None and second:
        _draw_differences(panels[1], differences, methods, counts, reference)
    shown = counts if len(counts) <= TICKS else counts[:: -(-len(counts) // TICKS)]
    share = {count: f"\n{100 * count / pool:.3g} %" if pool else "" for count in shown}
    panels[-1].set_xticks(shown, [f"{count}{share[count]}" for count in shown], fontsize=9)
    panels[-1].set_xlabel("labelled images" + (f" (% of {pool} training images)" if pool else ""))
    for panel in panels:
        panel.grid(alpha=0.3, axis="both" if panel is axes else "y")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.supxlabel(fill(caption, 120), fontsize=7, color=GREY)
    return figure


def _style(number: int) -> dict[str, Any]:
    """Return the colour, marker and dashes of the method with this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def _draw_differences(
    axes: Axes, differences: pd.DataFrame, methods: Sequence[str], counts: Sequence[int], reference: str
) -> None:
    """Draw the differences to the reference with their intervals; methods stand apart, so that all can be read."""
    drawn = [method for method in methods if method in set(differences["method"])]
    gap = min((b - a for a, b in pairwise(counts)), default=1)
    for number, method in enumerate(methods):
        if method not in drawn:
            continue
        rows = differences[differences["method"] == method].sort_values("labelled")
        x, mean, low, high = (rows[c].to_numpy(dtype=float) for c in ("labelled", "mean", "low", "high"))
        x = x + 0.7 * gap * ((drawn.index(method) + 0.5) / len(drawn) - 0.5)
        style = _style(number)
        if len(drawn) > BANDS:
            style["linestyle"] = "none"  # lines between so many points would hide the intervals
        known = np.isfinite(low)
        axes.plot(x, mean, markersize=4, linewidth=0.8, **style)
        axes.vlines(x[known], low[known], high[known], color=style["color"], linewidth=1.3)
    axes.axhline(0, color="black", linewidth=0.8)
    finite = differences[np.isfinite(differences["low"])]
    ends = [-0.1, 0.1, *differences["mean"], *finite["low"], *finite["high"]]
    most = LONGEST_INTERVAL * max(np.abs(differences["mean"]).max(), 0.1)
    low, high = max(min(ends), -most), min(max(ends), most)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_ylabel(fill(f"difference to {reference}, points", 48))
    for left, right in pairwise(counts):
        axes.axvline((left + right) / 2, color="#bbbbbb", linewidth=0.5)


def class_colours(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the RGB colours [..., 3], 0 to 1, of class indices [...], equal in all pictures; black for IGNORED."""
    return np.where((labels == IGNORED)[..., None], 0.0, CLASS_COLOURS[labels % len(CLASS_COLOURS)])


@matplotlib.rc_context(PLAIN)
def selected_grid(pictures: SelectedImages, title: str, caption: str) -> Figure:
    """Return a figure with a row per image: the image, its labels, its prediction and its score map, if stored.

    If images have labels, it is a gallery with the label, prediction, score, index and file of each.
    """
    if pictures.labels.ndim == 1:
        return _gallery(pictures, title, caption)
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
    figure.supxlabel(fill(caption, 120), fontsize=7, color=GREY)
    return figure


def _gallery(pictures: SelectedImages, title: str, caption: str) -> Figure:
    """Return a figure of images in rows of IN_ROW, each with its class, and the predicted class where that is wrong."""
    count, rows = len(pictures.indices), -(-len(pictures.indices) // IN_ROW)
    width, top, row = 11.0, 0.75, 2.05  # inches, as all below
    height = top + row * rows + 0.3
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: a system of axes for each takes ten times as long
    axes.set_axis_off()
    cell, side = width / IN_ROW, 1.2
    classes = [_cut(readable(name)) for name in pictures.classes]
    for number in range(count):
        image = pictures.images[number]
        x, y = cell * (number % IN_ROW + 0.5), top + row * (number // IN_ROW) + side / 2
        half = [side / 2 * length / max(image.shape[:2]) for length in (image.shape[1], -image.shape[0])]
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            cmap="gray",
            interpolation="nearest",
            extent=(x - half[0], x + half[0], y - half[1], y + half[1]),
        )
        label, predicted = int(pictures.labels[number]), int(pictures.predictions[number])
        right = label == predicted
        text = classes[label] if right else f"{classes[label]}\nnot {classes[predicted]}"
        colour = "black" if right else COLOURS[1]
        axes.text(x, y + half[1] - 0.04, text, ha="center", va="bottom", fontsize=7, color=colour)
        below = [f"image {pictures.indices[number]}"]
        if pictures.scores is not None:
            below.append(f"score {pictures.scores[number]:.3g}")
        if pictures.files:
            below.append(_cut(readable(pictures.files[number]), from_end=True))
        axes.text(x, y - half[1] + 0.05, "\n".join(below), ha="center", va="top", fontsize=7)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.text(width / 2, 0.1, fill(title, 100), ha="center", va="top", fontsize=12)
    axes.text(width / 2, height - 0.05, fill(caption, 150), ha="center", va="bottom", fontsize=7, color=GREY)
    return figure


def _cut(text: str, from_end: bool = False) -> str:
    """Return text of at most NAME characters, with an ellipsis where it was cut."""
    if len(text) <= NAME:
        return text
    return f"\N{HORIZONTAL ELLIPSIS}{text[1 - NAME :]}" if from_end else f"{text[: NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def picture(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a figure as a ``png`` or ``svg`` file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "harness", **PLAIN}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()

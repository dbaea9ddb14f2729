"""Learning curves as pictures. Only harness.report imports this, late: matplotlib takes a while to load."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, which stay apart for colour-blind readers, without the yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
DASHES = ("-", "--", ":")


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


def picture(figure: Figure, kind: str) -> bytes:
    """Return the picture as the bytes of a ``png`` or ``svg`` file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "harness"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()

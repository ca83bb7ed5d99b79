"""Figures for print: direct labels, colours for colour-blind readers, and text as text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# The palette of Okabe & Ito 2008 without yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLE: Mapping[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "grid.alpha": 0.3,
    "font.size": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "metalearn",  # equal figures give equal files
}


def canvas(panels: int = 1, width: float = 4.6, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `panels` panels in a row, each `width` x `height` inches."""
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=(panels * width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def log_axis(axes: Axes, which: Literal["x", "y"], base: int = 10) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(base))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_lines(axes: Axes) -> None:
    """Label each line at the right end of the longest line, in the line's colour.

    Labels that would overlap are moved apart. A thin line connects a shorter line to its label.
    """
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.figure.canvas.draw()
    points = axes.figure.dpi / 72
    ends = {line: np.asarray(line.get_xydata())[-1] for line in lines}
    heights = {line: axes.transData.transform(end)[1] / points for line, end in ends.items()}
    right = max((x for x, _ in ends.values()), default=0.0)
    lowest = float("-inf")
    for line in sorted(lines, key=heights.__getitem__):
        at = max(heights[line], lowest)
        lowest = at + 9.0  # points between two labels
        x, y = ends[line]
        if x < right:
            axes.plot((x, right), (y, y), color=line.get_color(), linewidth=0.6, alpha=0.5)
        axes.annotate(
            str(line.get_label()),
            (right, y),
            xytext=(5, at - heights[line]),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def lines(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    names: Callable[[Any], str] = str,
    **style: Any,
) -> None:
    """Draw column `y` of the rows against `x`, a line for each value of `hue`, and label the lines.

    Set logarithmic axes before, by which the labels are placed.

    Args:
        names: the label by the value of `hue`.
        style: as `Axes.plot` takes it; without it each point is a dot.
    """
    for value, part in rows.groupby(hue, sort=False):
        axes.plot(part[x], part[y], label=names(value), **{"marker": "o", **style})
    label_lines(axes)


def svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context(dict(STYLE)):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()

"""Figures for print: at column width, with direct labels, and text as text."""

from __future__ import annotations

import io
import math
from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from metalearn.studies.frame.colours import OTHERS
from metalearn.studies.frame.svg import slim

SINGLE, DOUBLE = 3.25, 6.75
"""The widths of one column and of two columns of a paper, in inches."""
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=OTHERS),
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],  # every text of an SVG names them all
    "font.size": 7.5,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "pdf.fonttype": 42,  # fonts as they are, not as outlines
    "svg.fonttype": "none",
    "svg.hashsalt": "metalearn",  # equal figures give equal files
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}


def style() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved: `STYLE` is matplotlib's own then."""
    return mpl.rc_context(STYLE)


def canvas(
    panels: int = 1,
    width: float | None = None,
    height: float = 2.2,
    columns: int | None = None,
    caption: str = "",
    **sharing: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of a paper's column width, and its panels. Draw within `style()`.

    Args:
        panels: the number of panels.
        width: of the figure in inches; None: one column for one panel, two columns for several.
        height: of a row of panels in inches.
        columns: the number of panels in a row; None: all.
        caption: one or more sentences that tell what the figure shows (`caption_of`).
        sharing: `sharex` and `sharey`, as `Figure.subplots` takes them.
    """
    columns = min(panels, columns or panels)
    rows = math.ceil(panels / columns)
    size = (width or (SINGLE if panels == 1 else DOUBLE), rows * height)
    figure = Figure(figsize=size, layout="constrained", label=" ".join(caption.split()))
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **sharing).flatten()
    for empty in axes[panels:]:
        empty.remove()
    return figure, list(axes[:panels])


def caption_of(figure: Figure) -> str:
    """Return what the figure shows, in words; "" if it was made without a caption."""
    return str(figure.get_label())


def log_axis(
    axes: Axes, which: Literal["x", "y"], base: int = 10, subs: tuple[float, ...] = (1.0,)
) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks: powers of the base, times subs."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(base, subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file, whose title is its caption."""
    return slim(_saved(figure, "svg", {"Title": caption_of(figure), "Date": None}).decode())


def pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF file; equal figures give equal bytes."""
    return _saved(figure, "pdf", {"Title": caption_of(figure), "CreationDate": None})


def png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as a PNG file."""
    return _saved(figure, "png", {"Title": caption_of(figure)}, dpi=dpi)


def _saved(figure: Figure, form: str, metadata: dict[str, str | None], **options: Any) -> bytes:
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=form, metadata=metadata, **options)
    return content.getvalue()

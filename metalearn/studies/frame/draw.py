"""The marks that several studies draw: lines with bands, dots and bars with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import styles
from metalearn.training.estimate import Estimate

_APART = 8.0
"""The distance of two labels in points."""


def lines(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    names: Callable[[Any], str] = str,
    look: Mapping[str, Mapping[str, Any]] | None = None,
    interval: str | None = None,
    direct: bool = True,
    **style: Any,
) -> None:
    """Draw column `y` of the rows against `x`, a line for each value of `hue`.

    Set logarithmic axes before, by which the labels are placed.

    Args:
        names: the label by the value of `hue`.
        look: the style of each label; None: those of `styles`.
        interval: the column of half an interval about `y`, which is drawn as a band.
        direct: label the lines at their ends. False: leave this to a `legend`.
        style: as `Axes.plot` takes it, for all lines.
    """
    look = styles(map(names, rows[hue].unique())) if look is None else look
    for value, part in rows.groupby(hue, sort=False):
        own = {**look[names(value)], **style}
        axes.plot(part[x], part[y], label=names(value), **own)
        if interval is not None:
            low, high = part[y] - part[interval], part[y] + part[interval]
            axes.fill_between(part[x], low, high, color=own["color"], alpha=0.15, linewidth=0)
    if direct:
        label_lines(axes)


class Mark(NamedTuple):
    """A value in a row of its own, with the ends of its interval; nan: no interval."""

    label: str
    value: float
    low: float
    high: float
    colour: str

    @classmethod
    def of(cls, label: str, value: Estimate | float, colour: str) -> Mark:
        """Make the mark of a number, or of an estimate with its interval."""
        mean = value.mean if isinstance(value, Estimate) else value
        half = value.interval if isinstance(value, Estimate) else math.nan
        half = half if math.isfinite(half) else math.nan
        return cls(label, mean, mean - half, mean + half, colour)


def dots(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draw a dot with its interval for each mark, the first one on top."""
    for at, mark in zip(_rows(axes, marks), marks, strict=True):
        axes.errorbar(
            mark.value, at, xerr=_errors(mark), fmt="o", color=mark.colour, capsize=1.5, lw=1
        )


def bars(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draw a bar from 0 with its interval for each mark, the first one on top."""
    for at, mark in zip(_rows(axes, marks), marks, strict=True):
        axes.barh(at, mark.value, xerr=_errors(mark), color=mark.colour, error_kw={"lw": 0.8})
    axes.grid(axis="y", visible=False)


def _rows(axes: Axes, marks: Sequence[Mark]) -> list[int]:
    """Label a row for each mark, and return their places."""
    places = list(reversed(range(len(marks))))
    axes.set_yticks(places, [mark.label for mark in marks])
    axes.set_ylim(-0.7, len(marks) - 0.3)
    return places


def _errors(mark: Mark) -> list[list[float]] | None:
    if math.isnan(mark.low) or math.isnan(mark.high):
        return None
    return [[mark.value - mark.low], [mark.high - mark.value]]


def label_lines(axes: Axes) -> None:
    """Label each line at the right end of the longest line, in the line's colour.

    Labels that would overlap are moved apart. A thin line connects a shorter line to its label.
    """
    drawn = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.figure.canvas.draw()
    points = axes.figure.dpi / 72
    ends = {line: np.asarray(line.get_xydata())[-1] for line in drawn}
    heights = {line: axes.transData.transform(end)[1] / points for line, end in ends.items()}
    right = max((x for x, _ in ends.values()), default=0.0)
    lowest = float("-inf")
    for line in sorted(drawn, key=heights.__getitem__):
        at = max(heights[line], lowest)
        lowest = at + _APART
        x, y = ends[line]
        if x < right:
            axes.plot((x, right), (y, y), color=line.get_color(), linewidth=0.5, alpha=0.5)
        axes.annotate(
            str(line.get_label()),
            (right, y),
            xytext=(4, at - heights[line]),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=7,
            va="center",
            annotation_clip=False,
        )


def legend(figure: Figure) -> None:
    """Draw one legend below all panels, with each label once, in as many columns as fit."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= {label: found.get(label, h) for h, label in zip(handles, labels, strict=True)}
    if found:
        entry = 0.055 * max(map(len, found)) + 0.5  # inches of the longest label and its line
        fit = max(1, int(figure.get_figwidth() // entry))
        columns = min(fit, len(found))
        figure.legend(found.values(), found, loc="outside lower left", ncols=columns)

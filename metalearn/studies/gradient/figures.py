"""The figures of the study of the meta-gradient's error."""

from __future__ import annotations

import itertools
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.studies.gradient.curves import SHARP, TARGETS, Setting, bias, settings

LEAST = 1e-10
"""The least error drawn. Smaller errors come from the inner loop's end and from rounding."""


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings(rows):
        groups.setdefault((setting.problem, setting.inner), []).append(setting)
    return (
        {f"{p}_{inner.replace(' ', '_')}": _compute(part) for (p, inner), part in groups.items()}
        | {"inner_steps": _inner_steps(next(iter(groups.values())))}
        | {"bias": _bias(rows)}
    )


def _compute(found: list[Setting]) -> Figure:
    """Draw the error against the least number of evaluations that reaches it."""
    figure, panels = canvas(len(found))
    for axes, setting in zip(panels, found, strict=True):
        for method in dict.fromkeys(("unrolled", "implicit", "truncated", *setting.methods)):
            errors = np.geomspace(1, LEAST, 60)
            costs = np.array([setting.reach(method, error).cost for error in errors])
            drawn = np.isfinite(costs)
            if not drawn.any():
                continue
            (line,) = axes.plot(costs[drawn], errors[drawn], label=method)
            if method in setting.rates:
                _slope(axes, setting, method, str(line.get_color()))
        axes.set_title(f"condition number {setting.condition:g}")
        axes.set_xlabel("inner gradients + Hessian products")
        axes.set_xlim(left=0)
        log_axis(axes, "y")
        label_lines(axes)
    panels[0].set_ylabel("relative error of the meta-gradient\n(dashed: slope in theory)")
    return figure


def _slope(axes: Axes, setting: Setting, method: str, colour: str) -> None:
    """Draw the slope of theory, from the first target to shortly before the method's last error."""
    start = setting.reach(method, TARGETS[0]).cost
    if math.isfinite(start):
        least = max(10 * LEAST, float(setting.rows[setting.rows.method == method].error.min()))
        further = math.log(least / TARGETS[0]) / math.log(setting.rate(method))
        axes.plot([start, start + further], [TARGETS[0], least], "--", color=colour, linewidth=1)


def _inner_steps(found: list[Setting]) -> Figure:
    """Draw the error against inner steps, as figure 2a of the iMAML paper does."""
    figure, panels = canvas(len(found))
    for axes, setting in zip(panels, found, strict=True):
        (unrolled,) = setting.curves("unrolled")
        axes.plot(unrolled.steps, unrolled.error, "k", label="unrolled")
        longest = unrolled.steps.max()
        axes.plot(
            [0, longest], [1, setting.loop_rate**longest], "k:", linewidth=1, label="rate, $q^K$"
        )
        chosen = _apart(setting.curves("implicit"))
        shades = mpl.colormaps["viridis"](np.linspace(0.75, 0, len(chosen)))
        for shade, curve in zip(shades, chosen, strict=True):
            label = f"{curve.cg_iters.iloc[0]:.0f} CG"
            axes.plot(curve.steps, curve.error, color=shade, label=label)
        axes.set_title(f"condition number {setting.condition:g}")
        axes.set_xlabel("inner steps K")
        axes.set_xlim(left=0)
        log_axis(axes, "y")
        label_lines(axes)
    panels[0].set_ylabel("relative error of the meta-gradient")
    return figure


def _apart(curves: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the curves that end well below their predecessor, so that their labels fit.

    The last is the first curve with an end below `SHARP`.
    """
    chosen: list[pd.DataFrame] = []
    for curve in curves:
        if not chosen or curve.error.iloc[-1] < 0.3 * chosen[-1].error.iloc[-1]:
            chosen.append(curve)
        if curve.error.iloc[-1] < SHARP:
            break
    return chosen


def _bias(rows: pd.DataFrame) -> Figure:
    part = bias(rows)
    part = part[part.problem == part.problem.iloc[0]]
    figure, panels = canvas(2)
    # The methods of the other figures come first, for the same colours.
    ways = ["unrolled", "implicit, exact solve", "truncated", *part.way.unique()]
    colours = dict(zip(dict.fromkeys(ways), itertools.cycle(COLOURS), strict=False))
    for axes, column, what in (
        (panels[0], "error", "from the gradient of the converged problem"),
        (panels[1], "error_of_steps", "from the gradient of the K steps"),
    ):
        for way, curve in part.groupby("way", sort=False):
            shown = curve[curve[column] > LEAST]
            if len(shown):
                axes.plot(
                    shown.steps, shown[column], marker="o", color=colours[way], label=str(way)
                )
            else:
                what += f"\n({way}: at most {curve[column].max():.0e})"
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.set_title(what)
        axes.set_xlabel("inner steps K")
        label_lines(axes)
    panels[0].set_ylabel("relative distance")
    return figure

"""The figures of the study of the meta-gradient's error."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import method_colour, styles
from metalearn.studies.frame.draw import label_lines, lines
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.gradient.curves import SHARP, TARGETS, Setting, bias, settings

LEAST = 1e-10
"""The least error drawn. Smaller errors come from the inner loop's end and from rounding."""
ERROR = "relative error"


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
    first = found[0]
    caption = f"""Relative error of the meta-gradient against the evaluations that reach it, inner
        gradients and Hessian products together: {first.problem} problem, inner loop by
        {first.inner}. Dashed: the slope in theory."""
    figure, panels = canvas(len(found), caption=caption)
    for axes, setting in zip(panels, found, strict=True):
        methods = list(dict.fromkeys(("unrolled", "implicit", "truncated", *setting.methods)))
        look = styles(methods)
        for method in methods:
            errors = np.geomspace(1, LEAST, 40)
            costs = np.array([setting.reach(method, error).cost for error in errors])
            drawn = np.isfinite(costs)
            if not drawn.any():
                continue
            own = look[method] | {"marker": ""}
            axes.plot(costs[drawn], errors[drawn], **own, label=method)
            if method in setting.rates:
                _slope(axes, setting, method, own["color"])
        axes.set_title(f"condition number {setting.condition:g}")
        axes.set_xlabel("evaluations")
        axes.set_xlim(left=0)
        log_axis(axes, "y")
        label_lines(axes)
    panels[0].set_ylabel(ERROR)
    return figure


def _slope(axes: Axes, setting: Setting, method: str, colour: str) -> None:
    """Draw the slope of theory, from the first target to shortly before the method's last error."""
    start = setting.reach(method, TARGETS[0]).cost
    if math.isfinite(start):
        least = max(10 * LEAST, float(setting.rows[setting.rows.method == method].error.min()))
        further = math.log(least / TARGETS[0]) / math.log(setting.rate(method))
        axes.plot([start, start + further], [TARGETS[0], least], "--", color=colour, linewidth=0.8)


def _inner_steps(found: list[Setting]) -> Figure:
    """Draw the error against inner steps, as figure 2a of the iMAML paper does."""
    caption = f"""Relative error of the meta-gradient against the inner steps K:
        {found[0].problem} problem, inner loop by {found[0].inner}. Each implicit curve has one
        number of CG iterations, at which its error levels out."""
    figure, panels = canvas(len(found), caption=caption)
    for axes, setting in zip(panels, found, strict=True):
        (unrolled,) = setting.curves("unrolled")
        chosen = _apart(setting.curves("implicit"))
        labels = [f"{curve.cg_iters.iloc[0]:.0f} CG" for curve in chosen]
        shades = mpl.colormaps["inferno"](np.linspace(0.8, 0.3, len(chosen)))
        for label, shade, curve in zip(labels, shades, chosen, strict=True):
            axes.plot(curve.steps, curve.error, color=shade, label=label)
        colour = method_colour("unrolled")
        axes.plot(unrolled.steps, unrolled.error, color=colour, label="unrolled")
        longest = unrolled.steps.max()
        ends = [1, setting.loop_rate**longest]
        axes.plot([0, longest], ends, "k:", linewidth=0.8, label="rate, $q^K$")
        axes.set_title(f"condition number {setting.condition:g}")
        axes.set_xlabel("inner steps K")
        axes.set_xlim(left=0)
        log_axis(axes, "y")
        label_lines(axes)
    panels[0].set_ylabel(ERROR)
    return figure


def _apart(curves: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the curves that end well below their predecessor, so that their labels fit.

    The last is the first curve with an end below `SHARP`.
    """
    chosen: list[pd.DataFrame] = []
    for curve in curves:
        if not chosen or curve.error.iloc[-1] < 0.1 * chosen[-1].error.iloc[-1]:
            chosen.append(curve)
        if curve.error.iloc[-1] < SHARP:
            break
    return chosen


def _bias(rows: pd.DataFrame) -> Figure:
    part = bias(rows)
    part = part[part.problem == part.problem.iloc[0]]
    caption = f"""Relative distance of the meta-gradient of an inner loop that is cut short:
        {part.problem.iloc[0]} problem of condition number {part.condition.iloc[0]:g}. Left: from
        the gradient of the converged problem. Right: from the gradient of the K steps."""
    figure, panels = canvas(2, caption=caption)
    look = styles(map(str, part.way.unique()))
    for axes, column, what in (
        (panels[0], "error", "from the converged problem's"),
        (panels[1], "error_of_steps", "from that of the K steps"),
    ):
        exact = part.groupby("way", sort=False)[column].max() <= LEAST
        for way in exact[exact].index:
            what += f"\n({way}: at most {part[part.way == way][column].max():.0e})"
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.set(title=what, xlabel="inner steps K")
        lines(axes, part[part[column] > LEAST], "steps", column, "way", look=look)
    panels[0].set_ylabel("relative distance")
    return figure

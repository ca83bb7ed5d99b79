"""The table, figures and facts of the study of convergence rates."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import OTHERS
from metalearn.studies.frame.draw import legend
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Format, Table, make_table
from metalearn.studies.rates.curves import CURVES
from metalearn.studies.rates.measure import fitted_slope

COLUMNS: dict[str, Format | None] = {
    **{"method and setting": None, "problem": None, "error": None, "against": None},
    **{"slope": ".3f", "slope by theory": None, "first error": ".1e", "last error": ".1e"},
}
KINDS = {
    "all_data": ("all data in a batch", lambda name: not name.endswith(("minibatch", "moving"))),
    "minibatches": ("minibatches, fixed meta", lambda name: name.endswith("minibatch")),
    "moving": ("moving meta", lambda name: name.endswith("moving")),
}
"""The figures: the title and the curves of each."""


def slopes(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each curve's slope and that of theory."""
    found = []
    for (name, problem), part in rows.groupby(["curve", "problem"], sort=False):
        curve = CURVES[str(name)]
        points = list(zip(part.x, part.error, strict=True))
        found.append(
            {
                "name": name,
                "problem": problem,
                "slope": fitted_slope(points, curve.log),
                "theory": float(part.theory.iloc[0]),
                "bound": curve.bound,
                "first": points[0][1],
                "last": points[-1][1],
            }
        )
    return found


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    shown = []
    for one in slopes(rows):
        curve = CURVES[one["name"]]
        shown.append(
            {
                "method and setting": curve.title,
                "problem": one["problem"],
                "error": curve.error,
                "against": f"log({curve.x})" if curve.log else curve.x,
                "slope": one["slope"],
                "slope by theory": f"{'at most ' if one['bound'] else ''}{one['theory']:.3f}",
                "first error": one["first"],
                "last error": one["last"],
            }
        )
    return {"Slope of log(error), fitted, beside that of theory": make_table(COLUMNS, shown)}


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {}
    for key, (title, belongs) in KINDS.items():
        names = [name for name in CURVES if belongs(name) and (rows.curve == name).any()]
        if names:
            found[f"rates_{key}"] = _figure(rows, names, title)
    return found


def _figure(rows: pd.DataFrame, names: list[str], title: str) -> Figure:
    """Draw each curve's errors as dots, and a dashed line of the slope by theory."""
    caption = f"""Error of a hypergradient, {title}. Dots: measured. Dashed: the slope of
        the method's theory, through the middle of the dots."""
    figure, panels = canvas(len(names), width=DOUBLE, height=2.4, columns=3, caption=caption)
    for axes, name in zip(panels, names, strict=True):
        curve = CURVES[name]
        groups = rows[rows.curve == name].groupby("problem", sort=False)
        for colour, (problem, part) in zip(OTHERS, groups, strict=False):
            x, error = part.x.to_numpy(float), part.error.to_numpy(float)
            axes.plot(x, error, "o", color=colour, label=problem)
            along = np.log(x) if curve.log else x
            middle = along.mean(), np.log(error).mean()
            theory = np.exp(middle[1] + float(part.theory.iloc[0]) * (along - middle[0]))
            axes.plot(x, theory, "--", color=colour, lw=1.0)
        axes.set_yscale("log")
        if curve.log:
            log_axis(axes, "x", base=2)
        if curve.bound:
            note = axes.text(0.97, 0.92, "a bound", transform=axes.transAxes, ha="right")
            note.set_fontsize(8)
        axes.set(title=_wrapped(curve.title), xlabel=curve.x, ylabel=_wrapped(curve.error))
    legend(figure)
    return figure


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 30))


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return, for each figure, the largest deviation from theory, and the bounds that hold."""
    found = []
    for title, belongs in KINDS.values():
        own = [one for one in slopes(rows) if belongs(one["name"])]
        exact = [one for one in own if not one["bound"]]
        bounds = [one for one in own if one["bound"]]
        if own:
            found.append(
                {
                    "title": title,
                    "curves": len(exact),
                    "deviation": max(
                        (abs(one["slope"] / one["theory"] - 1) for one in exact), default=math.nan
                    ),
                    "bounds": len(bounds),
                    "held": sum(one["slope"] <= one["theory"] for one in bounds),
                }
            )
    return {"kinds": found}

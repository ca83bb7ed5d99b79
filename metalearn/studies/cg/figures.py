"""The figures of the study of CG iterations."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.cg.report import CURVATURES
from metalearn.studies.cg.rows import (
    NAMES,
    final_rows,
    first_prox,
    name_of,
    part_of,
    sweep_of,
    swept_ways,
    task_rows,
)
from metalearn.studies.frame.colours import PURPLE, styles
from metalearn.studies.frame.draw import label_lines, lines
from metalearn.studies.frame.groups import means
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis

ERROR = "relative error"


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "error": _error_figure(rows),
        "accuracy": _accuracy_figure(rows),
        "cost": _cost_figure(rows),
    }


def _error_figure(rows: pd.DataFrame) -> Figure:
    part = task_rows(rows)
    part = part[(part.point == "minimum") & part.definite]
    caption = """Relative error of the meta-gradient at the inner minimum against CG iterations,
        the median over tasks whose curvature matrix is positive definite. Dashed: the bound of
        theory."""
    figure, panels = canvas(2, caption=caption)
    look = styles(f"λ = {prox:g}" for prox in part.prox.unique())
    for axes, curvature in zip(panels, CURVATURES, strict=True):
        for prox, chosen in part[part.curvature == curvature].groupby("prox", sort=False):
            label = f"λ = {prox:g}"
            medians = chosen.groupby("iterations")[["error", "rate_bound"]].median()
            axes.plot(medians.index, medians.error, **look[label], label=label)
            bound = look[label] | {"linestyle": "--", "marker": ""}
            axes.plot(medians.index, medians.rate_bound, **bound, label=f"bound, {label}")
        log_axis(axes, "y")
        axes.set(title=f"{CURVATURES[curvature]} curvature", ylabel=ERROR)
        axes.set(xlabel="CG iterations (0: first-order)")
        label_lines(axes)
    return figure


def _accuracy_figure(rows: pd.DataFrame) -> Figure:
    final = final_rows(rows)
    proxes, ways = final.prox.unique(), swept_ways(final)
    numbers = sorted(final[final.way.isin(ways)].iterations.unique())
    caption = """Test accuracy against the CG iterations of training. Bands: 95 % intervals over
        the seeds."""
    figure, panels = canvas(len(proxes), width=DOUBLE, caption=caption)
    for axes, prox in zip(panels, proxes, strict=True):
        sweeps = [sweep_of(final, way, prox).assign(way=NAMES[way]) for way in ways]
        each = pd.concat(sweeps).sort_values("iterations", kind="stable")
        each = each.assign(at=each.iterations.map(numbers.index), percent=100 * each.test_accuracy)
        axes.set_xticks(range(len(numbers)), [f"{n:g}" for n in numbers])
        axes.set(xlabel="iterations (0: first-order)", ylabel="test accuracy, %")
        axes.set_title(f"λ = {prox:g}")
        shown = means(each, ["way", "at"], "percent")
        lines(axes, shown, "at", "percent", "way", interval="half")
    return figure


def _cost_figure(rows: pd.DataFrame) -> Figure:
    gradient, prox = part_of(rows, "gradient"), first_prox(rows)
    chosen = gradient[(gradient.point == "minimum") & (gradient.prox == prox)]
    groups = chosen.groupby(["way", "iterations"], sort=False, dropna=False)
    medians = groups[["error", "gradient_s"]].median().reset_index()
    medians["ms"] = 1e3 * medians.gradient_s
    caption = f"""Relative error of the meta-gradient against the time to differentiate at the
        inner minimum, with λ = {prox:g}. Each line is a linear solver, with a point for each number
        of iterations."""
    figure, (axes,) = canvas(width=DOUBLE, height=2.8, caption=caption)
    log_axis(axes, "x", base=2)
    log_axis(axes, "y", base=2)  # errors within a decade
    axes.set(xlabel="ms to differentiate", ylabel=ERROR)
    first = chosen[chosen.iterations == 0]
    if not first.empty:
        at = ([1e3 * first.gradient_s.median()], [first.error.median()])
        axes.plot(*at, "*", color=PURPLE, markersize=7, label="first-order")
    # A further meta-gradient has no number of iterations.
    lines(axes, medians[medians.iterations != 0], "ms", "error", "way", name_of)
    return figure

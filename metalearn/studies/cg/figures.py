"""The figures of the study of CG iterations."""

from __future__ import annotations

import itertools

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
from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.training.estimate import Estimate

ERROR = "relative error of the meta-gradient"


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "error": _error_figure(rows),
        "accuracy": _accuracy_figure(rows),
        "cost": _cost_figure(rows),
    }


def _error_figure(rows: pd.DataFrame) -> Figure:
    part = task_rows(rows)
    part = part[(part.point == "minimum") & part.definite]
    figure, panels = canvas(2)
    for axes, curvature in zip(panels, CURVATURES, strict=True):
        for colour, prox in zip(COLOURS, part.prox.unique(), strict=False):
            chosen = part[(part.curvature == curvature) & (part.prox == prox)]
            medians = chosen.groupby("iterations")[["error", "rate_bound"]].median()
            if medians.empty:
                continue
            label = f"λ = {prox:g}"
            axes.plot(medians.index, medians.error, "o-", color=colour, label=label)
            bound = axes.plot(medians.index, medians.rate_bound, "--", color=colour)
            bound[0].set_label(f"bound, {label}")
        log_axis(axes, "y")
        title = f"{CURVATURES[curvature]} at the inner minimum, median task"
        axes.set(xlabel="CG iterations (0: first-order)", ylabel=ERROR, title=title)
        label_lines(axes)
    return figure


def _accuracy_figure(rows: pd.DataFrame) -> Figure:
    final = final_rows(rows)
    proxes = final.prox.unique()
    numbers = sorted(final[final.way.isin(swept_ways(final))].iterations.unique())
    figure, panels = canvas(len(proxes))
    for axes, prox in zip(panels, proxes, strict=True):
        for shift, way in enumerate(swept_ways(final)):
            group = sweep_of(final, way, prox)
            estimates = [Estimate.of(group[group.iterations == n].test_accuracy) for n in numbers]
            at = [i + 0.12 * shift for i in range(len(numbers))]
            intervals = [100 * e.interval if group.seed.nunique() > 1 else 0 for e in estimates]
            means = [100 * e.mean for e in estimates]
            axes.errorbar(at, means, intervals, fmt="o-", capsize=2, label=NAMES[way])
        axes.set_xticks(range(len(numbers)), [f"{n:g}" for n in numbers])
        axes.set(xlabel="iterations (0: first-order)", ylabel="test accuracy, %")
        axes.set_title(f"λ = {prox:g}, 95 % intervals over seeds")
        axes.legend(loc="lower left")
    return figure


def _cost_figure(rows: pd.DataFrame) -> Figure:
    gradient, prox = part_of(rows, "gradient"), first_prox(rows)
    chosen = gradient[(gradient.point == "minimum") & (gradient.prox == prox)]
    groups = chosen.groupby(["way", "iterations"], sort=False, dropna=False)
    medians = groups[["error", "gradient_s"]].median()
    figure, (axes,) = canvas(width=6.4, height=4)
    colours = itertools.cycle((*COLOURS, "#777777"))
    for colour, way in zip(colours, chosen.way.unique(), strict=False):
        part = medians.loc[way]
        part = part[part.index != 0]  # a further meta-gradient has no number
        axes.plot(1e3 * part.gradient_s, part.error, "o-", color=colour, label=name_of(way))
    first = chosen[chosen.iterations == 0]
    if not first.empty:
        at = ([1e3 * first.gradient_s.median()], [first.error.median()])
        axes.plot(*at, "k*", markersize=9, label="first-order")
    log_axis(axes, "x", base=2)
    log_axis(axes, "y", base=2)  # errors within a decade
    axes.set(xlabel="ms to differentiate at the inner minimum", ylabel=ERROR)
    axes.set_title(f"λ = {prox:g}, a dot for each number of iterations")
    label_lines(axes)
    return figure

"""The tables, figures and facts of the study of bilevel methods on minibatches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import styles
from metalearn.studies.frame.draw import legend
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Cell, Format, Table, make_table, quartiles

REFERENCE = "reference"
TASKS = {
    "penalties": "a penalty for each feature of logistic regression",
    "cleaning": "a weight for each training example, half of them mislabelled",
}
REACHED = 0.1
"""The share of the first suboptimality at which the calls and the time of a method are compared."""
COLUMNS: dict[str, Format | None] = {
    **{"method": None, "inner rate": None, "outer rate": None, "power of the rates' fall": None},
    **{"suboptimality [quartiles]": None, "of the first": ".1e", "seconds": ".1f"},
    **{f"calls to {REACHED:g} of the first": ".0f", f"s to {REACHED:g} of the first": ".2f"},
    **{"diverged in the search": None, "rates replaced": None},
}


def suboptimality(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of runs with `gap`, the value above the least value of their task.

    The least value is the least of the reference and of all runs.
    """
    least = rows.groupby("task").value.transform("min")
    runs = rows.assign(gap=rows.value - least)[rows.part == "run"]
    return runs.assign(point=runs.point.astype(int), seed=runs.seed.astype(int))


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each task, method and point: medians, and quartiles of the gap.

    A point that not all seeds have reached, since one diverged, is left out.
    """
    runs = suboptimality(rows)
    groups = runs[np.isfinite(runs.gap)].groupby(["task", "method", "point"], sort=False)
    found = groups.agg(
        calls=("calls", "median"),
        seconds=("seconds", "median"),
        gap=("gap", "median"),
        gap_low=("gap", lambda values: values.quantile(0.25)),
        gap_high=("gap", lambda values: values.quantile(0.75)),
        seeds=("seed", "nunique"),
    ).reset_index()
    whole = found.groupby(["task", "method"]).seeds.transform("max")
    return found[found.seeds == whole]


def ends(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each method's rates, last suboptimality, and cost of a share of the first one."""
    medians, found = curves(rows), []
    for (task, method), own in medians.groupby(["task", "method"], sort=False):
        here = rows[(rows.task == task) & (rows.method == method)]
        runs, tried = here[here.part == "run"], here[here.part == "search"]
        last, first = own.iloc[-1], own.gap.iloc[0]
        below = own[own.gap <= REACHED * first]
        found.append(
            {
                "task": task,
                "method": method,
                **{name: float(runs[name].iloc[0]) for name in ("inner", "outer", "power")},
                **{name: float(last[name]) for name in ("gap", "gap_low", "gap_high", "seconds")},
                "first": float(first),
                "reached_calls": float(below.calls.iloc[0]) if len(below) else math.nan,
                "reached_s": float(below.seconds.iloc[0]) if len(below) else math.nan,
                "diverged": int(np.isinf(tried.value).sum()),
                "tried": len(tried),
                "lost": int(np.isinf(runs.value).sum()),
                "replaced": int((here.part == "replaced").sum()),
                "seeds": runs.seed.nunique(),
                "calls": int(own.calls.max()),
            }
        )
    return found


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    made = {}
    for task in rows.task.unique():
        own = sorted((e for e in ends(rows) if e["task"] == task), key=lambda e: e["gap"])
        shown = [
            [
                *(e["method"], e["inner"], e["outer"], e["power"], quartiles(e, "gap", ".1e")),
                *(e["gap"] / e["first"], e["seconds"], e["reached_calls"], e["reached_s"]),
                *(Cell(f"{e['diverged']} of {e['tried']}", e["diverged"]), e["replaced"]),
            ]
            for e in own
        ]
        if own:
            caption = f"""{TASKS[task].capitalize()}: suboptimality of the outer value after
                {max(e["calls"] for e in own):,} oracle calls, median and quartiles of
                {max(e["seeds"] for e in own)} seeds"""
            made[" ".join(caption.split())] = make_table(COLUMNS, shown)
    return made


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Return a figure for each task: suboptimality against oracle calls and wall time."""
    found, medians = {}, curves(rows)
    for task, own in medians.groupby("task", sort=False):
        found[f"minibatches_{task}"] = _figure(own, str(task))
    return found


def _figure(own: pd.DataFrame, task: str) -> Figure:
    caption = f"""Suboptimality of the outer value, {TASKS[task]}, against oracle calls and wall
        time. Lines: medians over the seeds. Bands: their quartiles. An oracle call is a gradient
        on a minibatch, or a product with second derivatives."""
    figure, panels = canvas(2, width=DOUBLE, height=2.8, caption=caption, sharey=True)
    look = styles(own.method.unique())
    for axes, x, label in zip(panels, ("calls", "seconds"), ("oracle calls", "s"), strict=True):
        for method, line in own.groupby("method", sort=False):
            part = line[line.calls > 0]
            axes.plot(part[x], part.gap, **look[str(method)], label=method)
            colour = look[str(method)]["color"]
            axes.fill_between(part[x], part.gap_low, part.gap_high, color=colour, alpha=0.15, lw=0)
        log_axis(axes, "x")
        axes.set_yscale("log")
        axes.set_xlabel(label)
    panels[0].set_ylabel("suboptimality of the outer value")
    legend(figure)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the best method by calls and by time for each task, and the runs that diverged."""
    found = ends(rows)
    tasks = []
    for task in rows.task.unique():
        own = [e for e in found if e["task"] == task]
        fast = [e for e in own if math.isfinite(e["reached_s"])]
        if own:
            tasks.append(
                {
                    "title": TASKS[task],
                    "best": min(own, key=lambda e: e["gap"]),
                    "worst": max(own, key=lambda e: e["gap"]),
                    "fewest": min(fast, key=lambda e: e["reached_calls"], default=None),
                    "fastest": min(fast, key=lambda e: e["reached_s"], default=None),
                    "missing": [e["method"] for e in own if e not in fast],
                    "lost": sum(e["lost"] for e in own),
                    "replaced": [e for e in own if e["replaced"]],
                }
            )
    return {"tasks": tasks, "share": REACHED}

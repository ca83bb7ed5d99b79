"""The figures of the study of speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metalearn.studies.frame.plot import COLOURS, canvas, lines, log_axis
from metalearn.studies.speed.report import (
    AXES,
    METHODS,
    best_rate,
    competitors,
    curves,
    workloads,
)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {}
    for method in METHODS:
        if names := [name for name in workloads(rows) if name.startswith(f"{method}-")]:
            found[f"time_{method}"] = _bars(rows, names)
        if scaling := [(axis, part) for of, axis, part in curves(rows) if of == method]:
            found[f"scaling_{method}"] = _lines(scaling, METHODS[method])
    return found


def _bars(rows: pd.DataFrame, names: Sequence[str]) -> Figure:
    figure, panels = canvas(len(names), width=4.2, height=3.0)
    for axes, name in zip(panels, names, strict=True):
        part = competitors(rows, name).iloc[::-1]
        each: Any = list(part.itertuples())
        errors = [part.seconds - part.seconds_low, part.seconds_high - part.seconds]
        axes.barh(
            [f"{r.competitor}{' *' if r.differs else ''}" for r in each],
            part.seconds,
            xerr=errors,
            color=["0.75" if r.differs else COLOURS[bool(r.library)] for r in each],
            error_kw={"lw": 0.8},
        )
        floor = float(part.floor_operations.iloc[0] / best_rate(rows))
        axes.axvline(floor, color="black", lw=0.8, ls="--")
        axes.annotate(
            "arithmetic",
            (floor, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            va="bottom",
            ha="center",
        )
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="seconds (* another gradient)")
        axes.set_title(name, pad=12)
    return figure


def _lines(curves: Sequence[tuple[str, pd.DataFrame]], title: str) -> Figure:
    figure, panels = canvas(len(curves), width=3.6, height=3.0)
    for axes, (axis, part) in zip(panels, curves, strict=True):
        axes.set(xlabel=AXES[axis], ylabel="seconds of one meta-gradient", title=title)
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        lines(axes, part, "value", "seconds", "competitor")
    return figure

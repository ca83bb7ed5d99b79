"""The figures of the study of speed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import BLACK, BLUE, ORANGE, OURS, PEERS, styles
from metalearn.studies.frame.draw import Mark, bars, legend, lines
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.speed.report import (
    AXES,
    METHODS,
    best_rate,
    competitors,
    curves,
    workloads,
)
from metalearn.studies.speed.workloads import WORKLOADS

ANOTHER = "#C0C0C0"
"""The colour of a competitor whose gradient is another one."""
SCALING = {"batched": BLUE, "one by one": BLACK, "higher": ORANGE}


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    found = {}
    for method in METHODS:
        if names := [name for name in workloads(rows) if name.startswith(f"{method}-")]:
            found[f"time_{method}"] = _bars(rows, names, METHODS[method])
        if scaling := [(axis, part) for of, axis, part in curves(rows) if of == method]:
            found[f"scaling_{method}"] = _lines(scaling, METHODS[method])
    return found


def _bars(rows: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    caption = f"""Seconds of one meta-gradient of {title}, the median with its quartiles. Blue: this
        library. Orange: others. Grey: another gradient. Dashed: the time of the arithmetic."""
    figure, panels = canvas(len(names), width=DOUBLE, height=2.0, sharey=True, caption=caption)
    found = {name: competitors(rows, name).set_index("competitor") for name in names}
    every = dict.fromkeys(label for part in found.values() for label in part.index)
    for axes, (name, part) in zip(panels, found.items(), strict=True):
        # A competitor that did not run here has a row without a bar.
        times = part[["seconds", "seconds_low", "seconds_high"]].reindex(list(every))
        colours = {label: _colour(row) for label, row in part.iterrows()}
        marks = [
            Mark(str(label), row[0], row[1], row[2], colours.get(label, ANOTHER))
            for label, row in zip(times.index, times.values.tolist(), strict=True)
        ]
        bars(axes, marks)
        floor = float(part.floor_operations.iloc[0] / best_rate(rows))
        axes.axvline(floor, color=BLACK, lw=0.8, ls="--")
        axes.set(xlabel="seconds", title=_title(name))
    return figure


def _title(name: str) -> str:
    """Return the tasks of a workload in words."""
    if (work := WORKLOADS.get(name)) is None:
        return name
    queries = f", {work.queries} queries" if work.queries > 1 else ""
    return f"{work.ways}-way {work.shots}-shot{queries}"


def _colour(row: pd.Series) -> str:
    return ANOTHER if row.differs else PEERS if row.library else OURS


def _lines(curves: Sequence[tuple[str, pd.DataFrame]], title: str) -> Figure:
    caption = f"""Seconds of one meta-gradient of {title} against the size of the work: all tasks at
        once (batched), or a task at a time."""
    figure, panels = canvas(len(curves), columns=3, height=1.8, caption=caption)
    every = pd.concat([part for _, part in curves]).competitor.unique()
    look = styles(every)
    look = {n: {**own, "color": SCALING.get(n, own["color"])} for n, own in look.items()}
    for axes, (axis, part) in zip(panels, curves, strict=True):
        axes.set(xlabel=AXES[axis], ylabel="seconds")
        log_axis(axes, "x", base=2)
        log_axis(axes, "y", subs=(1, 2, 5))
        lines(axes, part, "value", "seconds", "competitor", look=look, direct=False)
    legend(figure)
    return figure

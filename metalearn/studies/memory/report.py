"""The report of the memory study: its tables, figures and facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import styles
from metalearn.studies.frame.draw import label_lines
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.published import memory as published
from metalearn.studies.frame.table import Cell, Format, Table, make_cell, make_table
from metalearn.studies.memory.methods import METHODS, NETWORKS, ONE_GRADIENT
from metalearn.system.memory import format_bytes

# The others differ from one of these by a constant that the tables give.
IN_MEMORY_FIGURE = (
    "unrolled, higher",
    "unrolled, batched",
    "checkpointed",
    "mixed mode",
    "truncated to 4",
    "first-order",
    "implicit, 5 CG",
    "implicit, 5 CG, recomputed",
)
IN_TIME_FIGURE = (
    "unrolled, higher",
    "unrolled, batched",
    "checkpointed",
    "mixed mode",
    "implicit, 1 CG",
    "implicit, 5 CG",
    "implicit, 10 CG",
    "implicit, 5 CG, recomputed",
)


SAVING = {"checkpointed": "checkpointing", "mixed mode": "mixed mode"}
"""The methods that find the unrolled gradient in less memory, with their names in a sentence."""


class Line(NamedTuple):
    """The least-squares line through the measured peaks, bytes against inner steps."""

    slope: float
    intercept: float
    r_squared: float


def line(part: pd.DataFrame) -> Line:
    measured = part[~part.predicted.astype(bool)]
    steps, peaks = measured.steps.to_numpy(float), measured.peak_bytes.to_numpy(float)
    slope, intercept = np.polyfit(steps, peaks, 1)
    off = peaks - (intercept + slope * steps)
    spread = ((peaks - peaks.mean()) ** 2).sum()
    return Line(float(slope), float(intercept), float(1 - (off @ off) / spread) if spread else 1.0)


def settings(rows: pd.DataFrame) -> list[tuple[str, int]]:
    """(network, tasks), in the order in which they were measured."""
    return list(dict.fromkeys(zip(rows.network, rows.tasks, strict=True)))


def of(rows: pd.DataFrame, network: str, tasks: int, method: str | None = None) -> pd.DataFrame:
    part = rows[(rows.network == network) & (rows.tasks == tasks)]
    return part if method is None else part[part.method == method]


def one_gradient(rows: pd.DataFrame, network: str, tasks: int) -> float:
    """Return the peak of one inner gradient, in bytes."""
    return float(of(rows, network, tasks, ONE_GRADIENT).peak_bytes.iloc[0])


def _title(network: str, tasks: int) -> str:
    return NETWORKS[network].title + (f", {tasks} tasks at once" if tasks > 1 else "")


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    found: dict[str, Table] = {}
    for network, tasks in settings(rows):
        part, title = of(rows, network, tasks), _title(network, tasks)
        base = one_gradient(rows, network, tasks)
        above = part[part.method != ONE_GRADIENT]
        above = above.assign(peak_bytes=above.peak_bytes - base)
        found |= {
            f"{title}: peak memory by inner steps (*italic*: predicted, not run)": _by_steps(
                part, _peak
            ),
            f"{title}: peak memory above that of one inner gradient, {format_bytes(int(base))}": (
                _by_steps(above, _peak)
            ),
            f"{title}: seconds of one meta-gradient by inner steps": _by_steps(
                part, lambda row: row.seconds
            ),
            f"{title}: growth, and the price in time": _growth(part, base),
        }
    network, tasks = settings(rows)[0]
    found["Figures of others beside ours, interpolated to the same inner steps"] = published.beside(
        of(rows, network, tasks)
    )
    return found


def _peak(row: Any) -> Cell:
    cell = make_cell(int(row.peak_bytes), format_bytes)
    return Cell(f"*{cell.text}*", cell.key) if row.predicted else cell


def _by_steps(part: pd.DataFrame, cell: Callable[[Any], Any]) -> Table:
    """Make a table with a row for each method and a column for each number of inner steps."""
    steps = sorted(set(part.steps.astype(int)))
    cells: dict[str, dict[str, Any]] = {method: {} for method in part.method}
    for _, row in part.iterrows():
        cells[row.method][str(int(row.steps))] = cell(row)
    return make_table(
        ["method", *map(str, steps)], [{"method": name, **row} for name, row in cells.items()]
    )


def _growth(part: pd.DataFrame, base: float) -> Table:
    columns: dict[str, Format | None] = {
        "method": None,
        "smallest, of one gradient": ".2f",
        "largest, of one gradient": ".2f",
        "largest / smallest": ".3f",
        "a step more": format_bytes,
        "R² of the line": ".6f",
        "gradient that of": None,
        "differs by": ".1e",
        "its time, most steps": None,
    }
    shown = []
    for method in dict.fromkeys(part.method):
        if method == ONE_GRADIENT:
            continue
        own = part[part.method == method]
        measured = own[~own.predicted.astype(bool)]
        least, most = measured.peak_bytes.min(), measured.peak_bytes.max()
        row: dict[str, Any] = {
            "method": method,
            "smallest, of one gradient": least / base,
            "largest, of one gradient": most / base,
        }
        if len(measured) > 1:
            row["largest / smallest"] = most / least
        if method in METHODS and METHODS[method].grows and len(measured) > 2:
            fit = line(own)
            row |= {"a step more": round(fit.slope), "R² of the line": fit.r_squared}
        if "same_as" in own and (compared := own[own.same_as.notna()]).size:
            last = compared.sort_values("steps").iloc[-1]
            ratio = float(last.time_ratio)
            row |= {
                "gradient that of": compared.same_as.iloc[0],
                "differs by": compared.gradient_difference.max(),
                "its time, most steps": Cell(f"{ratio:.2f} at {last.steps:.0f}", ratio),
            }
        shown.append(row)
    return make_table(columns, shown)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    memory = """Peak memory of one meta-gradient against inner steps. Unrolled gradients keep every
    step, implicit gradients only the solution. Hollow points: predicted, not run."""
    time = "Seconds of one meta-gradient against inner steps."
    return {
        "memory": _figure(rows, "peak_bytes", 1e-6, "peak memory, MB", IN_MEMORY_FIGURE, memory),
        "time": _figure(rows, "seconds", 1.0, "seconds", IN_TIME_FIGURE, time),
    }


def _figure(
    rows: pd.DataFrame, column: str, unit: float, label: str, methods: tuple[str, ...], caption: str
) -> Figure:
    single = [(network, tasks) for network, tasks in settings(rows) if tasks == 1]
    figure, panels = canvas(len(single), width=DOUBLE, height=2.6, caption=caption)
    look = styles([*methods, ONE_GRADIENT])
    for axes, (network, tasks) in zip(panels, single, strict=True):
        part = of(rows, network, tasks)
        for method in methods:
            own = part[part.method == method].dropna(subset=column).sort_values("steps")
            if own.empty:
                continue
            hollow = own[own.predicted.astype(bool)]
            axes.plot(own.steps, own[column] * unit, **look[method], label=method)
            axes.plot(
                hollow.steps, hollow[column] * unit, **look[method] | {"linestyle": ""}, mfc="white"
            )
        base = part[part.method == ONE_GRADIENT][column].iloc[0] * unit
        ends = [part.steps.min(), part.steps.max()]
        axes.plot(ends, [base, base], "--", color=look[ONE_GRADIENT]["color"], label=ONE_GRADIENT)
        log_axis(axes, "x", base=2)
        log_axis(axes, "y", subs=(1, 3))
        axes.set(xlabel="inner steps", ylabel=label, title=_title(network, tasks))
        label_lines(axes)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what the template of the findings tells: of each setting, and of others' figures."""
    found = []
    for network, tasks in settings(rows):
        part, base = of(rows, network, tasks), one_gradient(rows, network, tasks)
        make = _facts if tasks == 1 else _batch_facts
        found.append({"where": _title(network, tasks), "tasks": tasks, **make(part, base)})
    return {"settings": found, "growths": published.growths(of(rows, *settings(rows)[0]))}


def _facts(part: pd.DataFrame, base: float) -> dict[str, Any]:
    measured = part[~part.predicted.astype(bool)].sort_values("steps")
    by = {method: measured[measured.method == method] for method in METHODS}
    higher, kept, lean = (
        by[name] for name in ("unrolled, higher", "implicit, 5 CG", "implicit, 5 CG, recomputed")
    )
    implicit = [p for m, p in by.items() if m.startswith(("implicit", "Gauss")) and len(p)]
    vector = part[part.method == ONE_GRADIENT].parameter_bytes.iloc[0]
    predicted = part[part.predicted.astype(bool)]
    return {
        "fewest": kept.steps.min(),
        "most": max(int(p.steps.max()) for p in implicit),
        "change": max(float(p.peak_bytes.max() / p.peak_bytes.min()) for p in implicit),
        "kept": kept.peak_bytes.max() / base,
        "recomputed": lean.peak_bytes.max() / base,
        "recomputed_last": lean.iloc[-1],
        "recomputed_first": lean.iloc[0],
        "vector": vector,
        "vector_share": vector / base,
        "unrolled": None if len(higher) < 3 else _unrolled(higher, kept, base),
        "saving": [
            _saving(both, name)
            for method, name in SAVING.items()
            if len(both := _beside(by[method], by["unrolled, batched"]))
        ],
        "predicted": predicted.to_dict("records"),
    }


def _unrolled(higher: pd.DataFrame, kept: pd.DataFrame, base: float) -> dict[str, Any]:
    fit = line(higher)
    return {
        "slope": fit.slope,
        "slope_share": fit.slope / base,
        "r_squared": fit.r_squared,
        "steps": higher.steps.iloc[-1],
        "times_implicit": higher.peak_bytes.iloc[-1] / kept.peak_bytes.max(),
    }


def _beside(saved: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    return saved.merge(whole, on="steps", suffixes=("", "_whole"))


def _saving(both: pd.DataFrame, name: str) -> dict[str, Any]:
    last = both.iloc[-1]
    return {
        "name": name,
        "steps": last.steps,
        "memory": last.peak_bytes / last.peak_bytes_whole,
        "time": last.time_ratio,
        "difference": both.gradient_difference.max(),
    }


def _batch_facts(part: pd.DataFrame, base: float) -> dict[str, Any]:
    peaks = part.groupby("method").peak_bytes.max() / base
    lean = part[part.method == "implicit, 5 CG, recomputed"]
    return {
        "kept": peaks["implicit, 5 CG"],
        "recomputed": peaks["implicit, 5 CG, recomputed"],
        "time": lean.time_ratio.iloc[-1],
    }

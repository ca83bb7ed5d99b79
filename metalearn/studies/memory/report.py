"""What the study of memory shows: its tables, figures and findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.studies.frame.published import memory as published
from metalearn.studies.memory.methods import METHODS, NETWORKS, ONE_GRADIENT
from metalearn.system.memory import format_bytes

# The others differ from one of these by a constant that the tables give.
IN_MEMORY_FIGURE = (
    "unrolled, higher",
    "unrolled, batched",
    "checkpointed",
    "truncated to 4",
    "first-order",
    "implicit, 5 CG",
    "implicit, 5 CG, recomputed",
)
IN_TIME_FIGURE = (
    "unrolled, higher",
    "unrolled, batched",
    "checkpointed",
    "implicit, 1 CG",
    "implicit, 5 CG",
    "implicit, 10 CG",
    "implicit, 5 CG, recomputed",
)


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
    """Its peak, in bytes."""
    return float(of(rows, network, tasks, ONE_GRADIENT).peak_bytes.iloc[0])


def _title(network: str, tasks: int) -> str:
    return NETWORKS[network].title + (f", {tasks} tasks at once" if tasks > 1 else "")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found: dict[str, pd.DataFrame] = {}
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
                part, lambda row: _or_blank(row.seconds)
            ),
            f"{title}: growth, and the price in time": _growth(part, base),
        }
    network, tasks = settings(rows)[0]
    found["Figures of others beside ours, interpolated to the same inner steps"] = published.beside(
        of(rows, network, tasks)
    )
    return found


def _peak(row: Any) -> str:
    text = format_bytes(int(row.peak_bytes))
    return f"*{text}*" if row.predicted else text


def _by_steps(part: pd.DataFrame, cell: Callable[[Any], str]) -> pd.DataFrame:
    """A row for each method, a column for each number of inner steps."""
    shown = part.assign(shown=[cell(row) for row in part.itertuples()])
    wide = shown.pivot(index="method", columns="steps", values="shown").fillna("")
    wide = wide.loc[list(dict.fromkeys(part.method))]
    wide.columns = pd.Index([str(int(steps)) for steps in wide.columns])
    return wide.reset_index()


def _growth(part: pd.DataFrame, base: float) -> pd.DataFrame:
    shown = []
    for method in dict.fromkeys(part.method):
        if method == ONE_GRADIENT:
            continue
        own = part[part.method == method]
        measured = own[~own.predicted.astype(bool)]
        row: dict[str, object] = {
            "method": method,
            "smallest, of one gradient": f"{measured.peak_bytes.min() / base:.2f}",
            "largest, of one gradient": f"{measured.peak_bytes.max() / base:.2f}",
            "largest / smallest": "",
            "a step more": "",
            "R² of the line": "",
            "gradient that of": "",
            "differs by": "",
            "its time, most steps": "",
        }
        if len(measured) > 1:
            factor = measured.peak_bytes.max() / measured.peak_bytes.min()
            row["largest / smallest"] = f"{factor:.3f}"
        if METHODS[method].grows and len(measured) > 2:
            fit = line(own)
            row["a step more"] = format_bytes(round(fit.slope))
            row["R² of the line"] = f"{fit.r_squared:.6f}"
        if "same_as" in own and (compared := own[own.same_as.notna()]).size:
            row["gradient that of"] = compared.same_as.iloc[0]
            row["differs by"] = f"{compared.gradient_difference.max():.1e}"
            last = compared.sort_values("steps").iloc[-1]
            row["its time, most steps"] = f"{last.time_ratio:.2f} at {last.steps:.0f}"
        shown.append(row)
    return pd.DataFrame(shown)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "memory": _figure(rows, "peak_bytes", 1e-6, "peak memory, MB", IN_MEMORY_FIGURE),
        "time": _figure(rows, "seconds", 1.0, "seconds of one meta-gradient", IN_TIME_FIGURE),
    }


def _figure(
    rows: pd.DataFrame, column: str, unit: float, label: str, methods: tuple[str, ...]
) -> Figure:
    single = [(network, tasks) for network, tasks in settings(rows) if tasks == 1]
    figure, panels = canvas(len(single), width=5.2, height=3.8)
    for axes, (network, tasks) in zip(panels, single, strict=True):
        part = of(rows, network, tasks)
        for colour, method in zip(COLOURS, methods, strict=True):
            own = part[part.method == method].dropna(subset=column).sort_values("steps")
            if own.empty:
                continue
            axes.plot(own.steps, own[column] * unit, color=colour, label=method)
            for predicted, face in ((False, colour), (True, "white")):
                some = own[own.predicted.astype(bool) == predicted]
                axes.plot(some.steps, some[column] * unit, "o", color=colour, mfc=face, ms=4)
        base = part[part.method == ONE_GRADIENT][column].iloc[0] * unit
        ends = [part.steps.min(), part.steps.max()]
        axes.plot(ends, [base, base], "--", color="0.4", label=ONE_GRADIENT)
        log_axis(axes, "x", base=2)
        log_axis(axes, "y")
        axes.set(xlabel="inner steps", ylabel=label, title=_title(network, tasks))
        label_lines(axes)
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    found = []
    for network, tasks in settings(rows):
        part, base = of(rows, network, tasks), one_gradient(rows, network, tasks)
        found += _findings(part, base) if tasks == 1 else _batch_findings(part, base)
    found += published.findings(of(rows, *settings(rows)[0]))
    return found


def _findings(part: pd.DataFrame, base: float) -> list[str]:
    where = NETWORKS[part.network.iloc[0]].title
    measured = part[~part.predicted.astype(bool)].sort_values("steps")
    by = {method: measured[measured.method == method] for method in METHODS}
    higher, kept = by["unrolled, higher"], by["implicit, 5 CG"]
    vector = part[part.method == ONE_GRADIENT].parameter_bytes.iloc[0]
    lean, saved, whole = (
        by["implicit, 5 CG, recomputed"],
        by["checkpointed"],
        by["unrolled, batched"],
    )
    implicit = [p for m, p in by.items() if m.startswith(("implicit", "Gauss")) and len(p)]
    flattest = max(float(p.peak_bytes.max() / p.peak_bytes.min()) for p in implicit)
    most = max(int(p.steps.max()) for p in implicit)
    found = [
        f"{where}: from {kept.steps.min()} to {most} inner steps no implicit gradient's peak "
        f"changes by more than a factor of {flattest:.3f}. It is "
        f"{kept.peak_bytes.max() / base:.2f} times one inner gradient's with the linearisation "
        f"kept, {lean.peak_bytes.max() / base:.2f} times with it recomputed, for "
        f"{lean.time_ratio.iloc[-1]:.2f} times the time at {lean.steps.iloc[-1]} steps and "
        f"{lean.time_ratio.iloc[0]:.2f} times at {lean.steps.iloc[0]} (5 CG iterations). The "
        f"task's parameters take {format_bytes(int(vector))}, {vector / base:.2f} of one inner "
        "gradient's peak, and a solve holds several vectors of their size."
    ]
    if len(higher) > 2:
        fit = line(higher)
        found.append(
            f"{where}: unrolled by higher takes {format_bytes(round(fit.slope))} more for each "
            f"inner step, {fit.slope / base:.2f} times one inner gradient's peak, on a line with "
            f"R² = {fit.r_squared:.6f}; at {higher.steps.iloc[-1]} steps it takes "
            f"{higher.peak_bytes.iloc[-1] / kept.peak_bytes.max():.1f} times the memory of the "
            "implicit gradient."
        )
    both = saved.merge(whole, on="steps", suffixes=("", "_whole"))
    last = both.iloc[-1]
    found.append(
        f"{where}: checkpointed at {last.steps} steps takes "
        f"{last.peak_bytes / last.peak_bytes_whole:.2f} of the memory of all steps' graph and "
        f"{last.time_ratio:.2f} times its time; the gradients differ by "
        f"{saved.gradient_difference.max():.0e} at most."
    )
    predicted = part[part.predicted.astype(bool)]
    if len(predicted):
        each = zip(predicted.method, predicted.steps, predicted.peak_bytes, strict=True)
        what = ", ".join(f"{m} at {k} steps ({format_bytes(int(b))})" for m, k, b in each)
        found.append(f"{where}: predicted on a line and not run: {what}.")
    return found


def _batch_findings(part: pd.DataFrame, base: float) -> list[str]:
    where = _title(part.network.iloc[0], part.tasks.iloc[0])
    peaks = part.groupby("method").peak_bytes.max() / base
    lean = part[part.method == "implicit, 5 CG, recomputed"]
    return [
        f"{where}: the implicit gradient takes {peaks['implicit, 5 CG']:.2f} times the memory of "
        f"one inner gradient of the same batch with the linearisation kept, "
        f"{peaks['implicit, 5 CG, recomputed']:.2f} times with it recomputed task by task, for "
        f"{lean.time_ratio.iloc[-1]:.2f} times the time."
    ]


def _or_blank(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"

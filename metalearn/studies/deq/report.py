"""The report of the study of deep equilibrium models: its tables, figures and facts."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import styles
from metalearn.studies.frame.draw import label_lines, lines
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.groups import PEAK, Column, scale, tabulate
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.frame.table import Cell, Table, make_table
from metalearn.system.memory import format_bytes


def _spread(values: pd.Series) -> Cell | float:
    """Return the mean, and the range over the seeds."""
    mean = float(values.mean())
    if len(values) == 1:
        return mean
    return Cell(f"{mean:.2f} ({values.min():.2f} to {values.max():.2f})", mean)


DIGITS: dict[str, Column] = {
    "core": ("model", None, None),
    "forward solver": ("forward", None, None),
    "backward solver": ("backward", None, None),
    "accuracy, %": ("accuracy", _spread, ".2f"),
    "forward iterations": ("forward_iterations", "mean", ".1f"),
    "backward iterations": ("backward_iterations", "mean", ".1f"),
    "gradient error": ("gradient_error", "mean", ".1e"),
    "condition of I - J": ("condition_number", "mean", ".1f"),
    "ms a step": ("step_s", "mean", scale(1e3, ".1f")),
    "peak memory": PEAK,
}
NOT_OF_SEQUENCES = ("forward solver", "backward solver", "gradient error")
SEQUENCES = {title: DIGITS[title] for title in DIGITS if title not in NOT_OF_SEQUENCES}
SPECTRUM = ["spectral_radius", "condition_number", "condition_number_worst"]
CONDITIONING = ["accuracy", *SPECTRUM, "forward_iterations", "backward_iterations"]


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    steps = [f"unrolled, {format_count(int(n), 'step')}" for n in rows.depth.fillna(0)]
    named = rows.assign(model=pd.Series(steps, rows.index).where(rows.core == "unrolled", "DEQ"))
    digits, conditioning = named[named.part == "digits"], _conditioning(rows)
    return {
        "Digits: test accuracy and the last training step, means over "
        f"{format_count(digits.seed.nunique(), 'seed')}": tabulate(
            digits, ["model", "forward", "backward"], DIGITS
        ),
        "Peak memory of a training step against the applications of the cell": _memory(rows),
        "Conditioning of I - J over training, means over the seeds": make_table(
            [str(name).replace("_", " ") for name in conditioning], conditioning.values.tolist()
        ),
        "Sequences: the first token is asked at the last position": tabulate(
            named[named.part == "sequence"], "model", SEQUENCES
        ),
    }


def _memory(rows: pd.DataFrame) -> Table:
    wide = rows[rows.part == "memory"].pivot(index="depth", columns="core")
    columns = {
        "applications": wide.index.astype(int),
        "unrolled": wide.peak_bytes.unrolled.astype(int),
        "DEQ": wide.peak_bytes.deq.astype(int),
        "unrolled, ms a step": 1e3 * wide.step_s.unrolled,
        "DEQ, ms a step": 1e3 * wide.step_s.deq,
    }
    forms = dict(zip(columns, (None, *[format_bytes] * 2, *[".1f"] * 2), strict=True))
    return make_table(forms, zip(*(column.tolist() for column in columns.values()), strict=True))


def _conditioning(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means over the seeds, by weight and epoch."""
    part = rows[rows.part == "conditioning"]
    return part.groupby(["jacobian_weight", "epoch"])[CONDITIONING].mean().reset_index()


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "memory": _memory_figure(rows),
        "conditioning": _conditioning_figure(rows),
        "sequence": _sequence_figure(rows),
    }


def _memory_figure(rows: pd.DataFrame) -> Figure:
    caption = """Peak memory of a training step against the applications of the cell: the unrolled
        twin keeps them all, the deep equilibrium model (DEQ) only its fixed point."""
    figure, (axes,) = canvas(caption=caption)
    part = rows[rows.part == "memory"].sort_values("core", ascending=False, kind="stable")
    log_axis(axes, "x", base=2)
    log_axis(axes, "y")
    axes.set(xlabel="applications of the cell, forward", ylabel="peak memory, MB")
    titles = {"unrolled": "unrolled", "deq": "DEQ"}
    lines(axes, part.assign(mb=part.peak_bytes / 1e6), "depth", "mb", "core", titles.__getitem__)
    return figure


def _conditioning_figure(rows: pd.DataFrame) -> Figure:
    caption = """Condition number of I - J (the median) and iterations of the backward solve over
        training, by the weight of a penalty on the norm of the Jacobian J."""
    figure, panels = canvas(2, caption=caption)
    for axes, column, title in (
        (panels[0], "condition_number", "condition number"),
        (panels[1], "backward_iterations", "backward iterations"),
    ):
        log_axis(axes, "x", base=2)
        axes.set(xlabel="epoch", title=title)
        lines(axes, _conditioning(rows), "epoch", column, "jacobian_weight", _weight)
    return figure


def _weight(weight: float) -> str:
    return f"weight {weight:g}" if weight else "no penalty"


def _sequence_figure(rows: pd.DataFrame) -> Figure:
    caption = """Test accuracy on sequences whose first token is asked at their last position,
        against the applications of the cell. The DEQ applies its cell until it finds a fixed
        point."""
    figure, (axes,) = canvas(caption=caption)
    part, look = rows[rows.part == "sequence"], styles(["unrolled", "DEQ"])
    unrolled = part[part.core == "unrolled"].groupby("depth").accuracy.mean()
    axes.plot(unrolled.index, unrolled, **look["unrolled"], label="unrolled")
    deq = part[part.core == "deq"].accuracy.mean()
    ends = [unrolled.index.min(), unrolled.index.max()]
    axes.plot(ends, [deq, deq], **look["DEQ"] | {"marker": "", "linestyle": "--"}, label="DEQ")
    axes.set(xlabel="applications of the cell", ylabel="test accuracy, %", ylim=(0, 105))
    label_lines(axes)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the figures that the template of the findings names."""
    digits, memory, sequence = (
        rows[rows.part == part] for part in ("digits", "memory", "sequence")
    )
    deq, long = digits[digits.core == "deq"], sequence[sequence.core == "deq"]
    failed = deq[deq.forward_converged < 0.9]
    peaks = memory.pivot(index="depth", columns="core", values="peak_bytes")
    watched = _conditioning(rows)
    last = watched[watched.epoch == watched.epoch.max()].sort_values("jacobian_weight")
    unrolled = sequence[sequence.core == "unrolled"].groupby("depth").accuracy.mean()
    return {
        "unrolled": digits[digits.core == "unrolled"].accuracy.mean(),
        "forward": deq.groupby("forward", sort=False).accuracy.mean().to_dict(),
        "backward_solvers": deq.backward.nunique(),
        "seeds": deq.seed.nunique(),
        "trainings": len(deq),
        "failed": len(failed),
        "failed_solvers": failed.forward.unique().tolist(),
        "failed_accuracy": failed.accuracy.mean(),
        "depths": [int(peaks.index[0]), int(peaks.index[-1])],
        "deq_memory": peaks.deq.max() / peaks.deq.min(),
        "unrolled_memory": peaks.unrolled.iloc[-1] / peaks.unrolled.iloc[0],
        "conditioning": last.to_dict("records"),
        "long_accuracy": long.accuracy.mean(),
        "long_iterations": long.forward_iterations.mean(),
        "long_unrolled": [(int(unrolled.index[i]), unrolled.iloc[i]) for i in (0, -1)],
    }

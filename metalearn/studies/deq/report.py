"""What the study of deep equilibrium models shows: its tables, figures and findings."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.plot import canvas, label_lines, log_axis
from metalearn.system.memory import format_bytes


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    seeds = rows[rows.part == "digits"].seed.nunique()
    return {
        f"Digits: test accuracy and the last training step, means over {seeds} seeds": _digits(
            rows
        ),
        "Peak memory of a training step against the applications of the cell": _memory(rows),
        "Conditioning of I - J over training, means over the seeds": _conditioning(rows),
        "Sequences: the first token is asked at the last position": _sequence(rows),
    }


def _digits(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "digits"]
    groups = part.groupby(["core", "forward", "backward"], dropna=False, sort=False)
    return pd.DataFrame(
        {
            "core": core if core == "deq" else f"unrolled, {int(group.depth.iloc[0])} steps",
            "forward solver": forward if core == "deq" else "",
            "backward solver": backward if core == "deq" else "",
            "accuracy, %": _spread(group.accuracy),
            "forward iterations": _or_blank(group.forward_iterations),
            "backward iterations": _or_blank(group.backward_iterations),
            "gradient error": _or_blank(group.gradient_error, ".1e"),
            "condition of I - J": _or_blank(group.condition_number),
            "ms a step": f"{1e3 * group.step_s.mean():.1f}",
            "peak memory": format_bytes(int(group.peak_bytes.max())),
        }
        for (core, forward, backward), group in groups
    )


def _memory(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows[rows.part == "memory"].pivot(index="depth", columns="core")
    return pd.DataFrame(
        {
            "applications": [int(d) for d in wide.index],
            "unrolled": [format_bytes(int(b)) for b in wide.peak_bytes.unrolled],
            "DEQ": [format_bytes(int(b)) for b in wide.peak_bytes.deq],
            "unrolled, ms a step": (1e3 * wide.step_s.unrolled).round(1).tolist(),
            "DEQ, ms a step": (1e3 * wide.step_s.deq).round(1).tolist(),
        }
    )


def _conditioning(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "conditioning"]
    means = part.groupby(["jacobian_weight", "epoch"])[
        [
            "accuracy",
            "spectral_radius",
            "condition_number",
            "condition_number_worst",
            "forward_iterations",
            "backward_iterations",
        ]
    ].mean()
    return means.reset_index().rename(columns=lambda name: name.replace("_", " "))


def _sequence(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[rows.part == "sequence"]
    groups = part.groupby(["core", "depth"], dropna=False, sort=False)
    return pd.DataFrame(
        {
            "core": "DEQ" if core == "deq" else f"unrolled, {depth:.0f} steps",
            "accuracy, %": _spread(group.accuracy),
            "forward iterations": _or_blank(group.forward_iterations),
            "backward iterations": _or_blank(group.backward_iterations),
            "condition of I - J": _or_blank(group.condition_number),
            "ms a step": f"{1e3 * group.step_s.mean():.1f}",
            "peak memory": format_bytes(int(group.peak_bytes.max())),
        }
        for (core, depth), group in groups
    )


def _spread(values: pd.Series) -> str:
    """The mean, and the range over the seeds."""
    if len(values) == 1:
        return f"{values.iloc[0]:.2f}"
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def _or_blank(values: pd.Series, how: str = ".1f") -> str:
    return "" if values.isna().all() else format(values.mean(), how)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "memory": _memory_figure(rows),
        "conditioning": _conditioning_figure(rows),
        "sequence": _sequence_figure(rows),
    }


def _memory_figure(rows: pd.DataFrame) -> Figure:
    figure, (axes,) = canvas()
    for core, label in (("unrolled", "unrolled"), ("deq", "DEQ")):
        part = rows[(rows.part == "memory") & (rows.core == core)]
        axes.plot(part.depth, part.peak_bytes / 1e6, marker="o", label=label)
    log_axis(axes, "x", base=2)
    log_axis(axes, "y")
    axes.set_xlabel("applications of the cell, forward")
    axes.set_ylabel("peak memory of a training step, MB")
    label_lines(axes)
    return figure


def _conditioning_figure(rows: pd.DataFrame) -> Figure:
    figure, panels = canvas(2)
    table = _conditioning(rows)
    for axes, column, what in (
        (panels[0], "condition number", "condition number of I - J, median"),
        (panels[1], "backward iterations", "backward iterations (GMRES to 1e-4)"),
    ):
        for weight in sorted(table["jacobian weight"].unique()):
            part = table[table["jacobian weight"] == weight]
            label = f"weight {weight:g}" if weight else "no regularisation"
            axes.plot(part.epoch, part[column], marker="o", label=label)
        log_axis(axes, "x", base=2)
        axes.set_xlabel("epoch")
        axes.set_title(what)
        label_lines(axes)
    return figure


def _sequence_figure(rows: pd.DataFrame) -> Figure:
    figure, (axes,) = canvas()
    part = rows[rows.part == "sequence"]
    unrolled = part[part.core == "unrolled"].groupby("depth").accuracy.mean()
    axes.plot(unrolled.index.tolist(), unrolled.tolist(), marker="o", label="unrolled")
    deq = part[part.core == "deq"].accuracy.mean()
    axes.plot([unrolled.index.min(), unrolled.index.max()], [deq, deq], "--", label="DEQ")
    axes.set_xlabel("applications of the cell")
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 105)
    axes.legend(loc="lower right")
    return figure


def findings(rows: pd.DataFrame) -> list[str]:
    digits = rows[rows.part == "digits"]
    deq = digits[digits.core == "deq"]
    own = deq.groupby("forward", sort=False).accuracy
    lost = deq[deq.forward_converged < 0.9]
    twin = digits[digits.core == "unrolled"].accuracy.mean()
    memory = rows[rows.part == "memory"].pivot(index="depth", columns="core", values="peak_bytes")
    flat = memory.deq.max() / memory.deq.min()
    grows = memory.unrolled.iloc[-1] / memory.unrolled.iloc[0]
    found = [
        f"On digits the unrolled twin reaches {twin:.2f} %, the DEQ "
        + ", ".join(f"{by.mean():.2f} % by {name}" for name, by in own)
        + f" (means over {deq.backward.nunique()} backward solvers x {deq.seed.nunique()} seeds).",
        f"In {len(lost)} of {len(deq)} trainings over a tenth of the samples ended without a fixed "
        "point"
        + (
            f" (all by {' or '.join(lost.forward.unique())}), and accuracy with them: "
            f"{lost.accuracy.mean():.1f} % in the mean."
            if len(lost)
            else "."
        ),
        f"From {memory.index[0]:.0f} to {memory.index[-1]:.0f} applications of the cell the DEQ's "
        f"peak memory changes by a factor of {flat:.3f}, the unrolled twin's by {grows:.1f}.",
    ]
    conditioning = _conditioning(rows)
    last = conditioning[conditioning.epoch == conditioning.epoch.max()].sort_values(
        "jacobian weight"
    )
    free, held = last.iloc[0], last.iloc[-1]
    if len(last) > 1:
        found.append(
            f"After {int(free.epoch)} epochs I - J has a median condition number of "
            f"{free['condition number']:.0f} and backward takes {free['backward iterations']:.0f} "
            f"iterations; with a Jacobian-norm weight of {held['jacobian weight']:g} they are "
            f"{held['condition number']:.1f} and {held['backward iterations']:.0f}, at "
            f"{free.accuracy:.1f} and {held.accuracy:.1f} % accuracy."
        )
    sequence = rows[rows.part == "sequence"]
    unrolled = sequence[sequence.core == "unrolled"].groupby("depth").accuracy.mean()
    reached = sequence[sequence.core == "deq"]
    found.append(
        f"Where the answer stands at the other end of the sequence, the DEQ reaches "
        f"{reached.accuracy.mean():.1f} % in {reached.forward_iterations.mean():.0f} forward "
        f"iterations; unrolled {int(unrolled.index[0])} times the cell reaches "
        f"{unrolled.iloc[0]:.1f} %, {int(unrolled.index[-1])} times {unrolled.iloc[-1]:.1f} %."
    )
    return found

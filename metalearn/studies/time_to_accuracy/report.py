"""The tables, the figure and the facts of the study of training time to an accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.colours import GREY
from metalearn.studies.frame.draw import legend, lines
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.plot import DOUBLE, canvas, log_axis
from metalearn.studies.frame.table import Cell, Format, Table, make_table


def trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the "end" rows of the trainings that were validated, a row for each seed.

    `wall_s` and `cpu_s` are infinite where the accuracy was not reached, and `spent_s` is the wall
    time of training in any case.
    """
    ends = rows[(rows.part == "end") & rows.accuracy.notna()]
    reached = ends.reached.astype(bool)
    return ends.assign(
        library=ends.library.fillna(""),
        reached=reached,
        spent_s=ends.wall_s,
        wall_s=ends.wall_s.astype(float).where(reached, math.inf),
        cpu_s=ends.cpu_s.astype(float).where(reached, math.inf),
    )


def left_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the "end" rows of the trainings without a validation."""
    return rows[(rows.part == "end") & rows.accuracy.isna()][["competitor", "seed", "why"]]


def competitors(ends: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for name, part in ends.groupby("competitor", sort=False):
        yield str(name), part


def fastest(ends: pd.DataFrame) -> float:
    """Return the least median time of our experiments in seconds; infinite without any."""
    own = ends[ends.library == ""].groupby("competitor").wall_s
    return min((_quantiles(times)[1] for _, times in own), default=math.inf)


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    ends, absent = trained(rows), left_out(rows)
    found = {}
    if len(ends):
        found[f"{_title(ends)}: median over seeds, least and largest in brackets"] = _times(ends)
        found["Settings of the trainings"] = _settings(ends)
    if len(absent):
        found["Trainings that were left out"] = make_table(
            ["training", "seed", "why"], absent.values.tolist()
        )
    return found


def _title(ends: pd.DataFrame) -> str:
    first = ends.iloc[0]
    return (
        f"Training time to {100 * first.goal:g} % of 5-way 1-shot validation tasks, "
        f"{first.dataset}, {format_count(int(first.threads), 'thread')}"
    )


def _times(ends: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {
        **dict.fromkeys(["training", "reached", "s", "CPU s", "times our fastest"]),
        "meta-steps": ".0f",
        **dict.fromkeys(["validation at the end, %", "test at the end, %"], ".2f"),
    }
    shown, own = [], fastest(ends)
    for name, part in competitors(ends):
        limit = float(part.spent_s[~part.reached].min())
        shown.append(
            {
                "training": name,
                "reached": f"{part.reached.sum()} of {len(part)}",
                "s": _spread(part.wall_s, limit),
                "CPU s": _spread(part.cpu_s),
                "times our fastest": _ratio(_quantiles(part.wall_s)[1], limit, own),
                "meta-steps": part.step.median(),
                "validation at the end, %": 100 * part.accuracy.mean(),
                "test at the end, %": 100 * part.test_accuracy.mean(),
            }
        )
    return make_table(columns, shown)


def _quantiles(values: pd.Series) -> tuple[float, float, float]:
    """Return the least, the median and the largest; the median of an even number is an upper one.

    A mean of two would be infinite where one of the two did not reach the accuracy.
    """
    low, middle, high = np.quantile(values, (0.0, 0.5, 1.0), method="higher")
    return float(low), float(middle), float(high)


def _spread(values: pd.Series, limit: float = math.nan) -> Cell | None:
    """Return the median with the least and the largest value.

    Args:
        limit: the least time of a training that did not reach the accuracy.
    """
    low, middle, high = _quantiles(values)
    if not math.isfinite(middle):
        return None if math.isnan(limit) else Cell(f"more than {limit:.0f}", limit)
    ends = f" [{low:.3g}, {high:.3g}]".replace("inf", "not reached") if len(values) > 1 else ""
    return Cell(f"{middle:.3g}{ends}", float(middle))


def _ratio(seconds: float, limit: float, own: float) -> Cell | None:
    if not math.isfinite(own):
        return None
    if math.isfinite(seconds):
        return Cell(f"{seconds / own:.2f}", seconds / own)
    return Cell(f"more than {limit / own:.1f}", limit / own)


def _settings(ends: pd.DataFrame) -> Table:
    titles = ["training", "library", "setting", "statistics", "parameters", "tasks a meta-step"]
    columns = ["competitor", "library", "setting", "mode", "parameters", "meta_batch"]
    firsts = ends.groupby("competitor", sort=False).first().reset_index()[columns]
    firsts = firsts.assign(library=firsts.library.replace("", "metalearn"))
    formats = dict.fromkeys(titles) | {"parameters": ".0f", "tasks a meta-step": ".0f"}
    return make_table(formats, firsts.values.tolist())


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    ends, curve = trained(rows), rows[rows.part == "curve"]
    if curve.empty:
        return {}
    first = curve[curve.seed == curve.seed.iloc[0]]
    shown = first.assign(
        percent=100 * first.accuracy.astype(float), wall_s=first.wall_s.astype(float)
    )
    caption = f"""Validation accuracy against the training time on the wall, seed
        {curve.seed.iloc[0]}. Grey: the accuracy at which a training ends. {_title(ends)}."""
    figure, (axes,) = canvas(width=DOUBLE, height=2.6, caption=caption)
    log_axis(axes, "x")
    lines(axes, shown, "wall_s", "percent", "competitor", direct=False)
    axes.axhline(100 * float(ends.goal.iloc[0]), color=GREY, lw=0.8, ls="--")
    axes.set(xlabel="seconds of training", ylabel="validation accuracy, %")
    legend(figure)
    return {"time_to_accuracy": figure}


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the times of each competitor, and the trainings that did not reach the accuracy."""
    ends = trained(rows)
    return {
        "goal": 100 * float(ends.goal.iloc[0]) if len(ends) else math.nan,
        "keep_memory": ends.keep_memory.iloc[0] if len(ends) else "",
        "competitors": [
            {
                **{"name": name, "seeds": len(part), "reached": int(part.reached.sum())},
                **{"wall_s": _quantiles(part.wall_s)[1], "cpu_s": _quantiles(part.cpu_s)[1]},
                "test": 100 * part.test_accuracy.mean(),
            }
            for name, part in competitors(ends)
        ],
        "missed": [
            {**row, "percent": 100 * row["accuracy"]}
            for row in ends[~ends.reached].to_dict("records")
        ],
        "left_out": left_out(rows).to_dict("records"),
    }

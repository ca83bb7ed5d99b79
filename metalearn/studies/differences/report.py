"""The tables, figures and facts of the study of differences: each change beside its base."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy.special import stdtrit

from metalearn.studies.frame.accuracy import (
    accuracy_cell,
    budget_title,
    own_rows,
    pooled,
    test_rows,
)
from metalearn.studies.frame.colours import BLUE, VERMILLION
from metalearn.studies.frame.draw import Mark, dots
from metalearn.studies.frame.findings import format_count, format_number
from metalearn.studies.frame.plot import DOUBLE, canvas
from metalearn.studies.frame.published.accuracy import join_distinct
from metalearn.studies.frame.table import Cell, Format, Table, make_table
from metalearn.studies.frame.validation_curve import best_and_last, falls, span, step_seconds
from metalearn.system.provenance import short
from metalearn.training.estimate import Estimate

STARTS = {
    "authors": "the authors' code",
    "paper": "the paper's algorithm",
    "stable": "the stable inner loop",
}


def groups(rows: pd.DataFrame, base: str, mode: str = "transductive") -> dict[str, pd.DataFrame]:
    """Return the test rows of each change of a base, a row for each seed. The base comes first."""
    own = own_rows(rows, mode)
    part = own[own.base == base].groupby("change", sort=False)
    return {str(change): group for change, group in part}


def _bases(rows: pd.DataFrame) -> list[str]:
    return [str(base) for base in own_rows(rows).base.unique()]


def _curve(rows: pd.DataFrame, change: str) -> pd.DataFrame:
    """Select the validations of a change's seeds."""
    return rows[(rows.part == "curve") & (rows.change == change)]


def label(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    return STARTS.get(first.change) or f"{first.subject} {first.value}"


def difference(group: pd.DataFrame, start: pd.DataFrame) -> Estimate:
    """Estimate how far a change's accuracy lies from the base's, in points.

    The 95 % interval depends on the seeds:

    - The base has more seeds than the change: the prediction interval of normal values for the
      mean of as many further seeds of the base. It is too wide rather than too narrow: the change
      shares its seeds with the base, which draws the two nearer.
    - Both have the same seeds, several: the interval of the paired differences.
    - Both have one seed: both intervals over tasks together, as of independent samples. The
      variation between seeds is left out.
    """
    if len(start) > len(group):
        gain = float(group.accuracy.mean() - start.accuracy.mean())
        return Estimate(100 * gain, 100 * _prediction_interval(start, len(group)))
    both = group.set_index("seed").accuracy - start.set_index("seed").accuracy
    both = both.dropna().astype(float)
    if len(both) > 1:
        return Estimate.of(100 * both)
    a, b = pooled(group), pooled(start)
    return Estimate(100 * (a.mean - b.mean), 100 * math.hypot(a.interval, b.interval))


def _prediction_interval(start: pd.DataFrame, more: int) -> float:
    """Return half the 95 % prediction interval of the mean of `more` further seeds."""
    n = len(start)
    spread = float(start.accuracy.astype(float).std())
    return float(stdtrit(n - 1, 0.975)) * spread * math.sqrt(1 / more + 1 / n)


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    return {
        f"One change at a time from {STARTS[base]}: {_budget(rows, base)}": _changes(rows, base)
        for base in _bases(rows)
    } | {"Batch statistics and inner steps at test, of the same runs: accuracy in %": _swept(rows)}


def _budget(rows: pd.DataFrame, base: str) -> str:
    every = groups(rows, base)
    own, *others = [group.seed.nunique() for group in every.values()]
    most = max(others, default=own)
    seeds = format_count(most, "seed") + (f" ({own} of the base)" if own != most else "")
    return f"{budget_title(next(iter(every.values())))}, {seeds}"


def _changes(rows: pd.DataFrame, base: str) -> Table:
    columns: dict[str, Format | None] = {
        **dict.fromkeys(["change", "to", "test accuracy, %", "difference", "inductive"]),
        **{"best validation": ".1f", "at meta-step": None, "last": ".1f"},
        **dict.fromkeys(["negative curvature until the best", "in all"], _format_share),
        **{"s a meta-step": ".3g", "commit": None, "ended early": None},
    }
    every, inductive = groups(rows, base), groups(rows, base, "inductive")
    found = []
    for change, group in every.items():
        first, curve = group.iloc[0], _curve(rows, change)
        best, last = best_and_last(curve)
        row: dict[str, Any] = {
            "change": "none" if change == base else first.subject,
            "to": first.value,
            "test accuracy, %": accuracy_cell(group),
            "inductive": accuracy_cell(inductive[change]),
            "best validation": 100 * best.accuracy.mean(),
            "at meta-step": Cell(span(best), float(best.step.min())),
            "last": 100 * last.accuracy.mean(),
            "negative curvature until the best": 100 * best.negative_curvature.astype(float).mean(),
            "in all": 100 * last.negative_curvature.astype(float).mean(),
            "s a meta-step": step_seconds(curve),
            "commit": ", ".join(dict.fromkeys(map(short, group.commit.dropna()))),
            "ended early": join_distinct(why.split(";")[0] for why in group.why.dropna()),
        }
        if change != base and base in every:
            gain = difference(group, every[base])
            row["difference"] = Cell(format_number(gain, "+.2f"), gain.mean)
        found.append(row)
    return make_table(columns, found)


def _format_share(percent: float) -> str:
    return f"{percent:.0f} % of solves"


def _swept(rows: pd.DataFrame) -> Table:
    test = test_rows(rows)
    modes = test["mode"].unique()
    starts = test[test.change.isin(STARTS)].groupby(["base", "inner_steps"], sort=False)
    found = [
        [
            STARTS[str(base)],
            float(group.inner_steps.iloc[0]),
            *(accuracy_cell(group[group["mode"] == mode]) for mode in modes),
        ]
        for (base, _), group in starts
    ]
    return make_table(["of", "inner steps at test", *modes], found)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {base: _dots(rows, base) for base in _bases(rows)}


def _dots(rows: pd.DataFrame, base: str) -> Figure:
    every = groups(rows, base)
    several = len({len(group) for group in every.values()}) > 1
    caption = f"""Test accuracy after one change at a time from {STARTS[base]}, with 95 % intervals
        over {"seeds where there are several, else over tasks" if several else "the tasks"}.
        {"Shaded: the 95 % prediction interval of one more run of the base." if several else ""}"""
    figure, (axes,) = canvas(width=DOUBLE, height=0.7 + 0.14 * len(every), caption=caption)
    dots(
        axes,
        [
            Mark.of(label(group), _percent(group), VERMILLION if change == base else BLUE)
            for change, group in every.items()
        ],
    )
    if base in every:
        level = _percent(every[base]).mean
        axes.axvline(level, color=VERMILLION, linewidth=0.8)
        if len(every[base]) > 1:
            width = 100 * _prediction_interval(every[base], 1)
            reach = (level - width, level + width)
            axes.axvspan(*reach, color=VERMILLION, alpha=0.12, linewidth=0)
    axes.set_xlabel("test accuracy, %, transductive")
    return figure


def _percent(group: pd.DataFrame) -> Estimate:
    value = pooled(group)
    return Estimate(100 * value.mean, 100 * value.interval)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the facts of each base that was judged, and the changes that guards stopped."""
    stopped = rows[rows.part == "stopped"].change.unique()
    bases = [_facts(rows, base) for base in _bases(rows) if base in groups(rows, base)]
    return {"bases": bases, "judged": not own_rows(rows).empty, "stopped": list(stopped)}


def _facts(rows: pd.DataFrame, base: str) -> dict[str, Any]:
    every = groups(rows, base)
    start, inductive = every[base], groups(rows, base, "inductive").get(base)
    gains: list[dict[str, Any]] = [
        {"change": label(group), "gain": difference(group, start)}
        for change, group in every.items()
        if change != base
    ]
    gains.sort(key=lambda row: -abs(row["gain"].mean))
    raised = [row for row in gains if row["gain"].mean > row["gain"].interval]
    lowered = [row for row in gains if row["gain"].mean < -row["gain"].interval]
    level = 100 * float(start.accuracy.mean())
    return {
        "start": STARTS[base],
        "budget": _budget(rows, base),
        "accuracy": accuracy_cell(start).text,
        "raised": raised,
        "lowered": lowered,
        "changes": len(gains),
        "within": len(gains) - len(raised) - len(lowered),
        "false_positives": 0.05 * len(gains),
        "falls": falls({label(group): _curve(rows, c) for c, group in every.items()}),
        "mode_gain": None if inductive is None else level - 100 * inductive.accuracy.mean(),
        "steps": start.steps.iloc[0],
        "level": level,
    }

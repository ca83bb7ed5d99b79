"""The tables, figure and facts of the study of CG iterations at a trained level."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.cg.report import CURVATURES
from metalearn.studies.frame.accuracy import budget_title, own_rows
from metalearn.studies.frame.draw import legend, lines
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.groups import means
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.frame.table import Format, Table, make_cell, make_table
from metalearn.studies.frame.validation_curve import step_seconds
from metalearn.studies.iterations.errors import LEFT_OUT, REFERENCES
from metalearn.training.estimate import Estimate

NO_CURVATURE = "none"
"""The curvature of the runs without CG iterations, which belong to both series."""
NAMES = {NO_CURVATURE: "none (first-order)", **CURVATURES}


def series(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Iterate over (curvature, its rows and those without CG iterations)."""
    for curvature in CURVATURES:
        if (rows.curvature == curvature).any():
            yield curvature, rows[rows.curvature.isin([curvature, NO_CURVATURE])]


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    test = own_rows(rows, "transductive")
    if test.empty:
        columns = ["curvature", "iterations", "seed", "why"]
        stopped = rows[rows.part == "stopped"][columns]
        return {"Runs that a guard stopped": make_table(columns, stopped.values.tolist())}
    return {
        f"{_setting(test)}; ± is the 95 % interval over seeds": _accuracy(rows),
        "Tasks behind the meta-gradient's errors, over all seeds": _references(rows),
    }


def _groups(rows: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Iterate over (curvature, CG iterations, rows of all seeds), each curvature in one stretch."""
    for curvature in NAMES:
        part = rows[rows.curvature == curvature]
        for n in sorted(part.iterations.unique()):
            yield curvature, int(n), part[part.iterations == n]


def _accuracy(rows: pd.DataFrame) -> Table:
    columns: dict[str, Format | None] = {
        **dict.fromkeys(["curvature", "CG iterations", "seeds"]),
        **dict.fromkeys(["test accuracy, %", "least of the seeds, %", "inductive, %"], ".2f"),
    }
    for reference in REFERENCES:
        columns |= {f"gradient error, {reference}": ".2g", f"angle, {reference}, degrees": ".2g"}
    columns |= {"negative curvature, % of solves": ".1f", "s a meta-step": ".3g"}
    found = []
    for curvature, n, group in _groups(rows):
        test, curve = own_rows(group, "transductive"), group[group.part == "curve"]
        row: dict[str, Any] = {
            **{"curvature": NAMES[curvature], "CG iterations": n, "seeds": test.seed.nunique()},
            "test accuracy, %": _percent(test),
            "least of the seeds, %": 100 * test.accuracy.min(),
            "inductive, %": _percent(own_rows(group, "inductive")),
            "ended early": len(group[group.part == "stopped"])
            + int((test.why.notna() & (test.why != "")).sum()),
        }
        for reference in REFERENCES:
            errors = _errors(group, reference)
            row[f"gradient error, {reference}"] = errors.error.mean()
            row[f"angle, {reference}, degrees"] = errors.angle.mean()
        if len(curve):
            last = curve.groupby("seed").negative_curvature.last().astype(float)
            row["negative curvature, % of solves"] = 100 * last.mean()
            row["s a meta-step"] = step_seconds(curve)
        found.append(row)
    return make_table({**columns, "ended early": None}, found)


def _references(rows: pd.DataFrame) -> Table:
    reasons = [f"left out: {reason}" for reason in LEFT_OUT]
    columns: dict[str, Format | None] = {
        **dict.fromkeys(["curvature", "CG iterations", "reference", "tasks", "compared", *reasons]),
        **{"inner gradient norm, median": ".2g", "single task's error, median": ".2g"},
    }
    found = [
        [
            *(NAMES[curvature], n, reference, _tasks(errors), int(errors.compared.sum())),
            *(int(errors[reason].sum()) for reason in LEFT_OUT),
            *(errors.inner_grad_norm.median(), errors.task_error.median()),
        ]
        for curvature, n, group in _groups(rows)
        for reference in REFERENCES
        for errors in [_errors(group, reference)]
    ]
    return make_table(columns, found)


def _errors(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return the "error" rows of a reference; an error of one compared task alone is left out."""
    columns = ["reference", "error", "angle", "task_error", "compared", "inner_grad_norm"]
    part = rows[rows.part == "error"].reindex(columns=["seed", "iterations", *columns, *LEFT_OUT])
    part = part[part.reference == reference].astype({"error": float, "angle": float})
    several = part.compared.astype(float) > 1
    return part.assign(error=part.error.where(several), angle=part.angle.where(several))


def _tasks(errors: pd.DataFrame) -> int:
    return int(errors[["compared", *LEFT_OUT]].sum().sum())


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    test = own_rows(rows, "transductive")
    if test.empty:
        return {}
    caption = f"""Test accuracy, relative error of the meta-gradient and time of a meta-step against
        the CG iterations of training: means over the seeds, with 95 % intervals as bands.
        {_setting(test)}."""
    figure, panels = canvas(3, height=2.0, caption=caption)
    accuracy, error, seconds = panels
    log_axis(error, "y", subs=(1, 2, 5))
    numbers = sorted(int(n) for n in test.iterations.unique())
    for axes, found in zip(panels, _curves(rows), strict=True):
        at = found.assign(at=found.iterations.map(numbers.index)).sort_values("at", kind="stable")
        shown = means(at.dropna(subset="value"), ["line", "at"], "value")
        lines(axes, shown, "at", "value", "line", interval="half", direct=False)
        axes.set_xticks(range(len(numbers)), [f"{n}" for n in numbers])
        axes.set_xlabel("CG iterations (0: first-order)")
    seconds.set_ylim(bottom=0)
    accuracy.set_ylabel("test accuracy, %")
    error.set_ylabel("relative error")
    seconds.set_ylabel("seconds a meta-step")
    legend(figure)
    return {"iterations": figure}


def _curves(rows: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Return a row for each run of the accuracies, the errors and the seconds.

    The columns are `line`, `iterations` and `value`.
    """
    accuracies, errors, seconds = [], [], []
    for curvature, part in series(rows):
        name = CURVATURES[curvature]
        own = own_rows(part, "transductive")
        accuracies.append(own.assign(line=name, value=100 * own.accuracy.astype(float)))
        for reference in REFERENCES:
            found = _errors(part, reference)
            errors.append(found.assign(line=f"{name}, {reference}", value=found.error))
        timed = [
            (name, n, step_seconds(run))
            for (n, _), run in part[part.part == "curve"].groupby(["iterations", "seed"])
        ]
        seconds.append(pd.DataFrame(timed, columns=["line", "iterations", "value"]))
    return tuple(pd.concat(each) for each in (accuracies, errors, seconds))


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what the findings tell of accuracies, of the meta-gradient's errors and of guards."""
    test = own_rows(rows, "transductive")
    found: dict[str, Any] = {"stopped": int((rows.part == "stopped").sum()), "runs": len(test)}
    if test.empty:
        return found
    worst = test.sort_values("accuracy").iloc[0]
    return found | {
        "setting": _setting(test),
        "best": [
            {"curvature": CURVATURES[curvature], "iterations": n, "accuracy": best.text}
            for curvature, part in series(test)
            for n in [part.groupby("iterations").accuracy.mean().idxmax()]
            for best in [make_cell(_percent(part[part.iterations == n]), ".2f")]
        ],
        "changes": _changes(test),
        "worst": {**worst, "accuracy": 100 * worst.accuracy, "curvature": NAMES[worst.curvature]},
        "errors": [
            {"reference": reference, "curvature": CURVATURES[curvature], "by": means.to_dict()}
            for reference in REFERENCES
            for curvature, part in series(rows)
            for means in [_errors(part, reference).groupby("iterations").error.mean().dropna()]
            if len(means)
        ],
        "left_out": [
            {
                "reference": reference,
                "tasks": _tasks(errors),
                "reasons": {r: int(errors[r].sum()) for r in LEFT_OUT if errors[r].sum()},
            }
            for reference in REFERENCES
            for errors in [_errors(rows, reference)]
        ],
    }


def _changes(test: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the gains from each number of iterations to the next, in points of paired seeds."""
    found = []
    for curvature, part in series(test):
        table = part.pivot(index="seed", columns="iterations", values="accuracy").astype(float)
        for before, after in pairwise(sorted(part.iterations.astype(int).unique())):
            gain = 100 * (table[after] - table[before]).dropna()
            if len(gain):
                change = {"before": before, "after": after, "seeds": len(gain)}
                found.append(
                    {"curvature": CURVATURES[curvature], **change, "gain": Estimate.of(gain)}
                )
    return found


def _setting(test: pd.DataFrame) -> str:
    return f"{budget_title(test)}, {format_count(test.seed.nunique(), 'seed')}"


def _percent(runs: pd.DataFrame) -> Estimate | None:
    """Estimate the accuracy over seeds, in percent; None without runs."""
    return Estimate.of(100 * runs.accuracy.astype(float)) if len(runs) else None

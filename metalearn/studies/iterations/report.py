"""The tables, figure and findings of the study of CG iterations at a trained level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metalearn.studies.cg.report import CURVATURES
from metalearn.studies.fewshot.report import setting_title, test_rows
from metalearn.studies.frame.plot import COLOURS, canvas, log_axis
from metalearn.studies.frame.validation_curve import step_seconds
from metalearn.studies.iterations.errors import LEFT_OUT, REFERENCES
from metalearn.training.estimate import Estimate

NO_CURVATURE = "none"
"""The curvature of the runs without CG iterations, which belong to both series."""
NAMES = {NO_CURVATURE: "none (first-order)", **CURVATURES}
LINES = dict(zip(REFERENCES, ("o-", "s--"), strict=True))


def judged(rows: pd.DataFrame, mode: str = "transductive") -> pd.DataFrame:
    """Select a row for each run: its test accuracy by the batch statistics that `mode` names."""
    test = test_rows(rows)
    return test[test["mode"] == mode]


def series(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Iterate over (curvature, its rows and those without CG iterations)."""
    for curvature in CURVATURES:
        if (rows.curvature == curvature).any():
            yield curvature, rows[rows.curvature.isin([curvature, NO_CURVATURE])]


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    test = judged(rows)
    if test.empty:
        return {"Runs that a guard stopped": _stopped(rows)}
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


def _accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for curvature, n, group in _groups(rows):
        test, curve = judged(group), group[group.part == "curve"]
        row: dict[str, Any] = {"curvature": NAMES[curvature], "CG iterations": n}
        row["seeds"] = test.seed.nunique()
        row["test accuracy, %"] = _percent(test.accuracy)
        row["least of the seeds, %"] = f"{100 * test.accuracy.min():.2f}"
        row["inductive, %"] = _percent(judged(group, "inductive").accuracy)
        for reference in REFERENCES:
            errors = _errors(group, reference)
            row[f"gradient error, {reference}"] = _number(errors.error.mean())
            row[f"angle, {reference}, degrees"] = _number(errors.angle.mean())
        last = curve.groupby("seed").negative_curvature.last().astype(float)
        share = "" if last.isna().all() else f"{100 * last.mean():.1f}"
        row["negative curvature, % of solves"] = share
        row["s a meta-step"] = "" if curve.empty else f"{step_seconds(curve):.3g}"
        row["ended early"] = len(group[group.part == "stopped"]) + int(_given(test.why).sum())
        found.append(row)
    return pd.DataFrame(found)


def _references(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for curvature, n, group in _groups(rows):
        for reference in REFERENCES:
            errors = _errors(group, reference)
            row: dict[str, Any] = {"curvature": NAMES[curvature], "CG iterations": n}
            row |= {"reference": reference, "tasks": _tasks(errors)}
            row["compared"] = int(errors.compared.sum())
            row |= {f"left out: {reason}": int(errors[reason].sum()) for reason in LEFT_OUT}
            row["inner gradient norm, median"] = _number(errors.inner_grad_norm.median())
            row["single task's error, median"] = _number(errors.task_error.median())
            found.append(row)
    return pd.DataFrame(found)


def _stopped(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.part == "stopped"][["curvature", "iterations", "seed", "why"]]


def _errors(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Select a row for each run; a column that no run has is empty."""
    columns = ["reference", "error", "angle", "task_error", "compared", "inner_grad_norm"]
    part = rows[rows.part == "error"].reindex(columns=["seed", "iterations", *columns, *LEFT_OUT])
    return part[part.reference == reference].astype({"error": float, "angle": float})


def _tasks(errors: pd.DataFrame) -> int:
    return int(errors[["compared", *LEFT_OUT]].sum().sum())


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    test = judged(rows)
    if test.empty:
        return {}
    numbers = sorted(int(n) for n in test.iterations.unique())
    figure, (accuracy, error, seconds) = canvas(3, width=3.4, height=2.9)
    for i, (curvature, part) in enumerate(series(rows)):
        draw = _Series(numbers, CURVATURES[curvature], COLOURS[i], shift=0.12 * i - 0.06)
        own, curve = judged(part), part[part.part == "curve"]
        draw(accuracy, own.assign(value=100 * own.accuracy.astype(float)))
        for reference, style in LINES.items():
            errors = _errors(part, reference).dropna(subset="error")
            draw(error, errors.assign(value=errors.error), style)
        timed = [(n, step_seconds(run)) for (n, _), run in curve.groupby(["iterations", "seed"])]
        draw(seconds, pd.DataFrame(timed, columns=["iterations", "value"]))
    log_axis(error, "y", base=_base(error))
    seconds.set_ylim(bottom=0)
    accuracy.set(ylabel="test accuracy, %", title="Accuracy")
    error.set(ylabel="relative error", title="Meta-gradient")
    seconds.set(ylabel="seconds a meta-step", title="Time")
    for axes in (accuracy, error, seconds):
        axes.set_xticks(range(len(numbers)), [f"{n}" for n in numbers])
        axes.set_xlabel("CG iterations (0: first-order)")
    accuracy.legend(frameon=False, fontsize=8)
    styles = [Line2D([], [], color="black", ls=s[1:], marker=s[0]) for s in LINES.values()]
    error.legend(styles, list(LINES), frameon=False, fontsize=8)
    return {"iterations": figure}


@dataclass(frozen=True)
class _Series:
    """A curvature's line in a panel: the means over seeds, and each seed as a small point."""

    numbers: list[int]
    label: str
    colour: str
    shift: float

    def __call__(self, axes: Axes, runs: pd.DataFrame, style: str = "o-") -> None:
        """Draw the column `value` against `iterations`."""
        if runs.empty:
            return
        at = runs.iterations.map(self.numbers.index)
        means = runs.value.groupby(at).mean()
        axes.plot(means.index, means, style, color=self.colour, label=self.label)
        faint: dict[str, Any] = {"color": self.colour, "alpha": 0.4, "markersize": 2.5}
        axes.plot(at + self.shift, runs.value, style[0], **faint)


def _base(axes: Axes) -> int:
    """The base of a logarithmic axis that leaves at least a few ticks."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    low, high = min(map(np.min, drawn), default=1.0), max(map(np.max, drawn), default=1.0)
    return 10 if high > 30 * low else 2


def findings(rows: pd.DataFrame) -> list[str]:
    test, found = judged(rows), []
    if len(test):
        found += [f"Setting: {_setting(test)}.", *_best(test), *_steps(test)]
        found += [_least(test), *_error_range(rows), *_left_out(rows)]
    stopped = rows[rows.part == "stopped"]
    if len(stopped):
        found.append(f"Runs that a guard stopped before their first validation: {len(stopped)}.")
    return found


def _setting(test: pd.DataFrame) -> str:
    first, seeds = test.iloc[0], test.seed.nunique()
    return (
        f"{setting_title(test)}, {int(first.steps):,} meta-steps of {int(first.meta_batch)} tasks, "
        f"{int(first.tasks):,} test tasks, {seeds} seed{'s' if seeds > 1 else ''}"
    )


def _best(test: pd.DataFrame) -> list[str]:
    found = []
    for curvature, part in series(test):
        means = part.groupby("iterations").accuracy.mean()
        n: Any = means.idxmax()
        best = _percent(part[part.iterations == n].accuracy)
        found.append(
            f"Best number of CG iterations, {CURVATURES[curvature]}: {n} (test accuracy {best} %)."
        )
    return found


def _steps(test: pd.DataFrame) -> list[str]:
    """The change of accuracy from each number of iterations to the next, over paired seeds."""
    found = []
    for curvature, part in series(test):
        table = part.pivot(index="seed", columns="iterations", values="accuracy").astype(float)
        for before, after in pairwise(sorted(int(n) for n in part.iterations.unique())):
            gain = 100 * (table[after] - table[before]).dropna()
            if gain.empty:
                continue
            said = f"{gain.mean():+.2f} points, one seed"
            if len(gain) > 1:
                change = Estimate.of(gain)
                where = "beyond" if abs(change.mean) > change.interval else "within"
                said = f"{change.mean:+.2f} ± {change.interval:.2f} points, {where} the interval"
            found.append(
                f"Change of test accuracy, {CURVATURES[curvature]}, {before} to {after} "
                f"CG iterations: {said}."
            )
    return found


def _least(test: pd.DataFrame) -> str:
    run: Any = test.sort_values("accuracy").iloc[0]
    return (
        f"Least test accuracy of all {len(test)} runs: {100 * run.accuracy:.2f} % (curvature "
        f"{NAMES[run.curvature]}, {int(run.iterations)} CG iterations, seed {int(run.seed)})."
    )


def _error_range(rows: pd.DataFrame) -> list[str]:
    found = []
    for reference in REFERENCES:
        for curvature, part in series(rows):
            means = _errors(part, reference).groupby("iterations").error.mean().dropna()
            each = ", ".join(f"{value:.2g} at {n}" for n, value in means.items())
            if each:
                found.append(
                    f"Relative error of the meta-gradient, {reference}, {CURVATURES[curvature]}, "
                    f"by CG iterations: {each}."
                )
    return found


def _left_out(rows: pd.DataFrame) -> list[str]:
    found = []
    for reference in REFERENCES:
        errors = _errors(rows, reference)
        tasks, reasons = _tasks(errors), []
        for reason in LEFT_OUT:
            if errors[reason].sum():
                reasons.append(f"{reason} {int(errors[reason].sum())}")
        said = f"{tasks - int(errors.compared.sum())} of {tasks}"
        if reasons:
            said += f" ({', '.join(reasons)})"
        found.append(f"Tasks left out of the reference, {reference}: {said}.")
    return found


def _percent(accuracy: pd.Series) -> str:
    """The text "98.21 ± 0.12", with the 95 % interval over seeds; without it for one seed."""
    if accuracy.empty:
        return ""
    found = Estimate.of(100 * accuracy)
    return f"{found.mean:.2f}" + (f" ± {found.interval:.2f}" if len(accuracy) > 1 else "")


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.2g}"


def _given(values: pd.Series) -> pd.Series:
    return values.notna() & (values != "")

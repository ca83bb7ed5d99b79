"""The tables, figures and facts of the study of CG iterations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.plot import COLOURS, canvas, label_lines, log_axis
from metalearn.studies.frame.table import Cell, Format, Table, make_table
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

NAMES = {
    "cg": "CG",
    "gauss_newton": "CG, Gauss-Newton",
    "damped": "CG, damped",
    "neumann": "Neumann",
    "nystrom": "Nyström",
    "nystrom_cg": "CG, Nyström",
    "jacobi_cg": "CG, Jacobi",
    "warm_cg": "CG, warm start",
}
SWEPT = ("cg", "gauss_newton")
"""The methods trained with every number of iterations; the study trains others with one number."""

CURVATURES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
ERROR = "relative error of the meta-gradient"
PLACES = {"adapted": "after the inner steps", "minimum": "at the inner minimum"}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    solve, prox = format_count(common_number(rows), "iteration"), first_prox(rows)
    return {
        f"What to choose: every method with {solve}, lambda = {prox:g}": _choice(rows),
        "Accuracy on held-out classes, %, means over the seeds with 95 % intervals": (
            _accuracy(rows)
        ),
        "Single tasks' systems by CG, medians over those whose A is positive definite": (
            _systems(rows)
        ),
        "The certificate's estimate beside the true error, where a Ritz value is positive": (
            _certificates(rows)
        ),
        "Cost of one meta-gradient, its inner loop included": _cost(rows),
    }


def part_of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows[rows.part == name]


def task_rows(rows: pd.DataFrame) -> pd.DataFrame:
    part = part_of(rows, "task")
    return part.assign(definite=part.definite.astype(bool))


def certified_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the solves that have both a certificate and a known true error."""
    part = task_rows(rows)
    part = part[part.certificate.notna() & part.true_error.notna()]
    return part.assign(holds=part.certificate >= part.true_error)


def first_prox(rows: pd.DataFrame) -> float:
    return float(part_of(rows, "accuracy").prox.iloc[0])


def common_number(rows: pd.DataFrame) -> int:
    """Return the number of iterations that most methods were trained with."""
    part = part_of(rows, "accuracy")
    ways = part[part.iterations > 0].groupby("iterations").way.nunique()
    return int(ways[ways == ways.max()].index[-1])


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every training that did not stop."""
    part = part_of(rows, "accuracy")
    return part[part.test_accuracy.notna()]


def within_time(rows: pd.DataFrame, prox: float) -> tuple[float, pd.DataFrame]:
    """Compare trainings of one prox at the same time.

    Returns:
        The seconds of the shortest training, and the last validation of each training within them.
    """
    part = part_of(rows, "accuracy")
    part = part[(part.prox == prox) & part.train_s.notna()]
    keys = ["way", "iterations", "seed"]
    budget = float(part.groupby(keys).train_s.max().min())
    return budget, part[part.train_s <= budget].groupby(keys, sort=False).tail(1)


def percent(values: pd.Series) -> Estimate | float | None:
    """Return the mean of shares in percent, with an interval where there are several."""
    known = 100 * values.dropna()
    if len(known) < 2:
        return None if known.empty else float(known.iloc[0])
    return Estimate.of(known)


Value = Callable[[pd.DataFrame], Any]
Columns = Mapping[str, tuple[Value, Format | None]]
"""The value of a group of rows and its format, by the column's title."""


def _grouped(part: pd.DataFrame, by: list[str], columns: Columns) -> Table:
    """Make a table with a row for each group."""
    groups = [group for _, group in part.groupby(by, sort=False)]
    cells = [[value(group) for value, _ in columns.values()] for group in groups]
    return make_table({title: form for title, (_, form) in columns.items()}, cells)


def _first(column: str) -> Value:
    """Return a value that all rows of a group share."""
    return lambda group: group[column].tolist()[0]


def _median(column: str) -> Value:
    return lambda group: group[column].median()


def _percent(column: str) -> Value:
    return lambda group: percent(group[column])


def _method(group: pd.DataFrame) -> str:
    return NAMES[group.way.iloc[0]] if group.iterations.iloc[0] else "first-order"


def _bytes(value: float) -> str:
    return format_bytes(int(value))


def _choice(rows: pd.DataFrame) -> Table:
    number, prox = common_number(rows), first_prox(rows)
    part = rows[rows.iterations.isin((0, number)) & ((rows.prox == prox) | (rows.part == "cost"))]
    part = part.assign(ms=1e3 * part_of(part, "cost").gradient_s)
    at_minimum, adapted = ["error", "angle", "products"], ["true_error", "true_angle"]
    part[at_minimum] = part[at_minimum].where(part.point == "minimum", axis=0)
    part[adapted] = part[adapted].where(part.point == "adapted", axis=0)
    part["stopped"] = 100 * part.negative_curvature.where(part.point == "adapted")
    columns: Columns = {
        "method": (_method, None),
        "error at the minimum": (_median("error"), ".2g"),
        "angle there": (_median("angle"), "{:.0f}°".format),
        "error in training": (_median("true_error"), ".2g"),
        "angle in training": (_median("true_angle"), "{:.0f}°".format),
        "stopped at negative curvature": (lambda g: g.stopped.mean(), "{:.0f} %".format),
        "products": (_median("products"), ".0f"),
        "ms in training": (_median("ms"), ".0f"),
        "peak memory": (_median("peak_bytes"), _bytes),
        "accuracy, %": (_percent("test_accuracy"), ".1f"),
    }
    return _grouped(part, ["way", "iterations"], columns)


def _accuracy(rows: pd.DataFrame) -> Table:
    parts, keys = [], ["way", "iterations", "seed"]
    for prox in final_rows(rows).prox.unique():
        budget, timed = within_time(rows, prox)
        within = timed.set_index(keys).validation_accuracy.rename("within")
        parts.append(final_rows(rows[rows.prox == prox]).join(within, on=keys).assign(time=budget))
    final = pd.concat(parts)
    final["stopped"] = 100 * final.negative_curvature.where(final.iterations > 0)
    columns: Columns = {
        "lambda": (_first("prox"), "g"),
        "method": (_method, None),
        "iterations": (_first("iterations"), ".0f"),
        "runs": (len, None),
        "after the same tasks (test)": (_percent("test_accuracy"), ".1f"),
        "after the same seconds (validation)": (_percent("within"), ".1f"),
        "seconds": (_first("time"), ".1f"),
        "ms a meta-step": (lambda g: 1e3 * (g.train_s / g.step).mean(), ".0f"),
        "stopped at negative curvature": (lambda g: g.stopped.mean(), "{:.0f} %".format),
    }
    return _grouped(final, ["prox", "way", "iterations"], columns)


def _systems(rows: pd.DataFrame) -> Table:
    part = task_rows(rows)
    measured = ["condition", "error", "energy_error", "rate_bound", "residual"]
    part = part.assign(condition=part.eigen_high / part.eigen_low)
    part[measured] = part[measured].where(part.definite, axis=0)
    columns: Columns = {
        "lambda": (_first("prox"), "g"),
        "where": (lambda g: PLACES[g.point.iloc[0]], None),
        "curvature": (lambda g: CURVATURES[g.curvature.iloc[0]], None),
        "iterations": (_first("iterations"), ".0f"),
        "definite": (lambda g: Cell(f"{sum(g.definite)} of {len(g)}", sum(g.definite)), None),
        "condition number": (_median("condition"), ".2g"),
        "error": (_median("error"), ".2g"),
        "error in A's norm": (_median("energy_error"), ".2g"),
        "bound of theory": (_median("rate_bound"), ".2g"),
        "residual": (_median("residual"), ".2g"),
    }
    return _grouped(part, ["prox", "point", "curvature", "iterations"], columns)


def _certificates(rows: pd.DataFrame) -> Table:
    columns: Columns = {
        "where": (lambda g: PLACES[g.point.iloc[0]], None),
        "iterations": (_first("iterations"), ".0f"),
        "tasks": (len, None),
        "error": (_median("true_error"), ".2g"),
        "certificate": (_median("certificate"), ".2g"),
        "error within it": (lambda g: 100 * g.holds.mean(), "{:.0f} %".format),
        "least ratio": (lambda g: (g.certificate / g.true_error).min(), ".2g"),
    }
    return _grouped(certified_rows(rows), ["point", "iterations"], columns)


def _cost(rows: pd.DataFrame) -> Table:
    columns: Columns = {
        "method": (_method, None),
        "iterations": (_first("iterations"), ".0f"),
        "ms": (lambda g: 1e3 * g.gradient_s.median(), ".0f"),
        "peak memory": (_median("peak_bytes"), _bytes),
    }
    return _grouped(part_of(rows, "cost"), ["way", "iterations"], columns)


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    return {
        "error": _error_figure(rows),
        "accuracy": _accuracy_figure(rows),
        "cost": _cost_figure(rows),
    }


def _error_figure(rows: pd.DataFrame) -> Figure:
    part = task_rows(rows)
    part = part[(part.point == "minimum") & part.definite]
    figure, panels = canvas(2)
    for axes, curvature in zip(panels, CURVATURES, strict=True):
        for colour, prox in zip(COLOURS, part.prox.unique(), strict=False):
            chosen = part[(part.curvature == curvature) & (part.prox == prox)]
            medians = chosen.groupby("iterations")[["error", "rate_bound"]].median()
            if medians.empty:
                continue
            label = f"λ = {prox:g}"
            axes.plot(medians.index, medians.error, "o-", color=colour, label=label)
            bound = axes.plot(medians.index, medians.rate_bound, "--", color=colour)
            bound[0].set_label(f"bound, {label}")
        log_axis(axes, "y")
        title = f"{CURVATURES[curvature]} at the inner minimum, median task"
        axes.set(xlabel="CG iterations (0: first-order)", ylabel=ERROR, title=title)
        label_lines(axes)
    return figure


def _accuracy_figure(rows: pd.DataFrame) -> Figure:
    final = final_rows(rows)
    proxes = final.prox.unique()
    numbers = sorted(final[final.way.isin(swept_ways(final))].iterations.unique())
    figure, panels = canvas(len(proxes))
    for axes, prox in zip(panels, proxes, strict=True):
        for shift, way in enumerate(swept_ways(final)):
            group = sweep_of(final, way, prox)
            estimates = [Estimate.of(group[group.iterations == n].test_accuracy) for n in numbers]
            at = [i + 0.12 * shift for i in range(len(numbers))]
            intervals = [100 * e.interval if group.seed.nunique() > 1 else 0 for e in estimates]
            means = [100 * e.mean for e in estimates]
            axes.errorbar(at, means, intervals, fmt="o-", capsize=2, label=NAMES[way])
        axes.set_xticks(range(len(numbers)), [f"{n:g}" for n in numbers])
        axes.set(xlabel="iterations (0: first-order)", ylabel="test accuracy, %")
        axes.set_title(f"λ = {prox:g}, 95 % intervals over seeds")
        axes.legend(loc="lower left")
    return figure


def swept_ways(final: pd.DataFrame) -> list[str]:
    return [way for way in SWEPT if way in set(final.way)]


def sweep_of(final: pd.DataFrame, way: str, prox: float) -> pd.DataFrame:
    """Return a method's trainings and the first-order ones, the 0 iterations of every method."""
    part = final[final.prox == prox]
    return part[(part.way == way) | (part.iterations == 0)]


def _cost_figure(rows: pd.DataFrame) -> Figure:
    gradient, prox = part_of(rows, "gradient"), first_prox(rows)
    chosen = gradient[(gradient.point == "minimum") & (gradient.prox == prox)]
    medians = chosen.groupby(["way", "iterations"], sort=False)[["error", "gradient_s"]].median()
    figure, (axes,) = canvas(width=6.4, height=4)
    for colour, way in zip((*COLOURS, "#777777"), chosen.way.unique(), strict=False):
        part = medians.loc[way]
        part = part[part.index > 0]
        axes.plot(1e3 * part.gradient_s, part.error, "o-", color=colour, label=NAMES[way])
    first = chosen[chosen.iterations == 0]
    if not first.empty:
        at = ([1e3 * first.gradient_s.median()], [first.error.median()])
        axes.plot(*at, "k*", markersize=9, label="first-order")
    log_axis(axes, "x", base=2)
    log_axis(axes, "y", base=2)  # errors within a decade
    axes.set(xlabel="ms to differentiate at the inner minimum", ylabel=ERROR)
    axes.set_title(f"λ = {prox:g}, a dot for each number of iterations")
    label_lines(axes)
    return figure


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers that the template of the findings names."""
    task, certified = task_rows(rows), certified_rows(rows)
    solved = task[task.definite & (task.iterations > 0)].sort_values("iterations")
    systems = solved.groupby(["seed", "prox", "point", "curvature", "task"]).error
    last = task[task.iterations == task.iterations.max()]
    missed = certified[certified.definite & ~certified.holds]
    return {
        "methods": NAMES,
        "curvatures": CURVATURES,
        "places": PLACES,
        "systems": systems.ngroups,
        "falling": sum(bool((errors.diff().dropna() <= 1e-9).all()) for _, errors in systems),
        "errors": len(solved),
        "bounded": int((solved.error <= solved.rate_bound).sum()),
        "crossovers": crossovers(rows),
        "definite": _counts(last.groupby(["curvature", "point"]).definite),
        "certified": _counts(certified.groupby("point").holds),
        "missed_ratio": (missed.ritz_low / missed.eigen_low).median() if len(missed) else None,
        "plateaus": plateaus(rows),
        "timed": _timed(rows),
        "nearest": _nearest(rows),
    }


def _counts(groups: Any) -> Any:
    """Return how many of each group's rows hold."""
    return groups.agg(true="sum", total="size").reset_index().to_dict("records")


def crossovers(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare CG with the first-order gradient at the inner minimum, by median errors.

    `nearer_from` is the least number of iterations from which CG has the smaller error at every
    number measured; None where there is no such number.
    """
    part, found = task_rows(rows), []
    part = part[(part.point == "minimum") & part.definite]
    for (curvature, prox), group in part.groupby(["curvature", "prox"], sort=False):
        medians = group.groupby("iterations").error.median()
        if medians.index[0] != 0 or len(medians) < 2:
            continue
        first, solved = medians.iloc[0], medians.iloc[1:]
        farther = max(solved.index[solved >= first], default=0)
        nearer = min((int(n) for n in solved.index if n > farther), default=None)
        found.append(
            {"curvature": curvature, "prox": prox, "first_order": first, "nearer_from": nearer}
            | {"fewest": int(solved.index[0]), "error": solved.iloc[0]}
        )
    return found


def plateaus(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Find where the test accuracy stops improving, over the seeds that have every training."""
    final, found = final_rows(rows), []
    for prox, way in itertools.product(final.prox.unique(), swept_ways(final)):
        part = sweep_of(final, way, prox)
        wide = part.pivot(index="seed", columns="iterations", values="test_accuracy")
        seeds, wide = len(wide), wide.dropna()
        if len(wide) < 2 or len(wide.columns) < 2:
            continue
        number, first = plateau(wide), int(wide.columns[0])
        gains = _gains(wide, number)
        found.append(
            {
                "way": way,
                "prox": prox,
                "number": number,
                "accuracy": percent(wide[number]),
                "seeds": len(wide),
                "left_out": seeds - len(wide),
                "largest_gain": max(gains, key=lambda gain: gain.mean, default=None),
                "first": first,
                "over_first": None if number == first else _gain(wide, first, number),
            }
        )
    return found


def plateau(wide: pd.DataFrame) -> int:
    """Return the least number of iterations (columns, rising) that no larger one improves on.

    An improvement is a mean of the paired differences over the seeds (rows) that exceeds its 95 %
    interval.
    """
    return next(
        int(number)
        for number in wide.columns
        if not any(gain.mean > gain.interval for gain in _gains(wide, number))
    )


def _gains(wide: pd.DataFrame, number: Any) -> list[Estimate]:
    """Estimate the gain of every larger number of iterations."""
    numbers: list[Any] = list(wide.columns)
    return [_gain(wide, number, later) for later in numbers if later > number]


def _gain(wide: pd.DataFrame, before: Any, after: Any) -> Estimate:
    """Estimate the paired difference, in percentage points."""
    return Estimate.of(100 * (wide[after] - wide[before]))


def _timed(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Find the best validation accuracy at equal training time, of methods with all seeds."""
    found, keys = [], ["way", "iterations"]
    for prox in final_rows(rows).prox.unique():
        budget, timed = within_time(rows, prox)
        groups = timed.groupby(keys).validation_accuracy
        means = groups.mean()[groups.size() == timed.seed.nunique()].sort_values()
        if means.empty:
            continue
        way, number = means.index[-1]
        accuracy, seeds = percent(groups.get_group((way, number))), timed.seed.nunique()
        found.append(
            {"budget": budget, "prox": prox, "way": way, "number": int(number)}
            | {"accuracy": accuracy, "seeds": seeds, "compared": len(means)}
        )
    return found


def _nearest(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Rank the methods by their median error at the inner minimum."""
    number, prox = common_number(rows), first_prox(rows)
    part = part_of(rows, "gradient")
    part = part[(part.prox == prox) & (part.iterations == number) & (part.point == "minimum")]
    errors = part.groupby("way").error.median().dropna().sort_values()
    ranked = [{"way": way, "error": error} for way, error in errors.items()]
    return {"number": number, "prox": prox, "ranked": ranked} if ranked else None

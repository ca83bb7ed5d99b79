"""The tables and facts of the study of CG iterations."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from metalearn.studies.cg.rows import (
    certified_rows,
    common_number,
    final_rows,
    first_prox,
    name_of,
    part_of,
    sweep_of,
    swept_ways,
    task_rows,
    within_time,
)
from metalearn.studies.frame.findings import format_count
from metalearn.studies.frame.groups import Column, estimate, scale, tabulate
from metalearn.studies.frame.table import Cell, Table
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

CURVATURES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
PLACES = {"adapted": "after the inner steps", "minimum": "at the inner minimum"}

METHOD: Column = ("method", None, None)
LAMBDA: Column = ("prox", None, "g")
ITERATIONS: Column = ("iterations", None, ".0f")
STOPPED: Column = ("stopped", "mean", "{:.0f} %".format)
PEAK_BYTES: Column = ("peak_bytes", "median", lambda value: format_bytes(int(value)))


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


def _titled(part: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the words and the percentages that tables show."""
    pairs = zip(part.way, part.iterations, strict=True)
    return part.assign(
        method=[name_of(way) if number else "first-order" for way, number in pairs],
        where=part.point.map(PLACES),
        matrix=part.curvature.map(CURVATURES),
        percent=100 * part.test_accuracy,
        stopped=100 * part.negative_curvature.where(part.iterations > 0),
    )


def _choice(rows: pd.DataFrame) -> Table:
    number, prox = common_number(rows), first_prox(rows)
    shown = rows.iterations.isin((0, number)) | rows.iterations.isna()
    part = rows[shown & ((rows.prox == prox) | (rows.part == "cost"))]
    part = _titled(part[part.way.notna()])
    part = part.assign(ms=1e3 * part_of(part, "cost").gradient_s)
    at_minimum, adapted = ["error", "angle", "products"], ["true_error", "true_angle"]
    part[at_minimum] = part[at_minimum].where(part.point == "minimum", axis=0)
    part[adapted] = part[adapted].where(part.point == "adapted", axis=0)
    part["stopped"] = 100 * part.negative_curvature.where(part.point == "adapted")
    columns: dict[str, Column] = {
        "method": METHOD,
        "error at the minimum": ("error", "median", ".2g"),
        "angle there": ("angle", "median", "{:.0f}°".format),
        "error in training": ("true_error", "median", ".2g"),
        "angle in training": ("true_angle", "median", "{:.0f}°".format),
        "stopped at negative curvature": STOPPED,
        "products": ("products", "median", ".0f"),
        "ms in training": ("ms", "median", ".0f"),
        "peak memory": PEAK_BYTES,
        "accuracy, %": ("percent", estimate, ".1f"),
    }
    return tabulate(part, ["way", "iterations"], columns)


def _accuracy(rows: pd.DataFrame) -> Table:
    parts, keys = [], ["way", "iterations", "seed"]
    for prox in final_rows(rows).prox.unique():
        budget, timed = within_time(rows, prox)
        within = 100 * timed.set_index(keys).validation_accuracy.rename("within")
        parts.append(final_rows(rows[rows.prox == prox]).join(within, on=keys).assign(time=budget))
    final = _titled(pd.concat(parts))
    columns: dict[str, Column] = {
        "lambda": LAMBDA,
        "method": METHOD,
        "iterations": ITERATIONS,
        "runs": ("seed", len, None),
        "after the same tasks (test)": ("percent", estimate, ".1f"),
        "after the same seconds (validation)": ("within", estimate, ".1f"),
        "seconds": ("time", None, ".1f"),
        "ms a meta-step": ("ms", "mean", ".0f"),
        "stopped at negative curvature": STOPPED,
    }
    final["ms"] = 1e3 * final.train_s / final.step
    return tabulate(final, ["prox", "way", "iterations"], columns)


def _systems(rows: pd.DataFrame) -> Table:
    part = _titled(task_rows(rows))
    measured = ["condition", "error", "energy_error", "rate_bound", "residual"]
    part["condition"] = part.eigen_high / part.eigen_low
    part[measured] = part[measured].where(part.definite, axis=0)
    columns: dict[str, Column] = {
        "lambda": LAMBDA,
        "where": ("where", None, None),
        "curvature": ("matrix", None, None),
        "iterations": ITERATIONS,
        "definite": ("definite", lambda x: Cell(f"{sum(x)} of {len(x)}", sum(x)), None),
        "condition number": ("condition", "median", ".2g"),
        "error": ("error", "median", ".2g"),
        "error in A's norm": ("energy_error", "median", ".2g"),
        "bound of theory": ("rate_bound", "median", ".2g"),
        "residual": ("residual", "median", ".2g"),
    }
    return tabulate(part, ["prox", "point", "curvature", "iterations"], columns)


def _certificates(rows: pd.DataFrame) -> Table:
    part = _titled(certified_rows(rows))
    part = part.assign(within=100.0 * part.holds, ratio=part.certificate / part.true_error)
    columns: dict[str, Column] = {
        "where": ("where", None, None),
        "iterations": ITERATIONS,
        "tasks": ("task", len, None),
        "error": ("true_error", "median", ".2g"),
        "certificate": ("certificate", "median", ".2g"),
        "error within it": ("within", "mean", "{:.0f} %".format),
        "least ratio": ("ratio", "min", ".2g"),
    }
    return tabulate(part, ["point", "iterations"], columns)


def _cost(rows: pd.DataFrame) -> Table:
    part = _titled(part_of(rows, "cost"))
    columns: dict[str, Column] = {
        "method": METHOD,
        "iterations": ITERATIONS,
        "ms": ("gradient_s", "median", scale(1e3, ".0f")),
        "peak memory": PEAK_BYTES,
    }
    return tabulate(part, ["way", "iterations"], columns)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers that the template of the findings names."""
    task, certified = task_rows(rows), certified_rows(rows)
    solved = task[task.definite & (task.iterations > 0)].sort_values("iterations")
    systems = solved.groupby(["seed", "prox", "point", "curvature", "task"]).error
    last = task[task.iterations == task.iterations.max()]
    missed = certified[certified.definite & ~certified.holds]
    return {
        "methods": {way: name_of(way) for way in rows.way.dropna().unique()},
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
                "accuracy": estimate(100 * wide[number]),
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
        accuracy = estimate(100 * groups.get_group((way, number)))
        seeds = timed.seed.nunique()
        found.append(
            {"budget": budget, "prox": prox, "way": way, "number": int(number)}
            | {"accuracy": accuracy, "seeds": seeds, "compared": len(means)}
        )
    return found


def _nearest(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Rank the methods by their median error at the inner minimum."""
    number, prox = common_number(rows), first_prox(rows)
    part = part_of(rows, "gradient")
    numbers = (part.iterations == number) | part.iterations.isna()
    part = part[(part.prox == prox) & numbers & (part.point == "minimum")]
    errors = part.groupby("way").error.median().dropna().sort_values()
    ranked = [{"way": way, "error": error} for way, error in errors.items()]
    return {"number": number, "prox": prox, "ranked": ranked} if ranked else None

"""What the rows of the study of CG iterations show, a sentence each."""

from __future__ import annotations

from typing import Any

import pandas as pd

from metalearn.studies.cg.report import (
    CURVATURES,
    NAMES,
    PLACES,
    common_number,
    final_rows,
    first_prox,
    part_of,
    percent,
    sweep_of,
    swept_ways,
    task_rows,
    within_time,
)
from metalearn.training.estimate import Estimate


def findings(rows: pd.DataFrame) -> list[str]:
    return [
        _monotone(rows),
        *_beaten(rows),
        *_indefinite(rows),
        *_certified(rows),
        *_plateaus(rows),
        *_in_time(rows),
        *_best(rows),
    ]


def _beaten(rows: pd.DataFrame) -> list[str]:
    """From which number on CG is nearer than the first-order gradient, at every larger one too."""
    part, found = task_rows(rows), []
    part = part[(part.point == "minimum") & part.definite]
    for (curvature, prox), group in part.groupby(["curvature", "prox"], sort=False):
        medians = group.groupby("iterations").error.median()
        if medians.index[0] != 0 or len(medians) < 2:
            continue
        first, fewest = medians.iloc[0], int(medians.index[1])
        farther = medians.index[1:][medians.iloc[1:] >= first]
        later = medians.index[medians.index > (farther.max() if len(farther) else 0)]
        nearer = f"from {later[0]} iterations on" if len(later) else "at none of these numbers"
        found.append(
            f"At the inner minimum, with {CURVATURES[str(curvature)]} curvature and lambda = "
            f"{prox:g}, the first-order gradient is off by {first:.2g}, CG with {fewest} "
            f"iteration{'s' * (fewest > 1)} by {medians[fewest]:.2g} (medians); CG is the nearer "
            f"one {nearer}."
        )
    return found


def _certified(rows: pd.DataFrame) -> list[str]:
    part = part_of(rows, "task")
    part = part[part.certificate.notna() & part.true_error.notna()]
    if part.empty:
        return []
    shares = (part.certificate >= part.true_error).groupby(part.point).agg(["sum", "size"])
    where = [f"{r['sum']} of {r['size']} solves {PLACES[str(p)]}" for p, r in shares.iterrows()]
    missed = part[part.definite & (part.certificate < part.true_error)]
    why = "."
    if len(missed):
        above = (missed.ritz_low / missed.eigen_low).median()
        why = f"; where it is not, the least Ritz value is {above:.2g} times the least eigenvalue."
    return [f"The certificate's estimate is at least the true error in {' and '.join(where)}{why}"]


def _monotone(rows: pd.DataFrame) -> str:
    part = task_rows(rows)
    part = part[part.definite & (part.iterations > 0)]
    keys = ["seed", "prox", "point", "curvature", "task"]
    groups = [g.sort_values("iterations") for _, g in part.groupby(keys)]
    falls = sum(bool((g.error.diff().dropna() <= 1e-9).all()) for g in groups)
    below = (part.error <= part.rate_bound).sum()
    return (
        f"Where A is positive definite, CG's error falls with every further iteration in {falls} "
        f"of {len(groups)} systems, and {below} of {len(part)} errors are under the bound of "
        "theory."
    )


def _indefinite(rows: pd.DataFrame) -> list[str]:
    part = task_rows(rows)
    part = part[part.iterations == part.iterations.max()]
    groups = part.groupby(["curvature", "point"]).definite
    return [
        f"With {CURVATURES[str(curvature)]} curvature the system is indefinite in "
        f"{int((~definite).sum())} of {len(definite)} tasks {PLACES[str(point)]}."
        for (curvature, point), definite in groups
    ]


def _plateaus(rows: pd.DataFrame) -> list[str]:
    final, found = final_rows(rows), []
    for prox in final.prox.unique():
        for way in swept_ways(final):
            wide = sweep_of(final, way, prox).pivot(
                index="seed", columns="iterations", values="test_accuracy"
            )
            seeds = len(wide)
            wide = wide.dropna()  # a seed of which a training stopped has no pairs
            if len(wide) < 2 or len(wide.columns) < 2:
                continue
            number, most = plateau(wide), wide.columns[-1]
            stopped = f" ({seeds - len(wide)} more had a training that stopped)"
            sentence = (
                f"{NAMES[way]}, lambda = {prox:g}: accuracy stops improving measurably at {number} "
                f"iterations ({percent(wide[number])} %): over {len(wide)} seeds"
                f"{stopped if len(wide) < seeds else ''} no larger number is better by more than "
                "its 95 % interval"
            )
            if number != most:
                later = [_difference(wide, number, m) for m in map(int, wide.columns) if m > number]
                best = max(later, key=lambda gain: gain.mean)
                sentence += f", the largest gain being {_points(best)}"
            if number != wide.columns[0]:
                gain = _difference(wide, wide.columns[0], number)
                sentence += f"; over {wide.columns[0]:g} iterations it gains {_points(gain)}"
            found.append(f"{sentence}.")
    return found


def _points(gain: Estimate) -> str:
    return f"{100 * gain.mean:+.1f} ± {100 * gain.interval:.1f} points"


def plateau(wide: pd.DataFrame) -> int:
    """The least number of iterations (columns, rising) that no larger one improves on.

    Improving: the mean of the paired differences over the seeds (rows) is above 0 by more than
    its 95 % interval.
    """
    numbers = list(wide.columns)
    for i, n in enumerate(numbers):
        later = [_difference(wide, n, m) for m in numbers[i + 1 :]]
        if not any(d.mean > d.interval for d in later):
            return int(n)
    raise AssertionError("the largest number has none above it")


def _difference(wide: pd.DataFrame, before: Any, after: Any) -> Estimate:
    return Estimate.of((wide[after] - wide[before]).dropna())


def _in_time(rows: pd.DataFrame) -> list[str]:
    found = []
    for prox in final_rows(rows).prox.unique():
        budget, timed = within_time(rows, prox)
        counts = timed.groupby(["way", "iterations"]).seed.transform("size")
        timed = timed[counts == timed.seed.nunique()]
        means = timed.groupby(["way", "iterations"]).validation_accuracy.mean().reset_index()
        best = means.sort_values("validation_accuracy").iloc[-1]
        same = timed[(timed.way == best.way) & (timed.iterations == best.iterations)]
        name = (
            f"{NAMES[best.way]} with {best.iterations:g} iterations"
            if best.iterations
            else "first-order"
        )
        found.append(
            f"In {budget:.1f} s of training with lambda = {prox:g} the best mean is that of "
            f"{name}, {percent(same.validation_accuracy)} % over {len(same)} seeds, of the "
            f"{len(means)} trainings that all seeds had validated by then."
        )
    return found


def _best(rows: pd.DataFrame) -> list[str]:
    number, prox = common_number(rows), first_prox(rows)
    part = part_of(rows, "gradient")
    part = part[(part.prox == prox) & (part.iterations == number) & (part.point == "minimum")]
    error = part.groupby("way").error.median().dropna().sort_values()
    if error.empty:
        return []
    best, worst = error.index[0], error.index[-1]
    return [
        f"With {number} iterations at the inner minimum, lambda = {prox:g}, {NAMES[best]} comes "
        f"nearest to the exact meta-gradient (error {error.iloc[0]:.2g}), {NAMES[worst]} is the "
        f"farthest ({error.iloc[-1]:.2g})."
    ]

"""Errors and costs read off the rows of the study of the meta-gradient's error.

A curve is the rows of one method, with one number of CG iterations if it solves, by the steps of
the inner loop. Between two rows the logarithm of the error is taken to be linear in the cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

TARGETS = (1e-2, 1e-4, 1e-8)
SHARP = TARGETS[-1]
TAIL = (1e-4, 1e-9)
"""Between these errors the rate is measured: the start is past, and rounding far."""


@dataclass(frozen=True)
class Reached:
    """Where a curve reaches an error: infinitely dear where it doesn't."""

    cost: float = math.inf
    steps: float = math.nan
    cg_iters: float = math.nan

    def __str__(self) -> str:
        """Steps, and CG iterations if there are any."""
        if not math.isfinite(self.cost):
            return "-"
        return f"{self.steps:.0f}" + ("" if math.isnan(self.cg_iters) else f", {self.cg_iters:.0f}")


@dataclass(frozen=True)
class Setting:
    """The accuracy rows of one problem, condition number and inner loop."""

    problem: str
    condition: float
    inner: str
    rows: pd.DataFrame

    def curves(self, method: str) -> list[pd.DataFrame]:
        part = self.rows[self.rows.method == method].sort_values("steps")
        return [curve for _, curve in part.groupby("cg_iters", dropna=False)]

    def reach(self, method: str, error: float, cost: str = "evaluations") -> Reached:
        """The least cost at which a curve of the method reaches an error."""
        found = [reach(curve, error, cost) for curve in self.curves(method)]
        return min(found, key=lambda reached: reached.cost, default=Reached())

    @property
    def loop_rate(self) -> float:
        return float(self.rows.loop_rate.iloc[0])

    def rate(self, method: str) -> float:
        """By which an evaluation multiplies the error, in theory.

        A step is a gradient, and a product where it is gone back through: unrolled q^(1/2), through
        the last quarter q^(1/5) for its error of q^(K/4). The implicit gradient splits its budget
        so that the inner loop's q^K and the solve's r^C fall together.
        """
        q, r = math.log(self.loop_rate), math.log(self.rows.cg_rate.iloc[0])
        exponents = {"unrolled": q / 2, "truncated": q / 5, "implicit": q * r / (q + r)}
        return math.exp(exponents[method])


def settings(rows: pd.DataFrame) -> list[Setting]:
    """In the order of the rows, with a further cost: a product counted as two gradients."""
    by = ["problem", "inner", "condition"]
    part = rows[rows.part == "accuracy"]
    part = part.assign(doubled=part.gradients + 2 * part["products"])
    return [
        Setting(g.problem.iloc[0], float(g.condition.iloc[0]), g.inner.iloc[0], g)
        for _, g in part.groupby(by, sort=False)
    ]


def reach(curve: pd.DataFrame, error: float, cost: str) -> Reached:
    below = np.flatnonzero(curve.error.to_numpy() <= error)
    if not len(below):
        return Reached()
    last = curve.iloc[int(below[0])]
    if below[0] == 0:
        return Reached(float(last[cost]), float(last.steps), float(last.cg_iters))
    first = curve.iloc[int(below[0]) - 1]
    share = math.log(first.error / error) / math.log(first.error / last.error)
    return Reached(
        float(first[cost] + share * (last[cost] - first[cost])),
        float(first.steps + share * (last.steps - first.steps)),
        float(last.cg_iters),
    )


@dataclass(frozen=True)
class Equal:
    """Unrolled at the cost at which the implicit gradient reaches `SHARP`."""

    setting: Setting
    implicit: Reached
    error: float

    @property
    def ratio(self) -> float:
        return self.error / SHARP


def equals(found: list[Setting], cost: str = "evaluations") -> list[Equal]:
    """Of the settings where the implicit gradient reaches it; beyond unrolled's curve, its end."""
    equal = []
    for setting in found:
        (unrolled,), implicit = setting.curves("unrolled"), setting.reach("implicit", SHARP, cost)
        if math.isfinite(implicit.cost):
            # Seconds are single timings, which may fall where steps rise.
            costs = np.maximum.accumulate(unrolled[cost])
            log_error = np.interp(implicit.cost, costs, np.log(unrolled.error))
            equal.append(Equal(setting, implicit, float(np.exp(log_error))))
    return equal


def steps_a_digit(curve: pd.DataFrame) -> float:
    """Inner steps for a tenth of the error, within `TAIL`; infinite where it isn't reached."""
    begin, end = (reach(curve, error, "steps").cost for error in TAIL)
    return (end - begin) / math.log10(TAIL[0] / TAIL[1]) if math.isfinite(end) else math.inf


def bias(rows: pd.DataFrame) -> pd.DataFrame:
    """The bias rows of the first problem, with a name for each way."""
    part = rows[rows.part == "bias"].copy()

    def name(row: pd.Series) -> str:
        if row.method != "implicit":
            return str(row.method)
        solve = "exact solve" if pd.isna(row.cg_iters) else f"{row.cg_iters:.0f} CG"
        return f"implicit, {solve}"

    part["way"] = part.apply(name, axis=1)
    return part

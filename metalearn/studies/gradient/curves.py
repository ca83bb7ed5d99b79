"""The curves of the meta-gradient's error, and the costs at which they reach an error.

A curve is the rows of one method, ordered by inner steps; an implicit curve has one number of CG
iterations. Between two rows, the logarithm of the error is interpolated linearly in the cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

TARGETS = (1e-2, 1e-4, 1e-8)
SHARP = TARGETS[-1]
TAIL = (1e-4, 1e-9)
"""The errors between which the rate is measured: after the start, and well above rounding."""


@dataclass(frozen=True)
class Reached:
    """The point where a curve reaches an error; an infinite cost if it does not."""

    cost: float = math.inf
    steps: float = math.nan
    cg_iters: float = math.nan


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
        """Return the least cost at which a curve of the method reaches an error."""
        found = [reach(curve, error, cost) for curve in self.curves(method)]
        return min(found, key=lambda reached: reached.cost, default=Reached())

    @property
    def loop_rate(self) -> float:
        return float(self.rows.loop_rate.iloc[0])

    @property
    def methods(self) -> list[str]:
        return [str(method) for method in self.rows.method.unique()]

    def rate(self, method: str) -> float:
        """Return the factor by which an evaluation multiplies the error, for one of `rates`."""
        return self.rates[method]

    @property
    def rates(self) -> dict[str, float]:
        """The factor by which an evaluation multiplies the error in theory, by method.

        A step costs a gradient, and a product if it is back-propagated through:

        - Unrolled: q^(1/2).
        - Truncated to the last quarter: q^(1/5), since its error is q^(K/4).
        - Implicit: the budget is split so that the inner loop's q^K and the solve's r^C fall
          together.
        """
        q, r = math.log(self.loop_rate), math.log(self.rows.cg_rate.iloc[0])
        exponents = {"unrolled": q / 2, "truncated": q / 5, "implicit": q * r / (q + r)}
        return {method: math.exp(exponent) for method, exponent in exponents.items()}

    @property
    def power(self) -> float:
        """The power of the unrolled error that gives the implicit error at equal cost in theory."""
        return math.log(self.rate("implicit")) / math.log(self.rate("unrolled"))


def settings(rows: pd.DataFrame) -> list[Setting]:
    """Return the settings in the order of the rows.

    The rows have a further cost, `doubled`, which counts a product as two gradients.
    """
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
    """The error of unrolling at the cost at which the implicit gradient reaches `SHARP`."""

    setting: Setting
    implicit: Reached
    error: float

    @property
    def ratio(self) -> float:
        return self.error / SHARP


def equals(found: list[Setting], cost: str = "evaluations") -> list[Equal]:
    """Compare unrolling with the implicit gradient where the implicit gradient reaches `SHARP`.

    A cost beyond the curve of unrolling takes the curve's last error.
    """
    equal = []
    for setting in found:
        (unrolled,), implicit = setting.curves("unrolled"), setting.reach("implicit", SHARP, cost)
        if math.isfinite(implicit.cost):
            # Seconds are single timings, which may fall as steps rise.
            costs = np.maximum.accumulate(unrolled[cost])
            log_error = np.interp(implicit.cost, costs, np.log(unrolled.error))
            equal.append(Equal(setting, implicit, float(np.exp(log_error))))
    return equal


def steps_a_digit(curve: pd.DataFrame) -> float:
    """Return the inner steps for a tenth of the error within `TAIL`; infinite if not reached."""
    begin, end = (reach(curve, error, "steps").cost for error in TAIL)
    return (end - begin) / math.log10(TAIL[0] / TAIL[1]) if math.isfinite(end) else math.inf


def bias(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of bias, with the method's name, its solve included, as `way`."""
    part = rows[rows.part == "bias"].copy()

    def name(row: pd.Series) -> str:
        if row.method != "implicit":
            return str(row.method)
        solve = "exact solve" if pd.isna(row.cg_iters) else f"{row.cg_iters:.0f} CG"
        return f"implicit, {solve}"

    part["way"] = part.apply(name, axis=1)
    return part


def further(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare each further meta-gradient with the gradient that it estimates, problem by problem.

    `errors` are those of the inner loops of bias, in the order of `steps`.
    """
    if "estimates" not in rows:
        return []
    part = rows[rows.estimates.notna()]
    found = []
    for (method, problem), group in part.groupby(["method", "problem"], sort=False):
        group = group.sort_values("steps")
        estimates = group.estimates.iloc[0]
        errors = group.error if estimates == "implicit" else group.error_of_steps
        found.append(
            {"method": method, "problem": problem, "estimates": estimates}
            | {"condition": float(group.condition.iloc[0])}
            | {"steps": group.steps.tolist(), "errors": errors.tolist()}
        )
    return found

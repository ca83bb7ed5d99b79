"""The tables and facts of the study of the meta-gradient's error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from metalearn.studies.frame.table import Cell, Format, Table, make_table
from metalearn.studies.gradient.curves import (
    SHARP,
    TAIL,
    TARGETS,
    Reached,
    Setting,
    bias,
    equals,
    further,
    settings,
    steps_a_digit,
)

SETTING: dict[str, Format | None] = {"problem": None, "inner loop": None, "condition": "g"}


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    found = settings(rows)
    tables = {
        "Evaluations (gradients + Hessian products) that reach an error; K steps, C CG iterations "
        f"and seconds to {SHARP:g}": _costs(found),
        f"At equal cost: unrolled where the implicit gradient reaches {SHARP:g}": _equal(found),
        f"Inner steps for a further digit, from {TAIL[0]:g} to {TAIL[1]:g}": _rates(found),
        "Error that so many Hessian products leave at a converged inner solution": _products(rows),
        "Short inner loops: distance from the converged problem's gradient / that of the K steps": (
            _bias(rows)
        ),
    }
    if compared := further(rows):
        tables["Further meta-gradients: error against the gradient that each estimates"] = _further(
            compared
        )
    return tables


def _further(compared: list[dict[str, Any]]) -> Table:
    columns: dict[str, Format | None] = {"method": None, "estimates": None, "problem": None}
    columns |= {"condition": "g", "K": ".0f", "error": ".1e"}
    return make_table(
        columns,
        (
            {**{name: at[name] for name in ("method", "estimates", "problem", "condition")}}
            | {"K": steps, "error": error}
            for at in compared
            for steps, error in zip(at["steps"], at["errors"], strict=True)
        ),
    )


def _name(setting: Setting) -> list[Any]:
    return [setting.problem, setting.inner, setting.condition]


def _or_dash(spec: str) -> Callable[[float], str]:
    return lambda value: format(value, spec) if math.isfinite(value) else "-"


def _two_digits(value: float) -> str:
    """Return a number of two digits without an exponent."""
    return f"{float(f'{value:.2g}'):,g}"


def _lengths(reached: Reached) -> Cell:
    """Return the cell of a curve's steps, and of its CG iterations if it has any."""
    if not math.isfinite(reached.cost):
        return Cell("-")
    solve = "" if math.isnan(reached.cg_iters) else f", {reached.cg_iters:.0f}"
    return Cell(f"{reached.steps:.0f}{solve}", reached.steps)


def _costs(found: list[Setting]) -> Table:
    targets = {f"to {target:g}": _or_dash(".0f") for target in TARGETS}
    shown = []
    for setting in found:
        for method in setting.methods:
            title = "truncated, last quarter" if method == "truncated" else method
            costs = [setting.reach(method, target).cost for target in TARGETS]
            seconds = setting.reach(method, SHARP, "seconds").cost
            end = _lengths(setting.reach(method, SHARP))
            shown.append([*_name(setting), title, *costs, end, seconds])
    columns = SETTING | {"method": None} | targets | {"K, C": None, "seconds": _or_dash(".3f")}
    return make_table(columns, shown)


def _equal(found: list[Setting]) -> Table:
    columns = SETTING | {
        "evaluations": ".0f",
        "K, C": None,
        "unrolled error": ".1e",
        "times larger": _two_digits,
        "a product counted as two": _two_digits,
        "at equal seconds": _two_digits,
    }
    shown = []
    costs = (equals(found, cost) for cost in ("evaluations", "doubled", "seconds"))
    for equal, *others in zip(*costs, strict=True):
        at = [equal.implicit.cost, _lengths(equal.implicit), equal.error]
        shown.append([*_name(equal.setting), *at, equal.ratio, *(other.ratio for other in others)])
    return make_table(columns, shown)


def _rates(found: list[Setting]) -> Table:
    shown = [
        [*_name(setting), -math.log(10) / math.log(setting.loop_rate)]
        + [steps_a_digit(setting.curves(method)[-1]) for method in ("unrolled", "implicit")]
        for setting in found
    ]
    rates: dict[str, Format | None] = dict.fromkeys(("unrolled", "implicit"), _or_dash(".1f"))
    return make_table(SETTING | {"theory": ".1f"} | rates, shown)


def _products(rows: pd.DataFrame) -> Table:
    columns: dict[str, tuple[str, Format | None]] = {
        "problem": ("problem", None),
        "condition": ("condition", "g"),
        "products": ("products", ".0f"),
        "CG": ("error", ".1e"),
        "bound, 2 √κ r^C": ("theory", ".1e"),
        "back through as many steps": ("error_steps", ".1e"),
        "rate, q^k": ("theory_steps", ".1e"),
    }
    part, by = rows[rows.part == "products"], ["problem", "condition", "products"]
    solved, truncated = (part[part.method == m] for m in ("implicit", "truncated"))
    both = solved.merge(truncated, on=by, suffixes=("", "_steps"))
    both = both[both.theory > 1e-12]  # below it, CG's error is rounding
    cells = zip(*(both[source] for source, _ in columns.values()), strict=True)
    return make_table({title: form for title, (_, form) in columns.items()}, cells)


def _bias(rows: pd.DataFrame) -> Table:
    part, shown = bias(rows), []
    for _, group in part.groupby(["problem", "steps"], sort=False):
        row = {"problem": group.problem.iloc[0], "K": float(group.steps.iloc[0])}
        for _, at in group.iterrows():
            row[at.way] = Cell(f"{at.error:.1e} / {at.error_of_steps:.1e}", at.error)
        shown.append(row)
    columns: dict[str, Format | None] = {"problem": None, "K": ".0f"}
    return make_table(columns | dict.fromkeys(part.way), shown)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers that the template of the findings names."""
    found = settings(rows)
    by_loop = {s.inner: [t for t in found if t.inner == s.inner] for s in found}
    digits = [
        steps_a_digit(setting.curves(method)[-1]) * -math.log10(setting.loop_rate)
        for setting in found
        for method in ("unrolled", "implicit")
    ]
    ratios = [equal.ratio for equal in equals(found, "seconds")]
    short = bias(rows)
    short = short[short.problem == short.problem.iloc[0]].sort_values("steps")
    return {
        "target": SHARP,
        "tail": TAIL,
        "unknowns": int(found[0].rows.unknowns.iloc[0]),
        "at_equal_cost": {inner: equals(part) for inner, part in by_loop.items()},
        "at_equal_time": ratios,
        "first": found[0],
        "microseconds": _microseconds(found[0]) if ratios else None,
        "growths": [growth for part in by_loop.values() for growth in growths(part)],
        "digits": [ratio for ratio in digits if math.isfinite(ratio)],
        "curves": len(digits),
        "products": _few_products(rows),
        "further": further(rows),
        "unrolled": short[short.way == "unrolled"],
        "implicit": short[short.way == "implicit, exact solve"],
    }


def _microseconds(setting: Setting) -> dict[str, float]:
    """Fit the time of an inner step, of one with back-propagation and of a CG iteration."""
    (unrolled,), curves = setting.curves("unrolled"), setting.curves("implicit")
    longest = pd.concat(curves)
    longest = longest[longest.steps == longest.steps.max()]
    counted = {
        "step": (curves[0], "steps"),
        "unrolled": (unrolled, "steps"),
        "iteration": (longest, "products"),
    }
    return {
        name: 1e6 * float(np.polyfit(part[count], part.seconds, 1)[0])
        for name, (part, count) in counted.items()
    }


def growths(found: list[Setting]) -> list[dict[str, Any]]:
    """Return the growth of the first problem's cost with the condition number, where measured."""
    part = sorted((s for s in found if s.problem == found[0].problem), key=lambda s: s.condition)
    low, high = part[0], part[-1]
    growth = {
        method: high.reach(method, SHARP).cost / low.reach(method, SHARP).cost
        for method in ("unrolled", "implicit")
    }
    if low.condition == high.condition or not all(map(math.isfinite, growth.values())):
        return []
    theory = math.log(low.loop_rate) / math.log(high.loop_rate)
    return [{"low": low, "high": high, "theory": theory, **growth}]


def _few_products(rows: pd.DataFrame) -> dict[str, Any]:
    """Compare a solve with as many last steps, of the first problem and a middle number."""
    part = rows[rows.part == "products"]
    solved = part[(part.method == "implicit") & (part.error > 1e-10)]
    counts, problem = sorted(part["products"].unique()), part.problem.iloc[0]
    middle = int(counts[len(counts) // 2])
    first = part[(part["products"] == middle) & (part.problem == problem)]
    wide = first.pivot(index="condition", columns="method", values="error")
    shares = (solved.error / solved.theory).tolist()
    errors = wide.reset_index().to_dict("records")
    return {"number": middle, "problem": problem, "errors": errors, "shares": shares}

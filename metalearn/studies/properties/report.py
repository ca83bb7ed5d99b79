"""The tables, the figure and the findings of the study of properties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metalearn.studies.frame.draw import lines
from metalearn.studies.frame.plot import canvas, log_axis
from metalearn.studies.frame.table import Cell, Format, Table, make_cell, make_table
from metalearn.studies.memory.report import line
from metalearn.system.memory import format_bytes

METHODS = ("unrolled", "implicit")
EXACT = 1e-8
"""The relative error below which a gradient counts as exact."""


def _bytes(size: float) -> str:
    return format_bytes(round(size))


MEASURES: tuple[tuple[str, str, str, Format], ...] = (
    ("memory", "peak memory, K = {memory_steps[0]}", "first_peak", _bytes),
    ("memory", "peak memory, K = {memory_steps[1]}", "last_peak", _bytes),
    ("memory", "memory of one more step, by a fitted line", "slope", _bytes),
    ("memory", "memory of one more step / peak of one inner gradient", "slope_share", ".2f"),
    ("memory", "R² of the line", "r_squared", ".6f"),
    ("memory", "largest peak / peak of one inner gradient", "peak_share", ".2f"),
    ("memory", "largest peak / smallest peak", "peak_change", ".3f"),
    ("compute", "Hessian products, K = {compute_steps}", "products", "g"),
    ("compute", "CG iterations, condition numbers {conditions}", "known_iterations", "g"),
    ("compute", "CG iterations, {network}", "network_iterations", "g"),
    ("compute", "largest relative residual of CG", "residual", ".0e"),
    ("compute", "time beyond the inner loop / time of an inner gradient", "time", ".0f"),
    ("convergence", "largest error from the derivative of its K steps", "error_of_steps", ".0e"),
    ("convergence", "largest norm of the inner gradient there", "norm_of_steps", ".2g"),
    ("convergence", "norm of the inner gradient", "norm", ".2g"),
    ("convergence", "error / norm of the inner gradient", "error_by_norm", ".2g"),
    ("convergence", "slope of log error against log norm", "error_slope", ".2f"),
    ("convergence", "lengths K where it is nearer, of {lengths} with no exact one", "nearer", "g"),
    ("accuracy", "largest error from its K steps, by forward mode, K = {known_steps}",
     "error_of_steps", ".0e"),
    ("accuracy", "error from the converged problem, K = {steps[2]}", "last_error", ".0e"),
    ("bias", "error from the converged problem, K = {steps[0]}", "first_error", ".2g"),
    ("bias", "error from the converged problem, K = {steps[1]}", "middle_error", ".2g"),
    ("bias", "error from the converged problem, K = {steps[2]}", "last_error", ".2g"),
    ("products", "Hessian products, K = {compute_steps}", "products", "g"),
    ("products", "Hessian products beyond one for each step or CG iteration", "beyond", "g"),
    ("implementation", "lines run beyond the first-order gradient's", "lines_of_its_own", ".0f"),
    ("implementation", "lines run", "lines", ".0f"),
    ("implementation", "calls of autograd", "autograd_calls", ".0f"),
    ("implementation", "calls with create_graph", "autograd_create_graph", ".0f"),
    ("implementation", "calls with retain_graph", "autograd_retain_graph", ".0f"),
    ("implementation", "vector-Jacobian products", "autograd_weighted", ".0f"),
    ("implementation", "custom derivatives", "custom_derivatives", ".0f"),
)  # fmt: skip
"""The rows of the measurements: property, title, number of a method, format."""


def textbook() -> pd.DataFrame:
    """Return what the textbook says of each property, and which rows and studies measure it."""
    return pd.read_csv(Path(__file__).with_name("textbook.csv"), keep_default_na=False)


def facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of both methods, and the verdict on each property."""
    unrolled, implicit = (_numbers(rows, method) for method in METHODS)
    errors, solves = _select(rows, "convergence", "implicit"), _select(rows, "compute", "implicit")
    compared = np.minimum(unrolled["errors"], implicit["errors"]) > EXACT
    lengths = int(compared.sum())
    implicit["nearer"] = int((implicit["errors"] <= unrolled["errors"])[compared].sum())
    unrolled["nearer"] = lengths - implicit["nearer"]
    within = int(solves.cg_iterations.between(10, 50).sum())
    verdicts = {
        "memory": _verdict(unrolled["r_squared"] >= 0.999 and implicit["peak_change"] <= 1.02),
        "compute": _verdict(unrolled["beyond"] == (0, 0), within < len(solves)),
        "convergence": _verdict(
            unrolled["error_of_steps"] < EXACT and abs(implicit["error_slope"] - 1) < 0.2,
            0 < lengths == implicit["nearer"],
        ),
        "accuracy": _verdict(unrolled["error_of_steps"] < EXACT > implicit["last_error"]),
        "bias": _verdict(
            unrolled["first_error"] > 0.01 and implicit["last_error"] < EXACT,
            implicit["first_error"] > 0.01 or unrolled["last_error"] < EXACT,
        ),
        "products": _verdict(unrolled["products"][1] <= 0),
        "implementation": _verdict(True, implicit["custom_derivatives"] == 0),
    }
    names = textbook().set_index("name").property
    known_steps = errors.dropna(subset="error_of_steps").steps
    return {
        "held": [names[name] for name, verdict in verdicts.items() if verdict == "holds"],
        "verdicts": verdicts,
        "unrolled": unrolled,
        "implicit": implicit,
        "exact": EXACT,
        "memory_steps": [round(k) for k in _range(_select(rows, "memory", "implicit").steps)],
        "compute_steps": round(solves.inner_steps.iloc[0]),
        "conditions": _span(_range(solves.condition), "g"),
        "network": solves[solves.condition.isna()].problem.iloc[0],
        "within": within,
        "problems": len(solves),
        "lengths": lengths,
        "steps": [round(k) for k in errors.steps.iloc[_shown(errors)]],
        "known_steps": _span(_range(known_steps), "g"),
    }


def _verdict(stands: bool, contradicted: bool = False) -> str:
    """Return the verdict on a claim, of which a part may be contradicted."""
    return "does not hold" if not stands else "in part" if contradicted else "holds"


def _select(rows: pd.DataFrame, part: str, method: str) -> pd.DataFrame:
    return rows[(rows.part == part) & (rows.method == method)].sort_values("steps")


def _shown(part: pd.DataFrame) -> list[int]:
    """Return the first, the middle and the last row by number."""
    return [0, len(part) // 2, len(part) - 1]


def _range(values: pd.Series[float]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _span(values: tuple[float, float], spec: str) -> str:
    low, high = (format(value, spec) for value in values)
    return low if low == high else f"{low} to {high}"


def _numbers(rows: pd.DataFrame, method: str) -> dict[str, Any]:
    """Return the numbers of one method: floats, or (least, largest)."""
    memory, compute, errors, code = (
        _select(rows, part, method)
        for part in ("memory", "compute", "convergence", "implementation")
    )
    one, peaks, fit = memory.one.iloc[0], memory.peak_bytes, line(memory.assign(predicted=False))
    known, norms = errors.dropna(subset="error_of_steps"), errors.inner_grad_norm
    first, middle, last = errors.error.iloc[_shown(errors)]
    iterations = compute.cg_iterations.astype(float)
    expected = compute.inner_steps if method == "unrolled" else iterations
    return {
        "first_peak": peaks.iloc[0],
        "last_peak": peaks.iloc[-1],
        "slope": fit.slope,
        "slope_share": fit.slope / one,
        "r_squared": fit.r_squared if method == "unrolled" else None,
        "peak_share": peaks.max() / one,
        "peak_change": peaks.max() / peaks.min(),
        "products": _range(compute["products"]),
        "beyond": _range(compute["products"] - expected),
        "iterations": _range(iterations),
        "known_iterations": _range(iterations[compute.condition.notna()]),
        "network_iterations": iterations[compute.condition.isna()].iloc[0],
        "residual": compute.residual.astype(float).max(),
        "time": _range(compute.differentiating_s / compute.one_gradient_s),
        "error_of_steps": known.error_of_steps.max(),
        "norm_of_steps": known.inner_grad_norm.max(),
        "norm": _range(norms),
        "error_by_norm": _range(errors.error / norms),
        "error_slope": np.polyfit(np.log(norms), np.log(errors.error), 1)[0],
        "errors": errors.error.to_numpy(),
        "first_error": first,
        "middle_error": middle,
        "last_error": last,
    } | dict(code.filter(regex="^(lines|autograd|custom)").iloc[0])


def tables(rows: pd.DataFrame) -> dict[str, Table]:
    found, claims = facts(rows), textbook()
    others = rows[rows.part == "evidence"]
    others = others[others.found.astype(bool)]
    links = {name: f"[{name}](../{name}/table.md)" for name in others.study}
    names = claims.set_index("name").property
    compared = [
        {
            "property": claim.property,
            "the textbook, unrolled": claim.unrolled,
            "the textbook, implicit": claim.implicit,
            "borne out?": found["verdicts"][claim["name"]],
            "evidence": ", ".join(
                [f"[rows.csv](rows.csv), part = {claim.part}"]
                + [links[study] for study in claim.studies.split() if study in links]
            ),
        }
        for _, claim in claims.iterrows()
    ]
    measured = [
        (
            names[name],
            title.format_map(found),
            *(_cell(found[method][number], form) for method in METHODS),
        )
        for name, title, number, form in MEASURES
    ]
    made = {
        "The comparison": make_table(list(compared[0]), compared),
        "The measurements": make_table(["property", "measured", *METHODS], measured),
        "Error against the inner steps": _errors(rows),
    }
    if len(others):
        made["Studies beside this one that measure the same"] = make_table(
            {"study": None, "rows": ".0f", "command": None, "commit": None, "finding": None},
            [
                (
                    f"[{other.title}](../{other.study}/table.md)",
                    other.measured,
                    f"`{other.command}`",
                    other.commit,
                    finding,
                )
                for _, other in others.iterrows()
                for finding in str(other.findings).split("\n")
            ],
        )
    return made


def _cell(value: Any, form: Format) -> Cell:
    """Make the cell of a number or of a range."""
    if isinstance(value, tuple) and isinstance(form, str):
        return Cell("") if math.isnan(value[0]) else Cell(_span(value, form), value[1])
    return make_cell(value, form)


def _errors(rows: pd.DataFrame) -> Table:
    unrolled, implicit = (_select(rows, "convergence", method) for method in METHODS)
    columns = {
        "inner steps": ("g", unrolled.steps),
        "inner gradient's norm": (".1e", unrolled.inner_grad_norm),
        "unrolled": (".1e", unrolled.error),
        "implicit": (".1e", implicit.error),
        "unrolled, from the steps' own": (".1e", unrolled.error_of_steps),
        "implicit, from the steps' own": (".1e", implicit.error_of_steps),
    }
    values = [series.astype(float) for _, series in columns.values()]
    return make_table(
        {title: form for title, (form, _) in columns.items()}, zip(*values, strict=True)
    )


def figures(rows: pd.DataFrame) -> dict[str, Figure]:
    caption = """Relative error of the meta-gradient from that of the converged problem, against
        the inner steps and against the norm of the inner gradient that they leave."""
    figure, panels = canvas(2, caption=caption)
    for axes, column, label in (
        (panels[0], "steps", "inner steps"),
        (panels[1], "inner_grad_norm", "norm of the inner gradient"),
    ):
        log_axis(axes, "x", base=2 if column == "steps" else 10)
        log_axis(axes, "y")
        axes.set(xlabel=label, ylabel="relative error")
        lines(axes, rows[rows.part == "convergence"], column, "error", "method")
    panels[1].invert_xaxis()
    return {"convergence": figure}

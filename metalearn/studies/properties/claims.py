"""The properties that the textbook compares, each as the rows show it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from metalearn.system.memory import format_bytes

EXACT = 1e-8
"""A relative error below which a gradient counts as exact."""


class Property(NamedTuple):
    """
    Args:
        claim: the textbook's, of the unrolled and of the implicit gradient.
        unrolled, implicit: what was measured.
        verdict: whether it bears the claim out; begins with "holds", "in part" or "does not hold".
        part: the rows of this study that it is read from.
        studies: others that measure it too.
    """

    name: str
    claim: str
    unrolled: str
    implicit: str
    verdict: str
    part: str
    studies: tuple[str, ...]


def properties(rows: pd.DataFrame) -> list[Property]:
    return [
        _memory(rows),
        _compute(rows),
        _convergence(rows),
        _accuracy(rows),
        _bias(rows),
        _hessian(rows),
        _implementation(rows),
    ]


def _memory(rows: pd.DataFrame) -> Property:
    part = rows[rows.part == "memory"]
    unrolled, implicit = (
        part[part.method == m].sort_values("steps") for m in ("unrolled", "implicit")
    )
    one = part.one.iloc[0]
    steps, peaks = unrolled.steps.to_numpy(float), unrolled.peak_bytes.to_numpy(float)
    slope, intercept = np.polyfit(steps, peaks, 1)
    off = peaks - (intercept + slope * steps)
    r_squared = 1 - (off @ off) / ((peaks - peaks.mean()) ** 2).sum()
    change = implicit.peak_bytes.max() / implicit.peak_bytes.min()
    span = f"from {steps[0]:.0f} to {steps[-1]:.0f} steps"
    return Property(
        "memory",
        "O(K) in the inner steps, against O(1)",
        f"{format_bytes(int(peaks[0]))} to {format_bytes(int(peaks[-1]))} {span}: "
        f"{format_bytes(round(slope))} more for each, {slope / one:.2f} of one inner gradient's "
        f"peak (a line, R² = {r_squared:.6f})",
        f"{format_bytes(int(implicit.peak_bytes.max()))} {span}, changing by a factor of "
        f"{change:.3f}: {implicit.peak_bytes.max() / one:.2f} of one inner gradient's peak",
        "holds" if r_squared >= 0.999 and change <= 1.02 else "does not hold",
        "memory",
        ("memory",),
    )


def _compute(rows: pd.DataFrame) -> Property:
    part = rows[rows.part == "compute"]
    unrolled, implicit = (part[part.method == m] for m in ("unrolled", "implicit"))
    steps = int(unrolled.inner_steps.iloc[0])
    swept = _span(unrolled.products)
    iterations = implicit.cg_iterations
    known = implicit.dropna(subset="condition")
    network = implicit[implicit.condition.isna()].cg_iterations.iloc[0]
    within = int(((iterations >= 10) & (iterations <= 50)).sum())
    verdict = "holds"
    if (unrolled.products != steps).any():
        verdict = f"does not hold: the sweep takes {swept} products for {steps} steps"
    elif within < len(iterations):
        verdict = (
            f"in part: CG takes 10 to 50 iterations on {within} of the {len(iterations)} problems, "
            f"{_span(iterations)} on all: it depends on their condition"
        )
    return Property(
        "compute of one gradient",
        "one sweep back through K steps, against a solve of 10 to 50 Hessian products",
        f"one sweep of {swept} products for {steps} steps, in the time of "
        f"{_in_gradients(unrolled)} inner gradients beyond the inner loop's",
        f"{_span(known.cg_iterations)} CG iterations at condition numbers of "
        f"{_span(known.condition)}, {network:.0f} on {_problem(implicit)}, to a residual of "
        f"{implicit.residual.max():.0e}; {_span(implicit.products)} products in the time of "
        f"{_in_gradients(implicit)} inner gradients",
        verdict,
        "compute",
        ("cg", "gradient"),
    )


def _problem(part: pd.DataFrame) -> str:
    return str(part[part.condition.isna()].problem.iloc[0])


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():g}", f"{values.max():g}"
    return low if low == high else f"{low} to {high}"


def _in_gradients(part: pd.DataFrame) -> str:
    return _span((part.differentiating_s / part.one_gradient_s).round())


def error_rows(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    part = rows[rows.part == "convergence"].sort_values("steps")
    return part[part.method == "unrolled"], part[part.method == "implicit"]


def _convergence(rows: pd.DataFrame) -> Property:
    unrolled, implicit = error_rows(rows)
    norms, errors = implicit.inner_grad_norm.to_numpy(), implicit.error.to_numpy()
    slope = np.polyfit(np.log(norms), np.log(errors), 1)[0]
    off = np.minimum(errors, unrolled.error.to_numpy()) > EXACT  # there is something to compare
    nearer = int((errors <= unrolled.error.to_numpy())[off].sum())
    known = unrolled.dropna(subset="error_of_steps")
    proportional = abs(slope - 1) < 0.2
    verdict = "does not hold"
    if known.error_of_steps.max() < EXACT and proportional:
        verdict = "holds"
        if off.any() and nearer == off.sum():
            verdict = (
                "in part: the implicit gradient's error grows in proportion to what is left of the "
                "inner gradient, yet at none of the lengths measured is it further from the "
                "converged problem's gradient than the unrolled one"
            )
    return Property(
        "convergence that it needs",
        "none, against a converged inner loop",
        f"none: within {known.error_of_steps.max():.0e} of its own steps' derivative where the "
        f"inner gradient's norm is still {known.inner_grad_norm.max():.2g}",
        f"error {(errors / norms).min():.2g} to {(errors / norms).max():.2g} times the inner "
        f"gradient's norm, which goes from {norms[0]:.2g} to {norms[-1]:.0e} (a line of "
        f"slope {slope:.2f} in logarithms); nearer the converged gradient than the unrolled one at "
        f"{nearer} of the {off.sum()} lengths where neither is exact",
        verdict,
        "convergence",
        ("gradient",),
    )


def _accuracy(rows: pd.DataFrame) -> Property:
    unrolled, implicit = error_rows(rows)
    known = unrolled.dropna(subset="error_of_steps")
    last = implicit.iloc[-1]
    exact = known.error_of_steps.max() < EXACT and last.error < EXACT
    return Property(
        "accuracy",
        "exact for the truncated problem, against exact for the converged one",
        f"{known.error_of_steps.max():.0e} from the derivative of the steps by forward mode, "
        f"{known.steps.min():.0f} to {known.steps.max():.0f} of them",
        f"{last.error:.0e} from the known gradient of the converged problem, after "
        f"{last.steps:.0f} steps",
        "holds" if exact else "does not hold",
        "convergence",
        ("gradient",),
    )


def _bias(rows: pd.DataFrame) -> Property:
    unrolled, implicit = error_rows(rows)
    shown = [0, len(unrolled) // 2, len(unrolled) - 1]

    def at(part: pd.DataFrame) -> str:
        return ", ".join(
            f"{part.error.iloc[i]:.2g} after {part.steps.iloc[i]:.0f} steps" for i in shown
        )

    verdict = "does not hold"
    if unrolled.error.iloc[0] > 0.01 and implicit.error.iloc[-1] < EXACT:
        verdict = "holds"
        if implicit.error.iloc[0] > 0.01 or unrolled.error.iloc[-1] < EXACT:
            verdict = (
                "in part: cut short, the implicit gradient is off too "
                f"({implicit.error.iloc[0]:.2g} after {implicit.steps.iloc[0]:.0f} steps), and "
                f"converged, the unrolled one is off by {unrolled.error.iloc[-1]:.0e}"
            )
    return Property(
        "bias when the inner loop is cut short",
        "biased, against unbiased at convergence",
        f"relative error, of the converged problem's gradient: {at(unrolled)}",
        f"relative error: {at(implicit)}",
        verdict,
        "convergence",
        ("gradient",),
    )


def _hessian(rows: pd.DataFrame) -> Property:
    part = rows[rows.part == "compute"]
    unrolled, implicit = (part[part.method == m] for m in ("unrolled", "implicit"))
    steps = int(unrolled.inner_steps.iloc[0])
    over = implicit.products - implicit.cg_iterations
    each = (
        "one for each step" if (unrolled.products == steps).all() else f"{_span(unrolled.products)}"
    )
    return Property(
        "Hessian products",
        "none but products with Jacobians, against one for each iteration of the solve",
        f"{_span(unrolled.products)} counted in the sweep back through {steps} steps",
        f"{_span(implicit.products)} counted: one for each of {_span(implicit.cg_iterations)} CG "
        f"iterations, and {_span(over)} more",
        f"does not hold: autograd makes the unrolled gradient's Hessian products unasked, {each}"
        if unrolled.products.max() > 0
        else "holds",
        "compute",
        ("gradient",),
    )


def _implementation(rows: pd.DataFrame) -> Property:
    part = rows[rows.part == "implementation"]
    unrolled, implicit = (part[part.method == m].iloc[0] for m in ("unrolled", "implicit"))

    def takes(row: pd.Series) -> str:
        return (
            f"{row.lines_of_its_own:.0f} lines run beyond those of the first-order gradient "
            f"({row.lines:.0f} in all); autograd called {row.autograd_calls:.0f} times: "
            f"{row.autograd_create_graph:.0f} with create_graph, "
            f"{row.autograd_retain_graph:.0f} with retain_graph, "
            f"{row.autograd_weighted:.0f} vector-Jacobian products; custom derivatives: "
            f"{row.custom_derivatives:.0f}"
        )

    verdict = "holds"
    if implicit.custom_derivatives == 0:
        verdict = (
            "in part: the implicit gradient takes "
            f"{implicit.lines_of_its_own / unrolled.lines_of_its_own:.1f} times the lines, its "
            "linear solver among them, but no custom backward pass: both need derivatives of a "
            "gradient and no more"
        )
    return Property(
        "implementation",
        "standard autodiff, against a custom backward pass or a library",
        takes(unrolled),
        takes(implicit),
        verdict,
        "implementation",
        (),
    )

"""Every method's hypergradient converges to the exact one, at the rate of its paper."""

from __future__ import annotations

import pytest
import torch

from metalearn.bilevel import TruncatedUnrolling
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import Dense
from metalearn.metagrad import Implicit, Unrolled
from metalearn.problem import FullBatch
from metalearn.studies.rates.curves import CURVES, PROBLEMS
from metalearn.studies.rates.measure import Sizes, descent_on, fitted_slope
from metalearn.tree import relative_error

SMALL = Sizes(steps=240, replicas=256, examples=384)
NOISY = [name for name in CURVES if name.endswith("_minibatch")]
MOVING = [name for name in CURVES if name.endswith("_moving")]
EXACT = [name for name in CURVES if name not in (*NOISY, *MOVING)]


QUICK = ("soba_minibatch", "saba_minibatch", "soba_moving", "saba_moving", "stocbio_minibatch")


def pairs(names: list[str]) -> list:
    """Pairs of a curve and a problem; of those that are not of all data, a few are quick."""
    found = []
    for name in names:
        for problem in CURVES[name].problems:
            slow = name not in EXACT and (name not in QUICK or problem != "quadratic")
            found.append(pytest.param(name, problem, marks=[pytest.mark.slow] if slow else []))
    return found


def measured(name: str, problem: str, sizes: Sizes = SMALL) -> tuple[float, float, list[float]]:
    """The measured slope, that of theory, and the errors."""
    curve, make = CURVES[name], PROBLEMS[problem]
    points = curve.measure(make, sizes)
    return fitted_slope(points, curve.log), curve.slope(make(), sizes), [e for _, e in points]


@pytest.mark.parametrize(("name", "problem"), pairs(EXACT))
def test_on_all_data_the_slope_is_that_of_theory(name, problem):
    # 3 %: the second-slowest mode, and terms of second order in 1 / penalty, are left.
    slope, theory, errors = measured(name, problem)
    assert slope == pytest.approx(theory, rel=0.03)
    assert errors[-1] < 5e-3


@pytest.mark.parametrize(("name", "problem"), pairs(NOISY))
def test_on_minibatches_the_slope_is_that_of_theory(name, problem):
    # 0.12: with 256 replicas the error of each point is known to 4 %, over a factor of 5 in x.
    slope, theory, errors = measured(name, problem)
    if CURVES[name].bound:
        assert slope <= theory
    else:
        assert slope == pytest.approx(theory, abs=0.12)
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize(("name", "problem"), pairs(MOVING))
def test_with_a_moving_meta_it_falls_at_least_as_fast_as_the_theorem_says(name, problem):
    slope, theory, _ = measured(name, problem, Sizes(steps=80, replicas=64, examples=256))
    assert slope <= theory


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_the_reference_is_that_of_the_existing_implicit_gradient(problem):
    made = PROBLEMS[problem]()
    implicit = Implicit(NewtonCG(30, cg_iters=20, tol=1e-13), Dense())
    found = implicit(FullBatch(made, made.inner, made.outer), made.begin(), range(1)).grads
    # 1e-10: the rounding of a solve of condition below 3 in float64, and of the normal equations.
    assert relative_error(found, made.exact(made.begin())) < 1e-10


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_a_whole_window_is_the_existing_unrolled_gradient(problem):
    made = PROBLEMS[problem]()
    step = descent_on(made, TruncatedUnrolling(7, 7), lr=0.5).step()
    unrolled = Unrolled(GradientDescent(7, 0.5 / made.largest), backend="batched")
    task = FullBatch(made, made.inner, made.outer)
    # 1e-12: both are the same sums in float64, in another order.
    assert relative_error(step.grads, unrolled(task, made.begin(), range(1)).grads) < 1e-12


def test_the_closed_form_has_the_slopes_of_finite_differences():
    made = PROBLEMS["quadratic"]()

    def value(m: torch.Tensor) -> float:
        a, c, t = made._inner
        w = torch.linalg.lstsq(a, (c @ m + t)[:, None]).solution[:, 0]
        return float(made.outer_loss({"w": w[None]}, {"m": m[None]}, made.outer))

    m = made.begin()["m"][0]
    steps = 1e-5 * torch.eye(3, dtype=m.dtype)
    slopes = [(value(m + step) - value(m - step)) / 2e-5 for step in steps]
    # 1e-8: rounding over the step; the function is quadratic, so that no other error is left.
    exact = made.exact(made.begin())["m"][0]
    assert torch.allclose(exact, torch.tensor(slopes).to(exact), rtol=1e-8, atol=1e-8)

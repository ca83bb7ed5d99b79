"""The solvers against SciPy and published minima, on 66 problems in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from more_garbow_hillstrom import MINIMA, PROBLEMS, t

from metalearn import implicit
from metalearn.errors import UsageError
from metalearn.fixed_point import Anderson, NewtonGMRES, Picard
from metalearn.inner import LBFGS as InnerLBFGS
from metalearn.inner import GradientDescent as FixedRateDescent
from metalearn.inner import NewtonCG
from metalearn.linear_solve import GMRES
from metalearn.nonlinear_solve import (
    LBFGS,
    Bisection,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    Newton,
    NotSolved,
    SolveStatus,
)


def on_arrays(function):
    return lambda x: function(torch.from_numpy(np.asarray(x, dtype=float))).numpy()


@pytest.mark.parametrize("name", PROBLEMS)
def test_levenberg_marquardt_reaches_the_published_minimum_and_scipys(name):
    residuals, x0 = PROBLEMS[name]
    # Large residuals slow the method: brown_dennis has 500 steps to the default tolerance.
    solver = LevenbergMarquardt(rtol=1e-6 if name == "brown_dennis" else None)
    found = implicit.least_squares(residuals, x0, solver=solver)
    assert found.converged, found.sentence
    squares = residuals(found.value).square().sum().item()
    assert squares == pytest.approx(MINIMA.get(name, 0.0), rel=1e-5, abs=1e-10)
    scipys = scipy.optimize.least_squares(on_arrays(residuals), x0.numpy(), method="lm")
    assert squares <= 2 * scipys.cost * (1 + 1e-6) + 1e-10


@pytest.mark.parametrize(("dtype", "constant"), [(torch.float32, 300.0), (torch.float64, 1e7)])
@pytest.mark.parametrize("start", [2.0, 5.0])
def test_levenberg_marquardt_sees_a_fall_far_below_the_residual(dtype, constant, start):
    """Beside the constant the fall is rounding of |r|^2. |J'r| falls towards infinity too."""

    def residuals(x):
        return torch.cat([torch.full_like(x, constant), x.atan()], dim=1)

    found = LevenbergMarquardt()(residuals, torch.tensor([[start]], dtype=dtype), 100)
    # Float32 has 6e-8 of rounding, and the tolerance is 2e-5 of the first gradient.
    assert found.x.abs().item() < 1e-6


SQUARE = [
    "rosenbrock",
    "powell_badly_scaled",
    "helical_valley",
    "extended_rosenbrock",
    "trigonometric",
    "brown_almost_linear",
    "discrete_boundary_value",
    "discrete_integral",
    "broyden_tridiagonal",
    "broyden_banded",
    "chebyquad_5",
]


@pytest.mark.parametrize("solver", [Newton(), Newton(GMRES())], ids=["dense", "krylov"])
@pytest.mark.parametrize("name", SQUARE)
def test_newton_finds_scipys_root(name, solver):
    residual, x0 = PROBLEMS[name]
    found = implicit.root_find(residual, x0, solver=solver)
    assert found.converged, found.sentence
    assert found.residual_norm <= 1e-9 * residual(x0).norm()
    if name not in ("trigonometric", "brown_almost_linear"):  # these have several roots
        scipys = scipy.optimize.root(on_arrays(residual), x0.numpy(), tol=1e-12)
        assert np.allclose(found.value, scipys.x, rtol=1e-6, atol=1e-6)


def sines(x):
    return torch.sin(3 * math.pi * x[0]) ** 2 + (x[0] - 1) ** 2 + (x[1] - 1) ** 2


def coupled(x):
    return (x**2).sum() - (x[1:] * x[:-1]).sum() - 2 * x.sum()


def logistic(x):
    rows = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3).sin()
    return torch.nn.functional.softplus(rows @ x * t(1, -1).repeat(4)).sum() + 0.05 * x @ x


SMOOTH = {
    "booth": (lambda x: (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2, t(-3, 4)),
    "matyas": (lambda x: 0.26 * x @ x - 0.48 * x[0] * x[1], t(8, -5)),
    "himmelblau": (lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2, t(3, 3)),
    "three_hump_camel": (
        lambda x: 2 * x[0] ** 2 - 1.05 * x[0] ** 4 + x[0] ** 6 / 6 + x[0] * x[1] + x[1] ** 2,
        t(0.5, -0.5),
    ),
    "mccormick": (
        lambda x: (x[0] + x[1]).sin() + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
        t(0, 0),
    ),
    "styblinski_tang": (lambda x: (x**4 - 16 * x**2 + 5 * x).sum() / 2, t(-2, -2.5, -3)),
    "zakharov": (
        lambda x: x @ x + (t(0.5, 1, 1.5) @ x) ** 2 + (t(0.5, 1, 1.5) @ x) ** 4,
        t(1, -1, 0.5),
    ),
    "dixon_price": (
        lambda x: (x[0] - 1) ** 2 + (t(2, 3) * (2 * x[1:] ** 2 - x[:-1]) ** 2).sum(),
        t(1, 1, 1),
    ),
    "trid": (coupled, torch.zeros(6, dtype=torch.float64)),
    "sum_of_squares": (lambda x: (t(1, 10, 100, 1000) * x**2).sum(), t(1, 2, 3, 4)),
    "log_sum_exp": (lambda x: torch.logsumexp(torch.cat([x, -2 * x]), 0) + 0.1 * x @ x, t(1, 3)),
    "logistic": (logistic, t(0, 0, 0)),
    "levy_like": (sines, t(1.02, 1.2)),
    "quartic": (lambda x: ((x - t(1, 2, 3)) ** 4 + (x - t(1, 2, 3)) ** 2).sum(), t(0, 0, 0)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_lbfgs_finds_scipys_minimum(name):
    objective, x0 = SMOOTH[name]
    found = implicit.minimise(objective, x0)
    assert found.converged, found.sentence
    slope = torch.func.grad(objective)
    scipys = scipy.optimize.minimize(
        on_arrays(objective), x0.numpy(), jac=on_arrays(slope), method="BFGS", tol=1e-9
    )
    assert np.allclose(found.value, scipys.x, rtol=1e-6, atol=1e-6)
    assert torch.isclose(found.residual_norm, slope(found.value).norm(), atol=1e-15)


SCALAR = {
    "cube": (lambda x: x**3 - 2, 0, 3),
    "cosine": (lambda x: x.cos() - x, 0, 1),
    "exponential": (lambda x: x.exp() - 5, -1, 4),
    "logarithm": (lambda x: x.log() + x**2 - 3, 0.1, 3),
    "steep": (lambda x: x * (1 / x).exp() - 3, 0.1, 1),
    "sine": (lambda x: x.sin() - x / 2, 1, 3),
    "kepler": (lambda x: x - 0.9 * x.sin() - 0.3, 0, 3),
    "wien": (lambda x: (x - 5) * x.exp() + 5, 2, 6),
    "colebrook": (
        lambda x: 1 / x.sqrt() + 2 * (1e-4 + 2.51e-5 / x.sqrt()).log10(),
        0.005,
        0.1,
    ),
    "ninth_power": (lambda x: x**9 - 0.5, -1, 2),
    "flat": (lambda x: (x - 0.3) ** 3 + 0.01 * (x - 0.3), -1, 2),
    "at_zero": (lambda x: x.sinh(), -1.5, 2),
    "large": (lambda x: x - 1e8, 0, 1e9),
    "tiny_scale": (lambda x: 1e-20 * (x - 0.7), 0, 1),
    "normal_quantile": (lambda x: torch.special.ndtr(x) - 0.975, 0, 5),
    "annuity": (lambda x: (1 - (1 + x) ** -20) / x - 12, 0.01, 0.2),
}


@pytest.mark.parametrize("name", SCALAR)
def test_bisection_finds_scipys_root(name):
    function, low, high = SCALAR[name]
    found = implicit.root_find(function, t(1)[0], solver=Bisection(low, high))
    assert found.converged, found.sentence
    scipys = scipy.optimize.brentq(on_arrays(function), low, high, xtol=1e-14)
    assert found.value.item() == pytest.approx(scipys, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "solver",
    [None, Anderson(rtol=1e-11), Picard(rtol=1e-11), NewtonGMRES(rtol=1e-11)],
    ids=["default", "anderson", "picard", "newton"],
)
def test_fixed_point_solvers_find_scipys(solver):
    matrix = t(0.3, -0.2, 0.1, 0.4, 0.1, 0.2, -0.3, 0.2, 0.1).view(3, 3)

    def function(x):
        return torch.tanh(matrix @ x) + t(1, 2, 3) / 3

    found = implicit.find_fixed_point(function, t(0, 0, 0), solver=solver)
    assert found.converged, found.sentence
    scipys = scipy.optimize.fixed_point(on_arrays(function), np.zeros(3), xtol=1e-12)
    assert np.allclose(found.value, scipys, rtol=1e-8)


@pytest.mark.parametrize("solver", [GradientDescent(), InnerLBFGS(50), NewtonCG(50, tol=1e-10)])
def test_other_minimisers_agree_with_lbfgs(solver):
    found = implicit.minimise(logistic, t(0, 0, 0), solver=solver)
    assert found.converged, found.sentence
    assert torch.allclose(found.value, implicit.minimise(logistic, t(0, 0, 0)).value, atol=1e-8)


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "bard"])
def test_gauss_newton_agrees_with_levenberg_marquardt(name):
    residuals, x0 = PROBLEMS[name]
    found = implicit.least_squares(residuals, x0, solver=GaussNewton())
    assert found.converged, found.sentence
    other = implicit.least_squares(residuals, x0)
    assert torch.allclose(found.value, other.value, rtol=1e-5, atol=1e-5)


def flat_at_infinity(x):
    return (-x).exp()


ON_UNIT = {"solver": Bisection(0, 1)}
NAN = t(math.nan)[0]
FAILURES = {
    "no_real_root": ("root_find", lambda x: x**2 + 1, 0.7, {}, {"STALLED"}),
    "singular_start": ("root_find", lambda x: x**2 + 1, 0.0, {}, {"SINGULAR"}),
    "root_at_infinity": ("root_find", flat_at_infinity, 0.0, {}, {"MAX_STEPS", "DIVERGED"}),
    "outside_the_domain": ("root_find", torch.log, -1.0, {}, {"NON_FINITE"}),
    "few_steps": ("root_find", lambda x: x**3 - 2, 50.0, {"max_steps": 2}, {"MAX_STEPS"}),
    "no_bracket": ("root_find", torch.exp, 0.0, {"solver": Bisection(0, 1)}, {"NO_BRACKET"}),
    "pole": ("root_find", lambda x: 1 / (x - 0.3), 0.0, ON_UNIT, {"STALLED"}),
    "jump": (
        "root_find",
        lambda x: (x - 0.3).sign(),
        0.0,
        {"solver": Bisection(0, 1)},
        {"STALLED"},
    ),
    "nan_in_bracket": (
        "root_find",
        lambda x: torch.where((x > 0.4) & (x < 0.6), NAN, x - 0.5),
        0.0,
        {"solver": Bisection(0, 1)},
        {"NON_FINITE"},
    ),
    "minimum_at_infinity": ("minimise", flat_at_infinity, 0.0, {}, {"MAX_STEPS", "DIVERGED"}),
    "unbounded": ("minimise", lambda x: -x, 0.0, {"max_steps": 5}, {"MAX_STEPS", "DIVERGED"}),
    "nan_start": ("minimise", lambda x: x**2, math.nan, {}, {"NON_FINITE"}),
    "nan_objective": ("minimise", torch.sqrt, -1.0, {}, {"NON_FINITE"}),
    "inner_loop_diverges": (
        "minimise",
        lambda x: x**4,
        3.0,
        {"solver": FixedRateDescent(20, 1.0)},
        {"NON_FINITE"},
    ),
    "fit_at_infinity": (
        "least_squares",
        flat_at_infinity,
        0.0,
        {"max_steps": 60},
        {"MAX_STEPS", "DIVERGED"},
    ),
    "gauss_newton_at_infinity": (
        "least_squares",
        flat_at_infinity,
        0.0,
        {"solver": GaussNewton()},
        {"MAX_STEPS", "DIVERGED"},
    ),
    "nan_residuals": ("least_squares", torch.log, -1.0, {}, {"NON_FINITE"}),
    "no_fixed_point": ("find_fixed_point", lambda x: x + 1, 0.0, {}, {"MAX_STEPS", "STALLED"}),
    "expanding": (
        "find_fixed_point",
        lambda x: 3 * x + 1,
        0.0,
        {"solver": Picard()},
        {"DIVERGED"},
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_solve_says_so_and_stays_finite(name):
    call, function, start, options, statuses = FAILURES[name]
    with pytest.warns(NotSolved, match=call) as caught:
        found = getattr(implicit, call)(function, t(start)[0], **options)
    status = SolveStatus(int(found.status))
    assert status.name in statuses
    assert found.value.isfinite() and not found.residual_norm.isnan()
    assert found.sentence == status.sentence and status.sentence in str(caught[0].message)


def test_a_separable_logistic_regression_has_no_minimum():
    x = t(-2, -1, 1, 2)

    def loss(w):
        return torch.nn.functional.softplus(-w * x * x.sign()).sum()

    with pytest.warns(NotSolved):
        assert not implicit.minimise(loss, t(0)[0]).converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_at_the_solution_is_solved(dtype):
    x0 = torch.tensor([1.0, 1.0], dtype=dtype)
    near = x0 + torch.finfo(dtype).eps
    residual = PROBLEMS["rosenbrock"][0]
    for start in (x0, near):
        for found in (
            implicit.root_find(residual, start),
            implicit.least_squares(residual, start),
            implicit.minimise(lambda x: residual(x).square().sum(), start),
        ):
            assert found.converged, found.sentence
            assert torch.allclose(found.value, x0, atol=100 * torch.finfo(dtype).eps)


def test_bad_options_are_refused():
    for make in (
        lambda: Newton(rtol=-1.0),
        lambda: LBFGS(memory=0),
        lambda: LBFGS(atol=math.nan),
        lambda: GradientDescent(rate=0.0),
        lambda: LevenbergMarquardt(damping=0.0),
        lambda: GaussNewton(damping=-1.0),
        lambda: Bisection(1.0, 1.0),
        lambda: Bisection(0.0, math.inf),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()


@pytest.mark.parametrize(
    ("find", "solver"),
    [
        (implicit.root_find, LBFGS()),
        (implicit.root_find, LevenbergMarquardt()),
        (implicit.root_find, Newton),
        (implicit.minimise, Newton()),
        (implicit.minimise, GaussNewton()),
        (implicit.least_squares, LBFGS()),
        (implicit.find_fixed_point, Newton()),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_a_solver_of_another_problem_is_refused(find, solver):
    with pytest.raises(UsageError, match=r"solver=.*: expected a solver of this kind of problem"):
        find(lambda x: x.sum(), torch.ones(2), solver=solver)


@pytest.mark.parametrize(
    "find", [implicit.root_find, implicit.least_squares, implicit.find_fixed_point]
)
def test_functions_that_cannot_be_searched_are_refused(find):
    c = torch.tensor(2.0, requires_grad=True)
    for function, said in (
        (lambda x, c: None, "gives NoneType: expected a tensor"),
        (lambda x, c: [x - c, 1.0], "gives float: expected a tensor"),
        (lambda x, c: torch.autograd.grad(((x - c) ** 2).sum(), x)[0], r"torch\.func\.grad"),
    ):
        with pytest.raises(UsageError, match=said):
            find(function, torch.ones(1), c)


def test_half_precision_is_solved_or_refused():
    c = torch.tensor(2.0, dtype=torch.bfloat16, requires_grad=True)
    start = torch.ones(1, dtype=torch.bfloat16)
    for find in (implicit.root_find, implicit.least_squares):
        with pytest.raises(UsageError, match="expected float32 or float64"):
            find(lambda x, c: x**3 - c, start, c)
    found = implicit.minimise(lambda x, c: ((x - c) ** 2).sum(), start, c)
    assert found.value.item() == 2.0


@pytest.mark.parametrize("solver", [LBFGS(), GradientDescent()], ids=repr)
def test_inference_mode_is_refused(solver):
    with torch.inference_mode(), pytest.raises(UsageError, match="no_grad"):
        implicit.minimise(
            lambda x, c: (x - c) ** 2, torch.tensor(0.0), torch.tensor(2.0), solver=solver
        )

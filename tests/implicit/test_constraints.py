"""Constrained problems as fixed points and KKT systems, against other solvers and closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from sklearn.svm import LinearSVC

from metalearn import implicit
from metalearn.fixed_point import NewtonGMRES
from metalearn.implicit.constraints import (
    kkt,
    project_ball,
    project_box,
    project_nonnegative,
    project_simplex,
    prox_group_lasso,
    prox_l1,
    proximal_step,
)
from metalearn.linear_solve import Dense

WIDE = {"dtype": torch.float64}


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **WIDE)


X, Y = rand(20, 5), rand(20, seed=1)
RATE = 1 / torch.linalg.eigvalsh(X.T @ X)[-1].item()
DIRECT = {"solver": NewtonGMRES(rtol=1e-12, max_iters=1000), "linear_solver": Dense()}


def half_squares(w, *_):
    return ((X @ w - Y) ** 2).sum() / 2


def differences(function, c, h=1e-6):
    return (function(c + h) - function(c - h)) / (2 * h)


def proximal_fit(prox):
    """Return the map from a constraint's parameter to the fit."""
    step = proximal_step(half_squares, prox, RATE)

    def fit(c):
        return implicit.find_fixed_point(
            step, torch.zeros(5, **WIDE), c, max_steps=1000, **DIRECT
        ).value

    return fit


def test_the_lasso_path_is_scikit_learns():
    fit = proximal_fit(lambda y, rate, c: prox_l1(y, rate * c))
    for penalty in (0.1, 1.0, 3.0, 6.0):
        c = torch.tensor(penalty, **WIDE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            lasso = Lasso(alpha=penalty / 20, fit_intercept=False, tol=1e-14, max_iter=100_000)
            lasso.fit(X.numpy(), Y.numpy())
        w = fit(c)
        assert np.allclose(w, lasso.coef_, atol=1e-6)
        # On the support S, w = (X_S'X_S)^-1 (X_S'y - c sign).
        kept = w.abs() > 1e-8
        expected = torch.zeros(5, **WIDE)
        expected[kept] = -torch.linalg.solve(X[:, kept].T @ X[:, kept], w[kept].sign())
        assert torch.allclose(torch.func.jacrev(fit)(c), expected, atol=1e-6)


def test_an_svm_dual_in_a_box_is_scikit_learns():
    labels = Y.sign()
    rows = labels[:, None] * X
    gram = rows @ rows.T + 1e-9 * torch.eye(20, **WIDE)
    step = proximal_step(
        lambda a, c: a @ gram @ a / 2 - a.sum(), lambda a, _, c: project_box(a, 0.0, c), 0.05
    )

    def weights(c):
        dual = implicit.find_fixed_point(
            step, torch.zeros(20, **WIDE), c, max_steps=3000, **DIRECT
        ).value
        return rows.T @ dual

    c = torch.tensor(0.05, **WIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm = LinearSVC(
            loss="hinge", C=0.05, fit_intercept=False, tol=1e-13, max_iter=200_000, random_state=0
        )
        svm.fit(X.numpy(), labels.numpy())
    assert np.allclose(weights(c), svm.coef_[0], atol=1e-6)
    assert torch.allclose(torch.func.jacfwd(weights)(c), differences(weights, c), atol=1e-5)


@pytest.mark.parametrize(
    "prox, bounds",
    [
        (lambda y, rate, c: project_nonnegative(y - 0 * c), (0, np.inf)),
        (lambda y, rate, c: project_box(y, -c, c), (-0.2, 0.2)),
    ],
    ids=["nonnegative", "box"],
)
def test_bounded_least_squares_is_scipys(prox, bounds):
    fit, c = proximal_fit(prox), torch.tensor(0.2, **WIDE)
    scipys = scipy.optimize.lsq_linear(X.numpy(), Y.numpy(), bounds, method="bvls", tol=1e-14)
    assert np.allclose(fit(c), scipys.x, atol=1e-6)
    assert torch.allclose(torch.func.jacrev(fit)(c), differences(fit, c), atol=1e-6)


def test_a_fit_in_a_ball_is_ridge_regression_of_that_norm():
    fit, c = proximal_fit(lambda y, rate, c: project_ball(y, c)), torch.tensor(0.3, **WIDE)
    w = fit(c)

    def ridge(penalty):
        return torch.linalg.solve(X.T @ X + penalty * torch.eye(5, **WIDE), X.T @ Y)

    penalty = scipy.optimize.brentq(
        lambda penalty: ridge(penalty).norm().item() - 0.3, 0, 1e3, xtol=1e-13
    )
    assert torch.allclose(w, ridge(penalty), atol=1e-6)
    assert torch.allclose(torch.func.jacrev(fit)(c), differences(fit, c), atol=1e-6)


def test_the_group_lasso_of_an_orthonormal_design_has_its_closed_form():
    q = torch.linalg.qr(rand(12, 6, seed=2)).Q
    y = rand(12, seed=3)

    def fit(c):
        step = proximal_step(
            lambda w, c: ((q @ w.flatten() - y) ** 2).sum() / 2,
            lambda w, rate, c: prox_group_lasso(w, rate * c),
            0.7,
        )
        return implicit.find_fixed_point(step, torch.zeros(3, 2, **WIDE), c, **DIRECT).value

    groups = (q.T @ y).view(3, 2)
    norms = groups.norm(dim=1)
    c = norms.sort().values[:2].mean()  # zero for one group, not for two
    expected = groups * (1 - c / norms).clamp_min(0)[:, None]
    assert torch.allclose(fit(c), expected, atol=1e-6)
    slope = torch.where((norms > c)[:, None], -groups / norms[:, None], 0.0)
    assert torch.allclose(torch.func.jacrev(fit)(c), slope, atol=1e-6)


def test_the_projection_onto_the_simplex_solves_its_optimality_conditions():
    y = rand(50, 7)
    x = project_simplex(y, 2.0)
    assert torch.allclose(x.sum(-1), torch.tensor(2.0, **WIDE)) and (x >= 0).all()
    shift = ((y - x) * (x > 0)).sum(-1) / (x > 0).sum(-1)  # y - x = shift on the support
    assert torch.allclose(x, (y - shift[:, None]).relu(), atol=1e-12)
    for i in range(2):
        scipys = scipy.optimize.minimize(
            lambda z, i=i: ((z - y[i].numpy()) ** 2).sum() / 2,
            np.full(7, 2 / 7),
            jac=lambda z, i=i: z - y[i].numpy(),
            bounds=[(0, None)] * 7,
            constraints={"type": "eq", "fun": lambda z: z.sum() - 2, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert np.allclose(x[i], scipys.x, atol=1e-6)
    assert torch.autograd.gradcheck(project_simplex, (y[:3].requires_grad_(), x[0].sum()))


PROX = {
    "box": lambda y: project_box(y, -0.5, torch.tensor(0.7, **WIDE)),
    "nonnegative": project_nonnegative,
    "simplex": project_simplex,
    "ball": project_ball,
    "l1": lambda y: prox_l1(y, 0.4),
    "group_lasso": lambda y: prox_group_lasso(y, 0.4),
}


@pytest.mark.parametrize("name", PROX)
def test_every_map_is_firmly_nonexpansive_and_finite_at_zero(name):
    prox = PROX[name]
    a, b = 2 * rand(200, 4), 2 * rand(200, 4, seed=1)
    gap = prox(a) - prox(b)
    assert ((gap * gap).sum(-1) <= (gap * (a - b)).sum(-1) + 1e-12).all()
    zero = torch.zeros(4, **WIDE)
    assert torch.func.jacrev(prox)(zero).isfinite().all()
    assert torch.autograd.gradcheck(prox, a[:3].clone().requires_grad_())


def test_a_portfolio_with_a_budget_and_a_return_has_its_closed_form():
    root = rand(4, 4)
    covariance, returns = root @ root.T + torch.eye(4, **WIDE), rand(4, seed=1)

    def portfolio(target):
        residual = kkt(
            lambda x, target: x @ covariance @ x / 2,
            lambda x, target: torch.stack([x.sum() - 1, returns @ x - target]),
        )
        start = (torch.zeros(4, **WIDE), torch.zeros(2, **WIDE))
        return implicit.root_find(residual, start, target, linear_solver=Dense()).value[0]

    def closed_form(target):
        sides = torch.stack([torch.ones(4, **WIDE), returns])
        inverse = torch.linalg.solve(covariance, sides.T)
        goal = torch.stack([torch.ones_like(target), target])
        return inverse @ torch.linalg.solve(sides @ inverse, goal)

    target = torch.tensor(0.3, **WIDE)
    assert torch.allclose(portfolio(target), closed_form(target), atol=1e-10)
    exact = torch.func.jacrev(closed_form)(target)
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.allclose(mode(portfolio)(target), exact, atol=1e-8)


def test_a_nonlinear_equality_is_differentiated_in_a_batch():
    def objective(x, c):
        return ((x - c) ** 2).sum(-1)

    def points(c):  # the nearest points of the unit circle: c / |c|
        start = (torch.nn.functional.normalize(c.detach() + 0.1), c.new_zeros(len(c)))
        residual = kkt(objective, lambda x, c: (x**2).sum(-1) - 1)
        found = implicit.root_find(residual, start, c, batched=True, linear_solver=Dense())
        return found.value[0]

    c = torch.tensor([[2.0, 1.0], [-0.5, 1.5], [3.0, -1.0]], **WIDE)
    exact = torch.func.jacrev(torch.nn.functional.normalize)(c)
    assert torch.allclose(points(c), torch.nn.functional.normalize(c), atol=1e-9)
    assert torch.allclose(torch.func.jacrev(points)(c), exact, atol=1e-7)

"""The certificate's bound against the true error, on problems whose constants are known."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Dense
from metalearn.metagrad import FirstOrder, Implicit
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.smoothness import Smoothness, local_smoothness

TASKS, SIZE, ROWS = 40, 6, 12


class Logistic:
    """inner = sum softplus(a_i phi) - b phi + lambda |phi - theta|^2 / 2, outer = |phi - c|^2 / 2.

    Each task has a theta of its own, so that its meta-gradient is seen apart. The inner objective
    is lambda-strongly convex; |sigmoid''| <= 1 / (6 sqrt 3) bounds the Lipschitz constant of its
    Hessian by max |a_i| |A'A| / (6 sqrt 3); M = -lambda I.
    """

    def __init__(self, seed, scale, prox):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.A, self.b, self.c = (
            scale * draw(TASKS, ROWS, SIZE),
            draw(TASKS, SIZE),
            draw(TASKS, SIZE),
        )
        self.theta, self.prox = draw(TASKS, SIZE), prox

    def init(self, meta, task):
        return {"phi": meta}

    def inner_objective(self, params, meta, task):
        phi = params["phi"]
        fit = softplus(torch.einsum("tri,ti->tr", self.A, phi)).sum(1)
        return fit - (self.b * phi).sum(1) + 0.5 * self.prox * ((phi - meta) ** 2).sum(1)

    def outer_objective(self, params, meta, task):
        return 0.5 * ((params["phi"] - self.c) ** 2).sum(1), {}

    def exact(self):
        """lambda H^-1 (phi* - c), phi* by Newton's method from the line search's last point."""
        meta, everyone = self.theta, range(TASKS)
        phi = NewtonCG(12, 6)(
            lambda p: self.inner_objective(p, meta, everyone), {"phi": meta}
        ).params["phi"]
        for _ in range(4):
            p = torch.sigmoid(torch.einsum("tri,ti->tr", self.A, phi))
            gradient = torch.einsum("tri,tr->ti", self.A, p) - self.b + self.prox * (phi - meta)
            hessian = torch.einsum("tri,tr,trj->tij", self.A, p * (1 - p), self.A)
            hessian = hessian + self.prox * torch.eye(SIZE, dtype=torch.float64)
            phi = phi - torch.linalg.solve(hessian, gradient)
        assert gradient.norm(dim=1).max() < 1e-12
        return self.prox * torch.linalg.solve(hessian, phi - self.c)

    def constants(self):
        spectral = torch.linalg.matrix_norm(self.A, 2) ** 2
        return Smoothness(
            strong_convexity=self.prox,
            mixed_norm=self.prox,
            outer_lipschitz=1.0,
            curvature_lipschitz=self.A.norm(dim=2).amax(1) * spectral / (6 * 3**0.5),
        )


def per_task(way, problem):
    """Each task's own gradient: meta has a row for each, and the result is the mean of them."""
    result = way(problem, problem.theta, range(TASKS))
    return result.grads * TASKS, result.certificate


CASES = [
    (scale, prox, steps, iterations, damping)
    for scale, prox in ((0.3, 0.5), (0.3, 2.0), (0.6, 0.1))
    for steps in (0, 2, 10, 40)
    for iterations in (1, 2, 4)
    for damping in ((0.0, 0.1) if iterations == 4 else (0.0,))
]


def test_the_bound_holds_in_every_one_of_over_1000_problems_and_is_near():
    ratios = []
    for seed, (scale, prox, steps, iterations, damping) in enumerate(CASES):
        problem = Logistic(seed, scale, prox)
        exact = problem.exact()
        inner = GradientDescent(steps, 0.1 / prox)
        way = Implicit(inner, CG(iterations, rtol=0.0), damping=damping)
        found, certificate = per_task(way, problem)
        bound = certificate.bound(problem.constants())
        error = (found - exact).norm(dim=1)
        assert (error <= bound + 1e-12).all()
        ratios.append(bound / error)
    ratios = torch.cat(ratios)
    assert len(ratios) >= 1000
    print(f"{len(ratios)} problems: bound / error in the median {ratios.median():.1f}")
    assert ratios.median() <= 100


def test_the_bound_is_tight_where_only_the_solve_is_inexact():
    # A quadratic inner problem, solved: the error is lambda |H^-1 r|, the bound lambda |r| / m.
    problem = Logistic(0, 0.0, 2.0)
    exact = problem.exact()
    found, certificate = per_task(
        Implicit(NewtonCG(5, 20, tol=1e-13), CG(1, rtol=0.0), damping=0.5), problem
    )
    error = (found - exact).norm(dim=1)
    bound = certificate.bound(problem.constants())
    assert torch.allclose(bound, error, rtol=1e-9)  # H = m I: nothing is lost on the way


def test_no_bound_is_given_where_none_is_known():
    problem = Logistic(0, 0.3, 1.0)
    constants = problem.constants()
    unsolved = Implicit(GradientDescent(2, 0.1), linear_solver=None)
    _, certificate = per_task(unsolved, problem)
    with pytest.raises(ValueError, match="no linear system"):
        certificate.bound(constants)
    assert per_task(FirstOrder(GradientDescent(2, 0.1)), problem)[1] is None
    _, certificate = per_task(Implicit(GradientDescent(2, 0.1), CG(2)), problem)
    with pytest.raises(ValueError, match="strong_convexity=0"):
        certificate.bound(Smoothness(0, 1.0, 1.0))
    gauss = Certificate(**{**certificate.__dict__, "exact_curvature": False})
    with pytest.raises(ValueError, match="Gauss-Newton"):
        gauss.bound(constants)


def test_constants_measured_at_a_point_are_below_the_true_ones_and_exact_for_a_quadratic():
    problem = Logistic(0, 0.3, 1.0)
    params = {"phi": problem.theta + 1.0}
    measured = local_smoothness(problem, params, problem.theta, range(TASKS), 1.0, 1.0)
    known = problem.constants()
    assert torch.allclose(measured.outer_lipschitz, torch.ones(TASKS, dtype=torch.float64))
    assert (measured.curvature_lipschitz > 0).all()
    assert (measured.curvature_lipschitz <= known.curvature_lipschitz).all()
    assert (known.kind, measured.kind) == ("bound", "estimate")


@pytest.mark.parametrize(("solver", "kind"), [(Dense(), "bound"), (CG(2), "estimate")])
def test_the_solve_s_error_says_if_it_is_a_bound(solver, kind):
    problem = Logistic(0, 0.3, 1.0)
    way = Implicit(GradientDescent(2, 0.1), solver)
    assert per_task(way, problem)[1].solve_error_kind == kind


def test_a_task_without_an_iteration_has_a_stability_of_zero():
    problem = Logistic(0, 0.3, 1.0)
    way = Implicit(GradientDescent(2, 0.1), CG(2), damping=0.5)
    problem.c[0] = problem.theta[0]
    moved = per_task(way, problem)[1].inner_stability
    start = Implicit(
        GradientDescent(2, 1e-30), CG(2), damping=0.5
    )  # phi is theta: nothing to solve
    certificate = per_task(start, problem)[1]
    assert certificate.iterations[0] == 0 and not certificate.ritz_known[0]
    assert certificate.inner_stability[0] == 0 and certificate.inner_stability.isfinite().all()
    assert (moved > 0).all()
    problem.c = problem.theta
    assert per_task(start, problem)[1].inner_stability is None

from __future__ import annotations

import itertools

import pytest
import torch
from zoo import LearnedRidge, Quadratic, few_shot, finite_differences, problems, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import (
    CG,
    GMRES,
    BiCGStab,
    Dense,
    Jacobi,
    Neumann,
    NormalCG,
    Nystrom,
    Status,
)
from metalearn.metagrad import FirstOrder, Implicit, NonFiniteGradient, Unrolled
from metalearn.metagrad.curvature import GaussNewton, Hessian
from metalearn.tree import requires_grad_copy

CONVERGED = NewtonCG(60, cg_iters=40, tol=1e-11)


def test_the_quadratic_has_its_closed_form():
    problem, meta, task = problems()["quadratic"]
    eye = torch.eye(4, dtype=torch.float64)
    A = problem.A + problem.prox * eye
    phi = torch.linalg.solve(A, problem.b + problem.prox * meta["theta"])
    exact = problem.prox * torch.linalg.solve(A, phi - problem.c).mean(0)
    result = Implicit(CONVERGED, CG(20, rtol=1e-14))(problem, meta, task)
    assert relative_difference(result.grads, {"theta": exact}) < 1e-9


def test_unrolled_gradient_descent_has_its_closed_form():
    # d phi_T / d theta = (I - aA)^T + a lambda sum_{j<T} (I - aA)^j
    problem, meta, task = problems()["quadratic"]
    rate, steps = 0.1, 7
    eye = torch.eye(4, dtype=torch.float64)
    A = problem.A + problem.prox * eye
    contraction = eye - rate * A
    power, total = eye.expand_as(A), torch.zeros_like(A)
    for _ in range(steps):
        total, power = total + power, power @ contraction
    jacobian = power + rate * problem.prox * total
    result = Unrolled(GradientDescent(steps, rate), "batched")(problem, meta, task)
    away = result.inner.params["phi"] - problem.c
    exact = torch.einsum("tij,ti->tj", jacobian, away).mean(0)
    assert relative_difference(result.grads, {"theta": exact}) < 1e-12


def test_cg_goes_to_dense_as_iterations_grow():
    problem, meta, task = few_shot(regression=False, prox=0.5)
    exact = Implicit(CONVERGED, Dense())(problem, meta, task).grads
    errors = [
        relative_difference(Implicit(CONVERGED, CG(k, rtol=0.0))(problem, meta, task).grads, exact)
        for k in (1, 3, 6, 12, 32)
    ]
    assert all(b < a for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-9


@pytest.mark.parametrize(
    "solver",
    [
        Neumann(800, rtol=1e-9),
        GMRES(60, restart=40, rtol=1e-9),
        BiCGStab(100, rtol=1e-9),
        NormalCG(400, rtol=1e-9),
        CG(60, rtol=1e-9, preconditioner=Nystrom(8, 1e-3)),
        CG(60, rtol=1e-9, preconditioner=Jacobi(8)),
        Nystrom(32, 1e-12),
    ],
    ids=lambda s: type(getattr(s, "preconditioner", None) or s).__name__,
)
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_every_linear_solver_gives_one_gradient(solver, curvature):
    problem, meta, task = problems()["classification"]
    inner = GradientDescent(20, 0.3)
    exact = Implicit(inner, Dense(), curvature=curvature)(problem, meta, task).grads
    result = Implicit(inner, solver, curvature=curvature)(problem, meta, task)
    assert (result.certificate.status == Status.CONVERGED).all()
    # Residuals of 1e-9 over a least curvature of about prox = 0.5.
    assert relative_difference(result.grads, exact) < 1e-7


def test_damping_is_added_to_the_curvature():
    problem, meta, task = problems()["quadratic"]
    eye = torch.eye(4, dtype=torch.float64)
    A = problem.A + (problem.prox + 0.3) * eye
    result = Implicit(CONVERGED, Dense(), damping=0.3)(problem, meta, task)
    away = result.inner.params["phi"] - problem.c
    exact = problem.prox * torch.linalg.solve(A, away).mean(0)
    assert relative_difference(result.grads, {"theta": exact}) < 1e-9


@pytest.mark.parametrize("regression", [False, True])
def test_gauss_newton_is_the_generalised_gauss_newton_matrix(regression):
    problem, meta, task = few_shot(regression, prox=0.5)
    task = task[:1]
    params = requires_grad_copy({k: v.detach() for k, v in problem.init(meta, task).items()})
    curvature = GaussNewton(problem, params, requires_grad_copy(meta), task)
    names, shapes = list(params), [p.shape for p in params.values()]
    sizes = [p.numel() for p in params.values()]

    def predictions(flat):
        parts = [x.view(s) for x, s in zip(flat.split(sizes), shapes, strict=True)]
        return problem.model(dict(zip(names, parts, strict=True)), task.support_x)[0]

    flat = torch.cat([p.detach().flatten() for p in params.values()])
    J = torch.func.jacrev(predictions)(flat).flatten(0, 1)
    out = predictions(flat)
    n, c = out.shape
    if regression:
        H = torch.eye(n * c, dtype=torch.float64) * 2 / (n * c)
    else:
        p = out.softmax(1)
        H = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / n
    exact = J.T @ H @ J + problem.prox * torch.eye(len(flat), dtype=torch.float64)
    for _ in range(3):
        v = torch.randn(len(flat), dtype=torch.float64)
        parts = [x.view(s) for x, s in zip(v.split(sizes), shapes, strict=True)]
        product = torch.cat([x.flatten() for x in curvature.matvec(parts)])
        assert torch.allclose(product, exact @ v, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["quadratic", "ridge", "regression", "head", "learned_prox", "scaled"]
)
def test_both_curvatures_agree_on_gradients_and_mixed_partials(name):
    problem, meta, task = (problems() | {"scaled": scaled_ridge()})[name]
    params = requires_grad_copy(
        {k: v + torch.randn_like(v) for k, v in problem.init(meta, task).items()}
    )
    at = requires_grad_copy(meta)
    hessian, gauss = Hessian(problem, params, at, task), GaussNewton(problem, params, at, task)
    assert relative_difference(gauss.gradient, hessian.gradient) < 1e-12
    x = [torch.randn_like(p) for p in params.values()]
    assert relative_difference(gauss.mixed(x), hessian.mixed(x)) < 1e-12


def scaled_ridge():
    """Ridge regression whose outputs, and their Jacobian, depend on meta."""

    class ScaledRidge(LearnedRidge):
        def inner_outputs(self, params, meta, task):
            fit, w = super().inner_outputs(params, meta, task)
            return fit * meta["penalty"]["log"].sum().exp(), w

    _, meta, task = problems()["ridge"]
    return ScaledRidge(tasks=len(task), n=8, size=4), meta, task


def test_gauss_newton_is_exact_where_the_model_is_linear():
    problem, meta, task = problems()["ridge"]
    exact = finite_differences(problem, meta, task, CONVERGED)
    result = Implicit(CONVERGED, Dense(), curvature="gauss_newton")(problem, meta, task)
    assert relative_difference(result.grads, exact) < 1e-6


def test_negative_curvature_is_a_status_and_never_nan():
    problem = Quadratic(3, 4, prox=0.5)
    problem.A[1] = -problem.A[1] - torch.eye(4, dtype=torch.float64)
    _, meta, task = problems()["quadratic"]
    result = Implicit(GradientDescent(3, 0.1), CG(10))(problem, meta, task)
    assert result.certificate.status[1] == Status.NEGATIVE_CURVATURE
    assert result.certificate.eigenvalue_bounds[0][1] < 0
    assert (result.certificate.status[[0, 2]] == Status.CONVERGED).all()
    assert result.grads["theta"].isfinite().all()


def test_a_problem_whose_inner_objective_ignores_meta_is_refused():
    problem, meta, task = few_shot(regression=False, prox=0.0)
    with pytest.raises(UsageError, match="does not depend on the meta-parameters"):
        Implicit(GradientDescent(3, 0.1))(problem, meta, task)


def test_a_problem_without_the_split_cannot_have_gauss_newton():
    problem, meta, task = problems()["quadratic"]

    class Plain:
        init, inner_objective = problem.init, problem.inner_objective
        outer_objective = problem.outer_objective

    with pytest.raises(UsageError, match="inner_outputs"):
        Implicit(GradientDescent(1, 0.1), curvature="gauss_newton")(Plain(), meta, task)


@pytest.mark.parametrize(
    "metagrad",
    [
        Implicit(GradientDescent(40, 1e6)),
        Unrolled(GradientDescent(40, 1e6)),
        Unrolled(GradientDescent(40, 1e6), "batched"),
    ],
    ids=["implicit", "higher", "batched"],
)
def test_divergence_is_an_error_and_not_a_nan(metagrad):
    problem, meta, task = few_shot(regression=True, prox=0.5)
    with pytest.raises(NonFiniteGradient, match="not finite"):
        metagrad(problem, meta, task)


def test_a_zero_gradient_is_no_error_where_meta_is_reached():
    # With no inner step w = 0, at which a ridge penalty has no mixed partial: the value 0 is right.
    problem, meta, task = problems()["ridge"]
    result = Implicit(GradientDescent(0, 0.1), CG(5))(problem, meta, task)
    direct = 0.02 * meta["penalty"]["log"]
    assert relative_difference(result.grads["penalty"]["log"], direct) < 1e-12


@pytest.mark.parametrize(
    "way",
    [
        Implicit(GradientDescent(2, 0.1), CG(5)),
        Unrolled(GradientDescent(2, 0.1), backend="batched"),
        Unrolled(GradientDescent(2, 0.1), backend="higher"),
        FirstOrder(GradientDescent(2, 0.1)),
    ],
    ids=lambda w: f"{type(w).__name__}-{getattr(w, 'backend', '')}",
)
def test_a_leaf_of_meta_that_no_gradient_reaches_is_an_error(way):
    problem, meta, task = problems()["quadratic"]
    with pytest.raises(UsageError, match=r"no gradient reaches meta.*stray"):
        way(problem, {**meta, "stray": torch.ones(2, dtype=torch.float64)}, task)


def test_no_iterations_are_no_solver():
    with pytest.raises(UsageError, match="linear_solver=None"):
        Implicit(GradientDescent(2, 0.1), CG(0))


def test_a_solve_that_starts_at_its_solution_takes_no_iteration():
    problem, meta, task = problems()["classification"]
    way = Implicit(CONVERGED, CG(60, rtol=1e-9))
    cold = way(problem, meta, task)
    again = way(problem, meta, task, x0=cold.solution)
    assert (cold.certificate.iterations > 5).all()
    assert again.certificate.iterations.tolist() == [0, 0, 0]
    assert relative_difference(again.grads, cold.grads) < 1e-14


def test_tasks_that_recur_need_fewer_iterations():
    problem, meta, task = problems()["ridge"]
    way = Implicit(CONVERGED, CG(60, rtol=1e-3))
    solution = way(problem, meta, task).solution
    moved = {"penalty": {"log": meta["penalty"]["log"] + 1e-3}}
    cold, warm = way(problem, moved, task), way(problem, moved, task, x0=solution)
    assert (warm.certificate.iterations < cold.certificate.iterations).all()
    assert (warm.certificate.status == Status.CONVERGED).all()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_warm_start_carries_the_mean_and_leaves_the_gradient(curvature):
    problem, meta, task = problems()["regression"]
    way = Implicit(CONVERGED, CG(60, rtol=1e-11), curvature=curvature, warm_start=True)
    cold = way(problem, meta, task)
    for name, x in cold.solution.items():
        assert torch.allclose(cold.solver_state["x0"][name], x.mean(0, keepdim=True))
    warm = way(problem, meta, task, **cold.solver_state)
    assert relative_difference(warm.grads, cold.grads) < 1e-8
    assert not torch.equal(warm.certificate.residual_norm, cold.certificate.residual_norm)
    assert Implicit(CONVERGED)(problem, meta, task).solver_state == {}
    assert Implicit(CONVERGED, None, warm_start=True)(problem, meta, task).solver_state == {}


def test_a_warm_start_leaves_out_the_tasks_whose_solve_broke_off():
    class Broken:
        def __init__(self, *tasks):
            self.tasks = list(tasks)

        def __call__(self, *args, **options):
            solution = CG(60, rtol=1e-11)(*args, **options)
            solution.status[self.tasks] = int(Status.NEGATIVE_CURVATURE)
            return solution

    problem, meta, task = problems()["quadratic"]
    everyone = range(len(task))
    some = Implicit(CONVERGED, Broken(0), warm_start=True)(problem, meta, task)
    none = Implicit(CONVERGED, Broken(*everyone), warm_start=True)(problem, meta, task)
    for name, x in some.solution.items():
        assert torch.allclose(some.solver_state["x0"][name], x[1:].mean(0, keepdim=True))
        assert torch.equal(none.solver_state["x0"][name], torch.zeros_like(x[:1]))

"""Every meta-gradient on every problem, against finite differences of what it differentiates."""

from __future__ import annotations

import pytest
import torch
from zoo import (
    FIRST_ORDER,
    NAMES,
    UNROLLED,
    finite_differences,
    problems,
    relative_difference,
    solution_differences,
    unrolled_problems,
)

from metalearn.inner import Adam, GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Dense, Status
from metalearn.metagrad import FirstOrder, Implicit, Unrolled

CONVERGED = NewtonCG(60, cg_iters=40, tol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_implicit_is_the_derivative_of_the_converged_problem(name):
    problem, meta, task = problems()[name]
    near = FirstOrder(CONVERGED).adapt(problem, meta, task).params
    exact = solution_differences(problem, meta, task, near)
    for solver in (Dense(), CG(60, rtol=1e-12)):
        result = Implicit(CONVERGED, solver)(problem, meta, task)
        assert result.certificate.inner_grad_norm.max() < 1e-10
        assert (result.certificate.status == Status.CONVERGED).all()
        assert relative_difference(result.grads, exact) < 1e-6


@pytest.mark.parametrize("name", UNROLLED)
@pytest.mark.parametrize(
    "inner", [GradientDescent(4, 0.1), GradientDescent(4, 0.1, 0.9), Adam(4, 0.05)], ids=repr
)
def test_unrolled_is_the_derivative_of_the_loop_as_run(name, inner):
    problem, meta, task = unrolled_problems()[name]
    # Adam's first steps bend sharply where a gradient is small; with no inner solve to blur the
    # value, a short step is right.
    exact = finite_differences(problem, meta, task, inner, step=1e-4)
    for backend in ("higher", "batched"):
        result = Unrolled(inner, backend)(problem, meta, task)
        assert relative_difference(result.grads, exact) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_unrolled_goes_to_implicit_as_the_inner_loop_converges(name):
    problem, meta, task = problems()[name]
    exact = Implicit(CONVERGED, Dense())(problem, meta, task).grads
    errors = [
        relative_difference(
            Unrolled(GradientDescent(k, 0.3), "batched")(problem, meta, task).grads, exact
        )
        for k in (10, 100, 1000)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_no_linear_solver_is_the_first_order_gradient(name):
    problem, meta, task = problems()[name]
    inner = GradientDescent(5, 0.1)
    first = FirstOrder(inner)(problem, meta, task)
    none = Implicit(inner, linear_solver=None)(problem, meta, task)
    assert relative_difference(none.grads, first.grads) == 0
    assert none.certificate.status is None


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_tasks_is_the_mean_of_single_tasks(name):
    problem, meta, task = problems()[name]
    metagrad = Implicit(GradientDescent(20, 0.2), CG(50, rtol=1e-13))
    together = metagrad(problem, meta, task)
    alone = [metagrad(problem, meta, task[i : i + 1]) for i in range(len(task))]
    assert torch.allclose(together.outer_loss, torch.cat([r.outer_loss for r in alone]))
    mean = torch.stack([torch.cat([g.flatten() for g in _leaves(r.grads)]) for r in alone]).mean(0)
    assert (
        relative_difference([torch.cat([g.flatten() for g in _leaves(together.grads)])], [mean])
        < 1e-9
    )


def _leaves(tree):
    from metalearn.tree import leaves_of

    return leaves_of(tree)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_meta_is_left_alone(name):
    problem, meta, task = problems()[name]
    before = [x.detach().clone() for x in _leaves(meta)]
    for metagrad in (
        Unrolled(GradientDescent(2, 0.1)),
        Unrolled(GradientDescent(2, 0.1), "batched"),
        FirstOrder(GradientDescent(2, 0.1)),
        Implicit(GradientDescent(2, 0.1)),
    ):
        result = metagrad(problem, meta, task)
        assert not any(g.requires_grad for g in _leaves(result.grads))
    assert all(torch.equal(a, b) for a, b in zip(before, _leaves(meta), strict=True))
    assert all(x.grad is None for x in _leaves(meta))

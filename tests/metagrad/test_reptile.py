from __future__ import annotations

import pytest
import torch
from zoo import problems, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.metagrad import FirstOrder, Reptile
from metalearn.tree import detached


def test_the_quadratic_has_its_closed_form():
    # phi_K - phi* = (I - aA)^K (theta - phi*)
    problem, meta, task = problems()["quadratic"]
    eye = torch.eye(4, dtype=torch.float64)
    A = problem.A + problem.prox * eye
    best = torch.linalg.solve(A, problem.b + problem.prox * meta["theta"])
    power = torch.linalg.matrix_power(eye - 0.1 * A, 7)
    phi = best + torch.einsum("tij,tj->ti", power, meta["theta"] - best)
    result = Reptile(GradientDescent(7, 0.1))(problem, meta, task)
    assert relative_difference(result.grads, {"theta": meta["theta"] - phi.mean(0)}) < 1e-12
    away = phi - problem.c
    assert torch.allclose(result.outer_loss, 0.5 * (away * away).sum(1))


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_a_step_of_rate_one_is_the_mean_of_the_adapted_parameters(name):
    problem, meta, task = problems()[name]
    inner = GradientDescent(5, 0.1)
    result = Reptile(inner)(problem, meta, task)
    adapted = FirstOrder(inner).adapt(problem, meta, task).params
    for key, p in meta.items():
        assert torch.allclose(p - result.grads[key], adapted[key].mean(0), atol=1e-14)
    assert result.metrics.keys() == FirstOrder(inner)(problem, meta, task).metrics.keys()


def test_queries_decide_nothing():
    problem, meta, task = problems()["classification"]
    other = type(task)(task.support_x, task.support_y, task.query_x + 1, 1 - task.query_y)
    one, two = (Reptile(GradientDescent(5, 0.1))(problem, meta, t).grads for t in (task, other))
    assert relative_difference(one, two) == 0


def test_with_a_proximal_term_it_descends_the_moreau_envelope():
    problem, meta, task = problems()["classification"]
    converged = NewtonCG(60, cg_iters=40, tol=1e-11)
    theta = {k: p.detach().clone().requires_grad_() for k, p in meta.items()}
    params = converged(
        lambda p: problem.inner_objective(p, detached(meta), task),
        problem.init(detached(meta), task),
    ).params
    # By the envelope theorem params count as constant.
    envelope = problem.inner_objective(params, theta, task).mean()
    gradient = torch.autograd.grad(envelope, list(theta.values()))
    result = Reptile(converged)(problem, meta, task)
    scaled = {k: g / problem.prox for k, g in zip(theta, gradient, strict=True)}
    assert relative_difference(result.grads, scaled) < 1e-12


@pytest.mark.parametrize("name", ["ridge", "head"])
def test_meta_that_does_not_move_init_is_refused(name):
    problem, meta, task = problems()[name]
    with pytest.raises(UsageError, match="no gradient reaches meta"):
        Reptile(GradientDescent(2, 0.1))(problem, meta, task)

"""The authors' variant against its formula, worked out here with a dense Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import few_shot, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import IMAMLAuthorsCode
from metalearn.problem import FewShot, prediction_loss
from metalearn.tasks import TaskBatch


def by_formula(problem, meta, task, steps, lr, prox, solve):
    names = list(meta)
    shapes, sizes = [p.shape for p in meta.values()], [p.numel() for p in meta.values()]
    theta = torch.cat([p.detach().flatten() for p in meta.values()])
    total = torch.zeros_like(theta)
    for t in range(len(task)):
        one = task[t : t + 1]

        def loss(flat, x, y):
            parts = [v.view(1, *s) for v, s in zip(flat.split(sizes), shapes, strict=True)]
            return prediction_loss(problem.model(dict(zip(names, parts, strict=True)), x), y)[0]

        phi = theta.clone()
        for _ in range(steps):
            phi = phi - lr * torch.func.grad(loss)(phi, one.support_x, one.support_y)
        phi = phi - lr * prox * (phi - theta)
        H = torch.func.hessian(loss)(phi, one.support_x, one.support_y)
        g = torch.func.grad(loss)(phi, one.query_x, one.query_y)
        total += solve(2 * torch.eye(len(phi), dtype=phi.dtype) + H / (prox + 10), g)
    mean = (total / len(task)).split(sizes)
    return {n: v.view(s) for n, v, s in zip(names, mean, shapes, strict=True)}


def textbook_cg(A, b, iterations=5):
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    for _ in range(iterations):
        Ap = A @ p
        step = (r @ r) / (p @ Ap)
        x, new = x + step * p, r - step * Ap
        p, r = new + (new @ new) / (r @ r) * p, new
    return x


def test_with_its_own_five_iterations():
    problem, meta, task = few_shot(regression=False, prox=0.0)
    result = IMAMLAuthorsCode(GradientDescent(16, 0.1), prox=2.0)(problem, meta, task)
    exact = by_formula(problem, meta, task, 16, 0.1, 2.0, textbook_cg)
    assert relative_difference(result.grads, exact) < 1e-12


def test_with_an_exact_solve():
    problem, meta, task = few_shot(regression=False, prox=0.0)
    metagrad = IMAMLAuthorsCode(GradientDescent(7, 0.2), 3.0, 0.2, linear_solver=CG(60, rtol=1e-13))
    exact = by_formula(problem, meta, task, 7, 0.2, 3.0, torch.linalg.solve)
    assert relative_difference(metagrad(problem, meta, task).grads, exact) < 1e-9


def test_evaluation_takes_no_proximal_step():
    problem, meta, task = few_shot(regression=False, prox=0.0)
    metagrad = IMAMLAuthorsCode(GradientDescent(3, 0.1))
    plain = GradientDescent(3, 0.1)(
        lambda p: problem.inner_objective(p, meta, task), problem.init(meta, task)
    )
    adapted = metagrad.adapt(problem, meta, task).params
    assert all(torch.equal(adapted[k], plain.params[k]) for k in adapted)


def test_a_problem_with_a_proximal_term_is_refused():
    problem, meta, task = few_shot(regression=False, prox=2.0)
    with pytest.raises(UsageError, match="prox=0"):
        IMAMLAuthorsCode(GradientDescent(3, 0.1))(problem, meta, task)


def test_gauss_newton_curvature_in_the_hessians_place():
    # Of a linear model with cross-entropy the two are the same matrix.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    problem, meta = FewShot(model), dict(model.named_parameters())
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    y = torch.arange(3).repeat(2, 2)
    task = TaskBatch(x, y, x.flip(1), y.flip(1))
    found = [
        IMAMLAuthorsCode(GradientDescent(3, 0.1), curvature=curvature)(problem, meta, task).grads
        for curvature in ("hessian", "gauss_newton")
    ]
    assert relative_difference(*found) < 1e-12  # rounding, in float64
    with pytest.raises(UsageError, match="'hessian' or 'gauss_newton'"):
        IMAMLAuthorsCode(GradientDescent(3, 0.1), curvature="fisher")

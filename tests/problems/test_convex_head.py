"""Convex heads against scikit-learn, finite differences and their own certificates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, Unrolled
from metalearn.metagrad.smoothness import Smoothness
from metalearn.problems import ConvexHead
from metalearn.problems.convex_head import ridge
from metalearn.tasks import TaskBatch

NO_STEPS = GradientDescent(0, 0.1)


def tasks(n: int = 6, size: int = 8, dtype: torch.dtype = torch.float64) -> TaskBatch:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(n // 3).repeat(4, 1)
    centres = 2 * torch.randn(4, 3, size, generator=g, dtype=torch.float64)

    def drawn() -> torch.Tensor:
        x = centres.repeat_interleave(n // 3, dim=1)
        return (x + torch.randn(4, n, size, generator=g, dtype=torch.float64)).to(dtype)

    return TaskBatch(drawn(), y, drawn(), y)


def meta_of(head: ConvexHead, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {name: p.detach().to(dtype) for name, p in head.begin().items()}


@pytest.mark.parametrize(("n", "size"), [(6, 20), (6, 6), (30, 4)])
def test_ridge_equals_scikit_learn(n: int, size: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, n, size, generator=g, dtype=torch.float64)
    y = torch.randn(2, n, 3, generator=g, dtype=torch.float64)
    found = ridge(x, y, torch.tensor(0.3, dtype=torch.float64))
    for t in range(2):
        known = Ridge(alpha=0.3 * n, fit_intercept=False, tol=1e-12).fit(x[t].numpy(), y[t].numpy())
        np.testing.assert_allclose(found[t].numpy(), known.coef_, rtol=1e-9, atol=1e-11)


def test_logistic_equals_scikit_learn() -> None:
    head, task = ConvexHead("cross_entropy", penalty=0.2), tasks()
    meta = meta_of(head)
    found = NewtonCG(50, 50, tol=1e-10)(
        lambda params: head.inner_objective(params, meta, task), head.init(meta, task)
    )
    assert found.grad_norm.max() <= 1e-9
    for t in range(len(task)):
        known = LogisticRegression(C=1 / (0.2 * 6), fit_intercept=False, tol=1e-12, max_iter=5000)
        known.fit(task.support_x[t].numpy(), task.support_y[t].numpy())
        np.testing.assert_allclose(
            found.params["weight"][t].numpy(), known.coef_, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("loss", "inner"), [("squared", NO_STEPS), ("cross_entropy", NewtonCG(50, 50, tol=1e-11))]
)
def test_implicit_gradient_equals_finite_differences(loss: Any, inner: Any) -> None:
    head, task = ConvexHead(loss, penalty=0.2, scale=2.0), tasks()
    meta, metagrad = meta_of(head), Implicit(inner, CG(100, rtol=1e-12))
    result = metagrad(head, meta, task)
    for name in meta:
        values = []
        for h in (1e-5, -1e-5):
            moved = {**meta, name: meta[name] + h}
            params = metagrad.adapt(head, moved, task).params
            values.append(float(head.outer_objective(params, moved, task)[0].mean()))
        slope = torch.tensor((values[0] - values[1]) / 2e-5, dtype=torch.float64)
        torch.testing.assert_close(result.grads[name], slope, rtol=1e-6, atol=1e-8)


def test_unrolling_the_closed_form_equals_the_implicit_gradient() -> None:
    head, task = ConvexHead(penalty=0.2), tasks()
    meta = meta_of(head)
    unrolled = Unrolled(NO_STEPS, backend="batched")(head, meta, task)
    implicit = Implicit(NO_STEPS, CG(100, rtol=1e-13))(head, meta, task)
    for name in meta:
        torch.testing.assert_close(implicit.grads[name], unrolled.grads[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("loss", "inner"), [("squared", NO_STEPS), ("cross_entropy", NewtonCG(30, 30, tol=1e-8))]
)
def test_certificate_is_tight_where_the_theorem_holds(loss: Any, inner: Any) -> None:
    """x = A^-1 v is cut short at a residual of 3e-6, which is then all of the error. Its bound, the
    residual over the least Ritz value, is above the error and within 10 times of it, and both are
    below 1e-4 of |x|. 60 examples of 40 features have 40 different eigenvalues: of fewer, CG would
    find them all at once and leave nothing but rounding."""
    head, task = ConvexHead(loss, penalty=0.5, scale=2.0), tasks(n=60, size=40)
    meta = meta_of(head)
    result = Implicit(inner, CG(400, rtol=3e-6))(head, meta, task)
    exact = Implicit(inner, CG(2000, rtol=1e-13))(head, meta, task)
    assert result.certificate is not None and result.certificate.eigenvalue_bounds is not None
    assert result.solution is not None and exact.solution is not None
    x, error = (
        w.flatten(1).norm(dim=1)
        for w in (exact.solution["weight"], result.solution["weight"] - exact.solution["weight"])
    )
    # The bound on the gradient, of mixed partials of norm 1 and a point that is exact.
    constants = Smoothness(result.certificate.eigenvalue_bounds[0], 1.0, outer_lipschitz=0.0)
    bound = replace(result.certificate, inner_grad_norm=torch.zeros(4)).bound(constants)
    assert (error / x).max() < 1e-4 and (bound / x).max() < 1e-4
    assert (error <= bound).all() and (bound <= 10 * error).all()


def test_ways_are_the_tasks() -> None:
    head = ConvexHead()
    g = torch.Generator().manual_seed(0)
    for ways in (2, 7):
        x = torch.randn(3, ways, 5, generator=g)
        y = torch.arange(ways).repeat(3, 1)
        params = head.init(meta_of(head, torch.float32), TaskBatch(x, y, x, y))
        assert params["weight"].shape == (3, ways, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"loss": "hinge"}, "loss="), ({"penalty": 0.0}, "penalty="), ({"scale": -1.0}, "scale=")],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ConvexHead(**options)

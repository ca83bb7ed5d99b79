"""One graph for all curvature products or one for each: the same numbers, other memory."""

from __future__ import annotations

import pytest
import torch
from test_backends import batch
from zoo import problems, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit
from metalearn.nn import Conv4
from metalearn.problem import CompositeProblem, FewShot
from metalearn.tree import leaves_of

CURVATURES = ["hessian", "gauss_newton"]


CASES = [
    (name, curvature)
    for name, (problem, _, _) in problems().items()
    for curvature in CURVATURES
    if curvature == "hessian" or isinstance(problem, CompositeProblem)
]


@pytest.mark.parametrize(("name", "curvature"), CASES)
def test_recomputed_is_the_same_gradient(name, curvature):
    problem, meta, task = problems()[name]
    # Converged, and solved: rounding is then all that can differ.
    inner, solver = NewtonCG(60, cg_iters=40, tol=1e-11), CG(60, rtol=1e-12)
    kept, recomputed = (
        Implicit(inner, solver, 0.1, curvature, linearisation=linearisation)(problem, meta, task)
        for linearisation in ("kept", "recomputed")
    )
    assert relative_difference(recomputed.grads, kept.grads) < 1e-10
    assert torch.allclose(recomputed.inner.objective, kept.inner.objective)
    # Both norms are rounding itself at the solution, so that they agree in size alone.
    assert (recomputed.inner.grad_norm - kept.inner.grad_norm).abs().max() < 1e-10


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("strided", [True, False], ids=["strided", "pooled"])
def test_recomputed_is_the_same_gradient_of_a_network(strided, curvature):
    torch.manual_seed(0)
    model = Conv4(3, channels=8, strided=strided).double()
    meta, task = dict(model.named_parameters()), batch(3, 3, 2, 1)
    # Five iterations do not yet multiply the rounding in which the two differ.
    kept, recomputed = (
        Implicit(
            GradientDescent(3, 0.1), CG(5, rtol=0.0), 0.0, curvature, linearisation=linearisation
        )(FewShot(model, 2.0), meta, task)
        for linearisation in ("kept", "recomputed")
    )
    assert relative_difference(recomputed.grads, kept.grads) < 1e-10
    assert torch.allclose(recomputed.inner.grad_norm, kept.inner.grad_norm)
    assert all(g.abs().max() > 0 for g in leaves_of(kept.grads))


def test_an_unknown_linearisation_is_refused():
    with pytest.raises(UsageError, match="'kept' or 'recomputed'"):
        Implicit(GradientDescent(1, 0.1), linearisation="forgotten")

"""Implicit meta-gradients by name and number."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, implicit_by_iterations
from metalearn.metagrad.by_iterations import WAYS, WarmStart

INNER = GradientDescent(3, 0.1)


def test_no_iteration_is_the_first_order_gradient():
    for way in WAYS:
        assert implicit_by_iterations(INNER, 0, way) == Implicit(INNER, None)


def test_ways_are_implicit_s_own_options():
    assert implicit_by_iterations(INNER, 5) == Implicit(INNER, CG(5))
    assert implicit_by_iterations(INNER, 3, "damped", 0.25) == Implicit(INNER, CG(3), damping=0.25)
    assert implicit_by_iterations(INNER, 7, "gauss_newton") == Implicit(
        INNER, CG(7), curvature="gauss_newton"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 5, "way": "gmres"}, "'gmres' is unknown"),
        ({"iterations": -1}, "at least 0"),
        ({"iterations": 5, "damping": 0.0}, "above 0"),
    ],
)
def test_unfit_options_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        implicit_by_iterations(INNER, **options)


def test_a_warm_start_begins_with_the_mean_of_the_last_solutions():
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)

    def matvec(v):
        return [v[0] @ matrix]

    b = [torch.randn(2, 6, dtype=torch.float64)]
    solver = WarmStart(CG(20, rtol=1e-12))
    x = solver(matvec, b, batched=True).value[0]
    # The mean solution solves the mean system, of any number of tasks, before the first iteration.
    again = WarmStart(CG(20, rtol=1e-10))
    again(matvec, b, batched=True)
    mean = [b[0].mean(0, keepdim=True).expand(3, -1)]
    solution = again(matvec, mean, batched=True)
    assert (solution.iterations == 0).all() and solution.converged.all()
    assert torch.allclose(solution.value[0], x.mean(0).expand(3, -1))

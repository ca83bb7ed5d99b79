"""Counting changes no gradient, and counts what each way is known to take."""

from __future__ import annotations

import pytest
import torch
from zoo import FIRST_ORDER, problems

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.studies.frame.oracle_calls import Counted, OracleCalls, spent
from metalearn.tree import leaves_of

GD = GradientDescent(4, 0.1)


WAYS = {
    # The last gradient is the one whose norm is reported.
    "unrolled": (Unrolled(GD, backend="batched"), 5, 4),
    "truncated": (Unrolled(GD, backend="batched", truncate=2), 5, 2),
    "first-order": (FirstOrder(GD), 5, 0),
    # At the solution the inner objective is linearised once; beside the iterations there are the
    # mixed derivatives. A residual that is far above rounding is not made anew.
    "implicit": (Implicit(GD, CG(3, rtol=0.0)), 5, 4),
}
# First-order gradients reach no learned lambda and no penalty, and refuse them.
CASES = [(n, w) for n in problems() for w in WAYS if w != "first-order" or n in FIRST_ORDER]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_counts(name, way):
    (problem, meta, task), (metagrad, gradients, products) = problems()[name], WAYS[way]
    counted = Counted(problem)
    found = metagrad(counted, meta, task).grads
    assert (counted.gradients, counted.products) == (gradients, products)
    for mine, plain in zip(
        leaves_of(found), leaves_of(metagrad(problem, meta, task).grads), strict=True
    ):
        # Sums may be taken in another order.
        assert torch.allclose(mine, plain, rtol=1e-12, atol=1e-14)


def test_spent_gives_what_was_made_and_its_cost():
    problem, meta, task = problems()["quadratic"]
    loss, cost = spent(problem, lambda p: p.inner_objective(p.init(meta, task), meta, task))
    assert loss.shape == (3,)
    assert (cost.gradients, cost.products) == (1, 0) and cost.seconds > 0
    assert (cost + OracleCalls(2, 3, 1.0)).evaluations == 6

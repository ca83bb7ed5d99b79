"""The random numbers of dropout, drawn once: a graph that is made again has the same masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import relative_difference

from metalearn.errors import UsageError
from metalearn.inner import Adam, GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, Reptile, Unrolled
from metalearn.nn import SymmetricHead
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch


def dropped(prox=0.0, head=False):
    torch.manual_seed(0)
    last = SymmetricHead(16, "prototypes") if head else nn.Linear(16, 3)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.4), last).double()
    x = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    y = (torch.arange(6) % 3).expand(2, -1)
    return FewShot(model, prox), dict(model.named_parameters()), TaskBatch(x[0], y, x[1], y)


def drawn(way, problem, meta, task):
    torch.manual_seed(1)
    return way(problem, meta, task).grads


@pytest.mark.parametrize("inner", [GradientDescent(7, 0.5), Adam(7, 0.05)], ids=repr)
@pytest.mark.parametrize("options", [{}, {"multi_step": 5}, {"truncate": 5}], ids=str)
@pytest.mark.parametrize("head", [False, True])
def test_a_checkpointed_gradient_is_the_same(inner, options, head):
    setting = dropped(head=head)
    kept = drawn(Unrolled(inner, "batched", **options), *setting)
    for length in (1, 2, 3, "sqrt"):
        way = Unrolled(inner, "batched", checkpoint=length, **options)
        assert relative_difference(drawn(way, *setting), kept) < 1e-12
    if "multi_step" not in options:
        way = Unrolled(inner, "batched", mode="mixed", **options)
        assert relative_difference(drawn(way, *setting), kept) < 1e-12


@pytest.mark.parametrize(
    "way", [Unrolled(GradientDescent(3, 0.5), "batched"), FirstOrder(GradientDescent(0, 0.5))]
)
def test_the_gradient_is_that_of_the_loop_as_run(way):
    problem, meta, task = dropped(head=True)
    grads = drawn(way, problem, meta, task)
    name, step = "0.weight", 1e-6
    values = []
    for sign in (1, -1):
        moved = {k: p.detach().clone() for k, p in meta.items()}
        moved[name][1, 2] += sign * step
        torch.manual_seed(1)
        values.append(way(problem, moved, task).outer_loss.mean())
    slope = (values[0] - values[1]) / (2 * step)
    assert torch.allclose(grads[name][1, 2], slope, rtol=1e-6)


def test_reptile_goes_from_a_start_of_one_mask():
    found = drawn(Reptile(GradientDescent(0, 0.1)), *dropped(head=True))
    assert not any(grad.any() for grad in found.values())


def test_the_random_states_go_on_as_without_a_checkpoint():
    setting, after = dropped(), []
    for checkpoint in (None, 2):
        drawn(Unrolled(GradientDescent(6, 0.1), "batched", checkpoint=checkpoint), *setting)
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_recomputed_products_refuse_random_numbers(curvature):
    problem, meta, task = dropped(prox=1.0)
    way = Implicit(GradientDescent(3, 0.1), CG(3), curvature=curvature, linearisation="recomputed")
    with pytest.raises(UsageError, match="linearisation=recomputed: expected an inner objective"):
        way(problem, meta, task)

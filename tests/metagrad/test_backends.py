"""The back ends of the unrolled gradient, on the networks that benchmarks use."""

from __future__ import annotations

import pytest
import torch
from zoo import relative_difference

from metalearn.errors import UsageError
from metalearn.inner import Adam, GradientDescent, NewtonCG
from metalearn.metagrad import Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch


def batch(tasks: int, ways: int, shots: int, queries: int, dtype=torch.float64) -> TaskBatch:
    g = torch.Generator().manual_seed(0)

    def half(k):
        x = torch.rand(tasks, ways * k, 1, 28, 28, generator=g, dtype=dtype)
        return x, torch.arange(ways).repeat_interleave(k).repeat(tasks, 1)

    return TaskBatch(*half(shots), *half(queries))


@pytest.mark.parametrize(
    "inner", [GradientDescent(5, 0.1), GradientDescent(5, 0.1, 0.9), Adam(5, 0.01)], ids=repr
)
@pytest.mark.parametrize(("norm", "tolerance"), [("none", 1e-10), ("batch", 1e-6)])
def test_higher_and_batched_are_one_gradient(inner, norm, tolerance):
    torch.manual_seed(0)
    model = Conv4(5, channels=16, norm=norm).double()
    meta, task = dict(model.named_parameters()), batch(2, 5, 1, 2)
    one = Unrolled(inner, "higher")(FewShot(model), meta, task)
    other = Unrolled(inner, "batched")(FewShot(model), meta, task)
    assert relative_difference(other.grads, one.grads) <= tolerance
    assert torch.allclose(other.outer_loss, one.outer_loss)
    assert torch.equal(other.metrics["accuracy"], one.metrics["accuracy"])


def test_adam_has_a_finite_derivative_where_a_second_moment_is_zero():
    torch.manual_seed(0)
    model = Conv4(3, channels=4).double()
    with torch.no_grad():
        model[1].weight[0] = 0.0  # a dead channel: its gradients are exactly zero
        model[1].bias[0] = -1.0
    meta, task = dict(model.named_parameters()), batch(2, 3, 1, 1)
    one = Unrolled(Adam(3, 0.01), "higher")(FewShot(model), meta, task)
    other = Unrolled(Adam(3, 0.01), "batched")(FewShot(model), meta, task)
    assert relative_difference(other.grads, one.grads) <= 1e-6


def test_what_cannot_be_unrolled_is_refused():
    model = Conv4(3, channels=4)
    meta, task = dict(model.named_parameters()), batch(1, 3, 1, 1, torch.float32)
    for backend in ("higher", "batched"):
        with pytest.raises(UsageError, match="NewtonCG"):
            Unrolled(NewtonCG(2), backend)(FewShot(model), meta, task)
    with pytest.raises(UsageError, match="tol"):
        Unrolled(GradientDescent(2, 0.1, tol=1e-3))(FewShot(model), meta, task)
    with pytest.raises(UsageError, match="'higher' or 'batched'"):
        Unrolled(GradientDescent(2, 0.1), "hihger")

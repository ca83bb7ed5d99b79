"""The derivatives of a batch: in parts, in half precision, and what is refused."""

from __future__ import annotations

import pytest
import torch
from network_problem import NetworkProblem

from metalearn.bilevel.oracle import Oracle
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import Implicit
from metalearn.problem import FullBatch
from metalearn.studies.rates.problems import Logistic
from metalearn.tree import relative_error

CPU = torch.device("cpu")


def logistic():
    problem = Logistic()
    params = {"w": torch.linspace(-1, 1, 5).double()[None]}
    x = [torch.linspace(1, 2, 5).double()[None]]
    return problem, params, problem.begin(), x


def test_products_are_those_of_the_dense_derivatives():
    problem, params, meta, x = logistic()
    found = Oracle(problem, CPU).products(params, meta, problem.inner, x)

    def gradient(w, log):
        w, log = w[None].requires_grad_(), log[None].requires_grad_()
        loss = problem.inner_loss({"w": w}, {"l": log}, problem.inner)
        return torch.autograd.grad(loss, w, create_graph=True)[0][0]

    at = params["w"][0], meta["l"][0]
    by_w, by_log = torch.autograd.functional.jacobian(gradient, at)
    # 1e-12: float64 sums in another order.
    assert torch.allclose(found.hessian[0][0], by_w @ x[0][0], rtol=1e-12)
    assert torch.allclose(found.mixed[0][0], by_log.T @ x[0][0], rtol=1e-12)
    assert torch.allclose(found.gradient[0][0], gradient(*at), rtol=1e-12)


def test_micro_batches_change_nothing_but_rounding():
    problem, params, meta, x = logistic()
    whole, parts = Oracle(problem, CPU), Oracle(problem, CPU, micro_batches=7)
    one = whole.products(params, meta, problem.inner, x)
    other = parts.products(params, meta, problem.inner, x)
    for name in ("loss", "gradient", "hessian", "mixed"):
        assert relative_error(getattr(other, name), getattr(one, name)) < 1e-13
    outer = [o.outer(params, meta, problem.outer) for o in (whole, parts)]
    assert relative_error(outer[1].by_params, outer[0].by_params) < 1e-13


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_right_to_its_rounding(precision):
    problem = NetworkProblem()
    meta = problem.begin()
    params, batch = problem.init(meta), problem.train.tensors
    x = [1e-6 * torch.randn_like(p) for p in params.values()]  # below the range of fp16 squared
    full, half = (Oracle(problem, CPU, p) for p in ("full", precision))
    one, other = (o.products(params, meta, batch, x) for o in (full, half))
    assert all(g.dtype == torch.float32 for g in other.gradient)
    # bf16 has 8 bits, fp16 11; a layer's sums lose a few more.
    tolerance = {"bf16": 5e-2, "fp16": 5e-3}[precision]
    for name in ("gradient", "hessian", "mixed"):
        assert relative_error(getattr(other, name), getattr(one, name)) < tolerance


def test_an_overflow_in_fp16_lowers_the_scale_and_is_computed_again():
    class Large(NetworkProblem):
        def inner_loss(self, params, meta, batch):
            return 100 * super().inner_loss(params, meta, batch)

    problem = Large()
    meta = problem.begin()
    params, batch = problem.init(meta), problem.train.tensors
    oracle = Oracle(problem, CPU, "fp16")
    oracle.scale.value = 2.0**24
    found = oracle.inner(params, meta, batch)
    assert oracle.scale.value < 2.0**24
    exact = Oracle(problem, CPU).inner(params, meta, batch)
    assert relative_error(found.by_params, exact.by_params) < 5e-3


def test_a_full_batch_is_a_problem_of_one_task():
    problem = Logistic()
    task = FullBatch(problem, problem.inner, problem.outer)
    with pytest.raises(UsageError, match="expected one task"):
        task.inner_objective({"w": torch.zeros(2, 1, 5)}, problem.begin(), range(2))
    result = Implicit(GradientDescent(3, 0.1))(task, problem.begin(), range(1))
    assert result.outer_loss.shape == (1,)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp8"}, "precision='fp8': expected 'full', 'bf16' or 'fp16'"),
        ({"micro_batches": 0}, "micro_batches=0: expected a whole number"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Oracle(Logistic(), CPU, **options)


def test_losses_that_are_no_means_or_of_no_params_are_refused():
    class Vector:
        def init(self, meta):
            return {"w": torch.zeros(1, 5)}

        def inner_loss(self, params, meta, batch):
            return params["w"].square()

        def outer_loss(self, params, meta, batch):
            return meta["l"].sum()

    problem, params, meta, _ = logistic()
    oracle = Oracle(Vector(), CPU)
    with pytest.raises(UsageError, match=r"inner_loss returns \(1, 5\): expected a 0-d tensor"):
        oracle.inner(params, meta, problem.inner)
    with pytest.raises(UsageError, match="outer_loss depends on none of the params"):
        oracle.outer(params, meta, problem.outer)


def test_a_batch_that_cannot_be_divided_is_refused():
    problem, params, meta, _ = logistic()
    uneven = problem.inner[0], problem.inner[1][:3]
    with pytest.raises(UsageError, match="expected one number of examples"):
        Oracle(problem, CPU, micro_batches=2).inner(params, meta, uneven)

"""The largest curvature, against closed forms and against the certificate of a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit
from metalearn.play.curvature import largest_curvature
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch


def quadratic(eigenvalues: torch.Tensor):
    """x'Ax/2 for a random A with these eigenvalues."""
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).to(eigenvalues))
    matrix = (q * eigenvalues) @ q.mT
    return lambda params: 0.5 * ((params["x"] @ matrix) * params["x"]).sum(1)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        torch.tensor([3.0]),
        torch.tensor([-5.0, 2.0]),
        torch.tensor([-5.0, -2.0, -1.0]),
        torch.zeros(4),
        torch.full((6,), 7.0),
        torch.linspace(-1, 1, 15),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_exact_with_as_many_products_as_parameters(eigenvalues, dtype):
    torch.manual_seed(0)
    params = {"x": torch.randn(1, len(eigenvalues), dtype=dtype)}
    found = largest_curvature(quadratic(eigenvalues.to(dtype)), params)
    expected = eigenvalues.max().item()
    scale = eigenvalues.abs().max().item()
    # Rounding of the products, in units of the largest |eigenvalue|.
    assert found == pytest.approx(expected, abs=20 * torch.finfo(dtype).eps * scale)


def test_it_is_close_from_below_where_products_are_few():
    torch.manual_seed(0)
    eigenvalues = torch.cat([torch.linspace(0, 1, 199), torch.tensor([3.0])]).double()
    params = {"x": torch.zeros(1, 200, dtype=torch.float64)}
    found = largest_curvature(quadratic(eigenvalues), params)
    assert 3 - 1e-6 < found <= 3 + 1e-12  # the gap of 2 is twice the rest of the spectrum


def test_it_gives_way_after_a_product():
    torch.manual_seed(0)
    objective = quadratic(torch.linspace(0, 1, 20).double())
    params = {"x": torch.zeros(1, 20, dtype=torch.float64)}
    assert largest_curvature(objective, params, enough=lambda: True) == pytest.approx(
        largest_curvature(objective, params, products=1), rel=1e-12
    )


def test_what_is_not_finite_is_none():
    params = {"x": torch.zeros(1, 2)}
    assert largest_curvature(lambda p: p["x"].abs().sqrt().sum(1), params) is None


def test_rate_times_curvature_is_the_certificates_stability():
    torch.manual_seed(0)
    model, inner = nn.Linear(4, 3).double(), GradientDescent(5, 0.3)
    x, y = torch.randn(1, 9, 4).double(), torch.arange(9)[None] % 3
    problem, task = FewShot(model, prox=0.5), TaskBatch(x, y, x, y)
    meta = dict(model.named_parameters())
    result = Implicit(inner, CG(30, rtol=1e-12))(problem, meta, task)
    curvature = largest_curvature(
        lambda params: problem.inner_objective(params, meta, task), result.inner.params
    )
    expected = result.certificate.inner_stability.item()
    assert 0.3 * curvature / 2 == pytest.approx(expected, rel=1e-6)

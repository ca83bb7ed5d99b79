from __future__ import annotations

import torch

from metalearn.linear_solve import CG, Status
from metalearn.linear_solve.unchecked_cg import UncheckedCG


def systems(low: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Five symmetric 8x8 matrices with one eigenvalue `low` and the others from 1 to 2; b."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(5, 8, 8, generator=generator, dtype=torch.float64))
    values = torch.linspace(1, 2, 8, dtype=torch.float64)
    values[0] = low
    return basis @ (values[:, None] * basis.mT), torch.randn(5, 8, generator=generator).double()


def test_unchecked_cg_is_cg_where_the_system_is_definite():
    A, b = systems(0.5)

    def product(v):
        return (A @ v[..., None])[..., 0]

    for iterations in (1, 3, 5):
        unchecked = UncheckedCG(iterations)(product, b, batched=True)
        checked = CG(iterations, rtol=0.0)(product, b, batched=True)
        torch.testing.assert_close(unchecked.value, checked.value)
        assert (unchecked.status == Status.MAX_ITERS).all()
        assert (unchecked.iterations == iterations).all()


def test_unchecked_cg_goes_through_negative_curvature_and_says_so():
    A, b = systems(-0.5)
    solution = UncheckedCG(8)(lambda v: (A @ v[..., None])[..., 0], b, batched=True)
    # In as many iterations as there are unknowns even an indefinite system is solved, where no
    # step's curvature happens to be near 0.
    exact = torch.linalg.solve(A, b)
    torch.testing.assert_close(solution.value, exact, rtol=1e-6, atol=1e-6)
    assert (solution.status == Status.NEGATIVE_CURVATURE).all()
    checked = CG(8, rtol=0.0)(lambda v: (A @ v[..., None])[..., 0], b, batched=True)
    assert (checked.iterations < 8).all()

from __future__ import annotations

import pytest
import torch

from metalearn.tree import task_half_square


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 2)], ids=str)
def test_half_a_square_and_its_derivatives(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] = 0  # a norm has no second derivative there, its square has
    x.requires_grad_()
    assert torch.allclose(task_half_square(x), 0.5 * (x * x).reshape(len(x), -1).sum(1))
    assert torch.autograd.gradcheck(task_half_square, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(task_half_square, x)
    many = torch.stack([x, x + 1]).detach().requires_grad_()
    assert torch.autograd.gradcheck(torch.func.vmap(task_half_square), many)

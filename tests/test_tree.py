from __future__ import annotations

import pytest
import torch

from metalearn.tree import Raveler, half_squared_distance


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("common", [False, True], ids=["each its own", "one for all"])
def test_half_a_squared_distance_and_its_derivatives(shape, common):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    b = b[0] if common else b
    a[0] = b if common else b[0]  # a norm has no second derivative there, its square has
    a, b = a.requires_grad_(), b.requires_grad_()

    def distance(a, b):
        return half_squared_distance([a, 2 * a], [b, b])

    gaps = torch.stack([a - b, 2 * a - b])
    assert torch.allclose(distance(a, b), 0.5 * gaps.square().transpose(0, 1).flatten(1).sum(1))
    assert torch.autograd.gradcheck(distance, (a, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(distance, (a, b))
    many = torch.stack([a, a + 1]).detach().requires_grad_()
    assert torch.autograd.gradcheck(torch.func.vmap(lambda a: distance(a, b)), many)


def test_a_row_holds_a_leaf_as_it_lies_in_memory():
    lying = torch.randn(2, 3, 4, 5, 5).permute(0, 1, 4, 2, 3)
    raveler = Raveler.of([lying], batched=True, as_it_lies=True)
    matrix = raveler.ravel([lying])
    assert torch.equal(matrix, lying.permute(0, 1, 3, 4, 2).reshape(2, -1))
    (back,) = raveler.unravel(matrix)
    assert torch.equal(back, lying) and back.stride()[1:] == lying.stride()[1:]
    other = lying.contiguous()  # the same values that lie otherwise are the same row
    assert torch.equal(raveler.ravel([other]), matrix)
    plain = Raveler.of([lying], batched=True)
    assert torch.equal(plain.ravel([lying]), other.flatten(1))
    assert torch.equal(plain.unravel(other.flatten(1))[0], lying)

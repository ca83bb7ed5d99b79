from __future__ import annotations

import pytest
import torch
from torch import nn

from metalearn.nn.pooling import Window, max_pool2d

MODULES = {
    "2x2": nn.MaxPool2d(2),
    "2x2, the last column alone": nn.MaxPool2d(2, ceil_mode=True),
    "overlapping": nn.MaxPool2d(3, 2, padding=1),
    "oblong and dilated": nn.MaxPool2d((2, 1), (1, 2), dilation=(2, 1)),
}


@pytest.mark.parametrize("name", MODULES)
def test_value_and_derivatives(name):
    module = MODULES[name]
    g = torch.Generator().manual_seed(0)
    # All different, far more than a finite difference's step apart.
    x = torch.randperm(2 * 2 * 5 * 5, generator=g).double().view(2, 2, 5, 5) / 50 - 1
    x.requires_grad_()
    window = Window.of(module)
    assert torch.equal(max_pool2d(x, window), module(x))

    def function(x):
        return max_pool2d(x**3, window)  # its second derivative is not zero

    assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, x, check_fwd_over_rev=True)


def test_under_vmap_it_is_one_call_after_another():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 2, 4, 4, generator=g, dtype=torch.float64, requires_grad=True)
    mapped = torch.func.vmap(lambda x: max_pool2d(x**3, Window.of(nn.MaxPool2d(2))))
    assert torch.equal(mapped(x), nn.MaxPool2d(2)((x**3).flatten(0, 1)).unflatten(0, (3, 2)))
    assert torch.autograd.gradcheck(mapped, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(mapped, x, fast_mode=True)


def test_places_in_a_large_image_are_right():
    x = torch.rand(1, 1, 200, 200, requires_grad=True)  # more than 2^15 pixels
    pooled = nn.MaxPool2d(2)
    expected = torch.autograd.grad((pooled(x) ** 2).sum(), x)[0]
    ours = torch.autograd.grad((max_pool2d(x, Window.of(pooled)) ** 2).sum(), x)[0]
    assert torch.equal(ours, expected)

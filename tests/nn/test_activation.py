from __future__ import annotations

import pytest
import torch

from metalearn.nn.activation import leaky_relu

SLOPES = [0.0, 0.1]


def points():
    """Away from the kink, where finite differences say nothing."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64)
    return (x + 0.1 * x.sign()).requires_grad_()


@pytest.mark.parametrize("slope", SLOPES)
def test_value_and_derivatives(slope):
    x = points()
    assert torch.equal(leaky_relu(x, slope), torch.nn.functional.leaky_relu(x, slope))

    def function(x):
        return leaky_relu(x**3, slope)  # its second derivative is not zero

    assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, x, check_fwd_over_rev=True)
    mapped = torch.func.vmap(function)
    assert torch.equal(mapped(x), function(x))
    assert torch.autograd.gradgradcheck(mapped, x)


@pytest.mark.parametrize("slope", SLOPES)
def test_the_derivative_at_the_kink_is_torchs(slope):
    x = torch.tensor([-1.0, 0.0, 1.0, torch.inf], requires_grad=True)
    ours = torch.autograd.grad(leaky_relu(x, slope).sum(), x)[0]
    theirs = torch.autograd.grad(torch.nn.functional.leaky_relu(x, slope).sum(), x)[0]
    assert torch.equal(ours, theirs)

"""The ReLU and leaky ReLU functions, with a double backward that costs one pass.

Torch's double backward of both makes a tensor of zeros, the derivative by the place of the kink,
and carries it on. That costs an activation's worth of memory and two passes for nothing. Here the
backward reads the signs off the result, which the next layer keeps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.autograd import Function, first_order


def leaky_relu(x: Tensor, slope: float = 0.0) -> Tensor:
    """Return x where it is above 0, else slope x (slope >= 0). The derivative at 0 is the slope.

    Reverse mode of any order, forward mode, and `torch.func.vmap` work.
    """
    return _LeakyReLU.apply(x, slope)


class _LeakyReLU(Function):
    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope) if slope else F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.slope = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Any:
        (output,) = ctx.saved_tensors
        return _masked(y, output, ctx.slope), None

    @staticmethod
    @first_order
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (output,) = ctx.saved_tensors
        return _masked(dx, output, ctx.slope)


def _masked(y: Tensor, output: Tensor, slope: float) -> Tensor:
    """Return the derivative times y.

    The derivative does not change with x, except at the kink; hence `detach`.
    """
    if slope:
        return torch.ops.aten.leaky_relu_backward(y, output.detach(), slope, True)
    return torch.ops.aten.threshold_backward(y, output.detach(), 0)

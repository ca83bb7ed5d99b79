"""The max pooling that keeps a small integer for each output, and neither its input nor zeros.

Pooling takes y[i] = x[place[i]], and its gradient puts y back to those places; each is the other's
transpose. Torch keeps the input and a 64-bit place, and its double backward carries a tensor of
zeros for the input. For 2x2 windows on Conv4's first block, this is three times the memory of the
output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.autograd import Function, first_order


class Window(NamedTuple):
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    ceil_mode: bool

    @classmethod
    def of(cls, module: nn.MaxPool2d) -> Window:
        m = module
        return cls(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """Return `torch.nn.functional.max_pool2d` of (n, C, H, W).

    Reverse mode of any order, forward mode, and `torch.func.vmap` work.
    """
    return _MaxPool.apply(x, window)[0]


class _MaxPool(Function):
    """The maxima and their places in the flattened image."""

    @staticmethod
    def forward(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        y, places = F.max_pool2d(x, *window, return_indices=True)
        small = torch.int16 if x.shape[-1] * x.shape[-2] <= 2**15 else torch.int32
        return y, places.to(small)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window = inputs
        ctx.shape = x.shape
        _, places = output
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)
        ctx.save_for_forward(places)

    @staticmethod
    def backward(ctx: Any, y: Tensor, _: Any) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _PutBack.apply(y, places, ctx.shape, ctx.window), None

    @staticmethod
    @first_order
    def jvp(ctx: Any, dx: Tensor, _: None) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _taken(dx, places), None


class _PutBack(Function):
    @staticmethod
    def forward(y: Tensor, places: Tensor, shape: torch.Size, window: Window) -> Tensor:
        x = y.new_empty(1).expand(shape)  # only its shape is read
        return torch.ops.aten.max_pool2d_with_indices_backward(
            y, x, *(_pair(v) for v in window[:4]), window.ceil_mode, places.long()
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, places, ctx.shape, ctx.window = inputs
        ctx.save_for_backward(places)
        ctx.save_for_forward(places)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return _taken(x, places), None, None, None

    @staticmethod
    @first_order
    def jvp(ctx: Any, dy: Tensor, *_: None) -> Tensor:
        (places,) = ctx.saved_tensors
        return _PutBack.apply(dy, places, ctx.shape, ctx.window)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return x.flatten(-2).gather(-1, places.long().flatten(-2)).view(places.shape)


def _pair(v: Any) -> tuple[int, int]:
    return (v, v) if isinstance(v, int) else tuple(v)

"""The convolutions of many tasks, each with its own kernel, differentiable at full speed.

A convolution is bilinear in its input and its kernel, and so are its two gradients. The three maps

    output(x, w)
    input_grad(y, w) = (d output / d x)' y
    weight_grad(x, y) = (d output / d w)' y

are closed under differentiation: the derivative of each is made of the other two. Here they are
three autograd functions, each one grouped kernel for all tasks. A Hessian product therefore costs
what its gradients cost. (Torch's own double backward of a grouped convolution loops over the
groups.)

A factor is saved only if the other factor's derivative is asked for. The first layer's images need
none. The gradient of that layer's output, the largest of all, is therefore not kept for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.autograd import Function, add, first_order, transformed


class Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def grouped_conv2d(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return `torch.nn.functional.conv2d` without a bias: (n, G c, H, W) by (G o, c, h, w).

    Reverse mode of any order, forward mode, and `torch.func.vmap` work. Under autocast both factors
    are cast here, so that every derivative has factors of one type, wherever it is taken.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (x.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    return _Output.apply(x, weight, geometry)


def laid_out(x: Tensor) -> Tensor:
    """Return an image or a kernel, channels last where that is the fastest: float32 on a CPU.

    Grouped kernels are 1.2 to 6 times as fast in this layout. Every convolution's result has it
    too, and elementwise operations keep it.
    """
    return x.contiguous(memory_format=torch.channels_last) if _channels_last(x) else x


def _channels_last(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not transformed()


def _in_their_type(x: Tensor) -> AbstractContextManager[object]:
    """Return the context in which autocast leaves the factors' type as it is."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _save(ctx: Any, a: Tensor, b: Tensor) -> None:
    """Save the factors of a product, each for the derivative by the other."""
    need_a, need_b, *_ = ctx.needs_input_grad
    ctx.shapes = a.shape, b.shape
    ctx.save_for_backward(a if need_b else None, b if need_a else None)
    ctx.save_for_forward(a, b)


class _Gradient(Function):
    """The part that the two gradients share: two factors, the result's shape and the geometry."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, ctx.shape, ctx.geometry = inputs
        _save(ctx, a, b)


class _Output(Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
        x, weight = laid_out(x), laid_out(weight)
        with _in_their_type(x):
            y = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
        # One grey image a task has both layouts, and its result may have the other one.
        return laid_out(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.geometry = inputs
        _save(ctx, x, weight)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        by_x = by_weight = None
        # This order lets a double backward finish one image like x before it makes another.
        if need_weight:
            by_weight = _WeightGrad.apply(x, y, ctx.shapes[1], ctx.geometry)
        if need_x:
            by_x = _InputGrad.apply(y, weight, ctx.shapes[0], ctx.geometry)
        return by_x, by_weight, None

    @staticmethod
    @first_order
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, _: None) -> Tensor | None:
        x, weight = ctx.saved_tensors
        return add(
            None if dx is None else _Output.apply(dx, weight, ctx.geometry),
            None if dw is None else _Output.apply(x, dw, ctx.geometry),
        )


class _InputGrad(_Gradient):
    @staticmethod
    def forward(y: Tensor, weight: Tensor, shape: torch.Size, g: Geometry) -> Tensor:
        """Return the transposed convolution.

        `spare` selects x's size among the sizes that give this output.
        """
        spare = [
            shape[i + 2]
            - (y.shape[i + 2] - 1) * g.stride[i]
            + 2 * g.padding[i]
            - g.dilation[i] * (weight.shape[i + 2] - 1)
            - 1
            for i in (0, 1)
        ]
        y, weight = laid_out(y), laid_out(weight)
        with _in_their_type(y):
            return F.conv_transpose2d(
                y, weight, None, g.stride, g.padding, spare, g.groups, g.dilation
            )

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Any:
        y, weight = ctx.saved_tensors
        need_y, need_weight, _, _ = ctx.needs_input_grad
        by_y = by_weight = None
        if need_weight:  # first, since it takes the most memory on the way
            by_weight = _WeightGrad.apply(x, y, ctx.shapes[1], ctx.geometry)
        if need_y:
            by_y = _Output.apply(x, weight, ctx.geometry)
        return by_y, by_weight, None, None

    @staticmethod
    @first_order
    def jvp(ctx: Any, dy: Tensor | None, dw: Tensor | None, *_: None) -> Tensor | None:
        y, weight = ctx.saved_tensors
        return add(
            None if dy is None else _InputGrad.apply(dy, weight, ctx.shape, ctx.geometry),
            None if dw is None else _InputGrad.apply(y, dw, ctx.shape, ctx.geometry),
        )


class _WeightGrad(_Gradient):
    @staticmethod
    def forward(x: Tensor, y: Tensor, shape: torch.Size, g: Geometry) -> Tensor:
        x, y = laid_out(x), laid_out(y)
        # Only its shape is read, but in another layout than y's it would be copied first.
        layout = torch.channels_last if _channels_last(y) else torch.contiguous_format
        weight = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
        return torch.ops.aten.convolution_backward(
            y, x, weight, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups,
            (False, True, False),
        )[1]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        x, y = ctx.saved_tensors
        need_x, need_y, _, _ = ctx.needs_input_grad
        return (
            _InputGrad.apply(y, weight, ctx.shapes[0], ctx.geometry) if need_x else None,
            _Output.apply(x, weight, ctx.geometry) if need_y else None,
            None,
            None,
        )

    @staticmethod
    @first_order
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, *_: None) -> Tensor | None:
        x, y = ctx.saved_tensors
        return add(
            None if dx is None else _WeightGrad.apply(dx, y, ctx.shape, ctx.geometry),
            None if dy is None else _WeightGrad.apply(x, dy, ctx.shape, ctx.geometry),
        )

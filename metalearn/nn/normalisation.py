"""Batch normalisation by a batch's own statistics, differentiable at full speed.

For a channel of N values let u = s (x - mean x), s = (var x + eps)^(-1/2), and

    P y = y - mean y - u mean(u y),

the symmetric projection with du = s P dx. A gradient is g s P y, and every derivative of it is a
sum of known tensors, each times a number a channel that follows from five means. So a
gradient takes one pass for the means and one for the result (torch's own kernels), and a Hessian
product three sums and two such results; torch's own double backward takes four times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.autograd import Function, first_order, transformed
from metalearn.errors import UsageError

FEW = 2048
"""The number of values of a channel up to which torch's kernels take its sums.

Channels last, they add one value after the other: single precision loses 8e-5 of a standard
deviation over 20,000 values, 3e-6 over 1,000. Above, `Tensor.sum` adds in a tree, for two or three
passes more.
"""


def batch_norm(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, statistics_from: int | None = None
) -> Tensor:
    """Return gain (x - mean) / sqrt(var + eps) + shift, with the batch's own statistics.

    The statistics are over all axes of x but the second, of the first `statistics_from` examples
    (None: of all). x is (n, C, ...), gain and shift are (C,). Types narrower than float32 are
    normalised in float32. Reverse mode of any order, forward mode, and `torch.func.vmap` work.

    Raises:
        UsageError: there is one value a channel to take statistics from.
    """
    if x[:statistics_from].numel() <= x.shape[1]:
        raise UsageError(
            "batch norm has one value a channel to take its statistics from, which would "
            "normalise it to zero; expected at least 2 (more examples, or larger images)"
        )
    dtype = x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    x, gain, shift = x.to(wide), gain.to(wide), shift.to(wide)
    if statistics_from is None:
        return _BatchNorm.apply(x, gain, shift, eps)[0].to(dtype)
    centre, scale = statistics(x[:statistics_from], eps)
    return ((x - centre) * (_wide(gain, x) * scale) + _wide(shift, x)).to(dtype)


def mean(x: Tensor) -> Tensor:
    """Return the mean of each channel, shaped so that it broadcasts: (1, C, 1, ...)."""
    return x.mean([0, *range(2, x.dim())], keepdim=True)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean x and s, (1, C, 1, ...), differentiable."""
    centre = mean(x)
    return centre, (mean((x - centre).square()) + eps).rsqrt()


def _total(x: Tensor) -> Tensor:
    """Return the sum of each channel: (C,)."""
    return x.sum([0, *range(2, x.dim())])


def _wide(per_channel: Tensor, like: Tensor) -> Tensor:
    """Return (C,) as (1, C, 1, ...)."""
    return per_channel.view(1, -1, *[1] * (like.dim() - 2))


Term = tuple[Tensor, Tensor]
"""A tensor like x, and the factor of each of its channels."""


def _combined(level: Tensor, first: Term, *others: Term) -> Tensor:
    """Return level plus the sum of the terms, with no other new tensor of its size."""
    total = torch.addcmul(level, *first)
    in_place = not (torch.is_grad_enabled() or transformed())
    for term in others:
        total = total.addcmul_(*term) if in_place else torch.addcmul(total, *term)
    return total


class _BatchNorm(Function):
    """The result, and the mean and s of each channel, (C,), which spare the gradient their cost."""

    @staticmethod
    def forward(
        x: Tensor, gain: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if x.numel() <= FEW * gain.numel() or transformed():
            return torch.native_batch_norm(x, gain, shift, None, None, True, 0.0, eps)
        centre, scale = statistics(x, eps)
        steep = _wide(gain, x) * scale
        y = torch.addcmul(_wide(shift, x) - steep * centre, x, steep)
        return y, centre.flatten(), scale.flatten()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gain, _, ctx.eps = inputs
        _, centre, scale = output
        ctx.mark_non_differentiable(centre, scale)
        ctx.save_for_backward(x, gain, centre, scale)
        ctx.save_for_forward(x, gain, centre, scale)  # `vmap` needs both lists to have one length

    @staticmethod
    def backward(ctx: Any, y: Tensor, *_: Any) -> Any:
        x, gain, centre, scale = ctx.saved_tensors
        return *_Gradient.apply(y, x, gain, centre, scale, ctx.eps), None

    @staticmethod
    @first_order
    def jvp(
        ctx: Any, dx: Tensor | None, dgain: Tensor | None, dshift: Tensor | None, _: None
    ) -> tuple[Tensor, None, None]:
        x, gain, *_ = ctx.saved_tensors
        centre, scale = statistics(x, ctx.eps)
        unit = (x - centre) * scale
        dy = torch.zeros_like(x)
        if dx is not None:
            dy = _wide(gain, x) * scale * _projected(dx, unit)
        if dgain is not None:
            dy = dy + _wide(dgain, x) * unit
        if dshift is not None:
            dy = dy + _wide(dshift, x)
        return dy, None, None


class _Gradient(Function):
    """The gradients of x, gain and shift: gain s P y, sum(u y) and sum(y).

    centre and scale are those of x; the derivatives below account for their change with x.
    """

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, gain: Tensor, centre: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        along, level = _sums(y, x, centre, scale)
        number, steep = x.numel() // gain.numel(), gain * scale
        by_x = _in_x_units(
            -steep * level / number, -steep * along / number, centre, scale, x, [(y, steep)]
        )
        return by_x, along, level

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, x, gain, centre, scale, ctx.eps = inputs
        _, along, level = output
        ctx.set_materialize_grads(False)
        _, need_x, need_gain, *_ = ctx.needs_input_grad
        kept = y if need_x or need_gain else None
        ctx.save_for_backward(kept, x, gain, centre, scale, along, level)
        ctx.save_for_forward(y, x, gain, centre, scale, along, level)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None, c: Tensor | None) -> Any:
        """Return the gradients of sum(a gain s P y) + b sum(u y) + c sum(y)."""
        y, x, gain, centre, scale, along, level = ctx.saved_tensors
        need_y, need_x, need_gain, *_ = ctx.needs_input_grad
        number = x.numel() // gain.numel()
        if torch.is_grad_enabled():  # differentiated again: no tensor may be a constant
            centre, scale = (v.flatten() for v in statistics(x, ctx.eps))
            unit = (x - _wide(centre, x)) * _wide(scale, x)
            if y is not None:
                level, along = _total(y), _total(unit * y)
        mean_y, mean_uy = level / number, along / number
        nothing = torch.zeros_like(scale)
        b = nothing if b is None else b
        c = nothing if c is None else c
        in_y: list[Term] = []
        in_x: list[Term] = []
        by_gain = None
        mean_a = mean_ua = inner = nothing
        if a is not None:
            if torch.is_grad_enabled():
                mean_a, mean_ua = _total(a) / number, _total(unit * a) / number
            else:
                total_ua, total_a = _sums(a, x, centre, scale)
                mean_a, mean_ua = total_a / number, total_ua / number
            if need_x or need_gain:
                inner = _total(a * y) / number - mean_a * mean_y - mean_ua * mean_uy
            by_gain = number * scale * inner
            in_y, in_x = [(a, gain * scale)], [(a, -gain * scale.square() * mean_uy)]
        by_y = by_x = None
        factor = b - gain * scale * mean_ua  # the factor of u in by_y, and of s y in by_x
        if need_y:
            by_y = _in_x_units(c - gain * scale * mean_a, factor, centre, scale, x, in_y)
        if need_x:
            mean_w = factor * mean_y - gain * scale * mean_a * mean_uy
            mean_uw = (factor - gain * scale * mean_ua) * mean_uy
            in_x.append((y, scale * factor))
            by_x = _in_x_units(
                -scale * mean_w,
                -scale * (mean_uw + gain * scale * inner),
                centre,
                scale,
                x,
                in_x,
            )
        return by_y, by_x, by_gain, None, None, None

    @staticmethod
    @first_order
    def jvp(
        ctx: Any, dy: Tensor | None, dx: Tensor | None, dgain: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, x, gain, *_ = ctx.saved_tensors
        centre, scale = statistics(x, ctx.eps)
        unit, wide = (x - centre) * scale, _wide(gain, x)
        moved = torch.zeros_like(y)
        along = level = torch.zeros_like(gain)
        if dy is not None:
            moved, along, level = wide * scale * _projected(dy, unit), _total(unit * dy), _total(dy)
        if dgain is not None:
            moved = moved + _wide(dgain, x) * scale * _projected(y, unit)
        if dx is not None:
            dunit = scale * _projected(dx, unit)
            dscale = -(scale**2) * mean(unit * dx)
            turned = dunit * mean(unit * y) + unit * mean(dunit * y)
            moved = moved + wide * (dscale * _projected(y, unit) - scale * turned)
            along = along + _total(dunit * y)
        return moved, along, level


def _sums(y: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum(u y) and sum(y).

    For few values it takes one pass, by torch's kernel for the gradients of gain and shift.
    """
    if x.numel() > FEW * scale.numel() and not transformed():
        level = _total(y)
        return scale * (_total(y * x) - centre * level), level
    _, along, level = torch.ops.aten.native_batch_norm_backward(
        y, x, torch.ones_like(scale), None, None, centre, scale, True, 0.0, [False, True, True]
    )
    return along, level


def _projected(y: Tensor, unit: Tensor) -> Tensor:
    """Return P y."""
    return y - mean(y) - unit * mean(unit * y)


def _in_x_units(
    level: Tensor, of_unit: Tensor, centre: Tensor, scale: Tensor, x: Tensor, terms: list[Term]
) -> Tensor:
    """Return level + of_unit u + the terms, without making u; all factors are (C,)."""
    of_x = of_unit * scale
    wide = [(t, _wide(f, x)) for t, f in (*terms, (x, of_x))]
    return _combined(_wide(level - of_x * centre, x), *wide)

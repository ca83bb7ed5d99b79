"""Batch normalisation by a batch's own statistics, differentiable at full speed.

For a channel of m values, u = s (x - mean x) with s = (var x + eps)^(-1/2) has the Jacobian

    P y = s (y - mean y - u mean(u y)),

which is symmetric: one map serves forward and reverse mode. It yields the means of y and of u y on
the way, which are the gradients of the shift and of the gain, and its own derivatives are made of
it again. So a gradient takes two sums and three passes over the activations, and a Hessian product
a few more; torch's own double backward takes four times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from metalearn.forward_mode import first_order
from metalearn.tree import add


def batch_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """gain (x - mean) / sqrt(var + eps) + shift, the statistics over all axes of x but the second.

    x is (n, C, ...), gain and shift are (1, C, 1, ...). Reverse mode of any order, forward mode,
    and `torch.func.vmap`.
    """
    return _BatchNorm.apply(x, gain, shift, eps)[0]


def mean(x: Tensor) -> Tensor:
    """The mean of each channel, shaped so that it broadcasts: (1, C, 1, ...)."""
    return x.mean([0, *range(2, x.dim())], keepdim=True)


Term = tuple[Tensor, Tensor]
"""A tensor like x, and what each channel of it is multiplied by."""


def _combined(level: Tensor | None, first: Term, *others: Term) -> Tensor:
    """level (None: 0) plus the sum of the terms: one new tensor, none of its size on the way."""
    tensor, factor = first
    total = tensor * factor
    if retrieve_all_functorch_interpreters():  # `vmap` cannot write to what it does not map
        return add(sum((t * f for t, f in others), start=total), level)
    for tensor, factor in others:
        total.addcmul_(tensor, factor)
    return total if level is None else total.add_(level)


class _BatchNorm(torch.autograd.Function):
    """The result, and u and s, which backward saves and differentiates again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, gain: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - mean(x)
        scale = mean(centred * centred).add_(eps).rsqrt_()
        unit = centred.mul_(scale)
        return (unit * gain).add_(shift), unit, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, gain, _, _ = inputs
        _, unit, scale = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gain, unit, scale)
        ctx.save_for_forward(gain, unit, scale)

    @staticmethod
    def backward(
        ctx: Any, y: Tensor | None, by_unit: Tensor | None, by_scale: Tensor | None
    ) -> Any:
        gain, unit, scale = ctx.saved_tensors
        values = unit.numel() // scale.numel()
        if y is not None and by_unit is None and by_scale is None:
            by_x, mean_y, mean_uy = _Project.apply(y, unit, scale * gain)
            return by_x, values * mean_uy, values * mean_y, None
        # The derivative of a gradient: P (gain y) + P by_unit + the multiple of u of by_scale.
        by_gain = by_shift = None
        level = torch.zeros_like(scale)
        along = level if by_scale is None else by_scale * -(scale**2) / values
        terms = [(z, f) for z, f in ((y, scale * gain), (by_unit, scale)) if z is not None]
        for z, factor in terms:
            mean_z, mean_uz = mean(z), mean(unit * z)
            level, along = level - factor * mean_z, along - factor * mean_uz
            if z is y:
                by_gain, by_shift = values * mean_uz, values * mean_z
        return _combined(level, *terms, (unit, along)), by_gain, by_shift, None

    @staticmethod
    @first_order
    def jvp(
        ctx: Any, dx: Tensor | None, dgain: Tensor | None, dshift: Tensor | None, _: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        gain, unit, scale = ctx.saved_tensors
        if dx is None:
            dunit, dscale = torch.zeros_like(unit), torch.zeros_like(scale)
        else:
            dunit, _, along = _Project.apply(dx, unit, scale)
            dscale = -(scale**2) * along
        dy = gain * dunit
        if dgain is not None:
            dy = dy + dgain * unit
        if dshift is not None:
            dy = dy + dshift
        return dy, dunit, dscale


class _Project(torch.autograd.Function):
    """scale (y - mean y - u mean(u y)), mean y and mean(u y)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, unit: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean_y, mean_uy = mean(y), mean(unit * y)
        projected = _combined(-scale * mean_y, (unit, -scale * mean_uy), (y, scale))
        return projected, mean_y, mean_uy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, unit, scale = inputs
        _, mean_y, mean_uy = output
        ctx.set_materialize_grads(False)
        _, need_unit, need_scale = ctx.needs_input_grad
        kept = y if need_unit or need_scale else None
        ctx.save_for_backward(kept, unit, scale, mean_y, mean_uy)
        ctx.save_for_forward(y, unit, scale, mean_y, mean_uy)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, by_mean: Tensor | None, by_along: Tensor | None
    ) -> Any:
        y, unit, scale, mean_y, mean_uy = ctx.saved_tensors
        need_y, need_unit, need_scale = ctx.needs_input_grad
        values = unit.numel() // scale.numel()
        nothing = torch.zeros_like(scale)
        level = nothing if by_mean is None else by_mean / values
        along = nothing if by_along is None else by_along / values
        by_y = by_unit = by_scale = None
        in_y: list[Term] = []
        in_unit: list[Term] = []
        if g is not None:
            mean_g, mean_ug = mean(g), mean(unit * g)
            level, along = level - scale * mean_g, along - scale * mean_ug
            in_y, in_unit = [(g, scale)], [(g, -scale * mean_uy)]
            if need_scale:
                by_scale = values * (mean(g * y) - mean_g * mean_y - mean_ug * mean_uy)
        if need_y:
            by_y = _combined(level, (unit, along), *in_y)
        if need_unit:
            by_unit = _combined(None, (y, along), *in_unit)
        return by_y, by_unit, by_scale

    @staticmethod
    @first_order
    def jvp(
        ctx: Any, dy: Tensor | None, dunit: Tensor | None, dscale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, unit, scale, mean_y, mean_uy = ctx.saved_tensors
        if dy is None:
            moved, dmean, dalong = (
                torch.zeros_like(y),
                torch.zeros_like(scale),
                torch.zeros_like(scale),
            )
        else:
            moved, dmean, dalong = _Project.apply(dy, unit, scale)
        if dunit is not None:
            turned = mean(dunit * y)
            moved, dalong = moved - scale * (dunit * mean_uy + unit * turned), dalong + turned
        if dscale is not None:
            moved = moved + dscale * (y - mean_y - unit * mean_uy)
        return moved, dmean, dalong

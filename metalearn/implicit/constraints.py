"""The constraints as equations: projections and proximal maps, their step, and the KKT system.

A minimum of f(x) + h(x) is a fixed point of the proximal gradient step

    x = prox(x - rate grad f(x)),   prox(y) = argmin_x |x - y|^2 / 2 + rate h(x),

for any rate above 0. A constraint to a convex set is an h of 0 and infinity, whose prox is the
projection. The maps are differentiable almost everywhere. At a kink, such as a zero weight of the
lasso whose gradient is exactly the threshold, the solution has no derivative.

Vectors lie along the last axis, so that any batch of axes may come before it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from metalearn.tree import Tree, like_tree


def project_box(y: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return the nearest point with low <= x <= high, where low and high broadcast to y."""
    low, high = (torch.as_tensor(v, dtype=y.dtype, device=y.device) for v in (low, high))
    return torch.minimum(torch.maximum(y, low), high)


def project_nonnegative(y: Tensor) -> Tensor:
    """Return the nearest point with x >= 0."""
    return y.relu()


def project_simplex(y: Tensor, total: Tensor | float = 1.0) -> Tensor:
    """Return the nearest x with x >= 0 and sum(x) = total; Held, Wolfe & Crowder 1974.

    Args:
        y: (..., n).
        total: above 0, broadcasts to (...).
    """
    total = torch.as_tensor(total, dtype=y.dtype, device=y.device)[..., None]
    falling = y.sort(dim=-1, descending=True).values
    count = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
    shifts = (falling.cumsum(-1) - total) / count
    support = (falling > shifts).sum(-1, keepdim=True).clamp_min(1)
    return (y - shifts.gather(-1, support - 1)).relu()


def project_ball(y: Tensor, radius: Tensor | float = 1.0) -> Tensor:
    """Return the nearest x of Euclidean norm at most radius, which broadcasts to (...)."""
    radius = torch.as_tensor(radius, dtype=y.dtype, device=y.device)
    square = (y * y).sum(-1)
    outside = square > radius**2
    norm = torch.where(outside, square, 1.0).sqrt()
    return y * torch.where(outside, radius / norm, 1.0)[..., None]


def prox_l1(y: Tensor, threshold: Tensor | float) -> Tensor:
    """Return the x of least |x - y|^2 / 2 + threshold |x|_1: y moved towards 0 by the threshold."""
    threshold = torch.as_tensor(threshold, dtype=y.dtype, device=y.device)
    return (y - threshold).relu() - (-y - threshold).relu()


def prox_group_lasso(y: Tensor, threshold: Tensor | float) -> Tensor:
    """Return the x of least |x - y|^2 / 2 + threshold |x|, a group of numbers as a vector.

    Args:
        y: (..., n), a group along the last axis.
        threshold: at least 0, broadcasts to (...).
    """
    threshold = torch.as_tensor(threshold, dtype=y.dtype, device=y.device)
    square = (y * y).sum(-1)
    kept = square > threshold**2
    norm = torch.where(kept, square, 1.0).sqrt()
    return y * torch.where(kept, 1 - threshold / norm, 0.0)[..., None]


def proximal_step(
    objective: Callable[..., Tensor],
    prox: Callable[..., Tree],
    rate: float,
) -> Callable[..., Tree]:
    """Return the step (x, *args) -> prox(x - rate grad f(x, *args), rate, *args).

    Its fixed points are the minima of f + h where both are convex. `find_fixed_point` finds one and
    differentiates it. The plain iteration converges if the rate is below 2 over the largest
    curvature of f.

    Args:
        objective: f, maps (x, *args) to a scalar, or to (T,) in a batched solve.
        prox: maps (y, rate, *args) to the proximal map of rate h, or to a projection.
        rate: above 0.

    Raises:
        ValueError: the rate is not a finite number above 0.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate={rate}: expected a finite number above 0. Change it.")

    def step(x: Tree, *args: Tree) -> Tree:
        slope = torch.func.grad(lambda x: objective(x, *args).sum())(x)
        pairs = zip(tree_flatten(x)[0], tree_flatten(slope)[0], strict=True)
        return prox(like_tree(x, [a - rate * g for a, g in pairs]), rate, *args)

    return step


def kkt(
    objective: Callable[..., Tensor], equality: Callable[..., Tree]
) -> Callable[..., tuple[Tree, Tree]]:
    """Return the residual of the KKT system of min f(x, *args) with h(x, *args) = 0.

    The residual maps ((x, multipliers), *args) to

        (grad f + (dh/dx)' multipliers, h).

    `root_find` solves and differentiates it. To differentiate the solution of another solver,
    start `root_find` there, with multipliers of 0. The Jacobian is symmetric and indefinite. It is
    invertible if the constraints' gradients are independent and f is strictly convex along them.
    A root is a stationary point, and a minimum where f is convex and h affine.

    Args:
        objective: f, gives a scalar, or (T,) in a batched solve.
        equality: h, gives a pytree like the multipliers.
    """

    def residual(pair: tuple[Tree, Tree], *args: Tree) -> tuple[Tree, Tree]:
        x, multipliers = pair

        def lagrangian(x: Tree) -> tuple[Tensor, Tree]:
            h = equality(x, *args)
            sides = zip(tree_flatten(multipliers)[0], tree_flatten(h)[0], strict=True)
            return objective(x, *args).sum() + sum((m * v).sum() for m, v in sides), h

        slope, h = torch.func.grad(lagrangian, has_aux=True)(x)
        return slope, h

    return residual

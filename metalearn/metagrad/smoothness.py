"""The constants in a meta-gradient's error bound, given or measured at a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.autograd import gradients
from metalearn.problem import BilevelProblem, Meta, Params, in_full_precision
from metalearn.tree import detached, task_norm

Constant = float | Tensor
Kind = Literal["bound", "estimate"]
"""A figure that the error cannot exceed, or one that it may."""


@dataclass(frozen=True)
class Smoothness:
    """The constants of a bilevel problem that the bound needs, each a number or (T,).

    Args:
        strong_convexity: m, of the inner objective in params; above 0. For `FewShot` with a convex
            support loss it is prox.
        mixed_norm: |M|, the spectral norm of the inner objective's mixed partials; prox for
            `FewShot`.
        outer_lipschitz: L_v, of the outer gradient in params.
        curvature_lipschitz: L_A, of the inner Hessian; 0 for a quadratic inner objective.
        mixed_lipschitz: L_M, of the mixed partials; 0 for `FewShot`.
        direct_lipschitz: L_d, of d outer / d meta in params; 0 for `FewShot`.
        kind: "bound" if all constants hold on the way from params to the inner minimum; "estimate"
            if one is measured at a point, as by `local_smoothness` or by a Ritz value.
    """

    strong_convexity: Constant
    mixed_norm: Constant
    outer_lipschitz: Constant
    curvature_lipschitz: Constant = 0.0
    mixed_lipschitz: Constant = 0.0
    direct_lipschitz: Constant = 0.0
    kind: Kind = "bound"


def local_smoothness(
    problem: BilevelProblem,
    params: Params,
    meta: Meta,
    task: Any,
    strong_convexity: Constant,
    mixed_norm: Constant,
    products: int = 10,
) -> Smoothness:
    """Measure the constants at params, (T,) each, for which the bound is an estimate.

    L_v is the spectral norm of the outer Hessian, by `products` steps of power iteration (from
    below). L_A is the secant |(A(phi - g / m) - A(phi)) v| / (|g / m| |v|). Here g is the inner
    gradient, v the outer gradient and m the strong convexity. L_M and L_d are taken as 0, as they
    are for `FewShot`. The result's kind is "estimate": `Certificate.bound` of it may lie below the
    error. In `results/cg`, with the least Ritz value for m, it covered the error in most solves
    after the inner steps, and in about half of them at the inner minimum.
    """
    problem = in_full_precision(problem)  # differences of narrow products are rounding
    meta, leaves = detached(meta), list(detached(params).values())

    def outer(x: list[Tensor]) -> Tensor:
        return problem.outer_objective(dict(zip(params, x, strict=True)), meta, task)[0]

    def inner(x: list[Tensor]) -> Tensor:
        return problem.inner_objective(dict(zip(params, x, strict=True)), meta, task)

    g, v = _gradient(inner, leaves), _gradient(outer, leaves)
    direction = v
    for _ in range(products):
        direction = _over(direction, task_norm(direction))
        direction = _hessian_product(outer, leaves, direction)
    outer_lipschitz = task_norm(direction)

    m = torch.as_tensor(strong_convexity, dtype=leaves[0].dtype).expand(len(leaves[0]))
    step = _over(g, m)
    moved = [x - d for x, d in zip(leaves, step, strict=True)]
    before, after = (_hessian_product(inner, at, v) for at in (leaves, moved))
    change = task_norm([a - b for a, b in zip(after, before, strict=True)])
    travelled = task_norm(step) * task_norm(v)
    curvature_lipschitz = torch.where(travelled > 0, change / travelled.clamp_min(1e-300), 0.0)
    return Smoothness(
        strong_convexity, mixed_norm, outer_lipschitz, curvature_lipschitz, kind="estimate"
    )


def _gradient(objective: Any, leaves: list[Tensor]) -> list[Tensor]:
    live = [x.detach().requires_grad_() for x in leaves]
    with torch.enable_grad():
        return gradients(objective(live).sum(), live)


def _hessian_product(objective: Any, leaves: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    live = [x.detach().requires_grad_() for x in leaves]
    with torch.enable_grad():
        first = gradients(objective(live).sum(), live, create_graph=True)
        return gradients(first, live, v)


def _over(leaves: list[Tensor], by: Tensor) -> list[Tensor]:
    """Divide each task's leaves by its own number; the result is zero where the number is zero."""
    inverse = torch.where(by > 0, 1 / torch.where(by > 0, by, 1.0), 0.0)
    return [x * inverse.view(-1, *[1] * (x.dim() - 1)) for x in leaves]

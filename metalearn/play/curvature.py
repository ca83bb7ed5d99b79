"""The largest curvature of one task's inner objective, which limits its rate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metalearn.autograd import gradients
from metalearn.inner import Objective, value_and_grad
from metalearn.problem import Params
from metalearn.tree import Raveler, requires_grad_copy


def largest_curvature(
    objective: Objective,
    params: Params,
    products: int = 16,
    enough: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the largest Ritz value of the Hessian of a single task's objective.

    It comes from Lanczos iterations (Lanczos 1950; Saad 2011, algorithm 6.15) from a random vector,
    always the same, with full reorthogonalisation in float64. It is never above the largest
    eigenvalue, but for rounding, and equals it with as many products as parameters. None: a product
    is not finite.

    Args:
        objective: maps params to (1,).
        params: dict of (1, ...).
        products: the limit on Hessian-vector products.
        enough: asked after each product; True ends the iterations.
    """
    leaves = requires_grad_copy(list(params.values()))
    _, gradient = value_and_grad(
        objective, dict(zip(params, leaves, strict=True)), create_graph=True
    )
    raveler = Raveler.of(leaves, batched=True)
    apply = raveler.matvec(lambda v: gradients(gradient, leaves, v, retain_graph=True))
    size, device = sum(x.numel() for x in leaves), leaves[0].device
    random = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = (random / random.norm()).to(device)
    basis = v[None]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(products, size)):
        w = apply(basis[-1:].to(raveler.dtype))[0].double()
        if not w.isfinite().all():
            return None
        diagonal.append(float(w @ basis[-1]))
        scale = float(w.norm())
        for _ in range(2):  # once leaves rounding of the order of the cancellation
            w = w - (basis @ w) @ basis
        length = float(w.norm())
        if length <= torch.finfo(raveler.dtype).eps * scale or enough():
            break
        beside.append(length)
        basis = torch.cat([basis, w[None] / length])
    ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    if len(off):
        ritz = ritz + torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(ritz)[-1])

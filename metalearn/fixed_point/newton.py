"""The Newton method, with GMRES for its linear systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.autograd import without_saved_tensor_hooks
from metalearn.fixed_point.search import Function, Search, check_options
from metalearn.linear_solve import GMRES, Solution, Status
from metalearn.linear_solve.system import norms
from metalearn.tree import Tree

HALVINGS = 8
"""The number of shorter steps that are tried before a Newton direction is given up."""


@dataclass(frozen=True)
class NewtonGMRES:
    """The inexact Newton method on g(z) = f(z) - z; Kelley 1995, chapters 6 and 8.

    GMRES solves (I - J) step = g to a relative residual of `linear_rtol`. The step is halved until
    |g| falls by the fraction 1e-4 of the step's length, where the full step has length 1 (Kelley,
    algorithm 8.2.1). If no length suffices, as near a minimum of |g| that is no fixed point, the
    step of Picard's iteration is tried. A system for which that fails too ends as BREAKDOWN.

    Args:
        max_iters: the limit on applications of the function, products with J among them. In a batch
            a system may exceed it by the products that another system still had left.
        rtol, atol: stop at |f(z) - z| <= max(rtol |f(z)|, atol).
        linear_iters: the limit on GMRES iterations of a Newton step, without a restart; the memory
            is as many iterates.
        linear_rtol: the forcing term, below 1. Near a solution, a Newton step shrinks |g| by about
            this factor.

    Raises:
        ValueError: an option is out of its range.
    """

    max_iters: int = 100
    rtol: float = 1e-5
    atol: float = 0.0
    linear_iters: int = 20
    linear_rtol: float = 1e-2

    def __post_init__(self) -> None:
        check_options(self)
        if self.linear_iters < 1 or not 0 < self.linear_rtol < 1:
            raise ValueError(
                f"NewtonGMRES(linear_iters={self.linear_iters}, linear_rtol={self.linear_rtol}); "
                "expected at least one iteration and linear_rtol in (0, 1)"
            )

    @torch.no_grad()
    def __call__(self, function: Function, z0: Tree, batched: bool = False) -> Solution:
        search = Search(function, z0, batched, self.max_iters, self.rtol, self.atol)
        z = search.start
        g = search.evaluate(z)
        while search.running.any():
            step = self._direction(search, z, g)
            z, g = self._line_search(search, z, g, step)
        return search.solution()

    def _direction(self, search: Search, z: Tensor, g: Tensor) -> Tensor:
        """Return the Newton step of the systems that run, and 0 for the others."""

        push = jacobian_product(search.apply, z)
        # Reserve three applications: the linearisation, GMRES's own residual, and the step itself.
        left = int((self.max_iters - search.iterations[search.running]).max()) - 3
        iters = max(1, min(self.linear_iters, left))
        solve = GMRES(max_iters=iters, restart=iters, rtol=self.linear_rtol)
        right = torch.where(search.running[:, None], g, 0.0)
        solution = solve(lambda v: v - push(v), right, batched=True)
        search.iterations += torch.where(search.running, solution.iterations + 2, 0)
        return solution.value

    @staticmethod
    def _line_search(search: Search, z: Tensor, g: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and g after the first of the tried moves under which |g| falls enough."""
        before, seeking = norms(g), search.running
        lengths = [0.5**k for k in range(HALVINGS + 1)]
        moves = [(length * step, 1 - 1e-4 * length) for length in lengths]
        for move, share in [*moves, (g, 1 - 1e-4)]:
            trial = torch.where(seeking[:, None], z + move, z)
            g_trial, after = search.measure(trial, seeking)
            fell = seeking & (after <= share * before)
            z = torch.where(fell[:, None], trial, z)
            g = torch.where(fell[:, None], g_trial, g)
            seeking = seeking & ~fell & search.running
            if not seeking.any():
                break
        search.stop(seeking, Status.BREAKDOWN)
        return z, g


def jacobian_product(function: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v -> J v at z, on one linearisation.

    The pull-back w -> J' w is linear, and J transposes it. Forward mode would need a rule from
    every layer, and would evaluate the function at every product.
    """
    with torch.enable_grad(), without_saved_tensor_hooks():
        linearised: Any = torch.func.vjp(function, z)
        image, pull = linearised
        transposed: Any = torch.func.vjp(lambda w: pull(w)[0], torch.zeros_like(image))
    return lambda v: transposed[1](v)[0]

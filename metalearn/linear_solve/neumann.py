"""The Neumann series, as the fixed-point iteration that sums it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import MAX_FLOAT32
from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, require, rows, seeded
from metalearn.tree import Tree

POWER_STEPS = 12
"""The number of products in the power iteration, which runs if no step size is given."""


@dataclass(frozen=True)
class Neumann:
    """x += s (b - A x), Richardson's iteration; from x0 = 0 it sums s sum_k (I - s A)^k b.

    Lorraine, Vicol & Duvenaud 2020, algorithm 3. It converges where every eigenvalue of I - s A is
    inside the unit circle: for a symmetric positive definite A, where 0 < s < 2 / eigenvalue_max.

    Without a step size, s = 1 / estimate, the largest |A v| / |v| of a power iteration of 12
    products from a fixed random start. Such ratios are never above the largest |eigenvalue| of a
    symmetric A and approach it from below, so that s is never too small by that estimate, and short
    enough as soon as the estimate is within a factor of two of the truth. Of the start's square,
    1 / N is along the leading eigenvector in the mean, and each product shrinks what belongs to
    eigenvalues below half the largest by 4 against it: 4^12 = 1.7e7 covers N to the millions.

    A system stops at |b - A x| <= rtol |b|, after max_iters steps, or where the residual is 1000
    times the least. `DIVERGED` is one that grew: it ended above its least by more than rounding.
    The iterate of the least residual is the one returned.

    Args:
        max_iters: the limit on steps, of one product each, without the power iteration's 12.
        step_size: s, above 0; None: an estimate for each system.
        rtol: the tolerance on the residual's norm over |b|.

    Raises:
        ValueError: max_iters or rtol is negative, or step_size is not a positive number.
    """

    max_iters: int = 10
    step_size: float | None = None
    rtol: float = 1e-6

    def __post_init__(self) -> None:
        require(self, 0, "max_iters", "rtol")
        if self.step_size is not None and not 0 < self.step_size <= MAX_FLOAT32:
            raise ValueError(
                f"Neumann(step_size={self.step_size}); expected above 0, up to {MAX_FLOAT32:.1e}"
            )

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol)
        x, r, status = system.x, system.r, system.status
        r_norm = r.norm(dim=1)
        running = (status == Status.MAX_ITERS) & (self.max_iters > 0)
        iterations = torch.zeros_like(status)
        step = self._step(system) if running.any() else torch.ones_like(r_norm)
        for condition, why in ((~step.isfinite(), Status.NON_FINITE), (step == 0, Status.SINGULAR)):
            status = torch.where(running & condition, why, status)
            running = running & ~condition

        best, best_r, best_norm = x, r, r_norm
        while running.any():
            iterations += running
            x = torch.addcmul(x, torch.where(running, step, 0.0)[:, None], r)
            r = rows(running, system.residual(x), 0.0)
            r_norm = torch.where(running, r.norm(dim=1), r_norm)
            better = running & (r_norm <= best_norm)
            best, best_r = rows(better, x, best), rows(better, r, best_r)
            best_norm = torch.where(better, r_norm, best_norm)

            defective = running & ~r_norm.isfinite()
            status = torch.where(defective, Status.NON_FINITE, status)
            status = torch.where(running & (r_norm <= system.tolerance), Status.CONVERGED, status)
            running = running & (status == Status.MAX_ITERS) & (iterations < self.max_iters)
            running = running & (r_norm <= 1e3 * best_norm)

        # A residual at rounding level, eps (|b| + |A| |x|), fluctuates.
        magnitude = system.b.norm(dim=1) + divide(best.norm(dim=1), step)
        rounding = system.b.shape[1] ** 0.5 * torch.finfo(r.dtype).eps * magnitude
        grown = (status == Status.MAX_ITERS) & (r_norm > best_norm + rounding)
        status = torch.where(grown, Status.DIVERGED, status)
        stale = (iterations < iterations.max()) | (best_norm < r_norm)
        best_r, status = system.recheck(best, best_r, status, stale)
        return system.finish(best, best_r, iterations, status)

    def _step(self, system: System) -> Tensor:
        """Return the step sizes, (T,): 0 for a zero matrix, NaN where A v is not finite."""
        if self.step_size is not None:
            return torch.full_like(system.tolerance, self.step_size)
        v = seeded((1, system.b.shape[1]), 0, system.b).expand_as(system.b)
        largest = torch.zeros_like(system.tolerance)
        for _ in range(POWER_STEPS):
            v = divide(v, v.norm(dim=1, keepdim=True))
            v = system.apply(v)
            largest = largest.maximum(v.norm(dim=1))
        step = divide(torch.ones_like(largest), largest)
        return torch.where(largest.isfinite(), step, torch.nan)

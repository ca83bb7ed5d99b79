"""The conjugate gradient method of iMAML's public code, which ignores negative curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, dot, require, rows
from metalearn.tree import Tree


@dataclass(frozen=True)
class UncheckedCG:
    """The textbook CG method, which continues along negative curvature.

    There a step raises what CG minimises; `metalearn.linear_solve.CG` stops instead. This class
    serves studies of that cost. Systems that met negative curvature have the status
    NEGATIVE_CURVATURE, and the value that the iteration ended with.

    Args:
        max_iters: the limit on applications of A.
        rtol, atol: the tolerances on the norm of the recurrence's residual.

    Raises:
        ValueError: max_iters is below 1, or a tolerance is negative.
    """

    max_iters: int = 5
    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        require(self, 1, "max_iters")
        require(self, 0, "rtol", "atol")

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol, self.atol)
        x, r, status = system.x, system.r, system.status
        iterations = torch.zeros_like(status)
        running = status == Status.MAX_ITERS
        negative = torch.zeros_like(running)
        p, rr = r, dot(r, r)
        for _ in range(self.max_iters):
            if not running.any():
                break
            iterations += running
            ap = rows(running, system.apply(p), 0.0)
            pap = dot(p, ap)
            alpha = divide(rr, pap)
            step = torch.addcmul(r, -alpha[:, None], ap)
            sound = step.norm(dim=1).isfinite() & alpha.isfinite() & (pap != 0)
            status = torch.where(running & ~sound, Status.BREAKDOWN, status)
            running = running & sound
            negative = negative | (running & (pap < 0))
            x = rows(running, torch.addcmul(x, alpha[:, None], p), x)
            r = rows(running, step, r)
            after = dot(r, r)
            p = torch.addcmul(r, divide(after, rr)[:, None], p)
            rr = after
            running = running & (after.sqrt() > system.tolerance)
        r = system.residual(x)
        met = (r.norm(dim=1) <= system.tolerance) & system.finite
        status = torch.where(met, Status.CONVERGED, status)
        status = torch.where(negative, Status.NEGATIVE_CURVATURE, status)
        return system.finish(x, r, iterations, status)

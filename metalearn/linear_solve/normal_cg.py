"""The conjugate gradient method on the normal equations, for any matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from metalearn.autograd import gradients
from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, dot, power_of_two, require, rows
from metalearn.tree import Raveler, Tree, leaves_of, like_tree, requires_grad_copy


@dataclass(frozen=True)
class NormalCG:
    """The CG method on A'A x = A'b without forming A'A: CGLS; Björck 1996, algorithm 7.4.1.

    It works for every A, at the square of its condition number. The residual falls at every step.

    A system stops at |b - A x| <= rtol |b|, by the recomputed residual, or after `max_iters`. It
    stops as `SINGULAR` where a step would lower |b - A x|^2 by less than its rounding. Then b is
    outside A's range: A'(b - A x) falls to 0 while the residual cannot, and x is a least-squares
    solution. A condition number near the inverse root of the precision looks the same.

    Args:
        max_iters: the limit on iterations, of one product with A and one with A' each.
        rtol: the tolerance on the residual's norm over |b|.
        transpose: A' on pytrees like b. None: autograd derives it from one evaluation of the
            matvec, whose graph is kept during the solve. The matvec must then be differentiable in
            its argument.

    Raises:
        ValueError: max_iters or rtol is negative; or transpose is None and the matvec's result has
            no graph.
    """

    max_iters: int = 20
    rtol: float = 1e-6
    transpose: MatVec | None = None

    def __post_init__(self) -> None:
        require(self, 0, "max_iters", "rtol")

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol)
        x, r, status = system.x, system.r, system.status
        iterations = torch.zeros_like(status)
        eps = torch.finfo(r.dtype).eps
        verified = torch.full_like(system.tolerance, torch.inf)
        running = (status == Status.MAX_ITERS) & (self.max_iters > 0)
        transposed = self._transposed(system.raveler, matvec, b) if running.any() else None
        if transposed is None:
            return system.finish(x, r, iterations, status)

        # A in units of `unit`: the fourth power of A in |A A'r|^2 would leave the type's range.
        s = rows(running, transposed(rows(running, r, 0.0)), 0.0)
        unit = power_of_two(s)[:, None]
        apply, x, s = system.apply, x * unit, s / unit
        system = replace(system, apply=lambda v: apply(v / unit))
        while running.any():
            p, gamma = s, dot(s, s)
            while True:
                iterations += running
                q = rows(running, system.apply(p), 0.0)
                alpha = divide(gamma, dot(q, q))
                step_r = torch.addcmul(r, -alpha[:, None], q)
                # An overflow of the squared norm would look like an endless decrease.
                defective = ~(step_r.norm(dim=1).isfinite() & alpha.isfinite())
                stuck = alpha * gamma <= eps * dot(r, r)
                for condition, why in ((defective, Status.NON_FINITE), (stuck, Status.SINGULAR)):
                    status = torch.where(running & condition, why, status)
                    running = running & ~condition
                x = rows(running, torch.addcmul(x, alpha[:, None], p), x)
                r = rows(running, step_r, r)
                met = running & (r.norm(dim=1) <= system.tolerance)
                status = torch.where(met, Status.CONVERGED, status)
                running = running & ~met & (iterations < self.max_iters)
                if not running.any():
                    break
                s = rows(running, transposed(rows(running, r, 0.0)) / unit, 0.0)
                gamma_next = dot(s, s)
                p = rows(running, torch.addcmul(s, divide(gamma_next, gamma)[:, None], p), 0.0)
                gamma = gamma_next
            r, verified, status, running = system.verify(
                x, status, verified, iterations < self.max_iters
            )
            if running.any():
                s = rows(running, transposed(rows(running, r, 0.0)) / unit, 0.0)
        return system.finish(x / unit, r, iterations, status)

    def _transposed(self, raveler: Raveler, matvec: MatVec, like: Tree) -> Callable:
        if self.transpose is not None:
            return raveler.matvec(self.transpose)
        with torch.enable_grad():
            at = requires_grad_copy(
                like_tree(like, [torch.zeros_like(leaf) for leaf in leaves_of(like)])
            )
            image = matvec(at)
        raveler.ravel(image)  # raises if the structure differs
        if not all(leaf.requires_grad for leaf in leaves_of(image)):
            raise ValueError(
                "NormalCG(transpose=None) needs a matvec that autograd can differentiate in its "
                "argument, and this one's result carries no graph; expected differentiable "
                "operations (create_graph=True in a Hessian-vector product), or transpose= given"
            )

        def transposed(v: Tree) -> Tree:
            found = gradients(leaves_of(image), leaves_of(at), leaves_of(v), retain_graph=True)
            return like_tree(at, found)

        return raveler.matvec(transposed)

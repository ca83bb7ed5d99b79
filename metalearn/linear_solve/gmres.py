"""The GMRES method for many general systems at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, dot, require, rows
from metalearn.tree import Tree


@dataclass(frozen=True)
class GMRES:
    """The restarted GMRES method: the least residual in each Krylov space; A need not be symmetric.

    Saad & Schultz 1986; Saad 2003, algorithm 6.11. Modified Gram-Schmidt, run twice, makes the
    basis: twice is enough for orthogonality to rounding (Giraud, Langou & Rozloznik 2005). Givens
    rotations keep the small least-squares problems solved.

    A system stops:

    - at |b - A x| <= rtol |b|, by the recomputed residual;
    - after `max_iters` Arnoldi steps;
    - as `SINGULAR`, where the Krylov space is exhausted and the residual cannot reach 0 in it;
    - as `BREAKDOWN`, where a whole cycle no longer lowers the residual: stagnation, or the floor of
      this precision.

    The memory is (restart + 1) T N.

    Args:
        max_iters: the limit on Arnoldi steps, of one product each; every cycle's end takes one
            more.
        restart: the number of steps in a cycle, whose basis is kept.
        rtol: the tolerance on the residual's norm over |b|.

    Raises:
        ValueError: max_iters or rtol is negative, or restart is below 1.
    """

    max_iters: int = 20
    restart: int = 20
    rtol: float = 1e-6

    def __post_init__(self) -> None:
        require(self, 0, "max_iters", "rtol")
        require(self, 1, "restart")

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol)
        x, r, status, tolerance = system.x, system.r, system.status, system.tolerance
        iterations = torch.zeros_like(status)
        scale = torch.zeros_like(tolerance)
        eps = torch.finfo(r.dtype).eps
        running = (status == Status.MAX_ITERS) & (self.max_iters > 0)
        stale = ~running
        while running.any():
            cycle = _Cycle(rows(running, r, 0.0), scale)
            extending = running
            for _ in range(min(self.restart, r.shape[1])):
                w = system.apply(cycle.basis[-1])
                iterations += extending
                defective = extending & ~w.norm(dim=1).isfinite()
                extending = extending & ~defective
                residual, exhausted = cycle.extend(rows(extending, w, 0.0))
                status = torch.where(defective, Status.NON_FINITE, status)
                status = torch.where(extending & exhausted, Status.SINGULAR, status)
                extending = extending & ~exhausted & (residual > tolerance)
                extending = extending & (iterations < self.max_iters)
                if not extending.any():
                    break
            scale = cycle.scale

            # The residual can grow only by rounding; the start was then the best.
            trial = x + cycle.step()
            trial_r = system.residual(trial)
            before, after = r.norm(dim=1), trial_r.norm(dim=1)
            lower = running & (after <= before)
            x, r = rows(lower, trial, x), rows(lower, trial_r, r)
            stale = stale | ~lower
            status = torch.where(lower & (after <= tolerance), Status.CONVERGED, status)

            running = running & (status == Status.MAX_ITERS) & (iterations < self.max_iters)
            stuck = running & ~(after < (1 - 10 * eps) * before)
            # |r| is constant to rounding once x is within sqrt(eps) of a least-squares solution. If
            # A r is 0 at that solution, it is here within sqrt(eps) of 0.
            null = cycle.first_product <= eps**0.5 * scale
            why = torch.where(null, Status.SINGULAR, Status.BREAKDOWN)
            status = torch.where(stuck, why, status)
            running = running & ~stuck
        r, status = system.recheck(x, r, status, stale & (iterations.max() > 0))
        return system.finish(x, r, iterations, status)


class _Cycle:
    """The growing Arnoldi basis V with A V = V H, and H = Q R by Givens rotations.

    Args:
        r: the residuals at the start of the cycle, (T, N); 0 for a stopped system.
        scale: the largest |A v| so far, (T,), against which rounding is measured.
    """

    def __init__(self, r: Tensor, scale: Tensor) -> None:
        norm = r.norm(dim=1)
        self.basis = [divide(r, norm[:, None])]
        self.scale = scale
        self.first_product = torch.zeros_like(norm)
        self._rounding = 10 * r.shape[1] ** 0.5 * torch.finfo(r.dtype).eps
        self._columns: list[list[Tensor]] = []  # of R, without the zeros below its diagonal
        self._rotations: list[tuple[Tensor, Tensor]] = []
        self._right = [norm]  # Q' |r| e1; its last entry is the least-squares residual

    def extend(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Add w = A v, where v is the last basis vector; w is 0 for a stopped system.

        Returns:
            the least residual in the new space, (T,), and the mask (T,) of exhausted spaces. A
            space is exhausted by a direction whose image lies in the span of the earlier images: A
            is singular on it.
        """
        length = w.norm(dim=1)
        if not self._columns:
            self.first_product = length
        self.scale = self.scale.maximum(length)
        column = [torch.zeros_like(length) for _ in self.basis]
        for _ in range(2):
            for i, v in enumerate(self.basis):
                along = dot(v, w)
                w = torch.addcmul(w, -along[:, None], v)
                column[i] = column[i] + along
        tiny = self._rounding * self.scale
        beyond = w.norm(dim=1)
        beyond = torch.where(beyond <= tiny, 0.0, beyond)  # the happy breakdown
        self.basis.append(divide(rows(beyond > 0, w, 0.0), beyond[:, None]))

        for i, (c, s) in enumerate(self._rotations):
            column[i], column[i + 1] = (
                c * column[i] + s * column[i + 1],
                c * column[i + 1] - s * column[i],
            )
        diagonal = torch.hypot(column[-1], beyond)
        exhausted = diagonal <= tiny
        # Skip a direction that adds nothing: its coefficient becomes 0.
        c = torch.where(exhausted, 0.0, divide(column[-1], diagonal))
        s = torch.where(exhausted, 1.0, divide(beyond, diagonal))
        column[-1] = torch.where(exhausted, 1.0, diagonal)
        self._columns.append(column)
        self._rotations.append((c, s))
        last = self._right.pop()
        self._right += [c * last, -s * last]
        return self._right[-1].abs(), exhausted

    def step(self) -> Tensor:
        """Return V y of the least residual, (T, N): R y = Q' |r| e1 by back substitution."""
        size = len(self._columns)
        y: list[Tensor] = [torch.empty(0)] * size
        for i in reversed(range(size)):
            known = self._right[i]
            for j in range(i + 1, size):
                known = known - self._columns[j][i] * y[j]
            y[i] = known / self._columns[i][i]
        step = torch.zeros_like(self.basis[0])
        for coefficient, v in zip(y, self.basis, strict=False):
            step = torch.addcmul(step, coefficient[:, None], v)
        return step

"""Conjugate gradients for many symmetric positive definite systems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.solution import MatVec, Solution, Status, finish
from metalearn.tree import Raveler, Tree


@dataclass(frozen=True)
class CG:
    """(Preconditioned) conjugate gradients; Hestenes & Stiefel 1952, Saad 2003, algorithm 9.1.

    A system stops when |b - A x| <= max(rtol |b|, atol), after `max_iters` applications of A, or
    where the Krylov space meets a direction of curvature <= 0, and then keeps its last iterate.
    Convergence is claimed by the recomputed residual alone: where the recurrence's has drifted from
    it, the iteration starts again from the recomputed one.

    Args:
        max_iters: most applications of A in the iteration; the final residual takes one more.
        rtol, atol: tolerances on the residual's norm.
        preconditioner: a symmetric positive definite map close to the inverse of A, on pytrees like
            b. The Ritz values are then those of the preconditioned operator.

    Raises:
        ValueError: max_iters or a tolerance is negative.
    """

    max_iters: int = 10
    rtol: float = 1e-6
    atol: float = 0.0
    preconditioner: Callable[[Tree], Tree] | None = None

    def __post_init__(self) -> None:
        if self.max_iters < 0 or self.rtol < 0 or self.atol < 0:
            raise ValueError(
                f"CG(max_iters={self.max_iters}, rtol={self.rtol}, atol={self.atol}); "
                "none of them may be negative"
            )

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        raveler = Raveler.of(b, batched)
        apply = raveler.matvec(matvec)
        precondition = raveler.matvec(self.preconditioner) if self.preconditioner else None

        target = raveler.ravel(b)
        finite = rows_finite(target)
        target = rows(finite, target, 0.0)
        tolerance = (self.rtol * target.norm(dim=1)).clamp_min(self.atol)
        x = torch.zeros_like(target) if x0 is None else raveler.ravel(x0).clone()
        r = target if x0 is None else target - apply(x)
        finite &= rows_finite(r)
        r = rows(finite, r, 0.0)

        status = torch.where(finite, Status.MAX_ITERS, Status.NON_FINITE)
        iterations = torch.zeros_like(status)
        lanczos = _Lanczos(target)
        verified = torch.full_like(tolerance, torch.inf)
        running = finite & (r.norm(dim=1) > tolerance)
        status = torch.where(finite & ~running, Status.CONVERGED, status)
        left = self.max_iters
        while True:
            z = precondition(r) if precondition else r
            p, rz = z, dot(r, z)
            scale = torch.zeros_like(tolerance)
            while left and running.any():
                left -= 1
                iterations += running
                ap = apply(p)
                p_norm, pap = p.norm(dim=1), dot(p, ap)
                scale = scale.maximum((ap.norm(dim=1) / p_norm).nan_to_num(0.0, 0.0))
                rounding = torch.finfo(pap.dtype).eps * scale * p_norm**2
                defective = ~(pap.isfinite() & rz.isfinite())
                inverse_alpha = pap / torch.where(rz > 0, rz, 1.0)
                seen = running & ~defective & (rz > 0)
                for condition, why in (
                    (defective, Status.NON_FINITE),
                    (pap < -rounding, Status.NEGATIVE_CURVATURE),
                    (pap <= rounding, Status.SINGULAR),
                    (rz <= 0, Status.BREAKDOWN),
                ):
                    status = torch.where(running & condition, why, status)
                    running = running & ~condition

                # Systems at rest take a step of zero, so that all move by the same few operations.
                ap = rows(running, ap, 0.0)
                alpha = torch.where(running, rz / torch.where(running, pap, 1.0), 0.0)
                x = torch.addcmul(x, alpha[:, None], p)
                r = torch.addcmul(r, -alpha[:, None], ap)
                r_norm = r.norm(dim=1)
                met = running & (r_norm <= tolerance)
                status = torch.where(met, Status.CONVERGED, status)
                running = running & ~met

                z = precondition(r) if precondition else r
                rz_next = r_norm * r_norm if z is r else dot(r, z)
                beta = torch.where(running, rz_next / torch.where(rz > 0, rz, 1.0), 0.0)
                lanczos.add(inverse_alpha, beta, seen)
                p = torch.addcmul(z, beta[:, None], p)
                rz = rz_next

            if x0 is not None or iterations.any():
                r = target - apply(x)
            r_norm = r.norm(dim=1)
            drifted = (status == Status.CONVERGED) & ~(r_norm <= tolerance)
            again = drifted & (r_norm < 0.5 * verified) & (left > 0)
            # A recomputed residual that no longer falls is the floor of this precision.
            status = torch.where(
                drifted & ~again, Status.BREAKDOWN if left else Status.MAX_ITERS, status
            )
            verified, running = r_norm, again
            if not running.any():
                break

        # An iterate that overflowed is given up for zero.
        overflow = finite & ~rows_finite(x)
        status = torch.where(overflow, Status.NON_FINITE, status)
        x = rows(~overflow, x, 0.0)
        r = rows(~overflow, rows(finite, r, torch.inf), target)
        return finish(raveler, x, r, target, iterations, status, lanczos.bounds())


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of the rows of two (T, N) matrices: (T,)."""
    return torch.linalg.vecdot(a, b)


def rows(kept: Tensor, matrix: Tensor, other: Tensor | float) -> Tensor:
    """The rows of a (T, N) matrix that are `kept`, (T,), and `other` in place of the rest."""
    return matrix if kept.all() else torch.where(kept[:, None], matrix, other)


def rows_finite(matrix: Tensor) -> Tensor:
    """Whether each row of a (T, N) matrix is finite: (T,). A sum tells it in one pass."""
    return matrix.sum(dim=1).isfinite()


class _Lanczos:
    """The tridiagonal matrices that CG's own coefficients define; Saad 2003, section 6.7.3."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.inverse_alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.seen: list[Tensor] = []

    def add(self, inverse_alpha: Tensor, beta: Tensor, seen: Tensor) -> None:
        self.inverse_alphas.append(torch.where(seen, inverse_alpha, 0.0).double())
        self.betas.append(torch.where(seen, beta, 0.0).double())
        self.seen.append(seen)

    def bounds(self) -> tuple[Tensor, Tensor]:
        tasks = len(self.like)
        low = self.like.new_full((tasks,), torch.inf)
        if not self.seen:
            return low, -low
        inverse_alpha = torch.stack(self.inverse_alphas, dim=1)
        beta = torch.stack(self.betas, dim=1)
        seen = torch.stack(self.seen, dim=1)
        diagonal = inverse_alpha.clone()
        diagonal[:, 1:] += beta[:, :-1] * inverse_alpha[:, :-1]
        # Steps that a system did not take repeat its first Rayleigh quotient, a value inside.
        first = diagonal.gather(1, seen.int().argmax(dim=1, keepdim=True))
        diagonal = torch.where(seen, diagonal, first)
        matrix = torch.diag_embed(diagonal)
        if diagonal.shape[1] > 1:
            off = (beta.clamp_min(0).sqrt() * inverse_alpha)[:, :-1]
            matrix += torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
        ritz = torch.linalg.eigvalsh(matrix).to(self.like)
        known = seen.any(dim=1)
        return torch.where(known, ritz[:, 0], low), torch.where(known, ritz[:, -1], -low)

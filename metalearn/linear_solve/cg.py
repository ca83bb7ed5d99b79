"""The conjugate gradient method for many symmetric positive definite systems at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.solution import MatVec, Preconditioner, Solution, Status
from metalearn.linear_solve.system import DRIFT, TOLERATED, System, any_runs, dot, require, rows
from metalearn.tree import Tree


@dataclass(frozen=True)
class CG:
    """The (preconditioned) conjugate gradient method; Saad 2003, algorithm 9.1.

    From Hestenes & Stiefel 1952. A system stops:

    - when |b - A x| <= max(rtol |b|, atol);
    - after `max_iters` applications of A;
    - where the Krylov space meets a direction of curvature <= 0, or the iteration breaks down.

    It then keeps its last finite iterate, the best by what CG minimises. Every step was along
    positive curvature and lowered x'Ax/2 - b'x, as in truncated Newton methods (Steihaug 1983). The
    residual of that iterate may be above |b|.

    Only a recomputed residual establishes convergence. Where the recurrence's residual has drifted
    from the recomputed one, the iteration restarts from the recomputed one. A solve that claims no
    convergence skips this product if the drift is far below the residual.

    Args:
        max_iters: the limit on applications of A in the iteration; verifying a residual takes one
            more.
        rtol, atol: the tolerances on the residual's norm.
        preconditioner: a symmetric positive definite map close to the inverse of A, on pytrees like
            b; or a `Preconditioner`, such as `Nystrom` or `Jacobi`. A `Preconditioner` builds such
            a map from A at the start of every solve; its products are not among `iterations`. The
            Ritz values are then those of the preconditioned operator.

    Raises:
        ValueError: max_iters or a tolerance is negative.
    """

    max_iters: int = 10
    rtol: float = 1e-6
    atol: float = 0.0
    preconditioner: MatVec | Preconditioner | None = None

    def __post_init__(self) -> None:
        require(self, 0, "max_iters", "rtol", "atol")

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol, self.atol)
        apply, tolerance, status = system.apply, system.tolerance, system.status
        x, r = system.x, system.r
        running = (status == Status.MAX_ITERS) & (self.max_iters > 0)
        inverse = self.preconditioner
        # Test for `of` first: Nystrom is a solver too, and so callable.
        if isinstance(inverse, Preconditioner):
            inverse = inverse.of(matvec, b, batched) if running.any() else None
        precondition = system.raveler.matvec(inverse) if inverse else None

        eps = torch.finfo(r.dtype).eps
        iterations = torch.zeros_like(status)
        lanczos = _Lanczos(r)
        verified = torch.full_like(tolerance, torch.inf)
        while running.any():
            z = precondition(r) if precondition else r
            p, rz = z, dot(r, z)
            scale = torch.zeros_like(tolerance)
            largest = r_norm = r.norm(dim=1)
            made = 0
            while made < self.max_iters and any_runs(running, made):
                made += 1
                iterations += running
                ap = apply(p)
                p_norm, pap = p.norm(dim=1), dot(p, ap)
                scale = scale.maximum((ap.norm(dim=1) / p_norm).nan_to_num(0.0, 0.0))
                rounding = eps * scale * p_norm**2
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

                # Stopped systems take a step of zero, so that the same operations move all systems.
                ap = rows(running, ap, 0.0)
                alpha = torch.where(running, rz / torch.where(running, pap, 1.0), 0.0)
                r = torch.addcmul(r, -alpha[:, None], ap)
                del ap  # free its memory for the next product
                r_norm = r.norm(dim=1)
                largest = largest.maximum(r_norm)
                usable = r_norm.isfinite() & ~defective
                x = rows(usable, torch.addcmul(x, alpha[:, None], p), x)
                status = torch.where(running & ~usable, Status.NON_FINITE, status)
                running = running & usable
                met = running & (r_norm <= tolerance)
                status = torch.where(met, Status.CONVERGED, status)
                running = running & ~met

                z = precondition(r) if precondition else r
                rz_next = r_norm * r_norm if z is r else dot(r, z)
                beta = torch.where(running, rz_next / torch.where(rz > 0, rz, 1.0), 0.0)
                lanczos.add(inverse_alpha, beta, seen)
                p = torch.addcmul(z, beta[:, None], p)
                rz = rz_next
                running = running & (iterations < self.max_iters)

            drift = (iterations + 1) * DRIFT * eps * (largest + scale * x.norm(dim=1))
            if ((status != Status.CONVERGED) & (drift <= TOLERATED * r_norm)).all():
                break
            r, verified, status, running = system.verify(
                x, status, verified, iterations < self.max_iters
            )
        return system.finish(
            x, r, iterations, status, lanczos.bounds(), preconditioned=precondition is not None
        )


class _Lanczos:
    """The tridiagonal matrices that CG's coefficients define; Saad 2003, section 6.7.3."""

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
        # Fill the steps that a system did not take with its first Rayleigh quotient, which lies
        # inside the spectrum.
        first = diagonal.gather(1, seen.int().argmax(dim=1, keepdim=True))
        diagonal = torch.where(seen, diagonal, first)
        matrix = torch.diag_embed(diagonal)
        if diagonal.shape[1] > 1:
            off = (beta.clamp_min(0).sqrt() * inverse_alpha)[:, :-1]
            matrix += torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
        ritz = torch.linalg.eigvalsh(matrix).to(self.like)
        known = seen.any(dim=1)
        return torch.where(known, ritz[:, 0], low), torch.where(known, ritz[:, -1], -low)

"""The BiCGSTAB method for many general systems at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import (
    DRIFT,
    TOLERATED,
    System,
    divide,
    dot,
    require,
    rows,
    seeded,
)
from metalearn.tree import Tree


@dataclass(frozen=True)
class BiCGStab:
    """The stabilised bi-conjugate gradient method; van der Vorst 1992; Saad 2003, algorithm 7.7.

    It solves systems whose matrices are not symmetric. Unlike GMRES's, its memory does not grow
    with the iterations. The residual is not monotone; the iterate of least residual is returned.
    Where rounding may have parted the recurrence's residual from b - A x, the latter is recomputed,
    once for each factor of 4 that the former falls. A system whose residuals have parted restarts
    from the best iterate's own residual. The returned residual is thus within about a factor of 4
    of the least, and never above the start's.

    A system stops:

    - at |b - A x| <= rtol |b|, by the recomputed residual, or after `max_iters`;
    - as `SINGULAR`, where A maps a direction to 0;
    - as `BREAKDOWN`, where a divisor of the recurrence vanishes against its factors for a second
      time without a lower residual in between. Skew-symmetric matrices do that. The first time, the
      system restarts from its iterate with a new shadow residual.

    Args:
        max_iters: the limit on iterations, of two products each.
        rtol: the tolerance on the residual's norm over |b|.

    Raises:
        ValueError: max_iters or rtol is negative.
    """

    max_iters: int = 20
    rtol: float = 1e-6

    def __post_init__(self) -> None:
        require(self, 0, "max_iters", "rtol")

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, self.rtol)
        apply, x, r, status = system.apply, system.x, system.r, system.status
        iterations = torch.zeros_like(status)
        eps = torch.finfo(r.dtype).eps
        noise = seeded((1, r.shape[1]), 0, r)
        noise = divide(noise, noise.norm(dim=1))

        r_norm = r.norm(dim=1)
        verified = torch.full_like(r_norm, torch.inf)
        scale = torch.zeros_like(r_norm)
        best, best_norm = x, r_norm
        safe, safe_norm = x, r_norm  # the best of those whose residual was recomputed
        at_restart = verified  # the least residual at the system's last restart
        running = (status == Status.MAX_ITERS) & (self.max_iters > 0)
        while running.any():
            shadow, p, rho = r, r, dot(r, r)
            largest, checked = r_norm, torch.full_like(r_norm, torch.inf)
            while running.any():
                iterations += running
                v = rows(running, apply(p), 0.0)
                p_norm, v_norm = p.norm(dim=1), v.norm(dim=1)
                scale = scale.maximum(divide(v_norm, p_norm).nan_to_num(0.0, 0.0))
                sigma = dot(shadow, v)
                shadow_norm = shadow.norm(dim=1)
                null = running & (v_norm <= 10 * eps * scale * p_norm)
                broken = sigma.abs() <= eps * shadow_norm * v_norm
                alpha = divide(torch.where(broken, 0.0, rho), sigma)
                s = torch.addcmul(r, -alpha[:, None], v)
                t = rows(running, apply(s), 0.0)
                ts, tt = dot(t, s), dot(t, t)
                omega = divide(ts, tt)
                broken = broken | (ts.abs() <= eps * tt.sqrt() * s.norm(dim=1))

                trial = torch.addcmul(x, alpha[:, None], p)
                trial = torch.addcmul(trial, omega[:, None], s)
                r = torch.addcmul(s, -omega[:, None], t)
                r_norm = r.norm(dim=1)
                defective = running & ~(r_norm + v_norm + tt).isfinite()
                x = rows(running & ~defective, trial, x)
                better = running & (r_norm <= best_norm)
                largest = largest.maximum((r_norm + scale * x.norm(dim=1)).nan_to_num(0.0, 0.0))
                drift = (iterations + 1) * DRIFT * eps * largest
                doubted = better & (drift > TOLERATED * r_norm) & (4 * r_norm < checked)
                parted = torch.zeros_like(doubted)
                if doubted.any():
                    true = system.residual(x).norm(dim=1)
                    checked = torch.where(doubted, r_norm, checked)
                    parted = doubted & ~(true <= 2 * r_norm)
                    safer = doubted & (true < safe_norm)
                    safe, safe_norm = rows(~safer, safe, x), torch.where(safer, true, safe_norm)
                    better = better & ~parted
                best, best_norm = rows(better, x, best), torch.where(better, r_norm, best_norm)

                rho_next = dot(shadow, r)
                broken = running & (broken | (rho_next.abs() <= eps * shadow_norm * r_norm))
                fresh = broken & (best_norm < at_restart)
                for condition, why in (
                    (defective, Status.NON_FINITE),
                    # A system whose residuals have parted is verified as if it had converged.
                    ((r_norm <= system.tolerance) | parted, Status.CONVERGED),
                    (null, Status.SINGULAR),
                    (broken & ~fresh, Status.BREAKDOWN),
                ):
                    status = torch.where(running & condition, why, status)
                    running = running & ~condition
                running = running & (iterations < self.max_iters)

                beta = divide(rho_next, rho) * divide(alpha, omega)
                p = torch.addcmul(r, beta[:, None], torch.addcmul(p, -omega[:, None], v))
                if fresh.any():
                    at_restart = torch.where(fresh, best_norm, at_restart)
                    # Perturb the residual, so that the same breakdown does not recur at once.
                    shadow = rows(~fresh, shadow, r + r_norm[:, None] * noise)
                    p = rows(~fresh, p, r)
                    rho_next = torch.where(fresh, dot(shadow, r), rho_next)
                # Stopped systems hold zeros, so that all their products are zero.
                r, p = rows(running, r, 0.0), rows(running, p, 0.0)
                rho = rho_next

            claimed, left = status, iterations < self.max_iters
            r, r_norm, status, running = system.verify(best, claimed, verified, left)
            worse = ~(r_norm <= safe_norm)
            if worse.any():
                best = rows(~worse, best, safe)
                r, r_norm, status, running = system.verify(best, claimed, verified, left)
            x, verified, best_norm = best, r_norm, r_norm
            safe, safe_norm = best, r_norm
            r = rows(running, r, 0.0) if running.any() else r
        return system.finish(x, r, iterations, status)

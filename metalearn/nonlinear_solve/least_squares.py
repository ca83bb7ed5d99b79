"""The minimisers of half a sum of squares: Levenberg-Marquardt and Gauss-Newton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.fixed_point.newton import jacobian_product
from metalearn.linear_solve import CG, LinearSolver
from metalearn.linear_solve.dense import check_factorised
from metalearn.linear_solve.system import dot, norms, require
from metalearn.nonlinear_solve.progress import (
    Progress,
    RowFunction,
    check_tolerances,
    finite_rows,
)
from metalearn.nonlinear_solve.result import Found, SolveStatus

HALVINGS = 30
"""The number of shorter steps that Gauss-Newton tries before it gives up."""


@dataclass(frozen=True)
class LevenbergMarquardt:
    """The Levenberg-Marquardt method for min |r(x)|^2 / 2; Moré 1978, with Nielsen's damping.

    A step d minimises |r + J d|^2 + mu |D d|^2, where D holds the largest norms so far of the
    columns of J (Moré, equation 6.1). The damping mu grows after a step that does not lower |r|
    (Nielsen 1999). J is formed, for up to some hundred unknowns.

    Args:
        damping: the first mu.
        rtol: the tolerance on |J'r| over its value at x0, and on |D d| / |D x|. None: eps^(2/3),
            which is 4e-11 in float64.
        atol: the tolerance on |J'r|.

    Raises:
        ValueError: damping is not above 0, or a tolerance is negative or NaN.
    """

    damping: float = 1e-3
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise ValueError(
                f"LevenbergMarquardt(damping={self.damping}): expected a finite number above 0. "
                "Change it."
            )
        check_tolerances(self)

    def __call__(self, residuals: RowFunction, x0: Tensor, max_steps: int) -> Found:
        x, r = x0, residuals(x0)
        jacobian = _jacobian(residuals, x)
        sound = finite_rows(r, jacobian)
        r = torch.where(sound[:, None], r, 0.0)
        jacobian = torch.where(sound[:, None, None], jacobian, 0.0)
        g = _product(jacobian.mT, r)
        progress = Progress(self, x0, torch.where(sound, norms(g), torch.nan))
        mu, growth = x.new_full((len(x),), self.damping), x.new_full((len(x),), 2.0)
        largest = torch.zeros_like(x)
        eps = torch.finfo(x.dtype).eps
        for step in range(max_steps + 1):
            largest = largest.maximum(jacobian.norm(dim=1))
            scale = torch.where(largest > 0, largest, 1.0)
            scaled = _damped_step(jacobian / scale[:, None, :], r, mu)
            d = scaled / scale
            image = _product(jacobian, d)
            damped = mu * dot(scaled, scaled)
            # The step without damping, exact for one unknown: d is short where damping makes it so.
            free = torch.where(damped > 0, 1 + damped / dot(image, image), 1.0)
            progress.judge(x, norms(g), free[:, None] * d, trusted=damped >= 0, scale=scale)
            if step == max_steps or not progress.running.any():
                break
            trial = torch.where(progress.running[:, None], x + d, x)
            r_trial = residuals(trial)
            j_trial = _jacobian(residuals, trial)
            promised = dot(*[(jacobian @ d[:, :, None])[:, :, 0]] * 2) / 2 + mu * dot(
                scaled, scaled
            )
            # The product loses no digits where |r| is far larger than its change.
            fall = dot(r - r_trial, r + r_trial) / 2
            usable = finite_rows(trial, r_trial, j_trial)
            ratio = torch.where(promised > 0, fall / promised, 0.0)
            level = fall.abs().maximum(promised) <= 4 * eps * dot(r, r)
            taken = progress.running & usable & ((ratio > 1e-4) | level)
            x = torch.where(taken[:, None], trial, x)
            r = torch.where(taken[:, None], r_trial, r)
            jacobian = torch.where(taken[:, None, None], j_trial, jacobian)
            g = _product(jacobian.mT, r)
            shrunk = mu * (1 - (2 * ratio.clamp(0.0, 1.0) - 1) ** 3).clamp_min(1 / 3)
            mu = torch.where(taken, shrunk.clamp_min(eps), mu * growth)
            growth = torch.where(taken, 2.0, 2 * growth)
            progress.steps += progress.running
            # With this damping, the step is below the rounding of x.
            progress.stall(mu > 1 / eps**2, norms(g))
        failed = progress.status == SolveStatus.NON_FINITE
        return progress.found(x, torch.where(failed, torch.inf, norms(g)))


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton method for min |r(x)|^2 / 2; Nocedal & Wright 2006, section 10.3.

    `linear_solver` solves (J'J + damping I) d = -J'r. The step is halved until |r|^2 falls by
    Armijo's rule. Only products with J and J' are formed, so that x may be large.

    Args:
        linear_solver: for symmetric positive definite systems.
        damping: at least 0.
        rtol: the tolerance on |J'r| over its value at x0, and on |d| / |x|. None: eps^(2/3).
        atol: the tolerance on |J'r|.

    Raises:
        ValueError: an option is negative or NaN.
    """

    linear_solver: LinearSolver = CG(max_iters=100)  # noqa: RUF009  (a frozen dataclass)
    damping: float = 0.0
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        require(self, 0, "damping")
        check_tolerances(self)

    def __call__(self, residuals: RowFunction, x0: Tensor, max_steps: int) -> Found:
        x = x0
        r, pull = _pull(residuals, x)
        g = pull(r)
        progress = Progress(self, x0, torch.where(finite_rows(r), norms(g), torch.nan))
        g = torch.where(progress.running[:, None], g, 0.0)
        for step in range(max_steps + 1):
            push = jacobian_product(residuals, x)
            right = torch.where(progress.running[:, None], -g, 0.0)
            normal = self._normal(push, pull)
            solved = self.linear_solver(normal, right, batched=True)
            d = torch.where((dot(g, solved.value) < 0)[:, None], solved.value, right)
            progress.judge(x, norms(g), d, trusted=solved.converged)
            if step == max_steps or not progress.running.any():
                break
            x, moved = _halve(residuals, x, r, d, dot(g, d), progress.running)
            r, pull = _pull(residuals, x)
            g = torch.where(progress.running[:, None], pull(r), g)
            progress.steps += progress.running
            progress.stall(~moved, norms(g))
        failed = progress.status == SolveStatus.NON_FINITE
        return progress.found(x, torch.where(failed, torch.inf, norms(g)))

    def _normal(self, push: RowFunction, pull: RowFunction) -> RowFunction:
        return lambda v: pull(push(v)) + self.damping * v


def _halve(
    residuals: RowFunction, x: Tensor, r: Tensor, d: Tensor, slope: Tensor, running: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x after the longest tried step that lowers |r|^2, and the mask of who moved."""
    value, seeking = dot(r, r) / 2, running
    rounding = 4 * torch.finfo(r.dtype).eps * value
    for k in range(HALVINGS + 1):
        trial = torch.where(seeking[:, None], x + 0.5**k * d, x)
        r_trial = residuals(trial)
        reached = dot(r_trial, r_trial) / 2
        lower = reached <= value + 1e-4 * 0.5**k * slope + rounding
        fell = seeking & lower & finite_rows(trial)
        x = torch.where(fell[:, None], trial, x)
        seeking = seeking & ~fell
        if not seeking.any():
            break
    return x, running & ~seeking


def _pull(function: RowFunction, x: Tensor) -> tuple[Tensor, RowFunction]:
    """Return r(x) and the map w -> J' w at x."""
    linearised: Any = torch.func.vjp(function, x)
    value, transposed = linearised
    return value, lambda w: transposed(w)[0]


def _jacobian(function: RowFunction, x: Tensor) -> Tensor:
    """Return the Jacobian of each row, (T, M, N), which is to be factorised."""
    check_factorised("least squares", x.dtype)
    push = jacobian_product(function, x)
    columns = []
    for i in range(x.shape[1]):
        unit = torch.zeros_like(x)
        unit[:, i] = 1.0
        columns.append(push(unit))
    return torch.stack(columns, dim=2)


def _product(matrices: Tensor, rows: Tensor) -> Tensor:
    return (matrices @ rows[:, :, None])[:, :, 0]


def _damped_step(jacobian: Tensor, r: Tensor, mu: Tensor) -> Tensor:
    """Return the d of least |r + J d|^2 + mu |d|^2, (T, N), by QR, without J'J."""
    size = jacobian.shape[2]
    identity = torch.eye(size, dtype=r.dtype, device=r.device)
    stacked = torch.cat([jacobian, mu.sqrt()[:, None, None] * identity], dim=1)
    right = torch.cat([-r, r.new_zeros(len(r), size)], dim=1)
    q, upper = torch.linalg.qr(stacked)
    d = torch.linalg.solve_triangular(upper, q.mT @ right[:, :, None], upper=True)[:, :, 0]
    return torch.where(d.isfinite(), d, 0.0)

"""The trust that an implicit gradient deserves: what was measured, and the bound it implies.

For one task let phi* minimise inner(., theta), v(phi) = d outer / d params, A(phi) = d2 inner /
d params2, M(phi) = d2 inner / (d meta d params), and d(phi) the direct d outer / d meta. The exact
gradient is g* = d* - M* x* with A* x* = v*; what was computed is g = d - M x at a phi with

    |grad inner(phi)| = gamma,    |v - (A + rho I) x| = r    (rho: the damping).

Assume, on the segment from phi to phi*, that inner is m-strongly convex in params and that v, A, M
and d are Lipschitz with the constants L_v, L_A, L_M and L_d. Then

    |phi - phi*| <= gamma / m =: delta                        (strong convexity)
    |x - A^-1 v| <= (r + rho |x|) / m =: epsilon              (v - A x = residual + rho x)
    A*^-1 v* - A^-1 v = A*^-1 [(v* - v) - (A* - A) A^-1 v],   so
    |x* - x| <= epsilon + delta / m (L_v + L_A (|x| + epsilon)) =: eta
    g - g* = (d - d*) - M (x - x*) - (M - M*) x*,             so
    |g - g*| <= L_d delta + |M| eta + L_M delta (|x| + eta).

That is a bound where the constants are bounds. With a Ritz value in place of m (it approaches the
least eigenvalue from above), or Lipschitz constants measured at a point, it is an estimate, which
the error may exceed. `Smoothness.kind` and `Certificate.solve_error_kind` say which it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve import Solution
from metalearn.metagrad.smoothness import Kind, Smoothness
from metalearn.tree import task_norm


@dataclass(frozen=True)
class Certificate:
    """The measured quality of an implicit gradient. Every tensor is (T,), a value for each task.

    Args:
        inner_grad_norm: the norm of the inner objective's gradient where it was linearised; the
            theorem wants 0.
        relative_residual, residual_norm, iterations, status, eigenvalue_bounds, solve_error: the
            linear solve's `Solution` fields and error estimate; None if nothing was solved.
        solve_error_kind: "bound" if |x - A^-1 v| cannot exceed solve_error, as after `Dense`;
            "estimate" if its divisor is a Ritz value, which lies above the least eigenvalue.
        solution_norm: |x|.
        damping: the number added to the curvature's diagonal.
        exact_curvature: True if the system was the inner Hessian's, not Gauss-Newton's.
        inner_rate: the rate of the inner gradient descent. None for a solver without one, and where
            the Ritz values are not those of the inner Hessian: of Gauss-Newton curvature, or of a
            preconditioned system.

    `inner_stability` is inner_rate times the largest Ritz value over 2, (T,). Gradient descent
    diverges along a direction where it is above 1. A Ritz value is never above the largest
    eigenvalue: a task above 1 is over the edge, and a task below 1 may be. The implicit gradient
    does not depend on the inner solver and keeps no task below this edge.
    """

    inner_grad_norm: Tensor
    relative_residual: Tensor | None = None
    residual_norm: Tensor | None = None
    iterations: Tensor | None = None
    status: Tensor | None = None
    eigenvalue_bounds: tuple[Tensor, Tensor] | None = None
    solve_error: Tensor | None = None
    solve_error_kind: Kind | None = None
    solution_norm: Tensor | None = None
    damping: float = 0.0
    exact_curvature: bool = True
    inner_rate: float | None = None

    @classmethod
    def of(
        cls,
        inner_grad_norm: Tensor,
        solution: Solution,
        damping: float = 0.0,
        exact_curvature: bool = True,
        inner_rate: float | None = None,
    ) -> Certificate:
        """Return the certificate of a gradient whose linear solve ended in `solution`.

        The solve was on a list of (T, ...) tensors.
        """
        return cls(
            inner_grad_norm,
            solution.relative_residual,
            solution.residual_norm,
            solution.iterations,
            solution.status,
            solution.eigenvalue_bounds,
            solution.error_estimate,
            "bound" if solution.exact_bounds else "estimate",
            task_norm(solution.value),
            damping,
            exact_curvature,
            inner_rate,
        )

    @property
    def inner_stability(self) -> Tensor | None:
        """The inner rate times the largest Ritz value over 2, (T,); None if no task has both.

        A task without a Ritz value, which made no iteration, has 0. Damping is taken off, since the
        inner objective does not have it.
        """
        known = self.ritz_known
        if self.inner_rate is None or self.eigenvalue_bounds is None or not known.any():
            return None
        high = torch.where(known, self.eigenvalue_bounds[1], self.damping)
        return self.inner_rate * (high - self.damping) / 2

    @property
    def ritz_known(self) -> Tensor:
        """The mask of tasks that have Ritz values, (T,)."""
        if self.eigenvalue_bounds is None:
            return torch.zeros_like(self.inner_grad_norm, dtype=torch.bool)
        return self.eigenvalue_bounds[1].isfinite()

    def bound(self, constants: Smoothness) -> Tensor:
        """Return the bound on |g - g*| derived above, for each task, (T,).

        The mean gradient's error is at most the mean of the bounds. If `constants.kind` is
        "estimate", so is the figure, and the error may exceed it; see `local_smoothness`.

        Raises:
            ValueError: no system was solved, or one with Gauss-Newton curvature, whose distance
                from the Hessian is not known; or the strong convexity is not above 0.
        """
        if self.residual_norm is None or self.solution_norm is None:
            raise ValueError(
                "no linear system was solved for this gradient, so that nothing is known of its "
                "error; give Implicit a linear_solver"
            )
        if not self.exact_curvature:
            raise ValueError(
                "the system was solved with Gauss-Newton curvature, whose distance from the "
                "Hessian is not known; use curvature='hessian'"
            )
        m = torch.as_tensor(constants.strong_convexity)
        if not (m > 0).all():
            raise ValueError(
                f"strong_convexity={constants.strong_convexity}; the bound needs it above 0"
            )
        x = self.solution_norm
        delta = self.inner_grad_norm / m
        epsilon = (self.residual_norm + self.damping * x) / m
        moved = constants.outer_lipschitz + constants.curvature_lipschitz * (x + epsilon)
        eta = epsilon + delta / m * moved
        return (
            constants.direct_lipschitz * delta
            + constants.mixed_norm * eta
            + constants.mixed_lipschitz * delta * (x + eta)
        )

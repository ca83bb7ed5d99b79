"""The part that every fixed-point solver shares: judge each iterate, and keep the best.

A solver calls `evaluate` until no system runs. It defines only its rule for the next iterate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from metalearn.linear_solve import Solution, Status
from metalearn.linear_solve.system import norms, require
from metalearn.tree import Raveler, Tree

Function = Callable[[Tree], Tree]

GROWTH = 1e4
"""The growth of the residual, over the first one, that counts as divergence."""


class FixedPointSolver(Protocol):
    """A frozen dataclass whose fields are the solver's options. A call solves z = f(z).

    A system stops when |f(z) - z| <= max(rtol |f(z)|, atol), or after `max_iters` applications of
    the function. The result is the `Solution` of the linear solvers, with these fields:

        value: the evaluated iterate of least residual, or the one that met the tolerance; always
            finite. If the function was finite nowhere, z0 (0 where z0 is not finite).
        residual_norm: |f(z) - z| at `value`, evaluated there, never a recurrence's.
        relative_residual: residual_norm over |f(z)|.
        iterations: the applications of the function; a product with its Jacobian counts as one.
        status: CONVERGED or MAX_ITERS; DIVERGED if the residual grew to GROWTH times the first one;
            NON_FINITE if the function gave an infinity or NaN; BREAKDOWN if the rule has no step
            left. All but the first give the best iterate seen.
        eigenvalue_bounds: None.

    With `batched=True` every leaf of z0 begins with the task axis. The function treats the tasks
    one by one, and each task stops on its own. If a task depends on other tasks, these may have
    moved since its residual was judged.

    The function must not change its argument in place. No graph is recorded: a function that is a
    derivative itself takes it by `torch.func`, or under `torch.enable_grad()`.
    """

    def __call__(self, function: Function, z0: Tree, batched: bool = False) -> Solution: ...


def check_options(solver: FixedPointSolver) -> None:
    """Check that max_iters is at least 1 and that no tolerance is negative or NaN.

    Raises:
        ValueError: an option is out of this range.
    """
    require(solver, 1, "max_iters")
    require(solver, 0, "rtol", "atol")


class Search:
    """The state that all solvers share, on (T, N) matrices.

    Attributes:
        start: z0.
        running: (T,), the systems that go on.
        iterations: (T,), the applications of the function made for each system.
    """

    def __init__(
        self,
        function: Function,
        z0: Tree,
        batched: bool,
        max_iters: int,
        rtol: float,
        atol: float,
    ) -> None:
        self.raveler = Raveler.of(z0, batched)
        self.function = function
        self.start = self.raveler.ravel(z0).detach()
        finite = self.start.isfinite().all(dim=1)
        self.start = torch.where(finite[:, None], self.start, 0.0)
        self.max_iters, self.rtol, self.atol = max_iters, rtol, atol
        self.running = finite
        self.status = torch.where(finite, Status.MAX_ITERS, Status.NON_FINITE)
        self.iterations = torch.zeros_like(self.status)
        self.best = self.start
        self.best_residual = self.start.new_full((len(finite),), torch.inf)
        self.best_image_norm = torch.zeros_like(self.best_residual)
        self.first_residual: Tensor | None = None

    def apply(self, z: Tensor) -> Tensor:
        """Apply f to a (T, N) matrix."""
        return self.raveler.ravel(self.function(self.raveler.unravel(z)))

    def evaluate(self, z: Tensor) -> Tensor:
        """Return f(z) - z, 0 where it is not finite, and update `running`."""
        g, residual = self.measure(z, self.running)
        if self.first_residual is None:
            self.first_residual = residual
        self.stop(residual.isinf(), Status.NON_FINITE)
        self.stop(residual > GROWTH * self.first_residual, Status.DIVERGED)
        return g

    def measure(self, z: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate a trial of the systems in the mask `among`; no system stops for failing.

        Returns:
            f(z) - z, 0 where it is not finite, and its norms, (T,), infinite there.
        """
        image = self.apply(z)
        g = image - z
        residual, image_norm = norms(g), norms(image)
        finite = residual.isfinite() & image_norm.isfinite()
        residual = torch.where(finite, residual, torch.inf)

        met = among & (residual <= (self.rtol * image_norm).clamp_min(self.atol)) & finite
        better = among & (met | (residual < self.best_residual))
        self.best = torch.where(better[:, None], z, self.best)
        self.best_residual = torch.where(better, residual, self.best_residual)
        self.best_image_norm = torch.where(better, image_norm, self.best_image_norm)
        self.stop(met, Status.CONVERGED)
        self.spend(among.long())
        return torch.where(finite[:, None], g, 0.0), residual

    def spend(self, applications: Tensor) -> None:
        """Count applications of the function, (T,), and stop the systems that have no more left."""
        self.iterations = self.iterations + applications
        self.stop(self.iterations >= self.max_iters, Status.MAX_ITERS)

    def move(self, z: Tensor, step: Tensor) -> Tensor:
        """Return z + step for the systems that run; the other systems keep their z."""
        return torch.where(self.running[:, None], z + step, z)

    def stop(self, where: Tensor, why: Status) -> None:
        """Stop the running systems of the mask `where`, (T,), with the status `why`."""
        self.status = torch.where(self.running & where, why, self.status)
        self.running = self.running & ~where

    def solution(self) -> Solution:
        per_system = self.raveler.per_system
        norm = self.best_image_norm
        return Solution(
            value=self.raveler.unravel(self.best),
            residual_norm=per_system(self.best_residual),
            relative_residual=per_system(self.best_residual / torch.where(norm > 0, norm, 1.0)),
            iterations=per_system(self.iterations),
            status=per_system(self.status),
            eigenvalue_bounds=None,
        )

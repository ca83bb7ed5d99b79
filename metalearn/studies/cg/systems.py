"""The linear systems of a batch of tasks, with their exact solutions and spectra, in float64."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from metalearn.linear_solve import CG, GMRES, LinearSolver, Solution
from metalearn.metagrad.base import outer_gradient
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.curvature import Curvature, GaussNewton, Hessian
from metalearn.metagrad.smoothness import local_smoothness
from metalearn.problem import FewShot, Params
from metalearn.tasks import TaskBatch
from metalearn.tree import Raveler, requires_grad_copy, task_norm

EXACT = 1e-10
"""The largest relative residual of a solution that counts as exact."""


class Systems:
    """The systems A x = d outer / d params, one for every task.

    A is the curvature of the task's inner objective at `params`. `FewShot`'s mixed partials are
    -prox I, so that a task's meta-gradient is prox x. The relative error of x is therefore the
    relative error of the meta-gradient.

    Args:
        meta, params: float64, like the task's tensors; params are (T, ...).
    """

    def __init__(
        self,
        problem: FewShot,
        meta: Params,
        task: TaskBatch,
        params: Params,
        curvature: Literal["hessian", "gauss_newton"] = "hessian",
    ) -> None:
        self.problem, self.meta, self.task, self.params = problem, meta, task, params
        self.kind = curvature
        at, around = requires_grad_copy(params), requires_grad_copy(meta)
        _, _, self.b, _ = outer_gradient(problem, at, around, task)
        make = Hessian if curvature == "hessian" else GaussNewton
        self.curvature: Curvature = make(problem, at, around, task)
        self.inner_grad_norm = task_norm(self.curvature.gradient)
        self._raveler = Raveler.of(self.b, batched=True)

    def solve(self, solver: LinearSolver) -> Solution:
        return solver(self.curvature.matvec, self.b, batched=True)

    def flat(self, x: list[Tensor]) -> Tensor:
        """Return a solution as one matrix, (T, N)."""
        return self._raveler.ravel(x)

    def exact(self) -> Tensor:
        """Solve to a relative residual of `EXACT`, (T, N); NaN for a task not solved to it.

        CG solves the definite systems. GMRES, which needs no definite matrix, solves the systems
        where CG fails.
        """
        solution = self.solve(CG(3000, rtol=EXACT))
        x, reached = self.flat(solution.value), solution.converged
        for t in (~reached).nonzero().flatten().tolist():
            alone = self[t]
            again = alone.solve(GMRES(300, restart=300, rtol=EXACT))
            x[t], reached[t] = alone.flat(again.value)[0], again.converged[0]
        return torch.where(reached[:, None], x, torch.nan)

    def __getitem__(self, t: int) -> Systems:
        """Return the system of one task."""
        params = {name: p[t : t + 1] for name, p in self.params.items()}
        kind: Any = self.kind
        return Systems(self.problem, self.meta, self.task[t : t + 1], params, kind)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Return each A's least and largest eigenvalue, (T,), to a relative 1e-6, by Lanczos."""
        alone = [self[t] for t in range(len(self.task))]
        ends = [[system._end("SA"), system._end("LA")] for system in alone]
        low, high = torch.tensor(ends, dtype=torch.float64).unbind(1)
        return low, high

    def _end(self, which: Literal["SA", "LA"]) -> float:
        apply = self._raveler.matvec(self.curvature.matvec)

        def product(v: Any) -> Any:
            return apply(torch.as_tensor(v, dtype=torch.float64).reshape(1, -1))[0].numpy()

        size = self.flat(self.b).shape[1]
        operator: Any = LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)
        found = eigsh(operator, 1, which=which, v0=start, tol=1e-6, return_eigenvectors=False)
        return float(found[0])

    def energy(self, v: Tensor) -> Tensor:
        """Return v'A v, (T,), for each row of a (T, N) matrix."""
        return torch.linalg.vecdot(v, self._raveler.matvec(self.curvature.matvec)(v))

    def certified(self, solution: Solution) -> Tensor:
        """Return the certificate's estimate of the meta-gradient's error, (T,).

        The error is the distance from the exact meta-gradient at the inner minimum. The estimate
        uses the least Ritz value and the Lipschitz constants measured here. It is infinite without
        positive curvature, and NaN for Gauss-Newton curvature, which has no certificate.
        """
        prox = self.problem.prox
        if self.kind != "hessian":
            return torch.full_like(solution.residual_norm, torch.nan)
        assert solution.eigenvalue_bounds is not None
        low = solution.eigenvalue_bounds[0]
        known = (low > 0) & low.isfinite()
        convexity = torch.where(known, low, 1.0)
        constants = local_smoothness(
            self.problem, self.params, self.meta, self.task, convexity, prox
        )
        bound = Certificate.of(self.inner_grad_norm, solution).bound(constants)
        return torch.where(known, bound, torch.inf)

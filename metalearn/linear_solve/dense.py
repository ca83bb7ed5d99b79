"""The direct solve, for small systems and as the reference for the iterative solvers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, rows
from metalearn.tree import Tree


@dataclass(frozen=True)
class Dense:
    """The direct solver, which applies A to each unit vector and factorises the result.

    It takes Cholesky's factorisation where A is symmetric positive definite, else LU. A singular A
    (least singular value at rounding level) gives the least-squares solution of least norm and the
    status `SINGULAR`. The eigenvalue bounds are exact; they are given if A is symmetric in every
    system. x0 is not used.

    The solve takes memory of T N^2 and N applications of A.
    """

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, None, batched, rtol=0.0)
        iterations = torch.zeros_like(system.status)
        size, eps = system.b.shape[1], torch.finfo(system.b.dtype).eps
        if size == 0:
            return system.finish(system.x, system.r, iterations, system.status)
        matrix = self._form(system)

        finite = matrix.flatten(1).norm(dim=1).isfinite() & system.finite
        target = rows(finite, system.b, 0.0)
        identity = torch.eye(size, dtype=target.dtype, device=target.device)
        matrix = torch.where(finite[:, None, None], matrix, identity)

        singular_values = torch.linalg.svdvals(matrix)
        singular = singular_values[:, -1] <= size * eps * singular_values[:, 0]
        largest = matrix.abs().amax(dim=(1, 2))
        asymmetry = (matrix - matrix.mT).abs().amax(dim=(1, 2))
        symmetric = asymmetry <= 1e3 * eps * largest
        factor, failed = torch.linalg.cholesky_ex(matrix)
        definite = symmetric & (failed == 0) & ~singular

        column = target[:, :, None]
        x = torch.empty_like(column)
        if definite.any():
            x[definite] = torch.cholesky_solve(column[definite], factor[definite])
        general = ~definite & ~singular
        if general.any():
            x[general] = torch.linalg.solve(matrix[general], column[general])
        if singular.any():
            x[singular] = torch.linalg.pinv(matrix[singular]) @ column[singular]

        residual = (column - matrix @ x).squeeze(2)
        residual = rows(finite, residual, torch.inf)
        status = torch.where(singular, Status.SINGULAR, Status.CONVERGED)
        status = torch.where(finite, status, Status.NON_FINITE)
        bounds = None
        if symmetric.all():
            eigenvalues = torch.linalg.eigvalsh(matrix)
            low = torch.where(finite, eigenvalues[:, 0], torch.inf)
            bounds = (low, torch.where(finite, eigenvalues[:, -1], -torch.inf))
        return system.finish(x.squeeze(2), residual, iterations, status, bounds)

    @staticmethod
    def _form(system: System) -> Tensor:
        tasks, size = system.b.shape
        matrix = system.b.new_empty((tasks, size, size))
        unit = torch.zeros_like(system.b)
        for i in range(size):
            unit[:, i] = 1.0
            matrix[:, :, i] = system.apply(unit)
            unit[:, i] = 0.0
        return matrix

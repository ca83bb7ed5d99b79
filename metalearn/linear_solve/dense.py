"""The direct solve: for small systems, and the reference that the iterative ones are held to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.linear_solve.solution import MatVec, Solution, Status, finish
from metalearn.tree import Raveler, Tree


@dataclass(frozen=True)
class Dense:
    """Forms A by applying it to each unit vector, and factorises it.

    Cholesky where A is symmetric positive definite, else LU. A singular A (least singular value at
    rounding level) gives the least-squares solution of least norm and the status `SINGULAR`. The
    eigenvalue bounds are exact, and given where A is symmetric in every system.

    Takes memory of T N^2 and N applications of A.
    """

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        raveler = Raveler.of(b, batched)
        target = raveler.ravel(b)
        matrix = self._form(raveler, matvec, target)
        size, eps = target.shape[1], torch.finfo(target.dtype).eps

        finite = matrix.isfinite().flatten(1).all(1) & target.isfinite().all(1)
        identity = torch.eye(size, dtype=target.dtype, device=target.device)
        matrix = torch.where(finite[:, None, None], matrix, identity)
        target = torch.where(finite[:, None], target, 0.0)

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
        residual = torch.where(finite[:, None], residual, torch.inf)
        status = torch.where(singular, Status.SINGULAR, Status.CONVERGED)
        status = torch.where(finite, status, Status.NON_FINITE)
        bounds = None
        if symmetric.all():
            eigenvalues = torch.linalg.eigvalsh(matrix)
            bounds = (eigenvalues[:, 0], eigenvalues[:, -1])
        return finish(
            raveler, x.squeeze(2), residual, target, torch.zeros_like(status), status, bounds
        )

    @staticmethod
    def _form(raveler: Raveler, matvec: MatVec, like: Tensor) -> Tensor:
        apply = raveler.matvec(matvec)
        tasks, size = like.shape
        matrix = like.new_empty((tasks, size, size))
        unit = torch.zeros_like(like)
        for i in range(size):
            unit[:, i] = 1.0
            matrix[:, :, i] = apply(unit)
            unit[:, i] = 0.0
        return matrix

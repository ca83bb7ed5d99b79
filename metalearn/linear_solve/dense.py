"""The direct solve, for small systems and as the reference for the iterative solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, power_of_two, rows, rows_finite
from metalearn.tree import Tree


def check_factorised(name: str, dtype: torch.dtype) -> None:
    """Raise UsageError for a type without factorisations in torch: half precision."""
    if torch.finfo(dtype).bits < 32:
        raise UsageError(
            f"{name} in {dtype}: expected float32 or float64, in which torch factorises a matrix. "
            "Convert the tensors, or take an iterative solver."
        )


@dataclass(frozen=True)
class Dense:
    """The direct solver, which applies A to each unit vector and factorises the result.

    It takes Cholesky's factorisation where A is symmetric positive definite, else LU. A singular A
    (least singular value at rounding level) gives the least-squares solution of least norm and the
    status `SINGULAR`. The eigenvalue bounds are exact; they are given if A is symmetric in every
    system. x0 is not used.

    The solve takes memory of T N^2, N applications of A, and one more for the residual.

    Raises:
        UsageError: A x is not what A's columns give: the matvec is not linear, or mixes systems;
            or the systems are in half precision.
    """

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, None, batched, rtol=0.0)
        check_factorised("Dense", system.b.dtype)
        iterations = torch.zeros_like(system.status)
        size, eps = system.b.shape[1], torch.finfo(system.b.dtype).eps
        if size == 0:
            return system.finish(system.x, system.r, iterations, system.status)
        matrix = self._form(system)
        scale = power_of_two(matrix.flatten(1))
        matrix = matrix / scale[:, None, None]

        finite = rows_finite(matrix.flatten(1)) & system.finite
        target = rows(finite, system.b, 0.0)
        identity = torch.eye(size, dtype=target.dtype, device=target.device)
        matrix = torch.where(finite[:, None, None], matrix, identity)

        singular_values = torch.linalg.svdvals(matrix)
        singular = singular_values[:, -1] <= size * eps * singular_values[:, 0]
        asymmetry = (matrix - matrix.mT).abs().amax(dim=(1, 2))
        symmetric = asymmetry <= 1e3 * eps * matrix.abs().amax(dim=(1, 2))
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
            x[singular] = _least_squares(matrix[singular], column[singular])

        expected = target - (matrix @ x).squeeze(2)
        length = matrix.flatten(1).norm(dim=1) * x.flatten(1).norm(dim=1)
        x = x.squeeze(2) / scale[:, None]
        residual = rows(finite, system.residual(x), expected)
        if ((residual - expected).norm(dim=1) > 10 * eps**0.5 * length).any():
            raise UsageError(
                "Dense: A x is not the sum of A's columns times x: expected a linear matvec that, "
                "with batched=True, treats every system alone. Use batched=False for systems that "
                "meet."
            )
        residual = rows(finite, residual, torch.inf)
        status = torch.where(singular, Status.SINGULAR, Status.CONVERGED)
        status = torch.where(finite, status, Status.NON_FINITE)
        bounds = None
        if symmetric.all():
            eigenvalues = torch.linalg.eigvalsh(matrix) * scale[:, None]
            low = torch.where(finite, eigenvalues[:, 0], torch.inf)
            bounds = (low, torch.where(finite, eigenvalues[:, -1], -torch.inf))
        solution = system.finish(x, residual, iterations, status, bounds)
        return replace(solution, exact_bounds=bounds is not None)

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


def _least_squares(matrix: Tensor, column: Tensor) -> Tensor:
    """Return the least-squares solution of least norm, by the singular value decomposition.

    The pseudo-inverse as a matrix would lose the digits of its condition number.
    """
    u, singular_values, vh = torch.linalg.svd(matrix)
    cutoff = len(vh[0]) * torch.finfo(matrix.dtype).eps * singular_values[:, :1]
    along = divide((u.mT @ column).squeeze(2), singular_values)
    along = torch.where(singular_values > cutoff, along, 0.0)
    return vh.mT @ along[:, :, None]

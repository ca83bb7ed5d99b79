from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from systems import general, symmetric

from metalearn.linear_solve import GMRES, Status


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
def test_agrees_with_scipy_iteration_for_iteration(steps):
    A, b = general(40)
    theirs, _ = scipy.sparse.linalg.gmres(A.numpy(), b.numpy(), rtol=0.0, restart=steps, maxiter=1)
    ours = GMRES(steps, restart=steps, rtol=0.0)(lambda v: A @ v, b)
    assert ours.iterations == steps
    assert torch.allclose(ours.value, torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)


def test_agrees_with_scipy_over_restarts():
    A, b = general(40)
    for cycles in (2, 3):
        theirs, _ = scipy.sparse.linalg.gmres(
            A.numpy(), b.numpy(), rtol=0.0, restart=4, maxiter=cycles
        )
        ours = GMRES(4 * cycles, restart=4, rtol=0.0)(lambda v: A @ v, b).value
        assert torch.allclose(ours, torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)


def test_the_residual_is_the_least_of_the_krylov_space():
    A, b = general(12)
    for j in (1, 3, 6):
        krylov = torch.stack([torch.linalg.matrix_power(A, i) @ b for i in range(j)], dim=1)
        least = b - A @ krylov @ torch.linalg.lstsq(A @ krylov, b[:, None]).solution[:, 0]
        solution = GMRES(j, rtol=0.0)(lambda v: A @ v, b)
        assert torch.allclose(solution.residual_norm, least.norm(), rtol=1e-8)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_a_happy_breakdown_is_the_solution(distinct):
    A, b = symmetric(np.repeat(np.linspace(-3, 4, distinct), 6))
    solution = GMRES(50, restart=50, rtol=1e-12)(lambda v: A @ v, b)
    assert solution.converged and solution.iterations == distinct


def test_reorthogonalisation_keeps_an_ill_conditioned_basis():
    """Single Gram-Schmidt loses orthogonality by the condition number, 1e10 here."""
    A, b = symmetric(np.geomspace(1e-10, 1, 30))
    b = A @ b  # so that the solution is of moderate size, and the residual's floor eps
    solution = GMRES(30, restart=30, rtol=1e-14)(lambda v: A @ v, b)
    assert solution.relative_residual < 1e-14


def test_a_singular_system_that_has_a_solution_is_solved():
    A, b = symmetric([0.0, 0.0, 1.0, 2.0, 5.0])
    solution = GMRES(20, rtol=1e-10)(lambda v: A @ v, A @ b)
    assert solution.converged
    assert torch.allclose(A @ solution.value, A @ b)


def test_a_singular_system_without_one_gets_its_least_squares_residual():
    A, b = symmetric([0.0, 1.0, 2.0, 5.0])
    least = b - A @ (torch.linalg.pinv(A) @ b)
    for restart in (10, 3):
        solution = GMRES(200, restart=restart)(lambda v: A @ v, b)
        assert solution.status == Status.SINGULAR
        assert torch.allclose(solution.residual_norm, least.norm(), rtol=1e-6)


def test_stagnation_under_restarts_is_a_breakdown():
    """A cyclic shift: no Krylov space but the whole holds anything of the solution."""
    A = torch.eye(6, dtype=torch.float64).roll(1, dims=0)
    b = torch.zeros(6, dtype=torch.float64)
    b[0] = 1.0
    stuck = GMRES(60, restart=5)(lambda v: A @ v, b)
    assert stuck.status == Status.BREAKDOWN and stuck.iterations == 5
    assert GMRES(60, restart=6)(lambda v: A @ v, b).converged

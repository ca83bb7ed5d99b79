from __future__ import annotations

import pytest
import torch

from metalearn.linear_solve import CG, Dense, Status


def test_symmetric_unsymmetric_and_singular_systems_in_one_batch():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    A[0] = A[0] @ A[0].T + torch.eye(4)
    A[2, 3] = A[2, 2]
    b = torch.randn(3, 4, generator=g, dtype=torch.float64)
    b[2, 3] = b[2, 2]
    solution = Dense()(lambda v: torch.einsum("tij,tj->ti", A, v), b, batched=True)
    assert solution.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.SINGULAR]
    assert torch.allclose(torch.einsum("tij,tj->ti", A, solution.value), b)  # b[2] is in the range
    assert solution.eigenvalue_bounds is None


def test_eigenvalue_bounds_are_exact():
    A = torch.diag(torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64))
    low, high = Dense()(lambda v: A @ v, torch.ones(3, dtype=torch.float64)).eigenvalue_bounds
    assert torch.allclose(torch.stack([low, high]), torch.tensor([0.5, 7.0], dtype=torch.float64))


def test_non_finite_systems_have_a_status_and_a_finite_value():
    solution = Dense()(lambda v: v * float("nan"), torch.ones(3))
    assert solution.status == Status.NON_FINITE
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("size", [8, 10, 12])
def test_a_singular_system_is_solved_as_least_squares_to_rounding(size):
    i = torch.arange(float(size))
    hilbert = 1 / (i[:, None] + i + 1)
    solution = Dense()(lambda v: hilbert @ v, hilbert @ torch.ones(size))
    assert solution.status == Status.SINGULAR
    assert solution.relative_residual <= 10 * torch.finfo(torch.float32).eps


def test_outside_the_range_the_residual_is_orthogonal_to_it():
    g = torch.Generator().manual_seed(1)
    left, right = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(2))
    A, b = left @ right.T, torch.randn(6, generator=g, dtype=torch.float64)
    x = Dense()(lambda v: A @ v, b).value
    assert torch.allclose(x, torch.linalg.lstsq(A, b, driver="gelsd").solution)


def test_the_residual_is_that_of_the_product():
    A = torch.diag(torch.logspace(0, 5, 6)) + torch.ones(6, 6)
    b = torch.ones(6)
    solution = Dense()(lambda v: A @ v, b)
    assert torch.equal(solution.residual_norm, (b - A @ solution.value).norm())


def test_its_error_estimate_is_a_bound_and_an_iteration_s_is_not():
    A = torch.diag(torch.tensor([1.0, 3.0]))
    assert Dense()(lambda v: A @ v, torch.ones(2)).exact_bounds
    assert not CG()(lambda v: A @ v, torch.ones(2)).exact_bounds

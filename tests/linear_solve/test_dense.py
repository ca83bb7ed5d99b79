from __future__ import annotations

import torch

from metalearn.linear_solve import Dense, Status


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

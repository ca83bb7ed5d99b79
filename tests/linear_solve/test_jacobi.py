from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import symmetric

from metalearn.linear_solve import CG, Jacobi


def diagonal_of(A, samples, seed=0):
    ones = torch.ones(len(A), dtype=A.dtype)
    return 1 / Jacobi(samples, seed).of(lambda v: A @ v, ones, False)(ones)


def test_one_probe_finds_a_diagonal_matrix_exactly():
    scale = torch.logspace(-3, 3, 9, dtype=torch.float64)
    assert torch.allclose(diagonal_of(torch.diag(scale), 1), scale, rtol=1e-12)


def test_the_estimate_is_off_by_the_entries_beside_the_diagonal():
    """Standard error sqrt(sum_j A_ij^2 / samples); six of them in none of 200 entries."""
    A, _ = symmetric(np.linspace(1, 5, 200))
    beside = (A - torch.diag(A.diagonal())).norm(dim=1)
    for samples in (16, 256):
        error = (diagonal_of(A, samples) - A.diagonal()).abs()
        assert (error <= 6 * beside / samples**0.5).all()


def test_saves_iterations_on_a_badly_scaled_system():
    A, b = symmetric(np.linspace(1, 2, 60))
    scale = torch.logspace(0, 2, 60, dtype=torch.float64)
    A = scale[:, None] * A * scale
    plain = CG(1000, rtol=1e-8)(lambda v: A @ v, b)
    ours = CG(1000, rtol=1e-8, preconditioner=Jacobi())(lambda v: A @ v, b)
    assert plain.converged and ours.converged
    assert 3 * ours.iterations < plain.iterations


@given(st.floats(-5, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_is_positive_and_finite_whatever_the_matrix(least, samples, seed):
    A, _ = symmetric(np.linspace(least, 1, 7), seed)
    for matrix in (A, 0 * A, A * float("nan"), -torch.diag(A.diagonal())):
        diagonal = diagonal_of(matrix, samples, seed)
        assert (diagonal > 0).all() and diagonal.isfinite().all()

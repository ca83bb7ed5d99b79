from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import symmetric

from metalearn.linear_solve import CG, Nystrom


def formula(A, omega, damping):
    """The textbook's (A W (W'A W)^+ (A W)' + damping I)^-1, formed."""
    low_rank = A @ omega @ torch.linalg.pinv(omega.T @ A @ omega) @ omega.T @ A
    return torch.linalg.inv(low_rank + damping * torch.eye(len(A)))


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 5])
def test_the_solver_is_its_formula(seed, power):
    A, b = symmetric(np.geomspace(0.01, 10, 25))
    solver = Nystrom(6, 0.1, seed, power)
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(25, 6, generator=g, dtype=torch.float64)
    w = torch.linalg.matrix_power(A, power) @ w
    start = torch.ones(25, dtype=torch.float64)
    solution = solver(lambda v: A @ v, b, x0=start)
    expected = start + formula(A, w, 0.1) @ (b - A @ start)
    assert torch.allclose(solution.value, expected, rtol=1e-7)
    assert torch.allclose(solution.residual_norm, torch.linalg.norm(b - A @ expected), rtol=1e-6)
    assert solution.iterations == 6 * (power + 1)
    low, high = solution.eigenvalue_bounds
    assert 0.01 <= low <= high <= 10


def test_seeds_differ_and_repeat():
    A, b = symmetric(np.geomspace(0.01, 10, 25))
    values = [Nystrom(6, 0.1, seed)(lambda v: A @ v, b).value for seed in (0, 0, 1)]
    assert torch.equal(values[0], values[1])
    assert not torch.allclose(values[0], values[2])


@given(st.integers(1, 8), st.integers(0, 12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_matrix_of_low_rank_is_solved_exactly(rank, extra, seed):
    """With A of that rank, A_nys = A: x solves (A + damping I) x = b to rounding over damping."""
    A, b = symmetric([*np.linspace(1, 3, rank), *np.zeros(extra)], seed)
    solution = Nystrom(rank, 0.5)(lambda v: A @ v, b)
    damped = A + 0.5 * torch.eye(rank + extra)
    assert torch.allclose(damped @ solution.value, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [20, 30])
@pytest.mark.parametrize("large", [(1e2, 1e4), (1e3, 1e6), (1e4, 1e8)])
@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_the_iterations_above_a_flat_floor(rank, large, seed):
    A, b = symmetric([*np.geomspace(*large, 20), *np.ones(180)], seed)
    plain = CG(2000, rtol=1e-8)(lambda v: A @ v, b)
    ours = CG(2000, rtol=1e-8, preconditioner=Nystrom(rank, 1e-3))(lambda v: A @ v, b)
    assert plain.converged and ours.converged
    assert 5 * ours.iterations <= plain.iterations


@given(st.floats(-5, 5), st.integers(1, 10), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_preconditioner_is_symmetric_positive_definite(least, rank, seed):
    A, b = symmetric(np.linspace(least, 5, 10), seed)
    inverse = Nystrom(rank, 0.1).of(lambda v: A @ v, b, False)
    formed = torch.stack([inverse(e) for e in torch.eye(10, dtype=torch.float64)], dim=1)
    assert torch.allclose(formed, formed.T, rtol=1e-6, atol=1e-9)
    assert torch.linalg.eigvalsh(formed)[0] > 0


def test_of_full_rank_the_preconditioner_is_the_inverse():
    A, b = symmetric(np.linspace(1, 9, 12))
    inverse = Nystrom(12, 1e-12).of(lambda v: A @ v, b, False)
    assert torch.allclose(A @ inverse(b), b, rtol=1e-6)

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import general, symmetric

from metalearn.linear_solve import Neumann, Status


def test_sums_the_series():
    A, b = general(8)
    step, terms = 0.4, 7
    total, term = torch.zeros_like(b), b
    for _ in range(terms):
        total, term = total + step * term, term - step * (A @ term)
    solution = Neumann(terms, step_size=step, rtol=0.0)(lambda v: A @ v, b)
    assert torch.allclose(solution.value, total, rtol=1e-12)
    assert solution.iterations == terms


@given(st.integers(1, 40), st.floats(0, 3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_its_own_step_size_converges_on_any_positive_definite_system(n, log_condition, seed):
    A, b = symmetric(np.geomspace(1, 10**log_condition, n), seed)
    solution = Neumann(30, rtol=0.0)(lambda v: A @ v, b)
    # 0 < s < 2 / eigenvalue_max makes every step contract; one that does not is DIVERGED.
    assert solution.status in (Status.MAX_ITERS, Status.CONVERGED)
    assert solution.residual_norm < b.norm()


@pytest.mark.parametrize("step", [None, 0.3])
def test_counts_the_products(step):
    A, b = symmetric(np.linspace(1, 4, 10))
    calls = []

    def matvec(v):
        calls.append(None)
        return A @ v

    solution = Neumann(9, step_size=step, rtol=0.0)(matvec, b)
    assert solution.iterations == 9
    assert len(calls) == (9 if step else 9 + 12)


@pytest.mark.parametrize("step", [1.0, 0.41])
def test_a_growing_residual_is_divergence_and_the_best_iterate_comes_back(step):
    """With one eigenvalue of 5, |1 - 5 s| is 4, or 1.05: a slow growth that shows late."""
    A = torch.diag(torch.tensor([1.0, 5.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    solution = Neumann(200, step_size=step)(lambda v: A @ v, b)
    assert solution.status == Status.DIVERGED
    residuals = [
        Neumann(j, step_size=step)(lambda v: A @ v, b).residual_norm
        for j in range(int(solution.iterations) + 1)
    ]
    assert solution.residual_norm == min(residuals)
    assert solution.residual_norm < 0.1 * b.norm()


def test_a_transient_growth_is_no_divergence():
    """I - s A is nilpotent and far from normal: the residual grows before it vanishes."""
    A = torch.eye(4, dtype=torch.float64) - torch.diag(torch.full((3,), 4.0).double(), 1)
    b = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    solution = Neumann(10, step_size=1.0)(lambda v: A @ v, b)
    assert solution.converged and solution.iterations == 4
    assert torch.allclose(solution.value, torch.linalg.solve(A, b))
    short = Neumann(2, step_size=1.0)(lambda v: A @ v, b)
    assert short.status == Status.DIVERGED and short.relative_residual == 1


def test_a_floor_of_rounding_is_no_divergence():
    A, b = symmetric(np.linspace(1, 5, 20))
    solution = Neumann(500, rtol=0.0)(lambda v: A @ v, b)
    assert solution.relative_residual < 1e-14
    assert solution.status == Status.MAX_ITERS

from __future__ import annotations

import pytest
import scipy.sparse.linalg
import torch
from systems import general

from metalearn.linear_solve import BiCGStab, Status


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_agrees_with_scipy_iteration_for_iteration(steps):
    A, b = general(40)
    theirs, _ = scipy.sparse.linalg.bicgstab(A.numpy(), b.numpy(), rtol=0.0, maxiter=steps)
    ours = BiCGStab(steps, rtol=0.0)(lambda v: A @ v, b)
    assert ours.iterations == steps
    assert torch.allclose(ours.value, torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)


def test_two_products_an_iteration():
    A, b = general(20)
    calls = []

    def matvec(v):
        calls.append(None)
        return A @ v

    BiCGStab(6, rtol=0.0)(matvec, b)
    assert len(calls) == 2 * 6 + 1  # and one for the residual


def test_the_iterate_of_the_least_residual_is_returned():
    A, b = general(60, seed=3)
    A = A - 0.5 * torch.eye(60)  # eigenvalues around 0, where the residual jumps about
    theirs, ours = [], []
    for j in range(1, 20):
        x, _ = scipy.sparse.linalg.bicgstab(A.numpy(), b.numpy(), rtol=0.0, maxiter=j)
        theirs.append(float((b - A @ torch.from_numpy(x)).norm()))
        ours.append(float(BiCGStab(j, rtol=0.0)(lambda v: A @ v, b).residual_norm))
    assert theirs != sorted(theirs, reverse=True)
    # Together they differ by rounding, which the recurrences let grow.
    assert ours == pytest.approx([min(theirs[: j + 1]) for j in range(19)], rel=1e-3)


def test_a_breakdown_is_survived_by_a_new_shadow_residual():
    """r'A r = 0 at the start, so that the first divisor is 0."""
    A = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    A = A + torch.tensor([[1.0], [1.0], [1.0]]) * torch.tensor([[0.0, 0.0, 1.0]])
    b = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert b @ (A @ b) == 0
    shifted = A.clone()
    shifted[1, 1] = 1.0
    assert b @ (shifted @ b) == 0
    solution = BiCGStab(50, rtol=1e-10)(lambda v: shifted @ v, b)
    assert solution.converged
    assert torch.allclose(solution.value, torch.linalg.solve(shifted, b))


def test_a_skew_symmetric_system_breaks_down_at_its_start():
    A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    solution = BiCGStab(50)(lambda v: A @ v, torch.ones(2))
    assert solution.status == Status.BREAKDOWN
    assert solution.iterations < 5
    assert solution.relative_residual <= 1


@pytest.mark.parametrize("seed", range(4))
def test_the_residual_is_near_the_least_true_one_where_rounding_parts_them(seed):
    A, b = (x.float() for x in general(60, seed))
    A = A - 0.4 * torch.eye(60)
    true = []
    for steps in range(0, 80, 8):
        solution = BiCGStab(steps, rtol=0.0)(lambda v: A @ v, b)
        true.append(float((b.double() - A.double() @ solution.value.double()).norm()))
        assert abs(float(solution.residual_norm) - true[-1]) <= 1e-6 * b.norm()
        assert true[-1] <= 4 * min(true)
    assert true[-1] <= 2e-6 * b.norm()


def test_a_residual_at_the_floor_of_the_precision_ends_the_solve():
    A, b = (x.float() for x in general(60))
    solution = BiCGStab(1000, rtol=0.0)(lambda v: A @ v, b)
    assert solution.status == Status.BREAKDOWN and solution.iterations < 100

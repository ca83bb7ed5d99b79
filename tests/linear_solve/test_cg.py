from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import symmetric

from metalearn.linear_solve import CG, Dense, Jacobi, Nystrom, Status


@given(
    st.integers(1, 12),
    st.floats(0, 4),
    st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_solves_any_positive_definite_system(n, log_condition, seed):
    A, b = symmetric(np.logspace(0, log_condition, n), seed)
    solution = CG(20 * n + 20, rtol=1e-9)(lambda v: A @ v, b)
    assert solution.converged
    assert solution.status == Status.CONVERGED
    assert torch.linalg.norm(b - A @ solution.value) <= 1.01e-9 * b.norm()
    assert torch.allclose(solution.value, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-6)


def test_takes_as_many_iterations_as_there_are_distinct_eigenvalues():
    for distinct in (1, 2, 3, 5, 8):
        A, b = symmetric(np.repeat(np.arange(1, distinct + 1), 6))
        solution = CG(30, rtol=1e-10)(lambda v, A=A: A @ v, b)
        assert solution.iterations == distinct
        assert solution.converged


@pytest.mark.parametrize("spread", [np.linspace, np.geomspace])
@pytest.mark.parametrize("condition", [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_error_stays_under_the_bound_of_theory(condition, spread):
    """|e_j|_A <= 2 ((sqrt k - 1) / (sqrt k + 1))^j |e_0|_A; Saad 2003, eq. 6.128."""
    A, b = symmetric(spread(1, condition, 60))
    exact = torch.linalg.solve(A, b)

    def energy(x):
        return float(torch.sqrt((x - exact) @ A @ (x - exact)))

    root = condition**0.5
    rate = (root - 1) / (root + 1)
    first = energy(torch.zeros_like(b))
    for j in (1, 2, 3, 5, 8, 13, 21, 34, 60):
        solution = CG(j, rtol=0.0)(lambda v: A @ v, b)
        # What is added is the rounding of `exact` and of CG's floor, eps k at most.
        assert energy(solution.value) <= (2 * rate**j + 1e-15 * condition + 1e-14) * first


def test_agrees_with_scipy_iteration_for_iteration():
    A, b = symmetric(np.logspace(0, 3, 25))
    for j in (1, 2, 5, 10):
        theirs, _ = scipy.sparse.linalg.cg(A.numpy(), b.numpy(), rtol=0.0, maxiter=j)
        ours = CG(j, rtol=0.0)(lambda v: A @ v, b).value
        assert torch.allclose(ours, torch.from_numpy(theirs), rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_ritz_values_lie_in_the_spectrum_and_find_its_ends(seed):
    A, b = symmetric(np.linspace(1, 100, 60), seed)
    for j in (1, 5, 30):
        low, high = CG(j, rtol=0.0)(lambda v: A @ v, b).eigenvalue_bounds
        assert 1 - 1e-12 <= low <= high <= 100 * (1 + 1e-12)
    assert low < 1.05
    assert high > 95


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=15), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_ritz_values_never_leave_the_spectrum(eigenvalues, seed):
    A, b = symmetric(eigenvalues, seed)
    for j in (1, 3, 10):
        low, high = CG(j, rtol=1e-8)(lambda v: A @ v, b).eigenvalue_bounds
        rounding = 1e-12 * max(eigenvalues)
        assert min(eigenvalues) - rounding <= low <= high <= max(eigenvalues) + rounding


def test_each_system_of_a_batch_stops_on_its_own_and_equals_its_single_solve():
    pairs = [symmetric(np.linspace(1, k, 12), seed) for seed, k in enumerate((1, 1.5, 1000))]
    A, b = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    solver = CG(40, rtol=1e-8)
    together = solver(
        lambda v: {"x": torch.einsum("tij,tj->ti", A, v["x"])}, {"x": b}, batched=True
    )
    for t, (a, right) in enumerate(pairs):
        alone = solver(lambda v, a=a: a @ v, right)
        assert together.iterations[t] == alone.iterations
        assert torch.allclose(together.value["x"][t], alone.value, rtol=1e-9, atol=1e-12)
        assert torch.allclose(together.eigenvalue_bounds[0][t], alone.eigenvalue_bounds[0])
    assert len(set(together.iterations.tolist())) == 3


def test_preconditioner_and_warm_start_save_iterations():
    A, b = symmetric(np.ones(30))
    scale = torch.logspace(0, 3, 30, dtype=torch.float64)
    A = torch.diag(scale.sqrt()) @ (A + 0.01 * torch.ones(30, 30)) @ torch.diag(scale.sqrt())
    plain = CG(200, rtol=1e-8)(lambda v: A @ v, b)
    jacobi = CG(200, rtol=1e-8, preconditioner=lambda v: v / scale)(lambda v: A @ v, b)
    assert jacobi.converged
    assert jacobi.iterations * 3 < plain.iterations
    assert CG(200, rtol=1e-8)(lambda v: A @ v, b, x0=plain.value).iterations == 0


def test_the_error_estimate_bounds_the_error_once_the_spectrum_is_found():
    A, b = symmetric(np.linspace(1, 50, 20))
    exact = torch.linalg.solve(A, b)
    solution = CG(19, rtol=0.0)(lambda v: A @ v, b)
    assert (solution.value - exact).norm() <= 1.01 * solution.error_estimate + 1e-12


def test_negative_curvature_keeps_the_iterate_of_the_least_quadratic():
    A, b = symmetric([-1.0, *np.linspace(1, 10, 20)])
    solution = CG(40)(lambda v: A @ v, b)
    assert solution.status == Status.NEGATIVE_CURVATURE
    values = []
    for j in range(int(solution.iterations)):
        x = CG(j)(lambda v: A @ v, b).value
        values.append(float(x @ A @ x / 2 - b @ x))
    assert values == sorted(values, reverse=True)
    last = float(solution.value @ A @ solution.value / 2 - b @ solution.value)
    assert last == pytest.approx(values[-1], rel=1e-12)
    assert last < 0  # the value at the start


def test_an_overflow_keeps_the_last_finite_iterate():
    # The second product is infinite, which the first step must outlive.
    products = iter([lambda v: v * torch.tensor([1.0, 2.0]), lambda v: v * torch.inf])
    solution = CG(5)(lambda v: next(products, lambda v: v)(v), torch.ones(2))
    assert solution.status == Status.NON_FINITE
    assert torch.allclose(solution.value, torch.full((2,), 2 / 3))


@pytest.mark.parametrize("preconditioner", [Nystrom(4, 1e-6), Jacobi(4)], ids=["nystrom", "jacobi"])
def test_a_preconditioner_is_made_of_each_solve_s_own_matrix(preconditioner):
    A = torch.diag_embed(torch.tensor([[1.0, 10.0, 1e3], [5.0, 5.0, 1e4]], dtype=torch.float64))
    b = {"x": torch.ones(2, 3, dtype=torch.float64)}
    solver = CG(10, rtol=1e-10, preconditioner=preconditioner)
    for scale in (1.0, 7.0):
        solution = solver(
            lambda v, s=scale: {"x": s * torch.einsum("tij,tj->ti", A, v["x"])}, b, batched=True
        )
        # Both are A's inverse here, but for rounding and damping.
        assert solution.iterations.max() <= 2
        assert solution.converged.all()


NAN = float("nan")


@pytest.mark.parametrize(
    ("matrix", "right", "status", "value"),
    [
        ([[2.0]], [3.0], Status.CONVERGED, [1.5]),
        ([[3.0, 0.0], [0.0, 3.0]], [3.0, 6.0], Status.CONVERGED, [1.0, 2.0]),
        ([[1.0, 0.0], [0.0, 2.0]], [0.0, 0.0], Status.CONVERGED, [0.0, 0.0]),
        ([[-1.0, 0.0], [0.0, -1.0]], [1.0, 1.0], Status.NEGATIVE_CURVATURE, [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], Status.SINGULAR, [0.0, 0.0]),
        ([[NAN, 0.0], [0.0, 1.0]], [1.0, 1.0], Status.NON_FINITE, [0.0, 0.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [NAN, 1.0], Status.NON_FINITE, None),
    ],
)
def test_degenerate_systems_have_a_status_and_no_nan(matrix, right, status, value):
    A, b = torch.tensor(matrix, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    solution = CG(10)(lambda v: A @ v, b)
    assert solution.status == status
    assert solution.value.isfinite().all()
    assert not solution.residual_norm.isnan()
    assert not solution.relative_residual.isnan()
    if value is not None:
        assert torch.allclose(solution.value, torch.tensor(value, dtype=torch.float64))


def test_one_bad_system_leaves_the_others_of_its_batch_alone():
    diagonal = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [NAN, 1.0], [4.0, 4.0]])
    b = torch.ones(4, 2)
    solution = CG(10, rtol=1e-6)(lambda v: diagonal * v, b, batched=True)
    assert solution.status.tolist() == [
        Status.CONVERGED,
        Status.NEGATIVE_CURVATURE,
        Status.NON_FINITE,
        Status.CONVERGED,
    ]
    assert torch.allclose(solution.value[[0, 3]], 1 / diagonal[[0, 3]])
    assert solution.value.isfinite().all()


def test_bad_options_and_inputs_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        CG(-1)
    with pytest.raises(ValueError, match="empty"):
        CG()(lambda v: v, {})
    with pytest.raises(ValueError, match="int64"):
        CG()(lambda v: v, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="task axis"):
        CG()(lambda v: v, [torch.ones(2), torch.ones(3)], batched=True)
    with pytest.raises(ValueError, match="expected"):
        CG()(lambda v: v[:1], torch.ones(2))


@pytest.mark.parametrize("solver", [CG(30, rtol=1e-12), Dense()], ids=["cg", "dense"])
def test_pytrees_and_scalars(solver):
    b = {"a": torch.tensor(2.0), "b": [torch.ones(2, 3, dtype=torch.float64)]}
    solution = solver(lambda v: {"a": 4 * v["a"], "b": [2 * v["b"][0]]}, b)
    assert solution.value["a"].dtype == torch.float32
    assert torch.allclose(solution.value["a"], torch.tensor(0.5))
    assert torch.allclose(solution.value["b"][0], torch.full((2, 3), 0.5, dtype=torch.float64))
    assert solution.iterations.shape == ()


@pytest.mark.parametrize("exponent", [-38, -30, -23, 20, 30, 37])
def test_right_hand_sides_of_any_size_in_single_precision(exponent):
    # Squares of these leave float32's range; the solution scales with b, and so does everything.
    d = torch.tensor([1.0, 2.0, 4.0])
    size = 10.0**exponent
    solution = CG(10)(lambda v: d * v, size * torch.ones(3))
    assert solution.converged and solution.iterations == 3
    assert torch.allclose(solution.value / size, 1 / d, rtol=1e-5)
    assert solution.residual_norm <= 1e-5 * size
    direct = Dense()(lambda v: d * v, size * torch.ones(3))
    assert torch.allclose(direct.value / size, 1 / d, rtol=1e-5)


def test_no_error_estimate_is_made_of_a_preconditioned_spectrum():
    d = torch.logspace(0, 4, 20, dtype=torch.float64)
    solution = CG(3, preconditioner=lambda v: v / d)(lambda v: d * v + 0.1 * v.sum(), d)
    assert solution.preconditioned and solution.error_estimate.isinf()


@given(st.integers(2, 40), st.floats(0, 6), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_residual_is_right_whether_or_not_it_was_made_anew(n, log_condition, iterations, seed):
    """Single precision, where the recurrence's drifts; 2 % is twice what a drift may be of it, and
    a residual of 100 roundings of |A| |x| is no figure that single precision has two digits of."""
    exact, right = symmetric(torch.logspace(0, log_condition, n), seed)
    matrix, b = exact.float(), right.float()
    products = []

    def matvec(v):
        products.append(v)
        return matrix @ v

    found = CG(iterations, rtol=0.0)(matvec, b)
    residual = (b.double() - matrix.double() @ found.value.double()).norm()
    rounding = torch.finfo(torch.float32).eps * float(matrix.norm(p=2) * found.value.norm())
    assert abs(found.residual_norm - residual) <= 0.02 * residual + 100 * rounding
    assert len(products) >= found.iterations


def test_an_unfinished_solve_is_spared_the_product_that_would_verify_it():
    products = []
    matrix = torch.diag(torch.logspace(0, 2, 50))

    def matvec(v):
        products.append(v)
        return matrix @ v

    assert CG(5, rtol=0.0)(matvec, torch.ones(50)).iterations == len(products) == 5
    products.clear()
    claimed = CG(200, rtol=1e-5)(matvec, torch.ones(50))
    assert claimed.converged and len(products) > claimed.iterations


def test_systems_at_rest_are_not_moved_by_the_iterations_of_a_gpu_that_is_not_asked(monkeypatch):
    parts = [symmetric([1.0, 2.0, 3.0]), symmetric([1.0, 1.0, 1.0], 1), symmetric([1.0, -2.0, 3.0])]
    matrix, b = (torch.stack(x) for x in zip(*parts, strict=True))
    b[1] = 0.0

    def solve():
        return CG(7, rtol=1e-9)(lambda v: (matrix @ v[..., None])[..., 0], b, batched=True)

    asked = solve()
    monkeypatch.setattr("metalearn.linear_solve.cg.any_runs", lambda running, iteration: True)
    ahead = solve()
    assert torch.equal(ahead.value, asked.value) and torch.equal(ahead.status, asked.status)
    assert torch.equal(ahead.iterations, asked.iterations)
    for mine, theirs in zip(ahead.eigenvalue_bounds, asked.eigenvalue_bounds, strict=True):
        assert torch.allclose(mine, theirs)

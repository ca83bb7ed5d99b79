"""What holds for every solver: good and bad systems, batches, trees, warm starts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.linear_solve import (
    CG,
    GMRES,
    BiCGStab,
    Dense,
    Jacobi,
    Neumann,
    NormalCG,
    Nystrom,
    Status,
)

ITERATIVE = {
    "cg": CG(200, rtol=1e-10),
    "cg_nystrom": CG(200, rtol=1e-10, preconditioner=Nystrom(3, 1e-2)),
    "cg_jacobi": CG(200, rtol=1e-10, preconditioner=Jacobi(8)),
    "neumann": Neumann(2000, rtol=1e-10),
    "gmres": GMRES(200, restart=20, rtol=1e-10),
    "gmres_restarted": GMRES(400, restart=3, rtol=1e-10),
    "bicgstab": BiCGStab(200, rtol=1e-10),
    "normal_cg": NormalCG(400, rtol=1e-10),
}
SOLVERS = {**ITERATIVE, "dense": Dense(), "nystrom": Nystrom(20, 1e-9)}
GENERAL = ("gmres", "bicgstab", "normal_cg", "dense", "neumann")

every = pytest.mark.parametrize("name", SOLVERS)
NAN = float("nan")


def positive_definite(tasks, n, seed, dtype=torch.float64):
    """Matrices of condition below 20 and right-hand sides."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(tasks, n, n, generator=g, dtype=torch.float64) / n**0.5
    A = root @ root.mT + 0.25 * torch.eye(n)
    return A.to(dtype), torch.randn(tasks, n, generator=g, dtype=torch.float64).to(dtype)


def times(A):
    return lambda v: torch.einsum("...ij,...j->...i", A, v)


@every
@given(st.integers(1, 8), st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_agrees_with_a_factorisation(name, n, seed, skewed):
    A, b = positive_definite(1, n, seed)
    A, b = A[0], b[0]
    if skewed and name in GENERAL:
        A = A + 0.3 * torch.triu(torch.ones(n, n), 1) - 0.3 * torch.tril(torch.ones(n, n), -1)
    solution = SOLVERS[name](times(A), b)
    assert solution.converged
    assert solution.status.shape == solution.iterations.shape == ()
    # A residual of 1e-6 |b| at most (nystrom), and no eigenvalue below 0.25.
    assert torch.linalg.norm(solution.value - torch.linalg.solve(A, b)) <= 4.1e-6 * b.norm()
    true = torch.linalg.norm(b - A @ solution.value)
    assert torch.allclose(solution.residual_norm, true, rtol=1e-3, atol=1e-14 * float(b.norm()))
    assert torch.allclose(solution.relative_residual, solution.residual_norm / b.norm())


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_equals_its_systems_one_by_one(name, dtype):
    A, b = positive_definite(4, 6, seed=1, dtype=dtype)
    A[1] = 2 * torch.eye(6)
    A[2] = A[2] + 30 * torch.eye(6)
    solver = SOLVERS[name]
    if dtype == torch.float32 and name in ITERATIVE:
        # Looser: 1e-10 is below float32's rounding, and the stop there is rounding's own.
        solver = type(solver)(**{**vars(solver), "rtol": 1e-4})
    together = solver(lambda v: {"x": times(A)(v["x"])}, {"x": b}, batched=True)
    assert together.value["x"].dtype == dtype
    assert together.status.shape == together.residual_norm.shape == (4,)
    for t in range(4):
        alone = solver(times(A[t]), b[t])
        assert together.status[t] == alone.status
        # Nystrom has no tolerance to loosen: float32 leaves it near 1e-4.
        assert alone.converged or (name == "nystrom" and dtype == torch.float32)
        assert together.iterations[t] == alone.iterations
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
        assert torch.allclose(together.value["x"][t], alone.value, **close)
        if alone.eigenvalue_bounds is not None:
            assert torch.allclose(together.eigenvalue_bounds[0][t], alone.eigenvalue_bounds[0])
    if name in ITERATIVE:
        assert len(set(together.iterations.tolist())) > 1


@every
def test_nested_trees_of_mixed_types(name):
    b = {"a": torch.tensor(2.0), "b": [torch.ones(2, 3, dtype=torch.float64), (torch.ones(1),)]}
    solution = SOLVERS[name](
        lambda v: {"a": 4 * v["a"], "b": [2 * v["b"][0], (v["b"][1][0] * 3,)]}, b
    )
    assert solution.value["a"].dtype == torch.float32
    assert torch.allclose(solution.value["a"], torch.tensor(0.5))
    assert torch.allclose(
        solution.value["b"][0], torch.full((2, 3), 0.5, dtype=torch.float64), rtol=1e-6
    )
    assert torch.allclose(solution.value["b"][1][0], torch.full((1,), 1 / 3))


@every
def test_a_warm_start_from_the_solution_takes_no_iteration(name):
    A, b = positive_definite(3, 7, seed=3)
    exact = torch.linalg.solve(A, b)
    solution = SOLVERS[name](times(A), b, x0=exact, batched=True)
    assert solution.iterations.tolist() == [0, 0, 0]
    assert solution.converged.all()
    assert torch.allclose(solution.value, exact, rtol=1e-12)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_warm_start_near_the_solution_saves_iterations(name):
    A, b = positive_definite(1, 30, seed=4)
    near = torch.linalg.solve(A, b) + 1e-8 * b
    cold = SOLVERS[name](times(A), b, batched=True)
    warm = SOLVERS[name](times(A), b, x0=near, batched=True)
    assert warm.converged.all() and warm.iterations < cold.iterations


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_budget_is_kept_and_the_residual_is_the_true_one(name):
    A, b = positive_definite(2, 12, seed=5)
    for budget in (0, 1, 2):
        solver = type(ITERATIVE[name])(**{**vars(ITERATIVE[name]), "max_iters": budget})
        solution = solver(times(A), b, batched=True)
        assert solution.iterations.tolist() == [budget, budget]
        assert (solution.status == Status.MAX_ITERS).all()
        true = (b - times(A)(solution.value)).norm(dim=1)
        assert torch.allclose(solution.residual_norm, true, rtol=1e-10)


S = Status
BAD = {
    "singular, b outside its range": (torch.diag(torch.tensor([1.0, 2.0, 0.0])), torch.ones(3)),
    "indefinite": (torch.diag(torch.tensor([1.0, -2.0, 3.0])), torch.ones(3)),
    "negative definite": (-torch.eye(3), torch.ones(3)),
    "non-symmetric": (torch.tensor([[2.0, 1.0], [-3.0, 2.0]]), torch.ones(2)),
    "skew-symmetric": (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.ones(2)),
    "nilpotent": (torch.diag(torch.ones(2), 1), torch.ones(3)),
    "nearly singular": (torch.diag(torch.tensor([1.0, 1e-30])), torch.ones(2)),
    "NaN-producing": (torch.full((2, 2), NAN), torch.ones(2)),
    "overflowing": (1e200 * torch.eye(2, dtype=torch.float64), torch.ones(2)),
    "NaN right-hand side": (torch.eye(2), torch.tensor([NAN, 1.0])),
    "zero matrix": (torch.zeros(3, 3), torch.ones(3)),
    "zero right-hand side": (torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2)),
    "single element": (torch.tensor([[4.0]]), torch.ones(1)),
    "no elements": (torch.zeros(0, 0), torch.zeros(0)),
}
NEVER_SOLVED = {"singular, b outside its range", "nilpotent", "zero matrix"}
NOT_FINITE = {"NaN-producing", "NaN right-hand side"}
SOLVED_BY_ALL = {"zero right-hand side", "single element", "no elements"}
SOLVED_BY = {  # beside which any solver may
    "indefinite": ("gmres", "bicgstab", "normal_cg", "dense"),
    "negative definite": ("gmres", "bicgstab", "normal_cg", "dense"),
    "non-symmetric": ("gmres", "bicgstab", "normal_cg", "dense"),
    "skew-symmetric": ("gmres", "normal_cg", "dense"),
}


@every
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bad_systems_end_with_a_status_and_a_finite_value(name, case, dtype):
    if case == "overflowing" and dtype == torch.float32:
        dtype = torch.float64  # 1e200 is no float32
    A, b = (x.to(dtype) for x in BAD[case])
    solver = SOLVERS[name]
    if dtype == torch.float32 and name in ITERATIVE:
        solver = type(solver)(**{**vars(solver), "rtol": 1e-5})
    solution = solver(times(A), b)
    status = Status(int(solution.status))
    assert solution.value.isfinite().all()
    assert not solution.residual_norm.isnan()
    assert not solution.relative_residual.isnan()
    assert solution.iterations <= getattr(solver, "max_iters", 2 * 20)
    for bound in solution.eigenvalue_bounds or ():
        assert not bound.isnan()

    true = torch.linalg.norm(b - A @ solution.value)
    rounding = 1e3 * torch.finfo(dtype).eps * (b.norm() + A.abs().sum() * solution.value.norm())
    if case in NOT_FINITE:
        assert status == Status.NON_FINITE
    elif status != Status.NON_FINITE:
        assert (solution.residual_norm - true).abs() <= rounding
    if status == Status.CONVERGED and case != "no elements":
        assert true <= 1.01 * getattr(solver, "rtol", 1e-6) * b.norm() + rounding
    if case in NEVER_SOLVED:
        assert status not in (Status.CONVERGED, Status.NON_FINITE)
    if case in SOLVED_BY_ALL or name in SOLVED_BY.get(case, ()):
        assert status == Status.CONVERGED


@pytest.mark.parametrize(
    ("name", "case", "status"),
    [
        ("cg", "indefinite", S.NEGATIVE_CURVATURE),
        ("cg", "negative definite", S.NEGATIVE_CURVATURE),
        ("cg", "zero matrix", S.SINGULAR),
        ("neumann", "indefinite", S.DIVERGED),
        ("neumann", "negative definite", S.DIVERGED),
        ("neumann", "skew-symmetric", S.DIVERGED),
        ("neumann", "zero matrix", S.SINGULAR),
        ("gmres", "singular, b outside its range", S.SINGULAR),
        ("gmres", "nilpotent", S.SINGULAR),
        ("gmres", "zero matrix", S.SINGULAR),
        ("bicgstab", "skew-symmetric", S.BREAKDOWN),
        ("bicgstab", "zero matrix", S.SINGULAR),
        ("normal_cg", "singular, b outside its range", S.SINGULAR),
        ("normal_cg", "nilpotent", S.SINGULAR),
        ("normal_cg", "zero matrix", S.SINGULAR),
        ("dense", "singular, b outside its range", S.SINGULAR),
        ("dense", "nilpotent", S.SINGULAR),
        ("dense", "nearly singular", S.SINGULAR),
        ("nystrom", "indefinite", S.NEGATIVE_CURVATURE),
        ("nystrom", "negative definite", S.NEGATIVE_CURVATURE),
        ("nystrom", "zero matrix", S.SINGULAR),
    ],
)
def test_the_status_names_what_is_wrong(name, case, status):
    A, b = (x.double() for x in BAD[case])
    assert SOLVERS[name](times(A), b).status == status


@every
def test_a_bad_system_leaves_the_others_of_its_batch_alone(name):
    A, b = positive_definite(6, 3, seed=6)
    A[1], A[3], A[4] = -torch.eye(3), NAN, 0.0
    b[2, 0] = NAN
    solution = SOLVERS[name](times(A), b, batched=True)
    assert solution.value.isfinite().all()
    assert solution.status[2] == solution.status[3] == Status.NON_FINITE
    assert solution.status[4] != Status.CONVERGED
    for t in (0, 5):
        alone = SOLVERS[name](times(A[t]), b[t])
        assert solution.status[t] == alone.status == Status.CONVERGED
        assert torch.allclose(solution.value[t], alone.value, rtol=1e-8)


@every
def test_a_start_that_is_not_finite_does_not_come_out(name):
    A, b = positive_definite(1, 3, seed=7)
    start = torch.tensor([[1.0, NAN, 1.0]], dtype=torch.float64)
    assert SOLVERS[name](times(A), b, x0=start, batched=True).value.isfinite().all()


@every
def test_an_empty_pytree_is_refused(name):
    with pytest.raises(ValueError, match="the pytree is empty"):
        SOLVERS[name](lambda v: v, {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CG(rtol=-1.0), r"CG\(rtol=-1.0\); expected at least 0"),
        (lambda: CG(2.5), r"CG\(max_iters=2.5\); expected a whole number"),
        (lambda: CG("5"), r"CG\(max_iters='5'\); expected a whole number"),
        (lambda: CG(rtol="1e-3"), r"CG\(rtol='1e-3'\); expected at least 0"),
        (lambda: CG(atol=NAN), r"CG\(atol=nan\)"),
        (lambda: Neumann(-1), r"Neumann\(max_iters=-1\)"),
        (lambda: Neumann(step_size=0.0), r"Neumann\(step_size=0.0\); expected above 0"),
        (lambda: GMRES(restart=0), r"GMRES\(restart=0\); expected a whole number of at least 1"),
        (lambda: BiCGStab(rtol=NAN), r"BiCGStab\(rtol=nan\)"),
        (lambda: NormalCG(max_iters=-3), r"NormalCG\(max_iters=-3\)"),
        (lambda: Nystrom(0, 1.0), r"Nystrom\(rank=0\)"),
        (lambda: Nystrom(3, 1.0, power=-1), r"Nystrom\(power=-1\)"),
        (lambda: Nystrom(3, 0.0), r"Nystrom\(damping=0.0\); expected above 0"),
        (lambda: Jacobi(0), r"Jacobi\(samples=0\)"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every
def test_a_complex_product_is_refused(name):
    with pytest.raises(ValueError, match="real tensors were expected"):
        SOLVERS[name](lambda v: (2 + 1j) * v, torch.ones(3))


@pytest.mark.parametrize("name", [n for n in SOLVERS if "nystrom" not in n])
@pytest.mark.parametrize("exponent", [-14, -9, 9, 14])
def test_the_scale_of_the_matrix_does_not_matter(name, exponent):
    A, b = positive_definite(1, 5, seed=2, dtype=torch.float32)
    A, b = A[0], b[0]
    solver = SOLVERS[name]
    if name in ITERATIVE:
        solver = type(solver)(**{**vars(solver), "rtol": 1e-5})
    solution = solver(times(10.0**exponent * A), b)
    assert solution.converged
    exact = torch.linalg.solve(A.double(), b.double())
    assert (10.0**exponent * solution.value - exact).norm() <= 1e-4 * exact.norm()


@every
@pytest.mark.parametrize("budget", [3, 200])
def test_systems_that_meet_are_solved_or_not_claimed(name, budget):
    g = torch.Generator().manual_seed(8)
    whole = torch.eye(12) + 0.05 * torch.randn(12, 12, generator=g, dtype=torch.float64)
    b = torch.randn(3, 4, generator=g, dtype=torch.float64)
    solver = SOLVERS[name]
    if name in ITERATIVE:
        solver = type(solver)(**{**vars(solver), "rtol": 1e-6, "max_iters": budget})
    try:
        solution = solver(lambda v: (whole @ v.flatten()).view(3, 4), b, batched=True)
    except ValueError as error:
        assert name == "dense" and "treats every system alone" in str(error)
        return
    residual = (b.flatten() - whole @ solution.value.flatten()).view(3, 4).norm(dim=1)
    assert (residual[solution.converged] <= 2.1e-6 * b.norm(dim=1)[solution.converged]).all()


def test_dense_refuses_a_matvec_that_is_not_linear():
    with pytest.raises(ValueError, match="expected a linear matvec"):
        Dense()(lambda v: v + 1, torch.ones(3))

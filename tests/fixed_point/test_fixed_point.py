from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.fixed_point import Anderson, Broyden, NewtonGMRES, Picard
from metalearn.linear_solve import Status

KINDS = (Picard, Anderson, Broyden, NewtonGMRES)


def linear(eigenvalues, seed=0):
    """f(z) = A z + b with A symmetric of the given spectrum, its fixed point, and A; float64."""
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    A = q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.T
    b = torch.randn(n, generator=g, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - A, b)
    return (lambda z: A @ z + b), exact


def tanh_maps(tasks=5, size=12, seed=0):
    """Maps of very different slopes, a task each, and a start."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(tasks, size, size, generator=g, dtype=torch.float64) / size**0.5
    W = W * torch.linspace(0.1, 0.8, tasks, dtype=torch.float64)[:, None, None]
    c = torch.randn(tasks, size, generator=g, dtype=torch.float64)
    return W, c, torch.zeros_like(c)


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 8), st.floats(-0.7, 0.9), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_linear_fixed_points_are_the_closed_form(kind, n, largest, seed):
    function, exact = linear(np.linspace(0, largest, n), seed)
    solution = kind(2000, rtol=1e-13)(function, torch.zeros_like(exact))
    assert solution.converged
    assert torch.linalg.norm(solution.value - exact) <= 1e-10 * exact.norm()
    residual = (function(solution.value) - solution.value).norm()
    assert torch.isclose(solution.residual_norm, residual, rtol=1e-9)
    assert torch.isclose(solution.relative_residual, residual / function(solution.value).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_stops_on_its_own_and_equals_its_single_solve(kind):
    W, c, start = tanh_maps()

    def together(z):
        return {"z": torch.tanh(torch.einsum("tij,tj->ti", W, z["z"]) + c)}

    solver = kind(200, rtol=1e-9)
    batch = solver(together, {"z": start}, batched=True)
    assert batch.converged.all()
    assert len(set(batch.iterations.tolist())) >= 3
    for t in range(len(c)):
        alone = solver(lambda z, t=t: torch.tanh(W[t] @ z + c[t]), start[t])
        assert batch.iterations[t] == alone.iterations
        assert batch.status[t] == alone.status
        assert torch.allclose(batch.value["z"][t], alone.value, rtol=1e-9, atol=1e-12)


def test_all_solvers_agree_on_a_nonlinear_pytree():
    W, c, _ = tanh_maps(tasks=1, size=6)

    def function(z):
        return {
            "a": torch.tanh(W[0, :, :3] @ z["a"] + W[0, :, 3:] @ z["b"][0][0] + c[0])[:3],
            "b": [torch.cos(z["a"])[None] / 2],
        }

    z0 = {"a": torch.zeros(3, dtype=torch.float64), "b": [torch.ones(1, 3, dtype=torch.float64)]}
    values = [kind(500, rtol=1e-12)(function, z0).value for kind in KINDS]
    for value in values[1:]:
        assert torch.allclose(value["a"], values[0]["a"], rtol=1e-9)
        assert torch.allclose(value["b"][0], values[0]["b"][0], rtol=1e-9)


@pytest.mark.parametrize("kind", [Anderson, Broyden, NewtonGMRES])
def test_an_ill_conditioned_contraction_takes_a_fraction_of_picards_iterations(kind):
    function, exact = linear(np.linspace(-0.9, 0.99, 40))
    z0 = torch.zeros_like(exact)
    slow = Picard(10_000, rtol=1e-8)(function, z0)
    fast = kind(10_000, rtol=1e-8)(function, z0)
    assert slow.converged
    assert fast.converged
    assert 3 * fast.iterations < slow.iterations


def test_anderson_with_a_full_window_ends_a_linear_problem_as_gmres_would():
    function, exact = linear([0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
    solution = Anderson(50, rtol=1e-8, window=6, regularisation=0.0)(
        function, torch.zeros_like(exact)
    )
    # n steps make the residual 0 in exact arithmetic, one more application sees it.
    assert solution.iterations <= 6 + 2


def test_anderson_without_a_window_is_picard():
    function, exact = linear(np.linspace(0, 0.9, 5))
    one = Anderson(60, rtol=1e-6, window=0)(function, torch.zeros_like(exact))
    other = Picard(60, rtol=1e-6)(function, torch.zeros_like(exact))
    assert one.iterations == other.iterations
    assert torch.equal(one.value, other.value)


@pytest.mark.parametrize("kind", [Anderson, Broyden, NewtonGMRES])
def test_a_linear_map_that_expands_is_no_obstacle_to_solvers_that_see_its_slope(kind):
    function, exact = linear([-3.0, 0.5, 2.0])
    assert Picard(50)(function, torch.zeros_like(exact)).status == Status.DIVERGED
    solution = kind(200, rtol=1e-10)(function, torch.zeros_like(exact))
    assert solution.converged
    assert torch.allclose(solution.value, exact, rtol=1e-7)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("function", "z0"),
    [
        (lambda z: 2 * z + 1, 0.5),
        (lambda z: z * z + 1, 0.5),
        (lambda z: z + 1, 0.0),
        (lambda z: torch.exp(5 * z), 1.0),
        (lambda z: torch.log(z), 0.5),
        (lambda z: -torch.sign(z + 0.5), 0.0),
        (lambda z: z * NAN, 1.0),
        (lambda z: z + INF, 1.0),
        (lambda z: torch.where(z > 2, NAN, 3 * z), 1.0),
        (lambda z: z, NAN),
        (lambda z: 0 * z, INF),
        (lambda z: 1e30 * z, 1e20),
    ],
    ids=["2z+1", "z2+1", "z+1", "exp", "log", "sign", "nan", "inf", "edge", "z0", "z0inf", "huge"],
)
def test_a_hard_map_gives_a_status_and_a_finite_value(kind, function, z0):
    solution = kind(60)(function, torch.full((3,), z0))
    assert solution.value.isfinite().all()
    assert not solution.residual_norm.isnan()
    assert not solution.relative_residual.isnan()
    if solution.converged:
        image = function(solution.value)
        assert (image - solution.value).norm() <= 1.01e-5 * image.norm()
    else:
        assert solution.status in (
            Status.MAX_ITERS,
            Status.DIVERGED,
            Status.NON_FINITE,
            Status.BREAKDOWN,
        )
    assert solution.iterations <= 60


def test_picards_statuses():
    z0 = torch.ones(2)
    for function, status in (
        (lambda z: z / 2 + 1, Status.CONVERGED),
        (lambda z: -z + 1, Status.MAX_ITERS),
        (lambda z: 10 * z, Status.DIVERGED),
        (lambda z: z * NAN, Status.NON_FINITE),
    ):
        assert Picard(50)(function, z0).status == status
    assert Picard(1)(lambda z: z, z0).converged
    assert NewtonGMRES()(lambda z: z * z + 1, z0).status == Status.BREAKDOWN  # has no fixed point


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_task_leaves_the_others_alone(kind):
    slope = torch.tensor([[0.5], [NAN], [0.3]])
    solution = kind(60)(lambda z: slope * z + 1, torch.zeros(3, 2), batched=True)
    assert solution.status.tolist()[::2] == [Status.CONVERGED] * 2
    assert solution.status[1] == Status.NON_FINITE
    assert torch.allclose(solution.value[[0, 2]], (1 / (1 - slope[[0, 2]])).expand(2, 2), rtol=1e-4)
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_is_kept_and_the_best_iterate_is_returned(kind):
    weight = torch.tensor(0.4, requires_grad=True)
    residuals = []

    def function(z):
        image = torch.cos(3 * z * weight)
        residuals.append((image - z).detach().norm())
        return image

    solution = kind(7, rtol=0.0)(function, torch.zeros(3, dtype=torch.float64))
    assert not solution.value.requires_grad
    assert solution.residual_norm <= min(residuals) + 1e-12


def test_bad_options_are_refused():
    for wrong in (
        lambda: Picard(0),
        lambda: Picard(damping=0.0),
        lambda: Anderson(rtol=-1.0),
        lambda: Anderson(window=-1),
        lambda: Broyden(memory=0),
        lambda: NewtonGMRES(linear_rtol=1.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(ValueError, match="empty"):
        Picard()(lambda z: z, {})
    with pytest.raises(ValueError, match="expected"):
        Picard()(lambda z: z[:1], torch.ones(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e30])
def test_states_of_any_size_in_single_precision(kind, size):
    # Squares of these leave float32's range on either side.
    solution = kind(200, rtol=1e-5)(lambda z: 0.5 * z + size, torch.zeros(3))
    assert solution.converged
    assert torch.allclose(solution.value / size, torch.full((3,), 2.0), rtol=1e-3)


def test_newton_counts_every_application_and_product():
    W, c, start = tanh_maps(tasks=1)
    count = 0

    class Counted(torch.autograd.Function):
        """The identity, counted in every direction."""

        @staticmethod
        def forward(z):
            nonlocal count
            count += 1
            return z.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return Counted.apply(g)

        @staticmethod
        def vmap(info, in_dims, z):
            return Counted.apply(z), in_dims[0]

    def function(z):
        return torch.tanh(Counted.apply(z) @ W[0].mT + c[0])

    solution = NewtonGMRES(400, rtol=1e-10)(function, start[0])
    assert solution.converged
    # A linearisation runs the map back once besides, where its transpose is recorded.
    assert abs(int(solution.iterations) - count) <= 0.2 * count


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_are_not_numbers_are_refused(kind):
    for options in ({"rtol": float("nan")}, {"atol": float("nan")}):
        with pytest.raises(ValueError, match="expected at least"):
            kind(**options)
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        kind(max_iters=0)
    with pytest.raises(ValueError, match="regularisation"):
        Anderson(regularisation=float("nan"))

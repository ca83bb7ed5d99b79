"""The check that a solution solves its equation, and that the equation is one."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from metalearn import implicit
from metalearn.errors import UsageError
from metalearn.linear_solve import CG, GMRES, BiCGStab, Dense, Neumann, NormalCG

WIDE = {"dtype": torch.float64}


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **WIDE)


def square(x, a):
    return x * x - a


def ridge(w, X, y, penalty):
    return 0.5 * (X @ w - y).square().sum() + 0.5 * penalty * w.square().sum()


X, Y = rand(9, 4), rand(9, seed=1)
PENALTY = torch.tensor(0.7, **WIDE, requires_grad=True)


def descended(steps):
    """The weights of ridge regression after `steps` of gradient descent."""
    w = torch.zeros(4, **WIDE)
    for _ in range(steps):
        w = w - 0.04 * torch.func.grad(ridge)(w, X, Y, PENALTY.detach())
    return w


def test_a_point_that_is_no_root_is_a_warning():
    a = torch.tensor(2.0, **WIDE, requires_grad=True)
    with pytest.warns(implicit.InexactSolution, match=r"a residual of 1.0e\+00"):
        x = implicit.root(square, torch.tensor(1.0, **WIDE), a)
    assert torch.autograd.grad(x, a)[0] == 0.5  # 1 / (2 x), at the given x


@pytest.mark.parametrize("steps", [0, 3])
def test_an_unsolved_minimum_is_a_warning_and_a_solved_one_is_not(steps):
    with pytest.warns(implicit.InexactSolution):
        implicit.argmin(ridge, descended(steps), X, Y, PENALTY)
    implicit.argmin(ridge, descended(300), X, Y, PENALTY)  # any warning is an error


def test_the_distance_is_never_above_the_true_one_and_0_at_a_solution():
    seen = []
    exact = descended(5000)
    for steps in (0, 1, 10, 100, 5000):
        w = descended(steps)
        implicit.argmin(ridge, w, X, Y, PENALTY, check=seen.append)
        true = (w - exact).norm() / w.norm()
        assert seen[-1] <= true * (1 + 1e-9) + 1e-12  # the equation is linear
    assert seen[0] == torch.inf and seen[-1] == 0


def test_check_raises_is_silent_or_is_refused():
    a = torch.tensor(2.0, **WIDE, requires_grad=True)
    x = torch.tensor(1.0, **WIDE)
    with pytest.raises(UsageError, match="leaves a residual"):
        implicit.root(square, x, a, check="raise")
    implicit.root(square, x, a, check="silent")
    with pytest.raises(UsageError, match="check='no': expected"):
        implicit.root(square, x, a, check="no")


def test_each_problem_of_a_batch_is_checked():
    a = torch.tensor([1.0, 4.0, 9.0], **WIDE, requires_grad=True)
    x = torch.tensor([1.0, 2.0, 2.0], **WIDE)
    seen = []
    implicit.root(square, x, a, batched=True, check=seen.append)
    assert seen[0].tolist() == [0, 0, 5 / 8]  # |F| / |A x| = 5 / (4 * 2)
    with pytest.warns(implicit.InexactSolution, match="of 1 of 3 problems"):
        implicit.root(square, x, a, batched=True)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_distance_has_no_unit(size):
    a = torch.tensor(2.0 * size, **WIDE, requires_grad=True)
    seen = []
    implicit.root(lambda x, a: size * 2 * x - a, torch.tensor(2.0, **WIDE), a, check=seen.append)
    assert seen[0] == pytest.approx(0.5)


def test_rounding_about_a_solution_of_zero_is_no_warning():
    c = torch.tensor(1e-17, **WIDE, requires_grad=True)
    implicit.root(lambda x, c: x - c, torch.zeros((), **WIDE), c)


def test_the_check_is_silent_under_vmap_and_speaks_under_grad():
    a, x = torch.tensor([2.0, 3.0], **WIDE), torch.ones(2, **WIDE)

    def at(x, a):
        return implicit.root(square, x, a)

    slopes = torch.func.vmap(torch.func.grad(at, argnums=1))(x, a)
    assert torch.allclose(slopes, torch.full((2,), 0.5, **WIDE))
    with pytest.warns(implicit.InexactSolution):
        torch.func.grad(at, argnums=1)(x[0], a[0])
    with pytest.warns(implicit.InexactSolution):
        torch.func.jvp(lambda a: at(x[0], a), (a[0],), (a[0],))


def test_the_check_is_left_out_where_no_derivative_can_follow():
    a, x = torch.tensor(2.0, **WIDE, requires_grad=True), torch.ones((), **WIDE)
    implicit.root(square, x, a.detach())
    with torch.no_grad():
        implicit.root(square, x, a)


@pytest.mark.parametrize("shape", [(1,), (2, 1), ()], ids=str)
def test_a_function_that_broadcasts_is_refused(shape):
    a = torch.tensor(0.1, **WIDE, requires_grad=True)
    with pytest.raises(ValueError, match="gives leaves of shapes"):
        implicit.fixed_point(lambda z, a: (a * z.sum()).expand(shape), torch.zeros(2, **WIDE), a)


def test_a_batched_objective_has_a_value_for_each_problem():
    with pytest.raises(ValueError, match="a value for each problem"):
        implicit.argmin(lambda x: x.square().sum()[None], torch.zeros(3, 2, **WIDE), batched=True)


def test_a_complex_residual_is_refused():
    with pytest.raises(ValueError, match="real tensors"):
        implicit.root(lambda x: (1 + 1j) * x, torch.zeros(2, **WIDE))


def test_a_function_that_draws_random_numbers_is_refused():
    c = torch.ones(8, **WIDE, requires_grad=True)
    with pytest.raises(UsageError, match="draws random numbers"):
        implicit.fixed_point(
            lambda z, c: torch.nn.functional.dropout(0.5 * z) + c, torch.zeros(8, **WIDE), c
        )


COUPLING = torch.eye(12, **WIDE) + 0.05 * rand(12, 12, seed=3)


def coupled(x, b):
    return (COUPLING @ x.flatten()).view(3, 4) - b


@pytest.mark.parametrize(
    "solver",
    [CG(), CG(99), Dense(), Neumann(), Neumann(200), GMRES(), GMRES(99, 3), BiCGStab(), NormalCG()],
    ids=repr,
)
def test_problems_that_meet_have_the_right_gradient_or_none(solver):
    b, v = rand(3, 4, seed=4).requires_grad_(), rand(3, 4, seed=5)
    x = torch.linalg.solve(COUPLING, b.detach().flatten()).view(3, 4)
    exact = torch.linalg.solve(COUPLING.mT, v.flatten()).view(3, 4)
    at = implicit.root(coupled, x, b, linear_solver=solver, batched=True)
    try:
        (found,) = torch.autograd.grad(at, b, v)
    except ValueError as error:
        assert "treats every" in str(error)
    else:
        assert (found - exact).norm() <= 1e-5 * exact.norm()
    (found,) = torch.autograd.grad(
        implicit.root(coupled, x, b, linear_solver=GMRES(rtol=1e-12)), b, v
    )
    assert (found - exact).norm() <= 1e-10 * exact.norm()


def test_problems_apart_are_not_refused_for_a_truncated_solve():
    b = rand(3, 4).requires_grad_()
    scales = torch.logspace(0, 3, 4, **WIDE)
    at = implicit.root(
        lambda x, b: scales * x - b, b.detach() / scales, b, linear_solver=GMRES(2), batched=True
    )
    with pytest.warns(implicit.InexactDerivative):
        at.sum().backward()


KINDS = {
    "root": (lambda x, b: x**3 - b, lambda b: b ** (1 / 3)),
    "argmin": (lambda x, b: (x**4 / 4 - b * x).sum(), lambda b: b ** (1 / 3)),
    "fixed_point": (lambda x, b: 0.5 * x + b.sin(), lambda b: 2 * b.sin()),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def attached(kind):
    function, exact = KINDS[kind]
    return lambda b: getattr(implicit, kind)(function, exact(b.detach()), b), exact


@kinds
def test_forward_mode_over_vmap(kind):
    at, exact = attached(kind)
    b, v = rand(3, 2).abs() + 0.5, rand(3, 2, seed=1)
    for several in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.vmap(f))):
        _, found = torch.func.jvp(several(at), (b,), (v,))
        torch.testing.assert_close(found, torch.func.jvp(exact, (b,), (v,))[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.func.jacfwd(torch.func.vmap(at))(b), torch.func.jacrev(exact)(b), rtol=1e-5, atol=1e-9
    )


@kinds
def test_saved_tensor_hooks_are_no_obstacle(kind):
    at, exact = attached(kind)
    b = (rand(2).abs() + 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(exact(b).sum(), b)
    whole = torch.utils.checkpoint.checkpoint(at, b, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(whole.sum(), b)[0], slope, rtol=1e-5, atol=0)
    with torch.autograd.graph.save_on_cpu():
        (found,) = torch.autograd.grad(at(b).sum(), b, create_graph=True)
        torch.testing.assert_close(found, slope, rtol=1e-5, atol=0)
        (found,) = torch.autograd.grad(found.sum(), b)
    (bend,) = torch.autograd.grad(
        torch.autograd.grad(exact(b).sum(), b, create_graph=True)[0].sum(), b
    )
    torch.testing.assert_close(found, bend, rtol=1e-4, atol=0)


@kinds
def test_the_old_vmap_is_refused_by_the_name_of_the_new(kind):
    at, _ = attached(kind)
    b = (rand(2).abs() + 0.5).requires_grad_()
    jacobian = torch.autograd.functional.jacobian
    for use in (
        lambda: torch.autograd.grad(at(b), b, torch.eye(2, **WIDE), is_grads_batched=True),
        lambda: jacobian(at, b, vectorize=True),
        lambda: jacobian(at, b, vectorize=True, strategy="forward-mode"),
        lambda: torch.autograd.functional.hessian(lambda b: at(b).sum(), b, vectorize=True),
    ):
        with warnings.catch_warnings(), pytest.raises(UsageError, match=r"torch\.func\.jacrev"):
            warnings.simplefilter("ignore")
            use()


@pytest.mark.parametrize("x", [math.nan, math.inf])
def test_a_solution_that_is_not_finite_is_unsolved(x):
    c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    given = torch.tensor(x, dtype=torch.float64)
    with pytest.warns(implicit.InexactSolution, match="from a solution"):
        implicit.root(lambda x, c: 2 * x - c, given, c)
    with pytest.raises(UsageError, match="from a solution"):
        implicit.root(lambda x, c: 2 * x - c, given, c, check="raise")


def test_the_warning_of_a_maximum_names_its_cure():
    c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    top = implicit.argmin(lambda x, c: -((x - c) ** 2), torch.tensor(2.0, dtype=torch.float64), c)
    with pytest.warns(implicit.InexactDerivative, match=r"is a minimum, or .*GMRES"):
        top.backward()
    top = implicit.argmin(
        lambda x, c: -((x - c) ** 2),
        torch.tensor(2.0, dtype=torch.float64),
        c,
        linear_solver=GMRES(),
    )
    assert torch.autograd.grad(top, c)[0].item() == pytest.approx(1.0)


def test_a_float32_solve_at_rounding_level_does_not_warn(recwarn):
    """Condition 1e3; the relative residual ends above the solver's 1e-6, near the rounding."""
    torch.manual_seed(0)
    for _ in range(8):
        q = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64))[0]
        matrix = (q * torch.logspace(-3, 0, 10, dtype=torch.float64)) @ q.mT
        c = torch.ones(10, requires_grad=True)
        x = torch.linalg.solve(matrix, c.detach().double()).float()
        single = matrix.float()
        y = implicit.root(lambda x, c, a: a @ x - c, x, c, single, check="silent")
        (found,) = torch.autograd.grad(y.sum(), c)
        expected = torch.linalg.solve(matrix, torch.ones(10, dtype=torch.float64))
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert not recwarn.list

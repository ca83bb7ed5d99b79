"""`metalearn.implicit` against closed forms, finite differences and itself.

Closed forms are held to 1e-10 relative: solves are direct or run to 1e-14, and the condition
numbers here are below 1e3.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn import implicit
from metalearn.linear_solve import CG, Dense
from metalearn.system.memory import peak_bytes

EXACT = CG(200, rtol=1e-14)
WIDE = {"dtype": torch.float64}


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **WIDE)


def close(found, exact, rtol=1e-10):
    assert (found - exact).norm() <= rtol * exact.norm()


# Ridge regression: w = (X'X + lambda I)^-1 X'y


def ridge_loss(w, X, y, penalty):
    return 0.5 * ((X @ w - y) ** 2).sum() + 0.5 * penalty * (w**2).sum()


def ridge(X, y, penalty):
    return torch.linalg.solve(X.mT @ X + penalty * torch.eye(X.shape[1], **WIDE), X.mT @ y)


def ridge_argmin(X, y, penalty):
    with torch.no_grad():
        w = ridge(X, y, penalty)
    return implicit.argmin(ridge_loss, w, X, y, penalty, linear_solver=EXACT)


RIDGE = (rand(9, 4), rand(9, seed=1), torch.tensor(0.7, **WIDE))


@pytest.mark.parametrize("argument", range(3), ids=["X", "y", "penalty"])
def test_ridge_has_the_derivatives_of_its_closed_form(argument):
    # autograd through the closed form is the reference; dw/dlambda also by hand
    exact = torch.func.jacrev(ridge, argnums=argument)(*RIDGE)
    close(torch.func.jacrev(ridge_argmin, argnums=argument)(*RIDGE), exact)
    close(torch.func.jacfwd(ridge_argmin, argnums=argument)(*RIDGE), exact)
    if argument == 2:
        X, _, penalty = RIDGE
        A = X.mT @ X + penalty * torch.eye(4, **WIDE)
        close(exact, -torch.linalg.solve(A, ridge(*RIDGE)))


def test_second_derivatives_of_ridge_whatever_the_order_of_modes():
    def value(solve):
        return lambda penalty: (solve(RIDGE[0], RIDGE[1], penalty) ** 3).sum()

    exact = torch.func.hessian(value(ridge))(RIDGE[2])
    rev, fwd = torch.func.jacrev, torch.func.jacfwd
    for outer, inner in ((rev, rev), (rev, fwd), (fwd, rev)):
        close(outer(inner(value(ridge_argmin)))(RIDGE[2]), exact)
    third = rev(rev(rev(value(ridge))))(RIDGE[2])
    close(rev(rev(rev(value(ridge_argmin))))(RIDGE[2]), third)


def test_forward_over_forward_is_refused_and_not_silently_zero():
    with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(ridge_argmin, argnums=2), argnums=2)(*RIDGE)


def test_the_unit_circle_and_the_point_where_the_theorem_fails():
    def circle(y, x):
        return x**2 + y**2 - 1

    def slope(x, y):
        x = torch.tensor(x, **WIDE, requires_grad=True)
        at = implicit.root(circle, torch.tensor(y, **WIDE), x, linear_solver=Dense())
        return torch.autograd.grad(at, x)[0]

    assert slope(0.8, 0.6).item() == pytest.approx(-0.8 / 0.6, rel=1e-12)
    assert slope(0.8, -0.6).item() == pytest.approx(0.8 / 0.6, rel=1e-12)  # the other branch
    with pytest.raises(implicit.NoDerivative, match="singular"):
        slope(1.0, 0.0)


def test_a_quadratic_argmin_and_a_linear_fixed_point():
    M = 0.2 * rand(5, 5)
    A, b = M @ M.mT + torch.eye(5, **WIDE), rand(5, seed=1)
    x = torch.linalg.solve(A, b)

    def argmin(b):
        return implicit.argmin(lambda x, b: 0.5 * x @ A @ x - b @ x, x, b, linear_solver=EXACT)

    close(torch.func.jacrev(argmin)(b), torch.linalg.inv(A))
    inverse = torch.linalg.inv(torch.eye(5, **WIDE) - M)

    def fixed_point(b):
        return implicit.fixed_point(
            lambda x, b: M @ x + b, inverse @ b.detach(), b, linear_solver=Dense()
        )

    close(torch.func.jacrev(fixed_point)(b), inverse)
    close(torch.func.jacfwd(fixed_point)(b), inverse)


# A nonlinear root, minimum and fixed point of two leaves, solved by Newton's method


def newton(residual, x, *args):
    flat = torch.cat([v.flatten() for v in x.values()])

    def at(flat):
        tree = {k: p.view(x[k].shape) for k, p in zip(x, flat.split([2, 3]), strict=True)}
        return torch.cat([v.flatten() for v in residual(tree, *args).values()])

    with torch.no_grad():
        for _ in range(50):
            flat = flat - torch.linalg.solve(torch.func.jacrev(at)(flat), at(flat))
    assert at(flat).norm() < 1e-12
    return {k: p.view(x[k].shape) for k, p in zip(x, flat.split([2, 3]), strict=True)}


COUPLING = 0.3 * rand(5, 5, seed=3)


def map_(x, c):
    both = torch.tanh(COUPLING @ torch.cat([x["a"].flatten(), x["b"]]) + c["shift"] ** 2)
    return {"a": (c["scale"] * both[:2]).view(1, 2), "b": both[2:]}


def residual_(x, c):
    image = map_(x, c)
    return {k: x[k] - image[k] for k in x}


def objective_(x, c):
    both = torch.cat([x["a"].flatten(), x["b"]])
    bowl = torch.logsumexp(COUPLING @ both * c["scale"], 0) + 0.5 * (both**2).sum()
    return bowl - (c["shift"] * both).sum()


START = {"a": torch.zeros(1, 2, **WIDE), "b": torch.zeros(3, **WIDE)}


def attached(kind):
    def attach(scale, shift):
        c = {"scale": scale, "shift": shift}
        fixed = {k: v.detach() for k, v in c.items()}
        if kind == "argmin":
            x = newton(lambda x, c: torch.func.grad(objective_)(x, c), START, fixed)
            x = implicit.argmin(objective_, x, c, linear_solver=Dense())
        elif kind == "root":
            x = implicit.root(residual_, newton(residual_, START, fixed), c, linear_solver=Dense())
        else:
            x = newton(residual_, START, fixed)
            x = implicit.fixed_point(map_, x, c, linear_solver=Dense())
        return x["a"], x["b"]

    return attach


ARGUMENTS = (torch.tensor(0.8, **WIDE, requires_grad=True), rand(5, seed=4).requires_grad_())


@pytest.mark.parametrize("kind", ["root", "argmin", "fixed_point"])
def test_gradcheck_and_gradgradcheck(kind):
    assert torch.autograd.gradcheck(attached(kind), ARGUMENTS, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attached(kind), ARGUMENTS)


@pytest.mark.parametrize("kind", ["root", "argmin", "fixed_point"])
def test_vmap_is_a_loop_in_value_and_derivatives(kind):
    scales, shifts = torch.linspace(0.2, 1, 3, **WIDE), rand(3, 5, seed=5)
    c = {"scale": scales[0], "shift": shifts[0]}
    function = {"root": residual_, "argmin": objective_, "fixed_point": map_}[kind]
    stationary = torch.func.grad(objective_) if kind == "argmin" else residual_

    def solved(scales):
        found = [
            newton(stationary, START, {"scale": s, "shift": h})
            for s, h in zip(scales, shifts, strict=True)
        ]
        return {k: torch.stack([v[k] for v in found]) for k in START}

    x = solved(scales)

    def value(x, scale, shift):
        at = getattr(implicit, kind)(
            function, x, {"scale": scale, "shift": shift}, linear_solver=Dense()
        )
        return (at["a"] ** 2).sum() + (at["b"] ** 3).sum()

    one = {k: v[0] for k, v in x.items()}
    assert value(one, **c) == sum((v**p).sum() for v, p in zip(one.values(), (2, 3), strict=True))
    for transform in (
        lambda f: f,
        lambda f: torch.func.jacrev(f, argnums=(1, 2)),
        lambda f: torch.func.jacfwd(f, argnums=(1, 2)),
        lambda f: torch.func.hessian(f, argnums=2),
    ):
        derived = transform(value)
        together = torch.func.vmap(derived)(x, scales, shifts)
        apart = [derived({k: v[i] for k, v in x.items()}, scales[i], shifts[i]) for i in range(3)]
        if isinstance(together, tuple):
            for j, part in enumerate(together):
                assert torch.allclose(part, torch.stack([a[j] for a in apart]), rtol=1e-9)
        else:
            assert torch.allclose(together, torch.stack(apart), rtol=1e-9)
    # one parameter shared by all tasks
    x = solved(scales[:1].expand(3))
    shared = torch.func.vmap(torch.func.grad(value, argnums=1), in_dims=(0, None, 0))
    alone = torch.func.grad(value, argnums=1)
    expected = torch.stack(
        [alone({k: v[i] for k, v in x.items()}, scales[0], shifts[i]) for i in range(3)]
    )
    assert torch.allclose(shared(x, scales[0], shifts), expected, rtol=1e-9)


def test_vmap_in_vmap():
    b = rand(2, 3, 4)

    def cube(b):
        x = b.sign() * b.abs() ** (1 / 3)
        return implicit.root(lambda x, b: x**3 - b, x, b, linear_solver=Dense()).sum()

    slopes = torch.func.vmap(torch.func.vmap(torch.func.grad(cube)))(b)
    close(slopes, b.abs() ** (-2 / 3) / 3)


SHAPES = st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, nest=st.sampled_from(["list", "dict", "tuple"]), wide=st.booleans())
def test_any_pytree_any_shape_any_precision(shapes, nest, wide):
    # x = tanh(x) / 2 + c leaf by leaf: dx/dc = 1 / (1 - (1 - tanh(x)^2) / 2)
    dtype, rtol = (torch.float64, 1e-10) if wide else (torch.float32, 1e-4)
    leaves = [rand(*s, seed=i).to(dtype) for i, s in enumerate(shapes)]

    def nested(leaves):
        named = {str(i): v for i, v in enumerate(leaves)}
        return {"list": list(leaves), "dict": named, "tuple": (leaves[0], {"rest": leaves[1:]})}[
            nest
        ]

    x = nested(leaves)
    c = nested([(v - torch.tanh(v) / 2).requires_grad_() for v in leaves])
    flat, _ = torch.utils._pytree.tree_flatten(c)
    at = implicit.fixed_point(
        lambda x, c: torch.utils._pytree.tree_map(lambda x, c: torch.tanh(x) / 2 + c, x, c),
        x,
        c,
        linear_solver=Dense(),
    )
    found, spec = torch.utils._pytree.tree_flatten(at)
    assert spec == torch.utils._pytree.tree_flatten(x)[1]
    grads = torch.autograd.grad([v.sum() for v in found], flat)
    for g, v in zip(grads, torch.utils._pytree.tree_flatten(x)[0], strict=True):
        exact = 1 / (1 - (1 - torch.tanh(v) ** 2) / 2)
        assert g.dtype == dtype and torch.allclose(g, exact, rtol=rtol)


def test_arguments_that_need_no_gradient_cost_nothing_and_others_pass_through():
    calls = []

    class Spy(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(v):
            return v.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            calls.append("backward")
            return g

    def residual(x, a, b, power, labels):
        return x**power - a - Spy.apply(b)[labels]

    a, b = torch.ones(2, **WIDE, requires_grad=True), torch.full((2,), 7.0, **WIDE)
    x = torch.full((2,), 2.0, **WIDE)
    labels = torch.tensor([1, 0])
    at = implicit.root(residual, x, a, b, 3, labels, linear_solver=Dense())
    (grad,) = torch.autograd.grad(at.sum(), a)
    assert torch.allclose(grad, torch.full((2,), 1 / 12, **WIDE))
    assert not calls
    assert not implicit.root(residual, x, a.detach(), b, 3, labels).requires_grad


def test_hidden_gradients_are_refused():
    w = torch.ones(2, **WIDE, requires_grad=True)
    x = torch.ones(2, **WIDE)
    with pytest.raises(ValueError, match="closes over a tensor that carries a gradient"):
        implicit.root(lambda x: x - w, x)
    with pytest.raises(ValueError, match="closes over"):
        torch.func.grad(lambda w: implicit.root(lambda x: x - w, x).sum())(w.detach())
    with pytest.raises(ValueError, match="closes over"):
        torch.func.jvp(lambda w: implicit.root(lambda x: x - w, x), (x,), (x,))
    with pytest.raises(ValueError, match="closes over"):
        implicit.argmin(lambda x: ((x - w) ** 2).sum(), x)
    linear = torch.nn.Linear(2, 2).double()
    with pytest.raises(ValueError, match="functional_call"):
        implicit.fixed_point(linear, x)


def test_wrong_shapes_structures_and_values_are_one_clear_error():
    x = torch.ones(2, **WIDE)
    for solution in ({}, [], torch.ones(2, dtype=torch.int64), {"a": "no"}, None):
        with pytest.raises(ValueError, match="floating-point"):
            implicit.root(lambda x: x, solution)
    with pytest.raises(ValueError, match="expected"):
        implicit.root(lambda x: x[:1], x)
    with pytest.raises(ValueError, match="structure"):
        implicit.root(lambda x: {"a": x}, x)
    with pytest.raises(ValueError, match="structure"):
        implicit.fixed_point(lambda x: (x,), x)
    with pytest.raises(ValueError, match="without axes"):
        implicit.argmin(lambda x: x, x)


def test_a_truncated_solve_warns_and_a_report_takes_its_place():
    A = torch.diag(torch.logspace(0, 4, 6, **WIDE))
    b = torch.ones(6, **WIDE, requires_grad=True)
    x = torch.linalg.solve(A, b.detach())

    def at(**options):
        return implicit.argmin(
            lambda x, b: 0.5 * x @ A @ x - b @ x, x, b, linear_solver=CG(2), **options
        ).sum()

    with pytest.warns(implicit.InexactDerivative, match="max_iters at relative residual"):
        torch.autograd.grad(at(), b)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad(at(report=seen.append), b)
    assert len(seen) == 1 and not seen[0].converged and seen[0].iterations == 2


def test_a_nan_in_the_residual_is_an_error_and_never_a_gradient():
    c = torch.zeros(2, **WIDE, requires_grad=True)
    with pytest.warns(implicit.InexactSolution):
        at = implicit.root(lambda x, c: (x - c).sqrt(), torch.full((2,), -1.0, **WIDE), c)
    with pytest.raises(implicit.NoDerivative, match="non_finite"):
        at.sum().backward()


def test_memory_does_not_depend_on_how_the_solution_was_found():
    # The same minimum by 1 Newton step and by 300 steps of gradient descent, with autograd on.
    X, y = rand(40, 30), rand(40, seed=1)
    penalty = torch.tensor(50.0, **WIDE, requires_grad=True)

    def descend(steps):
        w = torch.zeros(30, **WIDE, requires_grad=True)
        for _ in range(steps):
            w = (
                w
                - 0.004 * torch.autograd.grad(ridge_loss(w, X, y, penalty), w, create_graph=True)[0]
            )
        return w

    def peak(w):
        def differentiate():
            at = implicit.argmin(ridge_loss, w, X, y, penalty, linear_solver=EXACT)
            return torch.autograd.grad((at**2).sum(), penalty)[0]

        differentiate()
        return peak_bytes(differentiate, torch.device("cpu"))

    by_newton, newton_peak = peak(ridge(X, y, penalty.detach()))
    by_descent, descent_peak = peak(descend(300))
    close(by_descent, by_newton, rtol=1e-8)
    assert descent_peak == pytest.approx(newton_peak, rel=0.02)


def test_saved_tensors_are_unpacked_once():
    unpacked = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: v, lambda v: (unpacked.append(v), v)[1]
    ):
        c = torch.tensor(2.0, **WIDE, requires_grad=True)
        x = implicit.root(lambda x, c: x - c**2, torch.tensor(4.0, **WIDE), c)
    x.backward()
    assert c.grad == 4 and len(unpacked) == len({id(v) for v in unpacked})

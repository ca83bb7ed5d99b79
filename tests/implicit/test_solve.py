"""The calls that solve and attach: derivatives, transforms, batches, and the examples of docs."""

from __future__ import annotations

import pytest
import torch

from metalearn import implicit
from metalearn.linear_solve import Dense
from metalearn.nonlinear_solve import Bisection, GaussNewton, Newton, NotSolved

WIDE = {"dtype": torch.float64}


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **WIDE)


DESIGN, TARGET = rand(6, 3, seed=1), rand(6, seed=2)


def root(c):
    return implicit.root_find(
        lambda x, c: x + 0.3 * torch.tanh(DESIGN[:3] @ x) - c, torch.zeros(3, **WIDE), c
    )


def minimum(c):
    def objective(x, c):
        return torch.logsumexp(DESIGN @ x, 0) + ((x - c) ** 2).sum()

    return implicit.minimise(objective, torch.zeros(3, **WIDE), c, linear_solver=Dense())


def fit(c):
    return implicit.least_squares(
        lambda x, c: {"data": DESIGN @ x.sin() - TARGET, "prior": 2 * (x - c)},
        torch.zeros(3, **WIDE),
        c,
        linear_solver=Dense(),
    )


def fit_by_gauss_newton(c):
    return implicit.least_squares(
        lambda x, c: (DESIGN @ x.sin() - TARGET, 2 * (x - c)),
        torch.zeros(3, **WIDE),
        c,
        solver=GaussNewton(),
        linear_solver=Dense(),
    )


def fixed_point(c):
    return implicit.find_fixed_point(
        lambda x, c: 0.3 * torch.tanh(DESIGN[:3] @ x) + c, torch.zeros(3, **WIDE), c
    )


CALLS = [root, minimum, fit, fit_by_gauss_newton, fixed_point]


@pytest.mark.parametrize("call", CALLS)
def test_derivatives_are_those_of_finite_differences(call):
    c, h = rand(3, seed=3), 1e-5
    found = torch.func.jacrev(lambda c: call(c).value)(c)
    steps = h * torch.eye(3, **WIDE)
    differences = [(call(c + s).value - call(c - s).value) / (2 * h) for s in steps]
    assert torch.allclose(found, torch.stack(differences, dim=1), rtol=1e-6, atol=1e-6)
    forward = torch.func.jacfwd(lambda c: call(c).value)(c)
    assert torch.allclose(forward, found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("call", [root, minimum, fixed_point])
def test_vmap_and_second_derivatives_are_those_of_a_loop(call):
    def value(c):
        return (call(c).value ** 2).sum()

    many = rand(2, 3, seed=4)
    slopes = torch.func.vmap(torch.func.grad(value))(many)
    apart = torch.stack([torch.func.grad(value)(c) for c in many])
    assert torch.allclose(slopes, apart, rtol=1e-6, atol=1e-8)
    status = torch.func.vmap(lambda c: call(c).status)(many)
    assert status.tolist() == [0, 0]
    bent = torch.func.jacrev(torch.func.grad(value))(many[0])
    h = 1e-5
    differences = [
        (torch.func.grad(value)(many[0] + s) - torch.func.grad(value)(many[0] - s)) / (2 * h)
        for s in h * torch.eye(3, **WIDE)
    ]
    assert torch.allclose(bent, torch.stack(differences), rtol=1e-5, atol=1e-5)


def test_each_problem_of_a_batch_stops_on_its_own():
    c = torch.tensor([2.0, 3.0, 1e6, 4.0], **WIDE)

    def residual(x, c):
        return {"a": x["a"] ** 2 - c}

    start = {"a": torch.tensor([1.4, 2.0, 1.0, 2.0], **WIDE)}
    found = implicit.root_find(residual, start, c, batched=True)
    assert found.converged.all() and found.residual_norm.shape == (4,)
    assert found.steps[2] > found.steps[0] > found.steps[3] == 0
    for i in range(4):
        alone = implicit.root_find(residual, {"a": start["a"][i]}, c[i])
        assert torch.allclose(alone.value["a"], found.value["a"][i], rtol=1e-10)
        assert alone.steps == found.steps[i]


def test_one_failure_leaves_the_other_problems_of_a_batch():
    c = torch.tensor([4.0, -1.0], **WIDE, requires_grad=True)
    with pytest.warns(NotSolved, match="1 of 2"):
        found = implicit.root_find(
            lambda x, c: x**2 - c, torch.tensor([1.0, 0.7], **WIDE), c, batched=True
        )
    assert found.converged.tolist() == [True, False]
    (slope,) = torch.autograd.grad(found.value[0], c)
    assert torch.allclose(slope, torch.tensor([0.25, 0.0], **WIDE))


def test_many_starts_find_the_global_minimum_and_its_derivative():
    def objective(x, tilt):
        return (x**4 - 16 * x**2).sum(-1) / 2 + tilt * x.sum(-1)

    starts = 4 * torch.rand(16, 2, generator=torch.Generator().manual_seed(0), **WIDE) - 2
    tilt = torch.tensor(2.5, **WIDE, requires_grad=True)
    found = implicit.minimise(objective, starts, tilt, batched=True)
    best = found.value[objective(found.value, tilt).argmin()]
    assert torch.allclose(best, torch.tensor(-2.903534, **WIDE), atol=1e-6)
    (slope,) = torch.autograd.grad(best[0], tilt)
    assert torch.allclose(slope, -1 / (6 * best[0].detach() ** 2 - 16), rtol=1e-6)


def test_bisection_of_a_batch_is_differentiable():
    c = torch.tensor([1.0, 8.0, 27.0], **WIDE)

    def roots(c):
        return implicit.root_find(
            lambda x, c: x**3 - c, torch.zeros(3, **WIDE), c, solver=Bisection(0, 9), batched=True
        ).value

    assert torch.allclose(roots(c), torch.tensor([1.0, 2.0, 3.0], **WIDE), atol=1e-9)
    slopes = torch.func.jacrev(roots)(c).diagonal()
    assert torch.allclose(slopes, torch.tensor([1 / 3, 1 / 12, 1 / 27], **WIDE), atol=1e-8)


def test_an_integer_argument_and_a_mixed_tree_pass_through():
    found = implicit.root_find(
        lambda x, c, power, name: (x[0] ** power - c, x[1].double() ** 2 - 4),
        (torch.tensor(1.0, **WIDE), torch.tensor(1.0)),
        torch.tensor(8.0, **WIDE),
        torch.tensor(3),
        "unused",
        solver=Newton(rtol=1e-6),
    )
    assert found.value[1].dtype == torch.float32
    assert torch.allclose(found.value[0], torch.tensor(2.0, **WIDE), atol=1e-5)


def test_what_is_no_problem_is_refused():
    x = torch.zeros(3, **WIDE)
    c = torch.ones(3, **WIDE, requires_grad=True)
    with pytest.raises(ValueError, match="closes over"):
        implicit.root_find(lambda x: x - c, x)
    with pytest.raises(ValueError, match="closes over"):
        torch.func.jacrev(lambda c: implicit.root_find(lambda x: x - c, x).value)(c.detach())
    with pytest.raises(ValueError, match="3 unknowns"):
        implicit.root_find(lambda x: x[:2], x)
    with pytest.raises(ValueError, match="3 unknowns"):
        implicit.root_find(lambda x: x, x, solver=Bisection(0, 1))
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        implicit.minimise(lambda x: x, x)
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        implicit.minimise(lambda x: x.sum(), x, batched=True)
    with pytest.raises(ValueError, match="max_steps"):
        implicit.root_find(lambda x: x, x, max_steps=-1)
    with pytest.raises(ValueError, match="floating-point"):
        implicit.minimise(lambda x: (x**2).sum(), torch.zeros(3, dtype=torch.int64))

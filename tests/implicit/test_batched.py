"""`metalearn.implicit` for many problems at once, each a system of its own."""

from __future__ import annotations

import pytest
import torch
from test_root_argmin_fixed_point import EXACT, WIDE, close, rand, ridge

from metalearn import implicit
from metalearn.linear_solve import GMRES, Dense


def many(tasks=3, size=4):
    W = rand(tasks, size, size) / size
    W = W * torch.tensor([0.05, 0.5, 1.0], **WIDE)[:, None, None]
    c = rand(tasks, size, seed=1)

    def function(z, W, c):
        return torch.tanh(torch.einsum("tij,tj->ti", W, z) + c)

    with torch.no_grad():
        z = torch.zeros_like(c)
        for _ in range(400):
            z = function(z, W, c)
    return function, z, W, c


def test_batched_problems_equal_a_loop_over_them():
    function, z, W, c = many()
    v, seen = rand(3, 4, seed=5), []
    W, c = W.requires_grad_(), c.requires_grad_()
    solver = GMRES(20, rtol=1e-12)
    together = implicit.fixed_point(
        function, z, W, c, linear_solver=solver, batched=True, report=seen.append
    )
    found = torch.autograd.grad(together, (W, c), v)
    assert seen[0].iterations.shape == (3,)
    for t in range(3):
        alone = implicit.fixed_point(
            lambda z, W, c: function(z[None], W[None], c[None])[0],
            z[t],
            W[t],
            c[t],
            linear_solver=solver,
        )
        for whole, part in zip(found, torch.autograd.grad(alone, (W, c), v[t]), strict=True):
            close(whole[t], part[t])


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.zeros(0, 2)], ids=["0-d", "none"])
def test_a_batched_solution_has_an_axis_of_problems(x):
    with pytest.raises(ValueError, match="the same axis of problems"):
        implicit.root(lambda x, c: x - c, x, x.clone().requires_grad_(), batched=True)


def test_each_batched_system_stops_on_its_own():
    function, z, W, c = many(size=24)
    seen = []
    c = c.requires_grad_()
    implicit.fixed_point(
        function, z, W, c, linear_solver=GMRES(99, 99, 1e-8), batched=True, report=seen.append
    ).sum().backward()
    iterations = seen[0].iterations.tolist()
    assert iterations == sorted(iterations) and len(set(iterations)) == 3


def test_batched_derivatives_have_derivatives_and_go_under_vmap():
    function, z, W, c = many()
    solver = Dense()

    def attached(c):
        with torch.no_grad():
            at = torch.zeros_like(c)
            for _ in range(400):
                at = function(at, W, c)
        return implicit.fixed_point(function, at, W, c, linear_solver=solver, batched=True)

    assert torch.autograd.gradcheck(attached, c.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attached, c)

    def slope(v):
        (g,) = torch.func.vjp(
            lambda c: implicit.fixed_point(function, z, W, c, linear_solver=solver, batched=True),
            c.detach(),
        )[1](v)
        return g

    several = rand(5, 3, 4, seed=7)
    close(torch.func.vmap(slope)(several), torch.stack([slope(v) for v in several]))


def test_a_batched_argmin_is_as_many_argmins():
    X, y = rand(3, 9, 4), rand(3, 9, seed=1)
    penalty = torch.tensor([0.1, 1.0, 10.0], **WIDE, requires_grad=True)

    def loss(w, X, y, penalty):
        misfit = torch.einsum("tni,ti->tn", X, w) - y
        return 0.5 * misfit.square().sum(1) + 0.5 * penalty * w.square().sum(1)

    exact = torch.stack([ridge(*args) for args in zip(X, y, penalty, strict=True)])
    w = implicit.argmin(loss, exact.detach(), X, y, penalty, linear_solver=EXACT, batched=True)
    v = rand(3, 4, seed=3)
    close(torch.autograd.grad(w, penalty, v)[0], torch.autograd.grad(exact, penalty, v)[0])
    with pytest.raises(ValueError, match="a value for each problem"):
        implicit.argmin(lambda w, p: loss(w, X, y, p).sum(), w, penalty, batched=True)

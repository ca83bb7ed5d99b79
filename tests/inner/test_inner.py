from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.inner import LBFGS, Adam, AtRates, BacktrackingDescent, GradientDescent, NewtonCG

CURVATURE = torch.tensor([[1.0, 4.0], [2.0, 0.5], [10.0, 10.0]], dtype=torch.float64)
TARGET = torch.tensor([[1.0, -1.0], [0.5, 3.0], [-2.0, 0.0]], dtype=torch.float64)


def quadratic(params):
    return 0.5 * (CURVATURE * (params["x"] - TARGET) ** 2).sum(1)


def start():
    return {"x": torch.zeros(3, 2, dtype=torch.float64)}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent_is_torchs_own(momentum):
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([x], lr=0.05, momentum=momentum)
    for _ in range(6):
        optimiser.zero_grad()
        quadratic({"x": x}).sum().backward()
        optimiser.step()
    solution = GradientDescent(6, 0.05, momentum)(quadratic, start())
    assert torch.allclose(solution.params["x"], x)
    assert solution.steps.tolist() == [6, 6, 6]
    gradient = CURVATURE * (x.detach() - TARGET)
    assert torch.allclose(solution.grad_norm, gradient.norm(dim=1))
    assert torch.allclose(solution.objective, quadratic({"x": x.detach()}))


def test_adam_is_torchs_own_but_for_where_eps_is_corrected():
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=0.05, eps=1e-12)
    for _ in range(6):
        optimiser.zero_grad()
        quadratic({"x": x}).sum().backward()
        optimiser.step()
    assert torch.allclose(Adam(6, 0.05, eps=1e-12)(quadratic, start()).params["x"], x)


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(3000, 0.05, tol=1e-6),
        Adam(3000, 0.05, tol=1e-6),
        NewtonCG(20, tol=1e-6),
        LBFGS(50, tol=1e-6),
    ],
    ids=lambda s: type(s).__name__,
)
def test_each_task_stops_on_its_own(solver):
    solution = solver(quadratic, start())
    assert (solution.grad_norm <= 1e-6).all()
    assert torch.allclose(solution.params["x"], TARGET, atol=1e-5)
    for t in range(3):
        alone = solver(
            lambda p, t=t: 0.5 * (CURVATURE[t] * (p["x"] - TARGET[t]) ** 2).sum(1),
            {"x": torch.zeros(1, 2, dtype=torch.float64)},
        )
        assert alone.steps == solution.steps[t]
        assert torch.allclose(alone.params["x"][0], solution.params["x"][t])
    if not isinstance(solver, NewtonCG):
        assert len(set(solution.steps.tolist())) > 1


def test_newton_never_increases_a_non_convex_objective():
    def rosenbrock(params):
        x, y = params["x"].unbind(1)
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    params = {"x": torch.tensor([[-1.2, 1.0], [0.0, -3.0], [2.0, 2.0]], dtype=torch.float64)}
    values = [rosenbrock(params)]
    for steps in range(1, 40):
        values.append(NewtonCG(steps, cg_iters=5, tol=1e-9)(rosenbrock, params).objective)
    assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(values))
    assert (values[-1] < 1e-10).all()


def test_zero_steps_leave_the_start():
    solution = GradientDescent(0, 0.1)(quadratic, start())
    assert torch.equal(solution.params["x"], start()["x"])
    assert solution.steps.tolist() == [0, 0, 0]


def test_bad_objectives_are_refused():
    with pytest.raises(ValueError, match="a value for each task"):
        GradientDescent(1, 0.1)(lambda p: quadratic(p).sum(), start())
    unused = {"unused": torch.zeros(3, 1, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"'unused'.*depends on none"):
        GradientDescent(1, 0.1)(lambda p: quadratic(start()), unused)
    found = GradientDescent(1, 0.1)(quadratic, {**start(), **unused})
    assert torch.equal(found.params["unused"], unused["unused"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientDescent(-1, 0.1),
        lambda: GradientDescent(1, 0.0),
        lambda: GradientDescent(0.1, 3),
        lambda: GradientDescent(3, "0.1"),
        lambda: BacktrackingDescent(2.5, 0.1),
        lambda: GradientDescent(3, 0.1, tol="1e-3"),
        lambda: NewtonCG(3, cg_iters=1.5),
        lambda: LBFGS(True),
        lambda: GradientDescent(1, 0.1, 1.0),
        lambda: Adam(1, float("nan")),
        lambda: NewtonCG(1, 0),
        lambda: Adam(3, 0.1, betas=(1.0, 0.9)),
        lambda: Adam(3, 0.1, eps=0.0),
        lambda: GradientDescent(3, float("inf")),
        lambda: GradientDescent(3, 0.1, tol=float("nan")),
        lambda: NewtonCG(3, tol=-1.0),
        lambda: LBFGS(3, memory=0),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_lbfgs_takes_few_steps_and_never_increases_an_objective():
    def rosenbrock(params):
        x, y = params["x"].unbind(1)
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    params = {"x": torch.tensor([[-1.2, 1.0], [0.0, -3.0], [2.0, 2.0]], dtype=torch.float64)}
    values = [rosenbrock(params)]
    for steps in range(1, 60):
        values.append(LBFGS(steps, tol=1e-9)(rosenbrock, params).objective)
    assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(values))
    assert (values[-1] < 1e-10).all()


def test_lbfgs_solves_an_ill_conditioned_quadratic():
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 8, 8, generator=g, dtype=torch.float64)).Q
    spectrum = torch.logspace(0, 3, 8, dtype=torch.float64)
    A = basis @ torch.diag(spectrum) @ basis.mT
    b = torch.randn(3, 8, generator=g, dtype=torch.float64)
    solution = LBFGS(200, tol=1e-8)(
        lambda p: 0.5 * torch.einsum("ti,tij,tj->t", p["x"], A, p["x"]) - (b * p["x"]).sum(1),
        {"x": torch.zeros(3, 8, dtype=torch.float64)},
    )
    assert torch.allclose(solution.params["x"], torch.linalg.solve(A, b), atol=1e-6)
    assert (solution.steps < 100).all()  # gradient descent would need thousands


@pytest.mark.parametrize(
    "solver",
    [GradientDescent(200, 0.5), Adam(500, 0.1), NewtonCG(3), LBFGS(10)],
    ids=lambda s: type(s).__name__,
)
def test_parameters_without_axes_but_the_tasks(solver):
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    solution = solver(
        lambda p: 0.5 * (p["x"] - target) ** 2, {"x": torch.zeros(3, dtype=torch.float64)}
    )
    assert torch.allclose(solution.params["x"], target, atol=1e-3)


@pytest.mark.parametrize("solver", [NewtonCG(60, cg_iters=9, tol=1e-12), LBFGS(300, tol=1e-12)])
def test_the_line_search_goes_on_below_the_roundoff_of_the_objective(solver):
    # The gradient at a minimum of value 1e3 must not stop at sqrt(1e-16 * 1e3).
    solution = solver(lambda p: quadratic(p) + 1e3, start())
    assert (solution.grad_norm <= 1e-12).all()


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(4, 0.05, 0.5),
        GradientDescent(4, 0.05, tol=1.0),
        Adam(4, 0.05),
        AtRates(GradientDescent(4, 0.05), {"x": torch.tensor([1.0, 0.5]).double()[:, None]}),
        BacktrackingDescent(4, 1.0),
        BacktrackingDescent(4, 1.0, tol=1e9),
        NewtonCG(4),
        LBFGS(4),
    ],
    ids=lambda s: type(s).__name__,
)
def test_each_point_of_a_path_is_the_end_of_a_shorter_loop(solver):
    path = list(solver.path(quadratic, start()))
    assert len(path) == 5
    for steps, point in enumerate(path):
        if isinstance(solver, AtRates):
            shorter = replace(solver, method=replace(solver.method, steps=steps))
        else:
            shorter = replace(solver, steps=steps)
        reached = shorter(quadratic, start()).params["x"]
        torch.testing.assert_close(point.params["x"], reached, rtol=1e-12, atol=1e-12)
        assert not point.params["x"].requires_grad


def test_the_rate_of_a_path_is_in_units_of_the_edge():
    """Heavy ball moves the edge to 2 (1 + momentum) / lr; Adam has none."""
    for solver, rate in ((GradientDescent(2, 0.5, 0.25), 0.4), (Adam(2, 0.5), None)):
        for point in solver.path(quadratic, start()):
            assert (None if point.rate is None else point.rate.tolist()) == (rate and [rate] * 3)

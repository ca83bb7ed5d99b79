"""Gradient descent that cannot diverge, and the certificate's word on one that can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from zoo import Curvatures

from metalearn.errors import UsageError
from metalearn.inner import BacktrackingDescent, GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit
from metalearn.metagrad.certificate import Certificate

EIGENVALUES = torch.tensor([[1.0, 4.0, 15.0], [1.0, 8.0, 300.0]], dtype=torch.float64)


def quadratic(params: dict[str, Tensor]) -> Tensor:
    return 0.5 * (EIGENVALUES * params["x"].square()).sum(1)


START = {"x": torch.ones(2, 3, dtype=torch.float64)}


def test_each_task_converges_at_a_rate_beyond_its_edge() -> None:
    """lr = 0.1: the edges are 0.133 and 0.0067, so that a fixed rate diverges."""
    fixed = GradientDescent(60, 0.1)(quadratic, START)
    assert fixed.grad_norm[0] < 1e-1 and fixed.objective[1] > 1e30
    free = BacktrackingDescent(400, 0.1)(quadratic, START)
    assert (free.objective <= 1e-2 * quadratic(START)).all()


def test_it_is_gradient_descent_where_the_rate_is_stable() -> None:
    """Below (1 - decrease) 2 / L no step is refused, and the rate stays at lr."""
    lr = 1.5 / 300
    ours = BacktrackingDescent(25, lr)(quadratic, START)
    plain = GradientDescent(25, lr)(quadratic, START)
    torch.testing.assert_close(ours.params["x"], plain.params["x"], rtol=1e-12, atol=1e-14)
    assert ours.steps.tolist() == [25, 25]


def test_objective_never_rises() -> None:
    def hard(params: dict[str, Tensor]) -> Tensor:
        x = params["x"]
        return (50 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)

    start = {"x": torch.tensor([[-1.2, 1.0, 2.0], [3.0, -1.0, 0.5]], dtype=torch.float64)}
    before = hard(start)
    for steps in range(1, 30):
        now = BacktrackingDescent(steps, 1.0)(hard, start).objective
        assert (now <= before * (1 + 1e-14)).all()
        before = now


def test_tolerance_stops_each_task_on_its_own() -> None:
    found = BacktrackingDescent(2000, 0.1, tol=1e-3)(quadratic, START)
    assert (found.grad_norm <= 1e-3).all()
    assert found.steps[0] < found.steps[1]


def test_no_steps_return_the_start() -> None:
    found = BacktrackingDescent(0, 0.1)(quadratic, START)
    assert torch.equal(found.params["x"], START["x"]) and found.steps.tolist() == [0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1, "lr": 0.1},
        {"steps": 1, "lr": 0.0},
        {"steps": 1, "lr": 0.1, "growth": 0.5},
        {"steps": 1, "lr": 0.1, "decrease": 1.0},
        {"steps": 1, "lr": 0.1, "tol": -1.0},
    ],
)
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        BacktrackingDescent(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_inner_stability_is_above_one_just_where_the_loop_diverges(momentum: float) -> None:
    """Three iterations find a 3x3 system's largest eigenvalue, L + 1; the edge is
    2 (1 + momentum) / lr."""
    problem, meta = Curvatures(), torch.full((3,), 2.0, dtype=torch.float64)
    for lr in (0.004, 0.0066, 0.0068, 0.0099, 0.0101, 0.13, 0.14):
        inner = GradientDescent(5, lr, momentum)
        certificate = Implicit(inner, CG(3, rtol=1e-14))(problem, meta, EIGENVALUES).certificate
        assert certificate is not None and certificate.inner_stability is not None
        expected = lr * (EIGENVALUES[:, -1] + 1) / (2 * (1 + momentum))
        torch.testing.assert_close(certificate.inner_stability, expected, rtol=1e-6, atol=0)
        far = GradientDescent(4000, lr, momentum)(
            lambda p: problem.inner_objective(p, meta, EIGENVALUES), {"x": START["x"]}
        )
        diverged = ~(far.grad_norm < 1e3)
        assert torch.equal(diverged, certificate.inner_stability > 1)


def test_inner_stability_is_unknown_without_a_rate_or_a_solve() -> None:
    problem, meta = Curvatures(), torch.ones(3, dtype=torch.float64)
    steady = Implicit(BacktrackingDescent(5, 0.1), CG(3))(problem, meta, EIGENVALUES)
    assert steady.certificate is not None and steady.certificate.inner_stability is None
    assert Certificate(torch.zeros(2)).inner_stability is None


def test_damping_is_no_part_of_the_inner_problem() -> None:
    problem, meta = Curvatures(), torch.ones(3, dtype=torch.float64)
    inner = GradientDescent(5, 0.004)
    found = [
        Implicit(inner, CG(3, rtol=1e-14), damping)(problem, meta, EIGENVALUES).certificate
        for damping in (0.0, 7.0)
    ]
    assert found[0] is not None and found[1] is not None
    assert found[0].inner_stability is not None and found[1].inner_stability is not None
    torch.testing.assert_close(found[0].inner_stability, found[1].inner_stability)


def test_a_refused_step_halves_the_rate_on_the_path() -> None:
    """Task 1's steps are refused above 1.8 / 300, about five halvings below lr = 0.1."""
    path = list(BacktrackingDescent(7, 0.1).path(quadratic, START))
    rates = torch.stack([point.rate for point in path if point.rate is not None])
    assert rates[:, 1].tolist()[:6] == [0.1 / 2**halvings for halvings in range(6)]
    assert all(torch.equal(point.params["x"][1], START["x"][1]) for point in path[:6])
    assert not torch.equal(path[6].params["x"][1], START["x"][1])

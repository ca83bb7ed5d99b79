"""The certificate: unbiased estimates, a bound that holds, and what is only indicated."""

from __future__ import annotations

import math

import pytest
import torch
from network_problem import descent

from metalearn.bilevel import F2SA, SOBA, AmIGO, Certify, TruncatedUnrolling
from metalearn.bilevel.certificate import Square
from metalearn.errors import UsageError
from metalearn.metagrad.smoothness import Smoothness
from metalearn.studies.rates.measure import Sizes, descent_on
from metalearn.studies.rates.problems import Quadratic
from metalearn.tree import leaves_of


def constants(problem: Quadratic, kind: str = "bound") -> Smoothness:
    (a, c, _), (b, _) = problem._inner, problem._outer
    return Smoothness(
        strong_convexity=problem.least,
        mixed_norm=float(torch.linalg.matrix_norm(a.T @ c / len(a), 2)),
        outer_lipschitz=float(torch.linalg.matrix_norm(b.T @ b / len(b), 2)),
        kind=kind,
    )


def distance(run, problem) -> float:
    found = run.hypergradient(problem.inner, problem.outer)["m"]
    return float((found - problem.exact(problem.begin())["m"]).norm())


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_bound_holds_and_is_of_the_order_of_the_error(steps):
    problem = Quadratic()
    run = descent_on(problem, AmIGO(1, 1, 0.5), lr=0.5)
    for _ in range(steps):
        run.step()
    found = Certify("all", constants(problem))(run)
    assert found.exact and found.error_kind == "bounded"
    assert distance(run, problem) <= found.error <= 100 * distance(run, problem)


def test_damping_is_part_of_the_bound():
    problem = Quadratic()
    run = descent_on(problem, AmIGO(20, 50, 0.5, damping=0.3), lr=0.9)
    for _ in range(5):
        run.step()
    found = Certify("all", constants(problem))(run)
    assert found.residual.norm < 1e-6  # of the damped system
    assert distance(run, problem) <= found.error


def test_exact_figures_are_those_of_the_closed_form():
    problem = Quadratic()
    run = descent_on(problem, SOBA(0.5), lr=0.5)
    for _ in range(3):
        run.step()
    found = Certify("all")(run)
    (a, c, t), (b, s) = problem._inner, problem._outer
    w, x = run.params["w"][0].detach(), run.memory["x"][0][0]
    gradient = a.T @ (a @ w - c @ run.meta["m"][0].detach() - t) / len(t)
    residual = b.T @ (b @ w - s) / len(s) - a.T @ a @ x / len(a)
    assert found.inner_gradient.norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert found.residual.norm == pytest.approx(float(residual.norm()), rel=1e-12)
    curvature = float(x @ (a.T @ a / len(a)) @ x / (x @ x))
    assert found.curvature == pytest.approx(curvature, rel=1e-12)
    assert problem.least <= found.curvature <= problem.largest


def test_estimates_are_unbiased():
    problem = Quadratic(examples=64)
    run = descent_on(problem, SOBA(0.3), 0.3, Sizes(batch=4))
    for _ in range(20):
        run.step()
    exact = Certify("all")(run)
    for count in (2, 4):
        found = [Certify(count)(run) for _ in range(150)]
        for name in ("inner_gradient", "residual", "right_side", "hypergradient"):
            values = torch.tensor([getattr(one, name).value for one in found])
            error = float(values.std()) / math.sqrt(len(values))
            true = getattr(exact, name).value
            # 4.5 standard errors: one test in 100,000 fails by chance, and the draws are seeded.
            assert abs(float(values.mean()) - true) < 4.5 * error, name
            # The plug-in estimate, which the two batches replace, is far above.
            noise = torch.tensor([getattr(one, name).noise for one in found]).mean()
            assert float(noise) > 4.5 * error or name == "right_side"


def test_the_jackknife_gives_the_spread_of_the_estimate():
    torch.manual_seed(0)
    mean = torch.tensor([1.0, 2.0])
    drawn = [Square.of([[mean + torch.randn(2)] for _ in range(8)]) for _ in range(500)]
    values = torch.tensor([one.value for one in drawn])
    errors = torch.tensor([one.standard_error for one in drawn])
    assert float(values.mean()) == pytest.approx(5.0, abs=0.3)
    # 15 %: the jackknife of 8 batches, over 500 of them.
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)
    assert float(torch.tensor([one.noise for one in drawn]).mean()) == pytest.approx(2.0, rel=0.1)


def test_names_say_what_a_figure_is_worth():
    problem = Quadratic()
    run = descent_on(problem, SOBA(0.3), 0.3, Sizes(batch=4))
    run.step()
    estimated = Certify(3, constants(problem))(run).row()
    assert {"estimated_residual_square", "estimated_residual_square_error"} <= estimated.keys()
    assert {"indicated_error", "indicated_curvature"} <= estimated.keys()
    assert not any(name.startswith("bounded") for name in estimated)
    exact = Certify("all", constants(problem))(run).row()
    assert {"measured_residual_square", "bounded_error"} <= exact.keys()
    measured_constants = Certify("all", constants(problem, "estimate"))(run).row()
    assert "indicated_error" in measured_constants


def test_a_certificate_moves_nothing():
    torch.manual_seed(0)
    runs = [descent(SOBA(0.05)) for _ in range(2)]
    for options in (2, "all"):
        for i, run in enumerate(runs):
            torch.manual_seed(5)
            run.step()
            if i:
                Certify(options)(run)
            run.step()
        assert all(map(torch.equal, *(leaves_of(run.params) for run in runs)))


def test_methods_without_x_and_with_one_of_their_own():
    run = descent(TruncatedUnrolling())
    run.step()
    assert Certify()(run).row().keys() == {
        "estimated_inner_gradient_square",
        "estimated_inner_gradient_noise",
    }
    problem = Quadratic()
    penalty = descent_on(problem, F2SA(200, 1000.0, 0.0), lr=0.9)
    penalty.step()
    # x = lambda (z - y) solves the system up to O(1 / lambda).
    assert Certify("all")(penalty).relative_residual < 1e-2


def test_bad_options_are_one_sentence():
    with pytest.raises(UsageError, match=r"Certify\(batches=1\): expected a whole number from 2"):
        Certify(1)

"""The study of the meta-gradient's error at a tiny size: what its rows mean, not their digits."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.inner import NewtonCG
from metalearn.linear_solve import Dense
from metalearn.metagrad import Implicit
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.gradient.curves import reach, settings, steps_a_digit
from metalearn.studies.gradient.problems import PROBLEMS, Quadratic
from metalearn.studies.gradient.study import LOOPS, METHODS, GradientStudy

OPTIONS = dict(
    seeds=[0, 1],
    size=8,
    conditions=[5, 20],
    reach=1e-10,
    points=6,
    cg_iters=[1, 3, 12],
    bias_condition=50,
    bias_steps=[2, 8],
    bias_cg_iters=3,
)
CPU = torch.device("cpu")
TINY = GradientStudy(**OPTIONS)


@pytest.fixture(scope="module")
def rows():
    return pd.DataFrame(
        [{**cell, **row} for cell in TINY.cells() for row in TINY.measure(cell, CPU)]
    )


@pytest.fixture(scope="module")
def accuracy(rows):
    return rows[rows.part == "accuracy"]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_exact_gradient_is_what_autograd_finds_and_the_condition_number_as_asked(name):
    problem = PROBLEMS[name](50.0, 8, [0, 1, 2])
    newton = NewtonCG(100, cg_iters=20, tol=1e-12, halvings=40)
    result = Implicit(newton, Dense())(problem, problem.meta, problem.task)
    # Both are exact up to rounding times the condition number.
    assert torch.allclose(3 * result.grads["theta"], problem.exact, rtol=1e-9, atol=1e-12)
    low, high = result.certificate.eigenvalue_bounds
    assert torch.allclose(low, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(high, 50 * low)
    assert problem.curvature[1] >= 50 * (1 - 1e-9)


def test_the_unrolled_error_is_that_of_the_closed_form(accuracy):
    """d phi_K / d theta = (I - aA)^K + a lambda sum_j (I - aA)^j, by dense matrices."""
    problem = Quadratic(20, 8, [0, 1])
    theta, identity = problem.meta["theta"], torch.eye(8, dtype=torch.float64)
    hessian = problem.hessian + problem.prox * identity
    shrink = identity - 2 / 21 * hessian
    part = accuracy[
        (accuracy.problem == "quadratic")
        & (accuracy.condition == 20)
        & (accuracy.inner == "gradient descent")
        & (accuracy.method == "unrolled")
    ]
    assert len(part) == 6
    for _, row in part.iterrows():
        power = torch.linalg.matrix_power(shrink, int(row.steps))
        jacobian = power + problem.prox * torch.linalg.solve(hessian, identity - power)
        pull = (problem.hessian @ problem.u[:, :, None])[:, :, 0] + problem.prox * theta
        end = torch.linalg.solve(hessian, pull)
        end = end + (power @ (theta - end)[:, :, None])[:, :, 0]
        found = (jacobian @ (end - problem.c)[:, :, None])[:, :, 0]
        errors = (found - problem.exact).norm(dim=1) / problem.exact.norm(dim=1)
        assert row.error_low == pytest.approx(float(errors.min()), rel=1e-3)  # errors of 1e-10
        assert row.error_high == pytest.approx(float(errors.max()), rel=1e-3)
        assert row.error_low <= row.error <= row.error_high


def test_evaluations_are_steps_and_products(accuracy):
    unrolled, truncated, implicit = (
        accuracy[accuracy.method == m] for m in ("unrolled", "truncated", "implicit")
    )
    assert (accuracy.gradients == accuracy.steps + 1).all()
    assert (accuracy.evaluations == accuracy.gradients + accuracy.products).all()
    assert (unrolled.products == unrolled.steps).all()
    assert (truncated.products == (truncated.steps / 4).map(math.ceil)).all()
    assert (implicit.products <= implicit.cg_iters + 2).all()
    few = implicit[implicit.cg_iters <= 3]
    # The mixed derivatives, and a residual that is made anew where rounding may have touched it.
    assert few.products.between(few.cg_iters + 1, few.cg_iters + 2).all()


def test_errors_fall_with_steps_and_with_iterations(accuracy):
    for setting in settings(accuracy):
        for method in ("unrolled", "truncated"):
            (curve,) = setting.curves(method)
            late = curve.error[curve.error < 0.1]
            assert late.is_monotonic_decreasing
        # Where the inner loop has converged, the solve alone decides.
        last = [curve.iloc[-1] for curve in setting.curves("implicit")]
        assert [row.cg_iters for row in last] == [1, 3, 12]
        assert last[0].error > 2 * last[1].error > 4 * last[2].error
        assert last[2].error < 1e-7


def test_steps_gain_digits_at_the_rate_of_theory(accuracy):
    """A figure for the slope: the polynomial factor of the heavy ball is within the tolerance."""
    for setting in settings(accuracy):
        for method in ("unrolled", "implicit"):
            theory = -1 / math.log10(setting.loop_rate)
            assert steps_a_digit(setting.curves(method)[-1]) == pytest.approx(theory, rel=0.25)


def test_cg_stays_under_its_bound_and_beats_as_many_last_steps(rows):
    part = rows[rows.part == "products"]
    cg, steps = (part[part.method == m].reset_index() for m in ("implicit", "truncated"))
    assert (cg.error <= cg.theory + 1e-9).all()  # where the bound is 0, rounding is not
    assert (cg.error < steps.error).all()


def test_a_short_loop_biases_each_towards_its_own_problem(rows):
    part = rows[rows.part == "bias"]
    assert set(part.method) == set(METHODS)
    unrolled = part[part.method == "unrolled"]
    implicit = part[(part.method == "implicit") & part.cg_iters.isna()]
    assert (unrolled.error_of_steps < 1e-12).all()  # two implementations of the same derivative
    assert (unrolled.error > 0.1).all()
    for way in (unrolled, implicit):
        for _, curve in way.groupby("problem"):
            assert curve.error.is_monotonic_decreasing
    assert (implicit.error_of_steps > 0.1).all() and (implicit.error > 0.01).all()


def test_reach_interpolates_between_two_rows():
    curve = pd.DataFrame(
        {"steps": [1, 2, 4], "evaluations": [10, 20, 40], "error": [1e-1, 1e-2, 1e-6]}
    ).assign(cg_iters=math.nan)
    assert reach(curve, 0.5, "evaluations").cost == 10
    assert reach(curve, 1e-4, "evaluations").cost == pytest.approx(30)
    assert reach(curve, 1e-4, "evaluations").steps == pytest.approx(3)
    assert reach(curve, 1e-7, "evaluations").cost == math.inf


def test_the_longest_loop_is_what_reach_asks_for():
    plain, heavy = LOOPS["gradient descent"], LOOPS["heavy ball"]
    steps = plain.longest(1.0, 100.0, 1e-8)
    assert (99 / 101) ** steps <= 1e-8 < (99 / 101) ** (steps - 1)
    assert heavy.longest(1.0, 100.0, 1e-8) < steps / 4


def test_report_is_made_from_rows_alone(rows):
    tables = TINY.tables(rows)
    assert len(tables) == 5
    assert max(map(len, tables)) <= 110  # they name W&B's artifacts, which may have 128 characters
    names = {f"{p}_{inner.replace(' ', '_')}" for p in PROBLEMS for inner in LOOPS}
    assert set(TINY.figures(rows)) == names | {"inner_steps", "bias"}
    found = render_findings(TINY, rows)
    assert len(found) == 8 and not any("nan" in f or "inf" in f for f in found)


def test_tables_give_the_costs_of_the_curves_and_their_ratios(rows, accuracy):
    costs, equal, *_ = TINY.tables(rows).values()
    (first, *_), shown = settings(accuracy), costs.texts().iloc[0]
    assert shown[["problem", "inner loop", "condition", "method"]].tolist() == [
        "quadratic",
        "gradient descent",
        "5",
        "unrolled",
    ]
    end = first.reach("unrolled", 1e-8)
    assert (shown["to 1e-08"], shown["K, C"]) == (f"{end.cost:.0f}", f"{end.steps:.0f}")
    implicit = first.reach("implicit", 1e-8)
    cell = f"{implicit.steps:.0f}, {implicit.cg_iters:.0f}"
    assert equal.texts()["K, C"][0] == costs.texts()["K, C"][2] == cell
    (descent, *_) = TINY.facts(rows)["at_equal_cost"].values()
    assert [e.setting.condition for e in descent] == [5, 20, 5, 20]
    assert float(equal.texts()["times larger"][0].replace(",", "")) == pytest.approx(
        descent[0].ratio, rel=0.05
    )


def test_report_tells_that_an_error_is_not_reached(rows):
    short = rows[(rows.part != "accuracy") | (rows.error > 1e-8)]
    costs, equal, *_ = (table.texts() for table in TINY.tables(short).values())
    assert (costs[["to 1e-08", "K, C", "seconds"]] == "-").all(axis=None) and equal.empty
    facts = TINY.facts(short)
    assert not facts["at_equal_time"] and not facts["growths"] and not facts["digits"]
    found = render_findings(TINY, short)
    assert sum("does not reach an error of 1e-08" in finding for finding in found) == 2
    assert len(found) == 4 and not any("nan" in f or "inf" in f for f in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"conditions": [1]},
        {"bias_condition": 0.5},
        {"cg_iters": [0]},
        {"cg_iters": [2, 2]},
        {"seeds": []},
        {"reach": 1.0},
        {"points": 1},
    ],
    ids=str,
)
def test_unfit_options(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        GradientStudy(**{**OPTIONS, **wrong})

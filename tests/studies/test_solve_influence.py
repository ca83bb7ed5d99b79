"""The influence of examples: its derivative, and its agreement with retraining."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.inner import NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit
from metalearn.problems.hyper_parameters import ExampleInfluence
from metalearn.problems.training_task import TrainingTask
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.influence.report import agreements
from metalearn.studies.influence.study import InfluenceStudy
from metalearn.tasks.image_splits import Labelled

NEWTON = NewtonCG(50, cg_iters=50, tol=1e-11, halvings=40)
TINY = InfluenceStudy(
    models=["logistic", "network"],
    seeds=[0],
    examples=60,
    validation=60,
    left_out=8,
    decay=10.0,
    hidden=4,
    damping=0.0,
    iterations=200,
)


def small_problem():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    problem = ExampleInfluence(nn.Linear(4, 3).double(), Labelled(x, y), decay=0.1)
    zeros = {"weight": torch.zeros(1, 3, 4).double(), "bias": torch.zeros(1, 3).double()}
    task = TrainingTask(zeros, torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3)
    return problem, task


def loss_at(problem, task, weights):
    meta = {"weights": weights}
    params = FirstOrder(NEWTON).adapt(problem, meta, task).params
    return problem.outer_objective(params, meta, task)[0].item()


def test_the_gradient_in_the_weights_is_that_of_retraining():
    problem, task = small_problem()
    meta = problem.begin()
    found = Implicit(NEWTON, CG(200, rtol=1e-12))(problem, meta, task).grads["weights"]
    for i in (0, 7, 19):
        move = torch.zeros(20, dtype=torch.float64)
        move[i] = 1e-4
        ends = [loss_at(problem, task, meta["weights"] + sign * move) for sign in (1, -1)]
        # Truncation is of the order 1e-8, the solves' error 1e-11 / 1e-4.
        assert found[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_influence_on_a_regression_is_that_of_its_closed_form(outputs):
    g = torch.Generator().manual_seed(0)
    x, y, held_x, held_y = (
        torch.randn(n, k, generator=g, dtype=torch.float64)
        for n, k in ((20, 4), (20, outputs), (9, 4), (9, outputs))
    )
    decay = 0.1
    model = nn.Linear(4, outputs, bias=False).double()
    problem = ExampleInfluence(model, Labelled(x, y), decay=decay)
    task = TrainingTask({"weight": torch.zeros(1, outputs, 4).double()}, held_x, held_y)
    found = Implicit(NEWTON, CG(200, rtol=1e-12))(problem, problem.begin(), task).grads["weights"]

    def held_out_loss(weights):  # the mean over the outputs divides the loss, and not the decay
        scaled = weights[:, None] * x
        w = torch.linalg.solve(x.T @ scaled + 20 * outputs * decay / 2 * torch.eye(4), scaled.T @ y)
        return (held_x @ w - held_y).square().mean()

    expected = torch.func.grad(held_out_loss)(torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_left_out_example_has_no_effect():
    problem, task = small_problem()
    with_it = loss_at(problem, task, problem.without(3)["weights"])
    keep = torch.arange(20) != 3
    train = Labelled(problem.train.x[keep], problem.train.y[keep])
    # The mean over 19 instead of 20 examples scales the loss, and the decay must scale alike.
    without_it = ExampleInfluence(nn.Linear(4, 3).double(), train, decay=0.1 * 20 / 19)
    alone = loss_at(without_it, task, torch.ones(19, dtype=torch.float64))
    assert with_it == pytest.approx(alone, abs=1e-10)


def test_a_strong_decay_makes_influence_equal_retraining():
    rows = pd.DataFrame(
        {**cell, **row} for cell in TINY.cells() for row in TINY.measure(cell, torch.device("cpu"))
    )
    found = agreements(rows).set_index(["model", "curvature"])
    # The decay is above the curvature of the loss: the effect is nearly linear in the weight.
    assert found.loc[("logistic", "hessian"), "error"] < 0.1
    assert found.loc[("logistic", "hessian"), "rank"] > 0.9
    # Of a linear model the Hessian is its Gauss-Newton matrix.
    pair = [found.loc[("logistic", c), "error"] for c in ("hessian", "gauss_newton")]
    assert pair[0] == pytest.approx(pair[1], rel=1e-5)
    assert set(TINY.figures(rows)) == {"influence"}
    assert any("8 examples left out" in finding for finding in render_findings(TINY, rows))


def test_more_left_out_than_there_are_is_refused():
    with pytest.raises(UsageError, match="left_out=61: expected at most examples=60"):
        replace(TINY, left_out=61)

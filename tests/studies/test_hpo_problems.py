"""Problems of hyper-parameters and their data: gradients against references that share no code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from zoo import finite_differences, relative_difference, solution_differences

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.nn import MLP
from metalearn.problems.hyper_parameters import ExampleWeights, FeaturePenalties, ParameterDecays
from metalearn.problems.training_task import TrainingTask, fresh
from metalearn.studies.hpo.data import corrupted, thirds
from metalearn.studies.hpo.exact import (
    claiming_exactness,
    relative_error,
    ridge_hypergradient,
    slope_error,
    solved,
)
from metalearn.studies.hpo.measure import penalties
from metalearn.tasks.image_splits import Labelled

CPU = torch.device("cpu")
SHORT = GradientDescent(7, 0.2, momentum=0.9)
NEWTON = NewtonCG(60, cg_iters=60, tol=1e-11)


def real(name, per_feature=True, train=None):
    """A problem of scikit-learn's data at penalties around 0.2, and a task at its solution."""
    case = penalties(name, per_feature, 0.2, 0.5, seed=0, device=CPU)
    problem, meta = case.problem, case.meta
    if train is not None:
        problem.train = Labelled(problem.train.x[:train], problem.train.y[:train])
    if per_feature:
        g = torch.Generator().manual_seed(1)
        meta["own"] = torch.randn(len(meta["own"]), generator=g, dtype=torch.float64)
    return problem, meta, solved(problem, meta, case.task)


@pytest.mark.parametrize("per_feature", [False, True])
def test_every_exact_hyper_gradient_of_ridge_is_the_closed_form(per_feature):
    problem, meta, task = real("diabetes", per_feature)
    exact = ridge_hypergradient(problem, meta, task)
    for name, metagrad in claiming_exactness(problem, meta).items():
        assert relative_error(metagrad(problem, meta, task).grads, exact) < 1e-8, name


def test_the_closed_form_is_the_slope_of_the_closed_solution():
    problem, meta, task = real("diabetes")
    one = torch.ones(len(problem.train), 1, dtype=torch.float64)
    x, z = torch.cat([problem.train.x, one], 1), torch.cat([task.x, one[: len(task.x)]], 1)

    def value(common):
        penalty = torch.cat([(common + 0.5 * meta["own"]).exp(), torch.zeros(1).double()]) + 1e-6
        w = torch.linalg.solve(
            2 / len(x) * x.T @ x + penalty.diag(), 2 / len(x) * x.T @ problem.train.y
        )
        return float((z @ w - task.y).square().mean())

    step = 1e-4  # of central differences: 1e-8 of truncation, 1e-16 / 1e-4 of rounding
    slope = (value(meta["common"] + step) - value(meta["common"] - step)) / (2 * step)
    found = float(ridge_hypergradient(problem, meta, task)["common"])
    assert found == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "train"),
    [("breast_cancer", 60), pytest.param("digits", 120, marks=pytest.mark.slow)],
)
def test_every_exact_hyper_gradient_of_logistic_regression_is_that_of_differences(name, train):
    problem, meta, task = real(name, train=train)
    found = {
        way: metagrad(problem, meta, task).grads
        for way, metagrad in claiming_exactness(problem, meta).items()
    }
    errors = slope_error(problem, meta, list(found.values()), task, directions=2, seed=0)
    assert max(errors) < 1e-5, dict(zip(found, errors, strict=True))


def test_differences_see_a_wrong_gradient():
    problem, meta, task = real("breast_cancer", per_feature=False, train=60)
    grads = Implicit(NEWTON, CG(2000, rtol=1e-12))(problem, meta, task).grads
    wrong = {name: 1.01 * g for name, g in grads.items()}
    right, other = slope_error(problem, meta, [grads, wrong], task, directions=2, seed=1)
    assert right < 1e-5
    assert other == pytest.approx(0.01, rel=1e-2)


def small(kind):
    """Six training examples of four features and three classes, two starts."""
    torch.manual_seed(0)
    x, y = torch.randn(15, 4, dtype=torch.float64), torch.arange(15) % 3
    train = Labelled(x[:6], y[:6])
    if kind == "weights":
        problem = ExampleWeights(nn.Linear(4, 3), train, 0.1)
        params = fresh(lambda: nn.Linear(4, 3).double(), 2, CPU)
        return problem, {"logits": torch.randn(6).double()}, TrainingTask(params, x[6:], y[6:])
    params = fresh(lambda: MLP([4, 2, 3], nn.Tanh).double(), 2, CPU)
    meta = {name: torch.randn_like(p[0]) - 1 for name, p in params.items()}
    return ParameterDecays(MLP([4, 2, 3], nn.Tanh), train), meta, TrainingTask(params, x[6:], y[6:])


@pytest.mark.parametrize("kind", ["weights", "decays"])
@pytest.mark.parametrize(
    "metagrad",
    [
        Unrolled(SHORT, "batched"),
        Implicit(NEWTON, CG(60, rtol=1e-12)),
        Implicit(NEWTON, Neumann(5000, rtol=1e-12)),
    ],
    ids=["unrolled", "cg", "neumann"],
)
def test_gradients_in_weights_and_decays_are_those_of_finite_differences(kind, metagrad):
    problem, meta, task = small(kind)
    if isinstance(metagrad, Implicit):  # all solves end in the minimum that it found
        near = metagrad.adapt(problem, meta, task).params
        expected = solution_differences(problem, meta, task, near)
    else:
        expected = finite_differences(problem, meta, task, metagrad.inner)
    # Fourth-order differences at 1e-3: 1e-12 of truncation and 1e-11 / 1e-3 of the inner solve.
    assert relative_difference(metagrad(problem, meta, task).grads, expected) < 1e-6


def test_an_example_of_no_weight_has_no_influence():
    problem, _, task = small("weights")
    without = ExampleWeights(
        nn.Linear(4, 3), Labelled(problem.train.x[1:], problem.train.y[1:]), 0.1 * 6 / 5
    )
    meta = {"logits": torch.tensor([-1000.0, *[0.3] * 5], dtype=torch.float64)}
    some = {"logits": meta["logits"][1:]}
    kept = FirstOrder(NEWTON).adapt(problem, meta, task).params
    left = FirstOrder(NEWTON).adapt(without, some, task).params
    # A mean over six, so that the decay is heavier by 6 / 5 beside a mean over five.
    assert relative_difference(kept, left) < 1e-8


def test_the_bound_on_the_curvature_holds():
    for name, train in (("diabetes", None), ("breast_cancer", None), ("digits", 60)):
        problem, meta, task = real(name, train=train)
        flat = torch.cat([p.flatten() for p in task.params.values()])
        shapes = [p.shape for p in task.params.values()]

        def objective(z, problem=problem, meta=meta, task=task, shapes=shapes):
            parts = z.split([shape.numel() for shape in shapes])
            params = {
                name: part.view(shape)
                for name, part, shape in zip(task.params, parts, shapes, strict=True)
            }
            return problem.inner_objective(params, meta, task).sum()

        hessian = torch.autograd.functional.hessian(objective, flat, vectorize=True)
        largest = float(torch.linalg.eigvalsh(hessian)[-1])
        assert largest <= problem.curvature(meta) < 20 * largest


def test_the_prior_is_in_the_objective_and_not_in_the_loss():
    data = thirds("diabetes", 0)
    problem = FeaturePenalties(data.train, 1, spread=2.0, prior=0.1)
    meta = problem.begin(math.log(3.0), per_feature=True)
    meta["own"] += 1.0
    task = TrainingTask(problem.zeros(), data.validation.x, data.validation.y)
    assert torch.allclose(problem.log_penalties(meta).exp(), torch.tensor(3 * math.e**2).double())
    objective, metrics = problem.outer_objective(task.params, meta, task)
    # Params of 0 predict 0, whose squared error is the targets' square; ten features, each 1 away.
    assert float(metrics["loss"]) == pytest.approx(float(data.validation.y.square().mean()))
    assert float(objective - metrics["loss"]) == pytest.approx(0.1 * 10 / 2)


@pytest.mark.parametrize("options", [{"spread": 0.0}, {"prior": -1.0}, {"spread": math.nan}])
def test_unfit_options_are_refused(options):
    with pytest.raises(UsageError, match="expected a number above 0"):
        FeaturePenalties(thirds("diabetes", 0).train, 1, **options)


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "digits"])
def test_thirds_are_standardised_by_the_training_split_and_drawn_by_the_seed(name):
    data, again, other = thirds(name, 0), thirds(name, 0), thirds(name, 1)
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert max(sizes) - min(sizes) <= 2
    assert torch.equal(data.train.x, again.train.x) and not torch.equal(data.train.x, other.train.x)
    rows = torch.cat([part.x for part in (data.train, data.validation, data.test)])
    assert len(rows.unique(dim=0)) == sum(sizes)  # no example is in two splits
    means = data.train.x.mean() if name == "digits" else data.train.x.mean(0)
    assert means.abs().max() < 1e-6
    assert data.test.x.mean(0).abs().max() > 1e-3


def test_as_many_labels_as_asked_for_are_wrong():
    labels = torch.arange(1000) % 10
    changed, wrong = corrupted(labels, 0.5, 10, seed=0)
    assert int(wrong.sum()) == 500
    assert torch.equal(changed != labels, wrong)
    shifts = (changed - labels)[wrong] % 10
    assert torch.bincount(shifts, minlength=10)[1:].min() > 30  # of 56 on average

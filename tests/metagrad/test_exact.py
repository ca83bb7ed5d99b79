from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from zoo import few_shot, problems, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, InnerSolver, NewtonCG
from metalearn.linear_solve import CG, Dense
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.metagrad.exact import NotConverged, exact_implicit, meta_gradient_error
from metalearn.tree import leaves_of, like_tree


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_the_exact_gradient_is_the_dense_one_of_the_converged_problem(name):
    problem, meta, task = problems()[name]
    exact = Implicit(NewtonCG(60, cg_iters=40, tol=1e-11), Dense())(problem, meta, task).grads
    found = exact_implicit(problem, meta, task, problem.init(meta, task))
    assert relative_difference(found, exact) < 1e-6


def test_the_error_of_an_exact_gradient_is_rounding_and_of_a_rough_one_is_not():
    problem, meta, task = problems()["classification"]
    good = Implicit(NewtonCG(60, cg_iters=40, tol=1e-11), CG(200, rtol=1e-12))
    rough = replace(good, inner=GradientDescent(2, 0.1))
    assert meta_gradient_error(good, problem, meta, task) < 1e-6
    assert meta_gradient_error(rough, problem, meta, task) > 1e-2
    assert meta_gradient_error(Unrolled(GradientDescent(3, 0.1)), problem, meta, task) < 1e-10


@dataclass(frozen=True)
class Halved(MetaGradient):
    """Half the implicit gradient: a meta-gradient that the package does not know."""

    inner: InnerSolver
    estimates = "implicit"

    def differentiate(self, problem, meta, task):
        result = Implicit(self.inner, CG(200, rtol=1e-12)).differentiate(problem, meta, task)
        halves = [g / 2 for g in leaves_of(result.grads)]
        return replace(result, grads=like_tree(result.grads, halves))


def test_meta_gradient_error_takes_a_new_meta_gradient_that_says_what_it_estimates():
    problem, meta, task = problems()["quadratic"]
    halved = Halved(NewtonCG(60, cg_iters=40, tol=1e-11))
    assert meta_gradient_error(halved, problem, meta, task) == pytest.approx(0.5, abs=1e-6)


def test_what_has_no_exact_gradient_is_said():
    problem, meta, task = problems()["quadratic"]
    with pytest.raises(ValueError, match="FirstOrder"):
        meta_gradient_error(FirstOrder(GradientDescent(1, 0.1)), problem, meta, task)


def test_a_problem_without_a_smooth_minimum_is_refused():
    class Kink:
        def init(self, meta, task):
            return {"phi": meta["theta"].expand(1, -1)}

        def inner_objective(self, params, meta, task):
            away = params["phi"] - meta["theta"]
            return params["phi"].abs().sum(1) + 0.5 * (away * away).sum(1)

        def outer_objective(self, params, meta, task):
            return (params["phi"] - 1).square().sum(1), {}

    meta = {"theta": torch.tensor([0.3], dtype=torch.float64)}
    with pytest.raises(NotConverged, match="gradient's norm"):
        exact_implicit(Kink(), meta, torch.zeros(1), Kink().init(meta, None))


def test_a_module_in_the_place_of_meta_is_refused() -> None:
    problem, _, task = few_shot(regression=False, prox=1.0)
    with pytest.raises(UsageError, match="meta=Linear: expected tensors by name, not a module"):
        FirstOrder(GradientDescent(1, 0.1))(problem, torch.nn.Linear(2, 2), task)

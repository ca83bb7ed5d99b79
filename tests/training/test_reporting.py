"""The words of a run about its inner loop's stability."""

from __future__ import annotations

import torch
from zoo import Curvatures

from metalearn.inner import BacktrackingDescent, GradientDescent, InnerSolver
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, MetaGradientResult
from metalearn.training.messages import figures, stability_warning

CURVATURES = torch.tensor([[1.0, 9.0], [1.0, 30.0], [1.0, 40.0]], dtype=torch.float64)


def result(inner: InnerSolver) -> MetaGradientResult:
    meta = torch.full((2,), 2.0, dtype=torch.float64)
    return Implicit(inner, CG(2, rtol=1e-14))(Curvatures(), meta, CURVATURES)


def test_a_row_says_how_far_the_inner_loop_is_from_its_edge() -> None:
    """At 0.1 the edge is 20: the curvatures 10, 31 and 41 are 0.5, 1.55 and 2.05 of it."""
    row = figures(result(GradientDescent(2, 0.1)))
    assert abs(row["inner_stability"] - (0.5 + 1.55 + 2.05) / 3) < 1e-6
    assert abs(row["inner_unstable_share"] - 2 / 3) < 1e-12
    assert abs(row["ritz_high_mean"] - (10 + 31 + 41) / 3) < 1e-6


def test_most_tasks_over_the_edge_are_a_warning_that_names_the_cure() -> None:
    said = stability_warning(result(GradientDescent(2, 0.1)))
    assert said is not None and "2 of 3 tasks" in said
    assert "metagrad=imaml_stable" in said and "metagrad.inner.lr" in said


def test_a_loop_without_steps_has_no_edge() -> None:
    still = result(GradientDescent(0, 0.1))
    assert stability_warning(still) is None and "inner_stability" not in figures(still)


def test_a_stable_loop_and_a_solver_without_a_rate_give_no_warning() -> None:
    assert stability_warning(result(GradientDescent(2, 0.04))) is None
    steady = result(BacktrackingDescent(2, 0.1))
    assert stability_warning(steady) is None
    assert "inner_stability" not in figures(steady)

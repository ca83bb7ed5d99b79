"""Hyper-parameters by implicit gradients, beside unrolled gradients and grid search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import MaxLen, MinLen
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    NonNegative,
    Positive,
    Seed,
    Some,
    one_of,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.inner import LBFGS, GradientDescent
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.problem import Meta
from metalearn.problems.hyper_parameters import FeaturePenalties
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads, named_metagrad
from metalearn.studies.frame.table import Table
from metalearn.studies.hpo import report as hpo_report
from metalearn.studies.hpo.exact import (
    claiming_exactness,
    relative_error,
    ridge_hypergradient,
    slope_error,
    solved,
)
from metalearn.studies.hpo.measure import (
    Case,
    decays,
    grid_search,
    path,
    peak_of_one,
    penalties,
    references,
    weights,
)
from metalearn.studies.hpo.search import Method, WarmStartedSolver, quasi_newton
from metalearn.training.optimiser import descend

PENALTIES = {
    "ridge": ("diabetes", False),
    "ridge_features": ("diabetes", True),
    "cancer_features": ("breast_cancer", True),
    "digits_features": ("digits", True),
}
"""The dataset of a search for penalties; True gives each feature its own penalty."""
NETWORKS = ("decays", "weights", "overfit")
EXACT_AT = 0.2
"""The penalty at which exactness is measured, where the slowest solvers still take seconds."""
METHODS = tuple(hpo_report.METHODS)
"""The methods of a search: cg_cold has no warm starts, cg_tight has one tolerance throughout."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class HPOStudy:
    """The comparison of searches for hyper-parameters.

    Args:
        problems: names in `PENALTIES` and `NETWORKS`.
        methods: some of `METHODS`.
        splits: the seeds of the splits in three for penalties.
        grid, bounds: points and ends of the grid search for one penalty.
        start, spread: the first penalty, and the `spread` of `FeaturePenalties`.
        hypergradients: hyper-gradients of a search for penalties.
        iterations: iterations of a hyper-gradient's linear solve.
        unrolled_steps: inner steps of an unrolled hyper-gradient.
        tols: inner gradient norms, the first and the last of the schedule.
        directions: the number of directions of finite differences.
        seeds: the seeds of networks and of their data.
        hidden: hidden units of a network.
        images, validation: training images of "weights"; validation images, and of "decays" the
            training images too.
        few: training images, and validation images, of "overfit".
        network_hypergradients, lr: hyper-gradients and rate of the searches in `NETWORKS`.
        inner_steps, damping: options of a network's implicit gradients.
        metagrads: further meta-gradients (`named_metagrad`), with the study's inner solver: descent
            for one that estimates the unrolled gradient, else L-BFGS.
    """

    title: ClassVar[str] = "Hyper-parameters by implicit gradients, unrolling and grid search"
    growing: ClassVar = ("problems", "methods", "seeds", "splits", "metagrads")

    problems: Some[Annotated[str, one_of((*PENALTIES, *NETWORKS))]]
    methods: Some[Annotated[str, one_of(METHODS)]]
    splits: Some[Seed]
    grid: Count
    bounds: Annotated[Sequence[Positive], MinLen(2), MaxLen(2)]
    start: Positive
    spread: Positive
    hypergradients: Count
    iterations: Count
    unrolled_steps: Count
    tols: Annotated[Sequence[Positive], MinLen(2), MaxLen(2)]
    directions: Count
    seeds: Some[Seed]
    hidden: Count
    images: int
    validation: int
    few: int
    network_hypergradients: Count
    inner_steps: Count
    damping: NonNegative
    lr: Positive
    metagrads: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_metagrads(self.metagrads, METHODS, exact=True)
        for name in self.metagrads:
            _refuse_uncounted(name)
        for name, (low, high) in (("bounds", self.bounds), ("tols", reversed(self.tols))):
            if low > high:
                order = "the lower" if name == "bounds" else "the larger"
                raise UsageError(
                    f"{name}={list(getattr(self, name))}: expected {order} number first. Swap them."
                )
        self._case("weights", self.seeds[0], torch.device("cpu"))  # raises for unfit numbers
        self._case("overfit", self.seeds[0], torch.device("cpu"))

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for problem in self.problems:
            seeds = self.splits if problem in PENALTIES else self.seeds
            for seed in seeds:
                extra = ["exact"] * (seed == seeds[0]) + ["grid"] if problem in PENALTIES else []
                methods = [*extra, *self.methods, *self.metagrads]
                found += [{"problem": problem, "seed": seed, "method": m} for m in methods]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        problem, seed, method = str(cell["problem"]), cell["seed"], str(cell["method"])
        case = self._case(problem, seed, device)
        if method == "exact":
            return self._exact(case)
        tight = LBFGS(5000, memory=20, tol=self.tols[1])
        if method == "grid":
            return [grid_search(case, self.grid, self.bounds, tight)]
        linear = problem in PENALTIES
        steps = self.hypergradients if linear else self.network_hypergradients
        search = WarmStartedSolver(self._method(method, case, steps), warm=method != "cg_cold")
        if linear:
            quasi_newton(search, case.problem, case.meta, case.task, steps)
        else:
            task = case.task
            descend(case.problem, search, case.meta, lambda: task, steps, self.lr, lambda *_: None)
        # The exact hyper-gradient takes longer than the search: only the first seed has it.
        first = seed == (self.splits if linear else self.seeds)[0]
        rows = path(case, search, exact=first)
        if first:
            rows[0]["peak_bytes"] = peak_of_one(case, search, device)
        if case.wrong is not None:
            rows[0] |= references(case, tight)
        return list(rows)

    def _case(self, problem: str, seed: Any, device: torch.device) -> Case:
        if problem in PENALTIES:
            data, per_feature = PENALTIES[problem]
            return penalties(data, per_feature, self.start, self.spread, seed, device)
        if problem == "weights":
            return weights(self.images, self.validation, seed, device)
        images = self.few if problem == "overfit" else self.validation
        return decays(images, self.hidden, seed, device)

    def _exact(self, case: Case) -> list[Row]:
        """Compare the meta-gradients that claim exactness, at the solution, with a reference."""
        problem = case.problem
        assert isinstance(problem, FeaturePenalties)
        meta = problem.begin(math.log(EXACT_AT), per_feature="own" in case.meta)
        task = solved(problem, meta, case.task)
        found = {
            name: metagrad(problem, meta, task).grads
            for name, metagrad in claiming_exactness(problem, meta).items()
        }
        if problem.train.y.is_floating_point():
            exact = ridge_hypergradient(problem, meta, task)
            errors, reference = [relative_error(g, exact) for g in found.values()], "closed form"
        else:
            errors = slope_error(problem, meta, list(found.values()), task, self.directions, 0)
            reference = "finite differences"
        return [
            {"meta_gradient": name, "error": error, "reference": reference}
            for name, error in zip(found, errors, strict=True)
        ]

    def _method(self, name: str, case: Case, hypergradients: int) -> Method:
        def descent(meta: Meta) -> GradientDescent:
            return GradientDescent(self.unrolled_steps, 1 / case.curvature(meta), momentum=0.9)

        def to_tolerance(step: int) -> LBFGS:
            first, last = self.tols
            share = 1.0 if name == "cg_tight" else step / max(hypergradients - 1, 1)
            most = 5000 if case.convex else self.inner_steps
            return LBFGS(most, memory=20, tol=first * (last / first) ** share)

        # Its own inner solver, which `method` replaces, suits every meta-gradient.
        made: Any = None if name in METHODS else named_metagrad(name, GradientDescent(1, 0.1))

        def method(step: int, meta: Meta) -> MetaGradient:
            if name == "unrolled":
                return Unrolled(descent(meta), backend="batched")
            if made is not None:
                unrolled = made.estimates == "unrolled"
                return replace(made, inner=descent(meta) if unrolled else to_tolerance(step))
            solver = Neumann if name == "neumann" else CG
            return Implicit(
                to_tolerance(step),
                solver(self.iterations, rtol=1e-6),
                damping=0.0 if case.convex else self.damping,
            )

        return method

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return hpo_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return hpo_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return hpo_report.facts(rows)


def _refuse_uncounted(name: str) -> None:
    """Refuse a further meta-gradient whose products with second derivatives are not counted."""
    made: Any = named_metagrad(name, GradientDescent(1, 0.1))
    if getattr(made, "curvature", "hessian") != "hessian" or getattr(made, "mode", "") == "mixed":
        raise UsageError(
            f"metagrads={name}: expected the Hessian and reverse mode, whose products this study "
            "counts. Name another."
        )

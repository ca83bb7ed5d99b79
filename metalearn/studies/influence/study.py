"""Influence functions beside retraining without each example."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass
from torch import nn

from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    NonNegative,
    Positive,
    Seed,
    one_of,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.inner import LBFGS, InnerSolver, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit
from metalearn.nn import MLP
from metalearn.problems.hyper_parameters import ExampleInfluence
from metalearn.problems.training_task import TrainingTask, fresh
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.hpo.data import flat
from metalearn.studies.influence import report as influence_report
from metalearn.tasks.image_splits import image_splits

PIXELS, CLASSES = 64, 10
CURVATURES: tuple[Literal["hessian", "gauss_newton"], ...] = ("hessian", "gauss_newton")
SOLVERS: dict[str, InnerSolver] = {
    # Both stop by their tolerance long before the limit, but where rounding stops them earlier.
    "logistic": NewtonCG(100, cg_iters=300, tol=1e-9, halvings=40),
    "network": LBFGS(5000, memory=20, tol=1e-7, halvings=40),
}
"""The training of each model, in float64; a warm-started retraining stops by the same rule."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class InfluenceStudy:
    """The predicted and the true effect of leaving training examples out, on digits.

    Args:
        models: "logistic", L2-regularised logistic regression, which is strongly convex; and
            "network", one hidden layer of tanh.
        seeds: the seeds of the splits, the weights and the examples that are left out.
        examples: the training images.
        validation: the images whose loss is the outer objective.
        left_out: the training images that are left out, one at a time, by a training without them.
        decay: the decay of all parameters.
        hidden: the hidden units of the network.
        damping: the number added to the diagonal of the network's Hessian.
        iterations: the limit on CG's iterations.
    """

    title: ClassVar[str] = "Influence of training examples beside retraining without them"
    growing: ClassVar = ("models", "seeds")

    models: Distinct[Annotated[str, one_of(SOLVERS)]]
    seeds: Distinct[Seed]
    examples: Count
    validation: Count
    left_out: Count
    decay: Positive
    hidden: Count
    damping: NonNegative
    iterations: Count

    def __post_init__(self) -> None:
        if self.left_out > self.examples:
            raise UsageError(
                f"left_out={self.left_out}: expected at most examples={self.examples}. Lower it."
            )

    def cells(self) -> list[Cell]:
        return [{"model": model, "seed": seed} for seed in self.seeds for model in self.models]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return a row for each curvature and left-out example."""
        at: Any = cell
        problem, task = self._problem(at["model"], at["seed"], device)
        train = SOLVERS[at["model"]]
        meta = problem.begin()
        trained = replace(task, params=FirstOrder(train).adapt(problem, meta, task).params)
        chosen = torch.randperm(self.examples, generator=torch.Generator().manual_seed(at["seed"]))
        effects, began = {}, time.perf_counter()
        for i in chosen[: self.left_out].tolist():
            effects[i] = _loss_change(problem, trained, i, train)
        retraining_s = (time.perf_counter() - began) / self.left_out
        rows: list[Row] = []
        for curvature in CURVATURES:
            began = time.perf_counter()
            found = Implicit(
                replace(train, steps=0),  # type: ignore[type-var]
                CG(self.iterations, rtol=1e-8),
                damping=self.damping if at["model"] == "network" else 0.0,
                curvature=curvature,
            )(problem, meta, trained)
            about = {
                "curvature": curvature,
                "all_s": time.perf_counter() - began,
                "retraining_s": retraining_s,
                "inner_grad_norm": float(found.inner.grad_norm),
            }
            rows += [
                {"example": i, "actual": actual, "predicted": -float(found.grads["weights"][i])}
                | about
                for i, actual in effects.items()
            ]
        return rows

    def _problem(
        self, model: str, seed: int, device: torch.device
    ) -> tuple[ExampleInfluence, TrainingTask]:
        splits = flat(
            image_splits("digits", None, seed, test=0.1, validation=0.5, train=self.examples)
        )
        train, judged = splits.train.to(device), splits.validation.to(device)
        if len(train.y) < self.examples or len(judged.y) < self.validation:
            raise UsageError(
                f"examples={self.examples}, validation={self.validation}: expected at most "
                f"{len(train.y)} and {len(judged.y)}. Lower them."
            )
        make: dict[str, Callable[[], nn.Module]] = {
            "logistic": lambda: nn.Linear(PIXELS, CLASSES).double(),
            "network": lambda: MLP([PIXELS, self.hidden, CLASSES], nn.Tanh).double(),
        }
        torch.manual_seed(seed)
        start = fresh(make[model], 1, device)
        problem = ExampleInfluence(make[model](), train, self.decay)
        return problem, TrainingTask(
            start, judged.x[: self.validation], judged.y[: self.validation]
        )

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return influence_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return influence_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return influence_report.facts(rows)


def _loss_change(
    problem: ExampleInfluence, trained: TrainingTask, example: int, train: InnerSolver
) -> float:
    """Return the change of the validation loss by retraining without an example."""
    meta = problem.without(example)
    retrained = FirstOrder(train).adapt(problem, meta, trained).params
    after, _ = problem.outer_objective(retrained, meta, trained)
    before, _ = problem.outer_objective(trained.params, meta, trained)
    return float(after - before)

"""The error of a run's meta-gradient, against references solved in float64 without a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.inner import LBFGS, GradientDescent, InnerSolution, NewtonCG
from metalearn.linear_solve import CG, Status
from metalearn.metagrad import Implicit
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.studies.cg.points import BegunAt, angle, to_double
from metalearn.tasks import TaskBatch
from metalearn.training.experiment import Experiment
from metalearn.tree import leaves_of

SEED = 3000
"""The seed of the tasks: they are of training's classes, and training does not draw them."""
EXACT = Implicit(GradientDescent(0, 1.0), CG(2000, rtol=1e-8))
"""The reference meta-gradient: the exact Hessian's system at the point where it is begun."""
SOLVERS = (LBFGS(150, tol=1e-6), NewtonCG(10, 50, tol=1e-6))
"""The solvers of the inner problem, one after the other, for the reference "solved". With ReLU most
minima lie at kinks, where the gradient does not go to 0; with SiLU about 50 steps are enough."""
SOLVED = 1e-3
"""The largest inner gradient norm at which the inner problem counts as solved."""
REFERENCES = ("same point", "solved")
"""The references: at the run's own inner solution, and where the inner problem is solved."""
LEFT_OUT = ("not solved", "negative curvature", "not converged")
"""The reasons why a task has no reference: of the inner problem, and of the linear solve (two)."""


@dataclass(frozen=True)
class Reference:
    """One task's reference meta-gradient.

    Args:
        grad: (N,) in float64, the leaves of meta as one vector; None for a task left out.
        inner_grad_norm: at the point where the reference was taken.
        reason: one of `LEFT_OUT`; empty where there is a gradient.
    """

    grad: Tensor | None
    inner_grad_norm: float
    reason: str = ""


def gradient_errors(experiment: Experiment, tasks: int) -> list[dict[str, Any]]:
    """Compare the experiment's meta-gradient, in its own precision, with each of `REFERENCES`.

    The tasks are taken one by one, so that memory holds one task's graph in float64. A task without
    a reference is left out of both means.

    Args:
        experiment: its meta-gradient is an `Implicit`; its meta is where gradients are compared.
        tasks: the number of tasks.

    Returns:
        a row for each reference: `error` and `angle` (degrees) of the mean meta-gradient over the
        tasks compared, None where there are none; `task_error`, the median of single tasks' errors;
        `compared`, the number of these tasks; the number left out for each reason; the median
        `inner_grad_norm` over all tasks.

    Raises:
        UsageError: the problem shares features between tasks (adapt=head).
    """
    problem, meta = experiment.problem, experiment.meta
    if hasattr(problem, "on_features"):
        raise UsageError("problem.adapt=head: expected problem.adapt=all. Compare other gradients.")
    batch = experiment.tasks.sampler("train", SEED, experiment.device).sample(tasks)
    own: list[Tensor] = []
    found: dict[str, list[Reference]] = {name: [] for name in REFERENCES}
    exact_meta = to_double(meta)
    for t in range(tasks):
        task = batch[t : t + 1]
        result = experiment.metagrad(problem, meta, task)
        own.append(_vector(result.grads))
        reached, exact_task = to_double(result.inner.params), task.to(torch.float64)
        found["same point"].append(_reference(problem, exact_meta, exact_task, reached))
        solution = _solved(problem, exact_meta, exact_task, reached)
        norm = float(solution.grad_norm)
        found["solved"].append(
            _reference(problem, exact_meta, exact_task, solution.params)
            if norm <= SOLVED
            else Reference(None, norm, "not solved")
        )
    return [{"reference": name, **compared(own, found[name])} for name in REFERENCES]


def compared(own: Sequence[Tensor], references: Sequence[Reference]) -> dict[str, Any]:
    """Return the row of `gradient_errors` for single tasks' meta-gradients, (N,) each."""
    pairs = [(g, r.grad) for g, r in zip(own, references, strict=True) if r.grad is not None]
    reasons = [r.reason for r in references]
    norms = torch.tensor([r.inner_grad_norm for r in references], dtype=torch.float64)
    row: dict[str, Any] = {"error": None, "angle": None, "task_error": None}
    if pairs:
        every, exact = (torch.stack(part) for part in zip(*pairs, strict=True))
        row["error"] = float((every - exact).mean(0).norm() / exact.mean(0).norm())
        row["angle"] = float(angle(every.mean(0), exact.mean(0)))
        row["task_error"] = float(((every - exact).norm(dim=1) / exact.norm(dim=1)).median())
    row |= {"compared": len(pairs), "inner_grad_norm": float(norms.median())}
    return row | {reason: reasons.count(reason) for reason in LEFT_OUT}


def _solved(problem: BilevelProblem, meta: Meta, task: TaskBatch, params: Params) -> InnerSolution:
    """Solve the inner problem from `params`, or come as near as `SOLVERS` do."""

    def objective(params: Params) -> Tensor:
        return problem.inner_objective(params, meta, task)

    first, second = SOLVERS
    return second(objective, first(objective, params).params)


def _reference(problem: BilevelProblem, meta: Meta, task: TaskBatch, params: Params) -> Reference:
    result = EXACT(BegunAt(problem, params), meta, task)
    assert result.certificate is not None and result.certificate.status is not None
    norm, status = float(result.inner.grad_norm), Status(int(result.certificate.status))
    if status == Status.CONVERGED:
        return Reference(_vector(result.grads), norm)
    stopped = status == Status.NEGATIVE_CURVATURE
    return Reference(None, norm, "negative curvature" if stopped else "not converged")


def _vector(grads: Any) -> Tensor:
    return torch.cat([g.flatten() for g in leaves_of(grads)]).double()

"""The points of comparison: a batch of tasks after the inner steps and at the inner minimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Status
from metalearn.metagrad import MetaGradient, Unrolled
from metalearn.problem import BilevelProblem, FewShot, Meta, Params
from metalearn.studies.cg.systems import Systems
from metalearn.studies.frame import Row
from metalearn.studies.frame.oracle_calls import CountedSolver
from metalearn.studies.frame.timing import seconds
from metalearn.tasks import TaskBatch
from metalearn.training.experiment import Experiment
from metalearn.tree import Tree, leaves_of, like_tree

MINIMUM = 1e-8
"""The largest norm of the inner gradient at a point that counts as a minimum."""

EvaluationPoint = Literal["adapted", "minimum"]


@dataclass(frozen=True)
class Points:
    """The tasks of an experiment and their inner solutions.

    Args:
        task: the tasks in float32, as in training.
        earlier: other tasks, which set the memory of a warm start.
        places: dict of (T, ...) in float64. "adapted" is the end of training's inner loop, which
            runs in float32. "minimum" is the end of Newton's method from there: the inner minimum,
            unless Newton's method stops before it.
    """

    experiment: Experiment
    task: TaskBatch
    earlier: TaskBatch
    places: Mapping[EvaluationPoint, Params]

    @classmethod
    def of(cls, experiment: Experiment, tasks: int) -> Points:
        """Draw tasks of training's classes and number of queries that training does not draw."""
        sampler = experiment.tasks.sampler("train", 3000, experiment.device)
        earlier, task = sampler.sample(tasks), sampler.sample(tasks)
        problem, meta = experiment.problem, experiment.meta
        reached = experiment.metagrad.adapt(problem, meta, task).params
        adapted = to_double(reached)
        wide, wide_task = to_double(meta), task.to(torch.float64)

        def objective(params: Params) -> Tensor:
            return problem.inner_objective(params, wide, wide_task)

        near = GradientDescent(300, 0.05)(objective, adapted).params
        minimum = NewtonCG(20, cg_iters=60, tol=MINIMUM, halvings=40)(objective, near).params
        return cls(experiment, task, earlier, {"adapted": adapted, "minimum": minimum})

    @property
    def problem(self) -> FewShot:
        problem = self.experiment.problem
        assert isinstance(problem, FewShot)
        return problem

    def systems(
        self, place: EvaluationPoint, curvature: Literal["hessian", "gauss_newton"]
    ) -> Systems:
        meta, task = to_double(self.experiment.meta), self.task.to(torch.float64)
        return Systems(self.problem, meta, task, self.places[place], curvature)

    @cached_property
    def adapted(self) -> Tensor:
        """The exact solutions at the end of the inner loop, (T, N); NaN where CG and GMRES fail."""
        return self.systems("adapted", "hessian").exact()

    @cached_property
    def minimum(self) -> Tensor:
        """The exact solutions at the minima, (T, N); NaN for tasks whose minimum was not reached.

        A task's exact meta-gradient is prox times its solution.
        """
        systems = self.systems("minimum", "hessian")
        there = systems.inner_grad_norm <= MINIMUM
        return torch.where(there[:, None], systems.exact(), torch.nan)

    @cached_property
    def known(self) -> list[int]:
        """The tasks that have both exact solutions."""
        found = self.adapted.isfinite().all(1) & self.minimum.isfinite().all(1)
        return [int(t) for t in found.nonzero().flatten()]


def solved(
    points: Points,
    place: EvaluationPoint,
    curvature: Literal["hessian", "gauss_newton"],
    iterations: Sequence[int],
) -> list[Row]:
    """Return a row for each task and number of CG iterations, computed in float64.

    `error` is the relative error of the solution of CG's own system. `true_error` is the relative
    error of the meta-gradient at the inner minimum.
    """
    systems, prox = points.systems(place, curvature), points.problem.prox
    x = points.adapted if place == "adapted" else systems.exact()
    (low, high), size = systems.spectrum(), x.norm(dim=1)
    definite = low > 0
    root = (high / low).sqrt()
    rate = (root - 1) / (root + 1)
    rows: list[Row] = []
    for n in iterations:
        if n:
            solution = systems.solve(CG(n, rtol=0.0))
            found, bound = systems.flat(solution.value), root * 2 * rate**n
            assert solution.eigenvalue_bounds is not None
            ritz, estimate = solution.eigenvalue_bounds, solution.error_estimate / size
            certified = systems.certified(solution) / prox / points.minimum.norm(dim=1)
            solve: dict[str, Any] = {
                "residual": solution.relative_residual,
                "ritz_low": ritz[0],
                "ritz_high": ritz[1],
                "solve_estimate": estimate,
                "solve_bound": torch.where(
                    definite, solution.residual_norm / low / size, torch.nan
                ),
                "certificate": certified,
            }
            status: list[Any] = [Status(s).name.lower() for s in solution.status.tolist()]
        else:
            # First order: x = b / prox, and |b / prox - x| = |(A / prox - I) x|.
            found = systems.flat(systems.b) / prox
            bound = (high / prox - 1).abs().maximum((low / prox - 1).abs())
            solve, status = {}, [None] * len(x)
        off = found - x
        columns: dict[str, Any] = {
            "definite": definite,
            "eigen_low": low,
            "eigen_high": high,
            "inner_grad_norm": systems.inner_grad_norm,
            "error": off.norm(dim=1) / size,
            # A defines a norm only where A is positive definite.
            "energy_error": torch.where(
                definite, (systems.energy(off) / systems.energy(x)).sqrt(), torch.nan
            ),
            "rate_bound": torch.where(definite, bound, torch.nan),
            "true_error": (found - points.minimum).norm(dim=1) / points.minimum.norm(dim=1),
            **solve,
        }
        rows += [
            {"point": place, "curvature": curvature, "task": t, "iterations": n}
            | {"status": status[t]}
            | {name: _plain(values[t]) for name, values in columns.items()}
            for t in range(len(x))
        ]
    return rows


def compared(points: Points, place: EvaluationPoint, metagrad: MetaGradient) -> Row:
    """Compare a meta-gradient in training's float32 with two exact meta-gradients.

    `error` refers to the exact solution of the same system, `true_error` to the exact meta-gradient
    at the inner minimum. Both are equal at "minimum", where the system is definite. No inner step
    is taken there, so that the time is the time of the solve. A meta-gradient that estimates the
    derivative of the inner steps has no use there; at "adapted", `error` refers to that derivative.
    """
    problem, meta = points.problem, points.experiment.meta
    chosen = points.known or list(range(len(points.task)))
    task = TaskBatch(*(getattr(points.task, f.name)[chosen] for f in fields(TaskBatch)))
    warm = getattr(metagrad, "warm_start", False)
    solver_state = metagrad(problem, meta, points.earlier).solver_state if warm else {}
    references = {
        name: problem.prox * x[chosen].mean(0)
        for name, x in (("", getattr(points, place)), ("true_", points.minimum))
    }
    if metagrad.estimates == "unrolled":
        steps = Unrolled(metagrad.inner, backend="batched")
        exact = steps(problem, to_double(meta), task.to(torch.float64)).grads
        references[""] = torch.cat([g.flatten() for g in leaves_of(exact)])
    start: Any = problem
    whole: Any = metagrad
    if place == "minimum":
        at = {name: p[chosen].float() for name, p in points.places[place].items()}
        start, whole = BegunAt(problem, at), replace(whole, inner=GradientDescent(0, 1.0))
    products = [0]
    solver = getattr(whole, "linear_solver", None)
    counted = whole
    if solver is not None:
        counted = replace(whole, linear_solver=CountedSolver(solver, products))
    result = counted(start, meta, task, **solver_state)
    found = torch.cat([g.flatten() for g in result.grads.values()]).double()
    row: dict[str, Any] = {"point": place, "tasks": len(points.known), "products": products[0]}
    row["gradient_s"] = seconds(lambda: whole(start, meta, task, **solver_state), rounds=3)[0]
    for name, exact in references.items():
        row[f"{name}error"] = _plain((found - exact).norm() / exact.norm())
        row[f"{name}angle"] = _plain(angle(found, exact))
    certificate = result.certificate
    if certificate and certificate.relative_residual is not None and certificate.status is not None:
        row["residual"] = float(certificate.relative_residual.mean())
        stopped = certificate.status == Status.NEGATIVE_CURVATURE
        row["negative_curvature"] = float(stopped.double().mean())
    return row


@dataclass(frozen=True)
class BegunAt:
    """A problem with another start, which depends on meta as the problem's own start does."""

    problem: BilevelProblem
    params: Params

    def init(self, meta: Meta, task: Any) -> Params:
        start = self.problem.init(meta, task)
        return {name: p + (self.params[name] - p).detach() for name, p in start.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)


def angle(u: Tensor, v: Tensor) -> Tensor:
    """Return the angle of two vectors in degrees, by Kahan's formula, exact at small angles too."""
    u, v = u / u.norm(), v / v.norm()
    return torch.rad2deg(2 * torch.atan2((u - v).norm(), (u + v).norm()))


def to_double(tree: Tree) -> Any:
    """Return a pytree's tensors in float64, detached."""
    return like_tree(tree, [x.detach().double() for x in leaves_of(tree)])


def _plain(value: Tensor) -> bool | float | None:
    """Return a value as rows hold it: None for NaN and for infinity."""
    number: Any = value.item()
    return number if isinstance(number, bool) or math.isfinite(number) else None

"""The study of a meta-gradient's error against its cost, on problems with a known solution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge, Le, Lt
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass
from torch import Tensor

from metalearn.config.options import STRICT, Count, Distinct, Seed, one_sentence
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, InnerSolver, NewtonCG
from metalearn.linear_solve import CG, Dense
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads, named_metagrad
from metalearn.studies.frame.oracle_calls import OracleCalls, spent
from metalearn.studies.frame.table import Table
from metalearn.studies.gradient import figures as gradient_figures
from metalearn.studies.gradient import report as gradient_report
from metalearn.studies.gradient.problems import PROBLEMS, KnownProblem, relative_error


@plain_dataclass(frozen=True)
class Loop:
    """An inner loop with the best constants for curvatures from m to L.

    Args:
        of: (m, L, steps) -> the solver.
        rate: (m, L) -> q, the factor by which a step reduces the distance on a quadratic.
        distance: (q, K) -> the distance after K steps there, up to a constant.
    """

    of: Callable[[float, float, int], GradientDescent]
    rate: Callable[[float, float], float]
    distance: Callable[[float, int], float]

    def longest(self, m: float, largest: float, reach: float) -> int:
        """Return the number of steps that bring the distance to `reach`."""
        q = self.rate(m, largest)
        return next(k for k in itertools.count(1) if self.distance(q, k) <= reach)


def accelerated(m: float, largest: float) -> float:
    """The rate of conjugate gradients, and of the heavy ball."""
    return (math.sqrt(largest) - math.sqrt(m)) / (math.sqrt(largest) + math.sqrt(m))


LOOPS = {
    "gradient descent": Loop(
        lambda m, largest, steps: GradientDescent(steps, 2 / (largest + m)),
        lambda m, largest: (largest - m) / (largest + m),
        lambda q, k: q**k,
    ),
    # Polyak 1964. The iteration has a Jordan block at both ends of the spectrum: hence the 1 + K.
    "heavy ball": Loop(
        lambda m, largest, steps: GradientDescent(
            steps, 4 / (math.sqrt(largest) + math.sqrt(m)) ** 2, accelerated(m, largest) ** 2
        ),
        accelerated,
        lambda q, k: (1 + k) * q**k,
    ),
}

METHODS: dict[str, Callable[[GradientDescent, int | None], MetaGradient]] = {
    "unrolled": lambda inner, _: Unrolled(inner, backend="batched"),
    # The last quarter of the steps.
    "truncated": lambda inner, _: Unrolled(
        inner, backend="batched", truncate=math.ceil(inner.steps / 4)
    ),
    "implicit": lambda inner, iterations: Implicit(
        inner, Dense() if iterations is None else CG(iterations, rtol=1e-13)
    ),
    "first-order": lambda inner, _: FirstOrder(inner),
}
"""The methods by name. The second argument is the number of iterations of the implicit solve."""


def make(name: str, inner: GradientDescent, iterations: int | None) -> MetaGradient:
    """Return one of `METHODS`, or the further meta-gradient of that name."""
    return METHODS[name](inner, iterations) if name in METHODS else named_metagrad(name, inner)


NO_STEPS = GradientDescent(0, 1.0)


Condition = Annotated[float, Ge(1.5), Le(1e5)]
"""The condition numbers for which the problems can be made."""
Several = Annotated[int, Ge(2)]


@one_sentence
@dataclass(frozen=True, config=STRICT)
class GradientStudy:
    """The study and its options.

    Args:
        seeds: the seeds of the problems.
        size: the number of unknowns of a problem.
        conditions: the condition numbers of the inner Hessian at the solution.
        reach: the factor by which the longest inner loop reduces the distance to the solution.
        points: the number of lengths of the inner loop, spaced evenly in their cube root.
        cg_iters: the iterations of the implicit gradient's solve, all measured at each length.
        bias_condition: the condition number at which bias is measured.
        bias_steps: the lengths of the inner loop there, too short for it to converge.
        bias_cg_iters: the CG iterations of the implicit gradient there.
        metagrads: further meta-gradients (`named_metagrad`), with the study's inner loops.
    """

    title: ClassVar[str] = "The error of the meta-gradient against compute"
    growing: ClassVar = ("conditions", "metagrads")

    seeds: Distinct[Seed]
    size: Several
    conditions: Distinct[Condition]
    reach: Annotated[float, Ge(1e-12), Lt(1)]
    points: Several
    cg_iters: Distinct[Count]
    bias_condition: Condition
    bias_steps: Distinct[Count]
    bias_cg_iters: Count
    metagrads: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_metagrads(self.metagrads, METHODS, exact=True)

    def cells(self) -> list[Cell]:
        found: list[Cell] = [
            {**_cell("accuracy", problem, condition, method), "inner": inner}
            for problem in PROBLEMS
            for condition in self.conditions
            for inner in LOOPS
            for method in ("unrolled", "truncated", "implicit", *self.metagrads)
        ]
        for problem in PROBLEMS:
            for condition in self.conditions:
                for method in ("truncated", "implicit"):
                    found.append(_cell("products", problem, condition, method))
        for problem in PROBLEMS:
            for method in (*METHODS, *self.metagrads):
                found.append(_cell("bias", problem, self.bias_condition, method))
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if device.type != "cpu":
            raise UsageError(
                f"device={device}: expected cpu, the problems are small. Use device=cpu."
            )
        at: Any = cell
        problem = PROBLEMS[at["problem"]](at["condition"], self.size, self.seeds)
        measures = {"accuracy": self._accuracy, "products": self._products, "bias": self._bias}
        return measures[at["part"]](problem, at)

    def _accuracy(self, problem: KnownProblem, at: Any) -> list[Row]:
        loop, (m, largest) = LOOPS[at["inner"]], problem.curvature
        longest = loop.longest(m, largest, self.reach)
        # Long loops are expensive, and errors change fast in short ones.
        lengths = {math.ceil(longest * (i / self.points) ** 3) for i in range(1, self.points + 1)}
        rows: list[Row] = []
        for steps in sorted(lengths):
            inner = loop.of(m, largest, steps)
            begun: BilevelProblem
            ways: dict[int | None, MetaGradient]
            if at["method"] == "implicit":
                # The implicit gradient depends on the end alone: one inner loop serves every solve.
                begun, before = _reached(problem, inner)
                ways = {c: METHODS["implicit"](NO_STEPS, c) for c in self.cg_iters}
            else:
                begun, before = problem, OracleCalls(0, 0, 0.0)
                ways = {None: make(at["method"], inner, None)}
            for count, metagrad in ways.items():
                grads, cost = spent(begun, partial(_each, metagrad=metagrad, known=problem))
                cost += before
                rows.append(
                    {
                        "unknowns": self.size,
                        "steps": steps,
                        "cg_iters": count,
                        **relative_error(grads, problem.exact),
                        "gradients": cost.gradients,
                        "products": cost.products,
                        "evaluations": cost.evaluations,
                        "seconds": cost.seconds,
                        "loop_rate": loop.rate(m, largest),
                        "cg_rate": accelerated(1.0, problem.condition),
                    }
                )
        return rows

    def _products(self, problem: KnownProblem, at: Any) -> list[Row]:
        """Measure the error at a converged inner solution by the number of Hessian products.

        The products belong to the solve, or to back-propagation through as many last steps of
        gradient descent.
        """
        newton = NewtonCG(100, cg_iters=2 * self.size, tol=1e-12, halvings=40)
        begun, _ = _reached(problem, newton)
        m, largest = problem.curvature
        loop = LOOPS["gradient descent"]
        rows: list[Row] = []
        for count in self.cg_iters:
            if at["method"] == "implicit":
                metagrad = METHODS["implicit"](NO_STEPS, count)
                rate = accelerated(1.0, problem.condition)
                theory = 2 * math.sqrt(problem.condition) * rate**count
            else:
                metagrad = METHODS["unrolled"](loop.of(m, largest, count), None)
                theory = loop.rate(m, largest) ** count
            grads = _each(begun, metagrad, problem)
            rows.append(
                {"products": count, **relative_error(grads, problem.exact), "theory": theory}
            )
        return rows

    def _bias(self, problem: KnownProblem, at: Any) -> list[Row]:
        """Measure two errors of short inner loops.

        `error` refers to the gradient of the converged problem. `error_of_steps` refers to the
        gradient of the K steps, as the library `higher` differentiates them. A further
        meta-gradient `estimates` one of the two.
        """
        counts = [self.bias_cg_iters, None] if at["method"] == "implicit" else [None]
        rows: list[Row] = []
        for steps in self.bias_steps:
            inner = LOOPS["gradient descent"].of(*problem.curvature, steps)
            of_steps = _each(problem, Unrolled(inner, backend="higher"), problem)
            for count in counts:
                metagrad = make(at["method"], inner, count)
                grads = _each(problem, metagrad, problem)
                own = {} if at["method"] in METHODS else {"estimates": metagrad.estimates}
                rows.append(
                    {
                        "steps": steps,
                        "cg_iters": count,
                        **relative_error(grads, problem.exact),
                        "error_of_steps": relative_error(grads, of_steps)["error"],
                        **own,
                    }
                )
        return rows

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return gradient_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return gradient_figures.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return gradient_report.facts(rows)


def _cell(part: str, problem: str, condition: float, method: str) -> Cell:
    return {"part": part, "problem": problem, "condition": condition, "method": method}


class _Begun:
    """A problem with another start, which differs from its own by a constant."""

    def __init__(self, problem: BilevelProblem, params: Params) -> None:
        self._problem, self._params = problem, params
        self.inner_objective = problem.inner_objective
        self.outer_objective = problem.outer_objective

    def init(self, meta: Meta, task: range) -> Params:
        start = self._problem.init(meta, task)
        return {name: p + (self._params[name] - p.detach()) for name, p in start.items()}


def _reached(problem: KnownProblem, inner: InnerSolver) -> tuple[_Begun, OracleCalls]:
    """Return the problem with a start at the inner loop's end, and the cost of the inner loop."""

    def run(counted: BilevelProblem) -> Params:
        start = counted.init(problem.meta, problem.task)
        return inner.minimise(
            lambda params: counted.inner_objective(params, problem.meta, problem.task), start
        )[0]

    params, cost = spent(problem, run)
    return _Begun(problem, params), cost


def _each(problem: BilevelProblem, metagrad: MetaGradient, known: KnownProblem) -> Tensor:
    """Compute each task's own meta-gradient, (T, size)."""
    grads: Tensor = metagrad(problem, known.meta, known.task).grads["theta"]
    return grads * len(known.task)

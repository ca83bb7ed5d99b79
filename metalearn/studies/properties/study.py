"""The properties in which unrolled and implicit differentiation differ, measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass
from torch import Tensor

from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    Seed,
    Some,
    one_of,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, value_and_grad
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.oracle_calls import Counted
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.timing import seconds
from metalearn.studies.gradient.problems import Logistic, relative_error
from metalearn.studies.memory.methods import NETWORKS, setting, work
from metalearn.studies.properties import report as properties_report
from metalearn.studies.properties.implementation import (
    autodiff_used,
    custom_derivatives,
    functions_run,
    lines_of,
)
from metalearn.system.files import damaged, read_json
from metalearn.system.memory import peak_bytes
from metalearn.system.provenance import short

CPU = torch.device("cpu")
METHODS = ("unrolled", "implicit")
STUDIES = ("memory", "cg", "gradient")
"""The studies whose findings are further evidence, if they lie beside this study."""


Condition = Annotated[float, Gt(1), Le(1e5)]
"""A condition number."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class PropertiesStudy:
    """The measurement of each property that the textbook compares.

    Args:
        network: the network whose memory is measured, a name of `NETWORKS`.
        memory_steps: the inner steps of that measurement.
        seeds: the seeds of the logistic regressions, whose exact meta-gradient is known.
        size: the unknowns of a logistic regression.
        conditions: the condition numbers of the inner Hessian at which the cost is measured.
        condition: the condition number at which errors are measured against the inner steps.
        steps: the inner steps of that measurement, from a short loop to a converged one.
        forward_steps: the most inner steps that are also differentiated by forward mode.
        compute_steps: the inner steps of a gradient whose cost is counted.
        rtol: the relative residual of CG in the count of the cost.
        results: the folder of this study and of the other studies.
    """

    title: ClassVar[str] = "Unrolled and implicit differentiation, property by property"

    network: Annotated[str, one_of(NETWORKS)]
    memory_steps: Annotated[Distinct[Count], MinLen(3)]
    seeds: Some[Seed]
    size: Annotated[int, Ge(2)]
    conditions: Some[Condition]
    condition: Condition
    steps: Annotated[Distinct[Count], MinLen(3)]
    forward_steps: int
    compute_steps: Count
    rtol: Annotated[float, Gt(0), Lt(1)]
    results: str

    def __post_init__(self) -> None:
        if self.forward_steps < min(self.steps):
            raise UsageError(
                f"forward_steps={self.forward_steps}: expected at least {min(self.steps)}, the "
                "least of steps=. Give a larger number."
            )

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for method in METHODS:
            found += [{"part": "memory", "method": method, "steps": k} for k in self.memory_steps]
        for method in METHODS:
            for condition in (*self.conditions, None):
                found.append({"part": "compute", "method": method, "condition": condition})
        found += [{"part": "convergence", "steps": k} for k in sorted(self.steps)]
        found += [{"part": "implementation", "method": method} for method in METHODS]
        return found + [{"part": "evidence", "study": name} for name in STUDIES]

    def check(self, cells: Sequence[Cell], device: torch.device) -> None:
        """Read the other studies that the cells name; raise UsageError if one is damaged."""
        for cell in cells:
            if cell["part"] == "evidence":
                self._evidence(str(cell["study"]))

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if device != CPU:
            raise UsageError(f"device={device}: expected cpu. Leave device= out.")
        at: Any = cell
        if at["part"] == "memory":
            name = {"unrolled": "unrolled, higher", "implicit": "implicit, 5 CG"}[at["method"]]
            run = work(self.network, 1, CPU, name, at["steps"])
            one = work(self.network, 1, CPU, "one inner gradient", 1)
            return [{"peak_bytes": peak_bytes(run, CPU)[1], "one": peak_bytes(one, CPU)[1]}]
        if at["part"] == "compute":
            return [self._compute(at["method"], at["condition"])]
        if at["part"] == "convergence":
            return self._convergence(at["steps"])
        if at["part"] == "implementation":
            return [self._implementation(at["method"])]
        return [self._evidence(at["study"])]

    def _metagrad(self, method: str, inner: GradientDescent, rtol: float) -> MetaGradient:
        if method == "unrolled":
            return Unrolled(inner, "batched")
        return Implicit(inner, CG(2000, rtol=rtol))

    def _logistic(self, condition: float, steps: int) -> tuple[Logistic, GradientDescent]:
        """Return the problem, and gradient descent at its best constant rate."""
        problem = Logistic(condition, self.size, self.seeds)
        least, largest = problem.curvature
        return problem, GradientDescent(steps, 2 / (least + largest))

    def _compute(self, method: str, condition: float | None) -> Row:
        """Count the derivatives of one meta-gradient, and time it beside one inner gradient."""
        problem: Any
        if condition is None:  # a small network, in float64 like the regressions
            problem, meta, task = setting("small", 1, CPU, prox=2.0)
            meta = {name: p.detach().double() for name, p in meta.items()}
            task, inner = task.to(torch.float64), GradientDescent(self.compute_steps, 0.1)
        else:
            problem, inner = self._logistic(condition, self.compute_steps)
            meta, task = problem.meta, problem.task
        metagrad = self._metagrad(method, inner, self.rtol)
        counted = Counted(problem)
        certificate = metagrad(counted, meta, task).certificate
        params = metagrad.adapt(problem, meta, task).params
        adapt, one, whole = seconds(
            lambda: metagrad.adapt(problem, meta, task),
            lambda: value_and_grad(lambda p: problem.inner_objective(p, meta, task), params),
            lambda: metagrad(problem, meta, task),
            rounds=5,
            choose=min,  # a difference of times is reported
        )
        iterations = residual = None
        if certificate is not None:
            assert certificate.iterations is not None and certificate.relative_residual is not None
            iterations = int(certificate.iterations.max())
            residual = float(certificate.relative_residual.max())
        return {
            "problem": "a small Conv4" if condition is None else "logistic regression",
            "inner_steps": self.compute_steps,
            "gradients": counted.gradients,
            "products": counted.products,
            "cg_iterations": iterations,
            "residual": residual,
            "differentiating_s": max(0.0, whole - adapt),
            "one_gradient_s": one,
        }

    def _convergence(self, steps: int) -> list[Row]:
        """Measure the errors of both methods.

        The references are the gradients of the converged problem and of the K steps.
        """
        problem, inner = self._logistic(self.condition, steps)
        rows: list[Row] = []
        of_steps = forward_gradient(problem, inner) if steps <= self.forward_steps else None
        for method in METHODS:
            metagrad = self._metagrad(method, inner, 1e-13)
            result = metagrad(problem, problem.meta, problem.task)
            grads = result.grads["theta"] * len(problem.task)  # each task has its own theta
            rows.append(
                {
                    "method": method,
                    "inner_grad_norm": float(result.inner.grad_norm.log().mean().exp()),
                    "error": relative_error(grads, problem.exact)["error"],
                    "error_of_steps": None
                    if of_steps is None
                    else relative_error(grads, of_steps)["error"],
                }
            )
        return rows

    def _implementation(self, method: str) -> Row:
        """Measure the code that one gradient runs, and that the first-order gradient does not."""
        problem, inner = self._logistic(self.condition, self.compute_steps)

        def run(metagrad: MetaGradient) -> Callable[[], Any]:
            return lambda: metagrad(problem, problem.meta, problem.task)

        own = run(self._metagrad(method, inner, self.rtol))
        functions = functions_run(own)
        lines = lines_of(functions)
        used = autodiff_used(own)
        return {
            "inner_steps": self.compute_steps,
            "lines": len(lines),
            "lines_of_its_own": len(lines - lines_of(functions_run(run(FirstOrder(inner))))),
            "custom_derivatives": len(custom_derivatives(functions)),
            **{f"autograd_{what}": count for what, count in used.items()},
        }

    def _evidence(self, name: str) -> Row:
        """Return the findings of another study, if it lies in `results`."""
        folder = Path(self.results) / name
        paths = [folder / name for name in ("provenance.json", "findings.json", "rows.csv")]
        if not all(path.is_file() for path in paths):
            return {"found": False}
        origin, findings = read_json(paths[0]), read_json(paths[1])
        if not isinstance(origin, dict) or not {"title", "command"} <= set(origin):
            raise UsageError(damaged(paths[0]))
        if not isinstance(findings, list):
            raise UsageError(damaged(paths[1]))
        try:
            measured = len(pd.read_csv(paths[2]))
        except ValueError as error:
            raise UsageError(damaged(paths[2])) from error
        return {
            "found": True,
            "title": origin["title"],
            "command": origin["command"],
            "commit": short(origin.get("commit")) or "none",
            "measured": measured,
            "findings": "\n".join(map(str, findings)),
        }

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return properties_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return properties_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return properties_report.facts(rows)


def forward_gradient(problem: Logistic, inner: GradientDescent) -> Tensor:
    """Return the derivative of each task's outer loss after the K steps, (T, size).

    Forward mode computes it, without any backward sweep.
    """
    theta = problem.meta["theta"]

    def after(theta: Tensor) -> Tensor:
        meta = {"theta": theta}
        params = problem.init(meta, problem.task)
        slope = torch.func.grad(lambda p: problem.inner_objective(p, meta, problem.task).sum())
        for _ in range(inner.steps):
            slopes = slope(params)
            params = {name: p - inner.lr * slopes[name] for name, p in params.items()}
        return problem.outer_objective(params, meta, problem.task)[0]

    def along(direction: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(after, (theta,), (direction.expand_as(theta),))[1]
        return tangent

    with warnings.catch_warnings():
        # torch 2.14 scripts its forward-mode rules by a function that it deprecates.
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        found: Tensor = torch.func.vmap(along)(torch.eye(theta.shape[1], dtype=theta.dtype))
    return found.mT

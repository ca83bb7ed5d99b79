"""The update in the authors' released iMAML code, which differs from the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.inner import InnerSolution, InnerSolver
from metalearn.linear_solve import CG, LinearSolver
from metalearn.metagrad.base import (
    MetaGradient,
    MetaGradientResult,
    mean_over_tasks,
    outer_gradient,
    through_init,
)
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.curvature import GaussNewton, Hessian
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import detached, requires_grad_copy, task_norm


@dataclass(frozen=True)
class IMAMLAuthorsCode(MetaGradient):
    """The inner loop and the meta-gradient of aravindr93/imaml_dev, as of its commit 6a2a669.

    K steps on the support loss alone come first. One step on the proximal term alone follows:

            phi <- phi - prox_lr * prox * (phi - theta).

    The meta-gradient is CG's solution of the system whose product with v is

            (1 + damping) v + H v / (prox + 10),

    where H is the Hessian of the support loss at that phi, which is no stationary point of
    anything. The paper has I + H / prox in place of this system (`Implicit`).

    The problem's own inner objective must be the support loss alone: `FewShot(prox=0)`.

    Args:
        inner: the solver of the K steps.
        prox: the authors' lambda.
        prox_lr: the rate of the proximal step; the authors take the inner rate.
        damping: the authors' option `cg_damping`, 1 by default.
        offset: the constant that the authors' code adds to lambda.
        curvature: "hessian" as in the authors' code, or "gauss_newton" in its place.
        linear_solver: CG with the authors' 5 iterations.

    `adapt`, which evaluation runs, takes no proximal step, as in the authors' README.
    """

    inner: InnerSolver
    prox: float = 2.0
    prox_lr: float = 0.1
    damping: float = 1.0
    offset: float = 10.0
    linear_solver: LinearSolver = field(default_factory=lambda: CG(5, rtol=0.0, atol=1e-10))
    curvature: Literal["hessian", "gauss_newton"] = "hessian"

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss_newton"):
            raise UsageError(
                f"curvature={self.curvature!r} is unknown; expected 'hessian' or 'gauss_newton'"
            )
        if not (self.prox >= 0 and self.prox + self.offset > 0):
            raise UsageError(f"prox={self.prox}; expected a number of at least 0")
        for name in ("prox", "prox_lr", "damping", "offset"):
            if not abs(getattr(self, name)) <= MAX_FLOAT32:
                raise UsageError(
                    f"{name}={getattr(self, name)}; expected a number up to {MAX_FLOAT32:.1e}"
                )

    def differentiate(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        for name in ("prox", "prox_head"):
            if strength := getattr(problem, name, 0.0):
                raise UsageError(
                    f"the problem has {name}={strength} of its own; the authors' code takes its "
                    f"proximal step apart, so that the problem must have {name}=0"
                )
        states = torch_states()
        with replayed(states):
            start = problem.init(detached(meta), task)
        adapted = self.adapt(problem, meta, task)
        params: Params = requires_grad_copy(
            {
                name: p - self.prox_lr * self.prox * (p - start[name])
                for name, p in adapted.params.items()
            }
        )
        loss, metrics, by_params, direct = outer_gradient(
            problem, params, requires_grad_copy(meta), task
        )
        if any(d is not None for d in direct):
            raise UsageError(
                "the outer objective depends on meta directly, for which the authors' code has no "
                "term; use Implicit"
            )
        make = Hessian if self.curvature == "hessian" else GaussNewton
        curvature = make(problem, params, detached(meta), task)

        def operator(v: list[Any]) -> list[Any]:
            products = curvature.matvec(v)
            return [
                (1 + self.damping) * x + hx / (self.prox + self.offset)
                for x, hx in zip(v, products, strict=True)
            ]

        solution = self.linear_solver(operator, by_params, batched=True)
        grad_norm = task_norm(curvature.gradient)
        carried = through_init(problem, detached(meta), task, solution.value, states)
        return MetaGradientResult(
            mean_over_tasks(meta, carried, len(grad_norm)),
            loss,
            metrics,
            InnerSolution(detached(params), curvature.objective, grad_norm, adapted.steps),
            Certificate.of(grad_norm, solution),
        )

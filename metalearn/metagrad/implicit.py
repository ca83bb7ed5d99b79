"""The implicit meta-gradient: the implicit function theorem at the inner solution."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.autograd import subtract
from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.inner import InnerSolution, InnerSolver
from metalearn.inner.solver import broadcast
from metalearn.linear_solve import CG, LinearSolver, NormalCG, Solution, Status
from metalearn.linear_solve.solution import DIRECT, remeasured
from metalearn.metagrad.base import (
    InnerObjective,
    MetaGradient,
    MetaGradientResult,
    mean_over_tasks,
    outer_gradient,
    refuse_learned_rates,
)
from metalearn.metagrad.captured_inner import CapturedHessian
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.curvature import Curvature, GaussNewton, Hessian, Recomputed
from metalearn.metagrad.first_order import first_order_at
from metalearn.problem import BilevelProblem, Meta, Params, in_full_precision
from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import detached, requires_grad_copy, task_norm


@dataclass(frozen=True)
class Implicit(MetaGradient):
    """The gradient d outer / d meta of the *converged* inner problem.

    No inner step adds to its memory. At params* the inner gradient is 0 whatever meta is. The
    derivative of this identity gives

            d outer / d meta = direct - (d2 inner / d meta d params) A^-1 (d outer / d params),

    with A = d2 inner / d params2 (+ damping I). For `FewShot` that is (I + H / lambda)^-1 of the
    query gradient, where H is the support loss's Hessian (Rajeswaran et al. 2019, eq. 6). It is
    exact where the inner gradient and the solve's residual are 0; the certificate gives both.

    Args:
        inner: the inner-loop solver; the way to params* does not matter.
        linear_solver: solves with A, where every task is its own system. None: the first-order
            gradient at the same inner solution, which ablations call 0 iterations.
        damping: added to A's diagonal, in the units of the inner objective's curvature; >= 0.
        curvature: "hessian", or "gauss_newton" (positive semi-definite, so that A is positive
            definite wherever lambda + damping > 0).
        warm_start: the result's `carry` holds the mean of x over the tasks whose solve did not
            break off. Every task's solve of the next meta-step then starts from this mean. Few-shot
            tasks, new at every meta-step, have too little in common for it to help. After as many
            CG iterations the residual was larger than from 0 in each setting tried on glyphs.
        linearisation: "kept": one graph of the inner gradient serves all products. It takes the
            memory of about two inner gradients of all tasks (up to three in deep networks).
            "recomputed": each product makes its own graph, task by task, so that a batch of several
            tasks takes little more than its inner loop. The gradient is the same; an inner
            objective that draws random numbers (dropout) is refused. With 16 inner steps and 5
            products, "recomputed" takes 1.2 to 1.4 times as long; with many small tasks, up to 3
            times.

    A problem of reduced precision (`FewShot(precision="bf16")`) takes its inner steps and the
    solver's products in that precision. The outer loss, the mixed partials, the inner gradient at
    the end and the final residual are computed in full precision, for one more inner gradient and
    product. The certificate therefore measures what the reduced precision costs. Features of a
    shared body are the exception: their rounding is in no figure. Without a `linear_solver` the
    inner gradient is that of the reduced precision.

    A task whose first product meets negative curvature has no solution to add. Its x stays at the
    start, 0 but for a warm start, and its status says so.

    `implicit(problem, meta, task, x0=previous.solution)` starts each task's solve from its own last
    solution, for problems whose tasks recur. A task axis of length 1 serves all tasks.

    Raises:
        UsageError: the inner objective does not depend on meta (`FewShot(prox=0)`), so that the
            implicit gradient is identically zero; or it draws random numbers, with
            linearisation="recomputed".
        NonFiniteGradient: the outer loss or the gradient is not finite.
    """

    estimates: ClassVar = "implicit"

    inner: InnerSolver
    linear_solver: LinearSolver | None = field(default_factory=CG)
    damping: float = 0.0
    curvature: Literal["hessian", "gauss_newton"] = "hessian"
    warm_start: bool = field(default=False, kw_only=True)
    linearisation: Literal["kept", "recomputed"] = field(default="kept", kw_only=True)

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss_newton"):
            raise UsageError(
                f"curvature={self.curvature!r} is unknown; expected 'hessian' or 'gauss_newton'"
            )
        if self.linearisation not in ("kept", "recomputed"):
            raise UsageError(
                f"linearisation={self.linearisation!r} is unknown; expected 'kept' or 'recomputed'"
            )
        if getattr(self.linear_solver, "max_iters", 1) < 1:
            raise UsageError(
                f"linear_solver={self.linear_solver} makes no iteration, which would leave the "
                "gradient zero; use linear_solver=None for the first-order gradient"
            )
        if not 0 <= self.damping <= MAX_FLOAT32:
            raise UsageError(
                f"damping={self.damping}; expected a number of at least 0, up to {MAX_FLOAT32:.1e}"
            )

    @property
    def one_by_one(self) -> bool:
        return self.linearisation == "recomputed"

    def differentiate(
        self, problem: BilevelProblem, meta: Meta, task: Any, x0: Params | None = None
    ) -> MetaGradientResult:
        refuse_learned_rates(problem)
        if self.linear_solver is None:
            states = torch_states()
            adapted = self.adapt(problem, meta, task)
            certificate = Certificate(adapted.grad_norm)
            return first_order_at(adapted, problem, meta, task, states, certificate)

        constant = detached(meta)
        params, steps = self.inner.minimise(
            InnerObjective(problem, constant, task), problem.init(constant, task)
        )
        params, meta = requires_grad_copy(params), requires_grad_copy(meta)
        full = in_full_precision(problem)
        reduced = full is not problem
        loss, metrics, by_params, direct = outer_gradient(full, params, meta, task)

        states = torch_states() if reduced else ()
        curvature = self._curvature(problem, params, meta, task)
        start = None if x0 is None else [x0[name].expand_as(p) for name, p in params.items()]
        system, solver = self._damped(curvature), self.linear_solver
        if isinstance(solver, NormalCG) and solver.transpose is None:
            solver = replace(solver, transpose=system)  # A is symmetric
        solution = solver(system, by_params, start, batched=True)
        if reduced:
            del system, solver, curvature  # frees the graph of the reduced precision
            with replayed(states):  # the same dropout masks
                curvature = self._curvature(full, params, meta, task)
            rtol = getattr(self.linear_solver, "rtol", DIRECT)
            atol = getattr(self.linear_solver, "atol", 0.0)
            solution = remeasured(solution, self._damped(curvature), by_params, rtol, atol)
        mixed = curvature.mixed(solution.value)
        if all(m is None for m in mixed):
            raise UsageError(
                "the inner objective does not depend on the meta-parameters, so that its implicit "
                "gradient is zero; give it a term that does (FewShot: prox above 0) or unroll"
            )
        summed = [subtract(d, m) for d, m in zip(direct, mixed, strict=True)]
        grad_norm = task_norm(curvature.gradient)
        x = dict(zip(params, solution.value, strict=True))
        solver_state = {}
        if self.warm_start:
            sound = solution.status <= Status.MAX_ITERS
            solver_state["x0"] = {name: _mean_of(sound, value) for name, value in x.items()}
        return MetaGradientResult(
            mean_over_tasks(meta, summed, len(grad_norm)),
            loss,
            metrics,
            InnerSolution(detached(params), curvature.objective, grad_norm, steps),
            Certificate.of(
                grad_norm,
                solution,
                self.damping,
                exact_curvature=self.curvature == "hessian",
                inner_rate=self._inner_rate(solution),
            ),
            x,
            solver_state,
        )

    def _inner_rate(self, solution: Solution) -> float | None:
        """Return the inner rate, or None if the Ritz values are not those of the inner Hessian."""
        if self.curvature != "hessian" or solution.preconditioned:
            return None
        rate: float | None = getattr(self.inner, "stable_rate", None)
        return rate

    def _curvature(
        self, problem: BilevelProblem, params: Params, meta: Meta, task: Any
    ) -> Curvature:
        make: type[Hessian] | type[GaussNewton] = (
            Hessian if self.curvature == "hessian" else GaussNewton
        )
        if self.linearisation == "kept":
            captured = CapturedHessian.of(problem, params, meta, task) if make is Hessian else None
            return make(problem, params, meta, task) if captured is None else captured
        return Recomputed(make, problem, params, meta, task)

    def _damped(self, curvature: Curvature) -> Any:
        if not self.damping:
            return curvature.matvec
        return lambda v: [a + self.damping * x for a, x in zip(curvature.matvec(v), v, strict=True)]


def _mean_of(kept: Tensor, values: Tensor) -> Tensor:
    """Return the mean over the `kept` tasks, with a task axis of length 1; 0 if none is kept."""
    weights = broadcast(kept.to(values.dtype) / kept.sum().clamp_min(1), values)
    return (weights * values).sum(0, keepdim=True)

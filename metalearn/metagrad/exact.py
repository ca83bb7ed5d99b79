"""How wrong a meta-gradient is: its distance from the exact one of its own problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.problem import BilevelProblem, Meta
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, like_tree


class NotConverged(ArithmeticError):
    """The exact meta-gradient could not be had to the accuracy that was asked for."""


def meta_gradient_error(
    metagrad: MetaGradient, problem: BilevelProblem, meta: Meta, task: TaskBatch
) -> float:
    """|g - exact| / |exact|, g in the precision of `meta`, the exact one in float64.

    The exact one of `Unrolled` is the derivative of all its K inner steps; that of `Implicit` the
    derivative of the converged inner problem (`exact_implicit`), whatever its inner loop reached.

    Raises:
        UsageError: another kind of meta-gradient.
        NotConverged: see `exact_implicit`.
    """
    if not isinstance(metagrad, Unrolled | Implicit):
        raise UsageError(f"{type(metagrad).__name__} has no exact gradient to be held to")
    found = metagrad(problem, meta, task).grads
    wide = like_tree(meta, [x.detach().double() for x in leaves_of(meta)])
    wide_task = task.to(torch.float64)
    if isinstance(metagrad, Unrolled):
        whole = replace(metagrad, backend="batched", truncate=None, checkpoint=None)
        exact = whole(problem, wide, wide_task).grads
    else:
        start = metagrad.adapt(problem, wide, wide_task).params
        exact = exact_implicit(problem, wide, wide_task, start)
    flat = [torch.cat([x.flatten().double() for x in leaves_of(tree)]) for tree in (found, exact)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def exact_implicit(
    problem: BilevelProblem,
    meta: Meta,
    task: TaskBatch,
    start: dict[str, torch.Tensor],
    tol: float = 1e-8,
) -> Any:
    """The meta-gradient of the inner problem solved from `start` until its gradient is below `tol`,
    the linear system to a residual of 1e-10; float64.

    Gradient descent brings the iterate near a minimum, Newton's method into it. The network must
    be smooth: with ReLU minima lie at kinks, where the gradient stays near 1e-2 and no exact one
    exists (`Conv4(activation="silu")`).

    Raises:
        NotConverged: the inner gradient or the residual stays above its tolerance.
    """

    class From:
        """The same problem, begun elsewhere."""

        inner_objective = staticmethod(problem.inner_objective)
        outer_objective = staticmethod(problem.outer_objective)

        @staticmethod
        def init(meta: Meta, task: TaskBatch) -> dict[str, torch.Tensor]:
            return start

    def objective(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return problem.inner_objective(params, meta, task)

    newton = NewtonCG(60, cg_iters=100, tol=tol, halvings=40)
    for rate in (0.1, 0.05, 0.02, 0.01):
        start = GradientDescent(300, rate, tol=tol)(objective, start).params
        solution = newton(objective, start)
        start = solution.params
        if solution.grad_norm.max() <= tol:
            break
    solver = Implicit(GradientDescent(0, 1.0), CG(2000, rtol=1e-10))
    result = solver(From(), meta, task)
    certificate = result.certificate
    assert certificate is not None and certificate.relative_residual is not None
    gradient, residual = certificate.inner_grad_norm.max(), certificate.relative_residual.max()
    if gradient > tol or residual > 1e-10:
        raise NotConverged(
            f"the inner gradient's norm is {gradient:.1e} and the solve's residual {residual:.1e}; "
            f"expected at most {tol:.0e} and 1e-10"
        )
    return result.grads

"""Reference gradients: the exact gradient that a meta-gradient estimates, and its error."""

from __future__ import annotations

from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.problem import BilevelProblem, Meta
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, like_tree, relative_error


class NotConverged(ArithmeticError):
    """The exact meta-gradient was not reached to the accuracy that was asked for."""


def meta_gradient_error(
    metagrad: MetaGradient, problem: BilevelProblem, meta: Meta, task: TaskBatch
) -> float:
    """Return |g - exact| / |exact| of a meta-gradient g in the precision of `meta`.

    The exact gradient is in float64. `metagrad.estimates` says which it is:

    - "unrolled": the derivative through all steps of the inner loop;
    - "implicit": that of the converged inner problem (`exact_implicit`), however far the inner loop
      came.

    Raises:
        UsageError: the meta-gradient estimates neither.
        NotConverged: see `exact_implicit`.
    """
    if metagrad.estimates is None:
        raise UsageError(
            f"{type(metagrad).__name__} estimates no exact gradient: expected 'unrolled' or "
            "'implicit' as its `estimates`. Name it there."
        )
    found = metagrad(problem, meta, task).grads
    wide = like_tree(meta, [x.detach().double() for x in leaves_of(meta)])
    wide_task = task.to(torch.float64)
    if metagrad.estimates == "unrolled":
        exact = Unrolled(metagrad.inner, backend="batched")(problem, wide, wide_task).grads
    else:
        start = metagrad.adapt(problem, wide, wide_task).params
        exact = exact_implicit(problem, wide, wide_task, start)
    return relative_error(found, exact)


def exact_implicit(
    problem: BilevelProblem,
    meta: Meta,
    task: TaskBatch,
    start: dict[str, torch.Tensor],
    tol: float = 1e-8,
) -> Any:
    """Return the meta-gradient at the solution of the inner problem, in float64.

    Gradient descent from `start` comes near a minimum, and Newton's method solves it to an inner
    gradient below `tol`. The linear system is solved to a relative residual of 1e-10. The network
    must be smooth (`Conv4(activation="silu")`): with ReLU, minima lie at kinks, where the gradient
    stays near 1e-2 and no exact gradient exists.

    Raises:
        NotConverged: the inner gradient or the residual stays above its tolerance.
    """

    class From:
        """The problem with another start of the inner loop."""

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

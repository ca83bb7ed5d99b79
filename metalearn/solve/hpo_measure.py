"""What is measured of a search for hyper-parameters, and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.bench.counted import Counted
from metalearn.inner import LBFGS, NewtonCG
from metalearn.linear_solve import CG
from metalearn.memory import peak_bytes
from metalearn.metagrad import Implicit
from metalearn.problem import BilevelProblem, Meta, Params, begun_at
from metalearn.solve.hpo_data import Split
from metalearn.solve.hpo_problems import WeightDecay
from metalearn.solve.hpo_search import Search, Visit
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, like_tree

OTHER = 1e-6
"""The decay of a linear model's biases, which holds the constant that softmax leaves free."""


def linear(split: Split, spread: float = 1.0) -> WeightDecay:
    """Ridge or multinomial logistic regression, from weights of 0; see `WeightDecay`."""
    inputs = split.folds.support_x.shape[-1]
    model = nn.Linear(inputs, split.outputs, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    judged = split.folds.query_x.shape[0] * split.folds.query_x.shape[1]
    problem = WeightDecay(model, OTHER, spread, prior=1 / judged)
    device = split.folds.support_x.device
    problem.start = {name: p.to(device) for name, p in problem.start.items()}
    return problem


def penalties(split: Split, log: float, per_feature: bool) -> Meta:
    """Meta of `linear`: one penalty of exp(log), or a common one and every feature's own."""
    x = split.folds.support_x
    common = x.new_full((), log)
    if not per_feature:
        return {"weight": common}
    return {"weight": {"common": common, "own": x.new_zeros(x.shape[-1])}}


def curvature(problem: WeightDecay, meta: Meta, task: TaskBatch) -> float:
    """A bound on the largest eigenvalue of a linear model's inner Hessian, any weights."""
    x = torch.cat([task.support_x, torch.ones_like(task.support_x[..., :1])], dim=-1)
    largest = torch.linalg.eigvalsh(x.mT @ x / x.shape[1])[:, -1].max()
    # Of the squared error's second derivative, and a bound on softmax's.
    factor = 2.0 if task.support_y.is_floating_point() else 0.5
    return float(factor * largest + problem.log_decay(meta, "weight").exp().max())


def solved(problem: BilevelProblem, meta: Meta, task: TaskBatch, start: Params | None) -> Params:
    """The inner problem solved to a gradient of 1e-10; float64, strongly convex."""
    return (
        NewtonCG(100, cg_iters=300, tol=1e-10, halvings=40)(
            lambda params: problem.inner_objective(params, meta, task),
            problem.init(meta, task) if start is None else start,
        )
    ).params


def exact_hypergradient(
    problem: BilevelProblem, meta: Meta, task: TaskBatch, start: Params | None = None
) -> Meta:
    """The implicit gradient at that solution, its system solved to a residual of 1e-12."""
    begun = begun_at(problem, solved(problem, meta, task, start))
    return Implicit(LBFGS(0), CG(5000, rtol=1e-12))(begun, meta, task).grads


def ridge_hypergradient(problem: WeightDecay, meta: Meta, task: TaskBatch) -> Meta:
    """The closed form for ridge regression, by linear algebra alone.

    With X and Z the folds' training and validation features (a column of ones for the bias), D the
    diagonal of penalties: w = A^-1 (2 / n) X'y, A = (2 / n) X'X + D; and since dw / dl_i =
    -A^-1 e_i d_i w_i, d outer / dl_i = -d_i w_i (A^-1 v)_i, v = (2 / m) Z'(Z w - z).
    """
    x, z = (
        torch.cat([part, torch.ones_like(part[..., :1])], dim=-1)
        for part in (task.support_x, task.query_x)
    )
    inputs = task.support_x.shape[-1]
    decay = problem.log_decay(meta, "weight").exp().expand(inputs)
    diagonal = torch.cat([decay, decay.new_full((1,), problem.other)])
    a = 2 / x.shape[1] * x.mT @ x + diagonal.diag()
    w = torch.linalg.solve(a, 2 / x.shape[1] * x.mT @ task.support_y)
    v = 2 / z.shape[1] * z.mT @ (z @ w - task.query_y)
    by_log = (-diagonal * (w * torch.linalg.solve(a, v))[..., 0]).mean(dim=0)[:inputs]
    if isinstance(meta["weight"], dict):
        own = problem.spread * by_log + problem.prior * meta["weight"]["own"]
        return {"weight": {"common": by_log.sum(), "own": own}}
    return {"weight": by_log.sum() if meta["weight"].dim() == 0 else by_log}


def flat(tree: Any) -> Tensor:
    return torch.cat([x.detach().flatten().double() for x in leaves_of(tree)])


def relative_error(found: Any, exact: Any) -> float:
    """|found - exact| / |exact| over all leaves."""
    return float((flat(found) - flat(exact)).norm() / flat(exact).norm())


def slope_error(
    problem: BilevelProblem, meta: Meta, grads: Any, task: TaskBatch, directions: int, seed: int
) -> float:
    """|g'V - differences| / |differences| along so many random orthonormal directions V (a basis
    where meta is no larger), by fourth-order differences of the inner problem solved to 1e-10.

    A step of 1e-2 leaves a truncation of about 1e-8 and the inner solve's 1e-10 over the step.
    """
    start, size = solved(problem, meta, task, None), flat(meta).numel()
    g = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(size, min(size, directions), generator=g, dtype=torch.float64)
    )
    basis, step, found = basis.to(flat(meta)), 1e-2, []
    for v in basis.T:
        values = []
        for k in (1, -1, 2, -2):
            moved, leaves = flat(meta) + k * step * v, leaves_of(meta)
            parts = moved.split([x.numel() for x in leaves])
            at = like_tree(meta, [p.view_as(x) for p, x in zip(parts, leaves, strict=True)])
            params = solved(problem, at, task, start)
            values.append(float(problem.outer_objective(params, at, task)[0].mean()))
        found.append((8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step))
    differences = torch.tensor(found, dtype=torch.float64)
    along = (flat(grads) @ basis).cpu()
    return float((along - differences).norm() / differences.norm())


def grid_search(split: Split, points: int, bounds: Sequence[float], tol: float) -> dict[str, Any]:
    """One common penalty, at points spaced evenly in its logarithm from bounds[0] to bounds[1].

    Every point is one training of all folds, from the solution at the next heavier penalty: a path,
    as a careful user would run it. The whole set is then trained anew at every point too, to know
    the best that any choice could have had on the test set; that is not counted.
    """
    problem = linear(split)
    grid = np.geomspace(bounds[1], bounds[0], points)
    losses, gradients = {}, {}
    for name, task in (("folds", split.folds), ("whole", split.whole)):
        counted, params = Counted(problem), problem.init({}, task)
        losses[name] = []
        for penalty in grid:
            meta = penalties(split, math.log(penalty), per_feature=False)
            params = fitted(counted, meta, task, params, tol)
            losses[name].append(float(problem.outer_objective(params, meta, task)[0].mean()))
        gradients[name] = counted.gradients
    chosen = int(np.argmin(losses["folds"]))
    return {
        "trainings": points,
        "gradients": gradients["folds"],
        "validation_loss": losses["folds"][chosen],
        "test_loss": losses["whole"][chosen],
        "best_test_loss": min(losses["whole"]),
        "penalty": float(grid[chosen]),
    }


def fitted(
    problem: BilevelProblem, meta: Meta, task: TaskBatch, start: Params, tol: float
) -> Params:
    """The inner problem solved from start to a gradient of tol."""
    return LBFGS(5000, memory=20, tol=tol).minimise(
        lambda params: problem.inner_objective(params, meta, task), start
    )[0]


def judged(problem: WeightDecay, visit: Visit, split: Split, tol: float) -> dict[str, float]:
    """The test set's loss and accuracy after a training on all folds at a visit's meta."""
    start = problem.init(visit.meta, split.whole)
    params = fitted(problem, visit.meta, split.whole, start, tol)
    metrics = problem.outer_objective(params, visit.meta, split.whole)[1]
    return {f"test_{name}": float(value.mean()) for name, value in metrics.items()}


def path(search: Search) -> list[dict[str, Any]]:
    """A row for each hypergradient of a search."""
    rows: list[dict[str, Any]] = []
    for step, visit in enumerate(search.visits):
        result = visit.result
        row = {
            "hypergradient": step + 1,
            "seconds": visit.seconds,
            "gradients": visit.gradients,
            "products": visit.products,
            "inner_grad_norm": float(result.inner.grad_norm.max()),
            "objective": visit.loss,
        }
        row |= {f"validation_{name}": float(v.mean()) for name, v in result.metrics.items()}
        rows.append(row)
    return rows


def peak_of_one(search: Search, meta: Meta, device: torch.device) -> int:
    """Of the search's first hypergradient, made once more and not remembered."""
    metagrad = search.method(0, meta)
    return peak_bytes(lambda: metagrad(search.problem, meta, search.task), device)[1]

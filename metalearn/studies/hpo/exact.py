"""The reference hyper-gradients: a closed form, finite differences, a solve to the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, GMRES, BiCGStab, Dense, Neumann, NormalCG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.problem import BilevelProblem, Meta
from metalearn.problems.hyper_parameters import FeaturePenalties
from metalearn.problems.training_task import TrainingTask
from metalearn.tree import leaves_of, like_tree

NEWTON = NewtonCG(100, cg_iters=300, tol=1e-10, halvings=40)


def solved(problem: BilevelProblem, meta: Meta, task: TrainingTask) -> TrainingTask:
    """Return the task with its start at the solution, to an inner gradient of 1e-10.

    The problem is strongly convex, in float64.
    """
    return replace(task, params=FirstOrder(NEWTON).adapt(problem, meta, task).params)


def exact_hypergradient(problem: BilevelProblem, meta: Meta, task: TrainingTask) -> Meta:
    """Return the implicit gradient at the solution, with a linear residual of 1e-12."""
    return Implicit(NEWTON, CG(5000, rtol=1e-12))(problem, meta, task).grads


def ridge_hypergradient(problem: FeaturePenalties, meta: Meta, task: TrainingTask) -> Meta:
    """Return the closed form for ridge regression, by linear algebra alone.

    With X and Z the training and validation features (a column of ones for the bias) and D the
    diagonal of penalties: w = A^-1 (2 / n) X'y, A = (2 / n) X'X + D; and since dw / dl_i =
    -A^-1 e_i d_i w_i, d outer / dl_i = -d_i w_i (A^-1 v)_i, v = (2 / m) Z'(Z w - z).
    """
    x, z = (
        torch.cat([part, torch.ones_like(part[:, :1])], dim=1) for part in (problem.train.x, task.x)
    )
    features = x.shape[1] - 1
    learned = problem.log_penalties(meta).exp().expand(features)
    diagonal = torch.cat([learned, learned.new_zeros(1)]) + problem.decay
    a = 2 / len(x) * x.T @ x + diagonal.diag()
    w = torch.linalg.solve(a, 2 / len(x) * x.T @ problem.train.y)
    v = 2 / len(z) * z.T @ (z @ w - task.y)
    by_log = -learned * (w * torch.linalg.solve(a, v))[:features, 0]
    common = {"common": by_log.sum()}
    if "own" not in meta:
        return common
    return common | {"own": problem.spread * by_log + problem.prior * meta["own"]}


def flat(tree: Any) -> Tensor:
    return torch.cat([x.detach().flatten().double() for x in leaves_of(tree)])


def relative_error(found: Any, exact: Any) -> float:
    """Return |found - exact| / |exact| over all leaves."""
    return float((flat(found) - flat(exact)).norm() / flat(exact).norm())


def slope_error(
    problem: BilevelProblem,
    meta: Meta,
    grads: list[Any],
    task: TrainingTask,
    directions: int,
    seed: int,
) -> list[float]:
    """Return |g'V - d| / |d| of each gradient g, d the finite differences along V.

    V are `directions` random orthonormal directions, or a basis if meta is no larger. The
    differences are of fourth order, of the fully solved problem. A step of 1e-2 has a truncation
    error of about 1e-8; the inner solve adds its 1e-10 over the step.
    """
    task, leaves = solved(problem, meta, task), leaves_of(meta)
    g, size, step = torch.Generator().manual_seed(seed), flat(meta).numel(), 1e-2
    random = torch.randn(size, min(size, directions), generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(random)[0].to(flat(meta))

    def value(z: Tensor) -> Tensor:
        parts = z.split([x.numel() for x in leaves])
        at = like_tree(meta, [p.view_as(x) for p, x in zip(parts, leaves, strict=True)])
        return problem.outer_objective(solved(problem, at, task).params, at, task)[0].mean()

    def slope(v: Tensor) -> Tensor:
        one, other, two, opposite = (value(flat(meta) + k * step * v) for k in (1, -1, 2, -2))
        return (8 * (one - other) - (two - opposite)) / (12 * step)

    differences = torch.stack([slope(v) for v in basis.T])
    return [float((flat(g) @ basis - differences).norm() / differences.norm()) for g in grads]


def claiming_exactness(problem: FeaturePenalties, meta: Meta) -> dict[str, MetaGradient]:
    """Return every meta-gradient that is exact for a linear model with enough iterations.

    The unrolled meta-gradient is exact from the solution on: its backward pass is then a descent
    of the linear system. Its rate and momentum are those of Polyak's heavy ball, for a curvature
    between the least penalty and the largest eigenvalue.
    """
    high, low = problem.curvature(meta), float(problem.log_penalties(meta).exp().min())
    momentum = ((high**0.5 - low**0.5) / (high**0.5 + low**0.5)) ** 2
    heavy_ball = GradientDescent(1000, 4 / (high**0.5 + low**0.5) ** 2, momentum)
    found: dict[str, MetaGradient] = {
        "CG": Implicit(NEWTON, CG(2000, rtol=1e-12)),
        "CG, Gauss-Newton": Implicit(NEWTON, CG(2000, rtol=1e-12), curvature="gauss_newton"),
        "Neumann": Implicit(NEWTON, Neumann(20000, rtol=1e-12)),
        "GMRES": Implicit(NEWTON, GMRES(700, restart=700, rtol=1e-12)),
        "BiCGStab": Implicit(NEWTON, BiCGStab(2000, rtol=1e-12)),
        "normal CG": Implicit(NEWTON, NormalCG(5000, rtol=1e-12)),
        "unrolled from the solution": Unrolled(heavy_ball, backend="batched"),
    }
    if problem.outputs * problem.train.x.shape[1] <= 100:
        found["dense"] = Implicit(NEWTON, Dense())
    return found

"""The bilevel problems of a chosen condition number whose meta-gradient is known without autograd.

Both problems have iMAML's form: meta is the initialisation theta, and lambda / 2 |phi - theta|^2
ties phi to theta. The exact meta-gradient is lambda A^-1 v, where A is the inner Hessian and v the
outer gradient at the inner solution. Each task has its own theta, so that a batch gives each task's
own gradient (over T), and several seeds cost little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, root
from scipy.special import expit
from torch import Tensor

from metalearn.problem import BilevelProblem, Meta, Params


class KnownProblem(BilevelProblem, Protocol):
    """A problem with its exact meta-gradient.

    meta: {"theta": (T, size)}.
    task: the numbers of the tasks.
    exact: (T, size), each task's own meta-gradient at `meta`.
    curvature: the least eigenvalue of the inner Hessian at a solution, and the largest anywhere.
    condition: the condition number of the inner Hessian at the solutions.
    """

    meta: dict[str, Tensor]
    task: range
    exact: Tensor
    curvature: tuple[float, float]
    condition: float


def _slice(task: range) -> slice:
    """Return a slice, which takes views; an index would copy the data at every evaluation."""
    return slice(task.start, task.stop)


class Quadratic:
    """A quadratic inner and outer objective.

    Inner: (phi - u)' H (phi - u) / 2 + lambda / 2 |phi - theta|^2. Outer: |phi - c|^2 / 2.

    A = H + lambda I has eigenvalues spaced evenly in their logarithm from 1 to `condition`, in a
    random basis; lambda is 1/2. theta, u and c are standard normal. A linear model with a squared
    loss, the synthetic setting of the iMAML paper, is a quadratic of this form.
    """

    prox = 0.5

    def __init__(self, condition: float, size: int, seeds: Sequence[int]) -> None:
        draws = [_quadratic(condition, size, seed) for seed in seeds]
        hessians, self.u, self.c, theta = (torch.stack(parts) for parts in zip(*draws, strict=True))
        identity = torch.eye(size, dtype=torch.float64)
        self.hessian = hessians - self.prox * identity
        self.meta = {"theta": theta}
        self.task = range(len(seeds))
        self.curvature, self.condition = (1.0, float(condition)), float(condition)
        pull = (self.hessian @ self.u[:, :, None])[:, :, 0] + self.prox * theta
        phi = torch.linalg.solve(hessians, pull)
        self.exact = self.prox * torch.linalg.solve(hessians, phi - self.c)

    def init(self, meta: Meta, task: range) -> Params:
        return {"phi": meta["theta"][_slice(task)]}

    def inner_objective(self, params: Params, meta: Meta, task: range) -> Tensor:
        i = _slice(task)
        away, moved = params["phi"] - self.u[i], params["phi"] - meta["theta"][i]
        bent = (self.hessian[i] @ away[:, :, None])[:, :, 0]
        return 0.5 * (away * bent).sum(1) + 0.5 * self.prox * (moved * moved).sum(1)

    def outer_objective(
        self, params: Params, meta: Meta, task: range
    ) -> tuple[Tensor, dict[str, Tensor]]:
        away = params["phi"] - self.c[_slice(task)]
        return 0.5 * (away * away).sum(1), {}


def _quadratic(condition: float, size: int, seed: int) -> tuple[Tensor, ...]:
    """Draw A, u, c and theta."""
    g = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(g.standard_normal((size, size)))
    hessian = basis * np.geomspace(1, condition, size) @ basis.T
    return tuple(torch.from_numpy(a) for a in (hessian, *g.standard_normal((3, size))))


class Logistic:
    """The logistic regression with a proximal term.

    Inner: the mean loss of n = 64 + 2 size examples + lambda / 2 |phi - theta|^2. Outer: the mean
    loss of n other examples.

    The features' covariance has eigenvalues spaced evenly in their logarithm from
    1 / (4 condition) to 1, in a random basis. Labels are drawn from the model at theta, whose
    logits have a standard deviation of 1. lambda gives the inner Hessian the condition number
    `condition` *at the solution*. The inner objective is divided by that Hessian's least
    eigenvalue, which changes neither the solution nor the meta-gradient.
    """

    def __init__(self, condition: float, size: int, seeds: Sequence[int]) -> None:
        draws = [_logistic(condition, size, seed) for seed in seeds]
        self.x, self.y, self.query_x, self.query_y, theta, self.exact, scales = (
            torch.stack([torch.as_tensor(d[i]) for d in draws]) for i in range(7)
        )
        self.scale, self.prox, largest = scales.unbind(1)
        self.meta = {"theta": theta}
        self.task = range(len(seeds))
        self.curvature, self.condition = (1.0, float(largest.max())), float(condition)

    def init(self, meta: Meta, task: range) -> Params:
        return {"phi": meta["theta"][_slice(task)]}

    def inner_objective(self, params: Params, meta: Meta, task: range) -> Tensor:
        i = _slice(task)
        moved = params["phi"] - meta["theta"][i]
        loss = _loss(self.x[i], self.y[i], params["phi"])
        return self.scale[i] * (loss + 0.5 * self.prox[i] * (moved * moved).sum(1))

    def outer_objective(
        self, params: Params, meta: Meta, task: range
    ) -> tuple[Tensor, dict[str, Tensor]]:
        i = _slice(task)
        return _loss(self.query_x[i], self.query_y[i], params["phi"]), {}


def _loss(x: Tensor, y: Tensor, phi: Tensor) -> Tensor:
    logits = (x @ phi[:, :, None])[:, :, 0]
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)


def _logistic(condition: float, size: int, seed: int) -> tuple[Any, ...]:
    """Draw one task.

    Returns:
        x, y, query x, query y, theta, the exact meta-gradient, and an array of the scale, lambda
        and the largest scaled curvature anywhere.
    """
    g = np.random.default_rng(seed)
    n, identity = 64 + 2 * size, np.eye(size)
    basis, _ = np.linalg.qr(g.standard_normal((size, size)))
    spread = np.sqrt(np.geomspace(0.25 / condition, 1, size))

    def features() -> np.ndarray:
        """Draw features whose sample covariance is exact."""
        columns, _ = np.linalg.qr(g.standard_normal((n, size)))
        return np.sqrt(n) * columns * spread @ basis.T

    x, query_x, theta = features(), features(), g.standard_normal(size)
    theta /= np.sqrt(np.mean((x @ theta) ** 2))
    y, query_y = (1.0 * (g.random(n) < expit(each @ theta)) for each in (x, query_x))

    def gradient(x: np.ndarray, y: np.ndarray, phi: np.ndarray) -> np.ndarray:
        return x.T @ (expit(x @ phi) - y) / n

    def hessian(x: np.ndarray, phi: np.ndarray) -> np.ndarray:
        sure = expit(x @ phi)
        return (x.T * (sure * (1 - sure))) @ x / n

    def solution(prox: float) -> np.ndarray:
        def slope(phi: np.ndarray) -> np.ndarray:
            return gradient(x, y, phi) + prox * (phi - theta)

        def bend(phi: np.ndarray) -> np.ndarray:
            return hessian(x, phi) + prox * identity

        found: np.ndarray = root(slope, theta, jac=bend, tol=1e-14).x
        return found

    def excess(log_prox: float) -> float:
        prox = math.exp(log_prox)
        return float(np.linalg.cond(hessian(x, solution(prox)) + prox * identity) - condition)

    prox = float(np.exp(brentq(excess, np.log(1e-4 / condition), 0.0, xtol=1e-12)))
    phi = solution(prox)
    at = hessian(x, phi) + prox * identity
    exact = prox * np.linalg.solve(at, gradient(query_x, query_y, phi))
    scale = 1 / np.linalg.eigvalsh(at)[0]
    # A sigmoid's slope is at most 1/4, and the covariance's largest eigenvalue is 1.
    return x, y, query_x, query_y, theta, exact, np.array([scale, prox, scale * (prox + 0.25)])


PROBLEMS: dict[str, Callable[[float, int, Sequence[int]], KnownProblem]] = {
    "quadratic": Quadratic,
    "logistic": Logistic,
}


def relative_error(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Return the relative error of (T, size) gradients: geometric mean and range over the tasks."""
    errors = (found - exact).norm(dim=1) / exact.norm(dim=1)
    # Errors below rounding are unknown, and the logarithm of 0 is infinite.
    errors = errors.clamp_min(torch.finfo(errors.dtype).eps)
    return {
        "error": float(errors.log().mean().exp()),
        "error_low": float(errors.min()),
        "error_high": float(errors.max()),
    }

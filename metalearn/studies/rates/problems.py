"""Small stochastic problems with an exact hypergradient, for the rates of the bilevel methods.

A problem holds several replicas, each with params and meta of its own and the same examples in an
order of its own. A batch thus has other examples for each replica. The relative error over all
replicas is a root mean square over independent runs, for the price of one run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from metalearn.inner import InnerSolution, NewtonCG
from metalearn.linear_solve import Dense
from metalearn.metagrad import Implicit
from metalearn.problem import FullBatch, Meta, Params

T = TypeVar("T")
Data = tuple[Tensor, ...]
TYPE = torch.float64
SOLVER = NewtonCG(30, cg_iters=20, tol=1e-14)


class Quadratic:
    """Least squares in params w and meta m; everything has a closed form.

    inner: mean over (a, c, t) of (a'w - c'm - t)^2 / 2, with a Hessian of known eigenvalues
    outer: mean over (a, t) of (a'w - t)^2 / 2 + |m|^2 / 20

    Args:
        replicas: S; params are {"w": (S, 4)}, meta is {"m": (S, 3)}.
        low: the least eigenvalue of the inner Hessian; the largest is 1.

    `least` and `largest` are the extreme eigenvalues of the inner Hessian at the inner minimum.
    """

    largest = 1.0

    def __init__(
        self, replicas: int = 1, low: float = 0.4, examples: int = 64, seed: int = 0
    ) -> None:
        self.replicas, self.least, normal = replicas, low, _normal(seed)
        a = normal(examples, 4)
        white = a @ torch.linalg.inv(torch.linalg.cholesky(a.T @ a / examples)).T
        turn, _ = torch.linalg.qr(normal(4, 4))
        roots = torch.logspace(math.log10(low), 0.0, 4, dtype=TYPE).sqrt()
        self._inner = white * roots @ turn.T, normal(examples, 3) / 2, normal(examples)
        self._outer = normal(examples, 4), normal(examples)
        self.inner = shuffled(self._inner, replicas, seed)
        self.outer = shuffled(self._outer, replicas, seed + 1)

    def begin(self) -> Meta:
        """Return the meta at which the rates are measured."""
        return {"m": torch.ones(self.replicas, 3, dtype=TYPE)}

    def init(self, meta: Meta) -> Params:
        return {"w": torch.zeros(self.replicas, 4, dtype=TYPE)}

    def inner_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        a, c, t = batch
        fit, goal = torch.linalg.vecdot(a, params["w"]), torch.linalg.vecdot(c, meta["m"]) + t
        return (fit - goal).square().sum(1).mean() / 2

    def outer_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        a, t = batch
        residual = torch.linalg.vecdot(a, params["w"]) - t
        return residual.square().sum(1).mean() / 2 + meta["m"].square().sum() / 20

    def exact(self, meta: Meta) -> Meta:
        """Return the exact hypergradient by the normal equations."""
        (a, c, t), (b, s) = self._inner, self._outer
        gram = a.T @ a
        w = torch.linalg.solve(gram, a.T @ (c @ meta["m"].T + t[:, None]))
        outer = b.T @ (b @ w - s[:, None]) / len(s)
        return {"m": (c.T @ a @ torch.linalg.solve(gram, outer)).T + meta["m"] / 10}

    def one_replica(self) -> Quadratic:
        """Return the problem of one replica."""
        return _one_replica(self)


class FeaturePenalties:
    """Logistic regression with a learned L2 penalty of each feature; a `StochasticProblem`.

    inner: mean logistic loss + sum_d exp(l_d) w_d^2 / 2;   outer: mean logistic loss

    params are {"w": (d,)}, meta is {"l": (d,)}. A batch is (x, y), of (n, d) and (n,), with y of 0
    and 1. With S replicas they are (S, d), (n, S, d) and (n, S), and the losses are sums over them.
    """

    def init(self, meta: Meta) -> Params:
        return {"w": torch.zeros_like(meta["l"])}

    def inner_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        penalty = (meta["l"].exp() * params["w"].square()).sum() / 2
        return self.outer_loss(params, meta, batch) + penalty

    def outer_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        x, y = batch
        logits = torch.linalg.vecdot(x, params["w"])
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(0).sum()


class Logistic(FeaturePenalties):
    """Logistic regression of replicas on made data of five features.

    Args:
        replicas: S; params are {"w": (S, 5)}, meta is {"l": (S, 5)}.

    `least` is the least eigenvalue of the inner Hessian at the inner minimum, and `largest` an
    upper bound on all.
    """

    log_penalty = -1.5

    def __init__(self, replicas: int = 1, examples: int = 96, seed: int = 0) -> None:
        self.replicas, normal = replicas, _normal(seed)
        truth = normal(5)

        def draw() -> Data:
            x = normal(examples, 5)
            return x, (x @ truth + normal(examples) > 0).to(TYPE)

        self._inner, self._outer = draw(), draw()
        self.inner = shuffled(self._inner, replicas, seed)
        self.outer = shuffled(self._outer, replicas, seed + 1)
        x = self._inner[0]
        gram = x.T @ x / len(x)
        penalty = math.exp(self.log_penalty)
        self.largest = float(torch.linalg.eigvalsh(gram)[-1]) / 4 + penalty
        chances = torch.sigmoid(x @ self._solved().params["w"][0, 0])
        hessian = (x.T * chances * (1 - chances)) @ x / len(x)
        self.least = float(torch.linalg.eigvalsh(hessian)[0]) + penalty

    def begin(self) -> Meta:
        """Return the meta at which the rates are measured."""
        return {"l": torch.full((self.replicas, 5), self.log_penalty, dtype=TYPE)}

    def exact(self, meta: Meta) -> Meta:
        """Return the exact hypergradient by implicit differentiation in float64.

        All replicas have the meta of the first.
        """
        one = self.one_replica()
        problem = FullBatch(one, one.inner, one.outer)
        found = Implicit(SOLVER, Dense())(problem, {"l": meta["l"][:1]}, range(1)).grads
        return {"l": found["l"].expand(self.replicas, -1)}

    def one_replica(self) -> Logistic:
        """Return the problem of one replica."""
        return _one_replica(self)

    def _solved(self) -> InnerSolution:
        one, task = self.one_replica(), range(1)
        meta, problem = one.begin(), FullBatch(one, one.inner, one.outer)
        return SOLVER(
            lambda params: problem.inner_objective(params, meta, task), problem.init(meta, task)
        )


def _one_replica(problem: T) -> T:
    """Return a copy of a problem with one replica of its examples."""
    one: Any = copy.copy(problem)
    one.replicas = 1
    one.inner, one.outer = (tuple(x[:, None] for x in d) for d in (one._inner, one._outer))
    return one


def full(data: Sequence[Tensor]) -> DataLoader[Any]:
    """Return a loader of all data as one batch."""
    return DataLoader([tuple(data)], batch_size=None)  # type: ignore[arg-type]


def shuffled(data: Data, replicas: int, seed: int) -> Data:
    """Return examples of S replicas, (n, S, ...): each replica has an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    count = len(data[0])
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(replicas)], 1)
    return tuple(x[orders] for x in data)


def _normal(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=TYPE)

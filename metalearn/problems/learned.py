"""The problems that learn a part of their own inner loop: its rates, or its proximal strength.

Each wraps a problem and is itself a problem. Its meta is {"theta": the wrapped problem's meta, ...:
the learned part}. A meta-gradient without a derivative in the learned part refuses it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from metalearn.captured import WrapsCaptured
from metalearn.problems.protocol import (
    BilevelProblem,
    CompositeProblem,
    Meta,
    Params,
    TrainableProblem,
    in_full_precision,
    query_predictions,
)
from metalearn.tree import half_squared_distance, leaves_of


class _Learned(WrapsCaptured, TrainableProblem):
    """A problem around a problem, whose meta is the wrapped one's "theta" and a learned part."""

    problem: Any

    @property
    def mode(self) -> str:  # type: ignore[override]
        return str(self.problem.mode)

    @property
    def any_ways(self) -> bool:  # type: ignore[override]
        return bool(self.problem.any_ways)

    def modes(self) -> dict[str, BilevelProblem]:
        """Return this problem around each mode of the wrapped one."""
        found: dict[str, BilevelProblem] = {}
        for name, problem in self.problem.modes().items():
            own = copy.copy(self)
            own.problem = problem
            found[name] = own
        return found

    @property
    def relative_rounding(self) -> float | None:
        """The relative rounding of the wrapped problem."""
        found: float | None = getattr(self.problem, "relative_rounding", None)
        return found

    def in_full_precision(self) -> _Learned:
        """Return this problem around the wrapped one in full precision."""
        problem = in_full_precision(self.problem)
        if problem is self.problem:
            return self
        own = copy.copy(self)
        own.problem = problem
        return own

    def adapted_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each adapted tensor."""
        shapes: dict[str, torch.Size] = self.problem.adapted_shapes()
        return shapes

    def check(self, meta: Meta, task: Any) -> None:
        self.problem.check(meta["theta"], task)

    def init(self, meta: Meta, task: Any) -> Params:
        start: Params = self.problem.init(meta["theta"], task)
        return start

    def query_predictions(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """Return the predictions of the wrapped problem.

        Raises:
            UsageError: as in `metalearn.problem.query_predictions`.
        """
        return query_predictions(self.problem, params, meta["theta"], task)


class LearnedRates(_Learned):
    """The `problem` with learned inner rates: Meta-SGD's (Li et al. 2017), or MAML++'s.

    meta = {"theta": ..., "log_rates": {name: tensor}} has an entry for each of the problem's
    params. exp(log_rates) multiplies the inner solver's `lr`; begin with zeros. Rates stay
    positive, unlike Meta-SGD's.

    Only `Unrolled` has a gradient in the rates. With `truncate` the gradient leaves out the steps
    before the last ones, so that the rates of those steps stay as they are.

    Args:
        problem: the problem whose inner loop takes the rates.
        by_step: False: one rate for all steps, of any shape that broadcasts against one task's
            tensor. The tensor's own shape gives a rate per number; () gives a rate per tensor.
            True: a leading axis (K, ...) has a rate for each inner step, and steps after the K-th
            take the last one. (K,) gives the rate per layer and step of Antoniou et al. 2019.
        steps: the K with which `begin` starts.
    """

    def __init__(self, problem: BilevelProblem, by_step: bool = False, steps: int = 1) -> None:
        self.problem = problem
        self.by_step, self.steps = by_step, max(steps, 1)

    def begin(self) -> Meta:
        """Return the wrapped problem's start, and zeros: a rate for each number, or (K,)."""
        theta = self.problem.begin()
        like = leaves_of(theta)[0].detach()
        log_rates = {
            name: like.new_zeros((self.steps,) if self.by_step else shape).requires_grad_()
            for name, shape in self.adapted_shapes().items()
        }
        return {"theta": theta, "log_rates": log_rates}

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        return self.problem.inner_objective(params, meta["theta"], task)

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(params, meta["theta"], task)

    def step_rates(self, meta: Meta) -> dict[str, Tensor]:
        rates = {name: log_rate.exp() for name, log_rate in meta["log_rates"].items()}
        return rates if self.by_step else {name: rate[None] for name, rate in rates.items()}


class LearnedProx(_Learned):
    """The `problem` with a proximal term exp(log_prox) / 2 |phi - init|^2 of learned strength.

    meta = {"theta": ..., "log_prox": a 0-d tensor}; begin with the logarithm of a fixed strength.
    The problem's inner objective should have no such term of its own. With `FewShot(prox=0)` this
    is iMAML with a learned lambda.

    The outer objective's metric "prox" is the strength.

    Args:
        start: the strength with which `begin` starts, above 0.
    """

    def __init__(self, problem: CompositeProblem, start: float = 1.0) -> None:
        self.problem, self.start = problem, start

    def begin(self) -> Meta:
        """Return the wrapped problem's start, and the logarithm of the strength."""
        theta = self.problem.begin()
        log_prox = leaves_of(theta)[0].detach().new_tensor(math.log(self.start))
        return {"theta": theta, "log_prox": log_prox.requires_grad_()}

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Meta, task: Any) -> tuple[Any, Params]:
        return self.problem.inner_outputs(params, meta["theta"], task), params

    def inner_loss(self, outputs: tuple[Any, Params], meta: Meta, task: Any) -> Tensor:
        own, params = outputs
        start = self.problem.init(meta["theta"], task)
        distance = half_squared_distance(list(params.values()), [start[name] for name in params])
        loss = self.problem.inner_loss(own, meta["theta"], task)
        return loss + meta["log_prox"].exp() * distance

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.problem.outer_objective(params, meta["theta"], task)
        return loss, {**metrics, "prox": meta["log_prox"].detach().exp().expand(len(loss))}

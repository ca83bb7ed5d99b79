"""Problems that learn a part of their own inner loop: its rates, its proximal strength.

Each wraps a problem and is one, whose meta is {"theta": the problem's own meta, ...: what is
learned beside it}. Nothing else knows of it: every meta-gradient differentiates it as any other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metalearn.problem import BilevelProblem, CompositeProblem, Meta, Params, query_predictions
from metalearn.tree import half_squared_distance


class LearnedRates:
    """`problem` with inner rates that are learned, Meta-SGD (Li et al. 2017).

    meta = {"theta": ..., "log_rates": {name: tensor}}, an entry for each of the problem's params,
    of any shape that broadcasts against one task's: the parameter's own for a rate a number, () for
    a rate a tensor. exp(log_rates) multiplies the inner solver's `lr`; begin with zeros.

    The params that the inner loop sees are w = 0 at the start, with

        phi = init + s w,   s = exp(log_rates / 2),

    so that w <- w - lr d inner / d w is phi <- phi - lr s^2 d inner / d phi: gradient descent, with
    momentum or without, steps along each number at the rate lr exp(log_rate). (Adam's steps do not
    depend on the gradient's scale, and go with s.) Unlike the paper's, rates cannot turn negative.

    An implicit gradient in log_rates is zero but for rounding: what the inner loop converges to
    does not depend on its rates. Gauss-Newton curvature is not offered.
    """

    def __init__(self, problem: BilevelProblem) -> None:
        self.problem = problem

    def init(self, meta: Meta, task: Any) -> Params:
        start = self.problem.init(meta["theta"], task)
        return {name: p.new_zeros(p.shape) for name, p in start.items()}

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        return self.problem.inner_objective(self._phi(params, meta, task), meta["theta"], task)

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(self._phi(params, meta, task), meta["theta"], task)

    def query_predictions(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """The predictions of `problem`; raises as `metalearn.problem.query_predictions` does."""
        phi = self._phi(params, meta, task)
        return query_predictions(self.problem, phi, meta["theta"], task)

    def _phi(self, params: Params, meta: Meta, task: Any) -> Params:
        start, log_rates = self.problem.init(meta["theta"], task), meta["log_rates"]
        return {name: start[name] + (log_rates[name] / 2).exp() * w for name, w in params.items()}


class LearnedProx:
    """`problem` with a proximal term exp(log_prox) / 2 |phi - init|^2 whose strength is learned.

    meta = {"theta": ..., "log_prox": a 0-d tensor}; begin with the logarithm of a fixed strength.
    The problem's inner objective should have no such term of its own: `FewShot(prox=0)`, for which
    this is iMAML with a learned lambda.

    The outer objective's metrics say what the strength is ("prox").
    """

    def __init__(self, problem: CompositeProblem) -> None:
        self.problem = problem

    def init(self, meta: Meta, task: Any) -> Params:
        return self.problem.init(meta["theta"], task)

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

    def query_predictions(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """The predictions of `problem`; raises as `metalearn.problem.query_predictions` does."""
        return query_predictions(self.problem, params, meta["theta"], task)

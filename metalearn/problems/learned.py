"""The problems that learn a part of their own inner loop: its rates, or its proximal strength.

Each wraps a problem and is itself a problem. Its meta is {"theta": the wrapped problem's meta, ...:
the learned part}. A meta-gradient without a derivative in the learned part refuses it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metalearn.problem import BilevelProblem, CompositeProblem, Meta, Params, query_predictions
from metalearn.tree import half_squared_distance


class LearnedRates:
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
    """

    def __init__(self, problem: BilevelProblem, by_step: bool = False) -> None:
        self.problem = problem
        self.by_step = by_step

    def init(self, meta: Meta, task: Any) -> Params:
        return self.problem.init(meta["theta"], task)

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        return self.problem.inner_objective(params, meta["theta"], task)

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.problem.outer_objective(params, meta["theta"], task)

    def query_predictions(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """Return the predictions of `problem`.

        Raises:
            UsageError: as in `metalearn.problem.query_predictions`.
        """
        return query_predictions(self.problem, params, meta["theta"], task)

    def step_rates(self, meta: Meta) -> dict[str, Tensor]:
        rates = {name: log_rate.exp() for name, log_rate in meta["log_rates"].items()}
        return rates if self.by_step else {name: rate[None] for name, rate in rates.items()}


class LearnedProx:
    """The `problem` with a proximal term exp(log_prox) / 2 |phi - init|^2 of learned strength.

    meta = {"theta": ..., "log_prox": a 0-d tensor}; begin with the logarithm of a fixed strength.
    The problem's inner objective should have no such term of its own. With `FewShot(prox=0)` this
    is iMAML with a learned lambda.

    The outer objective's metric "prox" is the strength.
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
        """Return the predictions of `problem`.

        Raises:
            UsageError: as in `metalearn.problem.query_predictions`.
        """
        return query_predictions(self.problem, params, meta["theta"], task)

"""The learned factors of the inner optimiser's rates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn.bilevel.method import Method
from metalearn.errors import UsageError
from metalearn.problems.protocol import Meta
from metalearn.problems.stochastic import RatedStochasticProblem, StochasticProblem


def learned_rates(
    problem: StochasticProblem, meta: Meta, params: Mapping[str, Tensor]
) -> list[Tensor | None]:
    """Return the factors of the params' moves, in the order of params; None: 1."""
    named = problem.inner_rates(meta) if isinstance(problem, RatedStochasticProblem) else {}
    return [named.get(name) for name in params]


@torch.no_grad()
def fixed_rates(
    problem: StochasticProblem, meta: Meta, params: Mapping[str, Tensor]
) -> list[Tensor | None]:
    """Return `learned_rates` without a graph."""
    return learned_rates(problem, meta, params)


def check_rates(
    problem: StochasticProblem, method: Method, meta: Meta, params: Mapping[str, Tensor]
) -> None:
    """Check the rates that a problem learns.

    Raises:
        UsageError: the method does not go through the inner optimiser, or a rate is of no param or
            does not broadcast to it.
    """
    if not isinstance(problem, RatedStochasticProblem):
        return
    if not method.sees_optimiser:
        raise UsageError(
            f"method={type(method).__name__}: expected one that goes through the inner optimiser, "
            "whose rates the problem learns. Use TruncatedUnrolling."
        )
    for name, rate in problem.inner_rates(meta).items():
        if name not in params:
            raise UsageError(
                f"problem.inner_rates has {name!r}: expected names of params. Leave it out."
            )
        try:
            rate.expand_as(params[name])
        except RuntimeError as error:
            raise UsageError(
                f"problem.inner_rates has {name!r} of shape {tuple(rate.shape)}: expected one that "
                f"broadcasts to {tuple(params[name].shape)}. Reshape it."
            ) from error

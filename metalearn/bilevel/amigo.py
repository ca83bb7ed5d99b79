"""AmIGO: approximate implicit differentiation with warm starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn.bilevel.linear_system import LinearSystemMethod, descend
from metalearn.bilevel.method import Hypergradient, check_counts, check_numbers

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class AmIGO(LinearSystemMethod):
    """Amortised implicit gradient optimisation; Arbel & Mairal 2022.

    An outer step takes `inner_steps` steps of the inner optimiser from the last params, then
    `system_steps` stochastic gradient steps on x'Ax/2 - b'x from the last x. b is of one outer
    batch, and each step has an inner batch of its own.

    At a fixed meta, with all data in a batch and gradient descent inside, an outer step shrinks the
    error of the params by (1 - inner lr mu)^inner_steps and that of x by
    (1 - system_lr mu)^system_steps, mu the least eigenvalue of A. With minibatches and constant
    rates the mean-square error falls at this rate to a floor in proportion to the rates.

    Args:
        inner_steps: the steps of the inner optimiser in an outer step.
        system_steps: the steps on the linear system in an outer step.
        system_lr: their rate, below 2 / (the largest eigenvalue of A + damping). The factor of the
            inner scheduler multiplies it.
        damping: added to A's diagonal; at least 0.

    Raises:
        UsageError: an option is out of its range.
    """

    inner_steps: int = 10
    system_steps: int = 10
    system_lr: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "inner_steps", "system_steps")
        check_numbers(self, "system_lr")
        check_numbers(self, "damping", zero=True)

    def step(self, at: Descent) -> Hypergradient:
        at.descend_inner(self.inner_steps)
        rate = self.system_lr * at.inner.rate_factor
        outer = at.oracle.outer(at.params, at.meta, at.outer_batch())
        x = at.memory["x"]
        for _ in range(self.system_steps):
            batch = at.inner_batch()
            inner = at.oracle.products(at.params, at.meta, batch, x, mixed=False)
            x = descend(x, inner.hessian, outer.by_params, rate, self.damping)
        at.memory["x"] = x
        return self.at_solution(at, outer, at.inner_batch())

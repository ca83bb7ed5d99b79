"""SOBA: the params, the linear system and meta move together, in a single loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn.bilevel.linear_system import LinearSystemMethod, descend
from metalearn.bilevel.method import Hypergradient, check_numbers
from metalearn.bilevel.oracle import Gradients, Products

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class SOBA(LinearSystemMethod):
    """The stochastic bilevel algorithm; Dagréou et al. 2022.

    An outer step draws one inner and one outer batch. At the same point it computes

        d params = grad inner,   d x = A x - b,   d meta = direct - (d2 inner / d meta d params) x

    and then moves all three. The v of the authors' code is -x.

    At a fixed meta this is stochastic gradient descent on a triangular system. With all data in a
    batch the error falls as (1 - lr mu)^t, but for a factor t where both rates are equal. With
    minibatches and rates in proportion to 1 / t the mean-square error is O(1 / t). With a moving
    meta and rates in proportion to t^(-1/2), as in the authors' code, the paper bounds the squared
    norm of the hypergradient by O(log(t) t^(-1/2)).

    Args:
        system_lr: the rate of x, below 2 / (the largest eigenvalue of A + damping). The factor of
            the inner scheduler multiplies it.
        damping: added to A's diagonal; at least 0.

    Raises:
        UsageError: an option is out of its range.
    """

    system_lr: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "system_lr")
        check_numbers(self, "damping", zero=True)

    def step(self, at: Descent) -> Hypergradient:
        inner, outer = self.estimates(at)
        rate = self.system_lr * at.inner.rate_factor
        x = descend(at.memory["x"], inner.hessian, outer.by_params, rate, self.damping)
        at.inner.step(inner.gradient)
        at.memory["x"] = x
        return Hypergradient.implicit(outer, inner.mixed, inner.loss)

    def estimates(self, at: Descent) -> tuple[Products, Gradients]:
        """Return estimates of the inner and outer derivatives at the present point."""
        inner = at.oracle.products(at.params, at.meta, at.inner_batch(), at.memory["x"])
        return inner, at.oracle.outer(at.params, at.meta, at.outer_batch())

"""stocBiO: the Neumann series with a fresh batch for each factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn.bilevel.linear_system import LinearSystemMethod
from metalearn.bilevel.method import Hypergradient, check_counts, check_numbers

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class StocBiO(LinearSystemMethod):
    """The stochastic bilevel optimiser; Ji, Yang & Liang 2021, with algorithm 3 for x.

    x = eta sum_{q=0..Q} prod_{j<=q} (I - eta A_j) b, where every A_j is of its own inner batch.
    It is computed anew in each outer step: only the params are warm-started. Batches have the
    loader's size; the paper's analysis lets the size fall with j. The authors' code for data
    cleaning differs: one batch gives all factors, and eta multiplies the last term alone.

    The expected x differs from A^-1 b by (I - eta A)^(Q+1) A^-1 b, thus by at most
    (1 - eta mu)^(Q+1) |b| / mu, mu the least eigenvalue of A. The variance is in proportion to
    1 / (batch size).

    Args:
        inner_steps: the steps of the inner optimiser in an outer step.
        terms: Q, the number of factors.
        step_size: eta, below 2 / (the largest eigenvalue of A + damping).
        damping: added to A's diagonal; at least 0.

    Raises:
        UsageError: an option is out of its range.
    """

    inner_steps: int = 10
    terms: int = 10
    step_size: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "inner_steps")
        check_counts(self, "terms", least=0)
        check_numbers(self, "step_size")
        check_numbers(self, "damping", zero=True)

    def step(self, at: Descent) -> Hypergradient:
        at.descend_inner(self.inner_steps)
        outer = at.oracle.outer(at.params, at.meta, at.outer_batch())
        term = total = outer.by_params
        for _ in range(self.terms):
            batch = at.inner_batch()
            inner = at.oracle.products(at.params, at.meta, batch, term, mixed=False)
            term = [
                t - self.step_size * (a + self.damping * t)
                for t, a in zip(term, inner.hessian, strict=True)
            ]
            total = [s + t for s, t in zip(total, term, strict=True)]
        x = [self.step_size * s for s in total]
        at.memory["x"] = x
        return self.at_solution(at, outer, at.inner_batch())

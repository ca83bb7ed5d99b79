"""F2SA: a penalty method, which takes no second derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from metalearn.autograd import add
from metalearn.bilevel.method import Hypergradient, Method, check_counts, check_numbers

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class F2SA(Method):
    """The fully first-order stochastic approximation; Kwon et al. 2023.

    Two copies of the params are kept: z minimises the inner loss g, and y minimises f / lambda + g,
    f the outer loss. An outer step takes `inner_steps` steps of both, each by an optimiser of its
    own. Then

        hypergradient = d f(y) / d meta + lambda (d g(y) / d meta - d g(z) / d meta).

    At the minimisers it differs from the exact one by O(1 / lambda). The y-step is along
    f / lambda + g, which is the paper's step at the rate alpha = (inner lr) / lambda.
    `Descent.params` are z, and lambda (z - y) is an estimate of A^-1 (d f / d params).

    The penalty of outer step k is penalty (k + 1)^growth. With growth = 1/7 the squared norm of the
    hypergradient falls as k^(-2/7) with noise on both levels, with 1/3 as k^(-2/3) without noise.
    These are the paper's rates; there the step sizes fall too.

    Args:
        inner_steps: the steps of each of the two inner optimisers in an outer step.
        penalty: lambda of the first outer step, in units of outer loss / inner loss. A small
            multiple of (outer smoothness) / (inner strong convexity) at least.
        growth: the power at which the penalty grows; at least 0.
        common_batch: True: one inner batch gives both d g(y) and d g(z), whose noise then cancels.
            False: a batch for each, as in the paper; the variance grows as lambda^2.

    Raises:
        UsageError: an option is out of its range.
    """

    copies: ClassVar[tuple[str, ...]] = ("penalised",)

    inner_steps: int = 10
    penalty: float = 1.0
    growth: float = 1 / 7
    common_batch: bool = True

    def __post_init__(self) -> None:
        check_counts(self, "inner_steps")
        check_numbers(self, "penalty")
        check_numbers(self, "growth", zero=True)

    def penalty_at(self, count: int) -> float:
        """Return lambda after `count` outer steps."""
        return self.penalty * float(count + 1) ** self.growth

    def step(self, at: Descent) -> Hypergradient:
        penalty, penalised = self.penalty_at(at.count), at.copies["penalised"]
        for _ in range(self.inner_steps):
            at.descend_inner(1)
            y = at.copy("penalised")
            outer = at.oracle.outer(y, at.meta, at.outer_batch())
            inner = at.oracle.inner(y, at.meta, at.inner_batch())
            penalised.step(
                [g + f / penalty for g, f in zip(inner.by_params, outer.by_params, strict=True)]
            )
        first = at.inner_batch()
        second = first if self.common_batch else at.inner_batch()
        return self._direction(at, penalty, first, second, at.outer_batch())

    def direction(self, at: Descent, inner_batch: Any, outer_batch: Any) -> Hypergradient:
        return self._direction(at, self._last_penalty(at), inner_batch, inner_batch, outer_batch)

    def solution(self, at: Descent) -> list[Tensor] | None:
        pairs = zip(at.params.values(), at.copy("penalised").values(), strict=True)
        return [self._last_penalty(at) * (z - y).detach() for z, y in pairs]

    def _last_penalty(self, at: Descent) -> float:
        """Return lambda of the last outer step."""
        return self.penalty_at(max(at.count - 1, 0))

    def _direction(
        self, at: Descent, penalty: float, batch_y: Any, batch_z: Any, outer_batch: Any
    ) -> Hypergradient:
        y = at.copy("penalised")
        outer = at.oracle.outer(y, at.meta, outer_batch)
        at_y = at.oracle.inner(y, at.meta, batch_y, by_meta=True)
        at_z = at.oracle.inner(at.params, at.meta, batch_z, by_meta=True)
        by_meta = [
            add(f, None if a is None or b is None else penalty * (a - b))
            for f, a, b in zip(outer.by_meta, at_y.by_meta, at_z.by_meta, strict=True)
        ]
        return Hypergradient(by_meta, outer.loss, at_z.loss, {"penalty": penalty})

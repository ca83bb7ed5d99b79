"""The linear system (A + damping I) x = b of implicit differentiation, solved by its batches.

A = d2 inner / d params2 and b = d outer / d params. The hypergradient is
direct - (d2 inner / d meta d params) x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metalearn.bilevel.method import Hypergradient, Method, zeros
from metalearn.bilevel.oracle import Gradients

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


class LinearSystemMethod(Method):
    """A method that keeps x in its memory under the name "x", and begins at x = 0."""

    def begin(self, at: Descent) -> dict[str, list[Tensor]]:
        return {"x": zeros(at)}

    def direction(self, at: Descent, inner_batch: Any, outer_batch: Any) -> Hypergradient:
        outer = at.oracle.outer(at.params, at.meta, outer_batch)
        return self.at_solution(at, outer, inner_batch)

    def at_solution(self, at: Descent, outer: Gradients, inner_batch: Any) -> Hypergradient:
        """Return direct - (d2 inner / d meta d params) x, by an inner batch, at the present x."""
        x = at.memory["x"]
        inner = at.oracle.products(at.params, at.meta, inner_batch, x, hessian=False)
        return Hypergradient.implicit(outer, inner.mixed, inner.loss)

    def solution(self, at: Descent) -> list[Tensor] | None:
        return at.memory["x"]


def descend(
    x: Sequence[Tensor], image: Sequence[Tensor], b: Sequence[Tensor], rate: float, damping: float
) -> list[Tensor]:
    """Return x - rate (A x + damping x - b), a gradient step on x'Ax/2 - b'x.

    Args:
        image: A x.
    """
    return [v - rate * (a + damping * v - target) for v, a, target in zip(x, image, b, strict=True)]

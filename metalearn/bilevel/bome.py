"""BOME: a dynamic barrier on the value function, which takes no second derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metalearn.autograd import add
from metalearn.bilevel.method import Hypergradient, Method, check_counts, check_numbers, zeros

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class BOME(Method):
    """Bilevel optimisation made easy; Liu et al. 2022, algorithm 1.

    With f the outer and g the inner loss, q(params, meta) = g(params, meta) - g(reference, meta),
    where `inner_steps` gradient steps from the params lead to the reference, which counts as a
    constant. Params and meta move along

        grad f + lambda grad q,
        lambda = max((control |grad q|^2 - <grad f, grad q>) / |grad q|^2, 0)

    with all products over params and meta together. The inner optimiser moves the params, the outer
    one meta. The paper has one rate for both. The authors' code has control q in the place of
    control |grad q|^2.

    The direction of meta is no hypergradient on the way. At a fixed meta it comes to one where
    params settle: there grad f + lambda grad q is 0 in params, as for a penalty method, with an
    error of O(1 / lambda), thus O(1 / control). With moving params and meta at the rate
    xi = K^(-1/2), the least of |grad f + lambda grad q|^2 + q in K steps is
    O(K^(-1/4) + exp(-b inner_steps)), by the paper, for all data in a batch.

    Args:
        inner_steps: the steps from the params to the reference.
        inner_lr: the rate of these steps, below 2 / (the largest eigenvalue of A).
        control: eta, above 0; how fast q is made to fall.

    Raises:
        UsageError: an option is out of its range.
    """

    inner_steps: int = 10
    inner_lr: float = 0.1
    control: float = 0.5

    def __post_init__(self) -> None:
        check_counts(self, "inner_steps")
        check_numbers(self, "inner_lr", "control")

    def begin(self, at: Descent) -> dict[str, list[Tensor]]:
        return {"x": zeros(at)}

    def step(self, at: Descent) -> Hypergradient:
        batches = [at.inner_batch() for _ in range(self.inner_steps + 1)]
        found, by_params, x = self._directions(at, batches, at.outer_batch())
        at.inner.step(by_params)
        at.memory["x"] = x
        return found

    def direction(self, at: Descent, inner_batch: Any, outer_batch: Any) -> Hypergradient:
        batches = [inner_batch] * (self.inner_steps + 1)
        return self._directions(at, batches, outer_batch)[0]

    def solution(self, at: Descent) -> list[Tensor] | None:
        return at.memory["x"]

    def _directions(
        self, at: Descent, batches: list[Any], outer_batch: Any
    ) -> tuple[Hypergradient, list[Tensor], list[Tensor]]:
        """Return the directions of meta and of the params, and lambda (reference - params)."""
        start = [p.detach() for p in at.params.values()]
        reference = start
        for batch in batches[:-1]:
            named = dict(zip(at.params, reference, strict=True))
            grads = at.oracle.inner(named, at.meta, batch).by_params
            reference = [p - self.inner_lr * g for p, g in zip(reference, grads, strict=True)]
        outer = at.oracle.outer(at.params, at.meta, outer_batch)
        inner = at.oracle.inner(at.params, at.meta, batches[-1], by_meta=True)
        named = dict(zip(at.params, reference, strict=True))
        below = at.oracle.inner(named, at.meta, batches[-1], by_meta=True)
        by_meta = [
            None if a is None or b is None else a - b
            for a, b in zip(inner.by_meta, below.by_meta, strict=True)
        ]
        slope = [*inner.by_params, *by_meta]
        square = _dot(slope, slope)
        along = _dot([*outer.by_params, *outer.by_meta], slope)
        multiplier = ((self.control * square - along) / square).clamp_min(0.0) if square else square
        pairs = zip(outer.by_params, inner.by_params, strict=True)
        by_params = [f + multiplier * q for f, q in pairs]
        directions = [
            add(f, None if q is None else multiplier * q)
            for f, q in zip(outer.by_meta, by_meta, strict=True)
        ]
        gap = inner.loss - below.loss
        metrics = {"penalty": float(multiplier), "value_gap": float(gap)}
        x = [multiplier * (r - p) for r, p in zip(reference, start, strict=True)]
        return Hypergradient(directions, outer.loss, inner.loss, metrics), by_params, x


def _dot(a: list[Tensor | None], b: list[Tensor | None]) -> Tensor:
    """Return the dot product of two lists, where None is zero, in their widest type; 0-d."""
    terms = [(x * y).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack([t.double() for t in terms]).sum() if terms else torch.zeros(())

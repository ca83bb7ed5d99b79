"""The interface of every bilevel method, and the hypergradient that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metalearn.autograd import subtract
from metalearn.bilevel.oracle import Gradients
from metalearn.errors import MAX_FLOAT32, UsageError

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class Hypergradient:
    """An estimate of d outer / d meta.

    Args:
        by_meta: a list in the order of meta's leaves; None where nothing depends on a leaf.
        outer_loss, inner_loss: the losses of the batches, 0-d.
        metrics: further numbers of the method, for the log.
    """

    by_meta: list[Tensor | None]
    outer_loss: Tensor
    inner_loss: Tensor
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def implicit(
        cls, outer: Gradients, mixed: Sequence[Tensor | None], inner_loss: Tensor
    ) -> Hypergradient:
        """Return direct - (d2 inner / d meta d params) x, by the implicit function theorem."""
        by_meta = [subtract(d, m) for d, m in zip(outer.by_meta, mixed, strict=True)]
        return cls(by_meta, outer.loss, inner_loss)


class Method:
    """A bilevel method: a frozen dataclass whose fields are its options.

    It keeps no state: the params, its memory and the optimisers are those of the `Descent`.

    Attributes:
        copies: the names of further iterates of the shape of the params, each with an optimiser of
            its own, which `Descent.copies` holds.
        sees_optimiser: True if the hypergradient goes through the inner optimiser, and so knows of
            its weight decay and of learned rates.
    """

    copies: ClassVar[tuple[str, ...]] = ()
    sees_optimiser: ClassVar[bool] = False

    def begin(self, at: Descent) -> dict[str, list[Tensor]]:
        """Return the memory at the start: lists of tensors by name."""
        return {}

    def step(self, at: Descent) -> Hypergradient:
        """Move the params and the memory by one outer step, and return the hypergradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def direction(self, at: Descent, inner_batch: Any, outer_batch: Any) -> Hypergradient:
        """Return the hypergradient of the present state on given batches; nothing moves.

        On all data it is the mean of the hypergradients of batches, where the method is unbiased.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no direction")

    def solution(self, at: Descent) -> list[Tensor] | None:
        """Return the method's x = (d2 inner / d params2)^-1 (d outer / d params).

        None: the method has none.
        """
        return None


def zeros(at: Descent) -> list[Tensor]:
    """Return zeros like the params."""
    return [torch.zeros_like(p) for p in at.params.values()]


def check_counts(method: Method, *names: str, least: int = 1) -> None:
    """Raise UsageError if an option is no whole number of at least `least`."""
    for name in names:
        value = getattr(method, name)
        if type(value) is not int or value < least:
            raise UsageError(
                f"{type(method).__name__}({name}={value}): expected a whole number from {least} "
                "on. Give one."
            )


def check_numbers(method: Method, *names: str, zero: bool = False) -> None:
    """Raise UsageError if an option is no positive number; `zero` allows 0."""
    for name in names:
        value = getattr(method, name)
        number = type(value) in (int, float) and value <= MAX_FLOAT32
        if not number or not (value > 0 or (zero and value == 0)):
            least = "of at least 0" if zero else "above 0"
            raise UsageError(
                f"{type(method).__name__}({name}={value}): expected a number {least}, up to "
                f"{MAX_FLOAT32:.1e}. Give one."
            )

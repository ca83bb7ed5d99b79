"""SABA: SOBA with the variance reduction of SAGA in all directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalearn.bilevel.batches import BatchStream, FixedBatches
from metalearn.bilevel.oracle import Gradients, Products
from metalearn.bilevel.soba import SOBA
from metalearn.errors import UsageError

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


@dataclass(frozen=True)
class SABA(SOBA):
    """The stochastic average bilevel algorithm; Dagréou et al. 2022.

    It moves as `SOBA`. Each of the five quantities of a batch i (grad inner, A x, the mixed
    product, and the two gradients of the outer loss) is replaced by

        new_i - old_i + mean of old

    where `old` holds the last value of each batch (SAGA, Defazio et al. 2014). A first pass over
    the data fills it. Both loaders have `FixedBatches` as `batch_sampler`; with a batch size of 1 a
    value is kept for each example. The memory takes (batches) x (3 params + 2 meta) numbers.

    At a fixed meta with constant rates the error falls linearly, without a floor. With a moving
    meta and constant rates the squared norm of the hypergradient is O(1 / t), by the paper. The
    authors' code fills the memory with zeros by default.

    Raises:
        UsageError: a loader has other batches in each pass.
    """

    def begin(self, at: Descent) -> dict[str, list[Tensor]]:
        memory = super().begin(at)
        check_fixed("inner_loader", at.inner_stream)
        check_fixed("outer_loader", at.outer_stream)
        inner = []
        for batch in at.inner_stream.every():
            found = at.oracle.products(at.params, at.meta, batch, memory["x"])
            inner.append(_inner_values(found))
        outer = [
            _outer_values(at.oracle.outer(at.params, at.meta, batch))
            for batch in at.outer_stream.every()
        ]
        memory["inner_table"] = [torch.stack(values) for values in zip(*inner, strict=True)]
        memory["outer_table"] = [torch.stack(values) for values in zip(*outer, strict=True)]
        for level, stream in (("inner", at.inner_stream), ("outer", at.outer_stream)):
            weights = _weights(check_fixed(level, stream))
            memory[f"{level}_mean"] = [
                torch.tensordot(weights.to(table), table, dims=1)
                for table in memory[f"{level}_table"]
            ]
        return memory

    def estimates(self, at: Descent) -> tuple[Products, Gradients]:
        data, place = at.inner_stream.next()
        inner = at.oracle.products(at.params, at.meta, data, at.memory["x"])
        count = len(at.params)
        values = self._reduced(at, "inner", at.inner_stream, place, _inner_values(inner))
        inner = replace(
            inner,
            gradient=values[:count],
            hessian=values[count : 2 * count],
            mixed=_filled(inner.mixed, values[2 * count :]),
        )
        data, place = at.outer_stream.next()
        outer = at.oracle.outer(at.params, at.meta, data)
        values = self._reduced(at, "outer", at.outer_stream, place, _outer_values(outer))
        by_meta = _filled(outer.by_meta, values[count:])
        return inner, replace(outer, by_params=values[:count], by_meta=by_meta)

    def _reduced(
        self, at: Descent, level: str, stream: BatchStream, place: int | None, new: list[Tensor]
    ) -> list[Tensor]:
        """Return the estimates of the means, and put the new values in place of the old."""
        fixed = check_fixed(f"{level}_loader", stream)
        assert place is not None
        weight, batches = fixed.weight(place), len(fixed)
        table, mean = at.memory[f"{level}_table"], at.memory[f"{level}_mean"]
        changes = [weight * (v - rows[place]) for v, rows in zip(new, table, strict=True)]
        estimates = [c + m for c, m in zip(changes, mean, strict=True)]
        at.memory[f"{level}_mean"] = [m + c / batches for m, c in zip(mean, changes, strict=True)]
        for rows, v in zip(table, new, strict=True):
            rows[place] = v
        return estimates


def check_fixed(name: str, stream: BatchStream) -> FixedBatches:
    """Return the fixed batches of a stream.

    Raises:
        UsageError: it has none.
    """
    if stream.fixed is None:
        raise UsageError(
            f"{name} has other batches in each pass: expected fixed ones, of which SABA keeps "
            "gradients. Give DataLoader(data, batch_sampler=bilevel.FixedBatches(len(data), 32))."
        )
    return stream.fixed


def _weights(fixed: FixedBatches) -> Tensor:
    shares = [fixed.weight(place) for place in range(len(fixed))]
    return torch.tensor(shares, dtype=torch.float64) / len(fixed)


def _inner_values(found: Products) -> list[Tensor]:
    return [*found.gradient, *found.hessian, *(m for m in found.mixed if m is not None)]


def _outer_values(found: Gradients) -> list[Tensor]:
    return [*found.by_params, *(m for m in found.by_meta if m is not None)]


def _filled(like: Sequence[Tensor | None], values: Sequence[Tensor]) -> list[Tensor | None]:
    """Return values in the places that are not None in `like`."""
    rest = iter(values)
    return [None if v is None else next(rest) for v in like]

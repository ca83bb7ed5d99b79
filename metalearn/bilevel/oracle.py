"""The derivatives that the methods use, each the mean over a batch.

A batch is taken in micro-batches, and each process of a run takes its slice of it. The derivatives
are linear in the loss, so that the weighted mean over the parts is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.autograd import add, partials
from metalearn.bilevel.loss_scale import LossScale
from metalearn.errors import UsageError
from metalearn.nn.precision import TYPES, reduced, widened
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.problems.protocol import Meta, Params
from metalearn.problems.stochastic import StochasticProblem
from metalearn.tree import detached, leaves_of, requires_grad_copy

Precision = Literal["full", "bf16", "fp16"]


@dataclass(frozen=True)
class Gradients:
    """A loss and its gradients.

    Args:
        loss: 0-d.
        by_params: a list in the order of the params.
        by_meta: a list in the order of meta's leaves; None where the loss does not depend on one.
    """

    loss: Tensor
    by_params: list[Tensor]
    by_meta: list[Tensor | None]


@dataclass(frozen=True)
class Products:
    """The inner loss, its gradient, and products of its second derivatives with a vector x.

    Args:
        loss: 0-d.
        gradient: d inner / d params.
        hessian: (d2 inner / d params2) x.
        mixed: (d2 inner / d meta d params) x; None where the gradient does not depend on a leaf.
    """

    loss: Tensor
    gradient: list[Tensor]
    hessian: list[Tensor]
    mixed: list[Tensor | None]


class Oracle:
    """The losses of a problem, differentiated.

    Args:
        problem: the problem.
        precision: the type in which the losses are computed by `torch.autocast`; "full": that of
            the params. Gradients have the type of the params always.
        micro_batches: the parts in which a process takes a batch, for memory.
        ranks: the processes, which all see the same batches and take a slice each.

    Raises:
        UsageError: an unknown precision, micro_batches below 1, or fp16 where the device has none.
    """

    def __init__(
        self,
        problem: StochasticProblem,
        device: torch.device,
        precision: Precision = "full",
        micro_batches: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        if precision != "full" and precision not in TYPES:
            raise UsageError(
                f"precision={precision!r}: expected 'full', 'bf16' or 'fp16'. Give one."
            )
        if type(micro_batches) is not int or micro_batches < 1:
            raise UsageError(
                f"micro_batches={micro_batches}: expected a whole number from 1 on. Give one."
            )
        self._problem, self._device, self._ranks = problem, device, ranks
        self._precision, self._micro_batches = precision, micro_batches
        self.scale = LossScale(dynamic=precision == "fp16")

    def inner(self, params: Params, meta: Meta, batch: Any, by_meta: bool = False) -> Gradients:
        """Differentiate the inner loss; in meta only if asked for."""
        return self._gradients(self._problem.inner_loss, "inner_loss", params, meta, batch, by_meta)

    def outer(self, params: Params, meta: Meta, batch: Any) -> Gradients:
        """Differentiate the outer loss in params and meta."""
        return self._gradients(self._problem.outer_loss, "outer_loss", params, meta, batch, True)

    def products(
        self,
        params: Params,
        meta: Meta,
        batch: Any,
        x: Sequence[Tensor],
        hessian: bool = True,
        mixed: bool = True,
    ) -> Products:
        """Differentiate the inner loss twice, along x; the lists that are not asked for are empty.

        Args:
            x: tensors like the params.
        """
        count = len(params)
        size = self.scale.unit(x)
        along = [v / size for v in x]

        def evaluate(part: Any) -> list[Tensor | None]:
            leaves = requires_grad_copy(params)
            inputs = requires_grad_copy(meta) if mixed else detached(meta)
            loss = self._loss(self._problem.inner_loss, "inner_loss", leaves, inputs, part)
            at = list(leaves.values())
            found = partials(self.scale.up(loss), at, create_graph=True)
            gradient = _dense(found, at, "inner_loss")
            wanted = (at if hessian else []) + (leaves_of(inputs) if mixed else [])
            second = partials(gradient, wanted, along)
            by_params = [_zero_or(h, p) for h, p in zip(second, at, strict=False)]
            by_params = by_params if hessian else []
            rest = second[count:] if hessian else second
            return [loss.detach(), *[g.detach() for g in gradient], *by_params, *rest]

        loss, *found = self._mean(batch, evaluate)
        assert loss is not None
        gradient = [_present(g) for g in found[:count]]
        products = [None if v is None else v * size for v in found[count:]]
        split = count if hessian else 0
        return Products(loss, gradient, [_present(v) for v in products[:split]], products[split:])

    def _gradients(
        self,
        function: Callable[..., Tensor],
        name: str,
        params: Params,
        meta: Meta,
        batch: Any,
        by_meta: bool,
    ) -> Gradients:
        def evaluate(part: Any) -> list[Tensor | None]:
            leaves = requires_grad_copy(params)
            inputs = requires_grad_copy(meta) if by_meta else detached(meta)
            loss = self._loss(function, name, leaves, inputs, part)
            at = list(leaves.values())
            found = partials(self.scale.up(loss), at + (leaves_of(inputs) if by_meta else []))
            return [loss.detach(), *_dense(found[: len(at)], at, name), *found[len(at) :]]

        loss, *found = self._mean(batch, evaluate)
        assert loss is not None
        by_params = [_present(g) for g in found[: len(params)]]
        return Gradients(loss, by_params, found[len(params) :])

    def _loss(
        self, function: Callable[..., Tensor], name: str, params: Params, meta: Meta, batch: Any
    ) -> Tensor:
        with torch.enable_grad(), reduced(self._precision, self._device):
            loss = function(params, meta, batch)
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.is_floating_point():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(
                f"{name} returns {shape}: expected a 0-d tensor, the mean over the batch. Take the "
                "mean of its values."
            )
        return widened(loss)

    def _mean(
        self, batch: Any, evaluate: Callable[[Any], list[Tensor | None]]
    ) -> list[Tensor | None]:
        """Return the mean over the parts of a batch; the loss, which comes first, is unscaled."""
        while True:
            total: list[Tensor | None] = []
            for weight, part in self._parts(batch):
                found = evaluate(part)
                if weight != 1.0:
                    found = [None if v is None else weight * v for v in found]
                total = [add(a, b) for a, b in zip(total, found, strict=True)] if total else found
            loss, *scaled = self._sum_over_ranks(total)
            derivatives = self.scale.down(scaled)
            if self.scale.accepts(scaled):
                return [loss, *derivatives]

    def _parts(self, batch: Any) -> Iterator[tuple[float, Any]]:
        """Yield this process's parts of a batch with their shares of its examples."""
        if self._ranks.size == 1 and self._micro_batches == 1:
            yield 1.0, batch
            return
        examples = length(batch)
        own = self._ranks.local_slice(examples)
        here = own.stop - own.start
        if not here:  # a part of weight 0, which has the form that the sum over ranks needs
            yield 0.0, cut(batch, 0, 1)
            return
        parts = min(self._micro_batches, here)
        ends = [own.start + i * here // parts for i in range(parts + 1)]
        for start, stop in pairwise(ends):
            yield (stop - start) / examples, cut(batch, start, stop)

    def _sum_over_ranks(self, values: list[Tensor | None]) -> list[Tensor | None]:
        if self._ranks.size == 1:
            return values
        summed = list(values)
        for dtype in dict.fromkeys(v.dtype for v in values if v is not None):
            places = [i for i, v in enumerate(values) if v is not None and v.dtype == dtype]
            sums = self._ranks.all_reduce_sum([_present(values[i]) for i in places])
            for place, value in zip(places, sums, strict=True):
                summed[place] = value
        return summed


def length(batch: Any) -> int:
    """Return the number of examples of a batch: the first axis of its tensors.

    Raises:
        UsageError: it has no tensors, or they have different first axes.
    """
    tensors = [x for x in tree_leaves(batch) if isinstance(x, Tensor)]
    found = {len(x) if x.dim() else 0 for x in tensors}
    if len(found) != 1 or 0 in found:
        raise UsageError(
            f"a batch has tensors with first axes of {sorted(found)}: expected one number of "
            "examples. Use one process and micro_batches=1, or let every tensor begin with it."
        )
    return found.pop()


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return examples of a batch; what is no tensor is kept whole."""
    return tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, batch)


def _dense(found: Sequence[Tensor | None], at: Sequence[Tensor], name: str) -> list[Tensor]:
    """Return gradients with zeros for None; refuse a loss that depends on none of the params."""
    if all(g is None for g in found):
        raise UsageError(
            f"{name} depends on none of the params: expected a loss of them. Compute it from its "
            "argument params, not from a module's own tensors."
        )
    return [_zero_or(g, p) for g, p in zip(found, at, strict=True)]


def _zero_or(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value

"""Loaders that gather a whole batch at once, for data that lie in tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from metalearn.bilevel import FixedBatches


def batches(
    data: Sequence[Tensor], size: int, seed: int, fixed: bool = False, replacement: bool = True
) -> DataLoader[Any]:
    """Return a loader of batches of examples, in an order of its own generator.

    Args:
        data: tensors that begin with the examples.
        fixed: draw whole batches from a division of the examples, as SABA needs.
        replacement: draw the examples with replacement. False: every pass has each of them once,
            but those of a last batch that would be smaller.
    """
    rows = _Rows(*data)
    if fixed:
        sampler = FixedBatches(len(rows), size, seed)
        return DataLoader(rows, batch_sampler=sampler, collate_fn=_as_it_is)
    generator = torch.Generator().manual_seed(seed)
    draws = RandomSampler(rows, replacement=replacement, generator=generator)
    return DataLoader(rows, size, sampler=draws, collate_fn=_as_it_is, drop_last=not replacement)


class _Rows(TensorDataset):
    """A dataset that gathers a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(x[indices] for x in self.tensors)


def _as_it_is(batch: Any) -> Any:
    return batch

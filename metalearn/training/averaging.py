"""The average of meta-parameters over a run, which is often better than the last of them."""

from __future__ import annotations

from typing import Any

import torch

from metalearn.problem import Meta
from metalearn.tree import leaves_of, like_tree


class MovingAverage:
    """An exponential moving average of meta-parameters.

    After updates by theta_1, ..., theta_n it is

        a_n = (1 - decay) / (1 - decay^n) sum_k decay^(n-k) theta_k,

    with the bias correction of Adam (Kingma and Ba 2015): the weights add up to 1, and where the
    average began has none. Before the first update it is where it began.

    Args:
        decay: from 0, the last meta-parameters alone, up to 1, excluded.
        meta: where the average begins, a pytree of tensors that is copied.
    """

    def __init__(self, decay: float, meta: Meta) -> None:
        self.decay = decay
        self.updates = 0
        self.meta: Meta = like_tree(meta, [x.detach().clone() for x in leaves_of(meta)])

    @torch.no_grad()
    def update(self, meta: Meta) -> None:
        """Take the meta-parameters of one more meta-step in."""
        self.updates += 1
        # a_n = a_(n-1) + w_n (theta_n - a_(n-1)) is the sum above.
        weight = (1 - self.decay) / (1 - self.decay**self.updates)
        for mean, value in zip(leaves_of(self.meta), leaves_of(meta), strict=True):
            mean.lerp_(value, weight)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "meta": self.meta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for mean, value in zip(leaves_of(self.meta), leaves_of(state["meta"]), strict=True):
            mean.copy_(value)

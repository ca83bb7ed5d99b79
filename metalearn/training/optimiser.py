"""The outer loop of a problem that is solved in one process and keeps no checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metalearn.metagrad import MetaGradientResult
from metalearn.problem import BilevelProblem, Meta
from metalearn.tree import fixed, leaves_of, like_tree


def descend(
    problem: BilevelProblem,
    metagrad: Callable[..., MetaGradientResult],
    meta: Meta,
    task: Callable[[], Any],
    steps: int,
    lr: float,
    after: Callable[[int, Meta, MetaGradientResult], None],
) -> None:
    """The outer loop: so many steps of Adam along the meta-gradient.

    `task()` gives each meta-step its tasks; `after(step, meta, result)` sees the meta-parameters
    after it, which carry no graph and are its own.
    """
    meta = fixed(like_tree(meta, [x.clone() for x in leaves_of(meta)]))
    optimiser = torch.optim.Adam(leaves_of(meta), lr)
    carry: dict[str, Any] = {}
    for step in range(1, steps + 1):
        result = metagrad(problem, meta, task(), **carry)
        carry = result.carry
        for leaf, grad in zip(leaves_of(meta), leaves_of(result.grads), strict=True):
            leaf.grad = grad
        optimiser.step()
        after(step, like_tree(meta, [x.detach().clone() for x in leaves_of(meta)]), result)

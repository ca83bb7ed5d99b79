"""The Picard iteration z <- f(z)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn.fixed_point.search import Function, Search, check_options
from metalearn.linear_solve import Solution
from metalearn.tree import Tree


@dataclass(frozen=True)
class Picard:
    """The Picard iteration z <- z + damping (f(z) - z).

    It converges where f contracts, by the contraction's factor a step.

    Args:
        max_iters: the limit on applications of the function.
        rtol, atol: stop at |f(z) - z| <= max(rtol |f(z)|, atol).
        damping: in (0, 1]. Below 1 it also converges where f turns vectors by up to a half circle.

    Raises:
        ValueError: an option is out of its range.
    """

    max_iters: int = 100
    rtol: float = 1e-5
    atol: float = 0.0
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 < self.damping <= 1:
            raise ValueError(f"Picard(damping={self.damping}); expected a value in (0, 1]")

    @torch.no_grad()
    def __call__(self, function: Function, z0: Tree, batched: bool = False) -> Solution:
        search = Search(function, z0, batched, self.max_iters, self.rtol, self.atol)
        z = search.start
        while search.running.any():
            g = search.evaluate(z)
            z = search.move(z, self.damping * g)
        return search.solution()

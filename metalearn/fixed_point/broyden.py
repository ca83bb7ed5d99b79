"""The "good" Broyden method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.fixed_point.search import Function, Search, check_options
from metalearn.linear_solve import Solution
from metalearn.linear_solve.system import divide, norms
from metalearn.tree import Tree


@dataclass(frozen=True)
class Broyden:
    """The "good" Broyden method on g(z) = f(z) - z; Broyden 1965, Kelley 1995, chapter 7.

    The inverse Jacobian of g is kept as H = -I + sum_i u_i v_i', so that the first step is that of
    Picard's iteration. After a step s that changed g by y, the Sherman-Morrison formula (Kelley,
    equation 7.4) gives

            u = (s - H y) / (s' H y),   v = H' s.

    Args:
        max_iters: the limit on applications of the function.
        rtol, atol: stop at |f(z) - z| <= max(rtol |f(z)|, atol).
        memory: the number of updates kept; the memory is 2 `memory` + 6 iterates. When it is full,
            H starts again from -I (Kelley, section 7.3): without a single update, the other updates
            would be wrong.

    Raises:
        ValueError: an option is out of its range.
    """

    max_iters: int = 100
    rtol: float = 1e-5
    atol: float = 0.0
    memory: int = 20

    def __post_init__(self) -> None:
        check_options(self)
        if self.memory < 1:
            raise ValueError(f"Broyden(memory={self.memory}); expected at least 1")

    @torch.no_grad()
    def __call__(self, function: Function, z0: Tree, batched: bool = False) -> Solution:
        search = Search(function, z0, batched, self.max_iters, self.rtol, self.atol)
        z = search.start
        size = min(self.memory, self.max_iters)
        u, v = z.new_zeros((size, *z.shape)), z.new_zeros((size, *z.shape))
        g = search.evaluate(z)
        known = 0
        while search.running.any():
            step = -_product(u[:known], v[:known], g)
            z_next = search.move(z, step)
            g_next = search.evaluate(z_next)
            if known == size:
                known = 0
            else:
                # The update is the same for any multiple of (s, y). At unit length, the squares are
                # finite.
                length = norms(z_next - z)[:, None]
                s, y = divide(z_next - z, length), divide(g_next - g, length)
                hy = _product(u[:known], v[:known], y)
                v[known] = _product(v[:known], u[:known], s)
                curvature = torch.linalg.vecdot(s, hy)[:, None]
                # Leave out an update that would make H singular or huge, by u = 0.
                floor = torch.finfo(z.dtype).eps * (s.norm(dim=1) * hy.norm(dim=1))[:, None]
                sound = curvature.abs() > floor
                u[known] = torch.where(sound, (s - hy) / torch.where(sound, curvature, 1.0), 0.0)
                known += 1
            z, g = z_next, g_next
        return search.solution()


def _product(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Return (-I + sum_i left_i right_i') x, where each row is a system."""
    out = -x
    for a, b in zip(left, right, strict=True):
        out.addcmul_(torch.linalg.vecdot(b, x)[:, None], a)
    return out

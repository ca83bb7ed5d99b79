"""The Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.fixed_point.search import Function, Search, check_options
from metalearn.linear_solve import Solution
from metalearn.tree import Tree


@dataclass(frozen=True)
class Anderson:
    """The Anderson acceleration of Walker & Ni 2011, with a ridge and damping.

    "Anderson acceleration for fixed-point iterations", in the form with differences (equation 2.2).
    With g = f(z) - z and the last `window` differences dZ, dG of z and g as columns, it takes

            gamma = argmin |g - dG gamma|^2,   z <- z + damping g - (dZ + damping dG) gamma.

    On a linear f with a full window this is GMRES (their theorem 2.2); window=0 is Picard's
    iteration. The columns shrink with the residual. The normal equations that solve the least
    squares therefore have columns scaled to length 1.

    Args:
        max_iters: the limit on applications of the function.
        rtol, atol: stop at |f(z) - z| <= max(rtol |f(z)|, atol).
        window: the number m of differences kept; the memory is 2 m + 5 iterates.
        damping: the fraction of g that is added, in (0, 1].
        regularisation: the ridge on the scaled normal equations, whose diagonal is 1. It is never
            below the rounding unit of the state's type. A larger ridge is more cautious, and nearer
            to Picard's iteration.

    Raises:
        ValueError: an option is out of its range.
    """

    max_iters: int = 100
    rtol: float = 1e-5
    atol: float = 0.0
    window: int = 5
    damping: float = 1.0
    regularisation: float = 1e-10

    def __post_init__(self) -> None:
        check_options(self)
        if self.window < 0 or not 0 < self.damping <= 1 or not self.regularisation >= 0:
            raise ValueError(
                f"Anderson(window={self.window}, damping={self.damping}, regularisation="
                f"{self.regularisation}); expected window >= 0, damping in (0, 1], "
                "regularisation >= 0"
            )

    @torch.no_grad()
    def __call__(self, function: Function, z0: Tree, batched: bool = False) -> Solution:
        search = Search(function, z0, batched, self.max_iters, self.rtol, self.atol)
        z = search.start
        # Columns are overwritten in turn. A column not yet filled is 0 and gets the weight 0.
        dz = z.new_zeros((self.window, *z.shape))
        dg = torch.zeros_like(dz)
        z_last = g_last = z
        step = 0
        while search.running.any():
            g = search.evaluate(z)
            if step and self.window:
                column = (step - 1) % self.window
                dz[column] = z - z_last
                dg[column] = g - g_last
            gamma = self._weights(dg, g)
            move = self.damping * g
            for i in range(self.window):
                move.addcmul_(gamma[:, i, None], dz[i], value=-1.0)
                move.addcmul_(gamma[:, i, None], dg[i], value=-self.damping)
            z_last, g_last = z, g
            z = search.move(z, move)
            step += 1
        return search.solution()

    def _weights(self, dg: Tensor, g: Tensor) -> Tensor:
        """Return gamma, (T, m); 0 for a system whose normal equations cannot be factorised."""
        columns = dg.movedim(0, 1)
        gram = (columns @ columns.mT).double()
        right = (columns @ g[:, :, None]).double()
        scale = gram.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        scale = torch.where(scale > 0, scale, 1.0)
        gram = gram / scale / scale.mT
        # The products have the rounding error of their precision, which a smaller ridge would fit.
        ridge = max(self.regularisation, torch.finfo(g.dtype).eps)
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(gram)
        gamma = torch.cholesky_solve(right / scale, factor) / scale
        sound = (failed == 0) & gamma.isfinite().all(dim=1).squeeze(1)
        return torch.where(sound[:, None], gamma.squeeze(2), 0.0).to(g.dtype)

"""The Jacobi preconditioner, with an estimated diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn.linear_solve.solution import MatVec
from metalearn.linear_solve.system import require, rows
from metalearn.tree import Raveler, Tree


@dataclass(frozen=True)
class Jacobi:
    """The preconditioner 1 / diag(A), with Hutchinson's estimate of the diagonal.

    The estimate is the mean of z * A z over random signs z (Bekas, Kokiopoulou & Saad 2007). An
    entry's error comes from its row's entries off the diagonal, sqrt(sum_j A_ij^2 / samples). The
    estimate is therefore exact where A is diagonal. An entry is kept positive: at least its own
    standard error, below which nothing is known of it, and 1 where that is 0. The signs are the
    same for every task.

    Args:
        samples: the number of products with A, at least 1.
        seed: the seed of the signs.

    Raises:
        ValueError: samples is below 1.
    """

    samples: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, 1, "samples")

    @torch.no_grad()
    def of(self, matvec: MatVec, like: Tree, batched: bool) -> MatVec:
        raveler = Raveler.of(like, batched)
        apply, shape = raveler.matvec(matvec), raveler.ravel(like)
        generator = torch.Generator().manual_seed(self.seed)
        mean, spread = torch.zeros_like(shape), torch.zeros_like(shape)
        for count in range(1, self.samples + 1):
            signs = torch.randint(2, shape.shape[1:], generator=generator).to(shape) * 2 - 1
            z = signs.expand_as(shape)
            sample = z * apply(z)
            # Welford's running variance, which is exactly 0 for a diagonal A.
            before = sample - mean
            mean = mean + before / count
            spread = spread + before * (sample - mean)
        error = (spread / max(self.samples * (self.samples - 1), 1)).clamp_min(0.0).sqrt()
        diagonal = mean.maximum(error)
        least = torch.finfo(shape.dtype).eps * diagonal.amax(dim=1, keepdim=True)
        usable = (diagonal > least) & (diagonal > torch.finfo(shape.dtype).tiny)
        diagonal = torch.where(usable & diagonal.isfinite(), diagonal, 1.0)
        finite = mean.isfinite().all(dim=1)
        diagonal = rows(finite, diagonal, 1.0)
        return lambda v: raveler.unravel(raveler.ravel(v) / diagonal)

"""The randomised Nystroem approximation, as a preconditioner and as a solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import MAX_FLOAT32
from metalearn.linear_solve.solution import MatVec, Solution, Status
from metalearn.linear_solve.system import System, divide, require, rows, seeded
from metalearn.tree import Tree


@dataclass(frozen=True)
class Nystrom:
    """The low-rank approximation A_nys = A W (W'A W)^+ (A W)' of A, with random W.

    A must be symmetric positive semi-definite. Frangella, Tropp & Udell 2023, algorithm 2.1, with
    its stabilising shift. W's start is the same for every task, so that a task's result does not
    depend on its batch. W is then multiplied by A `power` times (Halko, Martinsson & Tropp 2011,
    algorithm 4.4). The range that a single product finds is mixed with the rest of the spectrum by
    (rest / leading), which keeps CG going. An example: 20 eigenvalues of 1e2 to 1e4 above a floor
    of 1. CG takes 17 iterations after power=0, 5 after power=1, and 26 without this preconditioner.

    As a preconditioner, `CG(preconditioner=Nystrom(20, 1e-3))`, it is the inverse of A_nys +
    damping I. Orthogonal to A_nys's range, A_nys + damping I counts as A_nys's least eigenvalue +
    damping. (Eq. 1.3 of the paper, scaled to be close to A's inverse.)

    As a solver (Hataya & Yamada 2023), x = x0 + (A_nys + damping I)^-1 (b - A x0). This is one step
    without a tolerance. The value is that step whatever the status, and x0 where A W is not finite.
    The status is:

    - `CONVERGED`: the relative residual of A x = b is at most 1e-6, the other solvers' default;
    - `DIVERGED`: the residual is above the start's;
    - `NEGATIVE_CURVATURE`: a direction in the span of W has negative curvature;
    - `SINGULAR`: A W is zero;
    - `MAX_ITERS`: none of these.

    The eigenvalue bounds are the Ritz values of A in the span of W. `iterations` counts the
    products, rank (power + 1). The memory is about 4 rank T N.

    Args:
        rank: the columns of W, at least 1; as many as b has numbers make A_nys exact.
        damping: above 0, in the units of A. An A that is damped already takes the same damping.
        seed: the seed of W.
        power: the products of W with A before the sketch, rank each; 0: the paper's algorithm.

    Raises:
        ValueError: rank is below 1, power is negative, or damping is not a positive number.
    """

    rank: int
    damping: float
    seed: int = 0
    power: int = 1

    def __post_init__(self) -> None:
        require(self, 1, "rank")
        require(self, 0, "power")
        if not 0 < self.damping <= MAX_FLOAT32:
            raise ValueError(
                f"Nystrom(damping={self.damping}); expected above 0, up to {MAX_FLOAT32:.1e}"
            )

    @torch.no_grad()
    def of(self, matvec: MatVec, like: Tree, batched: bool) -> MatVec:
        system = System.of(matvec, like, None, batched, rtol=0.0)
        sketch = self._sketch(system)
        floor = sketch.eigenvalues[:, -1] + self.damping
        raveler = system.raveler
        return lambda v: raveler.unravel(sketch.inverse(raveler.ravel(v), self.damping, floor))

    @torch.no_grad()
    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        system = System.of(matvec, b, x0, batched, rtol=1e-6)
        status, before = system.status, system.r.norm(dim=1)
        running = status == Status.MAX_ITERS
        iterations = torch.zeros_like(status)
        nothing = torch.full_like(before, torch.inf)
        if not running.any():
            return system.finish(system.x, system.r, iterations, status, (nothing, -nothing))

        sketch = self._sketch(system)
        iterations += running * min(self.rank, system.b.shape[1]) * (self.power + 1)
        floor = torch.full_like(before, self.damping)
        step = sketch.inverse(system.r, self.damping, floor)
        known = running & sketch.finite
        x = rows(known, system.x + step, system.x)
        r = rows(known, system.residual(x), system.r)
        low, high = sketch.ritz[:, 0], sketch.ritz[:, -1]
        rounding = system.b.shape[1] * torch.finfo(low.dtype).eps * high.abs().maximum(low.abs())
        after = r.norm(dim=1)
        for condition, why in (
            (after > before, Status.DIVERGED),
            (low < -rounding, Status.NEGATIVE_CURVATURE),
            (sketch.zero, Status.SINGULAR),
            (after <= system.tolerance, Status.CONVERGED),
            (~sketch.finite | ~after.isfinite(), Status.NON_FINITE),
        ):
            status = torch.where(running & condition, why, status)
        r, status = system.recheck(x, r, status, ~known)
        bounds = (torch.where(known, low, nothing), torch.where(known, high, -nothing))
        return system.finish(x, r, iterations, status, bounds)

    def _sketch(self, system: System) -> _Sketch:
        tasks, size = system.b.shape
        y = seeded((size, min(self.rank, size)), self.seed, system.b).expand(tasks, -1, -1)
        finite = torch.ones_like(system.finite)
        for _ in range(self.power + 1):
            w = torch.linalg.qr(y).Q
            y = torch.stack([system.apply(column) for column in w.unbind(2)], dim=2)
            finite = finite & y.flatten(1).norm(dim=1).isfinite()
            y = torch.where(finite[:, None, None], y, 0.0)
        return _Sketch.of(w, y, finite)


@dataclass(frozen=True)
class _Sketch:
    """The factorisation A_nys = U diag(eigenvalues) U'.

    Args:
        vectors: U, (T, N, rank), with orthonormal columns.
        eigenvalues: in descending order, none below 0, (T, rank).
        ritz: the eigenvalues of W'A W in ascending order, inside A's spectrum, (T, rank).
        finite, zero: True where A W is finite, or zero, (T,).
    """

    vectors: Tensor
    eigenvalues: Tensor
    ritz: Tensor
    finite: Tensor
    zero: Tensor

    @classmethod
    def of(cls, w: Tensor, y: Tensor, finite: Tensor) -> _Sketch:
        """Return the sketch of W, which has orthonormal columns, and Y = A W.

        Y is 0 where A W is not finite.
        """
        norm = y.flatten(1).norm(dim=1)
        core = w.mT @ y
        core = (core + core.mT) / 2
        # By the factor sqrt N the shift exceeds the rounding of a sketch of N rows (Tropp et al.
        # 2017).
        shift = w.shape[1] ** 0.5 * torch.finfo(y.dtype).eps * norm
        # Use eigenvectors, and leave out directions of negative curvature. The paper takes
        # Cholesky's factor, which does not exist if A is not quite semi-definite.
        ritz, basis = torch.linalg.eigh(core)
        shifted = (ritz + shift[:, None]) * (ritz > 0)
        root = divide((y + shift[:, None, None] * w) @ basis, shifted.sqrt()[:, None, :])
        u, singular, _ = torch.linalg.svd(root, full_matrices=False)
        eigenvalues = (singular**2 - shift[:, None]).clamp_min(0.0)
        return cls(u, eigenvalues, ritz, finite, finite & (norm == 0))

    def inverse(self, v: Tensor, damping: float, floor: Tensor) -> Tensor:
        """Return (A_nys + damping I)^-1 v, (T, N), with `floor` for damping off the range."""
        column = v[:, :, None]
        along = self.vectors.mT @ column
        outside = column - self.vectors @ along
        # Project twice: a small floor would amplify the part of v in the range that rounding left.
        outside = outside - self.vectors @ (self.vectors.mT @ outside)
        scaled = along / (self.eigenvalues + damping)[:, :, None]
        return (self.vectors @ scaled).squeeze(2) + outside.squeeze(2) / floor[:, None]

"""Implicit meta-gradients by a name and a number of iterations: what an ablation sweeps over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.inner import InnerSolver
from metalearn.linear_solve import (
    CG,
    Jacobi,
    LinearSolver,
    MatVec,
    Neumann,
    Nystrom,
    Solution,
)
from metalearn.metagrad.implicit import Implicit
from metalearn.tree import Tree, leaves_of, like_tree

WAYS: Mapping[str, Callable[[int, float], dict[str, Any]]] = {
    "cg": lambda n, damping: {"linear_solver": CG(n)},
    "gauss_newton": lambda n, damping: {"linear_solver": CG(n), "curvature": "gauss_newton"},
    "damped": lambda n, damping: {"linear_solver": CG(n), "damping": damping},
    "neumann": lambda n, damping: {"linear_solver": Neumann(n)},
    "nystrom": lambda n, damping: {"linear_solver": Nystrom(n, damping, power=0)},
    "nystrom_cg": lambda n, damping: {
        "linear_solver": CG(n, preconditioner=Nystrom(5, damping=1e-3, power=1))
    },
    "jacobi_cg": lambda n, damping: {"linear_solver": CG(n, preconditioner=Jacobi(8))},
    "warm_cg": lambda n, damping: {"linear_solver": WarmStart(CG(n))},
}
"""`Implicit`'s options by the name of a way, the number of iterations and the damping."""


def implicit_by_iterations(
    inner: InnerSolver, iterations: int, way: str = "cg", damping: float = 0.5
) -> Implicit:
    """`Implicit` with one option for the number of iterations, 0 being the first-order gradient at
    the same inner solution.

    Args:
        iterations: of the way's solver, at least 0; of "nystrom" the rank, one product each.
        way: "cg"; "gauss_newton", CG with that curvature; "damped", CG with `damping` on A's
            diagonal; "neumann"; "nystrom", whose own damping is `damping`; CG preconditioned,
            "nystrom_cg" (10 products more a solve) and "jacobi_cg" (8 more); "warm_cg", begun with
            the mean of the last solve's solutions.

    Raises:
        UsageError: an unknown way, or a negative number.
    """
    if way not in WAYS:
        raise UsageError(f"way={way!r} is unknown; expected one of {', '.join(WAYS)}")
    if iterations < 0:
        raise UsageError(f"iterations={iterations}; expected a whole number of at least 0")
    if not 0 < damping < float("inf"):
        raise UsageError(f"damping={damping}; expected a number above 0")
    if iterations == 0:
        return Implicit(inner, None)
    return Implicit(inner, **WAYS[way](iterations, damping))


@dataclass(frozen=True)
class WarmStart:
    """A solver that starts every system from the mean of its own last solution's systems.

    Its last solution lasts as long as the object: a run that is resumed begins with none.
    """

    solver: LinearSolver
    _last: list[Tree] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(
        self, matvec: MatVec, b: Tree, x0: Tree | None = None, batched: bool = False
    ) -> Solution:
        if x0 is None and self._last:
            mean = leaves_of(self._last[0])
            x0 = like_tree(b, [m.expand_as(x) for m, x in zip(mean, leaves_of(b), strict=True)])
        solution = self.solver(matvec, b, x0, batched)
        x = leaves_of(solution.value)
        with torch.no_grad():
            means = [leaf.mean(0, keepdim=True) for leaf in x] if batched else x
        self._last[:] = [like_tree(solution.value, means)]
        return solution
